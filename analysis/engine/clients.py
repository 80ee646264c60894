"""Client threads as in the reported test: released at once, each waiting for its answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from analysis.errors import EngineError
from analysis.workload import Answers, Request, Workload, judge

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
    time, and `refusals` says how often it was sent in vain.
    """
    if concurrency < 1:
        raise EngineError(f"A concurrency of {concurrency} is impossible: choose at least 1.")
    clients = min(concurrency, len(workload.requests))
    barrier = threading.Barrier(clients)
    telling = threading.Lock()
    rows: dict[str, dict[str, Any]] = {}

    def client(number: int) -> None:
        barrier.wait(timeout=_BARRIER_TIMEOUT_S)
        started = time.monotonic()
        for position, request in enumerate(workload.requests[number::concurrency]):
            if (early := started + request.arrival_s - time.monotonic()) > 0:
                time.sleep(early)
            row = _ask(engine, request, timeout_s, references, resubmit_s)
            row |= {"client": number, "position": position}
            with telling:
                rows[request.id] = row
                if on_result is not None:
                    on_result(row)

    with ThreadPoolExecutor(clients, thread_name_prefix="cachelab-client") as pool:
        for future in [pool.submit(client, number) for number in range(clients)]:
            future.result()

    from analysis.tables import to_frame

    return to_frame("requests", [rows[request.id] for request in workload.requests])


def _ask(
    engine: Engine,
    request: Request,
    timeout_s: float,
    references: Answers | None,
    resubmit_s: float | None,
) -> dict[str, Any]:
    deadline, refusals = time.monotonic() + timeout_s, 0
    while True:
        asked = engine.submit(request.prompt, request.max_new_tokens, timeout_s, request.id)
        # The engine ends every request at its deadline; the margin only guards against itself.
        done = asked.result(timeout=timeout_s + 10)
        if done.outcome != "rejected" or resubmit_s is None:
            break
        pause = resubmit_s * min(refusals + 1, _LONGEST_PAUSE)
        if time.monotonic() + pause >= deadline:
            break
        refusals += 1
        time.sleep(pause)
    reference = (references or {}).get((request.prompt, request.max_new_tokens))
    outcome, divergence = judge(done.tokens, done.text, done.outcome, request, reference)
    return {
        "request_id": request.id,
        "cell_id": "",
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
        "refusals": None if resubmit_s is None else refusals,
    }
