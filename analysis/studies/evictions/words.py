"""The answer of notebook 03 in sentences: whether evictions explain failures."""

from __future__ import annotations

import math
from functools import partial

import pandas as pd

from analysis.core.templates import paragraph
from analysis.core.wording import counted, listed
from analysis.runs.schema import FAILURES
from analysis.stats.clustered import Rate, rate
from analysis.stats.configurations import setting_name
from analysis.stats.dose_response import configurations, evictions_contrast, strata_of
from analysis.studies.evictions.estimates import EQUIVALENT, EvictionVerdict, decide_evictions
from analysis.studies.reproduce.words import ran_in_words

_fill = partial(paragraph, "analysis.studies.evictions", "words.j2")
_SETTINGS = {
    "concurrency": "concurrency",
    "page_count": "number of pages",
    "workload": "workload",
}


def evictions_in_words(requests: pd.DataFrame, trials: pd.DataFrame) -> str:
    """Return the answer to "do evictions explain the failures?" as Markdown.

    One paragraph for each release and prefix sharing (and device, where several are compared).
    Within one, requests are compared at equal concurrency, number of pages and workload.
    """
    columns = configurations(trials)
    asked = requests.merge(trials[["trial_id", *columns]], on="trial_id", validate="many_to_one")
    groups, contrasts = [], []
    for values, group in asked.groupby(columns, sort=True):
        name = setting_name({str(c): v for c, v in zip(columns, values, strict=True)})
        own = trials[trials["trial_id"].isin(group["trial_id"])]
        groups.append((name, group.drop(columns=columns), own))
        contrasts.append(evictions_contrast(group.drop(columns=columns), own))
    paragraphs = []
    for (name, group, own), verdict in zip(groups, decide_evictions(contrasts), strict=True):
        words = _configuration(group, own, verdict)
        if rejected := int((group["outcome"] == "rejected").sum()):
            ran = ran_in_words(group, own)
            words += f" Rejected, and not counted: {rejected} of {len(group)} requests"
            words += f" ({ran})." if ran else "."
        paragraphs.append(f"**{name}.** {words}")
    return "\n\n".join(paragraphs) or "No request was sent, so there is nothing to say."


def duplicates_in_words(rounds: int, death: str | None, events: pd.DataFrame) -> str:
    """Return how requests, pages and engine ended in `force_duplicate_nodes`, from its events."""
    ended = events.loc[events["kind"] == "done", "outcome"].value_counts()
    evicted = int(events.loc[events["kind"] == "evict", "pages"].map(len).sum())
    fate = f"the engine died in round {rounds}: {death}" if death else "the engine did not die"
    counts = ", ".join(f"{number} {outcome}" for outcome, number in ended.items())
    return (
        f"In {rounds} rounds of equal prompts {int(ended.sum())} requests ended ({counts}),"
        f" {counted(evicted, 'page')} were evicted, and {fate.rstrip('.')}."
    )


def verdict_in_words(verdict: EvictionVerdict, trials: pd.DataFrame) -> str:
    """Return a verdict with the odds ratio, its interval and its p value."""
    contrast = verdict.contrast
    accompany = verdict.status == "accompany"
    interval = contrast.interval(verdict.confidence if accompany else 0.95)
    levels = contrast.strata.loc[contrast.strata["informative"], "concurrency"]
    measured = _fill("measured", verdict, _equal(trials), sorted(levels.unique()),
        verdict.confidence if accompany else 0.95, _times(contrast.odds_ratio),
        [_number(end) for end in interval if not math.isnan(end)],
    )  # fmt: skip
    crude = _times(contrast.crude_odds_ratio)
    return _fill("verdict", verdict, measured, crude, EQUIVALENT)


def _configuration(
    group: pd.DataFrame, trials: pd.DataFrame, verdict: EvictionVerdict | None
) -> str:
    accepted = group[group["outcome"] != "rejected"]
    known = accepted[accepted["evictions_during"].notna()]
    met = known["evictions_during"] > 0
    rates = _rate(known), _rate(known[met]), _rate(known[~met])
    shown = "" if verdict is None else verdict_in_words(verdict, trials)
    return _fill("configuration", len(accepted), rates, verdict, shown, _equal(trials))


def _rate(requests: pd.DataFrame) -> Rate:
    failed = requests["outcome"].isin(FAILURES).groupby(requests["trial_id"])
    return rate(failed.sum().tolist(), failed.size().tolist())


def _equal(trials: pd.DataFrame) -> str:
    return listed(_SETTINGS[name] for name in strata_of(trials))


def _times(ratio: float) -> str:
    return "infinitely many times" if math.isinf(ratio) else f"{_number(ratio)} times"


def _number(value: float) -> str:
    """Return a number with two significant digits, or all digits before the point."""
    return f"{value:.2g}" if abs(value) < 100 else f"{value:,.0f}"
