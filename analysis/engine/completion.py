"""How a request ended, and how an engine died."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Completion:
    """One request as it ended.

    `outcome` is ok (completed with tokens, right or not: output checks decide that), empty
    (completed without tokens), rejected (refused by the engine), error, timeout, or lost (the
    engine died).
    """

    request_id: str
    prompt: str
    prompt_tokens: tuple[int, ...]
    tokens: tuple[int, ...]
    """The tokens of the answer; without an answer, those that arrived until then."""
    text: str
    outcome: str
    error: str | None
    submitted_s: float
    """Seconds since the engine started."""
    latency_s: float
    """Submission to the end."""
    ttft_s: float | None
    """Submission to the first token (time to first token), None without tokens."""
    token_s: tuple[float, ...]
    """Submission to the arrival of each token."""
    missing_tokens: int = 0
    """Requested tokens that are missing although the model did not end the answer."""


@dataclass(frozen=True)
class EngineDeath:
    """The first worker of an engine that died, and how."""

    message: str
    traceback: str
