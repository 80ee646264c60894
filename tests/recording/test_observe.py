"""Observing a live engine: what is recorded, and that the hooks change nothing."""

from __future__ import annotations

import pytest
from observed import PRELUDE
from support import NEWEST, ChildRunner, has


@pytest.mark.parametrize("sharing", ["none", "trie"])
def test_every_object_is_as_it_was_afterwards(
    child: ChildRunner, release: str, sharing: str
) -> None:
    done = child(
        release,
        PRELUDE.format(sharing=sharing)
        + """
import gc, types
from shortfin_apps.llm import components
def classes():
    kinds = [k for k in gc.get_objects() if isinstance(k, type)
             and str(getattr(k, "__module__", "")).startswith("shortfin")]
    # A class's members by identity, but for what CPython itself makes or rebuilds.
    return {(k.__module__, k.__qualname__, id(k)): {n: id(v) for n, v in vars(k).items()
            if n not in ("__abstractmethods__", "_abc_impl", "__doc__", "__slotnames__")}
            for k in kinds}
def objects(engine):
    service, cache = engine.service.native, engine.service.native.page_cache
    seen = [service, cache, cache.page_pool]
    seen += [v for n, v in vars(service).items() if n.endswith("batcher")]
    # A batcher counts its idle strobes and replaces its empty set of requests, watched or not.
    return [sorted((n, id(v)) for n, v in vars(o).items()
                   if n not in ("strobes", "strobe_enabled", "pending")) for o in seen]
def functions(engine):
    service = engine.service.native
    return [(b, id(f)) for d in (service.prefill_functions, service.decode_functions)
            for b, f in d.items()]
with Engine(EngineConfig(prefix_sharing=sharing)) as engine:
    leaves = getattr(engine.service.native.page_cache, "leaves", None)
    before = classes(), objects(engine), functions(engine)
    with observe(engine) as recording:
        during = classes(), objects(engine), functions(engine)
    idle = classes(), objects(engine), functions(engine)
    with observe(engine):
        ask(engine)
    after = classes(), functions(engine)
    kept = getattr(engine.service.native.page_cache, "leaves", None)
    say({"hooked": [a != b for a, b in zip(before, during)],
         "same": [a == b for a, b in zip(before, idle)],
         "after": [before[0] == after[0], before[2] == after[1]],
         "leaves": kept is leaves and (leaves is None or type(leaves) is set),
         "filled": len(leaves or ()) > 0,
         "listeners": len(engine.listeners), "probe": engine.probe is None,
         "faults": recording.faults})
""",
    )
    assert done.returncode == 0, done.stderr
    assert done.reply == {
        "hooked": [True, True, True],
        "same": [True, True, True],
        "after": [True, True],
        "leaves": True,
        "filled": sharing == "trie" and has(release, "prefix-sharing"),
        "listeners": 0,
        "probe": True,
        "faults": [],
    }


@pytest.mark.parametrize("sharing", ["none", "trie"])
def test_an_observed_engine_answers_the_same(
    child: ChildRunner, release: str, sharing: str
) -> None:
    done = child(
        release,
        PRELUDE.format(sharing=sharing)
        + """
answers = []
for watched in (False, True):
    with Engine(EngineConfig(prefix_sharing=sharing)) as engine:
        # One after another: then the order of the engine's calls is the same both times.
        if watched:
            with observe(engine, stacks=True) as recording:
                answers.append([engine.generate(p, 6).tokens for p in PROMPTS[:2]])
        else:
            answers.append([engine.generate(p, 6).tokens for p in PROMPTS[:2]])
stacks = recording.events.dropna(subset=["stack"])["stack"]
say({"same": answers[0] == answers[1], "tokens": [len(t) for t in answers[0]],
     "stacks": Counter("kvcache" in s for s in stacks)[True],
     "own": [line for s in stacks for line in s.splitlines() if "analysis/" in line],
     "faults": recording.faults})
""",
    )
    assert done.returncode == 0, done.stderr
    assert done.reply["same"]
    assert done.reply["tokens"] == [6, 6]
    assert done.reply["stacks"] > 0
    assert done.reply["own"] == []
    assert done.reply["faults"] == []


