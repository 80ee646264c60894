"""shortfin 3.9: lookup, allocate, publish and release on the cache; one pool worker per request."""

from __future__ import annotations

import warnings
from typing import Any

import shortfin.array as sfnp
from shortfin_apps.llm.components.batching.modes import default as batching
from shortfin_apps.llm.components.config_struct import (
    ModelParams,
    PagedKVCacheParams,
    ServerParams,
)
from shortfin_apps.llm.components.decode_config import DecodeConfig
from shortfin_apps.llm.components.generate import ClientGenerateBatchProcess
from shortfin_apps.llm.components.io_struct import SamplingParams
from shortfin_apps.llm.components.manager import LlmSystemManager
from shortfin_apps.llm.components.messages import InferencePhase
from shortfin_apps.llm.components.service import LlmGenerateService

from analysis.shortfin.capture import report_fault
from analysis.shortfin.port import Answer, Call, Setup
from analysis.shortfin.service.common import (
    Responder,
    Service,
    answer_of_beams,
    cache_settings,
    generate_request,
    model_settings,
    parameters_of,
    share_out,
    state_in_group,
    tokenizer_of,
    type_of,
)

_DTYPES = {"attn_dtype", "kv_cache_dtype"}
_REFUSALS = ("QUEUE_FULL", "KVCACHE_PAGES_FULL")


class _Responder(Responder):
    process: Any = None
    """The engine's process of the request."""

    def read(self, response: Any) -> Answer:
        # For each beam of the prompt a list of numpy integers.
        return answer_of_beams(response or [[]])

    def send_error(self, error_message: str, code: Any, extra_fields: dict[str, Any]) -> None:
        """End the request with the engine's error."""
        detail = ", ".join(f"{name} {value}" for name, value in extra_fields.items())
        name = getattr(code, "name", str(code))
        error = f"{name}: {error_message}" + (f" ({detail})" if detail else "")
        self.end(Answer(refused=name in _REFUSALS, error=error))


class V39(Service):
    """The generation of 3.9."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        config, model = setup.config, setup.model.config
        ours = {*model_settings(setup), *cache_settings(setup), "paged_kv_cache",
                "prefix_sharing_algorithm", "device_ids", "decode_config",
                "paged_kv_block_size_elements_per_device"}  # fmt: skip
        options = share_out(config.options, {
            "server": parameters_of(ServerParams, ours),
            "decode": parameters_of(DecodeConfig, {"eos_token_id", "max_completion_tokens"}),
            "model": parameters_of(ModelParams, ours),
            "cache": parameters_of(PagedKVCacheParams, ours),
            "system": parameters_of(LlmSystemManager.__init__, {"device", "device_ids"}),
        })  # fmt: skip
        for share in (options["model"], options["cache"]):
            for name in _DTYPES & set(share):
                share[name] = type_of(str(share[name]), sfnp)
        options["cache"].setdefault("kv_cache_dtype", type_of(model.kv_cache_dtype, sfnp))
        options["model"].setdefault("has_prefill_position", model.has_prefill_position)
        model_params = ModelParams(
            **model_settings(setup),
            paged_kv_cache=PagedKVCacheParams(
                **cache_settings(setup),
                paged_kv_block_size_elements_per_device=[model.page_elements],
                **options["cache"],
            ),
            **options["model"],
        )
        decode_config = DecodeConfig(
            **{"logits_normalization": model_params.logits_normalization, **options["decode"]}
        )
        server_params = ServerParams(
            prefix_sharing_algorithm=config.prefix_sharing,
            device_ids=list(config.device_ids),
            decode_config=decode_config,
            **options["server"],
        )
        device_options = {
            "async_allocs": server_params.amdgpu_async_allocations,
            "async_caching": server_params.amdgpu_async_caching,
            "amdgpu_allocators": server_params.amdgpu_allocators,
            "amdgpu_allow_device_reuse": server_params.amdgpu_allow_device_reuse,
        }
        self.sysman = LlmSystemManager(
            device=setup.device,
            device_ids=server_params.device_ids or None,
            **{**device_options, **options["system"]},
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self.native = LlmGenerateService(
                name=setup.name,
                sysman=self.sysman,
                tokenizer=tokenizer_of(setup),
                model_params=model_params,
                server_params=server_params,
                program_isolation=server_params.program_isolation,
            )
        self.load(setup)

    def start(self, timeout_s: float = 10.0) -> None:
        super().start(timeout_s)
        self._observe_tokens()

    def launch(self, call: Call) -> None:
        tokens = call.max_new_tokens
        request = generate_request(call, SamplingParams(max_completion_tokens=tokens))
        responder = _Responder(call, self.end)
        responder.process = ClientGenerateBatchProcess(
            self.native, request, responder, fiber=self.native.main_fiber
        )
        self.responders[call.request_id] = responder
        responder.process.launch()

    def cancel(self, call: Call) -> None:
        responder = self.responders.get(call.request_id)
        if isinstance(responder, _Responder) and responder.call is call:
            responder.process.cancel()

    def request_state(self, request_id: str) -> str:
        engine = self.native.unified_batcher._impl.batching_engine
        # A scheduler has its own name for each beam of a request.
        for phase in ("prefill", "decode"):
            lane = getattr(engine, f"{phase}_lane")
            scheduler, waiting = lane.scheduler, lane._llm_task_responder._exec_requests
            own = [r for r in list(waiting.values()) if r.rid == request_id]
            names = {r.instance_id for r in own}
            queues = [scheduler._ready, *getattr(scheduler, "_pending", {}).values()]
            if any(task.instance_id in names for queue in queues for task in list(queue)):
                return f"{state_in_group(scheduler, own, list(waiting.values()))} {phase}"
            if own:
                return f"executing {phase}"
        return "working" if request_id in self.responders else "unknown"

    def workers(self) -> dict[str, str]:
        engine = self.native.unified_batcher._impl.batching_engine
        return {f"{phase} lane": str(getattr(engine, f"{phase}_lane", ""))
                for phase in ("prefill", "decode")}  # fmt: skip

    def invocation_class(self) -> Any:
        return batching.LlmInvocationProcess

    def _observe_tokens(self) -> None:
        """Report chosen tokens: the engine submits a decode with each of them at once."""
        if self.native.server_params.decode_config.num_beams > 1:
            return  # most of these tokens are of beams that will be dropped
        batcher = self.native.unified_batcher
        submit = batcher.submit

        def observed(exec_request: Any) -> Any:
            try:
                responder = self.responders.get(exec_request.rid)
                if responder is not None and exec_request.phase is InferencePhase.DECODE:
                    responder.call.on_token(int(exec_request.input_token_ids[-1]))
            except Exception as error:
                report_fault("Noting a token", error)
            return submit(exec_request)

        batcher.submit = observed


SERVICE = V39
