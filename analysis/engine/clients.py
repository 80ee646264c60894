"""Client threads as in the reported test: they start together, and each waits for its answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any, Protocol

from analysis.core.errors import EngineError
from analysis.engine.completion import Completion
from analysis.workloads.workload import Answers, Request, Workload, check_output

if TYPE_CHECKING:
    import pandas as pd


class RequestSender(Protocol):
    """The methods of an engine that clients use."""

    def submit(
        self, prompt: str, max_new_tokens: int, timeout_s: float, request_id: str
    ) -> Future[Completion]:
        """Send a request, and return the future of its completion."""

    def give_up(self, request_ids: Iterable[str]) -> None:
        """End the pending ones of these requests."""


OnResult = Callable[[dict[str, Any]], None]
"""Called with each ended request's row of the table `requests`, one call at a time."""

_BARRIER_TIMEOUT_S = 30.0
_LONGEST_PAUSE = 8
"""Longest pause, as a multiple of the first: retries must not keep the engine busy."""


def run_workload(
    engine: RequestSender, workload: Workload, concurrency: int, **options: Any
) -> pd.DataFrame:
    """Do what `send_workload` does, with its options; return the table `requests`."""
    from analysis.runs.tables import to_frame

    return to_frame("requests", send_workload(engine, workload, concurrency, **options))


def send_workload(
    engine: RequestSender,
    workload: Workload,
    concurrency: int,
    *,
    timeout_s: float = 60.0,
    references: Answers | None = None,
    on_result: OnResult | None = None,
    resubmit_s: float | None = None,
) -> list[dict[str, Any]]:
    """Send a workload's requests from `concurrency` client threads; return the rows of `requests`.

    Client c sends the requests i with i modulo `concurrency` = c. All clients start at a barrier.
    Each sends its next request when the previous one has ended, not before its `arrival_s`. The
    rows are in the workload's order. Outputs are checked against the expected text and against
    `references`, the reference decoder's answers.

    A request that has not ended `cancel_after_s` after its submission is given up; its outcome is
    cancelled then. If `resubmit_s` is set, a rejected request is sent again after that many
    seconds, then with pauses of up to eight times that, until `timeout_s` after its first
    submission. Its row is that of the last attempt; `retries` counts the rejected attempts.

    Ctrl-C ends the run at once: pending requests are given up.
    """
    if concurrency < 1:
        raise EngineError(f"The concurrency must be at least 1, not {concurrency}.")
    if not workload.requests:
        raise EngineError("The workload has no requests. Give at least one.")
    clients = min(concurrency, len(workload.requests))
    barrier = threading.Barrier(clients)
    reporting, stop = threading.Lock(), threading.Event()
    rows: dict[str, dict[str, Any]] = {}
    failures: list[BaseException] = []

    def client(number: int) -> None:
        barrier.wait(timeout=_BARRIER_TIMEOUT_S)
        started = time.monotonic()
        for position, request in enumerate(workload.requests[number::concurrency]):
            if stop.wait(max(0.0, started + request.arrival_s - time.monotonic())):
                return
            row = _send(engine, request, timeout_s, references, resubmit_s, stop)
            row |= {"client": number, "position": position}
            with reporting:
                if stop.is_set():
                    return
                rows[request.id] = row
                if on_result is not None:
                    on_result(row)

    def run(number: int) -> None:
        try:
            client(number)
        except BaseException as error:
            if not stop.is_set():
                failures.append(error)
            stop.set()

    threads = [
        threading.Thread(target=run, args=(n,), name=f"cachelab-client-{n}", daemon=True)
        for n in range(clients)
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException:
        # Ctrl-C and errors stop the clients.
        stop.set()
        barrier.abort()
        engine.give_up(request.id for request in workload.requests)
        raise
    if failures:
        raise failures[0]
    return [rows[request.id] for request in workload.requests]


def _cancels(engine: RequestSender, request: Request, future: Future[Completion]) -> bool:
    """Wait until a request has ended or its client leaves; return whether it left."""
    if request.cancel_after_s is None or wait([future], request.cancel_after_s).done:
        return False
    engine.give_up([request.id])
    return True


def _send(
    engine: RequestSender,
    request: Request,
    timeout_s: float,
    references: Answers | None,
    resubmit_s: float | None,
    stop: threading.Event,
) -> dict[str, Any]:
    deadline, retries = time.monotonic() + timeout_s, 0
    while True:
        future = engine.submit(request.prompt, request.max_new_tokens, timeout_s, request.id)
        if stop.is_set():  # all other requests may have been given up already
            engine.give_up([request.id])
        cancelled = _cancels(engine, request, future)
        # The engine ends every request at its deadline; the margin is for a bug in that.
        done = future.result(timeout=timeout_s + 10)
        if done.outcome != "rejected" or resubmit_s is None:
            break
        pause = resubmit_s * min(retries + 1, _LONGEST_PAUSE)
        if time.monotonic() + pause >= deadline or stop.wait(pause):
            break
        retries += 1
    reference = (references or {}).get((request.prompt, request.max_new_tokens))
    outcome = "cancelled" if cancelled and done.outcome == "timeout" else done.outcome
    answers = [
        (*check_output(tokens, text, outcome, request, reference), tokens, text)
        for tokens, text in done.beams or [(done.tokens, done.text)]
    ]
    # An answer with several beams is right if one of them is.
    outcome, divergence, tokens, text = max(answers, key=lambda answer: answer[0] == "ok")
    return {
        "request_id": request.id,
        "trial_id": "",
        "family": request.family,
        "prompt": request.prompt,
        "prompt_tokens": list(done.prompt_tokens),
        "expected_text": request.expected,
        "reference_tokens": None if reference is None else list(reference),
        "text": text,
        "tokens": list(tokens),
        "outcome": outcome,
        "error": done.error,
        "first_divergence": divergence,
        "submitted_s": done.submitted_s,
        "latency_s": done.latency_s,
        "ttft_s": done.ttft_s,
        "retries": None if resubmit_s is None else retries,
    }
