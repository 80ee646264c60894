"""Compares the exposures of two arms.

A treatment can lower the failure rate without fixing anything, by removing the conditions under
which requests fail, such as full batches or evictions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.runs.derive import EXPOSURES
from analysis.stats.clustered import FEWEST, relative_change

MARGIN = 0.2
"""Least change of an exposure that matters, as a share of its first value."""
_LEAST = {"accepted": 0.05, "overlap": 0.05, "hits": 0.05}
"""Least change of exposures that are shares, in points."""


@dataclass(frozen=True)
class Change:
    """One exposure in two arms, over the engines in which both arms recorded it."""

    name: str
    """A key of EXPOSURES."""
    first: float
    """Its mean over engines in the first arm."""
    second: float
    engines: int
    low: float
    """Interval, 95%, of (second - first) / first; infinite where the first is 0."""
    high: float

    @property
    def fell(self) -> bool:
        """Whether the second arm has less of it, beyond chance and by more than MARGIN."""
        return self.second < (1 - MARGIN) * self.first and self.high < 0 and not self._slight

    @property
    def rose(self) -> bool:
        """Whether the second arm has more of it, beyond chance and by more than MARGIN."""
        return self.second > (1 + MARGIN) * self.first and self.low > 0 and not self._slight

    @property
    def alike(self) -> bool:
        """Whether the change is bounded to within MARGIN, or negligible."""
        return self._slight or (self.low > -MARGIN and self.high < MARGIN)

    @property
    def _slight(self) -> bool:
        return abs(self.second - self.first) < _LEAST.get(self.name, 0.0)

    @property
    def label(self) -> str:
        """The exposure with both values."""
        first, second = (f"{v:.2f}" if v < 10 else f"{v:.0f}" for v in (self.first, self.second))
        return f"{EXPOSURES[self.name]}: {first}, then {second}"


def changes(first: pd.DataFrame, second: pd.DataFrame, on: Sequence[str]) -> list[Change]:
    """Return the change of each exposure between pairs of engines.

    Takes frames as of `analysis.runs.derive.exposure`, with the columns `on` that pair the engines.
    An exposure that fewer than five pairs of engines recorded is left out.
    """
    both = first.merge(second, on=list(on), suffixes=("_first", "_second"), validate="one_to_one")
    found = []
    for name in EXPOSURES:
        one, other = (both[f"{name}_{side}"].to_numpy(dtype=float) for side in ("first", "second"))
        known = ~(np.isnan(one) | np.isnan(other))
        one, other = one[known], other[known]
        if len(one) < FEWEST:
            continue
        apart = other - one
        if one.sum() > 0:
            interval = relative_change(one.tolist(), other.tolist())
            low, high = interval.low, interval.high
        else:
            steady = float(apart.mean()) > 0 and np.count_nonzero(apart) >= FEWEST
            low, high = (math.inf, math.inf) if steady else (-math.inf, math.inf)
        found.append(Change(name, float(one.mean()), float(other.mean()), len(one), low, high))
    return found
