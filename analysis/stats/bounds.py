"""Intervals, sample sizes and adjustments for single counts and several p values."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats as scipy_stats


def wilson(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of k out of n, as shares of 1; (nan, nan) for n = 0.

    Source: E. B. Wilson (1927), JASA 22:209, without continuity correction.
    """
    if not 0 <= k <= n:
        raise ValueError(f"k must lie between 0 and n, not {k} of {n}")
    if n == 0:
        return math.nan, math.nan
    interval = scipy_stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def upper_bound(k: int, n: int, confidence: float) -> float:
    """Return the one-sided upper confidence bound of k of n, as a share of 1; 1 for n = 0.

    For k = 0 it is 1 - (1 - confidence)^(1/n): `requests_to_see(rate)` requests bring it to `rate`.
    Source: C. J. Clopper and E. S. Pearson (1934), Biometrika 26:404.
    """
    if not 0 <= k <= n:
        raise ValueError(f"k must lie between 0 and n, not {k} of {n}")
    return 1.0 if k == n else float(scipy_stats.beta.ppf(confidence, k + 1, n - k))


def requests_to_see(rate: float, confidence: float = 0.95) -> int:
    """Return the number of requests that show a fault of this rate with this probability."""
    if not 0 < rate < 1:
        raise ValueError(f"the rate must lie between 0 and 1, not {rate}")
    return math.ceil(math.log1p(-confidence) / math.log1p(-rate))


def least_rate(requests: int, confidence: float = 0.95) -> float:
    """Return the least failure rate that this number of requests shows with this probability."""
    return -math.expm1(math.log1p(-confidence) / requests)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values adjusted for multiple tests, in their order (Holm 1979, step-down)."""
    values = np.array(p_values, dtype=float)
    order = np.argsort(values, kind="stable")
    steps = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return [float(p) for p in adjusted]
