"""Faults in the completion of a request's steps, between the batcher and the request."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from analysis.shortfin.treatment import LiveEngine, replaced
from analysis.treatments.faults.base import Fault, Injection, Site, fault, place_of

if TYPE_CHECKING:
    from analysis.shortfin.port import Call


class SubmitFault(Fault):
    """A fault in the submission of a decode to the batcher: `function(submit, item, last)`.

    `last` are the logits of the request's last step.
    """

    after = 4
    """Number of the request's decodes that are submitted unchanged first."""

    def apply(self, engine: LiveEngine, undo: ExitStack) -> None:
        """Try every submitted decode."""
        submitted: dict[str, int] = {}

        def edit(item: Any, submit: Callable[[Any], None]) -> None:
            submitted[item.rid] = count = submitted.get(item.rid, 0) + 1
            if count > self.after and self.targets(item.rid):
                self.injected = Injection(item.rid)
                type(self).function(submit, item, self.memory.get(item.rid))
                return
            self._keep_logits(item)
            submit(item)

        engine.service.edits.edit_submissions(engine.service, undo, edit)

    def _keep_logits(self, item: Any) -> None:
        """Keep the logits of a step when the request is prepared for its next one."""
        reset = item.reset

        def kept(phase: Any) -> None:
            self.memory[item.rid] = item.result_logits
            reset(phase)

        if "reset" not in vars(item):
            item.reset = kept


class CallFault(Fault):
    """A fault in the launch of a request: `function(service, call, launch)`."""

    def apply(self, engine: LiveEngine, undo: ExitStack) -> None:
        """Try every launched request that is long enough."""
        service = engine.service
        assert service is not None

        @replaced(undo, service, "launch")
        def launched(launch: Callable[[Call], None], call: Call) -> None:
            if not self.targets(call.request_id) or call.max_new_tokens < 4:
                launch(call)
                return
            self.injected = Injection(call.request_id, seq=place_of(engine.probe))
            type(self).function(service, call, launch)


@fault("lost-completion", "stuck-request", "lost-wakeup", needs=["request-list"])
def lost_completion(site: Site) -> Injection | None:
    """Does not wake one request when its invocation has finished."""
    if site.row != site.invocation.real - 1:
        return None  # the rows before it must keep their indices
    requests = site.service.requests_of(site.invocation.process)
    site.invocation.afterwards = lambda: site.service.edits.mute(requests, -1)
    return site.injection()


@fault("completed-early", "token-without-invocation", "extra-token", kind=SubmitFault,
       needs=["request-list"])  # fmt: skip
def completed_early(submit: Callable[[Any], None], item: Any, last: Any) -> None:
    """Reports a decode as done without an invocation, with the previous results."""
    item.result_logits = last
    item.done.set_success()


@fault("too-short", "token-without-invocation", "completed-early", kind=CallFault)
def too_short(service: Any, call: Call, launch: Callable[[Call], None]) -> None:
    """Gives one request three tokens fewer than requested."""
    launch(dataclasses.replace(call, max_new_tokens=call.max_new_tokens - 3))
