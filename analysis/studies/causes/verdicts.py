"""Verdicts on hypotheses, computed from the engines of all scenarios of a notebook.

Each hypothesis is asked twice. Alone: do failures go when its treatment is applied to the engine as
it is? And back: with every fix applied but this one, do failures come back? A cause that hides
behind another shows only in the second. A hypothesis whose treatment is no fix of the release is
never among the fixes, so that all of them together already are all but it.

Both questions make one test, on the engines' net differences added up, so that there is one p value
for each hypothesis; Holm's method adjusts these for all hypotheses of all scenarios. Whether it
accounts for more or for less than MOST of the failures is a sign-flip test over engines as well, of
which the p values are multiplied by the number of hypotheses (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Literal

import pandas as pd

from analysis.runs.derive import exposure
from analysis.runs.store import Run
from analysis.sanitizer.findings import WRONG_DATA
from analysis.sanitizer.recorded import Control
from analysis.stats.clustered import Rate, Share, engines_needed, gone, rate, share, sign_flip
from analysis.stats.exposure import Change, changes
from analysis.stats.paired import ENGINE, Paired, pair, paired, spread, together
from analysis.stats.rates import FAILURES, holm
from analysis.studies.causes.hypotheses import Hypothesis, Names
from analysis.treatments import expand, fixes

Word = Literal["supported", "contributes", "refuted", "undecided"]
WORDS: tuple[Word, ...] = ("supported", "contributes", "refuted", "undecided")
ALPHA = 0.05
MOST = 0.5
"""The share of the failures from which on a cause is what explains them."""
_TIMES = 3
"""By what else p values of "more than MOST" are multiplied: there are two questions, and engines'
differences less MOST of their failures are skewed. Calibrated (docs/statistics.md)."""


@dataclass(frozen=True)
class Arm:
    """What became of the requests of one set of treatments."""

    treatments: Names
    engines: tuple[tuple[int, int], ...]
    """Failures, and requests that count, of each engine: without those rejected, unless these
    count as failures."""
    rejected: int
    wrong_data: int
    """Requests for which the sanitizer saw wrong data read."""
    at_risk: int
    """Requests, or trials, with any other finding."""

    @property
    def n(self) -> int:
        """Requests that count."""
        return sum(n for _, n in self.engines)

    @property
    def failures(self) -> int:
        """Of these, how many failed."""
        return sum(failed for failed, _ in self.engines)

    @property
    def measured(self) -> Rate:
        """The share that failed, with its interval over engines, 95%."""
        return self.at(0.95)

    def at(self, confidence: float) -> Rate:
        """Return the share that failed, with its interval over engines at a confidence."""
        return rate(
            [failed for failed, _ in self.engines], [n for _, n in self.engines], confidence
        )

    @property
    def rate(self) -> float:
        """The share that failed, NaN if there was none."""
        return self.failures / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of the share, 95%."""
        return self.measured.low, self.measured.high


@dataclass(frozen=True)
class Asked:
    """What was measured of one hypothesis, before it is judged among others."""

    hypothesis: Hypothesis
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
    whole: Paired
    """From without to all fixes."""
    exposures: tuple[Change, ...] | None = None
    """From the arms without its treatment to those with it; None if none was recorded."""
    silent: tuple[Names, ...] = ()
    """Those of its arms in which a planted fault was not found."""
    idle: tuple[Names, ...] = ()
    """Those of its arms in which no planted fault was injected, or none was planted."""

    @property
    def nets(self) -> tuple[int, ...]:
        """How many failures fewer each engine has with its treatment, of both questions."""
        return together(self.effect, self.back)

    @property
    def p_value(self) -> float:
        """Two-sided, of the exact sign-flip test on `nets`, not adjusted."""
        return sign_flip(self.nets)

    def against_most(self) -> list[tuple[float, int]]:
        """Return for both questions how sure it is that the share is not MOST, and on which side.

        The p value of a sign-flip test on the engines' net differences less MOST of the failures
        without treatment, so that these are uncertain, too; and 1 if there is more, -1 if less. If
        it is no fix, all that fails with all fixes may be its matter.
        """
        without = dict(zip(self.effect.engines, self.effect.firsts, strict=True))
        alone = dict(zip(self.effect.engines, self.effect.nets, strict=True))
        if self.back is not None:
            other = dict(zip(self.back.engines, self.back.nets, strict=True))
        else:
            other = dict(zip(self.whole.engines, self.whole.seconds, strict=True))
        found = []
        for nets in (alone, other):
            # In halves of MOST, so that they are whole numbers and the test is exact.
            apart = [round((nets[e] - MOST * without[e]) / MOST) for e in nets if e in without]
            found.append((sign_flip(apart), 1 if sum(apart) > 0 else -1))
        return found

    def gone(self, confidence: float = 0.95) -> Share:
        """Return the share of the failures that goes with its treatment alone."""
        return gone(self.without.at(confidence), self.alone.at(confidence))

    def comes_back(self, confidence: float = 0.95) -> Share:
        """Return the failures that its absence brings back, as a share of those without anything.

        What fails with all fixes is not its matter and is taken off. If it is no fix: all that is
        left with all fixes, since that may be its matter.
        """
        own, whole = self.all_but.at(confidence), self.without.at(confidence)
        left = None if self.back is None else self.everything.at(confidence)
        return share(own, left, whole)


