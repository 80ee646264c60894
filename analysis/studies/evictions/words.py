"""Whether evictions explain failures or merely accompany them, in words computed from the data.

The comparison was chosen before the data: requests that met evictions against those that met none,
at equal concurrency, number of pages and workload, combined over these. Engines are what is
independent, so the words claim what these bear out, adjusted for the claims of all configurations.
That evictions merely accompany failures is said only where a bound shows it, never for want of a
difference.
"""

from __future__ import annotations

import math

import pandas as pd

from analysis.stats.clustered import FEWEST, Rate, engines_to_reach, rate
from analysis.stats.dose_response import (
    EQUIVALENT,
    EvictionVerdict,
    configurations,
    evictions_contrast,
    judge_evictions,
    strata_of,
)
from analysis.stats.rates import FAILURES
from analysis.studies.reproduce.words import _list, _p, _percent, name_of, ran_in_words

_QUESTION = "Whether evictions explain failures or merely accompany them"
_SETTINGS = {
    "concurrency": "concurrency",
    "page_count": "number of pages",
    "workload": "workload",
}


def evictions_in_words(requests: pd.DataFrame, trials: pd.DataFrame) -> str:
    """Return the answer to "do evictions explain the failures?" as Markdown.

    One paragraph for each release and prefix sharing (and device, where several are compared).
    Within one, requests are compared where concurrency, number of pages and workload are equal: a
    small pool brings more evictions, and fails more for other reasons, too.
    """
    columns = configurations(trials)
    asked = requests.merge(trials[["trial_id", *columns]], on="trial_id", validate="many_to_one")
    groups, contrasts = [], []
    for values, group in asked.groupby(columns, sort=True):
        name = ", ".join(name_of(c, v) for c, v in zip(columns, values, strict=True))
        own = trials[trials["trial_id"].isin(group["trial_id"])]
        groups.append((name, group.drop(columns=columns), own))
        contrasts.append(evictions_contrast(group.drop(columns=columns), own))
    paragraphs = []
    for (name, group, own), verdict in zip(groups, judge_evictions(contrasts), strict=True):
        taken = group[group["outcome"] != "rejected"]
        words = _paragraph(taken, own, verdict) if len(taken) else "No request was accepted."
        if rejected := len(group) - len(taken):
            words += f" Rejected, and not counted: {rejected} of {len(group)} requests"
            ran = ran_in_words(group, own)
            words += f" ({ran})." if ran else "."
        paragraphs.append(f"**{name}.** {words}")
    return "\n\n".join(paragraphs) or "No request was sent, so there is nothing to say."


def _rate(requests: pd.DataFrame) -> Rate:
    failed = requests["outcome"].isin(FAILURES).groupby(requests["trial_id"])
    return rate(failed.sum().tolist(), failed.size().tolist())


def _paragraph(
    requests: pd.DataFrame, trials: pd.DataFrame, verdict: EvictionVerdict | None
) -> str:
    known = requests[requests["evictions_during"].notna()]
    if known.empty:
        return "Evictions were not recorded, so nothing can be said about them."
    n, failures = len(known), int(known["outcome"].isin(FAILURES).sum())
    unknown = len(requests) - n
    aside = f" Of {unknown} further requests the evictions are not known." if unknown else ""
    met = known["evictions_during"] > 0
    if not met.any():
        if not failures:
            return f"No page was evicted during any of {n} requests, and none failed.{aside}"
        return (
            f"No page was evicted during any of {n} requests, so evictions explain none of the "
            f"{failures} failures.{aside}"
        )
    if verdict is None:
        high = _percent(_rate(known[met]).high)
        return (
            f"No request failed: 0 of {n}, and 0 of the {int(met.sum())} during which pages were "
            f"evicted (95% interval up to {high}).{aside}"
        )
    sentences = [_shares(known, met), *_sentences(verdict, trials, n, failures)]
    return " ".join([*sentences, *([aside.strip()] if aside else [])])


def _sentences(verdict: EvictionVerdict, trials: pd.DataFrame, n: int, failures: int) -> list[str]:
    if failures == n:
        return ["Every request failed, with evictions or without: they explain none."]
    strata = verdict.contrast.strata
    if not strata["informative"].any():
        return [
            f"{_QUESTION} is undecided, for at no {_equal(trials)} did some requests "
            "meet evictions and some not, and some fail and some not."
        ]
    sentences = [_verdict(verdict, trials)]
    without = int(strata["without_failures"].sum())
    if verdict.word == "explain" and without:
        them = "that one" if without == 1 else "those"
        sentences.append(
            f"{without} of {failures} failures met no eviction: {them} they do not explain."
        )
    return sentences


