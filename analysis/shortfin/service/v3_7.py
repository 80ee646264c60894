"""shortfin 3.7: the server of 3.9, whose batchers keep their requests in a set."""

from __future__ import annotations

from typing import Any

from analysis.shortfin.service.v3_9 import V39


class V37(V39):
    """The generation of 3.7."""

    def request_state(self, request_id: str) -> str:
        engine = self.native.unified_batcher._impl.batching_engine
        for phase in ("prefill", "decode"):
            lane = getattr(engine, f"{phase}_lane")
            pending = list(lane.pending)
            own = [r for r in pending if r.rid == request_id]
            if own:
                scheduler = lane.scheduler
                groups = [scheduler._workgroup_placement.get(r.orig_instance_id) for r in own]
                members = {m for g in groups if (group := scheduler._workgroups.get(g)) is not None
                           for m in group.members}  # fmt: skip
                present = {r.orig_instance_id for r in pending}
                return f"{'reserved' if members - present else 'pending'} {phase}"
        return "working" if request_id in self.responders else "unknown"

    def requests_of(self, process: Any) -> list[Any]:
        requests: list[Any] = process._responder._exec_requests
        return requests


SERVICE = V37
