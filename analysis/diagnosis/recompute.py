"""The step of a wrong token, computed again: from the recorded arguments, and in other orders."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.core.errors import CachelabError
from analysis.diagnosis.divergence import model_of
from analysis.diagnosis.request_trace import RequestTrace
from analysis.diagnosis.timeline import RequestInvocation
from analysis.model.oracle import Computed
from analysis.sanitizer.kv_compare import NUMERICS, distance
from analysis.shortfin.oracle import oracle_of

_ARGUMENTS = ("phase", "tokens", "seq_lens", "start_positions", "block_tables")


@dataclass(frozen=True)
class Recomputed:
    """One step of a request, computed again in one child process of its release, on the CPU."""

    reference: Computed
    """Alone: the prompt prefilled, the answer decoded, as an engine does."""
    orders: Mapping[str, Computed]
    """Alone, in other orders, by their names: the same tokens, rounded elsewhere."""
    recorded: Computed | None
    """From the arguments of all recorded invocations up to the step."""
    not_recorded: str | None
    """Why `recorded` is missing, in a sentence."""

    @cached_property
    def ulps(self) -> float | None:
        """Largest difference of `recorded` keys and values from the reference's, see `NUMERICS`."""
        return None if self.recorded is None else float(np.max(self._by_slot, initial=0.0))

    @cached_property
    def first_foreign(self) -> int | None:
        """First position of `recorded` that differs by more than numerics; None if there is none.

        The last position depends on everything that the row attended to.
        """
        if self.recorded is None:
            return None
        beyond = np.flatnonzero(self._by_slot > NUMERICS)
        return int(beyond[0]) if len(beyond) else None

    @property
    def first_unwritten(self) -> int | None:
        """First position of `recorded` that no recorded invocation wrote; None if there is none."""
        if self.recorded is None:
            return None
        empty = np.flatnonzero((self.recorded.slots == 0).all(axis=(1, 2, 3, 4)))
        return int(empty[0]) if len(empty) else None

    @cached_property
    def order_ulps(self) -> float:
        """Largest difference of keys and values between the orders."""
        slots = self.reference.slots
        return max(
            float(np.max(_units(way.slots, slots), initial=0.0)) for way in self.orders.values()
        )

    @cached_property
    def order_spread(self) -> float:
        """Largest difference of a logit between the orders."""
        logits = self.reference.logits
        return max(float(np.abs(way.logits - logits).max()) for way in self.orders.values())

    @cached_property
    def _by_slot(self) -> NDArray[np.float64]:
        assert self.recorded is not None
        return _units(self.recorded.slots, self.reference.slots)


def recompute(
    trace: RequestTrace, invocations: Sequence[RequestInvocation], before: Sequence[int]
) -> Recomputed | str:
    """Compute the token after the tokens `before` of a request again; a text says why it failed."""
    prompt = tuple(trace.request["prompt_tokens"] or ())
    if not prompt:
        return "The tokens of its prompt were not recorded, so nothing was computed again."
    tokens = (*prompt, *before)
    calls = _calls(trace, invocations, len(before), len(tokens))
    ways: list[Mapping[str, Any]] = [
        {"prompt_tokens": prompt, "answer": tuple(before)},
        {"prompt_tokens": tokens, "answer": ()},
        {"prompt_tokens": tokens[:1], "answer": tokens[1:]},
        *([calls] if isinstance(calls, Mapping) else []),
    ]
    options = json.loads(trace.trial["options"] or "{}")
    oracle = oracle_of(
        str(trace.trial["release"]),
        model=model_of(trace),
        batch_sizes=tuple(trace.trial["batch_sizes"] or (4,)),
        from_positions=bool(options.get("has_prefill_position")),
    )
    try:
        reference, prefilled, decoded, *recorded = oracle.compute(ways)
    except CachelabError as error:
        return f"The step could not be computed again: {error}"
    return Recomputed(
        reference,
        {"all tokens prefilled at once": prefilled, "all tokens decoded one by one": decoded},
        recorded[0] if recorded else None,
        calls if isinstance(calls, str) else None,
    )


def _calls(
    trace: RequestTrace, invocations: Sequence[RequestInvocation], place: int, length: int
) -> Mapping[str, Any] | str:
    """Return all calls up to the one that computed a token of the request, or what is missing."""
    own = next((i for i in reversed(invocations) if i.token_index == place), None)
    if own is None or own.seq is None:
        return "The invocation that computed the wrong token was not recorded."
    if len(own.own_row.table) * trace.page_tokens < length:
        return "Its block table is too short for its tokens."
    known = trace.invocations[trace.invocations["seq"] <= own.seq]
    if known[["tokens", "seq_lens", "block_tables"]].isna().any(axis=None):
        return "The arguments of an invocation before the wrong token were not recorded."
    steps: list[tuple[int, Mapping[str, Any]]] = [
        (int(record["seq"]), {name: record[name] for name in _ARGUMENTS})
        for record in known[known["error"].isna()].to_dict("records")
    ]
    copied = trace.events[(trace.events["kind"] == "copy") & (trace.events["seq"] < own.seq)]
    for event in copied.to_dict("records"):
        steps.append((int(event["seq"]), {"copy": event["pages"][:2]}))
    return {
        "calls": [call for _, call in sorted(steps, key=lambda step: step[0])],
        "pages": int(trace.trial["page_count"]),
        "row": own.own,
        "length": length,
    }


def _units(held: Any, should: Any) -> NDArray[np.float64]:
    """Return the largest difference of each slot in units in the last place."""
    return np.asarray(distance(held, should)[1].max(axis=(1, 2), initial=0.0), dtype=np.float64)
