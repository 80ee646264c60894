"""The table of docs/statistics.md: calibration of every procedure that ends in a claim.

    .venv/bin/python tests/calibration_table.py [SIZE [PROCEDURE]]

prints it as Markdown, from SIZE simulated notebooks a row (default 400), or only the rows of
procedures whose names begin with PROCEDURE.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from calibration import (
    CAUSE,
    FULL,
    GRIDS,
    HALF,
    ICCS,
    NONE,
    NOTHING,
    QUICK,
    STORIES,
    THIRD,
    TRIE,
    Rng,
    any_of,
    between_concurrencies,
    cost_claims,
    decided,
    eviction_statuses,
    pair_wrong,
    rate_coverage,
    share_coverage,
    verdict_power,
    verdicts_wrong,
)

from analysis.studies.evictions.estimates import EQUIVALENT


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    plan: str
    quantity: str
    """What was measured: false claims, coverage or power."""
    value: float
    runs: int
    """Simulated notebooks that it was measured of."""


def _rates(rng: Rng, icc: float, runs: int) -> Iterator[Row]:
    for engines, requests in ((6, 8), (8, 32), (QUICK, 32), (FULL, 32)):
        held, p = min(
            (rate_coverage(rng, icc, engines, requests, p, 4 * runs), p)
            for p in (0.01, 0.05, 0.1, 0.3, 0.5, 0.9)
        )
        plan = f"{engines} engines of {requests} requests"
        yield Row(plan, f"coverage, worst at {p:.0%}", held, 4 * runs)


def _concurrencies(rng: Rng, icc: float, runs: int) -> Iterator[Row]:
    for grid in GRIDS:
        share, p = max(
            (between_concurrencies(rng, icc, grid, p, p, runs), p) for p in (0.05, 0.1, 0.3, 0.5)
        )
        yield Row(grid, f"false claims in a notebook, worst at {p:.0%}", share, runs)
        for low, high in (NONE, TRIE):
            share = decided(rng, icc, grid, (low, high), runs)
            yield Row(grid, f"power: {low:.0%} against {high:.0%}", share, runs)


def _pairs(rng: Rng, icc: float, runs: int) -> Iterator[Row]:
    for engines in (6, QUICK, FULL):
        share, p = max((pair_wrong(rng, p, icc, engines, 4 * runs), p) for p in (0.05, 0.3, 0.6))
        yield Row(f"{engines} engines", f"false claims, worst at {p:.0%}", share, 4 * runs)


def _shares(rng: Rng, icc: float, runs: int) -> Iterator[Row]:
    for engines in (6, QUICK, FULL):
        held, true = min(
            (share_coverage(rng, true, p, icc, engines, 2 * runs), true)
            for p in (0.1, 0.3, 0.6)
            for true in (0.0, 0.3, 0.5, 0.8, 0.97, 1.0)
        )
        what = f"coverage, worst at a share of {true:.0%}"
        yield Row(f"{engines} engines of 32", what, held, 2 * runs)


def _verdicts(rng: Rng, icc: float, runs: int) -> Iterator[Row]:
    for name, engines in (("quick", QUICK), ("full", FULL)):
        plan = f"{name}: 51 hypotheses, {engines} engines of 32"
        for story in STORIES:
            wrong = verdicts_wrong(rng, story, icc, engines, runs)
            yield Row(plan, f"false claims in a notebook: {story}", wrong, runs)
        for truth, word, what in (
            (CAUSE, "supported", "all of 30% failing is its matter: supported"),
            (HALF, "effect", "half of 30% is its matter: an effect"),
            (THIRD, "effect", "a third of 30% is its matter: an effect"),
            (NOTHING, "refuted", "nothing is its matter: refuted"),
        ):
            found = verdict_power(rng, truth, word, icc, engines, runs)
            yield Row(plan, f"power: {what}", found, runs)


def _evictions(rng: Rng, icc: float, runs: int) -> Iterator[Row]:
    few = max(10, runs // 5)
    plan = "quick: 2 configurations of 3 pools, 36 engines at 4 and at 8"
    found = eviction_statuses(rng, icc, 1.0, few)
    explained = any_of(found, "explain", "rarer")
    yield Row(plan, "false claims in a notebook: they explain failures", explained, few)
    accompanied = float(np.mean([word == "accompany" for words in found for word in words]))
    yield Row(plan, "power: no effect at all: they merely accompany", accompanied, few)
    found = eviction_statuses(rng, icc, 1.0, few, confounded=False)
    wrong = any_of(found, "explain", "rarer", "accompany")
    yield Row(plan, "false claims in a notebook: nothing goes with evictions", wrong, few)
    wrong = any_of(eviction_statuses(rng, icc, EQUIVALENT, few), "accompany")
    yield Row(plan, "false claims in a notebook: odds of 1.5 merely accompany", wrong, few)
    found = eviction_statuses(rng, icc, 4.0, few)
    explained = float(np.mean([word == "explain" for words in found for word in words]))
    yield Row(plan, "power: odds of failing are 4 times with them: explain", explained, few)


def _costs(rng: Rng, icc: float, runs: int) -> Iterator[Row]:
    if icc:  # an engine is one measurement here
        return
    for name, pairs, arms, few in (("quick", 12, 2, runs), ("full", 80, 12, max(10, runs // 8))):
        plan = f"{name}: {arms} sets, {pairs} pairs of engines"
        wrong = cost_claims(rng, 1, pairs, arms, few)[0]
        yield Row(plan, "false claims in a notebook", wrong, few)
        yield Row(plan, "power: 10% slower", cost_claims(rng, 1.1, pairs, arms, few)[1], few)


PROCEDURES: dict[str, Callable[[Rng, float, int], Iterator[Row]]] = {
    "rate, 95% interval": _rates,
    "between concurrencies, permutation": _concurrencies,
    "two settings, one sign-flip test": _pairs,
    "share of the failures, 95% interval": _shares,
    "verdicts on causes": _verdicts,
    "evictions": _evictions,
    "costs": _costs,
}


def main() -> None:
    """Print the table as Markdown."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    only = sys.argv[2] if len(sys.argv) > 2 else ""
    sys.stdout.write(
        "| procedure | plan | ICC | what | measured | of |\n|---|---|---|---|---|---|\n"
    )
    for name, rows in PROCEDURES.items():
        for icc in ICCS if name.startswith(only) else ():
            # Of its own, so that a row is the same whichever others are asked for.
            rng = np.random.default_rng([*name.encode(), round(100 * icc)])
            for row in rows(rng, icc, runs):
                sys.stdout.write(
                    f"| {name} | {row.plan} | {icc:g} | {row.quantity} | {row.value:.1%}"
                    f" | {row.runs} |\n"
                )
                sys.stdout.flush()


if __name__ == "__main__":
    main()
