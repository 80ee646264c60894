"""Verdicts on hypotheses, computed from the cells of one scenario.

Each hypothesis is asked twice. Alone: do failures go when its treatment is applied to the engine as
it is? And back: with every fix applied but this one, do failures come back? A cause that hides
behind another shows only in the second. A hypothesis whose treatment is no fix of the release is
never among the fixes, so that all of them together already are all but it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import pandas as pd

from analysis.causes.hypotheses import Hypothesis, Names
from analysis.sanitize.findings import WRONG_DATA
from analysis.stats import FAILURES, holm, requests_to_see, wilson
from analysis.stats_paired import Paired, pair, paired, pairs_needed
from analysis.store import Run
from analysis.treat import expand, fixes

Word = Literal["supported", "contributes", "refuted", "undecided"]
WORDS: tuple[Word, ...] = ("supported", "contributes", "refuted", "undecided")
ALPHA = 0.05
MOST = 0.5
"""The share of the failures from which on a cause is what explains them."""


@dataclass(frozen=True)
class Arm:
    """What became of the requests of one set of treatments."""

    treatments: Names
    n: int
    """Requests that count: without those rejected, unless these count as failures."""
    failures: int
    wrong_data: int
    """Requests for which the sanitizer saw wrong data read."""
    at_risk: int
    """Requests, or cells, with any other finding."""

    @property
    def rate(self) -> float:
        """The share that failed, NaN if there was none."""
        return self.failures / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The Wilson interval of the rate, 95%."""
        return wilson(self.failures, self.n)


@dataclass(frozen=True)
class Verdict:
    """What the data say of one hypothesis."""

    hypothesis: Hypothesis
    word: Word
    without: Arm
    alone: Arm
    """With its treatment alone."""
    effect: Paired
    """From without to alone."""
    everything: Arm
    """With all fixes."""
    all_but: Arm
    """With all fixes but this one: the same as `everything` if it is none."""
    back: Paired | None
    """From all but this to all; None if it is no fix."""
    p_alone: float
    p_back: float | None
    """Adjusted for all tests of the scenario (Holm)."""
    needed: int | None
    """If undecided: about how many requests of each kind would decide."""

    @property
    def removes(self) -> bool:
        """Whether failures go with its treatment alone."""
        return self.effect.tells(self.p_alone, ALPHA)

    @property
    def returns(self) -> bool:
        """Whether failures come back when all but it is mended."""
        back, p_back = self.back, self.p_back
        return back is not None and p_back is not None and back.tells(p_back, ALPHA)

    @property
    def share(self) -> float:
        """The larger of the shares of the failures that go with it, and that come back without."""
        known = (self.effect.share, self.comes_back[0])
        return max([0.0, *(share for share in known if not math.isnan(share))])

    @property
    def comes_back(self) -> tuple[float, float, float]:
        """Failures with all but this, as a share of those without anything: value, low, high."""
        if not self.all_but.n or not self.without.failures:
            return math.nan, math.nan, math.nan
        low, high = self.all_but.interval
        rate = self.without.rate
        return self.all_but.rate / rate, low / rate, high / rate


