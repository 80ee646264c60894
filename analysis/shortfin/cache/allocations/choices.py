"""Reports the logits from which each token of an answer was chosen."""

from __future__ import annotations

import importlib
from contextlib import suppress
from typing import Any

import shortfin.array as sfnp
from shortfin_apps.llm import components
from shortfin_apps.llm.components.generate import GenerateItemProcess

from analysis.shortfin.cache.allocations.server import APPEND_TOKEN, is_task_of
from analysis.shortfin.cache.probe import CURRENT_REQUEST
from analysis.shortfin.hooks import Hooks
from analysis.shortfin.verify import raw

_STRATEGIES = f"{components.__name__}.token_selection_strategy"


def hook_choices(probe: Any, hooks: Hooks) -> None:
    """Report every choice of a token to an `AllocationProbe`, in the way of the release."""
    if (beam := beam_class()) is None:
        _hook_argmax(probe, hooks)
    else:
        _hook_strategy(probe, hooks, beam)


def _hook_argmax(probe: Any, hooks: Hooks) -> None:
    """Report choices of a process that takes the argmax and appends it (up to 3.4)."""
    fault, read = hooks.observer.fault, probe.read_logits

    def wrap_argmax(argmax: Any) -> Any:
        def choosing(logits: Any, *args: Any, **named: Any) -> Any:
            try:
                request = CURRENT_REQUEST.get()
                if request is not None and hooks.observer.verifies and logits is not None:
                    read[request] = None
                    read[request] = raw(logits)
            except Exception as error:
                fault(error)
            return argmax(logits, *args, **named)

        return choosing

    def wrap_append(append: Any) -> Any:
        def appending(process: Any, token: int) -> None:
            try:
                request = process.gen_req.rid
                # A task may keep its method, also after the end of the observation.
                if request in read and is_task_of(probe.native, process):
                    if (logits := read.pop(request)) is not None:
                        probe.emit_chosen(request, logits, token)
                    else:
                        probe.emit("chosen", request_id=request)  # its logits are unknown
            except Exception as error:
                fault(error)
            append(process, token)

        return appending

    hooks.wrap(sfnp, "argmax", wrap_argmax)
    hooks.wrap(GenerateItemProcess, APPEND_TOKEN, wrap_append)
    hooks.also(read.clear)


def beam_class() -> Any:
    """Return the class that chooses the tokens of decodes; None for a release without it."""
    for module, name in (
        ("beams", "BaseBeam"),  # 3.6
        ("independent_token_selection_strategy", "IndependentBeam"),  # 3.5
    ):
        with suppress(ImportError):
            return getattr(importlib.import_module(f"{_STRATEGIES}.{module}"), name)
    return None


def _hook_strategy(probe: Any, hooks: Hooks, beam: Any) -> None:
    """Report choices of a strategy: `prefill` chooses the first token, beams the others."""
    observer = hooks.observer

    def report(request: Any, token: int, config: Any) -> None:
        if not observer.verifies or request._cache is not probe.cache or config.num_beams > 1:
            return
        greedy = config.top_k is None and config.top_p is None
        try:
            probe.emit_chosen(request.rid, raw(request.result_logits), token if greedy else None)
        except Exception as error:
            observer.fault(error)
            probe.emit("chosen", request_id=request.rid)  # its logits are unknown

    def wrap_prefill(prefill: Any) -> Any:
        async def choosing(strategy: Any, request: Any) -> Any:
            result = await prefill(strategy, request)
            try:
                if request.result_logits is not None:
                    config = strategy.token_selection_strategy_config.decode_config
                    report(request, int(request.input_token_ids[-1]), config)
            except Exception as error:
                observer.fault(error)
            return result

        return choosing

    def wrap_update(update: Any) -> Any:
        def updating(beam: Any) -> Any:
            try:
                report(beam.exec_req, int(beam.last_token), beam.decode_config)
            except Exception as error:
                observer.fault(error)
            return update(beam)

        return updating

    strategies = importlib.import_module(f"{_STRATEGIES}.base_token_selection_strategy")
    hooks.wrap(strategies.BaseTokenSelectionStrategy, "prefill", wrap_prefill)
    hooks.wrap(beam, "update_exec_req", wrap_update)
