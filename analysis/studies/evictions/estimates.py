"""Verdicts on evictions: they explain failures, make them rarer, or merely accompany them.

The comparison is fixed before the data: requests that met evictions against those that met none, at
equal concurrency, number of pages and workload, combined over these. That evictions merely
accompany failures is claimed only where a bound shows it, never because a difference is missing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from analysis.stats.bounds import holm
from analysis.stats.clustered import FEWEST, engines_to_reach
from analysis.stats.dose_response import EvictionContrast

ALPHA = 0.05
EQUIVALENT = 1.5
"""Odds ratios between this and its inverse make no difference that matters."""
Status = Literal["explain", "rarer", "accompany", "undecided"]


@dataclass(frozen=True)
class EvictionVerdict:
    """What is claimed of the evictions of one configuration, among all that were compared."""

    contrast: EvictionContrast
    p_adjusted: float
    """Of the claim that evictions explain failures, or make them rarer (Holm, for all claims)."""
    crude_p_adjusted: float
    """Of the claim that both are associated at all (Bonferroni)."""
    claims: int
    """Two for each configuration: evictions explain failures, and evictions accompany them."""

    @property
    def confidence(self) -> float:
        """Of the interval that must lie within EQUIVALENT: two tests at ALPHA / claims."""
        return 1 - 2 * ALPHA / self.claims

    @property
    def equivalent(self) -> bool:
        """Whether the odds are bounded to differ by no more than a factor of EQUIVALENT."""
        low, high = self.contrast.interval(self.confidence)
        return low > 1 / EQUIVALENT and high < EQUIVALENT

    @property
    def status(self) -> Status:
        """What is claimed."""
        if self.p_adjusted < ALPHA:
            return "explain" if self.contrast.odds_ratio > 1 else "rarer"
        together = self.contrast.crude_odds_ratio > 1 and self.crude_p_adjusted < ALPHA
        return "accompany" if together and self.equivalent else "undecided"

    @property
    def least(self) -> int:
        """Engines without which no claim can be significant."""
        return max(FEWEST, engines_to_reach(self.claims))

    @property
    def needed(self) -> int | None:
        """About how many engines would decide, if the odds ratio is as observed, at 80% power."""
        contrast = self.contrast
        low, high = contrast.interval(self.confidence)
        if math.isnan(high) or not 0 < contrast.odds_ratio < math.inf:
            return None
        # The interval shrinks with the root of the number of engines, until it excludes 1 or lies
        # within the bound of equivalence; 2.8 instead of 2 standard errors give 80% power.
        width = (math.log(high) - math.log(low)) / 2 * 1.4
        apart = abs(math.log(contrast.odds_ratio))
        distance = max(apart, math.log(EQUIVALENT) - apart)
        needed = math.ceil(contrast.engines * (width / distance) ** 2)
        return max(needed, contrast.engines + 1, engines_to_reach(self.claims))


def decide_evictions(
    contrasts: Sequence[EvictionContrast | None],
) -> list[EvictionVerdict | None]:
    """Return the verdicts on all configurations of a notebook, in their order; None stays None.

    Each configuration with a p value makes two claims. That evictions explain failures is tested by
    Holm's method, with p = 1 for the other claims; that they merely accompany them needs both of
    its parts, each at its level divided by the number of claims (Bonferroni). The probability of
    any false claim is at most ALPHA.
    """
    known = [c for c in contrasts if c is not None and not math.isnan(c.p_value)]
    claims = 2 * max(1, len(known))
    adjusted = iter(holm([*(c.p_value for c in known), *[1.0] * len(known)]))
    found: list[EvictionVerdict | None] = []
    for one in contrasts:
        if one is None:
            found.append(None)
            continue
        p_value = math.nan if math.isnan(one.p_value) else next(adjusted)
        found.append(EvictionVerdict(one, p_value, min(1.0, claims * one.crude_p_value), claims))
    return found