def verdicts(
    requests: pd.DataFrame,
    cells: pd.DataFrame,
    findings: pd.DataFrame,
    hypotheses: Sequence[Hypothesis],
    failures: Sequence[str] = FAILURES,
) -> list[Verdict]:
    """Return a verdict on each hypothesis, from the cells of one release and way of sharing.

    The cells must be those of `hypotheses.arms`. `failures` are the outcomes that count as such;
    with "rejected" among them a refusal counts as well.
    """
    release, sharing = _only(cells, "release"), _only(cells, "prefix_sharing")
    mending = fixes(release, sharing)

    @cache
    def arm(names: Names) -> Arm:
        return _arm(requests, cells, findings, names, failures)

    def between(first: Names, second: Names) -> Paired:
        return paired(pair(requests, cells, first, second, failures))

    everything = arm(mending)
    asked = []
    for hypothesis in hypotheses:
        effect = between(hypothesis.beside, hypothesis.with_it())
        left: Names = mending
        back = None
        if hypothesis.treatment in mending:
            left = expand((f"all-but:{hypothesis.treatment}",), release, sharing)
            back = between(left, mending)
        asked.append((hypothesis, effect, back, left))
    p_values = [t.p_value for _, *tests, _ in asked for t in tests if t is not None]
    adjusted = iter(holm(p_values))
    found = []
    for hypothesis, effect, back, left in asked:
        p_alone = next(adjusted)
        p_back = next(adjusted) if back is not None else None
        without, all_but = arm(hypothesis.beside), arm(left)
        word = decide(without, effect, p_alone, all_but, back, p_back)
        needed = _needed(without, effect, len(p_values)) if word == "undecided" else None
        found.append(
            Verdict(
                hypothesis, word, without, arm(hypothesis.with_it()), effect, everything, all_but,
                back, p_alone, p_back, needed,
            )
        )  # fmt: skip
    return found


def decide(
    without: Arm,
    effect: Paired,
    p_alone: float,
    all_but: Arm,
    back: Paired | None,
    p_back: float | None,
) -> Word:
    """Return the verdict on one hypothesis.

    It has an effect if its treatment alone, or its absence among all fixes, changes how many fail,
    beyond chance, in the right direction, and on engine after engine (`Paired.tells`). Then it is
    supported if it accounts for most of the failures, even at the lower bound, in either question;
    else it contributes. Without an effect it is refuted if it cannot account for most of them, even
    at the upper bound, in both questions; a question that was not asked says nothing.
    """
    removes = effect.tells(p_alone, ALPHA)
    returns = back is not None and p_back is not None and back.tells(p_back, ALPHA)
    low, high = all_but.interval if all_but.n else (math.nan, math.nan)
    rate = without.rate if without.failures else math.nan
    if removes or returns:
        most = (removes and effect.low > MOST) or (returns and low / rate > MOST)
        return "supported" if most or (returns and rate != rate) else "contributes"
    if effect.high < MOST and high / rate < MOST:
        return "refuted"
    return "undecided"


def whole_arm(run: Run) -> Arm:
    """Return what became of all requests of a run whose cells all have the same treatments.

    Controls are left out by `load_run`. A refused request does not count.
    """
    names = tuple(run.cells["treatments"].iloc[0] or ())
    return _arm(run.requests, run.cells, run.findings, names, FAILURES)


def _needed(without: Arm, effect: Paired, tests: int) -> int:
    """Return how many requests would show a cause of half the failures, at this many tests."""
    if not without.failures:
        return max(requests_to_see(0.01), 2 * without.n)
    seen = effect.share if 0.1 < effect.share < MOST else MOST
    came = effect.only_second / effect.pairs if effect.pairs else 0.0
    gone = min(came + seen * without.rate, 1 - came)
    return max(pairs_needed(gone, came, ALPHA / tests), 2 * effect.pairs)


def _arm(
    requests: pd.DataFrame,
    cells: pd.DataFrame,
    findings: pd.DataFrame,
    names: Names,
    failures: Sequence[str],
) -> Arm:
    own = cells.loc[cells["treatments"].map(lambda v: tuple(v or ()) == names), "cell_id"]
    asked = requests[requests["cell_id"].isin(own)]
    if "rejected" not in failures:
        asked = asked[asked["outcome"] != "rejected"]
    found = findings[findings["cell_id"].isin(own)]
    read = found["severity"] == WRONG_DATA
    who = ["cell_id", "request_id"]
    return Arm(
        names,
        len(asked),
        int(asked["outcome"].isin(tuple(failures)).sum()),
        len(found.loc[read, who].drop_duplicates()),
        len(found.loc[~read, who].drop_duplicates()),
    )


def _only(cells: pd.DataFrame, column: str) -> str:
    values = cells[column].unique()
    if len(values) != 1:
        raise ValueError(f"verdicts are for one {column}, not {', '.join(map(str, values))}")
    return str(values[0])
