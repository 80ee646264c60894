"""Verdicts on hypotheses, over all scenarios of a notebook.

The single comparison and the ablation of a hypothesis make one test, on the sums of the engines'
net differences; Holm's method adjusts the p values over all hypotheses. Whether a hypothesis
accounts for more or for less than MOST of the failures is a sign-flip test over engines, too, with
p values multiplied by the number of hypotheses (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

from analysis.stats.bounds import holm
from analysis.stats.clustered import engines_needed
from analysis.stats.paired import spread
from analysis.studies.causes.estimates import MOST, Measurement

Status = Literal["supported", "contributes", "refuted", "undecided"]
ALPHA = 0.05
_TIMES = 3
"""Further factor on the p values of "more than MOST": there are two questions, and the differences
less MOST of the failures are skewed. Calibrated (docs/statistics.md)."""


@dataclass(frozen=True)
class Verdict(Measurement):
    """The verdict on one hypothesis, among all that were tested with it."""

    status: Status = "undecided"
    p_adjusted: float = 1.0
    """Over all hypotheses of all scenarios (Holm)."""
    tests: int = 1
    """The number of these."""
    objection: str = ""
    """Why it is undecided, if not for too few engines."""

    @property
    def needed(self) -> int | None:
        """About how many engines for each set of treatments decide; None if no number does."""
        if self.status != "undecided" or self.objection:
            return None
        return _needed(self, self.tests)

    @property
    def worse(self) -> bool:
        """Whether more requests fail with its treatment, beyond chance."""
        return self.p_adjusted < ALPHA and sum(self.nets) < 0

    @property
    def returns(self) -> bool:
        """Whether failures come back when only this fix is missing, beyond chance."""
        if self.ablation is None or self.ablation.net <= 0:
            return False
        return self.ablation.p_value * self.tests < ALPHA

    @property
    def spared(self) -> bool:
        """Whether less than MOST of the failures come back without it, beyond chance.

        Then the other fixes remove the rest of the failures as well.
        """
        p_value, side = self.against_most()[1]
        return self.ablation is not None and side < 0 and p_value * self.tests < ALPHA

    @property
    def share(self) -> float:
        """The share that it removes alone, or that comes back without it if that is larger."""
        known = [self.gone().value]
        if self.ablation is not None:
            known.append(self.comes_back().value)
        return max([0.0, *(value for value in known if not math.isnan(value))])


def decide(measured: Sequence[Measurement], others: int = 0) -> list[Verdict]:
    """Return the verdicts on all hypotheses of a notebook, of all its scenarios together.

    The p values are adjusted for `others` further tests of the notebook.
    """
    tests = len(measured) + others
    adjusted = holm([*(one.p_value for one in measured), *[1.0] * others])
    return [_decided(one, p, tests) for one, p in zip(measured, adjusted, strict=False)]


def _decided(one: Measurement, p_adjusted: float, tests: int) -> Verdict:
    """Return the verdict on one hypothesis.

    It has an effect if fewer requests fail with it, beyond chance, engine by engine. Then it is
    supported if it accounts for more than MOST of the failures, beyond chance, in either question;
    else it contributes. Without an effect it is refuted if it accounts for less than MOST of them,
    beyond chance, in both questions. Otherwise, or with an objection, it is undecided.
    """
    sides = one.against_most()
    more = [_TIMES * p * tests < ALPHA and side > 0 for p, side in sides]
    less = [p * tests < ALPHA and side < 0 for p, side in sides]
    status: Status = "undecided"
    if p_adjusted < ALPHA and sum(one.nets) > 0:
        most = more[0] or (one.ablation is not None and more[1])
        status = "supported" if most else "contributes"
    elif all(less):
        status = "refuted"
    objection = "" if status == "undecided" else _objection(one, status)
    if objection:
        status = "undecided"
    measured = {item.name: getattr(one, item.name) for item in fields(Measurement)}
    return Verdict(
        **measured, status=status, p_adjusted=p_adjusted, tests=tests, objection=objection
    )


def _objection(one: Measurement, status: Status) -> str:
    """Return why a verdict is void whatever was counted, "" if it is not."""
    for arms, what in (
        (one.silent, "a planted fault was not detected"),
        (one.idle, "no planted fault was injected"),
    ):
        if arms:
            named = "; ".join(" + ".join(names) or "no treatment" for names in arms)
            return f"{what} in its arm ({named})"
    for change in one.exposures or ():
        if change.name in one.hypothesis.through:
            continue
        if change.rose if status == "refuted" else change.fell:
            return f"exposure changed with it ({change.label})"
    return ""


def _needed(one: Measurement, tests: int) -> int | None:
    """Return about how many engines of each arm would decide, at 80% power; None if none would.

    The smaller of two numbers: engines to show the observed effect, and engines to bound it below
    MOST. Both use the observed spread, or that of chance if it is larger.
    """
    engines = len(one.effect.engines)
    if not one.without.failures or not engines:
        return None
    failed = one.without.failures / engines
    # If almost no effect was observed, assume one on half of the failures.
    mean = sum(one.nets) / max(1, len(one.nets))
    seen = mean if mean > 0.1 * failed else MOST * failed
    show = engines_needed(seen, spread(one.nets, failed), tests)
    parts = [one.effect.nets, one.ablation.nets if one.ablation else one.whole.seconds]
    bounds = []
    for nets in parts:
        room = MOST * failed - max(0.0, sum(nets) / max(1, len(nets)))
        if room > 0:
            bounds.append(engines_needed(room, spread(nets, failed), tests))
    bound = max(bounds) if len(bounds) == len(parts) else show
    return max(engines + 1, min(show, bound))
