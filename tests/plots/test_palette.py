"""One colour for one state of a page, everywhere, and none that colour blindness confuses."""

from __future__ import annotations

import importlib
import re
from itertools import combinations
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from support import ROOT

from analysis import plots as figures
from analysis.jupyter.page_map import FILLS
from analysis.plots.style import REQUEST_COLOURS, STATE_COLOURS, WITHHELD_COLOUR
from analysis.recording.replay import Replay, cached_or_leaked
from analysis.runs.tables import to_frame
from analysis.snapshots.snapshot import STATES, CacheState, Node, Snapshot

# G. M. Machado, M. M. Oliveira, L. A. F. Fernandes (2009): no red, green or blue receptors.
SEEN = {
    "all": np.eye(3),
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}
FAINT = 20.0
"""A distance in CIELAB that areas beside each other cannot be confused at; 2.3 can just be seen."""


def lab(colour: str, seen: object) -> np.ndarray:
    """Return a colour as CIELAB (D65), as it is seen by those who lack a receptor."""
    linear = np.array([((c + 0.055) / 1.055) ** 2.4 if c > 0.04045 else c / 12.92
                       for c in to_rgb(colour)])  # fmt: skip
    linear = np.clip(np.asarray(seen) @ linear, 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(np.asarray(to_xyz) @ linear / [0.9505, 1.0, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("seen", SEEN)
def test_no_two_states_look_alike(seen: str) -> None:
    colours = {state: lab(colour, SEEN[seen]) for state, colour in STATE_COLOURS.items()}
    assert set(colours) == set(STATES)
    for one, other in combinations(STATES, 2):
        assert np.linalg.norm(colours[one] - colours[other]) > FAINT, (one, other)


@pytest.mark.parametrize("seen", SEEN)
def test_pages_kept_out_of_the_pool_look_like_no_state(seen: str) -> None:
    withheld = lab(WITHHELD_COLOUR, SEEN[seen])
    for state, colour in STATE_COLOURS.items():
        assert np.linalg.norm(withheld - lab(colour, SEEN[seen])) > FAINT, state


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize(("ink", "paper"), [("#1c1c1c", "#ffffff"), ("#e4e4e1", "#15171a")])
def test_free_pages_of_a_map_look_like_no_other_state(ink: str, paper: str, seen: str) -> None:
    """They have the colour of the text, hardly opaque, on a light page or a dark one."""
    opacity = float(re.findall(r'fill-opacity="([\d.]+)"', FILLS["free"])[0])
    free = to_hex(opacity * np.array(to_rgb(ink)) + (1 - opacity) * np.array(to_rgb(paper)))
    for state in ("live", "cached", "leaked"):
        assert FILLS[state] == f'fill="{STATE_COLOURS[state]}"'
        distance = lab(STATE_COLOURS[state], SEEN[seen]) - lab(free, SEEN[seen])
        assert np.linalg.norm(distance) > FAINT, state
    if paper == "#ffffff":
        assert free.upper() == STATE_COLOURS["free"]


def test_no_request_has_the_colour_of_a_state() -> None:
    schedule = module("studies.isolation.figures")
    assert not set(REQUEST_COLOURS) & set(STATE_COLOURS.values())
    peers = module("diagnosis.figure").PEERS
    assert not set(peers) & set(STATE_COLOURS.values())
    assert len(set(peers)) == len(peers) >= 7
    assert not set(schedule._COLOURS) & {colour for colour, _ in schedule._UNUSED.values()}


def test_there_is_one_palette_of_states() -> None:
    for name in (
        "jupyter.page_map",
        "plots.pages_over_time",
        "jupyter.cache_html",
        "diagnosis.figure_parts",
    ):
        assert module(name).STATE_COLOURS is STATE_COLOURS
    tree, schedule = module("plots.trie"), module("studies.isolation.figures")
    assert (STATE_COLOURS["live"], STATE_COLOURS["cached"]) == (tree.IN_USE, tree.UNUSED)
    assert schedule._UNUSED["cached"][0] == STATE_COLOURS["cached"]
    assert schedule._UNUSED["pending free"][0] == STATE_COLOURS["cached"]
    assert schedule._UNUSED["leaked"][0] == STATE_COLOURS["leaked"]
    defined = [
        file.name
        for file in sorted((ROOT / "analysis").rglob("*.py"))
        if re.search(r"^\w*STATE_COLOURS\w* = ", file.read_text(), re.MULTILINE)
    ]
    assert defined == ["style.py"]


def module(name: str) -> ModuleType:
    """Return a module; packages have functions of the same names."""
    return importlib.import_module(f"analysis.{name}")


def event(seq: int, kind: str, **fields: Any) -> dict[str, Any]:
    return {"seq": seq, "trial_id": "c", "t_s": seq / 1e9, "kind": kind, **fields}


REPLACED = [
    event(1, "acquire", request_id="a", pages=[1, 2]),
    event(2, "pages_held", request_id="a", pages=[1, 2]),
    event(3, "create", node=1, parent=0, pages=[1], tokens=[7, 8]),
    event(4, "create", node=2, parent=1, pages=[2], tokens=[9, 9]),
    event(5, "acquire", request_id="b", pages=[3]),
    event(6, "pages_held", request_id="b", pages=[3]),
    # The child of a node that lost its place is not found any more either, and no event records it.
    event(7, "node_overwritten", node=1, parent=0, pages=[1]),
    event(8, "create", node=3, parent=0, pages=[3], tokens=[7, 8]),
    event(9, "pages_dropped", request_id="a", pages=[1, 2]),
    event(10, "done", request_id="a"),
    event(11, "pages_dropped", request_id="b", pages=[3]),
    event(12, "done", request_id="b"),
    event(13, "free", pages=[2]),
    event(14, "memory", value=1),
]


def test_a_lane_shows_as_leaked_what_the_page_map_shows_so() -> None:
    events = to_frame("events", REPLACED)
    root = Node(0, None, None, (), 0, False)
    start = Snapshot(CacheState(4, [0, 1, 2, 3], {}, (root,)), seq=0)
    for until in (4, 8, 10, 12, 14):
        there = events[events["seq"] <= until]
        mapped = Replay(start).apply(there).snapshot()
        spans = cached_or_leaked(there)
        last = spans[spans["end"] == until].set_index("page")["state"]
        leaked = set(last[last == "leaked"].index)
        assert leaked == set(mapped.pages("leaked")), until
        cached = {page for page in last[last == "cached"].index if page not in mapped.holders}
        assert cached == set(mapped.pages("cached")), until
    lanes = figures.page_lifetimes(events, cached_or_leaked(events))
    colours = {to_hex(bar.get_facecolor()[0]).upper()
               for bar in lanes.axes[0].collections}  # fmt: skip
    assert {STATE_COLOURS["leaked"], STATE_COLOURS["cached"]} <= colours