@dataclass(frozen=True)
class Verdict(Asked):
    """What the data say of one hypothesis, among all that were asked with it."""

    word: Word = "undecided"
    p_adjusted: float = 1.0
    """For all hypotheses of all scenarios (Holm)."""
    tests: int = 1
    """How many these are."""
    because: str = ""
    """If undecided for another reason than too few engines: which."""

    @property
    def needed(self) -> int | None:
        """If undecided for want of engines: about how many for each set of treatments decide."""
        if self.word != "undecided" or self.because:
            return None
        return _needed(self, self.tests)

    @property
    def has_effect(self) -> bool:
        """Whether fewer fail with its treatment, beyond chance."""
        return self.p_adjusted < ALPHA and sum(self.nets) > 0

    @property
    def returns(self) -> bool:
        """Whether failures come back when all but it is mended, beyond chance."""
        if self.back is None or sum(self.back.nets) <= 0:
            return False
        return sign_flip(self.back.nets) * self.tests < ALPHA

    @property
    def spared(self) -> bool:
        """Whether less than MOST of the failures come back without it alone, beyond chance.

        For all hypotheses at once. Only then the other fixes are known to do as well for the rest.
        """
        p_value, side = self.against_most()[1]
        return self.back is not None and side < 0 and p_value * self.tests < ALPHA

    @property
    def share(self) -> float:
        """The larger of the shares of the failures that go with it, and that come back without."""
        known = [self.gone().value]
        if self.back is not None:
            known.append(self.comes_back().value)
        return max([0.0, *(value for value in known if not math.isnan(value))])


def asked(
    requests: pd.DataFrame,
    trials: pd.DataFrame,
    findings: pd.DataFrame,
    hypotheses: Sequence[Hypothesis],
    failures: Sequence[str] = FAILURES,
    *,
    invocations: pd.DataFrame | None = None,
    events: pd.DataFrame | None = None,
    controls: Iterable[Control] = (),
) -> list[Asked]:
    """Return what was measured of each hypothesis, in the trials of one release and way of sharing.

    The trials must be those of `hypotheses.arms`. `failures` are the outcomes that count as such;
    with "rejected" among them a refusal counts as well. `invocations` and `events` are those tables
    of the run, from which exposures are taken; `controls` are its controls: a hypothesis is
    undecided if one of its arms has none that was injected and found.
    """
    release, sharing = _only(trials, "release"), _only(trials, "prefix_sharing")
    mending = fixes(release, sharing)
    injected = [control for control in controls if control.injected]
    controlled = {control.arm for control in injected}
    silent = {control.arm for control in injected if control.silent}
    met = None
    if invocations is not None and events is not None and len(invocations) and len(events):
        met = exposure(trials, requests, invocations, events).merge(
            trials[["trial_id", "treatments", *ENGINE]], on="trial_id"
        )

    @cache
    def arm(names: Names) -> Arm:
        return _arm(requests, trials, findings, names, failures)

    @cache
    def between(first: Names, second: Names) -> Paired:
        return paired(pair(requests, trials, first, second, failures))

    @cache
    def moved(first: Names, second: Names) -> tuple[Change, ...]:
        assert met is not None
        names = met["treatments"].map(lambda value: tuple(value or ()))
        return tuple(changes(met[names == first], met[names == second], ENGINE))

    found = []
    for hypothesis in hypotheses:
        pairs = [(hypothesis.beside, hypothesis.with_it())]
        all_but: Names = mending
        if hypothesis.treatment in mending:
            all_but = expand((f"all-but:{hypothesis.treatment}",), release, sharing)
            pairs.append((all_but, mending))
        effect, *back = (between(*names) for names in pairs)
        # What is left with all fixes counts in every verdict.
        own = list(dict.fromkeys([*(name for names in pairs for name in names), mending]))
        found.append(
            Asked(
                hypothesis,
                arm(hypothesis.beside),
                arm(hypothesis.with_it()),
                effect,
                arm(mending),
                arm(all_but),
                back[0] if back else None,
                between(hypothesis.beside, mending),
                None if met is None else tuple(c for names in pairs for c in moved(*names)),
                tuple(names for names in own if names in silent),
                tuple(names for names in own if names not in controlled),
            )
        )
    return found


