"""Calibration: every procedure that ends in a claim, on synthetic engines of known truth.

Requests of an engine are correlated: each engine draws its own failure rate from a beta
distribution of the intraclass correlation (ICC) that the row names. `calibration_table.py` prints
the results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from analysis.stats.clustered import gone, permutation, rate, sign_flip
from analysis.stats.dose_response import evictions_contrast
from analysis.stats.paired import Paired
from analysis.studies.causes import Arm, Measurement, Verdict, decide
from analysis.studies.causes.hypotheses import HYPOTHESES
from analysis.studies.cost.compare import costs
from analysis.studies.cost.measures import ALL, METRICS, SETTING, UNTREATED
from analysis.studies.evictions.estimates import decide_evictions

ICCS = (0.0, 0.1, 0.2)
QUICK, FULL = 14, 24
"""Engines for each set of treatments in notebook 05."""
HYPOTHESES_OF_A_NOTEBOOK = 51
ALPHA, MOST = 0.05, 0.5
Rng = np.random.Generator
Counts = np.ndarray


def failures(
    rng: Rng, p: float | Sequence[float], icc: float, requests: int, engines: int
) -> Counts:
    """Return how many requests of each engine fail, beta-binomially: a row for each p."""
    own = np.repeat(np.asarray(p, dtype=float)[..., None], engines, axis=-1)
    varies = (own > 0) & (own < 1)
    if icc:
        scale = (1 - icc) / icc
        own[varies] = rng.beta(own[varies] * scale, (1 - own[varies]) * scale)
    return rng.binomial(requests, own)


# Rates of one configuration.


def rate_coverage(rng: Rng, icc: float, engines: int, requests: int, p: float, runs: int) -> float:
    held = 0
    for _ in range(runs):
        found = rate(failures(rng, p, icc, requests, engines).tolist(), [requests] * engines)
        held += found.low <= p <= found.high
    return held / runs


# Between concurrencies.


@dataclass(frozen=True)
class Grid:
    """A sweep of one configuration: concurrencies, engines at each, and rounds, on both sides."""

    below: tuple[int, ...]
    above: tuple[int, ...]
    engines: tuple[int, int]
    rounds: tuple[int, int]


GRIDS = {
    "quick: 1, 2 against 4, 8, 32; 12 engines each, 6 and 2 rounds": Grid(
        (1, 2), (4, 8, 32), (12, 12), (6, 2)
    ),
    "full: 1, 2, 3 against 4 to 32; 16 engines each, 6 and 2 rounds": Grid(
        (1, 2, 3), (4, 8, 16, 32), (16, 16), (6, 2)
    ),
    "reference: 1, 2 against 4 to 32; 8 engines each, 4 rounds": Grid(
        (1, 2), (4, 8, 16, 32), (8, 8), (4, 4)
    ),
}
CONFIGURATIONS = 2
"""Without prefix sharing, and with the trie."""
TESTS = CONFIGURATIONS + 1
"""Of one release in notebook 01: each configuration, and one against the other."""
NONE, TRIE = (0.14, 0.27), (0.35, 0.57)
"""Rates of shortfin 3.1.0 below 4 and from 4 on, without and with the trie: measured with the
quick plan, in 60 and 138 engines each."""


def concurrencies(rng: Rng, icc: float, grid: str, low: float, high: float) -> float:
    """Return the p value that rates differ, of one configuration with these true rates."""
    plan = GRIDS[grid]
    failed, sizes, second = [], [], []
    sides = zip((plan.below, plan.above), plan.engines, plan.rounds, (low, high), strict=True)
    for later, (levels, engines, rounds, p) in enumerate(sides):
        for level in levels:
            failed += failures(rng, p, icc, level * rounds, engines).tolist()
            sizes += [level * rounds] * engines
            second += [bool(later)] * engines
    return permutation(failed, sizes, second)


def between_concurrencies(
    rng: Rng, icc: float, grid: str, low: float, high: float, runs: int
) -> float:
    """Return how often the test says that rates differ, in one of two configurations or in both."""
    reported = 0
    for _ in range(runs):
        p_values = [concurrencies(rng, icc, grid, low, high) for _ in range(CONFIGURATIONS)]
        reported += min(p_values) < ALPHA / CONFIGURATIONS
    return reported / runs


def decided(rng: Rng, icc: float, grid: str, rates: tuple[float, float], runs: int) -> float:
    """Return how often a configuration of these rates is decided, however the other tests end."""
    found = [concurrencies(rng, icc, grid, *rates) < ALPHA / TESTS for _ in range(runs)]
    return float(np.mean(found))


# Two settings, engine by engine, and the verdicts on a notebook's hypotheses.


@dataclass(frozen=True)
class Truth:
    """The true failure rates that one hypothesis is asked by."""

    without: float
    alone: float
    all_but: float
    everything: float

    @property
    def shares(self) -> tuple[float, float]:
        """The true shares that go with it, and that its absence brings back."""
        return (
            1 - self.alone / self.without,
            (self.all_but - self.everything) / self.without,
        )


def _paired(first: Counts, second: Counts, requests: int) -> Paired:
    return Paired(
        tuple((8, repeat) for repeat in range(len(first))),
        (requests,) * len(first),
        tuple(first.tolist()),
        tuple(second.tolist()),
        0, 0, 0, 0,
    )  # fmt: skip


def _arm(failed: Counts, requests: int) -> Arm:
    return Arm((), tuple((int(k), requests) for k in failed), 0, 0, 0)


def notebook(
    rng: Rng, truths: Sequence[Truth], icc: float, engines: int, requests: int
) -> list[Verdict]:
    """Return the verdicts on hypotheses of these truths, of scenarios of ten hypotheses each."""
    measured = []
    for start in range(0, len(truths), 10):
        group = truths[start : start + 10]

        def draw(*p: float) -> Counts:
            return failures(rng, p, icc, requests, engines)

        without, everything = draw(group[0].without, group[0].everything)
        every = draw(*(truth.alone for truth in group)), draw(*(truth.all_but for truth in group))
        for alone, all_but in zip(*every, strict=True):
            measured.append(
                Measurement(
                    HYPOTHESES[0],
                    _arm(without, requests),
                    _arm(alone, requests),
                    _paired(without, alone, requests),
                    _arm(everything, requests),
                    _arm(all_but, requests),
                    _paired(all_but, everything, requests),
                    _paired(without, everything, requests),
                )
            )
    return decide(measured)


def false_claims(verdicts: Sequence[Verdict], truths: Sequence[Truth]) -> int:
    """Return how many verdicts of a notebook claim what is not so."""
    wrong = 0
    for verdict, truth in zip(verdicts, truths, strict=True):
        largest = max(truth.shares)
        wrong += verdict.status in ("supported", "contributes") and largest <= 0
        wrong += verdict.status == "supported" and 0 < largest <= MOST
        wrong += verdict.status == "refuted" and largest >= MOST
    return wrong


NOTHING = Truth(0.3, 0.3, 0.1, 0.1)
HALF = Truth(0.3, 0.15, 0.25, 0.1)
CAUSE = Truth(0.3, 0.0, 0.3, 0.0)
THIRD = Truth(0.3, 0.2, 0.2, 0.1)
STORIES: dict[str, list[Truth]] = {
    "no cause at all": [NOTHING] * HYPOTHESES_OF_A_NOTEBOOK,
    "every one exactly half": [HALF] * HYPOTHESES_OF_A_NOTEBOOK,
    "rare failures, no cause": [Truth(0.04, 0.04, 0.02, 0.02)] * HYPOTHESES_OF_A_NOTEBOOK,
    "one cause, others nothing": [
        Truth(0.3, 0.0, 0.3, 0.0),
        *[Truth(0.3, 0.3, 0.0, 0.0)] * (HYPOTHESES_OF_A_NOTEBOOK - 1),
    ],
}


def verdicts_wrong(rng: Rng, story: str, icc: float, engines: int, runs: int) -> float:
    """Return the share of notebooks with a false claim."""
    truths = STORIES[story]
    return float(
        np.mean(
            [false_claims(notebook(rng, truths, icc, engines, 32), truths) > 0 for _ in range(runs)]
        )
    )


def verdict_power(rng: Rng, truth: Truth, word: str, icc: float, engines: int, runs: int) -> float:
    """Return how often the first of 51 hypotheses, others doing nothing, gets this verdict."""
    if word == "refuted":
        truths = [Truth(0.3, 0.3, 0.0, 0.0)] * 10
    else:
        truths = [truth, *[Truth(truth.without, truth.without, truth.everything,
                                 truth.everything)] * 9]  # fmt: skip
    wanted = {"effect": ("supported", "contributes")}.get(word, (word,))
    hits = 0
    for _ in range(runs):
        measured = notebook(rng, truths, icc, engines, 32)
        # Ten are drawn, and judged as if 41 more, of which nothing is seen, stood beside them.
        judged = decide(measured, HYPOTHESES_OF_A_NOTEBOOK - 10)
        hits += judged[0].status in wanted
    return hits / runs


def share_coverage(
    rng: Rng, true: float, p: float, icc: float, engines: int, runs: int, requests: int = 32
) -> float:
    """Return how often the 95% interval of a share of the failures holds it."""
    held = 0
    for _ in range(runs):
        first = failures(rng, p, icc, requests, engines)
        second = failures(rng, p * (1 - true), icc, requests, engines)
        sizes = [requests] * engines
        found = gone(rate(first.tolist(), sizes), rate(second.tolist(), sizes))
        held += found.low <= true <= found.high if first.sum() else 1
    return held / runs


def pair_wrong(rng: Rng, p: float, icc: float, engines: int, runs: int) -> float:
    """Return how often two settings of equal effect are distinguished by one sign-flip test."""
    apart = 0
    for _ in range(runs):
        one, other = (failures(rng, p, icc, 32, engines) for _ in range(2))
        apart += sign_flip(one - other) < ALPHA
    return apart / runs


# Evictions where concurrency and pool are equal.

LEVELS, ROUNDS, REPEATS = (4, 8), (1, 3), 6
POOLS = {256: 0.4, 64: 1.0, 40: 1.4}
"""Pages of notebook 03, and by how much they change how often requests fail and meet evictions."""
SHARING = ("none", "trie")
"""Configurations that are judged together; requests of both meet evictions here."""


def evictions(
    rng: Rng, icc: float, ratio: float, repeats: int = REPEATS, *, confounded: bool = True
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return requests and trials of notebook 03; odds of failing are `ratio` times with evictions.

    That is what is true in every stratum, over its engines. Concurrency and a small pool bring more
    failures and more evictions, unless not `confounded`. An engine's requests share how often they
    fail, and how often they meet evictions.
    """
    trials, requests = [], []
    for sharing, pages, level, each in product(SHARING, POOLS, LEVELS, ROUNDS):
        more = POOLS[pages] * level / 8 if confounded else 0.5
        fails, press = 0.35 * more, 0.6 * more
        odds = ratio * fails / (1 - fails)
        likelier = odds / (1 + odds)
        # The same place among engines with evictions and without, so that both rates are exact.
        place = rng.random(repeats)
        without, within = (_shared(place, p, icc) for p in (fails, likelier))
        pressed = _shared(rng.random(repeats), press, icc)
        for repeat in range(repeats):
            name, count = f"{sharing}-{pages}-{level}-{each}-{repeat}", level * each
            trials.append((name, sharing, pages, level))
            met = rng.random(count) < pressed[repeat]
            failed = rng.random(count) < np.where(met, within[repeat], without[repeat])
            requests.append(
                pd.DataFrame(
                    {"trial_id": name, "evictions_during": met.astype(int),
                     "outcome": np.where(failed, "wrong", "ok")}
                )
            )  # fmt: skip
    columns = ["trial_id", "prefix_sharing", "page_count", "concurrency"]
    frame = pd.DataFrame(trials, columns=columns).assign(release="r", workload="shared_prefix")
    return pd.concat(requests, ignore_index=True), frame


