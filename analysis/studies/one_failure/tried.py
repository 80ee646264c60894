"""Tests whether treatments remove the failures of one setting."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.runs.schema import FAILURES
from analysis.runs.tables import arm_of
from analysis.shortfin.config import PHASES, EngineConfig
from analysis.stats.bounds import holm
from analysis.stats.clustered import Rate, engines_needed, rate
from analysis.stats.paired import Paired, pair, paired, spread

ALPHA = 0.05


@dataclass(frozen=True)
class Tried:
    """One set of treatments against the setting without them, over pairs of engines."""

    treatments: tuple[str, ...]
    """The treatments that were added."""
    pairs: int
    """Pairs of engines that got the same requests."""
    without: Rate
    with_them: Rate
    p_value: float
    """Of the sign-flip test, adjusted by Holm for all sets; NaN without a pair."""
    engines_needed: int | None
    """Approximate pairs of engines that would decide; None if no difference was seen."""

    @property
    def status(self) -> str:
        """`removed`, `fewer` or `more` if significant, else `none failed` or `undecided`."""
        if not self.without.failures and not self.with_them.failures:
            return "none failed"
        if not self.p_value < ALPHA:
            return "undecided"
        if self.with_them.failures >= self.without.failures:
            return "more"
        return "fewer" if self.with_them.failures else "removed"


def tried(requests: pd.DataFrame, trials: pd.DataFrame, had: Sequence[str] = ()) -> list[Tried]:
    """Compare each set of treatments of a sweep with its engines that had only `had`, small first.

    The trials must differ in treatments only. A rejected request counts as failed if no more
    clients send than a batch has rows, because then the engine has a place for each.
    """
    if trials.empty:
        return []
    failures = (*FAILURES, "rejected") if _has_room(trials) else FAILURES
    base = tuple(had)
    arms = sorted({*trials["treatments"].map(arm_of)} - {base}, key=lambda arm: (len(arm), arm))
    found = [paired(pair(requests, trials, base, arm, failures)) for arm in arms]
    adjusted = holm([one.p_value if one.pairs else math.nan for one in found])
    return [
        Tried(
            tuple(name for name in arm if name not in base),
            len(one.engines),
            rate(one.firsts, one.sizes),
            rate(one.seconds, one.sizes),
            p_value,
            _needed(one, len(arms)),
        )
        for arm, one, p_value in zip(arms, found, adjusted, strict=True)
    ]


def _needed(one: Paired, tests: int) -> int | None:
    if not one.net:
        return None
    scatter = spread(one.nets, one.first_failed / len(one.engines))
    return engines_needed(float(np.mean(one.nets)), scatter, tests)


def _has_room(trials: pd.DataFrame) -> bool:
    """Return whether an engine has a row of a batch for each client."""
    rows = []
    for sizes, options in zip(trials["batch_sizes"], trials["options"], strict=True):
        config = EngineConfig(batch_sizes=sizes, options=json.loads(options or "{}"))
        rows.append(min(max(config.batch_sizes_of(phase)) for phase in PHASES))
    return bool((trials["concurrency"] <= rows).all())
