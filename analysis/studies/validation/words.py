"""A staged validation and a soak test in words: sentences (`templates/words.j2`) and tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from analysis.core.templates import paragraph
from analysis.core.wording import capitalised, listed, markdown_table, short_percent
from analysis.runs.tables import RequestCounts
from analysis.stats.bounds import wilson
from analysis.studies.validation.result import Isolated, Level, StagedValidation
from analysis.studies.validation.soak import Soak

_say = partial(paragraph, __package__, "words.j2")
_UNITS = {
    "rss_bytes": ("resident memory", 2**-20, "MiB"),
    "leaked": ("leaked pages", 1, "pages"),
    "latency_p50": ("median latency", 1e3, "ms"),
}
"""Name, factor and unit of each trend of a soak test."""

_HEADS = (
    "level", "verdict", "requests failed", "engines failed", "rules broken", "pages leaked",
    "injected faults detected", "note",
)  # fmt: skip


def in_words(validation: StagedValidation) -> str:
    """Return the result as Markdown: a verdict, a row for each level, and notes on them."""
    rows = [_isolated_row(validation.isolated), *map(level_row, validation.results)]
    done = {level.concurrency for level in validation.results}
    rows += [
        {"level": f"{number} at once", "verdict": "not begun"}
        for number in validation.settings.levels
        if number not in done
    ]
    parts = [f"**{validation.name}**: {_say('verdict', validation)}", *_table(rows, "level")]
    if mixes := _mixes(validation.results):
        parts.append(mixes)
    if any(level.accepted and not level.failed_trials for level in validation.results):
        parts.append(_say("caveat", validation))
    if stopped := next((one for one in validation.results if one.explanation), None):
        parts += [f"Diagnosis of the failure at {stopped.name}:", stopped.explanation]
    return "\n\n".join(parts)


def level_row(level: Level) -> dict[str, object]:
    """Return the result of one level for a table: counts with bounds, and a note."""
    requests, engines = (
        f"{level.failed} of {level.accepted}",
        f"{level.failed_trials} of {level.trials}",
    )
    if level.accepted and not level.failed_trials:
        requests += f", at most {short_percent(level.upper)}"
        engines += f", at most {short_percent(level.upper_of_engines)}"
    cells = (
        level.name, level.verdict, requests, engines, len(level.findings), level.leaked,
        f"{level.detected} of {level.controls}", _say("note", level),
    )  # fmt: skip
    return dict(zip(_HEADS, cells, strict=True))


def singles_in_words(validations: Sequence[StagedValidation]) -> str:
    """Return the last level of each validation of a single fix: a table, and notes on them."""
    rows = []
    for one in validations:
        for level in one.results[-1:]:
            row = level_row(level)
            why = level.explanation or row.pop("note")
            row = {"ended at": row.pop("level"), **row, "note": why}
            fix = " + ".join(one.settings.treatments)
            rows.append({"fix": fix, "prefix sharing": one.settings.prefix_sharing, **row})
    return "\n\n".join(_table(rows, "fix", "prefix sharing")) or "No single fix was validated."


def _table(rows: Sequence[dict[str, object]], *names: str) -> list[str]:
    """Return rows as a table without their notes, and the notes as a list below it.

    A note is a paragraph, which would make a column of a table unreadable. `names` are the columns
    that name a row.
    """
    notes = [
        f"- {', '.join(str(row[name]) for name in names)}: {row['note']}"
        for row in rows
        if row.get("note")
    ]
    table = markdown_table([{k: v for k, v in row.items() if k != "note"} for row in rows])
    return list(filter(None, [table, "\n".join(notes)]))


def _isolated_row(isolated: Isolated | None) -> dict[str, object]:
    verdict = "not examined" if isolated is None else isolated.verdict
    note = "" if isolated is None else _say("isolated", isolated)
    return {**dict.fromkeys(_HEADS, ""), "level": "cache alone", "verdict": verdict, "note": note}


def _mixes(levels: Sequence[Level]) -> str:
    """Return how many engines ran each workload, once for levels that agree; "" for only one."""
    named: dict[str, list[str]] = {}
    for level in levels:
        if len(level.workloads) > 1:
            named.setdefault(_say("mix", level), []).append(level.name)
    if len(named) == 1:
        return next(iter(named))
    return "\n".join(f"- {listed(names)}: {mix}" for mix, names in named.items())


def answer_in_a_sentence(
    whole: Sequence[StagedValidation],
    singles: Sequence[StagedValidation] = (),
    soaks: Sequence[Soak] = (),
) -> str:
    """Return whether the fixes hold: all of them at once, each alone, and in a soak test."""
    rest = [_say("singles", singles)] if singles else []
    sentences = [[_say("whole", one) for one in whole], [*rest, *map(_soaked, soaks)]]
    said = [f"{capitalised('; '.join(clauses))}." for clauses in sentences if clauses]
    return " ".join(said) or "No validation was run."


def soak_in_words(soak: Soak) -> str:
    """Return a soak test as Markdown: a row for each level."""
    trends, rows = soak.trends(), []
    for level, ending in soak.endings.items():
        own = soak.frame[soak.frame["level"] == level]
        counts, failed = _counts(own), ""
        if counts.accepted:
            low, high = (f"{100 * bound:.2g}%" for bound in wilson(counts.failed, counts.accepted))
            failed = f"{counts.failed} of {counts.accepted} ({low} to {high})"
        offered = "offered " if own["rejected"].sum() + own["retries"].sum() else ""
        known = {row["measure"]: row for row in trends[trends["level"] == level].to_dict("records")}
        rows.append(
            {
                "level": f"{level} {offered}at once",
                "iterations": len(own),
                "failed": failed,
                "rejected": counts.rejected,
                "retries": int(own["retries"].sum()),
                "leaked at the end": int(own["leaked"].iloc[-1]) if len(own) else "",
                "MiB, at most": f"{own['rss_bytes'].max() / 2**20:.0f}" if len(own) else "",
                **{
                    f"trend of {name}": _trend(known.get(measure), factor, unit)
                    for measure, (name, factor, unit) in _UNITS.items()
                },
                "ended early": ending or "",
            }
        )
    title = f"**{soak.name}, soak test of {soak.budget_s:g} s.**"
    return "\n\n".join([title, markdown_table(rows), _say("soak_caveat", soak)])


def _soaked(soak: Soak) -> str:
    leaked = sum(int(own["leaked"].max()) for _, own in soak.frame.groupby("level"))
    early = sum(ending is not None for ending in soak.endings.values())
    return _say("soaked", soak, _counts(soak.frame), leaked, early)


def _counts(frame: Any) -> RequestCounts:
    return RequestCounts(*(int(frame[name].sum()) for name in ("requests", "failed", "rejected")))


def _trend(row: dict[Any, Any] | None, factor: float, unit: str) -> str:
    """Return a trend with its interval: around 0 it shows none, and bounds the one there may be."""
    if row is None or math.isnan(row["slope"]):
        return "too few iterations"
    slope, low, high = (_signed(factor * row[end]) for end in ("slope", "low", "high"))
    return f"{'none' if row['low'] <= 0 <= row['high'] else slope} ({low} to {high} {unit})"


def _signed(value: float) -> str:
    value += 0.0  # no "-0"
    return f"{value:+.0f}" if abs(value) >= 100 else f"{value:+.2g}"
