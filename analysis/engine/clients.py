"""Client threads as in the reported test: released at once, each waiting for its answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from analysis.core.errors import EngineError
from analysis.workloads.workload import Answers, Request, Workload, check_output

if TYPE_CHECKING:
    import pandas as pd

    from analysis.engine.engine import Engine

OnResult = Callable[[dict[str, Any]], None]
"""Called with a row of the table `requests` the moment it ends, one call at a time."""

_BARRIER_TIMEOUT_S = 30.0
_LONGEST_PAUSE = 8
"""Times the first pause: those who were refused often must not keep the engine from its work."""


def run_workload(
    engine: Engine,
    workload: Workload,
    concurrency: int,
    *,
    timeout_s: float = 60.0,
    references: Answers | None = None,
    on_result: OnResult | None = None,
    resubmit_s: float | None = None,
) -> pd.DataFrame:
    """Ask a workload with `concurrency` client threads, and return the rows of `requests`.

    Request i belongs to client i modulo `concurrency`. All clients start at a barrier; each sends
    its next request when the one before it has ended (and not before its `arrival_s`). Every
    request gets a row, in the workload's order, judged against what it expects and against
    `references`, the reference decoder's answers, if given. With `resubmit_s`, a request that was
    refused is sent again after a pause of so many seconds, up to eight times as long after further
    refusals, until `timeout_s` have passed since it was first sent; its row is that of the last
    time, and `retries` says how often it was refused before.

    Ctrl-C ends it at once: no client sends any more, and what is under way is given up.
    """
    if concurrency < 1:
        raise EngineError(f"A concurrency of {concurrency} is impossible: choose at least 1.")
    if not workload.requests:
        raise EngineError("The workload holds no request, so there is nothing to ask.")
    clients = min(concurrency, len(workload.requests))
    barrier = threading.Barrier(clients)
    telling, stop = threading.Lock(), threading.Event()
    rows: dict[str, dict[str, Any]] = {}
    failures: list[BaseException] = []

    def client(number: int) -> None:
        barrier.wait(timeout=_BARRIER_TIMEOUT_S)
        started = time.monotonic()
        for position, request in enumerate(workload.requests[number::concurrency]):
            if stop.wait(max(0.0, started + request.arrival_s - time.monotonic())):
                return
            row = _ask(engine, request, timeout_s, references, resubmit_s, stop)
            row |= {"client": number, "position": position}
            with telling:
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
        # Whatever ends this early, as Ctrl-C does, ends the clients, too.
        stop.set()
        barrier.abort()
        engine.give_up(request.id for request in workload.requests)
        raise
    if failures:
        raise failures[0]

    from analysis.runs.tables import to_frame

    return to_frame("requests", [rows[request.id] for request in workload.requests])


def _ask(
    engine: Engine,
    request: Request,
    timeout_s: float,
    references: Answers | None,
    resubmit_s: float | None,
    stop: threading.Event,
) -> dict[str, Any]:
    deadline, retries = time.monotonic() + timeout_s, 0
    while True:
        asked = engine.submit(request.prompt, request.max_new_tokens, timeout_s, request.id)
        if stop.is_set():  # it may have come after all others were given up
            engine.give_up([request.id])
        # The engine ends every request at its deadline; the margin only guards against itself.
        done = asked.result(timeout=timeout_s + 10)
        if done.outcome != "rejected" or resubmit_s is None:
            break
        pause = resubmit_s * min(retries + 1, _LONGEST_PAUSE)
        if time.monotonic() + pause >= deadline or stop.wait(pause):
            break
        retries += 1
    reference = (references or {}).get((request.prompt, request.max_new_tokens))
    outcome, divergence = check_output(done.tokens, done.text, done.outcome, request, reference)
    return {
        "request_id": request.id,
        "trial_id": "",
        "family": request.family,
        "prompt": request.prompt,
        "prompt_tokens": list(done.prompt_tokens),
        "expected_text": request.expected,
        "reference_tokens": None if reference is None else list(reference),
        "text": done.text,
        "tokens": list(done.tokens),
        "outcome": outcome,
        "error": done.error,
        "first_divergence": divergence,
        "submitted_s": done.submitted_s,
        "latency_s": done.latency_s,
        "ttft_s": done.ttft_s,
        "retries": None if resubmit_s is None else retries,
    }
