"""What the fixes cost, from paired trials: sentences (`templates/words.j2`) and a table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from analysis.core.templates import paragraph
from analysis.core.wording import capitalised, markdown_table
from analysis.stats.configurations import setting_name, varying
from analysis.studies.cost.compare import comparisons, costs, pairs_needed
from analysis.studies.cost.locking import LockCost
from analysis.studies.cost.measures import ALL, CACHE_METRICS, LOCK, METRICS, SETTING, UNTREATED

WORTH = 0.05
"""A cost that matters, as a share of the time of an answer."""
_WHOLE, _MEMORY = "latency_s", "peak_rss_bytes"
_UNKNOWN = "too few trials for an interval"
_NARROW = 0.01
"""Width of an interval below which a third digit is shown."""
_TITLES = {metric.name: metric.title for metric in (*METRICS, *CACHE_METRICS)}
_say = partial(paragraph, __package__, "words.j2")

Row = dict[Any, Any]


@dataclass(frozen=True)
class _Setting:
    """The trials and comparisons of one setting."""

    values: Mapping[str, Any]
    group: pd.DataFrame
    rows: list[Row]
    """Comparisons with their texts."""
    locks: list[LockCost]
    among: int

    def of(self, *, arm: str | None = None, metric: str | None = None) -> list[Row]:
        """Return the rows of an arm or a metric."""
        return [
            row
            for row in self.rows
            if arm in (None, row["arm"]) and metric in (None, row["metric"])
        ]

    @property
    def whole(self) -> Row | None:
        """The latency with all fixes."""
        return next(iter(self.of(arm=ALL, metric=_WHOLE)), None)

    @property
    def hits(self) -> Row | None:
        """The hit rate with all fixes, if it is known."""
        rows = self.of(arm=ALL, metric="hit_rate")
        return next((row for row in rows if not math.isnan(row["estimate"])), None)


def cost_in_words(
    measures: pd.DataFrame,
    cache: pd.DataFrame | None = None,
    locks: Sequence[LockCost] = (),
) -> str:
    """Return advice for each release and prefix sharing, with a table of costs, as Markdown.

    The frames come from `measure` and `measure_cache`.
    """
    parts = []
    for one in _settings(measures, cache, locks):
        said = f"**{setting_name(one.values)}.** {capitalised(_advice(one))}."
        parts.append(f"{said} {_say('compared', _facts(one))}")
        parts.append(markdown_table([*_cost_rows(one), *_lock_rows(one)]))
        parts.append(_say("legend", one.among, [lock.operations for lock in one.locks]))
    return "\n\n".join(filter(None, parts)) or "No trial was measured."


def answer_in_a_sentence(
    measures: pd.DataFrame,
    cache: pd.DataFrame | None = None,
    locks: Sequence[LockCost] = (),
) -> str:
    """Return one sentence of advice for the index of a report."""
    clauses = []
    for one in _settings(measures, cache, locks):
        names = [setting_name({k: v}) for k, v in one.values.items() if k != "release"]
        parts = [f"{', '.join(names)}: {_advice(one)}"]
        parts += [_say("lock_clause", lock.share) for lock in one.locks]
        parts += [_say("hits", one.hits)] if one.hits else []
        clauses.append("; ".join(parts))
    return f"{capitalised('; '.join(clauses) or 'no trial was measured')}."


def _advice(one: _Setting) -> str:
    dear = [row for row in one.of(metric=_WHOLE) if row["verdict"] == "costs"]
    dear = [row for row in dear if row["arm"] not in (ALL, LOCK)]
    dearest = max(dear, key=lambda row: row["estimate"], default=None)
    pairs = int(one.whole["pairs"]) if one.whole else 0
    return _say("advice", pairs, one.whole, dearest, WORTH)


def _settings(
    measures: pd.DataFrame, cache: pd.DataFrame | None, locks: Sequence[LockCost]
) -> Iterator[_Setting]:
    """Yield each release and prefix sharing, apart also in what else differs between trials."""
    among = comparisons(measures, cache)
    keys = list(dict.fromkeys(["release", "prefix_sharing", *varying(measures, SETTING)]))
    for key, group in measures.groupby(keys, sort=True):
        values = dict(zip(keys, key, strict=True))
        rows = _rows(costs(group, among=among))
        if cache is not None:
            own = cache[(cache[keys] == pd.Series(values)).all(axis=1)]
            rows += _rows(costs(own, CACHE_METRICS, among=among))
        mine = [one for one in locks if all(getattr(one, k) == v for k, v in values.items())]
        yield _Setting(values, group, rows, mine, among)


def _rows(found: pd.DataFrame) -> list[Row]:
    """Return comparisons with their texts."""
    rows: list[Row] = []
    for row in found.to_dict("records"):
        values = [row[name] for name in ("estimate", "low", "high")]
        shown, known = row["verdict"] in ("costs", "saves"), not math.isnan(row["low"])
        ratio = None if row["metric"] == "hit_rate" else values[0]
        digits = 3 if values[2] - values[1] < _NARROW else 2
        middle, low, high = (f"{value:.{digits}f}" for value in values)
        points = [f"{100 * value:+.1f}" for value in values]
        range_ = f"{points[1]} to {points[2]}" if known else _UNKNOWN
        interval = f"{middle} ({low} to {high})" if known else f"{middle} ({_UNKNOWN})"
        difference = f"{points[0]} percentage points ({range_})"
        texts = {
            "title": _TITLES[row["metric"]],
            "compared": difference if ratio is None else interval,
            "shown": shown,
            "known": known,
            "interval": interval,
            "points": difference,
            "needed": "" if ratio is None else f"{pairs_needed(row['spread'], ratio, WORTH):,.0f}",
        }
        rows.append({**row, **texts})
    return rows


def _facts(one: _Setting) -> dict[str, Any]:
    group = one.group
    plain, treated = (group[group["arm"] == arm] for arm in (UNTREATED, ALL))
    return {
        "arms": len({*group["arm"]} - {UNTREATED}),
        "trials": len(group),
        "levels": sorted(set(group["concurrency"])),
        "answers": int(group["answered"].sum()),
        "left_out": sum(int(row["left_out"]) for row in one.of(metric=_WHOLE)),
        "rejected": int(group["rejected"].sum()),
        "asked": int(group["asked"].sum()),
        "wrong": [int(arm["wrong"].sum()) for arm in (plain, treated)],
        "answered": [int(arm["answered"].sum()) for arm in (plain, treated)],
    }


def _cost_rows(one: _Setting) -> list[dict[str, str]]:
    """Return every measure of all fixes together, the answer of each arm, and what memory grew."""
    arms = sorted(one.of(metric=_WHOLE), key=lambda row: -row["estimate"])
    memory = [row for row in one.of(metric=_MEMORY) if row["verdict"] == "costs"]
    chosen = one.of(arm=ALL) + [row for row in (*arms, *memory) if row["arm"] != ALL]
    return [
        _row(row["arm"], row["title"], row["compared"], row["verdict"])
        for row in chosen
        if not math.isnan(row["estimate"])
    ]


def _lock_rows(one: _Setting) -> list[dict[str, str]]:
    """Return what the lock adds to a request, by single operations and by requests in turns."""
    rows = []
    for lock in one.locks:
        threads = lock.costs["threads"].max()
        for name, how in (
            ("alone", "without contention"),
            ("contended", f"{threads} threads that call without pause"),
        ):
            row = _say("added", lock.share[name], lock.share[f"{name}_s"], lock.latency_s)
            rows.append(_row("the lock", f"added to a request, {how}", row, ""))
        turns = lock.alternated
        if not math.isnan(turns["low"]):
            text = f"{turns['ratio']:.2f} ({turns['low']:.2f} to {turns['high']:.2f})"
            measure = f"whole answer, one engine in turns, {turns['blocks']:.0f} blocks"
            rows.append(_row("the lock", measure, text, ""))
    return rows


def _row(arm: str, measure: str, compared: str, verdict: str) -> dict[str, str]:
    return {
        "treatment": arm,
        "measure": measure,
        "compared with untreated (95% interval)": compared,
        "verdict": verdict,
    }
