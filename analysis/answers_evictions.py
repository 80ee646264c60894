"""Whether evictions explain failures or merely accompany them, in words computed from the data.

The comparison was chosen before the data: requests that met evictions against those that met none,
at equal concurrency, number of pages and workload, combined over these. Engines are what is
independent, so the words claim what these bear out, adjusted for all configurations that are asked
(Holm). That evictions merely accompany failures is said only where a bound shows it, never for want
of a difference.
"""

from __future__ import annotations

import math

import pandas as pd

from analysis.answers import _list, _p, _percent, name_of
from analysis.stats import FAILURES, holm, varying
from analysis.stats_engines import FEWEST, Rate, engines_to_reach, rate
from analysis.stats_evictions import (
    EQUIVALENT,
    EvictionContrast,
    evictions_at_equal_concurrency,
)

_ALPHA = 0.05
_QUESTION = "Whether evictions explain failures or merely accompany them"


def evictions_in_words(requests: pd.DataFrame, cells: pd.DataFrame) -> str:
    """Return the answer to "do evictions explain the failures?" as Markdown.

    One paragraph for each release and prefix sharing (and device, where several are compared).
    Within one, requests are compared where concurrency, number of pages and workload are equal: a
    small pool brings more evictions, and fails more for other reasons, too.
    """
    columns = ["release", "prefix_sharing", *varying(cells, ["device"])]
    asked = requests.merge(cells[["cell_id", *columns]], on="cell_id", validate="many_to_one")
    groups = []
    for values, group in asked.groupby(columns, sort=True):
        name = ", ".join(name_of(c, v) for c, v in zip(columns, values, strict=True))
        own = cells[cells["cell_id"].isin(group["cell_id"])]
        taken = group[group["outcome"] != "rejected"].drop(columns=columns)
        groups.append((name, taken, len(group) - len(taken), _contrast(taken, own)))
    # A configuration without evictions or without failures risks no claim.
    known = {n: c.p_value for n, _, _, c in groups if c is not None and c.p_value == c.p_value}
    adjusted = dict(zip(known, holm(list(known.values())), strict=True))
    paragraphs = []
    for name, taken, rejected, contrast in groups:
        p_value = adjusted.get(name, math.nan)
        words = "No request was accepted."
        if len(taken):
            words = _paragraph(taken, contrast, p_value, len(known))
        if rejected:
            words += f" Rejected, and not counted: {rejected} of {len(taken) + rejected} requests."
        paragraphs.append(f"**{name}.** {words}")
    return "\n\n".join(paragraphs) or "No request was sent, so there is nothing to say."


def _contrast(requests: pd.DataFrame, cells: pd.DataFrame) -> EvictionContrast | None:
    known = requests[requests["evictions_during"].notna()]
    if not (known["evictions_during"] > 0).any() or not known["outcome"].isin(FAILURES).any():
        return None
    equal = ["concurrency", *varying(cells, ["page_count", "workload"])]
    return evictions_at_equal_concurrency(known, cells, equal)


def _rate(requests: pd.DataFrame) -> Rate:
    failed = requests["outcome"].isin(FAILURES).groupby(requests["cell_id"])
    return rate(failed.sum().tolist(), failed.size().tolist())


def _paragraph(
    requests: pd.DataFrame, contrast: EvictionContrast | None, p_value: float, tests: int
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
    if contrast is None:
        high = _percent(_rate(known[met]).high)
        return (
            f"No request failed: 0 of {n}, and 0 of the {int(met.sum())} during which pages were "
            f"evicted (95% interval up to {high}).{aside}"
        )
    sentences = [_shares(known, met), *_sentences(contrast, n, failures, p_value, tests)]
    return " ".join([*sentences, *([aside.strip()] if aside else [])])


def _sentences(
    contrast: EvictionContrast, n: int, failures: int, p_value: float, tests: int
) -> list[str]:
    sentences: list[str] = []
    if failures == n:
        return [*sentences, "Every request failed, with evictions or without: they explain none."]
    if not contrast.strata["informative"].any():
        return [
            *sentences,
            f"{_QUESTION} is undecided, for at no concurrency did some requests "
            "meet evictions and some not, and some fail and some not.",
        ]
    sentences.append(_verdict(contrast, p_value, tests))
    without = int(contrast.strata["without_failures"].sum())
    if contrast.odds_ratio > 1 and p_value < _ALPHA and without:
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


def _verdict(contrast: EvictionContrast, p_value: float, tests: int) -> str:
    measured = _measured(contrast, p_value, tests)
    if p_value < _ALPHA and contrast.odds_ratio > 1:
        return (
            f"Evictions explain failures beyond what concurrency does: {measured}. What takes "
            "longer meets more evictions too, so this alone does not prove that they cause them."
        )
    if p_value < _ALPHA:
        return f"Evictions do not explain failures, which were rarer with them: {measured}."
    if contrast.crude_odds_ratio > 1 and contrast.crude_p_value < _ALPHA and contrast.equivalent:
        return (
            "Evictions merely accompany failures. Over all concurrencies together the odds of "
            f"failing were {_times(contrast.crude_odds_ratio)} as high with evictions as without "
            f"({_p(contrast.crude_p_value)}), but {measured}, which bounds any difference below a "
            f"factor of {EQUIVALENT:g}."
        )
    if math.isnan(p_value):
        return (
            f"{_QUESTION} is undecided ({measured}): there are {contrast.engines} engines, and at "
            f"least {max(FEWEST, engines_to_reach(max(1, tests)))} are needed."
        )
    return f"{_QUESTION} is undecided ({measured}). {_more(contrast)}".strip()


def _more(contrast: EvictionContrast) -> str:
    """Say how many engines would decide, if the odds ratio is what it seems to be."""
    if math.isnan(contrast.high) or not 0 < contrast.odds_ratio < math.inf:
        return ""
    # The interval shrinks with the root of the number of engines: until it leaves out 1, or lies
    # within the bound of equivalence; 2.8 instead of 2 standard errors give 80% power.
    width = (math.log(contrast.high) - math.log(contrast.low)) / 2 * 1.4
    apart = abs(math.log(contrast.odds_ratio))
    distance = max(apart, math.log(EQUIVALENT) - apart)
    needed = math.ceil(contrast.engines * (width / distance) ** 2)
    return f"About {max(needed, contrast.engines + 1)} engines would decide it (80% power)."


def _measured(contrast: EvictionContrast, p_value: float, tests: int) -> str:
    """Say what was measured at equal concurrency, and how sure that is."""
    levels = contrast.strata.loc[contrast.strata["informative"], "concurrency"]
    at = _list([str(level) for level in sorted(levels.unique())])
    sure = []
    if not math.isnan(contrast.high):
        sure.append(
            f"95% interval over engines {_number(contrast.low)} to {_number(contrast.high)}"
        )
    if not math.isnan(p_value):
        more = f", adjusted for {tests} configurations" if tests > 1 else ""
        sure.append(f"sign-flip test over {contrast.engines} engines {_p(p_value)}{more}")
    return (
        f"at equal concurrency ({at}) and number of pages the odds of failing were"
        f" {_times(contrast.odds_ratio)} as high with them as without"
        + (f" ({', '.join(sure)})" if sure else "")
    )


def _times(ratio: float) -> str:
    return "infinitely many times" if math.isinf(ratio) else f"{_number(ratio)} times"


def _number(value: float) -> str:
    """Return a number with two digits that count, or all of them before the point."""
    return f"{value:.2g}" if abs(value) < 100 else f"{value:,.0f}"
