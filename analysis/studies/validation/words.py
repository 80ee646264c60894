"""A staged validation and a soak test in words; the sentences are in `templates/words.j2`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from analysis.core.templates import paragraph
from analysis.core.wording import capitalised, listed
from analysis.runs.tables import RequestCounts
from analysis.stats.bounds import wilson
from analysis.studies.validation.result import Isolated, Level, StagedValidation
from analysis.studies.validation.soak import Soak
from analysis.workloads.named import in_turn

_say = partial(paragraph, __package__, "words.j2")
_UNITS = {
    "rss_bytes": ("resident memory", 2**-20, "MiB"),
    "leaked": ("leaked pages", 1, "pages"),
    "latency_p50": ("median latency", 1e3, "ms"),
}
"""Name, factor and unit of each trend of a soak test."""


def in_words(validation: StagedValidation) -> str:
    """Return the result as Markdown: a verdict, then a line for each level."""
    lines = [f"**{validation.name}: {_say('verdict', validation)}**", ""]
    if len(names := in_turn(validation.settings.workloads)) > 1:
        lines += [f"Workloads, one for each fresh engine: {listed(names)}.", ""]
    alone = validation.isolated
    lines.append(f"- Cache alone: {isolated_in_words(alone) if alone else 'not examined.'}")
    lines += [f"- {level.name}: {level_in_words(level)}" for level in validation.results]
    done = {level.concurrency for level in validation.results}
    if rest := [number for number in validation.settings.levels if number not in done]:
        lines.append(f"- Not begun: {listed(rest)} at once.")
    if any(level.accepted and not level.failed_trials for level in validation.results):
        lines += ["", _say("caveat", validation)]
    if stopped := next((one for one in validation.results if one.explanation), None):
        lines += ["", f"Diagnosis of the failure at {stopped.name}:", "", stopped.explanation]
    return "\n".join(lines)


def isolated_in_words(isolated: Isolated) -> str:
    """Return the result for the cache alone in sentences."""
    return _say("isolated", isolated)


def level_in_words(level: Level) -> str:
    """Return the result of one level in sentences."""
    return _say("level", level)


def answer_in_a_sentence(
    whole: Sequence[StagedValidation],
    singles: Sequence[StagedValidation] = (),
    soaks: Sequence[Soak] = (),
) -> str:
    """Return whether the fixes hold: all of them at once, each alone, and in a soak test."""
    clauses = [_say("whole", one) for one in whole]
    clauses += [_say("singles", singles)] if singles else []
    clauses += [_soaked(one) for one in soaks]
    return f"{capitalised('; '.join(clauses) or 'no validation was run')}."


def soak_in_words(soak: Soak) -> str:
    """Return a soak test as Markdown: a line for each level."""
    lines = [f"**{soak.name}, soak test of {soak.budget_s:g} s.**", ""]
    trends = soak.trends()
    for level, ending in soak.endings.items():
        own = soak.frame[soak.frame["level"] == level]
        counts = _counts(own)
        known = trends[(trends["level"] == level) & trends["slope"].notna()].to_dict("records")
        offered = "offered " if own["rejected"].sum() + own["retries"].sum() else ""
        bounds = wilson(counts.failed, counts.accepted)
        text = _say("soak_level", own, counts, bounds, [_trend(row) for row in known], ending)
        lines.append(f"- {level} {offered}at once: {text}")
    return "\n".join(lines)


def _soaked(soak: Soak) -> str:
    leaked = sum(int(own["leaked"].max()) for _, own in soak.frame.groupby("level"))
    early = sum(ending is not None for ending in soak.endings.values())
    return _say("soaked", soak, _counts(soak.frame), leaked, early)


def _counts(frame: Any) -> RequestCounts:
    return RequestCounts(*(int(frame[name].sum()) for name in ("requests", "failed", "rejected")))


def _trend(row: dict[Any, Any]) -> dict[str, Any]:
    name, factor, unit = _UNITS[row["measure"]]
    slope = {key: _signed(factor * row[key]) for key in ("slope", "low", "high")}
    # An interval around 0 shows no trend, and bounds the one that there may be.
    return {"name": name, "unit": unit, "flat": row["low"] <= 0 <= row["high"], **slope}


def _signed(value: float) -> str:
    return f"{value:+.0f}" if abs(value) >= 100 else f"{value:+.2g}"
