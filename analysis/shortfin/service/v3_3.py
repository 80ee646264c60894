"""shortfin 3.3 and 3.4: a batcher for each phase, everything on one worker thread."""

from __future__ import annotations

import json
from typing import Any

import shortfin.array as sfnp
from shortfin_apps.llm.components import batcher as batching
from shortfin_apps.llm.components import config_struct, io_struct
from shortfin_apps.llm.components import service as components
from shortfin_apps.llm.components.config_struct import (
    ModelParams,
    PagedKVCacheParams,
    ServerParams,
)
from shortfin_apps.llm.components.generate import ClientGenerateBatchProcess
from shortfin_apps.llm.components.manager import LlmSystemManager

from analysis.shortfin.capture import report_fault
from analysis.shortfin.config import PHASES
from analysis.shortfin.hooks import replace_attribute
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

_DECODE_CONFIG = getattr(config_struct, "DecodeConfig", None)
"""Class of the selection of tokens; None in 3.3, which is always greedy."""
_PAGE_SIZES = "paged_kv_block_size_elements_per_device"
_OURS = {
    "paged_kv_cache", "prefix_sharing_algorithm", "device_ids", "decode_config", _PAGE_SIZES,
    "use_new_decoder", "use_native_impls",  # 3.6: a decoder that takes pages from the pool itself
}  # fmt: skip
"""Parameters of the release that are no options."""
_DEVICE_OPTIONS = {
    "async_allocs": "amdgpu_async_allocations",
    "async_caching": "amdgpu_async_caching",
    "amdgpu_allocators": "amdgpu_allocators",
    "amdgpu_allow_device_reuse": "amdgpu_allow_device_reuse",
}
"""Parameters of the system manager, each with its name among those of the server."""
_STREAMS = hasattr(ClientGenerateBatchProcess, "stream_results")
"""Whether answers can be streamed (up to 3.5)."""
_SAMPLING = getattr(io_struct, "SamplingParams", dict)


class Client(ClientGenerateBatchProcess):  # type: ignore[misc]
    """The engine's client process, which also reports the arrival of tokens."""

    def stream_results(self, gen_process: Any) -> None:
        try:
            self.responder.call.on_token(gen_process.result_token_ids[-1])
        except Exception as error:
            report_fault("Noting a token", error)
        super().stream_results(gen_process)


class _Responder(Responder):
    def read(self, response: Any) -> Answer:
        if hasattr(response, "status_code"):  # 3.4 refuses a request with a web response
            content = json.loads(response.body)
            detail = f"current_size {content['current_size']}, max_size {content['max_size']}"
            return Answer(refused=True, error=f"{content['code']}: {content['error']} ({detail})")
        return Answer(tokens=tuple(map(int, json.loads(response))))


class V33(Service):
    """The generation of 3.3 and 3.4."""

    surplus_tokens = 1

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.sysman, params, server_params = self._parts(setup)
        # 3.4 prints its queue's size on stdout, which belongs to the caller.
        undo = replace_attribute(components, "print", lambda *_: None)
        try:
            self.native = components.LlmGenerateService(
                name=setup.name,
                sysman=self.sysman,
                tokenizer=tokenizer_of(setup),
                model_params=params,
                server_params=server_params,
                program_isolation=server_params.program_isolation,
            )
        finally:
            undo()
        self.load(setup)

    def _parts(self, setup: Setup) -> tuple[Any, Any, Any]:
        """Return the system manager, and the parameters of model and server."""
        config, model = setup.config, setup.model.config
        ours = {*model_settings(setup), *cache_settings(setup), *_OURS}
        options = share_out(config.options, {
            "server": parameters_of(ServerParams, ours),
            "decode": set() if _DECODE_CONFIG is None
            else parameters_of(_DECODE_CONFIG, {"eos_token_id", "max_completion_tokens"}),
            "model": parameters_of(ModelParams, ours),
            "cache": parameters_of(PagedKVCacheParams, ours),
            "system": parameters_of(LlmSystemManager.__init__, {"device", "device_ids"}),
            "request": {"stream"} if _STREAMS else set(),
        })  # fmt: skip
        self.streams = bool(options["request"].get("stream"))
        dtype = model.kv_cache_dtype
        if "kv_cache_dtype" in parameters_of(PagedKVCacheParams):
            options["cache"].setdefault("kv_cache_dtype", dtype)
        else:  # 3.3 has one type for both; the page table uses it
            options["model"].setdefault("attn_dtype", dtype)
        for share in (options["model"], options["cache"]):
            for name in {"attn_dtype", "kv_cache_dtype"} & set(share):
                share[name] = type_of(str(share[name]), sfnp)
        if _PAGE_SIZES in parameters_of(PagedKVCacheParams):
            options["cache"][_PAGE_SIZES] = [model.page_elements]
        params = ModelParams(
            **model_settings(setup),
            paged_kv_cache=PagedKVCacheParams(**cache_settings(setup), **options["cache"]),
            **options["model"],
        )
        decode = {}
        if _DECODE_CONFIG is not None:
            normalization = {"logits_normalization": params.logits_normalization}
            decode["decode_config"] = _DECODE_CONFIG(**{**normalization, **options["decode"]})
        server_params = ServerParams(
            prefix_sharing_algorithm=config.prefix_sharing,
            device_ids=list(config.device_ids),
            **decode,
            **options["server"],
        )
        device_options = {
            name: getattr(server_params, source)
            for name, source in _DEVICE_OPTIONS.items()
            if hasattr(server_params, source)
        }
        sysman = LlmSystemManager(
            device=setup.device,
            device_ids=server_params.device_ids or None,
            **{**device_options, **options["system"]},
        )
        return sysman, params, server_params

    def launch(self, call: Call) -> None:
        sampling = _SAMPLING(max_completion_tokens=call.max_new_tokens - self.surplus_tokens)
        request = generate_request(call, sampling, stream=self.streams)
        responder = self.responders[call.request_id] = _Responder(call, self.end)
        Client(self.native, request, responder).launch()

    def request_state(self, request_id: str) -> str:
        for phase in PHASES:
            batcher = getattr(self.native, f"{phase}_batcher")
            pending = list(batcher.pending)
            if any(r.rid == request_id for r in pending):
                # In 3.4 a batch waits for all requests that decode, up to its size.
                group = min(getattr(batcher, "_current_workitems", 0), batcher.ideal_batch_size)
                return f"{'reserved' if len(pending) < group else 'pending'} {phase}"
        return "unknown"

    def workers(self) -> dict[str, str]:
        batchers = {phase: getattr(self.native, f"{phase}_batcher", "") for phase in PHASES}
        return {f"{phase} batcher": str(batcher) for phase, batcher in batchers.items()}

    def stop_service(self) -> None:
        super().stop_service()
        # It looks for one batcher only, which these releases no longer have.
        for phase in PHASES:
            if (batcher := getattr(self.native, f"{phase}_batcher", None)) is not None:
                batcher.shutdown()

    def invocation_class(self) -> Any:
        return batching.LlmExecutorProcess


SERVICE = V33
