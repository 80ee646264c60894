"""Tests and intervals with the engine as unit: one trial with all of its requests.

Requests of one engine share batches and are not independent; engines are. Each procedure was
calibrated on synthetic engines of known truth (docs/statistics.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy import special
from scipy import stats as scipy_stats
from scipy.optimize import brentq

from analysis.stats.bounds import wilson

FEWEST = 5
"""Fewest engines for an interval over engines; else it is by request."""
_EXACT = 16
"""Most real-valued differences for which all signs are enumerated."""
_DRAWS = 9_999
"""Number of random relabellings if there are too many to enumerate; then p >= 0.0001."""
_SIGNS = 99_999
ASSUMED_ICC = 0.2
"""Smallest ICC assumed as long as fewer than 8 engines had a failure, or a right answer."""
_INFORMATIVE = 8
_FAR = 1e6

Floats = npt.NDArray[np.float64]


def sign_flip(differences: Sequence[float] | npt.NDArray[np.generic]) -> float:
    """Return the two-sided p value of the exact sign-flip test that differences are about 0.

    One difference for each pair of engines. If two settings are equal, each difference is as likely
    to have the opposite sign. Whole numbers are tested exactly; real ones exactly up to 16 pairs,
    then with 99,999 random sign patterns. The smallest p with k pairs that differ is 2^(1-k).
    Source: R. A. Fisher (1935), The Design of Experiments, section 21.
    """
    values = np.asarray(differences, dtype=float)
    seen, values = abs(float(values.sum())), np.abs(values[values != 0])
    if not len(values):
        return 1.0
    if (values == np.rint(values)).all():
        return _whole_sign_flip(values.astype(np.int64).tolist(), round(seen))
    tolerance = 1e-9 * float(values.sum())
    sums = np.abs(np.einsum("ij,j->i", _signs(len(values)), values))
    hits = int((sums >= seen - tolerance).sum())
    if len(values) <= _EXACT:
        return hits / len(sums)
    return (1 + hits) / (1 + _SIGNS)


@lru_cache(maxsize=2)
def _signs(count: int) -> Floats:
    """Return patterns of `count` signs, a row each: all, or 99,999 random ones."""
    if count <= _EXACT:
        # The last sign is fixed, because the sums are symmetric.
        minus = (np.arange(2 ** (count - 1))[:, None] >> np.arange(count)) & 1
    else:
        minus = np.random.default_rng(0).integers(0, 2, (_SIGNS, count))
    return (1 - 2 * minus).astype(np.float64)


def _whole_sign_flip(sizes: Sequence[int], seen: int) -> float:
    """Return the same for whole numbers above 0, by counting how often each sum occurs.

    The number `ways` consists of fields of `width` bits: field s counts the sign patterns in which
    the numbers with sign + add up to s. No field overflows, as there are 2^(width - 1) patterns.
    """
    if not seen:
        return 1.0
    width = len(sizes) + 1
    ways = 1
    for size in sizes:
        ways += ways << size * width
    # The total is at least `seen` if the numbers with sign + add up to at least this.
    beyond = ways >> (sum(sizes) + seen) // 2 * width
    # The remainder by 2^width - 1 is the sum of all fields, as the remainder by 9 is of digits.
    patterns: int = 1 << len(sizes)
    return 2 * (beyond % (2 * patterns - 1)) / patterns


def permutation(failures: Sequence[int], sizes: Sequence[int], second: Sequence[bool]) -> float:
    """Return the two-sided p value of a permutation test that two groups of engines are equal.

    `failures` of `sizes` requests failed in each engine; `second` marks the engines of the second
    group. Permuted is each engine's failure rate, less the overall rate, in units of its expected
    spread: an engine with one request scatters more than one with eight. All relabellings are
    enumerated up to 9,999, else so many are drawn. 1 if all or none failed, NaN if a group has
    fewer than two engines. Source: B. Efron and R. J. Tibshirani (1993), An Introduction to the
    Bootstrap, chapter 15; the spread is that of the beta-binomial distribution.
    """
    x, n = (np.asarray(values, dtype=float) for values in (failures, sizes))
    x, others, n = x[n > 0], np.asarray(second, dtype=bool)[n > 0], n[n > 0]
    count = int(others.sum())
    if min(count, len(n) - count) < 2:
        return math.nan
    share_of_all = x.sum() / n.sum()
    if share_of_all in (0, 1):
        return 1.0
    together = icc(x.tolist(), n.tolist())
    effect = 1 + (n - 1) * (0.0 if math.isnan(together) else together)
    values = (x / n - share_of_all) / np.sqrt(share_of_all * (1 - share_of_all) * effect / n)
    total, rest = float(values.sum()), len(n) - count
    # einsum, because BLAS threads take several times as long as one.
    relabelled = np.einsum("ij,j->i", _relabellings(len(n), count), values)
    sums = np.append(relabelled, values[others].sum())
    apart = np.abs(sums / count - (total - sums) / rest)
    own = float(values[others].sum())
    seen = abs(own / count - (total - own) / rest)
    hits = int((apart[:-1] >= seen - 1e-9).sum())
    if math.comb(len(n), count) <= _DRAWS:
        return hits / (len(apart) - 1)
    return (hits + 1) / len(apart)


@lru_cache(maxsize=4)
def _relabellings(engines: int, count: int) -> Floats:
    """Return choices of `count` engines, a row of zeros and ones each: all, or 9,999 random."""
    if math.comb(engines, count) <= _DRAWS:
        chosen = np.array(list(combinations(range(engines), count)))
    else:
        drawn = np.random.default_rng(0).random((_DRAWS, engines))
        chosen = np.argpartition(drawn, count - 1, axis=1)[:, :count]
    masks = np.zeros((len(chosen), engines))
    np.put_along_axis(masks, chosen, 1.0, axis=1)
    return masks


@dataclass(frozen=True)
class Rate:
    """A share of requests, with an interval that allows for correlated requests of an engine."""

    failures: int
    n: int
    engines: int
    low: float
    high: float
    icc: float
    """Estimated intraclass correlation of an engine's requests; NaN if it cannot be estimated."""
    icc_used: float
    """ICC used by the interval: at least ASSUMED_ICC if few engines are informative."""
    by_engine: bool
    """Whether the interval includes the design effect; else it is by request and too narrow."""

    @property
    def value(self) -> float:
        """The share; NaN without requests."""
        return self.failures / self.n if self.n else math.nan


