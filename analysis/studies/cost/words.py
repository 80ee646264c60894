"""What the fixes cost, in words computed from paired trials: for readers, and to act on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis.core.wording import listed as _list
from analysis.stats.configurations import setting_name, varying
from analysis.studies.cost import (
    ALL,
    METRICS,
    UNTREATED,
    WATCHED,
    LockFigures,
    comparisons,
    costs,
    pairs_needed,
)
from analysis.studies.cost.arms import LOCK
from analysis.studies.cost.measures import SETTING

WORTH = 0.05
"""A cost that matters: a request that takes so much longer, as a share of what it took."""
_SHOWN = ("costs", "saves")
_WHOLE = "latency_s"
_NARROW = 0.01
Row = Mapping[Any, Any] | pd.Series
_KEYS = ["release", "prefix_sharing"]


def cost_in_words(
    measures: pd.DataFrame,
    watched: pd.DataFrame | None = None,
    locks: list[LockFigures] | None = None,
) -> str:
    """Return what each arm costs, a paragraph of Markdown for each release and prefix sharing.

    `measures` and `watched` are what `analysis.studies.cost.measure` and `watched` return.
    """
    paragraphs = []
    among = comparisons(measures, watched)
    for setting, group in _settings(measures):
        name = ", ".join(setting_name({column: value}) for column, value in setting.items())
        found = costs(group, among=among)
        sentences = [_what_was_compared(group, found, among), _all_fixes(found), _single(found)]
        sentences.append(_space(found))
        if watched is not None:
            own = watched[_is(watched, setting)]
            sentences.append(_hits(costs(own, WATCHED, among=among)))
        sentences += [_lock(lock) for lock in _of(locks, setting)]
        paragraphs.append(f"**{name}.** {' '.join(filter(None, sentences))}")
    return "\n\n".join(paragraphs) or "No trial was measured, so there is nothing to say."


def answer_in_a_sentence(
    measures: pd.DataFrame,
    locks: list[LockFigures] | None = None,
    watched: pd.DataFrame | None = None,
) -> str:
    """Return what a maintainer can do about it, as one sentence for the index of a report."""
    clauses = []
    among = comparisons(measures, watched)
    for setting, group in _settings(measures):
        found = costs(group, among=among)
        own = found[(found["arm"] == ALL) & (found["metric"] == _WHOLE)]
        about = [setting_name({k: v}) for k, v in setting.items() if k != "release"]
        text = f"{', '.join(about)}: {_advice(own, found)}"
        for lock in _of(locks, setting):
            text += (
                f"; a lock around the cache adds at most {1e6 * lock.share['alone_s']:.0f} us to a"
                " request by the dearest operation timed,"
                f" {_small(lock.share['alone'])} of its time"
            )
        if watched is not None and (
            hits := _hits(costs(watched[_is(watched, setting)], WATCHED, among=among)).rstrip(".")
        ):
            text += f"; {hits[0].lower()}{hits[1:]}"
        clauses.append(text)
    sentence = "; ".join(clauses) or "no trial was measured"
    return sentence[0].upper() + sentence[1:] + "."


def _advice(whole: pd.DataFrame, found: pd.DataFrame) -> str:
    if whole.empty or math.isnan(whole.iloc[0]["low"]):
        pairs = 0 if whole.empty else int(whole.iloc[0]["pairs"])
        return f"too few trials to tell what all fixes together cost ({pairs} pairs)"
    row = whole.iloc[0]
    measured = f"an answer takes {_interval(row)} times as long with all fixes"
    if row["high"] <= 1 + WORTH:
        return f"take all fixes, their cost is no reason not to: {measured}"
    if row["low"] > 1 + WORTH:
        single = found[(found["metric"] == _WHOLE) & ~found["arm"].isin((ALL, LOCK))]
        single = single[single["verdict"] == "costs"].sort_values("estimate", ascending=False)
        text = f"right answers cost more than {WORTH:.0%} of the time: {measured}"
        if len(single):
            dearest = single.iloc[0]
            text += f"; make {dearest['arm']} cheaper first, alone {_interval(dearest)}"
        return text
    return (
        f"whether all fixes together cost more than {WORTH:.0%} is not settled: {measured}, and"
        f" about {_needed(row)} pairs of engines would tell"
    )


def _what_was_compared(group: pd.DataFrame, found: pd.DataFrame, among: int) -> str:
    arms = group["arm"].nunique() - (UNTREATED in set(group["arm"]))
    levels = _list([str(level) for level in sorted(set(group["concurrency"]))])
    text = (
        f"{arms} sets of treatments were compared with no treatment, in {len(group)} trials at"
        f" {levels} requests offered at once, with {int(group['answered'].sum())} answers."
        " Intervals are 95%, over engines, each for itself; what is said to cost or to save is so"
        f" by a sign-flip test over pairs of engines, adjusted for all {among} comparisons (Holm)."
    )
    if left := int(found.loc[found["metric"] == _WHOLE, "left_out"].sum()):
        text += (
            f" {left} pair{'s' if left > 1 else ''} had a request without an answer on one side and"
            f" {'are' if left > 1 else 'is'} left out: what fails early is not fast."
        )
    plain, treated = group[group["arm"] == UNTREATED], group[group["arm"] == ALL]
    if wrong := int(plain["wrong"].sum()):
        text += (
            f" Untreated, {wrong} of {int(plain['answered'].sum())} answers were wrong (with all"
            f" fixes {int(treated['wrong'].sum())} of {int(treated['answered'].sum())}); a wrong"
            " answer takes its time too."
        )
    if rejected := int(group["rejected"].sum()):
        text += (
            f" {rejected} of {int(group['asked'].sum())} requests were refused at once, in all"
            " arms; only accepted ones are timed."
        )
    return text


def _all_fixes(found: pd.DataFrame) -> str:
    own = found[(found["arm"] == ALL) & (found["metric"] != "peak_rss_bytes")]
    if own.empty:
        return ""
    if own["low"].isna().all():
        return "There are too few trials to tell what all fixes together cost."
    parts = []
    for metric in METRICS:
        for row in own[own["metric"] == metric.name].to_dict("records"):
            parts.append(f"{metric.title} {_judged(row)}")
    whole = own[own["metric"] == _WHOLE].iloc[0]
    text = f"With all fixes, as multiples of untreated: {_list(parts)}."
    if whole["verdict"] not in _SHOWN and whole["high"] > 1 + WORTH:
        text += (
            f" A whole answer that takes {WORTH:.0%} longer is not ruled out; about"
            f" {_needed(whole)} pairs would tell."
        )
    elif whole["high"] > 1:
        text += (
            f" That an answer takes more than {_percent(whole['high'] - 1)} longer is ruled out."
        )
    return text


def _single(found: pd.DataFrame) -> str:
    own = found[~found["arm"].isin((ALL,)) & (found["metric"] == _WHOLE)]
    own = own[own["low"].notna()]
    if own.empty:
        return ""
    shown = own[own["verdict"].isin(_SHOWN)].sort_values("estimate", ascending=False)
    parts = [f"{row['arm']} {_judged(row)}" for row in shown.to_dict("records")]
    rest = own[~own["verdict"].isin(_SHOWN)]
    text = f"One by one, a whole answer: {_list(parts)}." if parts else ""
    if len(rest):
        worst = rest.sort_values("high").iloc[-1]
        if len(rest) == 1:
            text += f" For {worst['arm']} alone no difference was shown: {_interval(worst)}."
        else:
            text += (
                f" For {len(rest)} others alone no difference was shown; the interval that reaches"
                f" highest is that of {worst['arm']}, {_interval(worst)}."
            )
    return text.strip()


def _space(found: pd.DataFrame) -> str:
    own = found[(found["metric"] == "peak_rss_bytes") & found["low"].notna()]
    shown = own[own["verdict"] == "costs"].sort_values("estimate", ascending=False)
    parts = [f"{row['arm']} {_interval(row)}" for row in shown.to_dict("records")]
    if parts:
        return f"Resident memory, as a multiple of untreated: {_list(parts)}."
    return f"Resident memory did not change by more than {_widest(own)}." if len(own) else ""


def _hits(found: pd.DataFrame) -> str:
    hits = found[(found["metric"] == "hit_rate") & found["estimate"].notna()]
    own = hits[hits["arm"] == ALL]
    if own.empty:
        return ""
    row = own.iloc[0]
    text = f"With all fixes the share of prompt tokens found cached changes by {_points(row)}"
    return text + ("." if row["verdict"] not in _SHOWN else ", more than chance explains.")


def _lock(lock: LockFigures) -> str:
    share, threads = lock.share, lock.costs["threads"]
    text = (
        f"A request takes the cache's lock {lock.operations:.0f} times; taking it adds at most"
        f" {share['alone_ns'] / 1e3:.2f} us where nobody else wants it, and where {threads.max()}"
        f" threads do {share['contended_ns'] / 1e3:.2f} us (upper ends of 95% intervals of the"
        f" dearest operation that was timed). That is"
        f" {1e6 * share['alone_s']:.0f} us of the {1e3 * lock.latency_s:.0f} ms that a request"
        f" takes ({_small(share['alone'])}), and {_small(share['contended'])} of it if all"
        f" {threads.max()} wanted it all the time."
    )
    if not math.isnan(lock.alternated["low"]):
        text += (
            f" On one engine, with the lock and without it in turns, an answer took"
            f" {lock.alternated['ratio']:.2f} times as long ({lock.alternated['low']:.2f} to"
            f" {lock.alternated['high']:.2f}, {lock.alternated['blocks']:.0f} blocks)."
        )
    return text


def _settings(measures: pd.DataFrame) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """Return what is compared within: release, prefix sharing, and what else differs."""
    keys = list(dict.fromkeys([*_KEYS, *varying(measures, SETTING)]))
    groups = measures.groupby(keys, sort=True)
    return [(dict(zip(keys, key, strict=True)), group) for key, group in groups]


def _of(locks: list[LockFigures] | None, setting: Mapping[str, Any]) -> list[LockFigures]:
    return [lock for lock in locks or [] if all(getattr(lock, k) == v for k, v in setting.items())]


def _is(frame: pd.DataFrame, setting: Mapping[str, Any]) -> pd.Series:
    mask = pd.Series(True, index=frame.index)
    for name, value in setting.items():
        mask &= frame[name] == value
    return mask


def _interval(row: Row) -> str:
    middle, low, high = _numbers(row)
    return f"{middle} ({low} to {high})"


def _judged(row: Row) -> str:
    shown = f", {row['verdict']}" if row["verdict"] in _SHOWN else ""
    middle, low, high = _numbers(row)
    return f"{middle} ({low} to {high}{shown})"


def _numbers(row: Row) -> list[str]:
    """Return estimate, low and high of a ratio, with a third digit where the second tells none."""
    digits = 2 if row["high"] - row["low"] >= _NARROW else 3
    return [f"{row[name]:.{digits}f}" for name in ("estimate", "low", "high")]


def _points(row: Row) -> str:
    values = [100 * row[name] for name in ("estimate", "low", "high")]
    if math.isnan(values[1]):
        return f"{values[0]:+.1f} percentage points (too few trials for an interval)"
    return f"{values[0]:+.1f} percentage points ({values[1]:+.1f} to {values[2]:+.1f})"


def _widest(own: pd.DataFrame) -> str:
    return _percent(max((own["high"] - 1).abs().max(), (1 - own["low"]).abs().max()))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%" if share < 0.1 else f"{share:.0%}"


def _small(share: float) -> str:
    return f"{100 * share:.2g}%"


def _needed(row: Row) -> str:
    return f"{pairs_needed(float(row['spread']), float(row['estimate']), WORTH):,.0f}"
