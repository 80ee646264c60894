"""The content of each figure; a person reviews its looks."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from support import NEWEST, REPORTED
from synthetic import make_run, reported_pattern

from analysis import plots as figures
from analysis.jupyter import show
from analysis.plots import style
from analysis.plots.outcomes import STACK
from analysis.runs.store import OUTCOMES, Run
from analysis.stats.bounds import wilson
from analysis.studies.evictions.figures import evictions_figure

ALL = [
    figures.failure_rate, figures.failure_rate_by_check, figures.outcomes, figures.latency,
]  # fmt: skip
LEVELS = [1, 2, 4, 8]


def labels(axes: Axes) -> list[str]:
    return [tick.get_text() for tick in axes.get_xticklabels()]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def one(**changes: object) -> Run:
    kinds = {(REPORTED, "none", 1): {"ok": 12}, (REPORTED, "none", 4): {"ok": 9, "wrong": 3}}
    return make_run(kinds, **changes)


def test_failure_rate_draws_rates_with_their_intervals() -> None:
    run = reported_pattern()
    figure = figures.failure_rate(run.requests, run.trials)
    [axes] = figure.axes
    assert len(axes.containers) == 3
    line, _, [bars] = axes.containers[0].lines
    assert list(line.get_ydata()) == pytest.approx([0, 0, 0.25, 36 / 96])
    for segment, (k, n) in zip(
        bars.get_segments(), [(0, 24), (0, 24), (12, 48), (36, 96)], strict=True
    ):
        assert segment[:, 1] == pytest.approx(wilson(k, n), abs=1e-12)
    # Beside its tick, so that intervals of different series do not hide each other.
    assert np.log2(np.asarray(line.get_xdata(), dtype=float)) == pytest.approx(
        np.log2(LEVELS) - 0.14
    )
    assert axes.get_xscale() == "log"
    assert list(axes.get_xticks()) == LEVELS
    assert labels(axes) == ["1\nn = 24", "2\nn = 24", "4\nn = 48", "8\nn = 48 to 96"]
    assert axes.get_ylim()[0] < 0 < 1 < axes.get_ylim()[1]
    assert "48 rejected requests are not counted" in " ".join(axes.get_xlabel().split())
    assert "by request only" in axes.get_ylabel()
    assert legend(figure) == [
        f"shortfin {REPORTED}, prefix sharing none",
        f"shortfin {REPORTED}, prefix sharing trie",
        f"shortfin {NEWEST}, prefix sharing none",
    ]


def test_both_checks_stand_side_by_side() -> None:
    run = one()  # wrong answers of it begin right
    both = figures.failure_rate_by_check(run.requests, run.trials)
    begins, exact = both.axes
    assert begins.get_title(loc="left").startswith("The report's check")
    assert exact.get_title(loc="left").startswith("Exact equality")
    drawn = [list(axes.containers[0].lines[0].get_ydata()) for axes in (begins, exact)]
    assert drawn == [[0, 0], [0, 0.25]]
    assert begins.get_ylim() == exact.get_ylim()
    assert legend(both) == [f"shortfin {REPORTED}, prefix sharing none"]
    early = run.requests["text"].where(run.requests["outcome"] != "wrong", "6 9")
    begins, exact = figures.failure_rate_by_check(run.requests.assign(text=early), run.trials).axes
    assert list(begins.containers[0].lines[0].get_ydata()) == [0, 0.25]
    assert list(exact.containers[0].lines[0].get_ydata()) == [0, 0.25]


def test_failure_rate_leaves_out_what_was_never_accepted() -> None:
    run = make_run({(NEWEST, "none", 4): {"ok": 8}, (NEWEST, "none", 8): {"rejected": 8}})
    [axes] = figures.failure_rate(run.requests, run.trials).axes
    assert list(axes.get_xticks()) == [4]


def test_series_differ_by_whatever_differs_between_trials() -> None:
    small, large = one(page_count=24), one(page_count=256)
    large.trials["trial_id"] += "-large"
    large.requests["trial_id"] += "-large"
    trials = pd.concat([small.trials, large.trials], ignore_index=True)
    requests = pd.concat([small.requests, large.requests], ignore_index=True)
    assert [text.split(", ")[-1] for text in legend(figures.failure_rate(requests, trials))] == [
        "24 pages",
        "256 pages",
    ]


def test_outcomes_stack_to_the_whole() -> None:
    run = reported_pattern()
    figure = figures.outcomes(run.requests, run.trials)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert len(panels) == 3
    for axes in panels:
        tops: dict[float, float] = {}
        for bar in axes.patches:
            assert bar.get_height() > 0
            tops[bar.get_x()] = max(tops.get(bar.get_x(), 0), bar.get_y() + bar.get_height())
        assert list(tops.values()) == pytest.approx([1, 1, 1, 1])
        assert axes.get_ylim()[0] == 0
    [rejected] = [bar for bar in panels[2].patches if bar.get_hatch()]
    assert (rejected.get_y(), rejected.get_height()) == (0.5, 0.5)
    assert "48" in [text.get_text() for text in panels[2].texts]
    assert labels(panels[0]) == ["1\nn = 24", "2\nn = 24", "4\nn = 48", "8\nn = 96"]


def test_outcomes_that_never_occurred_are_not_in_the_legend() -> None:
    run = one()
    late = legend(figures.outcomes(run.requests, run.trials))
    assert late == ["ok", "wrong later (only exact equality)"]
    early = run.requests.assign(text="9")
    assert legend(figures.outcomes(early, run.trials)) == [
        "ok", "wrong within 5 characters (both checks)",
    ]  # fmt: skip


def test_wrong_answers_are_split_by_what_each_check_sees() -> None:
    run = make_run({(REPORTED, "none", 4): {"ok": 4, "wrong": 8}})
    early = run.requests["request_id"].isin(["r4", "r5", "r6"])
    requests = run.requests.assign(text=run.requests["text"].mask(early, "9"))
    [axes] = figures.outcomes(requests, run.trials).axes
    assert [text.get_text() for text in axes.texts] == ["3", "5", "4"]
    assert sum(bar.get_height() for bar in axes.patches) == pytest.approx(1)


def test_a_missing_level_is_said_to_be_missing() -> None:
    kinds = {(REPORTED, "none", 1): {"ok": 4}, (REPORTED, "trie", 1): {"ok": 4}}
    run = make_run({**kinds, (REPORTED, "none", 4): {"ok": 4}})
    panels = figures.outcomes(run.requests, run.trials).axes
    assert labels(panels[1]) == ["1\nn = 4", "4\nnot run"]


def test_every_outcome_has_a_place_and_a_look_of_its_own() -> None:
    assert set(STACK) == {*OUTCOMES, "wrong_later"}
    assert len({*style.OUTCOME_COLOURS.values(), style.WRONG_LATER}) == len(OUTCOMES) + 1


def test_latency_draws_the_median_and_the_tail() -> None:
    run = one()
    figure = figures.latency(run.requests, run.trials)
    whole, first = figure.axes
    joined = run.requests.merge(run.trials[["trial_id", "concurrency"]], on="trial_id")
    for axes, column in ((whole, "latency_s"), (first, "ttft_s")):
        groups = joined.groupby("concurrency")[column]
        tail, median = axes.lines
        assert list(median.get_ydata()) == pytest.approx(list(groups.median()))
        assert list(tail.get_ydata()) == pytest.approx(list(groups.quantile(0.99)))
        assert axes.get_yscale() == "log"
        assert "(s)" in axes.get_ylabel()
        low, high = axes.get_ylim()
        assert low < joined[column].min() < joined[column].max() < high
    assert labels(whole) == ["1\nn = 12", "4\nn = 12"]


def test_latency_without_first_tokens_says_so() -> None:
    run = one()
    figure = figures.latency(run.requests.assign(ttft_s=float("nan")), run.trials)
    assert [text.get_text() for text in figure.axes[1].texts] == ["not recorded"]


@pytest.mark.parametrize("draw", ALL)
def test_nothing_is_said_in_words(draw: Callable[[pd.DataFrame, pd.DataFrame], Figure]) -> None:
    run = make_run({})
    figure = draw(run.requests, run.trials)
    assert not figure.axes
    assert figure.texts[0].get_text().startswith("No request")


def _is_heading(artist: Artist) -> bool:
    """Return whether something is the heading of a figure or a part of one, and says something."""
    figure = artist.figure
    return isinstance(artist, Text) and bool(artist.get_text()) and artist is figure._suptitle


def many_pools() -> Run:
    """Return a run whose engines have pools of several sizes, some of which refuse requests."""
    kinds = {
        (NEWEST, sharing, level): {"ok": 12, "rejected": 12 * (level > 4)}
        for sharing in ("none", "trie")
        for level in (4, 8, 16)
    }
    runs = [make_run(kinds, page_count=pages) for pages in (40, 64, 256)]
    for number, run in enumerate(runs):
        run.trials["trial_id"] += f"-{number}"
        run.requests["trial_id"] += f"-{number}"
        run.requests[["evictions_during", "cached_tokens"]] = 0
    trials = pd.concat([run.trials for run in runs], ignore_index=True)
    requests = pd.concat([run.requests for run in runs], ignore_index=True)
    return replace(runs[0], trials=trials, requests=requests)


def long_names() -> Run:
    """Return a run with an untreated arm and one of many treatments, on two releases."""
    kinds = {(r, s, n): {"ok": 9, "wrong": 3}
             for r in (REPORTED, NEWEST) for s in ("none", "trie") for n in (1, 8)}  # fmt: skip
    bare, treated = make_run(kinds), make_run(kinds)
    names = tuple(f"a-treatment-with-a-long-name-{number}" for number in range(8))
    for run, treatments in ((bare, ()), (treated, names)):
        run.trials["treatments"] = [treatments] * len(run.trials)
        run.trials["trial_id"] += f"-{len(treatments)}"
        run.requests["trial_id"] += f"-{len(treatments)}"
        run.requests[["evictions_during", "cached_tokens"]] = 0
    trials = pd.concat([bare.trials, treated.trials], ignore_index=True)
    requests = pd.concat([bare.requests, treated.requests], ignore_index=True)
    return replace(bare, trials=trials, requests=requests)


def test_a_long_legend_is_wrapped_and_does_not_stretch_the_picture() -> None:
    run, short = long_names(), one()
    figure = figures.failure_rate(run.requests, run.trials)
    usual = figures.failure_rate(short.requests, short.trials)
    assert figure.get_figwidth() == usual.get_figwidth()
    [drawn] = figure.legends
    assert all("\n" in text for text in legend(figure) if "long-name" in text)
    assert drawn.get_window_extent().width <= figure.bbox.width
    # There is still room for the axes.
    figure.canvas.draw()
    height = figure.axes[0].get_window_extent().height
    assert height > 0.5 * usual.axes[0].get_window_extent().height
    looks = {(line.get_color(), line.get_marker()) for line, *_ in figure.axes[0].containers}
    assert len(looks) == 8


def test_series_stay_closer_to_their_tick_than_to_the_next() -> None:
    for count in (1, 2, 3, 8, 20):
        places = [np.log2(style.dodge(index, count)) for index in range(count)]
        assert places == sorted(places)
        assert max(map(abs, places)) < 0.5


@pytest.mark.parametrize("made", [reported_pattern, many_pools, long_names])
@pytest.mark.parametrize("draw", [*ALL, figures.hit_rate, evictions_figure])
def test_nothing_is_clipped_and_no_texts_overlap(
    draw: Callable[[pd.DataFrame, pd.DataFrame], Figure], made: Callable[[], Run]
) -> None:
    run = made()
    figure = draw(run.requests, run.trials)
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    page = figure.bbox
    boxes = []
    for axes in figure.axes:
        if axes.get_visible():
            titles = (axes.title, axes._left_title)  # type: ignore[attr-defined]
            texts = [*titles, axes.xaxis.label, axes.yaxis.label]
            for axis in (axes.xaxis, axes.yaxis):
                low, high = sorted(axis.get_view_interval())
                # Ticks beyond the limits exist, but are not drawn.
                texts += [
                    tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high
                ]
            shown = [text for text in texts if text.get_text() and text.get_visible()]
            boxes += [text.get_window_extent(renderer) for text in shown]
    boxes += [text.get_window_extent(renderer) for text in figure.findobj(_is_heading)]
    boxes += [legend.get_window_extent(renderer) for legend in figure.legends]
    for box in boxes:
        assert box.x0 >= page.x0 - 1
        assert box.x1 <= page.x1 + 1
        assert box.y0 >= page.y0 - 1
        assert box.y1 <= page.y1 + 1
    for index, box in enumerate(boxes):
        assert not any(
            box.overlaps(other) for other in boxes[index + 1 :] if box.bounds != other.bounds
        )


def test_a_figure_is_shown_as_an_image_with_words() -> None:
    run = one()
    image = show(figures.failure_rate(run.requests, run.trials), alt="a chart")
    assert image.data.startswith(b"\x89PNG")
    assert io.BytesIO(image.data).getbuffer().nbytes > 5000
    assert image.alt == "a chart"
