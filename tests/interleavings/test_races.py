"""Two operations at once on the real caches: what only threads can break, and a lock mends."""

from __future__ import annotations

import pytest
from support import NEWEST, REPORTED, ChildRunner

_SOURCE = """
from analysis.interleavings import find_races
from analysis.treatments import fixes

def races_of(scenario, operations, treatments=(), **more):
    races = find_races(scenario, "trie", treatments, operations=operations, **more)
    return [races.complete, races.runs, [[r.rule, r.reachable, str(r)] for r in races.found]]
"""


def test_a_page_is_lost_between_two_lines_unless_locked(child: ChildRunner) -> None:
    done = child(
        NEWEST,
        _SOURCE
        + """
say([races_of("equal prompts", ("release", "publish")),
     races_of("equal prompts", ("release", "publish"), ["lock-cache"])])
""",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (complete, runs, races), (locked_complete, locked_runs, locked) = done.reply
    assert complete
    assert locked_complete
    assert min(runs, locked_runs) > 100
    assert {(rule, reachable) for rule, reachable, _ in races} == {("page-leak", True)}
    assert all("preempted at page_pool.py:" in text for _, _, text in races)
    assert locked == []


def test_one_thread_does_not_come_to_what_two_would(child: ChildRunner) -> None:
    call = 'say(races_of("lookup, evict, allocate", ("acquire", "acquire")))'
    done = child(REPORTED, _SOURCE + call)
    assert done.returncode == 0, done.stderr[-3000:]
    complete, _, races = done.reply
    assert complete
    # Between its match and its pages an acquisition loses what it found, as on 3.9.0.
    assert "duplicate-page" in {rule for rule, _, _ in races}
    assert {reachable for _, reachable, _ in races} == {False}


@pytest.mark.slow
@pytest.mark.parametrize("preemptions", [1, 2])
def test_with_the_fixes_no_line_of_any_operation_matters(
    child: ChildRunner, preemptions: int
) -> None:
    done = child(
        NEWEST,
        _SOURCE
        + f"""
treatments = fixes("3.9.0", "trie")
say([races_of(name, None, treatments, preemptions={preemptions}, budget_s=240)
     for name in ("equal prompts", "lookup, evict, allocate", "evicting what has children")])
""",
        timeout_s=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for complete, runs, races in done.reply:
        assert complete or preemptions == 2
        assert runs > 1000
        assert races == []
