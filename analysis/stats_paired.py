"""Two settings asked the same: exact paired tests, how many failures go, how many pairs it takes.

A pair is one request, asked with the same prompt at the same place of the same sequence in two
cells that differ in one respect only. Requests of a cell share batches, so an interval over
requests alone would be too narrow: where there are enough cells, they are what is drawn anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from analysis.stats import FAILURES, wilson, with_cells

_KEY = ["concurrency", "repeat", "request_id"]
_FEWEST_CELLS = 5


@dataclass(frozen=True)
class Paired:
    """The same requests in two settings: how many failed in one only, and what follows.

    `share` is the net share of the first setting's failures that the second does not have, with its
    95% interval: 1 if all are gone, 0 if none or if as many came as went; NaN without failures.
    """

    pairs: int
    first_failed: int
    second_failed: int
    only_first: int
    only_second: int
    p_value: float
    """Two-sided, of the exact McNemar test."""
    p_cells: float
    """Two-sided, of a t test on the net numbers of the cells: do they agree? NaN for one cell."""
    share: float
    low: float
    high: float
    cells: int

    def tells(self, p_value: float, alpha: float = 0.05) -> bool:
        """Tell whether the second setting fails less, beyond chance and on engine after engine.

        `p_value` is that of the test by requests, adjusted for others beside it. Requests of a cell
        can share one accident, such as an engine that hangs and refuses all that follows: so the
        cells must agree, too.
        """
        return self.net > 0 and p_value < alpha and self.p_cells < alpha

    @property
    def net(self) -> int:
        """How many failures fewer the second setting has."""
        return self.only_first - self.only_second


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p value of the exact test of McNemar (1947), 1 without such pairs.

    If the settings fail alike, either is as likely to be the one that failed.
    """
    discordant = only_first + only_second
    if not discordant:
        return 1.0
    return float(scipy_stats.binomtest(only_first, discordant, 0.5).pvalue)


def pair(
    requests: pd.DataFrame,
    cells: pd.DataFrame,
    first: Sequence[str],
    second: Sequence[str],
    failures: Sequence[str] = FAILURES,
) -> pd.DataFrame:
    """Return one row for each request that both settings accepted, by their treatments.

    Columns: concurrency, repeat, request_id, first and second (whether it failed there). Everything
    else must be alike in the two: give the tables of one scenario. A rejected request is left out,
    unless `failures` counts it.
    """
    joined = with_cells(requests, cells, ["concurrency", "repeat", "treatments"])
    names = joined["treatments"].map(lambda value: tuple(value or ()))
    sides = []
    for name, wanted in (("first", tuple(first)), ("second", tuple(second))):
        mine = joined[names == wanted] if len(joined) else joined
        if "rejected" not in failures:
            mine = mine[mine["outcome"] != "rejected"]
        side = mine[_KEY].assign(**{name: mine["outcome"].isin(tuple(failures))})
        sides.append(side)
    return sides[0].merge(sides[1], on=_KEY, validate="one_to_one")


def paired(pairs: pd.DataFrame, resamples: int = 2000, seed: int = 0) -> Paired:
    """Return what `pair` gave, counted and tested.

    The interval of the share is the wider of a percentile bootstrap over cells (requests, if there
    are fewer than 5 cells) and the Wilson interval of the net number that went.
    """
    first, second = pairs["first"].to_numpy(bool), pairs["second"].to_numpy(bool)
    gone, came, failed = (
        int((first & ~second).sum()),
        int((~first & second).sum()),
        int(first.sum()),
    )
    keys = pairs[["concurrency", "repeat"]].drop_duplicates()
    share = low = high = math.nan
    if failed:
        share = (gone - came) / failed
        low, high = _interval(pairs, len(keys), resamples, seed)
        wide = wilson(min(max(gone - came, 0), failed), failed)
        low, high = min(low, wide[0]) if gone >= came else low, max(high, wide[1])
    return Paired(
        len(pairs),
        failed,
        int(second.sum()),
        gone,
        came,
        mcnemar(gone, came),
        _agreement(pairs),
        share,
        low,
        high,
        len(keys),
    )


def _agreement(pairs: pd.DataFrame) -> float:
    """Return the p value of the cells' net numbers being about 0; NaN for fewer than two cells."""
    net = pairs["first"].astype(int) - pairs["second"].astype(int)
    of_cells = net.groupby([pairs["concurrency"], pairs["repeat"]]).sum().to_numpy()
    if len(of_cells) < 2:
        return math.nan
    if of_cells.std() == 0:
        return 1.0 if of_cells[0] == 0 else 0.0
    return float(scipy_stats.ttest_1samp(of_cells, 0).pvalue)


def _interval(pairs: pd.DataFrame, cells: int, resamples: int, seed: int) -> tuple[float, float]:
    counted = pairs.assign(net=pairs["first"].astype(int) - pairs["second"].astype(int))
    counts = counted[["net", "first"]].astype(int)
    if cells >= _FEWEST_CELLS:
        counts = counts.groupby([counted["concurrency"], counted["repeat"]]).sum()
    rows = counts.to_numpy()
    drawn = np.random.default_rng(seed).integers(0, len(rows), (resamples, len(rows)))
    net, failed = rows[drawn, 0].sum(axis=1), rows[drawn, 1].sum(axis=1)
    shares = net[failed > 0] / failed[failed > 0]
    low, high = np.quantile(shares, [0.025, 0.975])
    return float(low), float(high)


def pairs_needed(
    only_first: float, only_second: float, alpha: float = 0.05, power: float = 0.8
) -> int:
    """Return about how many pairs show that one side fails more, from the discordant shares.

    Source: J. E. Connor (1987), Biometrics 43:207, for the test of McNemar. Raises ValueError if
    the shares are equal or no shares.
    """
    both, apart = only_first + only_second, abs(only_first - only_second)
    if not (0 <= only_first <= 1 and 0 <= only_second <= 1 and both <= 1 and apart):
        raise ValueError(f"two different shares are needed, not {only_first} and {only_second}")
    z_alpha, z_beta = scipy_stats.norm.ppf(1 - alpha / 2), scipy_stats.norm.ppf(power)
    spread = z_alpha * math.sqrt(both) + z_beta * math.sqrt(both - apart**2)
    return math.ceil((spread / apart) ** 2)
