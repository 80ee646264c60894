"""An observed engine whose observer fails, whose recording is full, or that dies."""

from __future__ import annotations

from observed import PRELUDE
from support import REPORTED, ChildRunner


def test_an_error_of_the_recording_never_reaches_the_engine(
    child: ChildRunner, release: str
) -> None:
    done = child(
        release,
        PRELUDE.format(sharing="trie")
        + """
from contextlib import ExitStack
from unittest.mock import patch
from analysis.shortfin.cache import invocations, probe, trie
def broken(*args):
    raise RuntimeError("planted")
with Engine(EngineConfig(prefix_sharing=sharing)) as engine:
    alone = ask(engine, 6)
with Engine(EngineConfig(prefix_sharing=sharing)) as engine:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with observe(engine) as recording:
            with ExitStack() as planted:
                for module, name in ((probe, "indices"), (trie, "indices"),
                                     (invocations, "values_of")):
                    planted.enter_context(patch.object(module, name, broken))
                watched = ask(engine, 6)
    say({"answered": [len(t) for t in watched], "died": bool(engine.died),
         "shown": [str(w.message) for w in shown],
         "events": int((recording.events["kind"] == "observer_error").sum()),
         "faults": len(recording.faults)})
""",
    )
    assert done.returncode == 0, done.stderr
    reply = done.reply
    assert reply["answered"] == [6, 6, 6, 6]
    assert not reply["died"]
    assert reply["events"] == reply["faults"] > 0
    assert 1 <= len(reply["shown"]) <= 3
    assert "planted" in reply["shown"][0]


def test_a_full_recording_is_reported_and_stops_growing(child: ChildRunner) -> None:
    done = child(
        REPORTED,
        PRELUDE.format(sharing="none")
        + """
with Engine(EngineConfig()) as engine:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with observe(engine, max_events=30, max_snapshots=3) as recording:
            ask(engine, 8)
    say({"sizes": recording.sizes(), "overflow": recording.overflow,
         "shown": [str(w.message) for w in shown], "text": str(recording)})
""",
    )
    assert done.returncode == 0, done.stderr
    reply = done.reply
    assert reply["sizes"]["events"] == 30
    assert reply["sizes"]["snapshots"] == 3
    assert "full" in reply["overflow"]
    assert reply["overflow"] in reply["text"]
    assert sum("recording is full" in text for text in reply["shown"]) == 2


def test_the_death_of_the_engine_is_caught_in_the_act(child: ChildRunner) -> None:
    done = child(
        REPORTED,
        PRELUDE.format(sharing="trie")
        + """
with Engine(EngineConfig(prefix_sharing="trie", page_count=24)) as engine:
    with observe(engine) as recording:
        for first in range(100, 700, 10):
            # Two full pages, the same for all: each publishes its own copy of them.
            prompt = " ".join(str(first + n) for n in range(9))[:32]
            for future in [engine.submit(prompt, 5, timeout_s=30) for _ in range(4)]:
                future.result()
            if engine.died:
                break
    events = recording.events
    died = events[events["kind"] == "worker_died"]
    failed = events[events["kind"] == "failed"]
    moments = [s.moment for s in recording.failures]
    orphaned = events[events["kind"] == "node_overwritten"]
    say({"died": len(died), "failed": list(failed["message"]),
         "operation": list(failed["operation"]),
         "detail": list(died["message"]),
         "order": bool(failed["seq"].iloc[0] < died["seq"].iloc[0]),
         "before_it": bool(orphaned["seq"].iloc[0] < failed["seq"].iloc[0]),
         "failures": len(moments), "nodes": max(len(s.nodes) for s in recording.failures),
         "faults": recording.faults})
""",
        short_strobes=False,  # the four must be in one batch
    )
    assert done.returncode == 0, done.stderr
    reply = done.reply
    assert reply["died"] == 1
    assert len(reply["failed"]) == 1
    assert "KeyError" in reply["failed"][0]
    assert "KeyError" in reply["detail"][0]
    assert reply["operation"] == ["acquire"]
    assert reply["order"]
    assert reply["before_it"]
    assert reply["failures"] >= 2
    assert reply["nodes"] > 1
    assert reply["faults"] == []
