"""What the fixes cost in words, from paired trials; sentences are in `templates/words.j2`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from analysis.core.templates import paragraph
from analysis.core.wording import capitalised
from analysis.stats.configurations import setting_name, varying
from analysis.studies.cost.compare import comparisons, costs, pairs_needed
from analysis.studies.cost.locking import LockCost
from analysis.studies.cost.measures import ALL, CACHE_METRICS, LOCK, METRICS, SETTING, UNTREATED

WORTH = 0.05
"""A cost that matters, as a share of the time of an answer."""
_WHOLE, _MEMORY = "latency_s", "peak_rss_bytes"
_NARROW = 0.01
"""Width of an interval below which a third digit is shown."""
_TITLES = {metric.name: metric.title for metric in METRICS}
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
    """Return the cost of each arm, a paragraph of Markdown for each release and prefix sharing.

    The frames come from `measure` and `measure_cache`.
    """
    paragraphs = []
    for one in _settings(measures, cache, locks):
        sentences = [_compared(one), _all_fixes(one), _single(one), _memory(one)]
        sentences += [f"{capitalised(_say('hits', one.hits))}."] if one.hits else []
        sentences += [
            _say("lock", lock, lock.share, lock.costs["threads"].max()) for lock in one.locks
        ]
        name = setting_name(one.values)
        paragraphs.append(f"**{name}.** {' '.join(filter(None, sentences))}")
    return "\n\n".join(paragraphs) or "No trial was measured."


def answer_in_a_sentence(
    measures: pd.DataFrame,
    cache: pd.DataFrame | None = None,
    locks: Sequence[LockCost] = (),
) -> str:
    """Return one sentence of advice for the index of a report."""
    clauses = []
    for one in _settings(measures, cache, locks):
        names = [setting_name({k: v}) for k, v in one.values.items() if k != "release"]
        dear = [row for row in one.of(metric=_WHOLE) if row["verdict"] == "costs"]
        dear = [row for row in dear if row["arm"] not in (ALL, LOCK)]
        dearest = max(dear, key=lambda row: row["estimate"], default=None)
        pairs = int(one.whole["pairs"]) if one.whole else 0
        parts = [f"{', '.join(names)}: {_say('advice', pairs, one.whole, dearest, WORTH)}"]
        parts += [_say("lock_clause", lock.share) for lock in one.locks]
        parts += [_say("hits", one.hits)] if one.hits else []
        clauses.append("; ".join(parts))
    return f"{capitalised('; '.join(clauses) or 'no trial was measured')}."


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
        ratio = values[0] if row["metric"] in _TITLES else None
        digits = 3 if values[2] - values[1] < _NARROW else 2
        middle, low, high = (f"{value:.{digits}f}" for value in values)
        points = [f"{100 * value:+.1f}" for value in values]
        range_ = f"{points[1]} to {points[2]}" if known else "too few trials for an interval"
        texts = {
            "title": _TITLES.get(row["metric"], ""),
            "shown": shown,
            "known": known,
            "interval": f"{middle} ({low} to {high})",
            "text": f"{middle} ({low} to {high}{', ' + row['verdict'] if shown else ''})",
            "points": f"{points[0]} percentage points ({range_})",
            "needed": "" if ratio is None else f"{pairs_needed(row['spread'], ratio, WORTH):,.0f}",
        }
        rows.append({**row, **texts})
    return rows


def _compared(one: _Setting) -> str:
    group, levels = one.group, sorted(set(one.group["concurrency"]))
    plain, treated = (group[group["arm"] == arm] for arm in (UNTREATED, ALL))
    facts = {
        "arms": len({*group["arm"]} - {UNTREATED}),
        "trials": len(group),
        "levels": levels,
        "among": one.among,
        "answers": int(group["answered"].sum()),
        "left_out": sum(int(row["left_out"]) for row in one.of(metric=_WHOLE)),
        "rejected": int(group["rejected"].sum()),
        "asked": int(group["asked"].sum()),
        "wrong": [int(arm["wrong"].sum()) for arm in (plain, treated)],
        "answered": [int(arm["answered"].sum()) for arm in (plain, treated)],
    }
    return _say("compared", facts)


def _all_fixes(one: _Setting) -> str:
    rows = [row for row in one.of(arm=ALL) if row["metric"] in {*_TITLES} - {_MEMORY}]
    return _say("all_fixes", rows, one.whole, WORTH)


def _single(one: _Setting) -> str:
    rows = [row for row in one.of(metric=_WHOLE) if row["known"] and row["arm"] != ALL]
    shown = sorted((row for row in rows if row["shown"]), key=lambda row: -row["estimate"])
    rest = sorted((row for row in rows if not row["shown"]), key=lambda row: row["high"])
    return _say("single", shown, rest)


def _memory(one: _Setting) -> str:
    rows = [row for row in one.of(metric=_MEMORY) if row["known"]]
    shown = sorted((r for r in rows if r["verdict"] == "costs"), key=lambda r: -r["estimate"])
    widest = max((max(abs(r["high"] - 1), abs(1 - r["low"])) for r in rows), default=0.0)
    return _say("memory", shown, rows, widest)
