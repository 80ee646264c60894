"""Whether two arms were exposed alike: a treatment may mend nothing, and take the occasion away."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.runs.derive import EXPOSURES
from analysis.stats.clustered import FEWEST, relative_change

MARGIN = 0.2
"""The change, as a share of what it was, from which on an exposure has moved."""
SHARES = {"accepted": 0.05, "overlap": 0.05, "hits": 0.05}
"""Of exposures that are shares: the points that it must move by, too. A share of next to nothing
that halves takes no occasion away."""


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
        return self.second < (1 - MARGIN) * self.first and self.high < 0 and not self._slight

    @property
    def rose(self) -> bool:
        """Whether there is more of it in the second, beyond chance and by more than MARGIN."""
        return self.second > (1 + MARGIN) * self.first and self.low > 0 and not self._slight

    @property
    def alike(self) -> bool:
        """Whether it is bounded to within MARGIN, or moved by next to nothing."""
        return self._slight or (self.low > -MARGIN and self.high < MARGIN)

    @property
    def _slight(self) -> bool:
        return abs(self.second - self.first) < SHARES.get(self.name, 0.0)

    @property
    def words(self) -> str:
        """What it was and what it is."""
        return f"{EXPOSURES[self.name]}: {_number(self.first)}, then {_number(self.second)}"


def changes(first: pd.DataFrame, second: pd.DataFrame, on: Sequence[str]) -> list[Change]:
    """Return how each exposure that both arms recorded changed, from engine to like engine.

    Frames as of `analysis.runs.derive.exposure`, with the columns `on` that pair the engines.
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


def in_words(found: Sequence[Change], through: Sequence[str] = ()) -> str:
    """Say how far arms were exposed alike, where nothing is objected against them.

    `through` names the exposures by which what differs between the arms is known to act: that they
    differ is no objection, and is said apart.
    """
    if not found:
        return "Exposure not compared: too few engines."
    rest = [change for change in found if change.name not in through]
    return f"{acts_through(found, through)} {_compared(rest)}".strip()


def acts_through(found: Sequence[Change], through: Sequence[str]) -> str:
    """Say how the exposures changed through which something acts; "" if none was compared."""
    acting = [change for change in found if change.name in through]
    if moved := [change.words for change in acting if change.fell or change.rose]:
        return f"What it acts through changed with it ({'; '.join(moved)})."
    if acting:
        shown = "; ".join(change.words for change in acting)
        return f"What it acts through is not shown to have changed ({shown})."
    return ""


def _compared(found: Sequence[Change]) -> str:
    if not found:
        return "No other exposure was compared: it was not recorded by enough engines."
    moved = [change.words for change in found if change.fell or change.rose]
    if moved:
        return f"Exposure differed ({'; '.join(moved)})."
    unsure = [EXPOSURES[change.name] for change in found if not change.alike]
    if unsure:
        return f"Exposure is not shown to be alike in: {'; '.join(dict.fromkeys(unsure))}."
    return f"Exposed alike (within {MARGIN:.0%})."


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"
