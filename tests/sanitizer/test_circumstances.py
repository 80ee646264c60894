"""Findings in circumstances that once misled the rules: healthy engines and other failures."""

from __future__ import annotations

import pytest
from support import NEWEST, ChildRunner, has

_PRELUDE = """
from analysis.sanitizer import sanitize
from analysis.treatments import fixes, treat
from analysis.workloads.named import make_workload

def rows(findings):
    return [[f.rule, f.cause, f.severity, f.text] for f in findings]
"""


def run(child: ChildRunner, release: str, source: str) -> list[list[str]]:
    done = child(release, f"RELEASE = {release!r}\n" + _PRELUDE + source)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.reply  # type: ignore[no-any-return]


def test_pages_and_references_taken_before_the_recording_are_no_finding(
    child: ChildRunner, release: str
) -> None:
    reply = run(
        child,
        release,
        """
import time
with Engine(EngineConfig(prefix_sharing="trie", page_count=96)) as engine:
    with treat(engine, *fixes(RELEASE, "trie")):
        prompts = [f"{n} 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 " for n in (1, 2, 3)]
        early = [engine.submit(prompt, 60, 30) for prompt in prompts]
        def references():
            snapshot = engine.cache.snapshot()
            if not has(RELEASE, "prefix-sharing"):
                return len(snapshot.state.holdings)  # requests refer to no node
            return sum(node.ref_count for node in snapshot.nodes)
        while references() < len(early) and not early[0].done():
            time.sleep(0.01)
        under_way = [references(), sum(not future.done() for future in early)]
        with sanitize(engine) as findings:
            late = engine.submit(prompts[0], 8, 30)
            outcomes = [future.result().outcome for future in [*early, late]]
say([under_way, outcomes, rows(findings)])
""",
    )
    under_way, outcomes, findings = reply
    assert min(under_way) > 0, "They had ended before the watching began."
    assert set(outcomes) == {"ok"}
    assert "over-released" not in {row[1] for row in findings}
    assert has(release, "prefix-sharing") or findings == []


def test_a_lock_added_before_the_recording_is_recorded(child: ChildRunner) -> None:
    causes = run(
        child,
        NEWEST,
        """
def causes(*names):
    with Engine(EngineConfig(prefix_sharing="trie", page_count=256)) as engine:
        with treat(engine, *names), sanitize(engine) as findings:
            engine.run(make_workload("shared_prefix", count=16, seed=3), concurrency=4)
    return sorted({f.cause for f in findings if f.rule == "lockset-violation"})
say([causes(), causes("lock-cache")])
""",
    )
    assert causes == [["ref-counts"], []]


def test_a_failed_call_is_not_checked_with_the_arguments_of_the_previous_one(
    child: ChildRunner, release: str
) -> None:
    reply = run(
        child,
        release,
        """
with Engine(EngineConfig(page_count=96)) as engine:
    functions, calls = engine.service.native.decode_functions, []
    function = functions[4]

    async def failing(*args, fiber):
        calls.append(1)
        if len(calls) == 6:
            raise RuntimeError("planted")
        return await function(*args, fiber=fiber)

    functions[4] = failing
    with sanitize(engine) as findings, treat(engine, *fixes(RELEASE, "none")):
        done = engine.run(make_workload("mixed", count=4, seed=3), concurrency=4, timeout_s=3)
say([len(calls), rows(findings), findings.notes])
""",
    )
    calls, findings, notes = reply
    assert calls >= 6
    assert not [row for row in findings if row[2] == "wrong data"], findings
    assert any("failed" in note for note in notes)


def test_a_held_lock_is_named_and_treatments_are_reverted(child: ChildRunner, release: str) -> None:
    reply = run(
        child,
        release,
        """
names = ["quarantine:4", "fault:lock-kept"]
with Engine(EngineConfig(page_count=96)) as engine:
    with sanitize(engine) as findings, treat(engine, "reserve-padding-page", *names) as treated:
        done = engine.run(make_workload("mixed", count=4, seed=3), concurrency=4, timeout_s=4)
    free = [page.index for page in engine.service.native.page_cache.page_pool.available_pages]
say([list(done["outcome"]), rows(findings), 0 in free, treated["fault:lock-kept"].injected is None])
""",
    )
    outcomes, findings, given_back, silent = reply
    assert not silent
    assert given_back
    assert "timeout" in outcomes
    completion = [row for row in findings if row[0] == "stuck-request"]
    assert {row[1] for row in completion} == {"lock-held"}
    assert "has held the lock of the pool for" in completion[0][3]


def test_a_treatment_reports_that_the_lock_it_needs_is_held(child: ChildRunner) -> None:
    reply = run(
        child,
        NEWEST,
        """
with Engine(EngineConfig(page_count=96)) as engine:
    engine.service.native.page_cache.page_pool._lock.acquire()
    try:
        with treat(engine, "reserve-padding-page"):
            pass
    except Exception as error:
        say(str(error))
""",
    )
    assert "A thread of the engine holds the pool's lock" in str(reply)


@pytest.mark.parametrize("sharing", ["none", "trie"])
def test_answers_past_the_models_context_are_reported(
    child: ChildRunner, release: str, sharing: str
) -> None:
    reply = run(
        child,
        release,
        """
with Engine(EngineConfig(prefix_sharing=SHARING, page_count=96)) as engine:
    prompt = [5, 6, 7, 8] * 60
    with sanitize(engine) as findings, treat(engine, *fixes(RELEASE, SHARING)):
        fits = engine.submit(prompt, 17, 30, request_id="fits").result()
        passes = engine.submit(prompt, 18, 30, request_id="passes").result()
say([[len(fits.tokens), len(passes.tokens)], rows(findings),
     [f.request_id for f in findings if f.rule == "context-overflow"]])
""".replace("SHARING", repr(sharing)),
    )
    lengths, findings, who = reply
    # The last token of an answer is not executed: 240 + 16 positions fit.
    assert lengths == [17, 18]
    assert who == ["passes"]
    assert not [row for row in findings if row[2] == "wrong data"], findings
