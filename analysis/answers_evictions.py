"""Whether evictions explain failures or merely accompany them, in words computed from the data.

The comparison was chosen before the data: requests that met evictions against those that met none,
at equal concurrency, combined over concurrencies. The words claim what both the requests and the
cells, which are independent, bear out.
"""

from __future__ import annotations

import math

import pandas as pd

from analysis.answers import _list, _p, _percent, name_of
from analysis.stats import FAILURES, varying, wilson
from analysis.stats_evictions import EvictionContrast, evictions_at_equal_concurrency

_ALPHA = 0.05
_QUESTION = "Whether evictions explain failures or merely accompany them"


def evictions_in_words(requests: pd.DataFrame, cells: pd.DataFrame) -> str:
    """Return the answer to "do evictions explain the failures?" as Markdown.

    One paragraph for each release and prefix sharing (and device, where several are compared). Page
    counts and workloads are thrown together: they are what brings evictions about.
    """
    columns = ["release", "prefix_sharing", *varying(cells, ["device"])]
    asked = requests.merge(cells[["cell_id", *columns]], on="cell_id", validate="many_to_one")
    paragraphs = []
    for values, group in asked.groupby(columns, sort=True):
        name = ", ".join(name_of(c, v) for c, v in zip(columns, values, strict=True))
        own = cells[cells["cell_id"].isin(group["cell_id"])]
        taken = group[group["outcome"] != "rejected"].drop(columns=columns)
        words = _paragraph(taken, own) if len(taken) else "No request was accepted."
        if rejected := len(group) - len(taken):
            words += f" Rejected, and not counted: {rejected} of {len(group)} requests."
        paragraphs.append(f"**{name}.** {words}")
    return "\n\n".join(paragraphs) or "No request was sent, so there is nothing to say."


def _paragraph(requests: pd.DataFrame, cells: pd.DataFrame) -> str:
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
    if not failures:
        high = _percent(wilson(0, int(met.sum()))[1])
        return (
            f"No request failed: 0 of {n}, and 0 of the {int(met.sum())} during which pages were "
            f"evicted (95% interval up to {high}).{aside}"
        )
    contrast = evictions_at_equal_concurrency(known, cells, ["concurrency"])
    return " ".join([*_sentences(contrast, n, failures), *([aside.strip()] if aside else [])])


def _sentences(contrast: EvictionContrast, n: int, failures: int) -> list[str]:
    sentences = [_shares(contrast.strata)]
    if failures == n:
        return [*sentences, "Every request failed, with evictions or without: they explain none."]
    if not contrast.strata["informative"].any():
        return [
            *sentences,
            f"{_QUESTION}: not enough requests to tell, for at no concurrency did some requests "
            "meet evictions and some not, and some fail and some not.",
        ]
    sentences.append(_verdict(contrast))
    without = int(contrast.strata["without_failures"].sum())
    if contrast.odds_ratio > 1 and _sure(contrast) and without:
        them = "that one" if without == 1 else "those"
        sentences.append(
            f"{without} of {failures} failures met no eviction: {them} they do not explain."
        )
    return sentences


def _shares(strata: pd.DataFrame) -> str:
    parts = []
    for name, words in (("with", "met evictions"), ("without", "met none")):
        k, n = int(strata[f"{name}_failures"].sum()), int(strata[f"{name}_n"].sum())
        low, high = wilson(k, n)
        rate = f" ({_percent(k / n)}, {_percent(low)} to {_percent(high)})" if n else ""
        parts.append(f"of {n} requests that {words}, {k} failed{rate}")
    return f"O{parts[0][1:]}; {parts[1]}."


def _sure(contrast: EvictionContrast) -> bool:
    return contrast.p_value < _ALPHA and contrast.cell_p_value < _ALPHA


def _verdict(contrast: EvictionContrast) -> str:
    measured, crude = _measured(contrast), contrast.crude_odds_ratio
    if _sure(contrast) and contrast.odds_ratio > 1:
        return (
            f"Evictions explain failures beyond what concurrency does: {measured}. What takes "
            "longer meets more evictions too, so this alone does not prove that they cause them."
        )
    if _sure(contrast):
        return f"Evictions do not explain failures, which were rarer with them: {measured}."
    if contrast.p_value < _ALPHA:
        return (
            f"{_QUESTION}: not enough cells to tell, and requests of one cell share their "
            f"evictions and their fate ({measured})."
        )
    # Half of the association on the scale of log odds: an interval that reaches further allows
    # for evictions that do explain a good part of it.
    if crude > 1 and contrast.crude_p_value < _ALPHA and contrast.high < math.sqrt(crude):
        return (
            "Evictions merely accompany failures. Over all concurrencies together the odds of "
            f"failing were {_times(crude)} as high with evictions as without (Fisher's exact test "
            f"{_p(contrast.crude_p_value)}), but {measured}."
        )
    return f"{_QUESTION}: not enough requests to tell ({measured})."


def _measured(contrast: EvictionContrast) -> str:
    """Say what was measured at equal concurrency, and how sure that is."""
    levels = contrast.strata.loc[contrast.strata["informative"], "concurrency"]
    at = _list([str(level) for level in levels])
    sure = f"Cochran-Mantel-Haenszel {_p(contrast.p_value)}"
    if not math.isnan(contrast.high):
        sure = f"95% interval {_number(contrast.low)} to {_number(contrast.high)}, {sure}"
    if not math.isnan(contrast.cell_p_value):
        sure += f", by cells {_p(contrast.cell_p_value)}"
    return (
        f"at equal concurrency ({at}) the odds of failing were {_times(contrast.odds_ratio)} "
        f"as high with them as without ({sure})"
    )


def _times(ratio: float) -> str:
    return "infinitely many times" if math.isinf(ratio) else f"{_number(ratio)} times"


def _number(value: float) -> str:
    """Return a number with two digits that count, or all of them before the point."""
    return f"{value:.2g}" if abs(value) < 100 else f"{value:,.0f}"
