"""The arms of each hypothesis, and the comparisons between them, engine by engine.

Each hypothesis is tested in two ways. Single: do failures disappear when only its treatment is
applied? Ablation: do failures come back when every fix is applied but this one? A cause that
another cause hides shows only in the second. A treatment that is no fix of the release has no
ablation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import pandas as pd

from analysis.runs.derive import exposure
from analysis.runs.schema import FAILURES
from analysis.runs.store import Run
from analysis.runs.tables import arm_of
from analysis.sanitizer.findings import WRONG_DATA
from analysis.sanitizer.recorded import Control
from analysis.stats.clustered import Rate, Share, gone, rate, share, sign_flip
from analysis.stats.exposure import Change, changes
from analysis.stats.paired import ENGINE, Paired, pair, paired, together
from analysis.studies.causes.hypotheses import Hypothesis, Names
from analysis.treatments import expand, fixes

MOST = 0.5
"""A cause is supported if it accounts for more than this share of the failures."""


@dataclass(frozen=True)
class Arm:
    """The requests of one set of treatments, by how they ended."""

    treatments: Names
    engines: tuple[tuple[int, int], ...]
    """Failures and counted requests of each engine. Rejected requests are not counted, unless they
    count as failures."""
    rejected: int
    wrong_data: int
    """Requests with a finding of wrong data."""
    at_risk: int
    """Requests, or trials, with any other finding."""

    @property
    def n(self) -> int:
        """Counted requests."""
        return sum(n for _, n in self.engines)

    @property
    def failures(self) -> int:
        """Failed requests."""
        return sum(failed for failed, _ in self.engines)

    @property
    def engines_failed(self) -> int:
        """Engines with a failure."""
        return sum(failed > 0 for failed, _ in self.engines)

    @property
    def rate(self) -> Rate:
        """The failure rate with its 95% interval over engines."""
        return rate([k for k, _ in self.engines], [n for _, n in self.engines])


@dataclass(frozen=True)
class Measurement:
    """The arms and comparisons of one hypothesis."""

    hypothesis: Hypothesis
    without: Arm
    single: Arm
    """With its treatment only."""
    effect: Paired
    """From without to single."""
    all_fixes: Arm
    leave_one_out: Arm
    """With all fixes but this one; the same as `all_fixes` if it is no fix."""
    ablation: Paired | None
    """From leave_one_out to all_fixes; None if it is no fix."""
    whole: Paired
    """From without to all_fixes."""
    exposures: tuple[Change, ...] | None = None
    """From the arms without its treatment to those with it; None if not recorded."""
    silent: tuple[Names, ...] = ()
    """Its arms in which a planted fault was not detected."""
    idle: tuple[Names, ...] = ()
    """Its arms in which no planted fault was injected, or none was planted."""

    @property
    def nets(self) -> tuple[int, ...]:
        """Failures that its treatment removes in each engine, over both questions."""
        return together(self.effect, self.ablation)

    @property
    def p_value(self) -> float:
        """Two-sided, of the exact sign-flip test on `nets`, not adjusted."""
        return sign_flip(self.nets)

    def against_most(self) -> list[tuple[float, int]]:
        """Return, for both questions, a p value that the share is MOST, and the side it is on.

        The test is a sign-flip test on the engines' net differences less MOST of the failures
        without treatment. The side is 1 for more and -1 for less. Without an ablation, all failures
        that remain with all fixes are taken as possibly due to it.
        """
        without = dict(zip(self.effect.engines, self.effect.firsts, strict=True))
        alone = dict(zip(self.effect.engines, self.effect.nets, strict=True))
        if self.ablation is not None:
            other = dict(zip(self.ablation.engines, self.ablation.nets, strict=True))
        else:
            other = dict(zip(self.whole.engines, self.whole.seconds, strict=True))
        found = []
        for nets in (alone, other):
            # In halves of MOST, so that they are whole numbers and the test is exact.
            apart = [round((nets[e] - MOST * without[e]) / MOST) for e in nets if e in without]
            found.append((sign_flip(apart), 1 if sum(apart) > 0 else -1))
        return found

    def gone(self) -> Share:
        """Return the share of the failures that its treatment removes when applied alone."""
        return gone(self.without.rate, self.single.rate)

    def comes_back(self) -> Share:
        """Return the failures that its absence brings back, as a share of those without treatment.

        Failures that remain with all fixes are subtracted. Without an ablation the result is all
        that remains with all fixes, because that may be due to it.
        """
        left = None if self.ablation is None else self.all_fixes.rate
        return share(self.leave_one_out.rate, left, self.without.rate)


def measure(
    requests: pd.DataFrame,
    trials: pd.DataFrame,
    findings: pd.DataFrame,
    hypotheses: Sequence[Hypothesis],
    failures: Sequence[str] = FAILURES,
    *,
    invocations: pd.DataFrame | None = None,
    events: pd.DataFrame | None = None,
    controls: Iterable[Control] = (),
) -> list[Measurement]:
    """Return the measurements of each hypothesis, in trials of one release and prefix sharing.

    The trials must be those of `hypotheses.arms`. `failures` are the outcomes that count as such;
    with "rejected" among them, refusals count as well. Exposures are computed from `invocations`
    and `events`. A hypothesis stays undecided if one of its arms has no control in which the
    planted fault was injected and detected.
    """
    release, sharing = _only(trials, "release"), _only(trials, "prefix_sharing")
    every = fixes(release, sharing)
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
        names = met["treatments"].map(arm_of)
        return tuple(changes(met[names == first], met[names == second], ENGINE))

    found = []
    for hypothesis in hypotheses:
        pairs = [(hypothesis.beside, hypothesis.with_it())]
        leave_one_out: Names = every
        if hypothesis.treatment in every:
            leave_one_out = expand((f"all-but:{hypothesis.treatment}",), release, sharing)
            pairs.append((leave_one_out, every))
        # Failures that remain with all fixes count in every verdict, so that arm is needed, too.
        own = list(dict.fromkeys([*(name for names in pairs for name in names), every]))
        found.append(
            Measurement(
                hypothesis,
                arm(hypothesis.beside),
                arm(hypothesis.with_it()),
                between(*pairs[0]),
                arm(every),
                arm(leave_one_out),
                between(*pairs[1]) if len(pairs) > 1 else None,
                between(hypothesis.beside, every),
                None if met is None else tuple(c for names in pairs for c in moved(*names)),
                tuple(names for names in own if names in silent),
                tuple(names for names in own if names not in controlled),
            )
        )
    return found


def whole_arm(run: Run) -> Arm:
    """Return the arm of a run whose trials all have the same treatments, without its controls."""
    names = arm_of(run.trials["treatments"].iloc[0])
    return _arm(run.requests, run.trials, run.findings, names, FAILURES)


def _arm(
    requests: pd.DataFrame,
    trials: pd.DataFrame,
    findings: pd.DataFrame,
    names: Names,
    failures: Sequence[str],
) -> Arm:
    own = trials.loc[trials["treatments"].map(arm_of) == names, "trial_id"]
    sent = requests[requests["trial_id"].isin(own)]
    rejected = sent["outcome"] == "rejected"
    counted = sent if "rejected" in failures else sent[~rejected]
    failed = counted["outcome"].isin(tuple(failures)).groupby(counted["trial_id"])
    found = findings[findings["trial_id"].isin(own)]
    read = found["severity"] == WRONG_DATA
    concerned = ["trial_id", "request_id"]
    return Arm(
        names,
        tuple((int(group.sum()), len(group)) for _, group in failed),
        int(rejected.sum()),
        len(found.loc[read, concerned].drop_duplicates()),
        len(found.loc[~read, concerned].drop_duplicates()),
    )


def _only(trials: pd.DataFrame, column: str) -> str:
    values = trials[column].unique()
    if len(values) != 1:
        raise ValueError(f"verdicts are for one {column}, not {', '.join(map(str, values))}")
    return str(values[0])
