"""What the figures of a recording draw, from events whose truth is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from support import REPORTED

from analysis import plots as figures
from analysis.recording.replay import cached_or_leaked
from analysis.runs.tables import to_frame
from analysis.stats.dose_response import evictions_contrast
from analysis.studies.evictions.figures import evictions_figure


def event(seq: int, kind: str, **fields: Any) -> dict[str, Any]:
    return {"seq": seq, "trial_id": "c", "t_s": seq / 100, "kind": kind, **fields}


def invocation(number: int, phase: str, requests: list[str], begin: float) -> dict[str, Any]:
    return {
        "invocation_id": number, "trial_id": "c", "phase": phase, "rows": len(requests),
        "batch_size": 4, "request_ids": requests, "seq": number, "end_seq": number,
        "t_s": begin, "duration_s": 0.01,
    }  # fmt: skip


def snapshot(seq: int, free: int, live: int, cached: int, leaked: int) -> dict[str, Any]:
    return {
        "trial_id": "c", "moment": "asked", "seq": seq, "t_s": seq / 100, "page_count": 10,
        "free": free, "live": live, "cached": cached, "leaked": leaked,
    }  # fmt: skip


def text_of(figure: Figure) -> str:
    legends = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    axes = [t for a in figure.axes for t in (a.get_title(loc="left"), a.get_xlabel())]
    return " | ".join([*legends, *axes, *(t.get_text() for t in figure.texts)])


EVENTS = to_frame(
    "events",
    [
        event(1, "pages_held", request_id="a", pages=[3, 4]),
        event(2, "create", node=1, parent=0, pages=[3], tokens=[1, 2]),
        event(3, "pages_held", request_id="b", pages=[3]),
        event(5, "pages_dropped", request_id="a", pages=[3, 4]),
        event(6, "pages_held", request_id="c", pages=[4]),
        event(7, "evict", pages=[3]),
        event(8, "alloc_failed", wanted=2),
        event(9, "pages_dropped", request_id="c", pages=[4]),
        event(10, "worker_died", message="gone"),
        event(11, "memory", value=300 * 2**20, page_table_bytes=2**20),
        event(12, "memory", value=310 * 2**20, page_table_bytes=2**20),
    ],
)


def test_page_lifetimes_has_a_bar_for_each_time_that_a_page_was_held() -> None:
    figure = figures.page_lifetimes(EVENTS, cached_or_leaked(EVENTS))
    [axes] = figure.axes
    bars = [c for c in axes.collections if isinstance(c, PolyCollection)]
    # a and b on page 3, a and c on page 4, page 3 in the trie, and page 4 leaked in the end.
    assert len(bars) == 6
    assert [label.get_text() for label in axes.get_yticklabels()] == ["4", "3"]
    assert {"a", "b", "c", "in the prefix cache", "leaked"} <= set(text_of(figure).split(" | "))
    edges = sorted(
        (path.vertices[:, 0].min(), path.vertices[:, 0].max())
        for bar in bars
        for path in bar.get_paths()
    )
    assert edges == [(1, 5), (1, 5), (2, 12), (3, 12), (6, 9), (9, 12)]


def test_page_lifetimes_says_what_it_leaves_out() -> None:
    many = to_frame(
        "events", [event(n, "pages_held", request_id="a", pages=[n]) for n in range(60)]
    )
    figure = figures.page_lifetimes(many)
    assert len(figure.axes[0].get_yticks()) == 48
    assert "12 further pages" in text_of(figure)


INVOCATIONS = to_frame(
    "invocations",
    [
        invocation(0, "prefill", ["a", "b"], 0.00),
        invocation(1, "decode", ["a", "b"], 0.02),
        invocation(2, "decode", ["b"], 0.04),
    ],
)


def test_invocations_draws_every_row_and_tells_prefill_and_padding_apart() -> None:
    figure = figures.invocations(INVOCATIONS)
    [axes] = figure.axes
    bars = [c for c in axes.collections if isinstance(c, PolyCollection)]
    assert len(bars) == 12
    hatched = [bar for bar in bars if bar.get_hatch()]
    empty = [bar for bar in bars if tuple(bar.get_facecolor()[0][:3]) == (1, 1, 1)]
    assert len(hatched) == 2
    assert len(empty) == 7
    assert "1 prefill, 2 decodes" in text_of(figure)
    assert "time" in axes.get_xlabel()


def test_invocations_are_numbered_where_waiting_or_overlap_would_hide_them() -> None:
    waits = INVOCATIONS.assign(t_s=[0.0, 5.0, 10.0])
    overlap = INVOCATIONS.assign(t_s=[0.0, 0.005, 0.01])
    for frame in (waits, overlap):
        assert "number of the invocation" in figures.invocations(frame).axes[0].get_xlabel()
    assert "time" in figures.invocations(waits, x="time").axes[0].get_xlabel()


def test_pages_over_time_stacks_the_states_and_marks_what_happened() -> None:
    rows = [snapshot(0, 10, 0, 0, 0), snapshot(5, 6, 4, 0, 0), snapshot(9, 6, 0, 1, 3)]
    requests = pd.DataFrame(
        {"outcome": ["ok", "wrong", "engine_died"], "submitted_s": [0.0, 0.01, 0.02],
         "latency_s": [0.01, 0.02, 0.03]}
    )  # fmt: skip
    figure = figures.pages_over_time(to_frame("snapshots", rows), requests, EVENTS)
    [axes] = figure.axes
    text = text_of(figure)
    for words in ("leaked, at the end 3", "live, at the end 0", "cached, at the end 1",
                  "free, at the end 6", "2 requests failed", "1 evictions", "1 shortages",
                  "the engine died"):  # fmt: skip
        assert words in text
    top = max(path.vertices[:, 1].max() for c in axes.collections for path in c.get_paths())
    assert top == 10
    assert axes.get_xlim()[1] > 0.09


def test_memory_is_in_mebibytes() -> None:
    figure = figures.memory(EVENTS)
    [axes] = figure.axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[300, 310], [1, 1]]
    assert axes.get_ylabel() == "MiB"
    assert axes.get_ylim()[0] == 0
    assert "resident: 310.0 MiB" in [text.get_text() for text in axes.texts]


def trials_and_requests(**columns: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    count = len(columns["evictions_during"])
    trials = pd.DataFrame(
        {"trial_id": [f"c{n}" for n in range(4)], "release": REPORTED, "device": "local-task",
         "prefix_sharing": "trie", "page_count": 64, "workload": "mixed",
         "concurrency": [4, 4, 8, 8]}
    )  # fmt: skip
    requests = pd.DataFrame(
        {"trial_id": [f"c{n % 4}" for n in range(count)], "latency_s": 0.1,
         "prompt_tokens": [(1,) * 10] * count, **columns}
    )  # fmt: skip
    return requests, trials


def test_evictions_are_binned_with_intervals_and_fitted() -> None:
    rng = np.random.default_rng(0)
    evicted = rng.integers(0, 12, 400)
    failed = rng.random(400) < 0.1 + 0.06 * evicted
    requests, trials = trials_and_requests(
        evictions_during=evicted, outcome=np.where(failed, "wrong", "ok")
    )
    figure = evictions_figure(requests, trials)
    for axes, level in zip(figure.axes, (4, 8), strict=True):
        labels = [label.get_text() for label in axes.get_xticklabels()]
        assert labels[0].startswith("0\nn = ")
        assert sum(int(label.split("n = ")[1]) for label in labels) == 200
        title = axes.get_title(loc="left")
        assert title.startswith(f"offered {level} at once\n")
        assert "odds of failing x 1." in title
        assert any(len(line.get_xdata()) > 20 for line in axes.lines)


def test_the_strata_of_the_evictions_figure_are_those_of_the_answer() -> None:
    count = 24 * 40
    trials = pd.DataFrame(
        [(f"{sharing}-{pages}-{level}-{n}", REPORTED, sharing, pages, "mixed", level)
         for sharing in ("none", "trie") for pages in (64, 256) for level in (4, 8)
         for n in range(6)],
        columns=["trial_id", "release", "prefix_sharing", "page_count", "workload", "concurrency"],
    )  # fmt: skip
    rng = np.random.default_rng(0)
    ids = np.repeat(trials["trial_id"].to_numpy(), 20)
    shared = np.char.startswith(ids.astype(str), "trie")
    requests = pd.DataFrame(
        {"trial_id": ids, "evictions_during": rng.integers(0, 4, count) * shared,
         "outcome": np.where(rng.random(count) < 0.3, "wrong", "ok")}
    )  # fmt: skip
    figure = evictions_figure(requests, trials)
    none, trie = figure.subfigs
    # Where nothing was evicted there is nothing to compare.
    assert none.axes == []
    assert none.get_suptitle().endswith("prefix sharing none:\nno request met an eviction")
    own = trials["prefix_sharing"] == "trie"
    contrast = evictions_contrast(requests[shared], trials[own])
    assert contrast is not None
    titles = [axes.get_title(loc="left").split("\n")[0] for axes in trie.axes]
    assert titles == [
        f"offered {row.concurrency} at once, {row.page_count} pages"
        for row in contrast.strata.sort_values(["page_count", "concurrency"]).itertuples()
    ]
    assert f"x {contrast.odds_ratio:.2f} with evictions, in all panels" in trie.get_suptitle()


@pytest.mark.parametrize(
    ("outcomes", "note"),
    [(["ok"] * 8, "no request failed"), (["wrong"] * 8, "every request failed")],
)
def test_evictions_without_a_fit_say_why(outcomes: list[str], note: str) -> None:
    requests, trials = trials_and_requests(evictions_during=[0, 1] * 4, outcome=outcomes)
    figure = evictions_figure(requests, trials)
    assert note in figure.axes[0].get_title(loc="left")
    assert not any(len(line.get_xdata()) > 20 for line in figure.axes[0].lines)


def test_hit_rate_is_the_share_of_prompt_tokens() -> None:
    requests, trials = trials_and_requests(
        evictions_during=[0] * 8, outcome=["ok"] * 8, cached_tokens=[5, 5, 2, 2] * 2
    )
    figure = figures.hit_rate(requests, trials)
    hits, latency = figure.axes
    line = hits.containers[0].lines[0]
    assert list(line.get_ydata()) == [0.5, 0.2]
    assert "95% bootstrap" in hits.get_ylabel()
    assert latency.get_ylim()[0] == 0


@pytest.mark.parametrize("draw", [
    lambda: figures.page_lifetimes(to_frame("events", [])),
    lambda: figures.invocations(to_frame("invocations", [])),
    lambda: figures.pages_over_time(to_frame("snapshots", [])),
    lambda: figures.memory(to_frame("events", [])),
    lambda: evictions_figure(*trials_and_requests(evictions_during=[pd.NA], outcome=["ok"])),
    lambda: figures.hit_rate(
        *trials_and_requests(evictions_during=[0], outcome=["ok"], cached_tokens=[pd.NA])
    ),
])  # fmt: skip
def test_where_there_is_nothing_it_says_so(draw: Any) -> None:
    figure = draw()
    assert figure.axes == []
    assert figure.texts[0].get_text().startswith(("No ", "Of no"))
