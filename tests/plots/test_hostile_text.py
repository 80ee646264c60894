"""Every figure and table that shows ids or texts of users shows them as they are.

No dollar sign begins mathematics, nothing is obeyed, and nothing of it is missing from the font:
a warning of matplotlib fails a test.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.cbook import is_math_text
from matplotlib.figure import Figure
from matplotlib.text import Text
from synthetic import request_row, trial_row
from trace_builder import strayed as strayed_story

from analysis import plots as figures
from analysis.core.wording import plain
from analysis.diagnosis import explain
from analysis.diagnosis.figure import explanation_figure
from analysis.diagnosis.finding_figure import finding_figure
from analysis.jupyter import html_of
from analysis.plots.style import LEAST, words
from analysis.runs.store import RunWriter, load_run
from analysis.runs.tables import to_frame
from analysis.sanitizer import check_run
from analysis.snapshots.snapshot import CacheState, Node, Snapshot

HOSTILE = ("$a$", "_{x}^", r"\frac", "<b>", "\U0001f4a5", "\x1b[31m", "$\\frac{", "\u202e\ud7ff")


def drawn(figure: Figure) -> str:
    """Draw a figure; return all its text as a reader sees it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(io.BytesIO(), format="png", dpi=20)
    seen = []
    for text in figure.findobj(Text):
        output, parsed = text.get_text(), text.get_parse_math()
        if output and not output.startswith(r"$\mathdefault"):  # matplotlib's own ticks
            assert not (parsed and is_math_text(output)), output
            assert re.sub(r"\n", "", output).isprintable(), output
            assert text.get_fontsize() >= LEAST, output
            seen.append(output.replace(r"\$", "$") if parsed else output)
    return " | ".join(seen)


def events(name: str) -> pd.DataFrame:
    rows = [("pages_held", name), ("pages_dropped", name), ("pages_held", name)]
    return to_frame("events", [
        {"seq": seq, "trial_id": "c", "t_s": 0.0, "kind": kind, "request_id": who, "pages": [3]}
        for seq, (kind, who) in enumerate(rows, 1)
    ])  # fmt: skip


def invocations(name: str) -> pd.DataFrame:
    return to_frame("invocations", [{
        "invocation_id": 0, "trial_id": "c", "phase": "decode", "rows": 1, "batch_size": 4,
        "request_ids": [name], "seq": 1, "end_seq": 2, "t_s": 0.0, "duration_s": 0.1,
    }])  # fmt: skip


def snapshot(name: str) -> Snapshot:
    nodes = (Node(0, None, None, (), 0, False), Node(1, 0, 3, (1, 2), 1, True))
    return Snapshot(CacheState(8, (5, 6), {name: (3, 4)}, nodes), request_id=name, moment="before")


def series(name: str) -> Figure:
    """Draw failure rates of two workloads; a workload file has a name of its user's choice."""
    trials = [trial_row(trial_id=f"c{n}", workload=w) for n, w in enumerate(("mixed", name))]
    requests = [request_row(trial_id=f"c{n}", request_id="r") for n in range(2)]
    return figures.failure_rate(to_frame("requests", requests), to_frame("trials", trials))


DRAW: dict[str, Any] = {
    "page_lifetimes": lambda name: figures.page_lifetimes(events(name)),
    "invocations": lambda name: figures.invocations(invocations(name)),
    "trie": lambda name: figures.trie(snapshot("r"), decode=lambda ids: name),
    "tries": lambda name: figures.tries(snapshot(name), snapshot(name), decode=lambda ids: name),
    "failure_rate": series,
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("figure", DRAW)
def test_a_figure_shows_an_id_as_it_is(figure: str, name: str) -> None:
    output = drawn(DRAW[figure](name))
    if name.isascii() and name.isprintable():
        assert repr(name)[1:-1] in output or name in output


@pytest.mark.parametrize("name", HOSTILE)
def test_a_page_map_shows_an_id_as_it_is(name: str) -> None:
    for page in (html_of(snapshot(name)), html_of(snapshot(name) - snapshot("other"))):
        assert not re.search(r"<b>\W*,", page), "an id is no tag"
        assert html.escape(plain(name, 24)) in page


@pytest.fixture
def strayed(tmp_path: Path) -> Any:
    """Return what makes a run in which a request with a given name reads another one's page."""

    def make(name: str) -> Path:
        other = name + "2"
        story = strayed_story(name, other).close()
        writer = RunWriter.create(tmp_path / "run", {"plan": {}, "seed": 0})
        requests = [
            request_row(request_id=request, prompt_tokens=prompt, outcome="wrong", text=name,
                        prompt=name, expected_text=name, first_divergence=1)
            for request, prompt in ((name, (11, 12)), (other, (21, 22)))
        ]  # fmt: skip
        writer.write_trial(trial_row(), requests, **story.tables())
        return writer.path

    return make


@pytest.mark.parametrize("name", HOSTILE)
def test_explanations_findings_and_tables_show_an_id_as_it_is(name: str, strayed: Any) -> None:
    path = strayed(name)
    run = load_run(path)
    explanation = explain(run, name, reference=False)
    assert words(name).strip() in drawn(explanation_figure(explanation)).replace("$", r"\$")
    [checked] = check_run(path)
    leading = [group.first for _, [(_, group), *_] in checked.groups.items()]
    assert leading
    for finding in leading:
        drawn(finding_figure(finding))
    wrong = figures.wrong_answers(run.requests, run.trials)
    for page in (html_of(explanation), html_of(wrong)):
        assert html.escape(name) in page
