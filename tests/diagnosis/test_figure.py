"""What the figure of an explanation shows, from runs of known truth."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from traces import short_pool, wrong_page

from analysis import explain
from analysis.diagnosis.figure import explanation_figure
from analysis.shortfin.releases import reported


def words_of(figure):
    axes = figure.axes
    titles = [a.get_title(loc="left") for a in axes]
    ticks = [label.get_text() for a in axes for label in a.get_yticklabels()]
    legends = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return [*titles, *ticks, *legends, *(text.get_text() for a in axes for text in a.texts)]


def test_a_wrong_answer_has_lanes_pages_and_probabilities():
    found = explain(wrong_page(), "a", reference=False)
    figure = explanation_figure(found)
    lanes, pages, chances = figure.axes
    words = words_of(figure)
    assert "a, wrong" in words
    assert "b, ok" in words
    assert "wrong-kv-read (cross-request)" in words
    assert "token 2 is wrong" in words
    assert [label.get_text() for label in pages.get_yticklabels()] == ["3", "1", "2"]
    assert "“u” (given): 60.7%" in words
    assert "“g” (right): 22.3%" in words
    assert "not known" in words  # the reference was not asked
    assert lanes.get_xlim() == pages.get_xlim()
    low, high = lanes.get_xlim()
    assert low < found.begin < found.end < high
    # The finding and the wrong token are marked where they were, through both panels.
    marked = {line.get_xdata()[0] for line in pages.lines if line.get_linestyle() == "--"}
    assert marked == {found.finding.seq, found.divergence.seq}
    [wide] = [bar.get_width() for bar in chances.patches if bar.get_width() > 50]
    assert wide == pytest.approx(60.65, abs=0.01)
    figure.savefig(io.BytesIO(), format="png")


def test_the_heading_of_a_trial_with_many_treatments_is_not_cut_off():
    found = explain(wrong_page(), "a", reference=False)
    named = replace(
        found, trial_id=f"{reported()}-none-p256-c2-r0-{'-'.join(['keep-decode-record'] * 8)}"
    )
    figure = explanation_figure(named)
    figure.canvas.draw()
    assert figure._suptitle.get_window_extent().x1 <= figure.bbox.x1


def test_without_a_wrong_token_the_pool_is_drawn():
    figure = explanation_figure(explain(short_pool("engine_died"), "c", reference=False))
    words = words_of(figure)
    assert "worker died" in words
    assert "too few pages" in words
    pool = figure.axes[-1]
    assert "the pool" in pool.get_title(loc="left")
    legend = [text.get_text() for text in pool.get_legend().get_texts()]
    assert legend == ["free, 1 at the end", "cached, 0 at the end", "live, 2 at the end",
                      "leaked, 5 at the end"]  # fmt: skip
    figure.savefig(io.BytesIO(), format="png")


def test_a_missing_recording_is_reported():
    run = short_pool()
    empty = {name: getattr(run, name).iloc[:0] for name in ("events", "invocations", "snapshots")}
    figure = explanation_figure(explain(type(run)(**{**vars(run), **empty}), "c", reference=False))
    assert "has no recording" in figure.texts[0].get_text()