def judge(measured: Sequence[Asked], others: int = 0) -> list[Verdict]:
    """Return the verdicts on all hypotheses of a notebook, of all its scenarios together.

    `others` is how many tests more the notebook makes: they are allowed for.
    """
    tests = len(measured) + others
    adjusted = holm([*(one.p_value for one in measured), *[1.0] * others])
    return [_judged(one, p, tests) for one, p in zip(measured, adjusted, strict=False)]


def _judged(one: Asked, p_adjusted: float, tests: int) -> Verdict:
    """Return the verdict on one hypothesis.

    It has an effect if fewer fail with its treatment, beyond chance, engine by engine. Then it is
    supported if it accounts for more than MOST of the failures, beyond chance, in either question;
    else it contributes. Without an effect it is refuted if it accounts for less than MOST of them,
    beyond chance, in both questions. It is undecided if a planted fault was not found in one of its
    arms or none was injected there, if the arms were not exposed alike, or if there are too few
    engines.
    """
    sides = one.against_most()
    more = [_TIMES * p * tests < ALPHA and side > 0 for p, side in sides]
    less = [p * tests < ALPHA and side < 0 for p, side in sides]
    has_effect = p_adjusted < ALPHA and sum(one.nets) > 0
    word: Word = "undecided"
    if has_effect:
        most = more[0] or (one.back is not None and more[1])
        word = "supported" if most else "contributes"
    elif all(less):
        word = "refuted"
    because = _objection(one, word)
    if because:
        word = "undecided"
    measured = {item.name: getattr(one, item.name) for item in fields(Asked)}
    return Verdict(**measured, word=word, p_adjusted=p_adjusted, tests=tests, because=because)


def _objection(one: Asked, word: Word) -> str:
    """Say why a verdict cannot stand whatever was counted; "" if nothing is against it."""
    if word == "undecided":
        return ""
    for arms, what in (
        (one.silent, "a planted fault was not found"),
        (one.idle, "no planted fault was injected"),
    ):
        if arms:
            named = "; ".join(" + ".join(names) or "no treatment" for names in arms)
            return f"{what} in its arm ({named})"
    for change in one.exposures or ():
        if change.name in one.hypothesis.through:
            continue
        if change.rose if word == "refuted" else change.fell:
            return f"exposure changed with it ({change.words})"
    return ""


def whole_arm(run: Run) -> Arm:
    """Return what became of all requests of a run whose trials all have the same treatments.

    Controls are left out by `load_run`. A refused request does not count.
    """
    names = tuple(run.trials["treatments"].iloc[0] or ())
    return _arm(run.requests, run.trials, run.findings, names, FAILURES)


def _needed(one: Asked, tests: int) -> int | None:
    """Return about how many engines of each kind would decide, at 80% power; None if none would.

    To show what was seen, or to bound what it can account for, whichever takes fewer; both by the
    spread that was seen, or that of chance if it is larger.
    """
    engines = len(one.effect.engines)
    if not one.without.failures or not engines:
        return None
    failed = one.without.failures / engines
    # Where next to nothing was seen, an effect on half of the failures is what is looked for.
    mean = sum(one.nets) / max(1, len(one.nets))
    seen = mean if mean > 0.1 * failed else MOST * failed
    show = engines_needed(seen, spread(one.nets, failed), tests)
    parts = [one.effect.nets, one.whole.seconds if one.back is None else one.back.nets]
    bounds = []
    for nets in parts:
        room = MOST * failed - max(0.0, sum(nets) / max(1, len(nets)))
        if room > 0:
            bounds.append(engines_needed(room, spread(nets, failed), tests))
    bound = max(bounds) if len(bounds) == len(parts) else show
    return max(engines + 1, min(show, bound))


def _arm(
    requests: pd.DataFrame,
    trials: pd.DataFrame,
    findings: pd.DataFrame,
    names: Names,
    failures: Sequence[str],
) -> Arm:
    own = trials.loc[trials["treatments"].map(lambda v: tuple(v or ()) == names), "trial_id"]
    sent = requests[requests["trial_id"].isin(own)]
    rejected = sent["outcome"] == "rejected"
    counted = sent if "rejected" in failures else sent[~rejected]
    failed = counted["outcome"].isin(tuple(failures)).groupby(counted["trial_id"])
    found = findings[findings["trial_id"].isin(own)]
    read = found["severity"] == WRONG_DATA
    who = ["trial_id", "request_id"]
    return Arm(
        names,
        tuple((int(group.sum()), len(group)) for _, group in failed),
        int(rejected.sum()),
        len(found.loc[read, who].drop_duplicates()),
        len(found.loc[~read, who].drop_duplicates()),
    )


def _only(trials: pd.DataFrame, column: str) -> str:
    values = trials[column].unique()
    if len(values) != 1:
        raise ValueError(f"verdicts are for one {column}, not {', '.join(map(str, values))}")
    return str(values[0])
