"""Soak: trends and words of known truth, and real engines for a moment."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import NEWEST, RELEASES, REPORTED, has

from analysis.core.errors import EngineError
from analysis.studies.validation.figures import soak_figure
from analysis.studies.validation.soak import COLUMNS, Soak, soak
from analysis.studies.validation.words import soak_in_words
from analysis.sweep.plan import PlanError

MIB = 2**20


def iterations(level: int, count: int, **columns: Any) -> list[dict[str, Any]]:
    """Rows of one level; a column that can be called is given the iteration."""
    plain: dict[str, Any] = {
        "seconds": 0.5, "requests": level, "failed": 0, "rejected": 0, "retries": 0,
        "latency_p50": 0.2, "latency_max": 0.3, "rss_bytes": 300 * MIB, "free": 200, "cached": 56,
        "leaked": 0,
    }  # fmt: skip
    columns = {**plain, **columns}
    return [
        {"level": level, "iteration": i, "t_s": 0.5 * i,
         **{k: v(i) if callable(v) else v for k, v in columns.items()}}
        for i in range(count)
    ]  # fmt: skip


def rows_of(text: str) -> list[dict[str, str]]:
    """Return the rows of the Markdown table in a text."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    head, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    return [dict(zip(head, row, strict=True)) for row in rows]


def made(*rows: list[dict[str, Any]], endings: dict[int, str | None] | None = None) -> Soak:
    frame = pd.DataFrame([row for part in rows for row in part], columns=list(COLUMNS))
    levels = dict.fromkeys(frame["level"].unique())
    return Soak(NEWEST, "none", (), 60, frame, {**levels, **(endings or {})})


def trend(result: Soak, measure: str, level: int = 4) -> Any:
    rows = result.trends()
    return rows[(rows["level"] == level) & (rows["measure"] == measure)].iloc[0]


def test_a_leak_is_a_trend_and_warming_up_is_none() -> None:
    result = made(
        iterations(4, 20, leaked=lambda i: 4 * i, rss_bytes=lambda i: (300 + min(i, 4)) * MIB),
        iterations(8, 20),
    )
    leaked = trend(result, "leaked")
    assert (leaked["slope"], leaked["low"], leaked["high"], leaked["n"]) == (4, 4, 4, 15)
    assert trend(result, "rss_bytes")["slope"] == 0
    assert trend(result, "leaked", 8)["slope"] == 0
    text = soak_in_words(result)
    first, second = rows_of(text)
    assert first["trend of leaked pages"] == "+4 (+4 to +4 pages)"
    assert first["leaked at the end"] == "76"
    for row in (first, second):
        assert row["trend of resident memory"] == "none (+0 to +0 MiB)"


@given(
    st.floats(-5, 5, allow_subnormal=False), st.integers(8, 30), st.randoms(use_true_random=False)
)
@settings(max_examples=40)
def test_the_trend_finds_the_slope_and_no_jump_moves_it_much(
    slope: float, count: int, random: Any
) -> None:
    jump = random.randrange(count)
    result = made(
        iterations(
            4, count, leaked=lambda i: slope * i, latency_p50=lambda i: 9.0 if i == jump else 1
        )
    )
    found = trend(result, "leaked")
    assert found["low"] <= found["slope"] <= found["high"]
    assert found["slope"] == pytest.approx(slope, abs=1e-9)
    assert trend(result, "latency_p50")["slope"] == pytest.approx(0)


def test_large_slopes_are_said_as_whole_numbers() -> None:
    text = soak_in_words(made(iterations(4, 20, latency_p50=lambda i: 0.2 + 0.29 * i)))
    assert rows_of(text)[0]["trend of median latency"] == "+290 (+290 to +290 ms)"


def test_too_few_iterations_have_no_trend() -> None:
    result = made(iterations(4, 6))
    assert trend(result, "leaked")["n"] == 4
    assert pd.isna(trend(result, "leaked")["slope"])
    assert rows_of(soak_in_words(result))[0]["trend of leaked pages"] == "too few iterations"


def test_the_words_count_what_was_taken_and_say_how_it_ended() -> None:
    result = made(
        iterations(4, 10, failed=lambda i: int(i == 9), rejected=lambda i: int(i < 2), retries=3),
        endings={4: "The engine died: no page.", 8: "No request was answered any more."},
    )
    text = soak_in_words(result)
    first, second = rows_of(text)
    assert (first["iterations"], first["failed"]) == ("10", "1 of 38 (0.47% to 13%)")
    assert (first["rejected"], first["retries"]) == ("2", "30")
    assert first["ended early"] == "The engine died: no page."
    assert (second["level"], second["iterations"]) == ("8 at once", "0")
    assert second["ended early"] == "No request was answered any more."


def test_the_figure_has_a_line_for_each_level_and_a_cross_for_each_failure() -> None:
    result = made(
        iterations(4, 10, leaked=lambda i: 4 * i),
        iterations(8, 5, failed=lambda i: int(i == 3), latency_p50=float("nan")),
    )
    figure = soak_figure(result.frame, result.name)
    latency, memory, leaked = figure.axes
    assert list(leaked.lines[0].get_ydata()) == [4 * i for i in range(10)]
    assert len(memory.lines) == 2
    [cross] = [line for line in latency.lines if line.get_marker() == "x" and len(line.get_xdata())]
    assert list(cross.get_xdata()) == [1.5]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == [
        "4 at once", "8 at once", "a request failed"
    ]  # fmt: skip
    assert "No iteration" in soak_figure(result.frame.iloc[:0]).texts[0].get_text()


@pytest.mark.parametrize("release", RELEASES)
def test_a_real_engine_under_stress(release: str) -> None:
    # Many pages, because some releases lose one with each request.
    result = soak("none", (), (4,), 10.0, release=release, pages=4096)
    assert result.endings == {4: None}
    frame = result.frame
    assert list(frame["iteration"]) == list(range(len(frame)))
    assert len(frame) >= 2
    assert (frame["requests"] == 4).all()
    assert (frame["rss_bytes"] > 50 * MIB).all()
    assert (frame["free"] + frame["cached"] + frame["leaked"] == 4096).all()
    if not has(release, "records"):
        assert (frame["leaked"] == 0).all()
    else:  # every request's last page is given up and never freed
        assert (frame["failed"] == 0).all()
        assert list(frame["leaked"]) == [4 * (i + 1) for i in frame["iteration"]]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(EngineError, match="more than 0 seconds"):
        soak(budget_s=0, release=REPORTED)
    with pytest.raises(PlanError, match="Unknown treatment 'nonsense'"):
        soak(treatments=("nonsense",), release=REPORTED)
