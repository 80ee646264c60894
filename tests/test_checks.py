"""Two checks of the same answers: the beginning, as in the report, and all tokens."""

from __future__ import annotations

import pandas as pd
from synthetic import request_row

from analysis.runs.store import to_frame
from analysis.stats.checks import BEGINS, EXACT, by_check


def outcomes(check: str, *changes: dict[str, object]) -> list[str]:
    rows = [request_row(request_id=str(n), **change) for n, change in enumerate(changes)]
    return list(by_check(to_frame("requests", rows), check)["outcome"])


RIGHT = {"outcome": "ok"}
LATE = {"outcome": "wrong", "text": "6 7 8 10 1", "first_divergence": 3}
EARLY = {"outcome": "wrong", "text": "6 7 9", "first_divergence": 2}
UNSEEN = {"outcome": "ok", "expected_text": "6 7 8", "text": "6 7 8 10 1", "first_divergence": 3}
"""What the reported test takes for right."""


def test_the_reports_check_reads_five_characters_and_exact_equality_all() -> None:
    answers = (RIGHT, LATE, EARLY, UNSEEN)
    assert outcomes(BEGINS, *answers) == ["ok", "ok", "wrong", "ok"]
    assert outcomes(EXACT, *answers) == ["ok", "wrong", "wrong", "wrong"]


def test_requests_without_an_answer_fail_both_checks() -> None:
    ended = [{"outcome": outcome, "first_divergence": 2, "text": "6 7 8"}
             for outcome in ("timeout", "engine_died", "empty", "error", "rejected")]  # fmt: skip
    for check in (BEGINS, EXACT):
        assert outcomes(check, *ended) == [row["outcome"] for row in ended]


def test_what_is_not_known_is_not_checked() -> None:
    unknown = {"outcome": "wrong", "expected_text": None, "reference_tokens": None,
               "first_divergence": None}  # fmt: skip
    for check in (BEGINS, EXACT):
        assert outcomes(check, unknown, {**unknown, "outcome": "ok"}) == ["wrong", "ok"]
    assert by_check(to_frame("requests", []), EXACT).empty


def test_what_is_checked_is_not_changed() -> None:
    frame = to_frame("requests", [request_row(**UNSEEN)])
    before = frame.copy()
    by_check(frame, EXACT)
    pd.testing.assert_frame_equal(frame, before)
