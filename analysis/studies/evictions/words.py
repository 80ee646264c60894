"""The answer of notebook 03 in words: whether evictions explain failures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import pandas as pd

from analysis.core.templates import paragraph
from analysis.core.wording import capitalised, listed, markdown_table, p_value
from analysis.runs.schema import FAILURES
from analysis.stats.clustered import Rate, rate
from analysis.stats.configurations import setting_name
from analysis.stats.dose_response import configurations, evictions_contrast, strata_of
from analysis.studies.evictions.estimates import EQUIVALENT, EvictionVerdict, decide_evictions
from analysis.studies.reproduce.words import ran_in_words
from analysis.studies.wording import rate_cell

_fill = partial(paragraph, "analysis.studies.evictions", "words.j2")
_SETTINGS = {
    "concurrency": "concurrency",
    "page_count": "number of pages",
    "workload": "workload",
}
_STATUS = {
    "explain": "explain failures",
    "rarer": "do not explain failures",
    "accompany": "merely accompany failures",
    "undecided": "undecided",
}


@dataclass(frozen=True)
class Configuration:
    """What was measured of one release and prefix sharing, and what is claimed of its evictions."""

    name: str
    sharing: str
    """Its name without the release."""
    equal: str
    """The settings within which requests are compared, as a noun phrase."""
    accepted: int = 0
    rejected: str = ""
    """Rejected requests, and where fewer ran at once than were offered; "" without any."""
    known: Rate | None = None
    """Failures of accepted requests of which the evictions are known."""
    met: Rate | None = None
    """Of these, requests during which a page was evicted."""
    unmet: Rate | None = None
    verdict: EvictionVerdict | None = None
    equivalent: float = EQUIVALENT

    @property
    def informative(self) -> bool:
        """Whether any stratum compares requests with and without evictions."""
        return self.verdict is not None and bool(self.verdict.contrast.strata["informative"].any())

    @property
    def levels(self) -> list[int]:
        """The offered concurrencies of the strata that compare."""
        assert self.verdict is not None
        strata = self.verdict.contrast.strata
        return sorted(strata.loc[strata["informative"], "concurrency"].unique())

    @property
    def times(self) -> str:
        """The common odds ratio of the strata."""
        assert self.verdict is not None
        return _times(self.verdict.contrast.odds_ratio)

    @property
    def crude(self) -> str:
        """The odds ratio regardless of the strata."""
        assert self.verdict is not None
        return _times(self.verdict.contrast.crude_odds_ratio)

    @property
    def status(self) -> str:
        """The claim in a few words, for a table."""
        if not self.accepted or self.known is None or not self.known.n:
            return "no result"
        if not self.met or not self.met.n or self.known.failures == self.known.n:
            return "explain none"
        if not self.known.failures:
            return "no failure"
        return _STATUS[self.verdict.status if self.verdict and self.informative else "undecided"]

    @property
    def finding(self) -> str:
        """What is claimed, as a clause."""
        return _fill("finding", self)


def evictions_in_words(requests: pd.DataFrame, trials: pd.DataFrame) -> str:
    """Return the answer to "do evictions explain the failures?" as Markdown: text and a table.

    One row for each release and prefix sharing (and device, where several are compared). Within
    one, requests are compared at equal concurrency, number of pages and workload.
    """
    found = _configurations(requests, trials)
    if not found:
        return "No request was sent, so there is no result."
    said = "\n".join(f"- {one.name}: {one.finding}. {_fill('caveat', one)}" for one in found)
    table = markdown_table([_row(one) for one in found])
    return "\n\n".join([said, table, _fill("legend", found)]).strip()


def answer_in_a_sentence(requests: pd.DataFrame, trials: pd.DataFrame) -> str:
    """Return what is claimed of each configuration as a sentence, for the index of a report."""
    found = _configurations(requests, trials)
    clauses = "; ".join(f"{one.sharing}: {one.finding}" for one in found)
    return f"{capitalised(clauses or 'no request was sent')}."


def duplicates_in_words(rounds: int, death: str | None, events: pd.DataFrame) -> str:
    """Return how requests, pages and engine ended in `force_duplicate_nodes`, from its events."""
    ended = events.loc[events["kind"] == "done", "outcome"].value_counts().to_dict()
    evicted = int(events.loc[events["kind"] == "evict", "pages"].map(len).sum())
    return _fill("duplicates", rounds, ended, evicted, death)


def odds_cells(verdict: EvictionVerdict) -> dict[str, str]:
    """Return the odds ratio and p value of a verdict for a row of the table.

    The interval is the one that bears the claim: 95%, or that of the bound of equivalence.
    """
    contrast = verdict.contrast
    confidence = verdict.confidence if verdict.status == "accompany" else 0.95
    low, high = contrast.interval(confidence)
    odds = "" if math.isnan(contrast.odds_ratio) else _number(contrast.odds_ratio)
    if not math.isnan(low):
        odds += f" ({100 * confidence:.4g}%: {_number(low)} to {_number(high)})"
    known = not math.isnan(verdict.p_adjusted)
    return {
        "odds ratio": odds,
        "p, adjusted": p_value(verdict.p_adjusted) if known else "",
        "engines": str(contrast.engines),
    }


def _row(one: Configuration) -> dict[str, object]:
    return {
        "setting": one.name,
        "failed with evictions": rate_cell(one.met) if one.met else "",
        "failed without": rate_cell(one.unmet) if one.unmet else "",
        **dict.fromkeys(("odds ratio", "p, adjusted", "engines"), ""),
        **(odds_cells(one.verdict) if one.verdict else {}),
        "evictions": one.status,
        "of unknown evictions": one.accepted - (one.known.n if one.known else 0) or "",
        "rejected, not counted": one.rejected,
    }


def _configurations(requests: pd.DataFrame, trials: pd.DataFrame) -> list[Configuration]:
    columns = configurations(trials)
    asked = requests.merge(trials[["trial_id", *columns]], on="trial_id", validate="many_to_one")
    groups, contrasts = [], []
    for values, group in asked.groupby(columns, sort=True):
        key = {str(c): v for c, v in zip(columns, values, strict=True)}
        names = setting_name(key), setting_name({c: v for c, v in key.items() if c != "release"})
        own = trials[trials["trial_id"].isin(group["trial_id"])]
        groups.append((names, group.drop(columns=columns), own))
        contrasts.append(evictions_contrast(group.drop(columns=columns), own))
    return [
        _configuration(*group, verdict)
        for group, verdict in zip(groups, decide_evictions(contrasts), strict=True)
    ]


def _configuration(
    names: tuple[str, str],
    group: pd.DataFrame,
    trials: pd.DataFrame,
    verdict: EvictionVerdict | None,
) -> Configuration:
    accepted = group[group["outcome"] != "rejected"]
    known = accepted[accepted["evictions_during"].notna()]
    met = known["evictions_during"] > 0
    rejected = ""
    if count := len(group) - len(accepted):
        ran = ran_in_words(group, trials)
        rejected = f"{count} of {len(group)} requests" + (f" ({ran})" if ran else "")
    return Configuration(
        *names,
        equal=listed(_SETTINGS[column] for column in strata_of(trials)),
        accepted=len(accepted),
        rejected=rejected,
        known=_rate(known),
        met=_rate(known[met]),
        unmet=_rate(known[~met]),
        verdict=verdict,
    )


def _rate(requests: pd.DataFrame) -> Rate:
    failed = requests["outcome"].isin(FAILURES).groupby(requests["trial_id"])
    return rate(failed.sum().tolist(), failed.size().tolist())


def _times(ratio: float) -> str:
    return "infinitely many times" if math.isinf(ratio) else f"{_number(ratio)} times"


def _number(value: float) -> str:
    """Return a number with two significant digits, or all digits before the point."""
    return f"{value:.2g}" if abs(value) < 100 else f"{value:,.0f}"
