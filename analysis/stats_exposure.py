"""Whether two arms were exposed alike: a treatment may mend nothing, and take the occasion away."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.observe.derive import EXPOSURES
from analysis.stats_engines import FEWEST, relative_change

MARGIN = 0.2
"""The change, as a share of what it was, from which on an exposure has moved."""


@dataclass(frozen=True)
class Change:
    """One exposure in two arms, over the engines in which both recorded it."""

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
        """Whether there is less of it in the second, beyond chance and by more than MARGIN."""
        return self.second < (1 - MARGIN) * self.first and self.high < 0

    @property
    def rose(self) -> bool:
        """Whether there is more of it in the second, beyond chance and by more than MARGIN."""
        return self.second > (1 + MARGIN) * self.first and self.low > 0

    @property
    def words(self) -> str:
        """What it was and what it is."""
        return f"{EXPOSURES[self.name]}: {_number(self.first)}, then {_number(self.second)}"


def changes(first: pd.DataFrame, second: pd.DataFrame, on: Sequence[str]) -> list[Change]:
    """Return how each exposure that both arms recorded changed, from engine to like engine.

    Frames as of `analysis.observe.derive.exposure`, with the columns `on` that pair the engines.
    None below five pairs of engines: nothing can be said of it then.
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


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"