def test_invocations_are_what_the_device_got(child: ChildRunner, release: str) -> None:
    done = child(
        release,
        PRELUDE.format(sharing="none")
        + """
with Engine(EngineConfig(prefix_sharing=sharing)) as engine:
    with observe(engine) as recording:
        futures = [engine.submit(p, 6, request_id=f"r{n}") for n, p in enumerate(PROMPTS[:3])]
        ended = {f.result().request_id: f.result() for f in futures}
    frame = recording.invocations
    prefills, decodes = frame[frame["phase"] == "prefill"], frame[frame["phase"] == "decode"]
    rows = []
    for invocation in prefills.itertuples():
        for n, request in enumerate(invocation.request_ids):
            prompt = ended[request].prompt_tokens
            rows.append([list(invocation.tokens[n][:len(prompt)]) == list(prompt),
                         invocation.seq_lens[n] == len(prompt)])
    steps = Counter()
    right = []
    for invocation in decodes.itertuples():
        for n, request in enumerate(invocation.request_ids):
            done_, step = ended[request], steps[request]
            steps[request] += 1
            right.append([invocation.tokens[n] == (done_.tokens[step],),
                          invocation.start_positions[n] == len(done_.prompt_tokens) + step])
    say({"prefill_rows": len(rows), "prefills": all(map(all, rows)),
         "decodes": all(map(all, right)),
         "decode_rows": dict(steps), "batch": sorted({int(n) for n in frame["batch_size"]}),
         "padded": int((frame["batch_size"] - frame["rows"]).max()),
         "ordered": bool((frame["seq"] < frame["end_seq"]).all()),
         "times": bool((frame["duration_s"] > 0).all()), "faults": recording.faults,
         "under_way": [list(i[2]) for i in recording.recorder.under_way.values()]})
""",
    )
    assert done.returncode == 0, done.stderr
    reply = done.reply
    assert reply["prefill_rows"] == 3
    assert reply["prefills"]
    assert reply["decodes"]
    assert reply["decode_rows"] == {"r0": 5, "r1": 5, "r2": 5}
    assert reply["batch"] == [4]
    assert reply["padded"] >= 1
    assert reply["ordered"]
    assert reply["times"]
    assert reply["faults"] == []
    assert reply["under_way"] == []


@pytest.mark.parametrize("sharing", ["none", "trie"])
def test_rows_and_page_events_carry_the_right_request_with_32_at_once(
    child: ChildRunner, release: str, sharing: str
) -> None:
    # Independent of the hooks' request ids: a prompt's tokens identify its request and the pages
    # of its invocation. Requests that a later release refuses are sent again.
    done = child(
        release,
        PRELUDE.format(sharing=sharing)
        + """
with Engine(EngineConfig(prefix_sharing=sharing, page_count=512)) as engine:
    prompts = {f"r{n}": f"{n + 2} {2 * n + 4} {3 * n + 6} {n + 11} {n + 12} {n + 13} "
               for n in range(32)}
    with observe(engine, snapshots=False) as recording:
        ended, tries = {}, 0
        while len(ended) < 32 and tries < 60:
            tries += 1
            left = [(r, p) for r, p in prompts.items() if r not in ended]
            futures = [engine.submit(p, 12, request_id=r) for r, p in left]
            answers = [f.result() for f in futures]
            ended |= {a.request_id: a for a in answers if a.outcome != "rejected"}
    by_prompt = {tuple(e.prompt_tokens): r for r, e in ended.items()}
    invocations, events = recording.invocations, recording.events
    rows, first_pages = [], {}
    for invocation in invocations[invocations["phase"] == "prefill"].itertuples():
        for n, request in enumerate(invocation.request_ids):
            tokens = invocation.tokens[n][:invocation.seq_lens[n]]
            rows.append(by_prompt.get(tuple(tokens)) == request)
            first_pages[request] = invocation.block_tables[n][0]
    steps = Counter()
    for invocation in invocations[invocations["phase"] == "decode"].itertuples():
        for n, request in enumerate(invocation.request_ids):
            answer, step = ended[request], steps[request]
            steps[request] += 1
            rows.append(invocation.tokens[n] == (answer.tokens[step],)
                        and invocation.start_positions[n] == len(answer.prompt_tokens) + step)
    pages = events[events["kind"].isin(["acquire", "free", "pages_held", "pages_dropped"])]
    held = events[events["kind"] == "pages_held"]
    right = [first_pages.get(r) in p or step > 0 for r, p, step in
             zip(held["request_id"], held["pages"], held.groupby("request_id").cumcount())]
    acquired = events[events["kind"] == "acquire"]
    owner = {}
    agree = []
    for e in events[events["kind"].isin(["acquire", "pages_held"])].itertuples():
        if e.kind == "acquire":
            owner.update({p: e.request_id for p in e.pages})
        else:
            agree += [owner.get(p, e.request_id) == e.request_id for p in e.pages]
    say({"outcomes": Counter(e.outcome for e in ended.values()), "rows": len(rows),
         "rows_right": sum(rows), "page_events": len(pages),
         "named": int(pages["request_id"].isin(list(prompts)).sum()),
         "holds": len(right), "holds_right": sum(right), "agree": sum(agree), "pages": len(agree),
         "requests": held["request_id"].nunique(), "faults": recording.faults})
""",
    )
    assert done.returncode == 0, done.stderr
    reply = done.reply
    assert reply["outcomes"] == {"ok": 32}
    assert reply["rows"] >= 32 * 11
    assert reply["rows_right"] == reply["rows"]
    assert reply["page_events"] >= 64
    assert reply["named"] >= 0.99 * reply["page_events"]
    assert reply["holds_right"] == reply["holds"] > 0
    assert reply["agree"] == reply["pages"] > 0
    assert reply["requests"] == 32
    assert reply["faults"] == []


