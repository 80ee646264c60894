"""The pending requests of an engine: arrival of tokens, and end."""

from __future__ import annotations

import operator
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from analysis.core.errors import EngineError, shown
from analysis.engine.completion import Completion, EngineDeath
from analysis.model.tokenizer import ModelTokenizer
from analysis.shortfin.port import Answer, Call


class Listener(Protocol):
    """Request lifecycle callbacks, called on the engine's threads. Must not raise.

    An error in a callback is reported as a fault, and does not reach the engine or other listeners.
    """

    def submitted(self, request_id: str, prompt_tokens: Sequence[int]) -> None:
        """Handle a request before it is sent to the engine."""

    def token(self, request_id: str, token: int | None, first: bool) -> None:
        """Handle the arrival of a token."""

    def answered(self, request_id: str, tokens: Sequence[int], count: int) -> None:
        """Handle an answer; `count` is its number among the answers of the request."""

    def done(self, completion: Completion) -> None:
        """Handle the end of a request, before its future completes."""

    def late(self, request_id: str, outcome: str) -> None:
        """Handle a request that the engine ends after its deadline."""

    def died(self, death: EngineDeath) -> None:
        """Handle the death of a worker, which is the engine's."""


@dataclass
class PendingRequest:
    """A request that has not ended."""

    request_id: str
    prompt: str
    prompt_tokens: tuple[int, ...]
    submitted: float
    deadline: float
    timeout_s: float
    max_new_tokens: int
    future: Future[Completion] = field(default_factory=Future)
    tokens: list[int] = field(default_factory=list)
    token_s: list[float] = field(default_factory=list)
    call: Call | None = None
    given_up: bool = False
    beams: tuple[tuple[int, ...], ...] = ()
    answers: int = 0
    """Number of answers from the engine, without errors and rejections."""


class Requests:
    """The pending requests of one engine; `fault` reports an error of this package."""

    def __init__(
        self, tokenizer: ModelTokenizer, eos: int, fault: Callable[[str, Exception], None]
    ) -> None:
        self.listeners: list[Listener] = []
        self.started = 0.0
        """Start of the engine on the monotonic clock, in seconds."""
        self.lock = threading.Lock()
        self._pending: dict[str, PendingRequest] = {}
        self._tokenizer, self._eos, self._fault = tokenizer, eos, fault

    def pending(self) -> list[PendingRequest]:
        """Return the requests that have not ended."""
        with self.lock:
            return list(self._pending.values())

    def add(self, request: PendingRequest) -> None:
        """Add a request; the lock must be held. Raises EngineError if its id is in use."""
        if request.request_id in self._pending:
            raise EngineError(
                f"Request {request.request_id!r} is already under way. Use another id."
            )
        self._pending[request.request_id] = request

    def give_up(self, request_ids: Iterable[str]) -> None:
        """End those of these requests that are pending, as if their deadlines had passed."""
        with self.lock:
            for request in filter(None, map(self._pending.get, request_ids)):
                request.given_up, request.deadline = True, 0.0

    def lose_all(self, reason: str) -> None:
        """End all pending requests as engine_died."""
        for request in self.pending():
            self.end(request, "engine_died", reason)

    def answered(self, request: PendingRequest, answer: Answer) -> None:
        """End a request with the engine's answer."""
        try:
            tokens = self._delivered(request, answer)
        except Exception as error:
            self._fault("Reading an answer", error)
            text = f"{type(error).__name__}: {error}"
            self.end(request, "error", f"The answer could not be read: {text}")
            return
        if answer.error is None and self._is_last(request):
            request.answers += 1
            self.notify("answered", request.request_id, tokens, request.answers)
        request.tokens, request.beams = tokens[: request.max_new_tokens], answer.beams
        if answer.refused:
            self.end(request, "rejected", answer.error)
        elif answer.error is not None:
            self.end(request, "error", answer.error)
        else:
            self.end(request, "ok" if request.tokens else "empty", None)

    def _delivered(self, request: PendingRequest, answer: Answer) -> list[int]:
        """Return the tokens of an answer; a text is encoded if tokens had arrived before."""
        if answer.tokens is not None:
            return list(answer.tokens)
        if answer.text is None or answer.text == self._tokenizer.decode(request.tokens):
            return request.tokens
        return self._tokenizer.encode_answer(answer.text)

    def _is_last(self, request: PendingRequest) -> bool:
        """Return whether no later request has the same id."""
        return self._pending.get(request.request_id) in (request, None)

    def end(self, request: PendingRequest, outcome: str, error: str | None) -> None:
        """End a request; no effect if it has already ended."""
        with self.lock:
            # Compare by identity: after a timeout, another request may have the same id.
            over = self._pending.get(request.request_id) is not request
            if not over:
                del self._pending[request.request_id]
        if over:
            self.notify("late", request.request_id, outcome)
            return
        now = time.monotonic()
        tokens = tuple(request.tokens)
        beams = [beam[: request.max_new_tokens] for beam in request.beams]
        token_s = tuple(t - request.submitted for t in request.token_s[: len(tokens)])
        completion = Completion(
            request_id=request.request_id,
            prompt=request.prompt,
            prompt_tokens=request.prompt_tokens,
            tokens=tokens,
            text=self._text(tokens),
            outcome=outcome,
            error=error,
            submitted_s=request.submitted - self.started,
            latency_s=now - request.submitted,
            ttft_s=token_s[0] if token_s else now - request.submitted if tokens else None,
            token_s=token_s,
            beams=tuple((beam, self._text(beam)) for beam in beams),
            missing_tokens=self._missing(request) if outcome == "ok" else 0,
        )
        self.notify("done", completion)
        request.future.set_result(completion)

    def _text(self, tokens: Sequence[int]) -> str:
        """Return tokens as text; "" for invalid ones, because the request must end."""
        try:
            return self._tokenizer.decode(tokens)
        except Exception as error:
            self._fault("Reading an answer", error)
            return ""

    def _missing(self, request: PendingRequest) -> int:
        if request.tokens and request.tokens[-1] == self._eos:
            return 0
        return request.max_new_tokens - len(request.tokens)

    def note_token(self, request: PendingRequest, token: int | None) -> None:
        """Record the arrival of a token (None if unknown). Hot path."""
        request.token_s.append(time.monotonic())
        self.notify("token", request.request_id, token, len(request.token_s) == 1)
        if token is not None:
            request.tokens.append(token)

    def notify(self, callback: str, *args: Any) -> None:
        """Call a method of every listener."""
        for listener in tuple(self.listeners):
            try:
                getattr(listener, callback)(*args)
            except Exception as error:
                self._fault("Calling a listener", error)


def token_ids(prompt: object, tokenizer: ModelTokenizer) -> tuple[int, ...]:
    """Return the token ids of a prompt; raise EngineError if it is invalid."""
    if isinstance(prompt, str):
        ids = tuple(tokenizer.encode(prompt))
        if not prompt or not ids:
            raise EngineError("The prompt is empty. Give at least one token.")
        return ids
    vocabulary = tokenizer.vocabulary_size
    try:
        ids = tuple(operator.index(token) for token in prompt)  # type: ignore[attr-defined]
    except TypeError:
        raise EngineError(
            f"A prompt must be a text or a list of token ids, not {shown(prompt)}."
        ) from None
    if not ids:
        raise EngineError("The prompt is empty. Give at least one token.")
    if not all(0 <= token < vocabulary for token in ids):
        raise EngineError(f"The token ids of a prompt must be 0 to {vocabulary - 1}.")
    return ids
