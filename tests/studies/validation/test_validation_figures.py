"""What the figures of validations draw, from validations whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from synthetic_validations import ALL, CLEAN, FAILED, TOO_FEW

from analysis.studies.validation.figures import COLOURS, validation_figure, validations_figure


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for axes in figure.axes for text in axes.texts)


def test_a_validation_has_a_step_for_every_level_with_its_bound() -> None:
    figure = validation_figure(FAILED)
    axes, _ = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert [name.split("  ")[0] for name in names] == [
        "cache alone", "2 at once", "4 at once", "8 at once", "16 at once", "32 at once"
    ]  # fmt: skip
    assert [name[-1] for name in names] == ["✓", "✓", "✓", "✗", " ", " "]
    ends = [line.get_xdata() for line in axes.lines if line.get_marker() == "|"]
    assert np.ravel(ends) == pytest.approx([level.upper for level in FAILED.results])
    [rate] = [line.get_xdata() for line in axes.lines if line.get_marker() == "o"]
    assert list(rate) == [8 / 32]
    [target] = [line.get_xdata() for line in axes.lines if line.get_linestyle() == "--"]
    assert list(target) == [0.01, 0.01]
    assert "8 of 32 failed (299 needed)" in texts(figure)
    assert "broken rules: seq-len-mismatch" in texts(figure)
    assert "failed" in figure.get_suptitle()
    assert "95%" in axes.get_xlabel()


def test_what_was_refused_and_what_was_lost_is_said() -> None:
    assert "3000 retries; 109 rejected" in texts(validation_figure(TOO_FEW))
    assert "32 pages leaked" in texts(validation_figure(ALL["leaks"]))
    assert "not all there are" in texts(validation_figure(ALL["alone"]))


def test_the_overview_has_a_box_for_every_level_in_the_colour_of_its_verdict() -> None:
    figure = validations_figure([CLEAN, FAILED, ALL["leaks"]])
    [axes] = figure.axes
    boxes = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert len(boxes) == 18
    failed = [box for box in boxes if box.get_facecolor()[:3] == to_rgb(COLOURS["failed"])]
    assert [(round(b.get_x() + 0.46), round(b.get_y() + 0.42)) for b in failed] == [(3, 1), (1, 2)]
    assert "✗\n8/32 R" in [text.get_text() for text in axes.texts]
    assert "✗\n0/32 L" in [text.get_text() for text in axes.texts]


def test_nothing_is_said_to_be_nothing() -> None:
    assert "No validation was run." in [t.get_text() for t in validations_figure([]).texts]


@pytest.mark.parametrize("name", list(ALL))
def test_every_validation_can_be_drawn(name: str) -> None:
    figure = validation_figure(ALL[name])
    figure.draw_without_rendering()
    assert len(figure.axes[0].get_yticks()) == 6
