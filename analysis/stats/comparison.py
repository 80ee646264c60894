"""Two runs side by side: the failure rates of each setting that both have, tested over engines."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.runs.tables import treated
from analysis.stats.bounds import holm
from analysis.stats.clustered import Rate, engines_to_tell, permutation, rate
from analysis.stats.configurations import CONFIGURATION
from analysis.stats.rates import per_trial

ALPHA = 0.05
_COLUMNS = ["concurrency", "first", "second", "first_rejected", "second_rejected", "p_value",
            "verdict"]  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """What `compare` found."""

    differing: dict[str, tuple[Any, Any]]
    """Settings of which each run has one value, and the other run another."""
    rows: pd.DataFrame
    """One row a setting and concurrency of both runs: the settings that vary, concurrency, first
    and second (`Rate`), first_rejected and second_rejected, p_value (adjusted by Holm, NaN without
    a test) and verdict."""
    left_out: int
    """Settings and concurrencies that only one of the runs has."""


def compare(
    first: tuple[pd.DataFrame, pd.DataFrame], second: tuple[pd.DataFrame, pd.DataFrame]
) -> Comparison:
    """Compare two runs, each given by its requests and trials.

    Settings that are constant in each run, but not the same, are what is compared; the others must
    agree. The test is `permutation` over engines. An engine without an accepted request has no
    rate, and does not count.
    """
    sides = [per_trial(*side) for side in (first, second)]
    for side in sides:
        side["treatments"] = side["treatments"].map(treated)
    differing, by = {}, []
    for name in CONFIGURATION:
        values = [set(side[name]) for side in sides]
        if values[0] != values[1] and all(len(each) == 1 for each in values):
            differing[name] = (values[0].pop(), values[1].pop())
        elif len(values[0] | values[1]) > 1:
            by.append(name)
    keys = [*by, "concurrency"]
    groups = [dict(list(side.groupby(keys, sort=True))) for side in sides]
    shared = [key for key in groups[0] if key in groups[1]]
    rows = [(*key, *_row(groups[0][key], groups[1][key])) for key in shared]
    frame = pd.DataFrame(rows, columns=[*by, *_COLUMNS[:-1]])
    tested = frame["p_value"].notna()
    frame.loc[tested, "p_value"] = holm(frame.loc[tested, "p_value"].tolist())
    verdicts = [_verdict(row, int(tested.sum())) for row in frame.to_dict("records")]
    frame["verdict"] = pd.Series(verdicts, index=frame.index, dtype=object)
    return Comparison(differing, frame, len(groups[0]) + len(groups[1]) - 2 * len(shared))


def _row(first: pd.DataFrame, second: pd.DataFrame) -> tuple[Any, ...]:
    both = pd.concat([first, second])
    later = [False] * len(first) + [True] * len(second)
    p_value = permutation(both["failures"].tolist(), both["taken"].tolist(), later)
    rates = [rate(side["failures"].tolist(), side["taken"].tolist()) for side in (first, second)]
    rejected = [int(side["rejected"].sum()) for side in (first, second)]
    return (*rates, *rejected, p_value)


def _verdict(row: dict[Any, Any], tests: int) -> str:
    first, second = row["first"], row["second"]
    assert isinstance(first, Rate)
    assert isinstance(second, Rate)
    if not first.n or not second.n:
        return "one of them accepted nothing"
    if math.isnan(row["p_value"]):
        return "undecided: fewer than two engines"
    if row["p_value"] < ALPHA:
        what = "fewer fail" if second.value < first.value else "more fail"
        fewer, more = sorted([row["first_rejected"], row["second_rejected"]])
        if fewer == more:
            return what
        other = "more" if row["second_rejected"] == more else "fewer"
        return f"{what}, {other} are rejected"
    needed = engines_to_tell(first, second, tests)
    return "no difference seen" if needed is None else f"undecided: about {needed} engines decide"
