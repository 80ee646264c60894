"""The parts of a server with allocations, under the names of the installed release."""

from __future__ import annotations

from typing import Any

from shortfin_apps.llm.components import generate, messages

try:  # from 3.3 on
    from shortfin_apps.llm.components.batcher import LlmExecutorProcess as Invocation
except ImportError:
    from shortfin_apps.llm.components.service import InferenceExecutorProcess as Invocation

__all__ = [
    "APPEND_TOKEN",
    "InferenceRequest",
    "Invocation",
    "batchers",
    "entry",
    "is_task_of",
    "request_id_of",
]

InferenceRequest: Any = getattr(messages, "LlmInferenceExecRequest", None) or getattr(
    messages, "InferenceExecRequest", None
)
"""Class of one request's steps."""
APPEND_TOKEN = next(
    (
        name
        for name in ("_append_token", "append_token")  # the former from 3.4 on
        if hasattr(generate.GenerateItemProcess, name)
    ),
    "",
)
"""Method of a request's task that adds a token to its answer; empty without one (3.6)."""
_BATCHERS = ("batcher", "prefill_batcher", "decode_batcher")


def batchers(owner: Any) -> list[Any]:
    """Return the batchers of a server or of a client: one, or from 3.3 on one for each phase."""
    found = (getattr(owner, name, None) for name in _BATCHERS)
    return [batcher for batcher in found if batcher is not None]


def entry(batcher: Any) -> str:
    """Return the name of the batcher's method that each submitted request passes.

    From 3.3 on a request keeps a reference to `submit`, so a hook there may come too late.
    """
    name = "handle_inference_request"
    return name if hasattr(batcher, name) else "submit"


def is_task_of(native: Any, task: Any) -> bool:
    """Return whether a request's task belongs to a server."""
    client = getattr(task, "client", None)
    if client is None:  # 3.6: it knows only the cache
        return bool(task.cache is native.page_cache)
    own = batchers(native)
    return any(batcher is one for batcher in batchers(client) for one in own)


def request_id_of(task: Any) -> str:
    """Return the request of a task."""
    return str(task.rid if hasattr(task, "rid") else task.gen_req.rid)
