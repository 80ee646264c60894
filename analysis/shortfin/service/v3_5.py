"""shortfin 3.5 and 3.6: a worker for prefills, one for decodes, and one of a pool a request."""

from __future__ import annotations

import json
from typing import Any

from shortfin_apps.llm.components.generate import ClientGenerateBatchProcess
from shortfin_apps.llm.components.io_struct import SamplingParams
from shortfin_apps.llm.components.messages import InferencePhase

from analysis.shortfin.capture import report_fault
from analysis.shortfin.config import PHASES
from analysis.shortfin.port import Answer, Call
from analysis.shortfin.service import v3_3
from analysis.shortfin.service.common import answer_of_beams, generate_request, waiting_state

_CANCELS = hasattr(ClientGenerateBatchProcess, "cancel")
"""Whether a request can be cancelled (3.6); in 3.5 its client disconnects."""


class _Responder(v3_3._Responder):
    process: Any = None
    """The engine's process of the request."""
    disconnected = False

    def read(self, response: Any) -> Answer:
        if isinstance(response, bytes):
            tokens = json.loads(response)
            # One list for each beam; of the only beam in 3.5, its tokens.
            return answer_of_beams(tokens if tokens and isinstance(tokens[0], list) else [tokens])
        return super().read(response)

    def is_disconnected(self) -> bool:  # type: ignore[override]
        """Return whether the client has left."""
        return self.disconnected

    def get_status_tracker(self) -> _Responder:
        """Return an object that knows whether the client has left."""
        return self

    def send_error(self, error_message: str, code: Any, extra_fields: dict[str, Any]) -> None:
        """End the request with the engine's error."""
        detail = ", ".join(f"{name} {value}" for name, value in extra_fields.items())
        error = f"{code.name}: {error_message}" + (f" ({detail})" if detail else "")
        self.end(Answer(refused=code.name == "QUEUE_FULL", error=error))


class V35(v3_3.V33):
    """The generation of 3.5 and 3.6."""

    surplus_tokens = 0 if _CANCELS else 1

    def start(self, timeout_s: float = 10.0) -> None:
        super().start(timeout_s)
        self._observe_tokens()

    def launch(self, call: Call) -> None:
        tokens = call.max_new_tokens - self.surplus_tokens
        sampling = SamplingParams(max_completion_tokens=tokens)
        request = generate_request(call, sampling, stream=self.streams)
        responder = self.responders[call.request_id] = _Responder(call, self.end)
        responder.process = ClientGenerateBatchProcess(
            self.native, request, responder, fiber=self.native.main_fiber
        )
        responder.process.launch()

    def cancel(self, call: Call) -> None:
        responder = self.responders.get(call.request_id)
        if not isinstance(responder, _Responder) or responder.call is not call:
            return
        responder.disconnected = True
        if _CANCELS:
            responder.process.cancel()

    def request_state(self, request_id: str) -> str:
        for phase in PHASES:
            state = waiting_state(getattr(self.native, f"{phase}_batcher"), request_id)
            if state is not None:
                return f"{state} {phase}"
        return "working" if request_id in self.responders else "unknown"

    def _observe_tokens(self) -> None:
        """Report chosen tokens: the engine submits a decode with each of them at once."""
        if self.native.server_params.decode_config.num_beams > 1:
            return  # most of these tokens are of beams that will be dropped
        batcher = self.native.decode_batcher
        submit = batcher.submit

        def submitted(item: Any) -> None:
            try:
                if getattr(item, "phase", None) is InferencePhase.DECODE:
                    responder = self.responders.get(item.rid)
                    if responder is not None:
                        responder.call.on_token(int(item.input_token_ids[-1]))
            except Exception as error:
                report_fault("Noting a token", error)
            submit(item)

        batcher.submit = submitted


SERVICE = V35
