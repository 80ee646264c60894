"""The first wrong token of an answer, with the probabilities of it and of the right token."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.core.errors import CachelabError
from analysis.core.wording import probability
from analysis.diagnosis.request_trace import RequestTrace
from analysis.diagnosis.timeline import RequestInvocation, time_of
from analysis.model.artifacts import load_model, model_directory
from analysis.shortfin.oracle import oracle_of

if TYPE_CHECKING:
    from analysis.model.tokenizer import ModelTokenizer


@dataclass(frozen=True)
class TokenProbability:
    """Probabilities of the given token and of the right token."""

    given: float | None
    right: float | None
    at_most: float = 0.0
    """Upper bound of a missing probability (None): only the most likely tokens are recorded."""
    best: int | None = None
    """The most likely token."""

    def words(self, value: float | None) -> str:
        """Return one of the two probabilities as text."""
        if value is None:
            return f"below {probability(self.at_most)}" if self.at_most else "-"
        return probability(value)


@dataclass(frozen=True)
class Divergence:
    """The first divergent token of an answer."""

    token_index: int
    """Index of the token in the answer, from 0."""
    given: int | None
    """The engine's token; None if its answer ended."""
    right: int | None
    """The reference decoder's token; None if its answer ended."""
    given_text: str
    right_text: str
    invocation_id: int | None
    """The invocation that computed it; None if not recorded."""
    seq: int | None
    """`seq` of the token's arrival, else of the start of its invocation."""
    t_s: float | None
    engine: TokenProbability | None
    """Probabilities computed by the engine in that invocation."""
    reference: TokenProbability | None
    """Probabilities computed by the reference decoder after the right tokens."""
    missing: tuple[str, ...] = ()
    """Why probabilities are missing, in sentences."""


def divergence_of(
    trace: RequestTrace, invocations: Sequence[RequestInvocation], *, reference: bool = True
) -> Divergence | None:
    """Return the first wrong token; None if there is none, or no reference answer.

    If `reference` is set, the reference decoder computes its probabilities in a child process.
    """
    place = trace.request["first_divergence"]
    wanted, got = trace.request["reference_tokens"] or (), trace.request["tokens"] or ()
    if place is None:
        return None
    given, right = _at(got, place), _at(wanted, place)
    invocation = next((i for i in reversed(invocations) if i.token_index == place), None)
    seq, seconds = _arrival(trace, place)
    engine = _engine(trace, invocation, given, right)
    theirs = _reference(trace, tuple(wanted[:place]), given, right) if reference else None
    return Divergence(
        token_index=int(place),
        given=given,
        right=right,
        given_text=token_name(trace, given),
        right_text=token_name(trace, right),
        invocation_id=None if invocation is None else invocation.invocation_id,
        seq=seq if seq is not None else None if invocation is None else invocation.seq,
        t_s=seconds if seconds is not None else None if invocation is None else invocation.end_s,
        engine=engine if isinstance(engine, TokenProbability) else None,
        reference=theirs if isinstance(theirs, TokenProbability) else None,
        missing=tuple(reason for reason in (engine, theirs) if isinstance(reason, str)),
    )


def token_name(trace: RequestTrace, token: int | None) -> str:
    """Return a token as text in quotation marks, or its id if the text is unknown."""
    if token is None:
        return "nothing"
    text = text_of(trace, [token])
    return f"“{text}”" if text else f"token {token}"


def text_of(trace: RequestTrace, tokens: Sequence[int]) -> str | None:
    """Return the text of tokens; None without the model's tokenizer."""
    tokenizer = _tokenizer(model_of(trace))
    return None if tokenizer is None else tokenizer.decode(tokens)


@lru_cache(maxsize=8)
def _tokenizer(model: str | None) -> ModelTokenizer | None:
    try:
        from analysis.model.tokenizer import ModelTokenizer

        return ModelTokenizer(load_model(Path(model) if model else None))
    except (CachelabError, ImportError, AttributeError):
        return None


def _probabilities(
    known: Mapping[int, float], given: int | None, right: int | None, at_most: float = 0.0
) -> TokenProbability:
    return TokenProbability(
        given=None if given is None else known.get(given),
        right=None if right is None else known.get(right),
        at_most=at_most,
        best=max(known, key=lambda token: known[token]),
    )


def _engine(
    trace: RequestTrace, invocation: RequestInvocation | None, given: int | None, right: int | None
) -> TokenProbability | str:
    """Return the engine's probabilities, or why they are unknown."""
    if given is None:
        return "The engine's answer had ended, so there is no probability of the next token."
    if trace.invocations.empty:
        return "No invocations were recorded, so the engine's probabilities are unknown."
    if invocation is None:
        return "The invocation that computed the token was not recorded."
    if not invocation.top:
        return "The engine's probabilities were not recorded; only the reference's are shown."
    known = {token: math.exp(log) for token, log in invocation.top}
    return _probabilities(known, given, right, min(known.values()))


def _reference(
    trace: RequestTrace, prefix: tuple[int, ...], given: int | None, right: int | None
) -> TokenProbability | str:
    """Return the reference decoder's probabilities after the right tokens, or why it failed."""
    try:
        found = _reference_probabilities(
            str(trace.trial["release"]),
            model_of(trace),
            tuple(trace.trial["batch_sizes"] or (4,)),
            str(trace.request["prompt"]),
            tuple(trace.request["prompt_tokens"] or ()) or None,
            prefix,
        )
    except CachelabError as error:
        return f"The reference decoder failed: {error}"
    return _probabilities(dict(enumerate(found)), given, right)


@lru_cache(maxsize=64)
def _reference_probabilities(
    release: str,
    model: str | None,
    batch_sizes: tuple[int, ...],
    prompt: str,
    prompt_tokens: tuple[int, ...] | None,
    answer: tuple[int, ...],
) -> tuple[float, ...]:
    oracle = oracle_of(release, model=model, batch_sizes=batch_sizes)
    return oracle.probabilities(prompt, prompt_tokens, answer)


def model_of(trace: RequestTrace) -> str | None:
    """Return the directory of the run's model; None for the shipped one."""
    plan = trace.run.manifest.get("plan") or {}
    model = plan.get("model") if isinstance(plan, Mapping) else None
    return str(model_directory(model)) if model else None


def _arrival(trace: RequestTrace, place: int) -> tuple[int | None, float | None]:
    """Return the event and the time at which a token of the answer arrived."""
    arrived = trace.events_of("first_token", "token")
    if place >= len(arrived):
        return None, None
    event = arrived.iloc[place].to_dict()
    return int(event["seq"]), time_of(event)


def _at(values: Sequence[int], place: int) -> int | None:
    return int(values[place]) if place < len(values) else None
