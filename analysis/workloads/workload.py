"""Requests, workloads as JSON Lines, and the check of outputs.

Needs neither shortfin nor IREE nor torch. Named workloads are in `named.py`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from analysis.core.errors import WorkloadError, is_encodable, shown
from analysis.core.files import write_atomically

Answers = Mapping[tuple[str, int], Sequence[int]]
"""The reference decoder's tokens for (prompt, number of new tokens)."""

MAX_NEW_TOKENS, WHY_NEW_TOKENS = 16_384, "the reference decoder computes each of them"
"""Most tokens of an answer; a model's context may allow fewer."""
LATEST_ARRIVAL_S = 30 * 24 * 3600.0


@dataclass(frozen=True)
class Request:
    """One request to the engine.

    `expected` is the required start of the answer. An answer of `max_new_tokens` tokens is compared
    with `expected[:max_new_tokens]` (a token is one character). `arrival_s` is in seconds since the
    start of the workload. The client leaves without the answer `cancel_after_s` after it sent the
    request; None means that it waits.
    """

    id: str
    prompt: str
    max_new_tokens: int = 15
    expected: str | None = None
    arrival_s: float = 0.0
    family: str = ""
    cancel_after_s: float | None = None


@dataclass(frozen=True)
class Workload:
    """Requests in the order of sending, with their seed (None for a file)."""

    name: str
    requests: tuple[Request, ...]
    seed: int | None = None

    @classmethod
    def read(cls, path: str | os.PathLike[str], *, max_new_tokens: int = 15) -> Workload:
        """Read a JSON Lines file, a request a line with the fields of `Request`.

        Only `prompt` is required; `max_new_tokens` is the default of the lines. Raises
        WorkloadError with the file and the line.
        """
        path = Path(path)
        try:
            lines = path.read_bytes().split(b"\n")
        except (OSError, ValueError) as error:  # a name with a null character is a ValueError
            reason = getattr(error, "strerror", None) or error
            raise WorkloadError(f"The workload {path} cannot be read: {reason}.") from None
        requests: list[Request] = []
        seen: dict[str, int] = {}
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                request = _request(json.loads(line), Request(f"r{number}", "", max_new_tokens))
            except (ValueError, RecursionError) as error:  # JSON and UTF-8 errors are ValueErrors
                raise WorkloadError(f"{path}, line {number}: {error}.") from None
            if request.id in seen:
                raise WorkloadError(
                    f"{path}, line {number}: the id {shown(request.id)} is already used in line"
                    f" {seen[request.id]}."
                )
            seen[request.id] = number
            requests.append(request)
        if not requests:
            raise WorkloadError(f"The workload {path} has no requests.")
        return cls(path.name, tuple(requests))

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the requests as JSON Lines, atomically."""
        lines = [json.dumps(asdict(request)) + "\n" for request in self.requests]
        write_atomically(Path(path), "".join(lines))


def check_output(
    completion_tokens: Sequence[int],
    text: str,
    outcome: str,
    request: Request,
    reference: Sequence[int] | None,
) -> tuple[str, int | None]:
    """Return the outcome after both output checks, and the index of the first token that differs.

    The engine's `outcome` "ok" becomes "wrong" if the answer does not start with
    `request.expected`, or, without an expected text, if it differs from `reference` (the reference
    decoder's tokens). The index is None without a reference, or if no token differs. Missing tokens
    count as different only if the outcome is "ok".
    """
    divergence: int | None = None
    if reference is not None:
        wanted = list(reference[: request.max_new_tokens])
        got = list(completion_tokens[: request.max_new_tokens])
        pairs = enumerate(zip(got, wanted, strict=False))
        divergence = next((i for i, (a, b) in pairs if a != b), None)
        if divergence is None and len(got) != len(wanted) and outcome == "ok":
            divergence = min(len(got), len(wanted))
    if outcome != "ok":
        return outcome, divergence
    if request.expected is not None:
        right = text.startswith(request.expected[: request.max_new_tokens])
    else:
        right = divergence is None
    return ("ok" if right else "wrong"), divergence


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


_FIELDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "id": (_is_text, "must be a text that is not empty"),
    "prompt": (_is_text, "must be a text that is not empty"),
    "max_new_tokens": (
        lambda value: type(value) is int and 1 <= value <= MAX_NEW_TOKENS,
        f"must be a whole number from 1 to {MAX_NEW_TOKENS}, as {WHY_NEW_TOKENS}",
    ),
    "expected": (lambda value: value is None or isinstance(value, str), "must be a text or null"),
    "arrival_s": (
        lambda value: type(value) in (int, float) and 0 <= value <= LATEST_ARRIVAL_S,
        f"must be from 0 to {LATEST_ARRIVAL_S:g} seconds",
    ),
    "cancel_after_s": (
        lambda value: (
            value is None or (type(value) in (int, float) and 0 <= value <= LATEST_ARRIVAL_S)
        ),
        f"must be from 0 to {LATEST_ARRIVAL_S:g} seconds, or null",
    ),
    "family": (lambda value: isinstance(value, str), "must be a text"),
}
"""Check and requirement of each field of a line."""


def _request(row: Any, default: Request) -> Request:
    """Return the request of a line. Raises ValueError with the reason."""
    if not isinstance(row, dict):
        raise ValueError("it is not a JSON object")
    for name in sorted(row.keys() - _FIELDS.keys()):
        raise ValueError(f"unknown field {shown(name)}")
    values = {**asdict(default), **row}
    for name, (is_valid, requirement) in _FIELDS.items():
        value = values[name]
        if not is_valid(value):
            raise ValueError(f"`{name}` {requirement}, not {shown(value)}")
        if isinstance(value, str) and not is_encodable(value):
            raise ValueError(
                f"`{name}` must be valid UTF-8 text, but {shown(value)} has a lone surrogate"
            )
    return Request(**{**values, "arrival_s": float(values["arrival_s"])})
