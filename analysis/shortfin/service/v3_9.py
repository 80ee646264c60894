"""shortfin 3.9: lookup, allocate, publish and release on the cache; one pool worker per request."""

from __future__ import annotations

import threading
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
from shortfin_apps.llm.components.io_struct import GenerateReqInput, SamplingParams
from shortfin_apps.llm.components.manager import LlmSystemManager
from shortfin_apps.llm.components.messages import InferencePhase
from shortfin_apps.llm.components.service import LlmGenerateService
from shortfin_apps.llm.components.tokenizer import Tokenizer

from analysis.shortfin.cache.probe import CacheProbe
from analysis.shortfin.cache.records.probe import RecordProbe
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

_DTYPES = {"attn_dtype", "kv_cache_dtype"}


class _Responder:
    """What the engine answers to, in place of a web request's."""

    def __init__(self, call: Call, forget: Any) -> None:
        self.call = call
        self._forget = forget
        self._answered = threading.Event()

    def send_response(self, response: Any) -> None:
        self._answered.set()
        try:
            beams = response or [[]]
            # One prompt and one beam: a list of one list of numpy integers.
            tokens = beams[0] if beams and isinstance(beams[0], list) else beams
            answer = Answer(tokens=tuple(int(token) for token in tokens))
        except Exception as error:
            answer = unread(error)
        self._end(answer)

    def send_error(self, error_message: str, code: Any, extra_fields: dict[str, Any]) -> None:
        self._answered.set()
        detail = ", ".join(f"{name} {value}" for name, value in extra_fields.items())
        name = getattr(code, "name", str(code))
        refused = name in ("QUEUE_FULL", "KVCACHE_PAGES_FULL")
        error = f"{name}: {error_message}" + (f" ({detail})" if detail else "")
        self._end(Answer(refused=refused, error=error))

    def ensure_response(self) -> None:
        if not self._answered.is_set():
            self._end(Answer(error="The engine ended the request without an answer."))

    def fail(self, error: str) -> None:
        """End the request with an error, whatever the engine says afterwards."""
        self._answered.set()
        self._end(Answer(error=error))

    def start_response(self, **_: object) -> None: ...

    def _end(self, answer: Answer) -> None:
        self._forget(self.call)
        self.call.on_end(answer)


class V39(Service):
    """The generation of 3.9.0."""

    def __init__(self, setup: Setup) -> None:
        config, model = setup.config, setup.model.config
        self.name = setup.name
        ours = {*model_settings(setup), *cache_settings(setup), "paged_kv_cache",
                "prefix_sharing_algorithm", "device_ids", "decode_config",
                "paged_kv_block_size_elements_per_device"}  # fmt: skip
        options = share_out("3.9.0", config.options, {
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
                tokenizer=Tokenizer.from_tokenizer_json_file(
                    setup.model.tokenizer_json, eos_token=setup.model.eos_token
                ),
                model_params=model_params,
                server_params=server_params,
                program_isolation=server_params.program_isolation,
            )
        self.native.load_inference_module(setup.vmfb)
        self.native.load_inference_parameters(*setup.model.parameters, parameter_scope="model")
        self._calls: dict[str, Call] = {}
        self._processes: dict[str, Any] = {}

    def start(self) -> None:
        self.start_system()
        self.native.start()
        self._watch_tokens()

    def launch(self, call: Call) -> None:
        request = GenerateReqInput(
            text=call.text,
            # A copy: what the engine does to the list is its own affair.
            input_ids=list(call.token_ids) if call.text is None else None,
            sampling_params=SamplingParams(max_completion_tokens=call.max_new_tokens),
            rid=call.request_id,
            return_input_ids=True,
        )
        request.post_init()
        responder = _Responder(call, self._forget)
        process = ClientGenerateBatchProcess(
            self.native, request, responder, fiber=self.native.main_fiber
        )
        self._calls[call.request_id] = call
        self._processes[call.request_id] = process
        process.launch()

    def cancel(self, call: Call) -> None:
        process = self._processes.get(call.request_id)
        if process is not None and process.responder.call is call:
            process.cancel()

    def responder_of(self, request_id: str) -> Any:
        process = self._processes.get(request_id)
        return None if process is None else process.responder

    def owns(self, worker: Any) -> bool:
        pool = self.native.main_fiber_pool  # its workers are named alike in every engine
        return super().owns(worker) or any(
            worker is mine or worker == mine for mine in pool._FiberPool__workers
        )

    def request_state(self, request_id: str) -> str:
        engine = self.native.unified_batcher._impl.batching_engine
        # A scheduler knows a request by the name of its own for each beam.
        for phase in ("prefill", "decode"):
            lane = getattr(engine, f"{phase}_lane")
            scheduler, waiting = lane.scheduler, lane._llm_task_responder._exec_requests
            mine = [r for r in list(waiting.values()) if r.rid == request_id]
            names = {r.instance_id for r in mine}
            queues = [scheduler._ready, *getattr(scheduler, "_pending", {}).values()]
            if any(task.instance_id in names for queue in queues for task in list(queue)):
                groups = [scheduler._workgroup_placement.get(r.orig_instance_id) for r in mine]
                members = {m for g in groups if (group := scheduler._workgroups.get(g)) is not None
                           for m in group.members}  # fmt: skip
                here = {r.orig_instance_id for r in list(waiting.values())}
                return f"{'reserved' if members - here else 'pending'} {phase}"
            if mine:
                return f"executing {phase}"
        return "working" if request_id in self._processes else "unknown"

    def dead_worker(self) -> str | None:
        for name, lane in self._lanes().items():
            if "TERMINATED" in lane:
                return f"The {name.replace('_', ' ')} ended: {lane}."
        return None

    def has_stopped(self) -> bool:
        return all("TERMINATED" in lane for lane in self._lanes().values())

    def _lanes(self) -> dict[str, str]:
        lanes = self.native.unified_batcher._impl.batching_engine
        return {name: str(getattr(lanes, name, "")) for name in ("prefill_lane", "decode_lane")}

    def stop_service(self) -> None:
        self.native.shutdown()

    def _probe_class(self) -> type[CacheProbe]:
        return RecordProbe

    def invocation_class(self) -> Any:
        return batching.LlmInvocationProcess

    def _watch_tokens(self) -> None:
        """Note when a token was chosen: a decode is submitted with it the moment it is known."""
        batcher = self.native.unified_batcher
        submit = batcher.submit

        def watched(exec_request: Any) -> Any:
            try:
                call = self._calls.get(exec_request.rid)
                if call is not None and exec_request.phase is InferencePhase.DECODE:
                    call.on_token(int(exec_request.input_token_ids[-1]))
            except Exception as error:
                tell_fault("Noting a token", error)
            return submit(exec_request)

        batcher.submit = watched

    def _forget(self, call: Call) -> None:
        if self._calls.get(call.request_id) is call:  # not one that got the name since
            self._calls.pop(call.request_id, None)
            self._processes.pop(call.request_id, None)


SERVICE = V39