@pytest.mark.parametrize("sharing", ["none", "trie"])
def test_an_engine_at_work_can_be_observed_from_now_on(
    child: ChildRunner, release: str, sharing: str
) -> None:
    done = child(
        release,
        PRELUDE.format(sharing=sharing)
        + """
import time
from analysis.recording.replay import Replay, differences
with Engine(EngineConfig(prefix_sharing=sharing)) as engine:
    wrong, held, faults, rounds = [], 0, [], 0
    for turn in range(6):
        futures = [engine.submit(p, 40) for p in PROMPTS]
        time.sleep(0.04 + 0.02 * turn)
        with observe(engine) as recording:
            held += len(recording.taken[0].holders)
            outcomes = [f.result().outcome for f in futures]
        faults += recording.faults
        replay = Replay(recording.taken[0])
        for seen in recording.taken[1:]:
            if seen.consistent:
                rounds += 1
                wrong += differences(replay.apply(recording.events, seen.seq).snapshot(), seen)
    say({"wrong": wrong[:5], "held": held, "faults": faults, "rounds": rounds})
""",
    )
    assert done.returncode == 0, done.stderr
    assert done.reply["wrong"] == []
    assert done.reply["faults"] == []
    assert done.reply["rounds"] > 6
    assert done.reply["held"] > 0


@pytest.mark.parametrize("first", ["", "import analysis.recording.replay"])
def test_the_package_exports_it(child: ChildRunner, first: str) -> None:
    done = child(
        NEWEST,
        f"""
        {first or "pass"}
        from analysis import observe
        import analysis
        from analysis.recording import observe as function, Recording
        with Engine() as engine:
            with observe(engine, snapshots=False) as recording:
                engine.generate("1 2 3 ", 2)
            same = observe is function
            say([isinstance(recording, Recording), len(recording.invocations), same])
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.reply == [True, 2, True]


def test_a_snapshot_needs_no_observer_and_counts_what_pages_hold(
    child: ChildRunner, release: str
) -> None:
    done = child(
        release,
        PRELUDE.format(sharing="trie")
        + """
from analysis.core.errors import EngineError
with Engine(EngineConfig(prefix_sharing=sharing, page_count=64)) as engine:
    empty = engine.cache.snapshot()
    asked = engine.submit(PROMPTS[0], 20)
    during = []
    while not asked.done():
        snapshot = engine.cache.snapshot(contents=True)
        if snapshot.counts["live"]:
            during.append(snapshot)
    after = engine.cache.snapshot(contents=True)
    with observe(engine) as recording:
        engine.cache.snapshot()
        twice = None
        try:
            with observe(engine): pass
        except EngineError as error:
            twice = str(error)
try:
    engine.cache.snapshot()
except EngineError as error:
    closed = str(error)
# Without shared prefixes no page is in use when the request has ended.
shown = (after if after.contents else during[-1]).contents.values()
content = max(shown, key=lambda page: page.maximum)
say({"empty": empty.counts, "live": len(during), "holders": list(during[-1].holders.values())[0],
     "id": asked.result().request_id, "after": after.counts, "contents": len(after.contents),
     "nan": content.nan_count, "maximum": content.maximum, "digest": content.digest,
     "again": engine.cache is not None, "twice": twice, "closed": closed,
     "asked": [s.moment for s in recording.taken]})
""",
    )
    assert done.returncode == 0, done.stderr
    reply = done.reply
    assert reply["empty"] == {"free": 64, "live": 0, "cached": 0, "leaked": 0}
    assert reply["live"] > 0
    assert reply["holders"] == [reply["id"]]
    assert reply["after"]["live"] == 0
    assert (reply["after"]["cached"] > 0) == has(release, "prefix-sharing")
    assert reply["contents"] == 64 - reply["after"]["free"]
    assert reply["nan"] == 0
    assert reply["maximum"] > 0
    assert len(reply["digest"]) == 16
    assert "already observed" in reply["twice"]
    assert "not running" in reply["closed"]
    assert reply["asked"] == ["asked", "asked", "asked"]
