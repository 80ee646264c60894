"""Cases of rules: requests that are not served."""

from __future__ import annotations

from rule_cases import A, B, begin, breaks, ready, silent
from trace_builder import Row

from analysis.sanitizer.findings import WRONG_DATA


@breaks("stuck-request", "worker-died")
def a_worker_that_died(story):
    begin(story, "a", A, 1, 2)
    place = story.event("worker_died", "a", message="it raised IndexError.")
    story.end("a", "error")
    return place


def given_up(story, state, phase=None):
    ready(story, "a", A, 1, 2)
    if state is not None:
        threads = [{"thread": "MainThread 1", "frames": ["wait"]}]
        stall = {"state": state, "phase": phase, "invocations": [], "threads": threads}
        story.event("stall", "a", stall=stall)
    place = story.end("a", "timeout")
    later(story, 2.0)
    return place


def later(story, seconds):
    """Have something that concerns no request happen so long after the beginning."""
    story.event("memory", value=1, t_s=seconds)


@breaks("stuck-request", "batcher-stalled")
def a_request_never_boarded(story):
    return given_up(story, "pending", "decode")


@breaks("stuck-request", "batcher-stalled")
def a_request_that_waits_for_its_group(story):
    return given_up(story, "reserved")


@breaks("stuck-request", "invocation-pending")
def a_invocation_that_never_lands(story):
    ready(story, "a", A, 1, 2)
    story.event("invocation_unfinished", value=1, phase="decode", request_ids=["a"])
    place = story.end("a", "timeout")
    later(story, 2.0)
    return place


@breaks("stuck-request", "lost-wakeup")
def a_request_that_nobody_wakes(story):
    ready(story, "a", A, 1, 2)
    story.decode("a")
    place = story.end("a", "timeout")
    later(story, 2.0)
    return place


@breaks("stuck-request", "batcher-stalled")
def a_request_of_which_nothing_is_known_but_that_no_invocation_began(story):
    return given_up(story, "executing", "decode")


def locked(story, *locks):
    """Give a request up while threads had these locks for so many seconds."""
    kept = [{"lock": name, "thread": f"{name}'s", "seconds": seconds} for name, seconds in locks]
    ready(story, "a", A, 1, 2)
    story.event("stall", "a", stall={"state": "pending", "phase": "decode", "locks": kept})
    place = story.end("a", "timeout")
    later(story, 2.0)
    return place


@breaks("stuck-request", "lock-held")
def a_lock_that_is_not_released(story):
    return locked(story, ("pool", 1.7))


@breaks("stuck-request", "batcher-stalled")
def a_lock_held_no_longer_than_on_a_busy_machine(story):
    return locked(story, ("pool", 0.6))


@breaks("stuck-request", "worker-died")
def a_lock_of_a_worker_that_died(story):
    begin(story, "b", B, 3, 4)
    place = story.event("worker_died", "a", message="it raised IndexError.")
    story.end("b", "error")
    locked(story, ("pool", 3.0))
    return place


@breaks("stuck-request", "batcher-stalled")
def a_request_that_starves_while_others_are_served(story):
    ready(story, "a", A, 1, 2)
    begin(story, "b", B, 3, 4)
    place = story.end("a", "timeout")
    invocation = story.prefill("b")
    invocation.t_s = 10.5
    later(story, 10.6)
    return place


@silent
def a_request_that_its_client_gave_up_and_the_engine_ended(story):
    ready(story, "a", A, 1, 2)
    story.event("done", "a", outcome="timeout")
    story.decode("a")
    story.done("a", "timeout")
    story.event("late", "a", outcome="error")
    later(story, 5.0)


@silent
def a_request_that_the_engine_ended_at_the_same_time(story):
    ready(story, "a", A, 1, 2)
    story.event("late", "a", outcome="ok")
    story.end("a", "timeout")
    later(story, 5.0)


@breaks("duplicate-execution", "repeated-step")
def a_decode_made_twice(story):
    ready(story, "a", A, 1, 2)
    story.decode("a")
    return story.decode(Row("a", tokens=(100,), start=6, seq_len=7))


@breaks("duplicate-execution", "repeated-step")
def a_prefill_made_twice(story):
    ready(story, "a", A, 1, 2)
    invocation = story.prefill("a")
    story.decode("a")
    return invocation


@breaks("duplicate-execution", "repeated-step", also=(("wrong-kv-read", "padding"),))
def a_prefill_made_again_over_the_answer(story):
    ready(story, "a", A, 1, 2)
    story.decode("a")
    story.token("a", 101)
    invocation = story.prefill("a")  # its padding is written over the first decode's slot
    story.lengths["a"] = 7
    story.decode("a")
    return invocation


@breaks("duplicate-execution", "repeated-step")
def a_row_that_is_in_an_invocation_twice(story):
    ready(story, "a", A, 1, 2)
    return story.decode("a", Row("a", tokens=(100,), start=6, seq_len=7))


@breaks(
    "position-mismatch",
    "behind",
    page=2,
    severity=WRONG_DATA,
    also=(("token-mismatch", "wrong-token"), ("seq-len-mismatch", "underread")),
)
def a_decode_with_the_last_ones_arguments(story):
    ready(story, "a", A, 1, 2)
    story.decode("a")
    story.token("a", 101)
    return story.decode(Row("a", tokens=(100,), start=6, seq_len=7))


@breaks(
    "block-table-mismatch",
    "free-page",
    page=5,
    also=(("duplicate-execution", "repeated-step"), ("wrong-kv-read", "uninitialized")),
)
def a_decode_made_again_with_another_table(story):
    ready(story, "a", A, 1, 2)
    story.decode("a")
    return story.decode(Row("a", tokens=(100,), start=6, seq_len=7, table=(1, 5)))


@breaks("empty-answer", "no-tokens")
def a_request_without_a_token(story):
    begin(story, "a", A, 1, 2)
    return story.end("a", "empty")


@breaks("stuck-request", "not-ended", close=False)
def a_request_never_ended(story):
    ready(story, "a", A, 1, 2)


@breaks("stuck-request", "not-ended", close=False)
def a_request_that_stood_still_when_its_process_was_killed(story):
    ready(story, "a", A, 1, 2)
    story.event("cut", t_s=3600.0)


@silent
def a_request_that_was_rejected(story):
    story.submit("a", A)
    story.done("a", "rejected")
    story.submit("b", B)
    story.done("b", "error")


@breaks("token-without-invocation", "extra-token", severity=WRONG_DATA)
def a_token_from_nowhere(story):
    ready(story, "a", A, 1, 2)
    return story.token("a", 101)


@breaks("token-without-invocation", "extra-token", severity=WRONG_DATA)
def a_token_from_nowhere_after_chunks(story):
    begin(story, "a", A, 1, 2)
    story.prefill(Row("a", start=0, seq_len=4))
    story.prefill(Row("a", start=4))
    return story.token("a", 100, 101)


@breaks("token-without-invocation", "completed-early")
def an_answer_cut_short(story):
    ready(story, "a", A, 1, 2)
    story.release("a")
    return story.done("a", "ok", missing=3)


@silent
def an_answer_cut_short_by_an_error(story):
    ready(story, "a", A, 1, 2)
    story.release("a")
    story.done("a", "error", missing=3)
    begin(story, "b", B, 1, 2)
    story.prefill("b")
    story.token("b", 1)
    story.release("b")
    story.done("b", "ok", missing=0)
