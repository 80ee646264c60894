"""Paired comparison of two settings that received the same requests.

A pair is one request with the same prompt at the same place of the same sequence in two engines
that differ in one setting only. Requests of an engine share batches and are not independent, so
tests and intervals rest on pairs of engines, never on pairs of requests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.runs.schema import FAILURES
from analysis.runs.tables import arm_of
from analysis.stats.clustered import sign_flip
from analysis.stats.rates import with_trials

ENGINE = ["concurrency", "repeat"]
"""Columns in which a pair of engines agrees."""
_KEY = [*ENGINE, "request_id"]


@dataclass(frozen=True)
class Paired:
    """The same requests in two settings, engine by engine."""

    engines: tuple[tuple[int, int], ...]
    """Concurrency and repeat of each pair of engines; all tuples below have one value for each."""
    sizes: tuple[int, ...]
    """Requests sent in both settings."""
    firsts: tuple[int, ...]
    """Number of these that failed in the first setting."""
    seconds: tuple[int, ...]
    only_first: int
    only_second: int
    first_rejected: int
    second_rejected: int

    @property
    def pairs(self) -> int:
        """Requests sent in both settings."""
        return sum(self.sizes)

    @property
    def first_failed(self) -> int:
        """Requests that failed in the first setting."""
        return sum(self.firsts)

    @property
    def second_failed(self) -> int:
        """Requests that failed in the second setting."""
        return sum(self.seconds)

    @property
    def nets(self) -> tuple[int, ...]:
        """Failures in the first setting minus failures in the second, for each pair of engines."""
        return tuple(a - b for a, b in zip(self.firsts, self.seconds, strict=True))

    @property
    def net(self) -> int:
        """Failures in the first setting minus failures in the second."""
        return sum(self.nets)

    @property
    def p_value(self) -> float:
        """Two-sided, of the exact sign-flip test on the engines' net differences."""
        return sign_flip(self.nets)


def pair(
    requests: pd.DataFrame,
    trials: pd.DataFrame,
    first: Sequence[str],
    second: Sequence[str],
    failures: Sequence[str] = FAILURES,
) -> pd.DataFrame:
    """Return one row for each request that was sent in both settings, given by their treatments.

    Columns: concurrency, repeat, request_id, first and second (whether it failed there),
    first_rejected and second_rejected. The trials must be those of one scenario. A rejected request
    counts as failed only if `failures` contains "rejected".
    """
    joined = with_trials(requests, trials, ["concurrency", "repeat", "treatments"])
    names = joined["treatments"].map(arm_of)
    sides = []
    for name, wanted in (("first", tuple(first)), ("second", tuple(second))):
        own = joined[names == wanted] if len(joined) else joined
        failed, rejected = own["outcome"].isin(tuple(failures)), own["outcome"] == "rejected"
        sides.append(own[_KEY].assign(**{name: failed, f"{name}_rejected": rejected}))
    return sides[0].merge(sides[1], on=_KEY, validate="one_to_one")


def paired(pairs: pd.DataFrame) -> Paired:
    """Return the counts of `pair`, for each pair of engines."""
    columns = ["first", "second", "first_rejected", "second_rejected"]
    counted = pairs[columns].astype(int).assign(n=1)
    by_engine = counted.groupby([pairs[name] for name in ENGINE]).sum()
    first, second = pairs["first"].to_numpy(bool), pairs["second"].to_numpy(bool)
    sizes, firsts, seconds = (tuple(by_engine[c].tolist()) for c in ("n", "first", "second"))
    return Paired(
        tuple((int(a), int(b)) for a, b in by_engine.index),
        sizes,
        firsts,
        seconds,
        int((first & ~second).sum()),
        int((~first & second).sum()),
        int(pairs["first_rejected"].sum()),
        int(pairs["second_rejected"].sum()),
    )


def together(*questions: Paired | None) -> tuple[int, ...]:
    """Return the engines' net differences, summed over several questions about one treatment.

    If the treatment has no effect, the sum of each engine is as likely positive as negative, so one
    test covers all questions.
    """
    sums: dict[tuple[int, int], int] = {}
    for question in questions:
        if question is not None:
            for engine, net in zip(question.engines, question.nets, strict=True):
                sums[engine] = sums.get(engine, 0) + net
    return tuple(sums[engine] for engine in sorted(sums))


def spread(nets: Sequence[float], failures: float) -> float:
    """Return the standard deviation of engines' net differences, at least that of chance.

    `failures` is the mean number of failures of an engine; chance scatters it by its square root.
    """
    own = float(np.std(nets, ddof=1)) if len(nets) > 1 else 0.0
    return max(own, math.sqrt(max(failures, 1.0)))