def icc(failures: Sequence[int], sizes: Sequence[int]) -> float:
    """Return the intraclass correlation of failures, by analysis of variance; NaN if unknown.

    At least 0. Unknown with one engine, one request an engine, no failures or only failures.
    Source: M. S. Ridout, C. G. B. Demetrio and D. Firth (1999), Biometrics 55:137.
    """
    x, n = (np.asarray(values, dtype=float) for values in (failures, sizes))
    x, n = x[n > 0], n[n > 0]
    k, total = len(n), float(n.sum())
    if k < 2 or total <= k or x.sum() in (0, total):
        return math.nan
    rate = x.sum() / total
    between = float((n * (x / n - rate) ** 2).sum()) / (k - 1)
    within = float((x * (1 - x / n)).sum()) / (total - k)
    size = (total - float((n**2).sum()) / total) / (k - 1)
    spread = between + (size - 1) * within
    return max(0.0, (between - within) / spread) if spread > 0 else 0.0


def rate(failures: Sequence[int], sizes: Sequence[int]) -> Rate:
    """Return the share of requests that failed, from each engine's failures and requests.

    With five engines or more the 95% interval is that of Clopper and Pearson on the effective
    number of requests, n / (1 + (m - 1) ICC), reduced by the quotient of t quantiles (E. L. Korn
    and B. I. Graubard 1998, Survey Methodology 24:193). With few failures the ICC is too
    often estimated as 0, so at least ASSUMED_ICC is used. With fewer engines the interval is
    Wilson's on the requests, which takes them as independent and is too narrow.
    """
    x, n = (np.asarray(values, dtype=float) for values in (failures, sizes))
    x, n = x[n > 0], n[n > 0]
    k, total, failed = len(n), float(n.sum()), float(x.sum())
    together = icc(x.tolist(), n.tolist())
    counts = int(failed), int(total), k
    if not total:
        return Rate(*counts, math.nan, math.nan, together, math.nan, False)
    if k < FEWEST:
        low, high = wilson(int(failed), int(total))
        return Rate(*counts, low, high, together, 0.0, False)
    used = 0.0 if math.isnan(together) else together
    if min((x > 0).sum(), (x < n).sum()) < _INFORMATIVE:
        used = max(used, ASSUMED_ICC)
    m = float((n**2).sum()) / total
    tail = 0.975
    few = float(special.stdtrit(total - 1, tail) / special.stdtrit(k - 1, tail)) ** 2
    effect = 1 + (m - 1) * used
    # With one request an engine, requests are independent.
    effective = total if effect == 1 else min(total, total / effect * few)
    events = failed / total * effective
    low, high, others = 0.0, 1.0, effective - events
    if failed:
        low = float(special.betaincinv(events, others + 1, 1 - tail))
    if failed < total:
        high = float(special.betaincinv(events + 1, others, tail))
    return Rate(*counts, low, high, together, used, True)


