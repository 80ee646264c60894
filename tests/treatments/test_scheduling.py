"""What treatments of order, locks, pages and failures do, seen in invocations and events."""

from __future__ import annotations

import pytest
from support import NEWEST, ChildRunner, dialect, has

from analysis.core.errors import EngineError
from analysis.sweep.plan import Plan
from analysis.treatments import check_names, expand, fixes, page_count

_PRELUDE = """
from analysis.recording import observe
from analysis.treatments import treat
from analysis.workloads.named import make_workload

def recorded(*names, pages=256, sharing="trie", count=12, concurrency=4, tokens=15, timeout_s=20):
    config = EngineConfig(prefix_sharing=sharing, page_count=pages)
    with Engine(config) as engine:
        with observe(engine, memory_every_s=0) as recording, treat(engine, *names):
            asked = make_workload("mixed", count=count, seed=3, max_new_tokens=tokens)
            answers = engine.run(asked, concurrency, timeout_s=timeout_s)
        return recording, answers, engine.died is not None

CHANGES = ["acquire", "free", "create", "unlink", "reference", "leaf_added",
           "leaf_removed"]  # fmt: skip
"""


def run(child: ChildRunner, release: str, source: str) -> object:
    done = child(release, f"RELEASE = {release!r}\n" + _PRELUDE + source)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.reply


def test_a_lock_around_everything_is_held_at_every_change(child: ChildRunner, release: str) -> None:
    locks = run(
        child,
        release,
        """
def locks(*names):
    recording, answers, died = recorded(*names)
    events = recording.events
    changed = events[events["kind"].isin(CHANGES)]
    held = changed["locks"].map(lambda names: "lock-cache" in (names or ()))
    return [len(changed) > 30, float(held.mean())]
say([locks(), locks("lock-cache")])
""",
    )
    assert locks == [[True, 0.0], [True, 1.0]]


def test_one_at_a_time_and_on_one_worker(child: ChildRunner, release: str) -> None:
    reply = run(
        child,
        release,
        """
def shape(*names):
    recording, answers, died = recorded(*names)
    invocations, events = recording.invocations, recording.events
    threads = events.loc[events["kind"] == "acquire", "thread"].nunique()
    return [int(invocations["rows"].max()), threads, int((answers["outcome"] == "ok").sum())]
others = ["one-worker"] if has(RELEASE, "worker-pool") else []
say([shape(), shape("one-at-a-time"), [shape(name) for name in others]])
""",
    )
    together, alone, workers = reply  # type: ignore[misc]
    assert together[0] > 1
    assert alone[0] == 1
    if not has(release, "worker-pool"):
        # A batch of prefills and one of decodes acquire pages, each on a thread or on the same one.
        assert together[1] == (2 if has(release, "phase-workers") else 1)
    else:
        assert alone[2] == 12
        assert together[1] > 1
        [worker] = workers
        assert worker[1] == 1
        assert worker[0] > 1


def test_the_padding_page_has_no_owner(child: ChildRunner, release: str) -> None:
    # So few that it comes to the last one.
    pages = {"allocations": 16, "requests": 32, "records": 48}[dialect(release)]
    reply = run(
        child,
        release,
        f"pages = {pages}"
        """
def taken(*names):
    recording, answers, died = recorded(*names, pages=pages, sharing="none", count=16, timeout_s=4)
    acquired = recording.events.loc[recording.events["kind"] == "acquire", "pages"]
    return [any(0 in pages for pages in acquired), int(recording.snapshots["free"].iloc[0])]
def padded(*names):
    recording, answers, died = recorded(*names, count=8)
    invocations = recording.invocations
    own = [pages for f in invocations[invocations["phase"] == "decode"].to_dict("records")
           for pages, length, start in zip(f["block_tables"][:f["rows"]], f["seq_lens"],
                                           f["start_positions"])
           if 0 in pages[: start // 16 + 1]]
    return len(own)
if has(RELEASE, "aliased-tokens"):
    say([taken(), taken("reserve-padding-page"), [padded(), padded("copy-tokens")]])
else:
    say([taken(), taken("reserve-padding-page"), None])
""",
    )
    given, reserved, padded = reply  # type: ignore[misc]
    assert given == [True, pages]
    assert reserved == [False, pages]  # and it counts as free
    if padded:
        assert padded[0] > 0
        assert padded[1] == 0


def test_a_request_without_pages_waits_or_fails_alone(child: ChildRunner, release: str) -> None:
    reply = run(
        child,
        release,
        """
pages = 14 if has(RELEASE, "allocations") else 20  # so few that decodes find none either
def outcomes(*names, timeout_s=60):
    recording, answers, died = recorded(*names, pages=pages, sharing="none", timeout_s=timeout_s)
    return [answers["outcome"].value_counts().to_dict(), died]
leaks = ["keep-decode-record"] if has(RELEASE, "records") else []
waits = ["requeue-unscheduled"] if has(RELEASE, "drops-unscheduled") else []
one = waits if has(RELEASE, "allocations") else ["survive-allocation-failure"]
plain = outcomes(*leaks, timeout_s=6)
for _ in range(5):  # the order of batches decides whether a decode is ever without a page
    alone = outcomes(*leaks, *one)
    if alone[1] or not has(RELEASE, "allocations"):
        break
say([plain, alone, outcomes(*leaks, *waits, "survive-allocation-failure")])
""",
    )
    plain, one, both = reply  # type: ignore[misc]
    outcomes, died = both
    assert not died
    assert not {"engine_died", "timeout", "empty"} & set(outcomes)
    assert outcomes["ok"] > plain[0].get("ok", 0)
    if has(release, "allocations"):
        # Waiting prefills alone leave decodes without a page, which end the worker.
        assert plain[1]
        assert one[1]
    else:
        assert plain[0].get("empty", 0) + plain[0].get("timeout", 0) > 0
        assert "timeout" not in one[0]


def test_a_big_pool_is_made_when_the_engine_starts() -> None:
    assert page_count(["correct-seq-lens"], 64) == 64
    assert page_count(["big-pool"], 64) == 4096
    assert page_count(["big-pool:100"], 64) == 100
    assert page_count(["big-pool:10"], 64) == 64
    plan = Plan(releases=(NEWEST,), pages=(64,), treatments=((), ("big-pool:128",)), repeats=1)
    config = {trial.treatments: plan.engine_config(trial)["page_count"] for trial in plan.trials()}
    assert set(config.values()) == {64, 128}


def test_a_pool_that_is_not_big_is_refused(child: ChildRunner) -> None:
    reply = run(
        child,
        NEWEST,
        """
try:
    recorded("big-pool", pages=64)
except Exception as error:
    say(str(error))
""",
    )
    assert "EngineConfig(page_count=4096)" in str(reply)


@pytest.mark.parametrize("sharing", ["none", "trie"])
def test_all_and_all_but_stand_for_the_fixes(release: str, sharing: str) -> None:
    every = fixes(release, sharing)
    assert len(every) >= 2
    assert expand(["all"], release, sharing) == every
    assert expand(["short-strobes", "all"], release, sharing) == ("short-strobes", *every)
    for treatment in check_names(every):
        treatment.check(release, sharing)
        left = expand([f"all-but:{treatment.name}"], release, sharing)
        assert left == tuple(name for name in every if name != treatment.name)
    with pytest.raises(EngineError, match="'big-pool' is not a fix for shortfin"):
        expand(["all-but:big-pool"], release, sharing)
