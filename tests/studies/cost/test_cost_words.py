"""Sentences on costs follow from the data, and advise only what the data allow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import pytest
from support import REPORTED
from synthetic_cost import cost_run

from analysis.runs.store import to_frame
from analysis.studies.cost.locking import LockCost
from analysis.studies.cost.measures import ALL, measure, measure_cache
from analysis.studies.cost.words import answer_in_a_sentence, cost_in_words

LOCK, FIX = "lock-cache", "copy-tokens"


def measures(factors: Mapping[str, float], **options: Any) -> pd.DataFrame:
    return measure(*cost_run({"untreated": 1.0, **factors}, **options))


def rows_of(text: str) -> dict[tuple[str, str], tuple[str, str]]:
    """Return the rows of the table by treatment and measure: comparison and verdict."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return {(row[0], row[1]): (row[2], row[3]) for row in cells[2:]}


def lock_figures(added_ns: float = 400.0, sharing: str = "trie") -> LockCost:
    rows = [
        {"operation": "look a prefix up", "threads": threads, "blocks": 10, "locks": 1,
         "added_ns": added_ns * scale, "low": 0.9 * added_ns * scale, "high": added_ns * scale}
        for threads, scale in ((1, 1), (8, 5))
    ]  # fmt: skip
    turns = {"blocks": 10.0, "ratio": 1.0, "low": 0.98, "high": 1.02}
    return LockCost(REPORTED, sharing, 50.0, 0.1, pd.DataFrame(rows), turns)


def test_fixes_that_cost_nothing_are_recommended() -> None:
    output = answer_in_a_sentence(measures({LOCK: 1.0, ALL: 1.0}))
    assert output.startswith("Prefix sharing trie: apply all fixes, which cost at most 5%")
    assert output.endswith(".")
    words = cost_in_words(measures({LOCK: 1.0, ALL: 1.0}))
    assert "Apply all fixes, which cost at most 5%" in words
    rows = rows_of(words)
    assert rows[LOCK, "whole answer"][1] == "no difference shown"
    assert {(ALL, "time to first token"), (ALL, "throughput"), (ALL, "resident memory")} <= set(
        rows
    )


def test_fixes_that_cost_much_are_called_dear_and_the_dearest_is_named() -> None:
    data = measures({LOCK: 1.0, FIX: 1.15, "true-leaves": 1.0, ALL: 1.2})
    output = answer_in_a_sentence(data)
    assert "all fixes cost more than 5% of the time" in output
    assert f"optimise {FIX} first" in output
    rows = rows_of(cost_in_words(data))
    assert rows[FIX, "whole answer"][0].startswith("1.1")
    assert {arm: rows[arm, "whole answer"][1] for arm in (ALL, FIX, LOCK, "true-leaves")} == {
        ALL: "costs",
        FIX: "costs",
        LOCK: "no difference shown",
        "true-leaves": "no difference shown",
    }


def test_what_is_not_settled_is_called_so_with_what_would_settle_it() -> None:
    data = measures({LOCK: 1.0, ALL: 1.0}, noise=0.15)
    assert "it is undecided" in answer_in_a_sentence(data)
    assert "pairs of engines would decide it" in answer_in_a_sentence(data)
    assert "pairs of engines would decide it" in cost_in_words(data)


@pytest.mark.parametrize("factors", [{LOCK: 1.0, ALL: 1.3}, {LOCK: 1.0}])
def test_too_few_trials_allow_no_advice(factors: dict[str, float]) -> None:
    data = measures(factors, repeats=1)
    assert "too few trials" in answer_in_a_sentence(data)
    assert "more than" not in answer_in_a_sentence(data)
    words = cost_in_words(data)
    assert "nan" not in words
    assert {verdict for _, verdict in rows_of(words).values()} == {"too few trials"}


def test_what_was_left_out_wrong_or_refused_is_said() -> None:
    outcomes = {("untreated", 0): ("ok", "engine_died"), ("untreated", 1): ("wrong", "rejected")}
    words = cost_in_words(measures({LOCK: 1.0, ALL: 1.0}, outcomes=outcomes))
    assert "4 pairs had a request without an answer on one side and are left out" in words
    # Of 12 clients at both concurrencies, every second one in repeat 1.
    assert "Untreated, 6 of " in words
    assert "with all fixes 0 of 144" in words
    assert "6 of 432 requests were rejected" in words


def test_memory_and_hits_are_told() -> None:
    run = {"untreated": 1.0, LOCK: 1.0, ALL: 1.0}
    requests, trials = cost_run(
        run, memory={ALL: 1.25}, hits={"untreated": 12, LOCK: 12, ALL: 9}
    )  # fmt: skip
    seen = measure_cache(requests, trials, to_frame("events", []))
    words = cost_in_words(measure(requests, trials), seen)
    rows = rows_of(words)
    assert rows[ALL, "resident memory"] == ("1.250 (1.250 to 1.250)", "costs")
    hits = rows[ALL, "prompt tokens found cached"]
    assert hits == ("-10.0 percentage points (-10.0 to -10.0)", "costs")
    sentence = answer_in_a_sentence(measure(requests, trials), seen)
    assert "changes by -10.0 percentage points (-10.0 to -10.0), more than chance" in sentence


def test_the_lock_is_told_with_its_share_of_a_request() -> None:
    data, lock = measures({LOCK: 1.0, ALL: 1.0}), lock_figures()
    output = answer_in_a_sentence(data, locks=[lock])
    # 50 times 400 ns are 20 us, which are 0.02% of 100 ms.
    assert (
        "a lock around the cache adds at most 20 us to a request, by the most expensive" in output
    )
    words = cost_in_words(data, None, [lock])
    assert "takes the cache's lock 50 times" in words
    added = {name: text for (arm, name), (text, _) in rows_of(words).items() if arm == "the lock"}
    assert added == {
        "added to a request, without contention": "at most 20 us of 100 ms (0.02%)",
        "added to a request, 8 threads that call without pause": "at most 100 us of 100 ms (0.1%)",
        "whole answer, one engine in turns, 10 blocks": "1.00 (0.98 to 1.02)",
    }
    other = lock_figures(sharing="none")
    assert "a lock" not in answer_in_a_sentence(data, locks=[other])


def test_no_bound_of_the_lock_is_given_where_blocks_are_too_few() -> None:
    data, lock = measures({LOCK: 1.0, ALL: 1.0}), lock_figures(float("nan"))
    texts = answer_in_a_sentence(data, locks=[lock]), cost_in_words(data, None, [lock])
    assert all("too few blocks to bound" in text and "nan" not in text for text in texts)


def test_settings_are_told_apart() -> None:
    runs = [cost_run({"untreated": 1.0, ALL: f}, sharing=s) for s, f in (("none", 1), ("trie", 2))]
    data = pd.concat([measure(*run) for run in runs])
    words = cost_in_words(data).split("\n\n")
    assert [text.split(".**")[0] for text in words[::3]] == [
        f"**shortfin {REPORTED}, prefix sharing none",
        f"**shortfin {REPORTED}, prefix sharing trie",
    ]
    first, second = answer_in_a_sentence(data).split("; prefix sharing trie: ")
    assert "apply all fixes" in first
    assert "cost more than 5%" in second


def test_nothing_measured_is_said() -> None:
    nothing = measures({ALL: 1.0}).head(0)
    assert cost_in_words(nothing) == "No trial was measured."
    assert answer_in_a_sentence(nothing) == "No trial was measured."