def _shares(known: pd.DataFrame, met: pd.Series) -> str:
    parts, narrow = [], False
    for mask, words in ((met, "met evictions"), (~met, "met none")):
        found = _rate(known[mask])
        narrow |= bool(found.n) and not found.by_engine
        interval = f"{_percent(found.low)} to {_percent(found.high)}" if found.n else ""
        shown = f" ({_percent(found.value)}, {interval})" if found.n else ""
        parts.append(f"of {found.n} requests that {words}, {found.failures} failed{shown}")
    how = (
        "; by request only and too narrow, for there are fewer than five engines" if narrow else ""
    )
    return f"O{parts[0][1:]}; {parts[1]}{how}."


def _verdict(verdict: EvictionVerdict, trials: pd.DataFrame) -> str:
    contrast, word = verdict.contrast, verdict.word
    if word == "accompany":
        return (
            "Evictions merely accompany failures. Over all settings together the odds of failing"
            f" were {_times(contrast.crude_odds_ratio)} as high with evictions as without"
            f" ({_p(verdict.crude_p_adjusted)}, adjusted for {verdict.claims} claims), but"
            f" {_measured(verdict, trials, verdict.confidence)}, which bounds any difference below"
            " a"
            f" factor of {EQUIVALENT:g}."
        )
    measured = _measured(verdict, trials)
    if word == "explain":
        return (
            f"Evictions explain failures beyond what the settings do: {measured}. What takes "
            "longer meets more evictions too, so this alone does not prove that they cause them."
        )
    if word == "rarer":
        return f"Evictions do not explain failures, which were rarer with them: {measured}."
    if math.isnan(verdict.p_adjusted):
        needed = max(FEWEST, engines_to_reach(verdict.claims))
        return (
            f"{_QUESTION} is undecided ({measured}): there are {contrast.engines} engines, and at "
            f"least {needed} are needed."
        )
    return f"{_QUESTION} is undecided ({measured}). {_more(verdict)}".strip()


def _more(verdict: EvictionVerdict) -> str:
    """Say how many engines would decide, if the odds ratio is what it seems to be."""
    contrast = verdict.contrast
    low, high = contrast.interval(verdict.confidence)
    if math.isnan(high) or not 0 < contrast.odds_ratio < math.inf:
        return ""
    # The interval shrinks with the root of the number of engines: until it leaves out 1, or lies
    # within the bound of equivalence; 2.8 instead of 2 standard errors give 80% power.
    width = (math.log(high) - math.log(low)) / 2 * 1.4
    apart = abs(math.log(contrast.odds_ratio))
    distance = max(apart, math.log(EQUIVALENT) - apart)
    needed = math.ceil(contrast.engines * (width / distance) ** 2)
    needed = max(needed, contrast.engines + 1, engines_to_reach(verdict.claims))
    return f"About {needed} engines would decide it (80% power)."


def _measured(verdict: EvictionVerdict, trials: pd.DataFrame, confidence: float = 0.95) -> str:
    """Say what was measured where the settings are equal, and how sure that is."""
    contrast = verdict.contrast
    levels = contrast.strata.loc[contrast.strata["informative"], "concurrency"]
    at = _list([str(level) for level in sorted(levels.unique())])
    low, high = contrast.interval(confidence)
    sure = []
    if not math.isnan(high):
        sure.append(
            f"{100 * confidence:.4g}% interval over engines {_number(low)} to {_number(high)}"
        )
    if not math.isnan(verdict.p_adjusted):
        sure.append(
            f"sign-flip test over {contrast.engines} engines {_p(verdict.p_adjusted)}, adjusted for"
            f" {verdict.claims} claims"
        )
    return (
        f"at equal {_equal(trials)} (offered {at} at once) the odds of failing were"
        f" {_times(contrast.odds_ratio)} as high with them as without"
        + (f" ({', '.join(sure)})" if sure else "")
    )


def _equal(trials: pd.DataFrame) -> str:
    return _list([_SETTINGS[name] for name in strata_of(trials)])


def _times(ratio: float) -> str:
    return "infinitely many times" if math.isinf(ratio) else f"{_number(ratio)} times"


def _number(value: float) -> str:
    """Return a number with two digits that count, or all of them before the point."""
    return f"{value:.2g}" if abs(value) < 100 else f"{value:,.0f}"