def _shared(place: Counts, p: float, icc: float) -> Counts:
    """Return the rates of engines at these quantiles of their beta distribution."""
    if not icc:
        return np.full(len(place), p)
    scale = (1 - icc) / icc
    return scipy_stats.beta.ppf(place, p * scale, (1 - p) * scale)


def eviction_statuses(
    rng: Rng,
    icc: float,
    ratio: float,
    runs: int,
    repeats: int = REPEATS,
    *,
    confounded: bool = True,
) -> list[list[str]]:
    """Return what is claimed of each configuration, for each simulated notebook."""
    claimed = []
    for _ in range(runs):
        requests, trials = evictions(rng, icc, ratio, repeats, confounded=confounded)
        contrasts = []
        for sharing in SHARING:
            own = trials[trials["prefix_sharing"] == sharing]
            asked = requests[requests["trial_id"].isin(own["trial_id"])]
            contrasts.append(evictions_contrast(asked, own))
        claimed.append([found.status for found in decide_evictions(contrasts) if found is not None])
    return claimed


def any_of(claimed: Sequence[Sequence[str]], *words: str) -> float:
    """Return the share of notebooks in which one of these words is claimed of something."""
    return float(np.mean([any(word in words for word in found) for found in claimed]))


# Costs.


def cost_claims(rng: Rng, factor: float, pairs: int, arms: int, runs: int) -> tuple[float, float]:
    """Return how often any arm is wrongly reported to cost or save, and how often the first is.

    `factor` is what the first arm costs; the others cost nothing. Two concurrencies, times that
    scatter by 5% from engine to engine.
    """
    wrong = reported = 0
    for _ in range(runs):
        rows = []
        for level in (4, 8):
            for repeat in range(pairs // 2):
                for number, arm in enumerate((UNTREATED, ALL, *map(str, range(arms - 1)))):
                    values = np.exp(rng.normal(0, 0.05, len(METRICS)))
                    if number == 1:
                        values = values * factor
                    rows.append(
                        {**dict.fromkeys(SETTING, "x"), "concurrency": level, "repeat": repeat,
                         "arm": arm, "treatments": (), "comparable": True,
                         **dict(zip((m.name for m in METRICS), values, strict=True))}
                    )  # fmt: skip
        found = costs(pd.DataFrame(rows))
        shown = found["verdict"].isin(("costs", "saves"))
        null = found["arm"] != ALL if factor != 1 else found["arm"].notna()
        wrong += bool((shown & null).any())
        reported += bool((shown & ~null & (found["metric"] == "latency_s")).any())
    return wrong / runs, reported / runs
