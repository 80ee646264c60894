"""Explanations of failures with known causes: what they name, and what they list as missing."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_builder import Row, TraceBuilder
from traces import A, B, run_of, short_pool, wrong_page

from analysis import explain
from analysis.core.errors import RunError
from analysis.diagnosis.cache import cache_at
from analysis.diagnosis.figure import explanation_figure
from analysis.diagnosis.pages import CACHED, FREE, UNOWNED, histories_of
from analysis.diagnosis.request_trace import trace_of
from analysis.jupyter import html_of
from analysis.snapshots.snapshot import STATES


def explained(run, request_id, **options):
    return explain(run, request_id, reference=False, **options)


# -- a wrong answer ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wrong():
    return explained(wrong_page(), "a")


def test_the_first_finding_is_a_read_of_wrong_data_with_its_writer(wrong):
    finding = wrong.finding
    assert (finding.rule, finding.cause) == ("wrong-kv-read", "cross-request")
    assert (finding.page, finding.slot, finding.invocation_id) == (3, 0, 2)
    assert finding.other_request_id == "b"
    assert [f.rule for f in wrong.findings] == ["wrong-kv-read", "tainted-kv-read"]


def test_the_diagnosis_names_token_invocation_page_and_other_request(wrong):
    output = " ".join(wrong.diagnosis)
    assert "The first wrong token is token 2 (invocation 3)" in output
    assert "First finding, 1 invocation earlier (invocation 2" in output
    assert "slot 0 of page 3, which holds position 0 of b" in output
    assert "At that time page 3 was held by b and a" in output
    assert "b wrote positions 0 to 3 (invocation 0)" in output


def test_invocations_have_rows_lengths_and_batch_peers(wrong):
    assert [(f.invocation_id, f.phase, f.token_index, f.own_length) for f in wrong.invocations] == [
        (1, "prefill", 0, 6), (2, "decode", 1, 7), (3, "decode", 2, 8),
    ]  # fmt: skip
    assert [row.request_id for row in wrong.invocations[1].rows] == ["a", "b"]
    assert wrong.invocations[1].own_row.table == (3, 2)
    [peer] = wrong.peers
    assert (peer.request_id, peer.outcome, peer.invocations, peer.pages) == (
        "b",
        "ok",
        2,
        (3,),
    )


def test_the_wrong_token_has_the_probabilities_of_the_engine(wrong):
    token = wrong.divergence
    assert (token.token_index, token.given, token.right, token.invocation_id) == (2, 33, 19, 3)
    assert token.engine.given == pytest.approx(0.6065, abs=1e-4)
    assert token.engine.right == pytest.approx(0.2231, abs=1e-4)
    assert token.engine.best == 33
    assert token.reference is None
    assert token.missing == ()


def test_pages_have_their_histories_the_one_found_first(wrong):
    assert [history.page for history in wrong.pages] == [3, 1, 2]
    words = [entry.words for entry in wrong.pages[0].entries]
    assert words == [
        "b took it from the pool",
        "b wrote positions 0 to 3 (invocation 0)",
        "a held it",
        "a dropped it",
        "b returned it to the pool",
    ]
    owners = [interval.owners for interval in wrong.pages[0].owners]
    assert owners == [(FREE,), ("b",), ("b", "a"), ("b",), (FREE,)]


def test_the_cache_before_and_after_is_replayed(wrong):
    before, after = wrong.caches.before, wrong.caches.after
    assert before.state.holdings == {"b": [3]}
    assert after.state.holdings == {"b": [3, 4]}
    assert "Replayed" in wrong.caches.how


def test_text_and_html_have_the_same_sentences(wrong):
    text, html = str(wrong), html_of(wrong)
    for words in (*wrong.diagnosis, "Requests in the same batches", "60.7%", "First wrong token"):
        assert words in text
    for words in ("cross-request", "60.7%", "<table", "Requests in the same batches"):
        assert words in html
    assert "<script" not in html
    assert "a of c: wrong" in text.splitlines()[0]


def test_wrong_data_goes_before_a_rule_that_was_broken_earlier():
    story = TraceBuilder()
    story.submit("a", A)
    story.allocate("a", 0, 2)  # page 0 is that of padding: at risk
    story.prefill("a")
    story.token("a", 17)
    story.decode(Row("a", seq_len=13))
    story.token("a", 30)
    story.close()
    wrong = {"outcome": "wrong", "first_divergence": 1, "reference_tokens": [17, 18],
             "tokens": [17, 30]}  # fmt: skip
    found = explained(run_of(story, {"request_id": "a", **wrong}), "a")
    assert found.findings[0].rule == "padding-page-allocated"
    assert (found.finding.rule, found.finding.cause) == ("seq-len-mismatch", "overread")
    assert found.invocations[1].own_row.seq_len == 13
    assert found.invocations[1].own_length == 7
    assert "13 (7)" in str(found)
    assert "First finding, in the same invocation (invocation 1" in " ".join(found.diagnosis)


# -- a pool that was too small -----------------------------------------------------------------


@pytest.mark.parametrize("outcome", ["empty", "timeout", "error"])
def test_a_short_pool_comes_with_the_first_leak(outcome):
    found = explained(short_pool(outcome), "c")
    output = " ".join(found.diagnosis)
    assert "3 pages needed, 1 free; of 8 pages, 2 held by requests, 0 cached, 5 leaked" in output
    assert "a has ended, but its page 1 is neither free nor cached" in output
    assert found.death is None
    pool = found.pool
    assert (pool[-1].leaked, pool[-1].live, pool[-1].free) == (5, 2, 1)
    assert "The request was in no finished invocation." in found.missing


def test_a_death_comes_with_its_frame_and_the_operation_that_failed_before_it():
    found = explained(short_pool("engine_died"), "c")
    output = " ".join(found.diagnosis)
    assert found.death.requests == ("c",)
    assert "shortfin_apps/llm/a.py:7 in run" in output
    assert "/x/site-packages" not in str(found)
    assert "TypeError: nothing to add" in output
    assert "3 pages needed" in output
    other = explained(short_pool("engine_died"), "b")
    assert "operations failed for c" in " ".join(other.diagnosis)


def test_a_stall_names_the_batch_peer_with_the_operation_failed():
    story = TraceBuilder()
    for request, prompt, page in (("a", A[:3], 1), ("b", B[:3], 2)):
        story.submit(request, prompt)
        story.allocate(request, page)
    story.prefill("a", "b")
    story.token("a", 14)
    story.token("b", 24)
    story.decode("a", "b")
    with story.within("allocate", "b"):
        story.event("alloc_failed", "b", free_pages=0, wanted=8)
        story.event("failed", "b", message="CacheAllocationFailure: too few")
    story.end("b", "empty")
    story.event("stall", "a", stall={"state": "executing", "phase": "decode", "invocations": []})
    story.done("a", "timeout")
    run = run_of(
        story,
        {"request_id": "a", "outcome": "timeout", "prompt_tokens": A[:3], "latency_s": 6.0},
        {"request_id": "b", "outcome": "empty", "prompt_tokens": B[:3]},
    )
    output = " ".join(explained(run, "a").diagnosis)
    assert "Its last invocation was 1, shared with b. Then allocate failed for b" in output
    assert "8 pages needed, 0 free" in output
    assert "“executing decode”" in output


def test_a_trial_that_hung_is_explained_by_its_status():
    story = TraceBuilder()
    story.submit("a", A)
    story.allocate("a", 1, 2)
    story.prefill("a", finishes=False)
    run = run_of(
        story,
        {"request_id": "a", "outcome": "timeout", "tokens": None, "text": None, "ttft_s": None,
         "latency_s": None, "submitted_s": None, "reference_tokens": None,
         "error": "The trial ended before this request was answered."},
        status="hung",
        status_detail="No Python ran for 10 s, so the process was ended.",
        engine_log=None,
    )  # fmt: skip
    found = explained(run, "a")
    assert "No Python ran for 10 s" in found.diagnosis[0]
    assert found.death.seq is None
    assert found.end == run.events["seq"].max()
    explanation_figure(found)


def test_a_rejection_names_the_requests_under_way():
    story = TraceBuilder()
    story.submit("a", A)
    story.done("a", "timeout")
    story.submit("b", B)
    story.submit("c", B)
    story.done("c", "rejected")
    story.done("b", "ok")
    run = run_of(
        story,
        {"request_id": "a", "outcome": "timeout"},
        {"request_id": "b"},
        {"request_id": "c", "outcome": "rejected", "error": "QUEUE_FULL: come back later"},
    )
    found = explained(run, "c")
    assert "QUEUE_FULL: come back later" in found.summary
    assert "1 other request had not ended: b." in found.diagnosis[0]
    assert "Earlier, a timed out" in found.diagnosis[1]


# -- what is missing --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("without", "output"),
    [
        (("events", "snapshots"), "No events were recorded"),
        (("snapshots",), "No snapshot was recorded"),
        (("invocations",), "No invocations were recorded in the trial"),
        (("events", "invocations", "snapshots"), "This trial has no recording"),
    ],
)
def test_what_was_not_recorded_is_listed(without, output):
    run = wrong_page()
    whole = {name: getattr(run, name) for name in ("events", "invocations", "snapshots")}
    run = type(run)(**{**vars(run), **{name: whole[name].iloc[:0] for name in without}})
    found = explained(run, "a")
    assert any(output in sentence for sentence in found.missing)
    assert output in str(found)
    assert found.divergence.given == 33
    explanation_figure(found)


def test_a_run_without_probabilities_shows_only_those_of_the_reference():
    run = wrong_page()
    run = type(run)(
        **{**vars(run), "invocations": run.invocations.assign(top_tokens=None, top_logprobs=None)}
    )
    found = explained(run, "a")
    assert found.divergence.engine is None
    assert "only the reference's are shown" in " ".join(found.missing)


def test_a_right_answer_is_no_failure_and_its_broken_rules_are_listed():
    found = explained(wrong_page(), "b")
    assert "did not fail" in found.summary
    assert found.diagnosis == ()
    story = TraceBuilder()
    story.submit("a", A)
    story.allocate("a", 0, 2)
    story.prefill("a")
    story.token("a", 17)
    story.close()
    [sentence] = explained(run_of(story, {"request_id": "a"}), "a").diagnosis
    assert "But a rule was broken" in sentence
    assert "Page 0" in sentence


def test_unknown_and_ambiguous_names_raise_one_sentence():
    run = wrong_page()
    with pytest.raises(RunError, match=r"no request 'z'\. It has a and b\."):
        explained(run, "z")
    with pytest.raises(RunError, match=r"no trial 'd'\. It has c\."):
        explained(run, "a", trial_id="d")
    double = {
        name: type(frame)(frame).assign(trial_id="d")
        for name, frame in vars(run).items()
        if hasattr(frame, "assign")
    }
    import pandas as pd

    joined = {name: pd.concat([getattr(run, name), frame]) for name, frame in double.items()}
    both = type(run)(**{**vars(run), **joined})
    with pytest.raises(RunError, match=r"2 trials .* trials: c \(wrong\) and d \(wrong\)\."):
        explained(both, "a")
    assert explained(both, "a", trial_id="d").finding.page == 3


# -- owners of a page at every event ----------------------------------------------------------

STEPS = st.lists(
    st.tuples(st.sampled_from(["take", "give", "leak", "publish"]), st.integers(1, 7)), max_size=14
)


@settings(max_examples=15, deadline=None)
@given(STEPS)
def test_owners_of_pages_equal_those_of_a_replay(steps):
    story = TraceBuilder()
    owner: dict[int, str] = {}
    for number, (step, page) in enumerate(steps):
        if step == "take" and page in story.state.free:
            owner[page] = f"r{number}"
            story.allocate(owner[page], page)
        elif step == "publish" and page in owner:
            if not any(node.page == page for node in story.state.nodes.values()):
                story.publish(owner[page], (number,) * 4, [page])
        elif step in ("give", "leak") and page in owner:
            request = owner.pop(page)
            story.drop(request, page)
            if step == "give" and not any(n.page == page for n in story.state.nodes.values()):
                story.free(request, page)
    run = run_of(story, {"request_id": "r"})
    trace = trace_of(run, "r")
    histories = histories_of(trace, range(1, 8))
    for history in histories:
        places = [(interval.begin, interval.end) for interval in history.owners]
        assert places[0][0] == 0
        assert all(end == begin for (_, end), (begin, _) in pairwise(places))
    handover = set(trace.events.loc[trace.events["kind"].isin(["acquire", "pages_dropped"]), "seq"])
    for seq in set(trace.events["seq"]) - handover:
        snapshot = cache_at(trace, int(seq))
        for history in histories:
            [interval, *_] = [s for s in reversed(history.owners) if s.begin <= seq]
            state = STATES[snapshot.states[history.page]]
            named = {FREE: "free", CACHED: "cached", UNOWNED: "leaked"}
            assert named.get(interval.owners[0], "live") == state
            assert state != "live" or interval.owners == snapshot.holders[history.page]
