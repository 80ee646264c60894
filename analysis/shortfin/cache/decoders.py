"""The base class of probes of releases in which a request's decoder chooses its tokens (3.7 on)."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from shortfin_apps.llm.components.batching.modes.default import LlmInvocationProcess
from shortfin_apps.llm.components.decoder.decoder import LlmDecoder, TokenSelector
from shortfin_apps.llm.components.device_array_cache import Allocation

from analysis.shortfin.cache.invocations import CURRENT_INVOCATION, FinishedInvocation
from analysis.shortfin.cache.probe import CURRENT_REQUEST, BaseProbe
from analysis.shortfin.hooks import Hooks
from analysis.shortfin.verify import raw


class DecoderProbe(BaseProbe):
    """Tracks the decoders of pending requests; each runs in its request's task."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._requests: dict[str, Any] = {}
        """Each pending request's objects that may hold pages: `pages()`, `manager` and `stock`."""
        self._invocations: dict[int, list[tuple[Any, FinishedInvocation]]] = {}
        """Unfinished calls by their first argument, each with its process."""

    @abstractmethod
    def pending_of(self, decoder: Any) -> Any:
        """Return the entry of `_requests` for a decoder."""

    def holdings(self) -> dict[str, list[int]]:
        return {request: pending.pages() for request, pending in list(self._requests.items())}

    def stock(self, request_id: str) -> list[int]:
        pending = self._requests.get(request_id)
        return pending.stock if pending else []

    def note_request(self, part: Any) -> None:
        self._requests[part._rid] = self.pending_of(part)

    def forget(self, request_id: str) -> None:
        super().forget(request_id)
        self._requests.pop(request_id, None)

    def hook(self, hooks: Hooks) -> None:
        self.hook_requests(hooks, LlmDecoder, self._begin)

        def copied(state: Any, result: Any, error: Any, src_page: int, dst_page: int) -> None:
            if error is None:
                value = self.copy_differs(src_page, dst_page)
                self.emit("copy", pages=[src_page, dst_page], value=value)

        hooks.around(self.pool, "copy_page_index", "copy", after=copied)

        ours = (self.native.prefill_functions, self.native.decode_functions)

        def started(process: Any) -> None:
            if not any(process._functions is functions for functions in ours):
                return  # of another engine
            self.starts_invocation(process)
            self.check_rows(process)

        def ended(state: Any, process: Any) -> None:
            # After an error, its arguments are not released.
            for key, calls in list(self._invocations.items()):
                if any(owner is process for owner, _ in calls):
                    for _, finished in self._invocations.pop(key, ()):
                        self.finish(finished)

        hooks.around_task(LlmInvocationProcess, "run", before=started, after=ended)
        self._hook_release(hooks)
        self._hook_choice(hooks)

    def check_rows(self, process: Any) -> None:
        """Report what is wrong with the pages of an invocation's requests when it starts."""

    def returned_invocation(self, finished: FinishedInvocation) -> None:
        # The arrays are released for the next call when the device has finished.
        call = (CURRENT_INVOCATION.get(), finished)
        self._invocations.setdefault(id(finished.arguments[0]), []).append(call)

    def _hook_release(self, hooks: Hooks) -> None:
        def wrap(release: Any) -> Any:
            def releasing(allocation: Any) -> Any:
                try:
                    for _, finished in self._invocations.pop(id(allocation._device), ()):
                        self.finish(finished)
                except Exception as error:
                    hooks.observer.fault(error)
                return release(allocation)

            return releasing

        hooks.wrap(Allocation, "release", wrap)
        hooks.also(self._invocations.clear)

    def _hook_choice(self, hooks: Hooks) -> None:
        """Report the logits from which each token of an answer was chosen."""
        observer = hooks.observer

        def report(selector: Any, request: str, logits: Any, index: Any, tokens: Any) -> None:
            try:
                token = _chosen(selector, tokens) if index is None else None
                self.emit_chosen(request, raw(logits), token)
            except Exception as error:
                observer.fault(error)
                self.emit("chosen", request_id=request)  # its logits are unknown

        def wrap(step: Any) -> Any:
            def stepping(selector: Any, logits: Any, indices: Any) -> Any:
                chosen = step(selector, logits, indices)
                try:
                    request = CURRENT_REQUEST.get()
                    if request in self._requests and observer.verifies and len(logits) == 1:
                        report(selector, request, logits[0], indices[0], chosen[1])
                except Exception as error:
                    observer.fault(error)
                return chosen

            return stepping

        hooks.wrap(TokenSelector, "step", wrap)

    def _begin(self, decoder: Any) -> str | None:
        if decoder._page_cache is not self.cache:
            return None
        self.note_request(decoder)
        return str(decoder._rid)


def current_request(*args: Any, **named: Any) -> str | None:
    """Return the request of the current task, whatever the arguments."""
    return CURRENT_REQUEST.get()


def _chosen(selector: Any, tokens: Any) -> int | None:
    """Return the token that a step chose; None if the selection is not greedy."""
    config = selector._decode_config
    kept = config.temperature in (None, 1.0) and config.logits_normalization.name != "SOFTMAX"
    if config.num_beams > 1 or not kept:
        return None
    # The token that ends an answer is not in the list of continuations.
    return int(tokens[0]) if len(tokens) else int(selector._eos_token_id)
