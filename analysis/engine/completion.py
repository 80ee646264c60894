"""The end of a request, and the death of an engine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Completion:
    """An ended request.

    `outcome` is one of ok (completed with tokens, right or wrong), empty (completed without
    tokens), rejected (by the engine), error, timeout, and engine_died.
    """

    request_id: str
    prompt: str
    prompt_tokens: tuple[int, ...]
    tokens: tuple[int, ...]
    """The tokens of the answer; without an answer, the tokens that had arrived."""
    text: str
    outcome: str
    error: str | None
    submitted_s: float
    """Seconds since the engine started."""
    latency_s: float
    """Time from submission to the end."""
    ttft_s: float | None
    """Time from submission to the first token; None without tokens."""
    token_s: tuple[float, ...]
    """Time from submission to the arrival of each token."""
    beams: tuple[tuple[tuple[int, ...], str], ...] = ()
    """Tokens and text of every beam, if the engine searched with several; `tokens` is the first."""
    missing_tokens: int = 0
    """Number of requested tokens missing although the model did not end the answer."""


@dataclass(frozen=True)
class EngineDeath:
    """The first worker of an engine that died, with its error."""

    message: str
    traceback: str
