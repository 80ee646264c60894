"""shortfin 3.7: the server of 3.9, whose batchers keep their requests in a set."""

from __future__ import annotations

from typing import Any

from analysis.shortfin.config import PHASES
from analysis.shortfin.service.common import waiting_state
from analysis.shortfin.service.v3_9 import V39


class V37(V39):
    """The generation of 3.7."""

    def request_state(self, request_id: str) -> str:
        engine = self.native.unified_batcher._impl.batching_engine
        for phase in PHASES:
            state = waiting_state(getattr(engine, f"{phase}_lane"), request_id)
            if state is not None:
                return f"{state} {phase}"
        return "working" if request_id in self.responders else "unknown"

    def requests_of(self, process: Any) -> list[Any]:
        requests: list[Any] = process._responder._exec_requests
        return requests


SERVICE = V37
