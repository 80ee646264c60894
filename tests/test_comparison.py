"""Two runs are compared setting by setting, by engines, and no more is claimed than that shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pytest
from calibration import failures
from support import NEWEST, REPORTED
from synthetic import request_row, trial_row

from analysis.plots.tables import comparison_table
from analysis.runs.store import to_frame
from analysis.stats.comparison import compare

LEVELS = (1, 2, 4, 8)
Side = tuple[pd.DataFrame, pd.DataFrame]


def make_run(cells: Mapping[tuple[str, str, int], Sequence[Mapping[str, int]]]) -> Side:
    """Return requests and trials: for a setting, how many requests of each engine ended how."""
    trials, requests = [], []
    for (release, sharing, level), engines in cells.items():
        for repeat, counts in enumerate(engines):
            name = f"{release}-{sharing}-{level}-{repeat}"
            trials.append(
                trial_row(trial_id=name, release=release, prefix_sharing=sharing,
                          concurrency=level, repeat=repeat)
            )  # fmt: skip
            ends = [outcome for outcome, count in counts.items() for _ in range(count)]
            requests += [
                request_row(trial_id=name, request_id=f"r{number}", outcome=outcome)
                for number, outcome in enumerate(ends)
            ]
    return to_frame("requests", requests), to_frame("trials", trials)


def run_of(rate: float, release: str = REPORTED, *, seed: int, icc: float = 0.0) -> Side:
    """Return a run of eight engines at each concurrency, without and with the trie."""
    rng = np.random.default_rng(seed)
    cells = {}
    for sharing in ("none", "trie"):
        for level in LEVELS:
            failed = failures(rng, rate, icc, 4 * level, 8)
            cells[release, sharing, level] = [
                {"ok": 4 * level - int(one), "wrong": int(one)} for one in failed
            ]
    return make_run(cells)


def test_runs_of_two_releases_are_compared_by_the_settings_that_both_have() -> None:
    found = compare(run_of(0.4, seed=0), run_of(0.0, NEWEST, seed=1))
    assert found.differing == {"release": (REPORTED, NEWEST)}
    assert found.left_out == 0
    assert list(zip(found.rows["prefix_sharing"], found.rows["concurrency"], strict=True)) == [
        (sharing, level) for sharing in ("none", "trie") for level in LEVELS
    ]
    assert set(found.rows["verdict"]) == {"fewer fail"}
    assert (found.rows["p_value"] < 0.05).all()
    shown = repr(comparison_table(found))
    assert f"shortfin {REPORTED} against shortfin {NEWEST}." in shown


def test_what_only_one_run_has_is_counted_and_rejections_are_in_the_verdict() -> None:
    first = make_run(
        {(REPORTED, "none", 4): [{"wrong": 4}] * 8, (REPORTED, "none", 8): [{"ok": 8}]}
    )
    second = make_run({(REPORTED, "none", 4): [{"ok": 2, "rejected": 2}] * 8})
    found = compare(first, second)
    assert found.differing == {}
    assert found.left_out == 1
    assert list(found.rows["verdict"]) == ["fewer fail, more are rejected"]
    found = compare(second, first)
    assert list(found.rows["verdict"]) == ["more fail, fewer are rejected"]


def test_few_engines_decide_nothing() -> None:
    one = make_run({(REPORTED, "none", 4): [{"wrong": 4}]})
    other = make_run({(REPORTED, "none", 4): [{"ok": 4}]})
    (row,) = compare(one, other).rows.to_dict("records")
    assert math.isnan(row["p_value"])
    assert row["verdict"] == "undecided: fewer than two engines"
    few = [make_run({(REPORTED, "none", 4): [cell] * 3}) for cell in ({"wrong": 4}, {"ok": 4})]
    (row,) = compare(*few).rows.to_dict("records")
    assert row["verdict"].startswith("undecided: about ")


@pytest.mark.parametrize("icc", [0.0, 0.2])
def test_equal_runs_are_seldom_told_apart(icc: float) -> None:
    claimed = 0
    for seed in range(60):
        rows = compare(
            run_of(0.3, seed=2 * seed, icc=icc), run_of(0.3, seed=2 * seed + 1, icc=icc)
        ).rows
        claimed += (rows["p_value"] < 0.05).any()
    assert claimed <= 8  # a share of 5% has more in 1 of 300 tests
