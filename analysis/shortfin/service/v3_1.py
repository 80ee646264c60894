"""shortfin 3.1: one batcher for both phases, a text protocol, everything on one worker thread."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import shortfin.array as sfnp
from shortfin_apps.llm.components import service as components
from shortfin_apps.llm.components.config_struct import ModelParams, PagedKVCacheParams
from shortfin_apps.llm.components.generate import ClientGenerateBatchProcess
from shortfin_apps.llm.components.io_struct import GenerateReqInput
from shortfin_apps.llm.components.manager import SystemManager
from shortfin_apps.llm.components.tokenizer import Tokenizer

from analysis.shortfin.cache.allocations.probe import AllocationProbe
from analysis.shortfin.cache.probe import CacheProbe
from analysis.shortfin.capture import tell_fault
from analysis.shortfin.port import (
    Answer,
    Call,
    Service,
    Setup,
    cache_settings,
    model_settings,
    parameters_of,
    share_out,
    type_of,
    unread,
)


class _Ids:
    """A prompt that is token ids already, in the shape of the tokenizer's encoding."""

    def __init__(self, ids: tuple[int, ...]) -> None:
        self.ids = list(ids)  # the engine appends to the list that it is given


class _Client(ClientGenerateBatchProcess):  # type: ignore[misc]
    """The engine's own client process, which also tells when a token arrived."""

    def tokenize(self) -> Any:
        call = self.responder.call
        return super().tokenize() if call.text is not None else [_Ids(call.token_ids)]

    def stream_results(self, gen_process: Any) -> None:
        try:
            self.responder.call.on_token(gen_process.result_token_ids[-1])
        except Exception as error:
            tell_fault("Noting a token", error)
        super().stream_results(gen_process)


class _Responder:
    """What the engine answers to, in place of a web request's."""

    is_disconnected = False

    def __init__(self, call: Call) -> None:
        self.call = call
        self._answered = threading.Event()

    def send_response(self, response: bytes) -> None:
        self._answered.set()
        try:
            answer = Answer(text=response.removeprefix(b"data: ").removesuffix(b"\n\n").decode())
        except Exception as error:
            answer = unread(error)
        self.call.on_end(answer)

    def ensure_response(self) -> None:
        if not self._answered.is_set():
            self.call.on_end(Answer(error="The engine ended the request without an answer."))

    def fail(self, error: str) -> None:
        """End the request with an error, whatever the engine says afterwards."""
        self._answered.set()
        self.call.on_end(Answer(error=error))

    def start_response(self, **_: object) -> None: ...

    def stream_part(self, content: bytes | None) -> None: ...


class V31(Service):
    """The generation of 3.1.0."""

    def __init__(self, setup: Setup) -> None:
        config, model = setup.config, setup.model.config
        self.name = setup.name
        ours = {*model_settings(setup), "paged_kv_cache"}
        options = share_out("3.1.0", config.options, {
            "system": parameters_of(SystemManager.__init__, {"device", "device_ids"}),
            "service": {"program_isolation"},
            "model": parameters_of(ModelParams, ours),
        })  # fmt: skip
        # This generation has one type for both; the page table takes it.
        dtype = str(options["model"].get("attn_dtype", model.kv_cache_dtype))
        options["model"]["attn_dtype"] = type_of(dtype, sfnp)
        self.sysman = SystemManager(
            device=setup.device, device_ids=list(config.device_ids) or None, **options["system"]
        )
        self.native = components.GenerateService(
            name=setup.name,
            sysman=self.sysman,
            tokenizer=Tokenizer.from_tokenizer_json_file(
                setup.model.tokenizer_json, eos_token=setup.model.eos_token
            ),
            model_params=ModelParams(
                **model_settings(setup),
                paged_kv_cache=PagedKVCacheParams(
                    **cache_settings(setup),
                    prefix_sharing_algorithm=config.prefix_sharing,
                ),
                **options["model"],
            ),
            **options["service"],
        )
        self.native.load_inference_module(setup.vmfb)
        self.native.load_inference_parameters(*setup.model.parameters, parameter_scope="model")

        self._responders: dict[str, _Responder] = {}

    def start(self) -> None:
        self.start_system()
        self.native.start()

    def launch(self, call: Call) -> None:
        # Up to 3.5 the engine answers one token more than it is asked for.
        request = GenerateReqInput(
            text=call.text if call.text is not None else "",
            sampling_params={"max_completion_tokens": call.max_new_tokens - 1},
            rid=call.request_id,
        )
        request.post_init()
        responder = _Responder(
            replace(call, on_end=lambda answer: self._ended(responder, call, answer))
        )
        self._responders[call.request_id] = responder
        _Client(self.native, request, responder).launch()

    def _ended(self, responder: _Responder, call: Call, answer: Answer) -> None:
        if self._responders.get(call.request_id) is responder:  # not one that got the name since
            del self._responders[call.request_id]
        call.on_end(answer)

    def responder_of(self, request_id: str) -> Any:
        return self._responders.get(request_id)

    def request_state(self, request_id: str) -> str:
        batcher = self.native.batcher
        for phase in ("prefill", "decode"):
            if any(r.rid == request_id for r in list(getattr(batcher, f"pending_{phase}s"))):
                return f"pending {phase}"
        return "unknown"

    def dead_worker(self) -> str | None:
        return f"The batcher ended: {self.native.batcher}." if self.has_stopped() else None

    def has_stopped(self) -> bool:
        return "TERMINATED" in str(self.native.batcher)

    def stop_service(self) -> None:
        self.native.shutdown()

    def _probe_class(self) -> type[CacheProbe]:
        return AllocationProbe

    def invocation_class(self) -> Any:
        return components.InferenceExecutorProcess


SERVICE = V31
