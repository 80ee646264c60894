"""shortfin 3.1 and 3.2: one batcher for both phases, everything on one worker thread."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import shortfin.array as sfnp
from shortfin_apps.llm.components import config_struct
from shortfin_apps.llm.components import service as components
from shortfin_apps.llm.components.config_struct import ModelParams, PagedKVCacheParams
from shortfin_apps.llm.components.generate import ClientGenerateBatchProcess
from shortfin_apps.llm.components.io_struct import GenerateReqInput
from shortfin_apps.llm.components.manager import SystemManager

from analysis.shortfin.capture import report_fault
from analysis.shortfin.port import Answer, Call, Setup
from analysis.shortfin.service.common import (
    Responder,
    Service,
    cache_settings,
    generate_request,
    model_settings,
    parameters_of,
    share_out,
    tokenizer_of,
    type_of,
)

ANSWERS_IDS = "return_input_ids" in parameters_of(GenerateReqInput)
"""Whether a prompt and an answer can be token ids (#862, from 3.2 on), not only texts."""


class _Ids:
    """A prompt of token ids, in the shape of the tokenizer's encoding."""

    def __init__(self, ids: tuple[int, ...]) -> None:
        self.ids = list(ids)  # the engine appends to this list


class Client(ClientGenerateBatchProcess):  # type: ignore[misc]
    """The engine's client process, which also reports the arrival of tokens."""

    def tokenize(self) -> Any:
        call = self.responder.call
        return super().tokenize() if call.text is not None else [_Ids(call.token_ids)]

    def stream_results(self, gen_process: Any) -> None:
        try:
            self.responder.call.on_token(gen_process.result_token_ids[-1])
        except Exception as error:
            report_fault("Noting a token", error)
        super().stream_results(gen_process)


class _Responder(Responder):
    def read(self, response: bytes) -> Answer:
        if ANSWERS_IDS:
            return Answer(tokens=tuple(map(int, json.loads(response))))
        return Answer(text=response.removeprefix(b"data: ").removesuffix(b"\n\n").decode())

    def read_stream(self, parts: Sequence[bytes]) -> Answer:
        if ANSWERS_IDS:
            return super().read_stream(parts)
        return self.read(parts[-1]) if parts else Answer(text="")  # each part has the text so far


class V31(Service):
    """The generation of 3.1 and 3.2."""

    surplus_tokens = 1

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        config, model = setup.config, setup.model.config
        ours = {*model_settings(setup), "paged_kv_cache"}
        options = share_out(config.options, {
            "system": parameters_of(SystemManager.__init__, {"device", "device_ids"}),
            "service": {"program_isolation"},
            "request": {"stream"},
            "model": parameters_of(ModelParams, ours),
        })  # fmt: skip
        self.streams = bool(options["request"].get("stream"))
        # This generation has one type for both; the page table uses it.
        dtype = str(options["model"].get("attn_dtype", model.kv_cache_dtype))
        options["model"]["attn_dtype"] = type_of(dtype, sfnp)
        self.sysman = SystemManager(
            device=setup.device, device_ids=list(config.device_ids) or None, **options["system"]
        )
        # From 3.2 on, the server has parameters of its own, and the algorithm is one of them.
        sharing = {"prefix_sharing_algorithm": config.prefix_sharing}
        server_class = getattr(config_struct, "ServerParams", None)
        server = {} if server_class is None else {"server_params": server_class(**sharing)}
        self.native = components.GenerateService(
            name=setup.name,
            sysman=self.sysman,
            tokenizer=tokenizer_of(setup),
            model_params=ModelParams(
                **model_settings(setup),
                paged_kv_cache=PagedKVCacheParams(
                    **cache_settings(setup), **({} if server else sharing)
                ),
                **options["model"],
            ),
            **server,
            **options["service"],
        )
        self.load(setup)

    def launch(self, call: Call) -> None:
        sampling = {"max_completion_tokens": call.max_new_tokens - self.surplus_tokens}
        request = generate_request(call, sampling, ids=ANSWERS_IDS, stream=self.streams)
        responder = self.responders[call.request_id] = _Responder(call, self.end)
        Client(self.native, request, responder).launch()

    def request_state(self, request_id: str) -> str:
        batcher = self.native.batcher
        for phase in ("prefill", "decode"):
            if any(r.rid == request_id for r in list(getattr(batcher, f"pending_{phase}s"))):
                return f"pending {phase}"
        return "unknown"

    def workers(self) -> dict[str, str]:
        return {"batcher": str(self.native.batcher)}

    def invocation_class(self) -> Any:
        return components.InferenceExecutorProcess


SERVICE = V31