@dataclass(frozen=True)
class Share:
    """A net number of failures as a share of others, both uncertain: value, low, high."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan


def share(minuend: Rate, subtrahend: Rate | None, whole: Rate) -> Share:
    """Return (minuend - subtrahend) / whole of failure rates, with its interval over engines.

    The intervals of the rates give one of their difference, and that with the whole's gives one of
    the quotient, so the uncertainty of the denominator is included. Engines with the same requests
    are taken as independent, which makes the interval a little too wide. NaN if nothing of the
    whole failed; no interval if a rate rests on fewer than five engines.
    Source: A. Donner and G. Y. Zou (2012), Statistical Methods in Medical Research 21:347 (MOVER).
    """
    if not whole.failures or not minuend.n or (subtrahend is not None and not subtrahend.n):
        return Share()
    parts = [minuend, *([] if subtrahend is None else [subtrahend])]
    net = minuend.value - (0.0 if subtrahend is None else subtrahend.value)
    value = net / whole.value
    if not all(part.by_engine for part in (*parts, whole)):
        return Share(value)
    below, above = minuend.value - minuend.low, minuend.high - minuend.value
    if subtrahend is not None:
        below = math.hypot(below, subtrahend.high - subtrahend.value)
        above = math.hypot(above, subtrahend.value - subtrahend.low)
    return Share(value, *_quotient((net, below, above), whole))


def gone(first: Rate, second: Rate) -> Share:
    """Return the share of the first rate's failures that the second does not have, as `share`."""
    left = share(second, None, first)
    return Share(1 - left.value, 1 - left.high, min(1.0, 1 - left.low))


def _quotient(net: tuple[float, float, float], whole: Rate) -> tuple[float, float]:
    """Return the R at which the interval of net - R * whole leaves 0, on both sides."""
    value, below, above = net
    down, up = whole.value - whole.low, whole.high - whole.value

    def lower(ratio: float) -> float:
        aside = ratio * (up if ratio >= 0 else down)
        return value - ratio * whole.value - math.hypot(below, aside)

    def upper(ratio: float) -> float:
        aside = ratio * (down if ratio >= 0 else up)
        return value - ratio * whole.value + math.hypot(above, aside)

    return _root(lower), _root(upper)


def _root(falling: Callable[[float], float]) -> float:
    """Return the root of a falling function, infinite beyond a million."""
    # Exactly 0, because a root of 1e-9 would exclude the true share 0.
    if falling(0.0) == 0:
        return 0.0
    if falling(_FAR) > 0:
        return math.inf
    if falling(-_FAR) < 0:
        return -math.inf
    return float(brentq(falling, -_FAR, _FAR, xtol=1e-9))


def relative_change(first: Sequence[float], second: Sequence[float]) -> Share:
    """Return (sum(second) - sum(first)) / sum(first) over pairs of engines, with a 95% interval.

    For measured amounts, not for counts of rare events: Student's t on the residual of each pair
    from the common quotient (W. G. Cochran 1977, Sampling Techniques, section 6).
    """
    one, other = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    total, k = float(one.sum()), len(one)
    if not total > 0 or k < 2:
        return Share()
    value = float(other.sum()) / total - 1
    left = other - (1 + value) * one
    error = math.sqrt(float((left**2).sum()) * k / (k - 1)) / total
    reach = float(scipy_stats.t.ppf(0.975, k - 1)) * error
    return Share(value, value - reach, value + reach)


def engines_to_reach(tests: int) -> int:
    """Return the fewest engines with which one of `tests` sign-flip tests can be significant."""
    return math.ceil(1 + math.log2(max(1, tests) / 0.05))


def engines_needed(mean: float, spread: float, tests: int = 1) -> int:
    """Return the approximate pairs of engines for one of `tests` sign-flip tests, 80% power.

    From mean and spread of the engines' differences, by the normal approximation, and at least
    `engines_to_reach`. Raises ValueError for a mean of 0.
    """
    if not mean:
        raise ValueError("a difference of 0 cannot be shown with any number of engines")
    z = scipy_stats.norm.ppf(1 - 0.05 / max(1, tests) / 2) + scipy_stats.norm.ppf(0.8)
    return max(engines_to_reach(tests), math.ceil((z * spread / abs(mean)) ** 2) + 2)


def engines_to_tell(first: Rate, second: Rate, tests: int = 1) -> int | None:
    """Return about how many engines a side would show the observed difference, 80% power.

    None if there is no difference. At least one more than there are.
    """
    if first.value == second.value:
        return None
    spread = 0.0
    for side in (first, second):
        size = side.n / side.engines
        used = 0.0 if math.isnan(side.icc) else side.icc
        variance = max(side.value * (1 - side.value), 1 / side.n)
        spread += variance * (1 + (size - 1) * used) / size
    needed = engines_needed(second.value - first.value, spread**0.5, tests)
    return max(needed, min(first.engines, second.engines) + 1)
