"""The first token that leaves the reference, and what it and the right one were given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from analysis.core.errors import CachelabError
from analysis.diagnosis.case import Case
from analysis.diagnosis.journey import Flown


@dataclass(frozen=True)
class Belief:
    """What somebody held of the next token."""

    given: float | None
    """Probability of the token that the engine gave."""
    right: float | None
    """Probability of the right one."""
    at_most: float = 0.0
    """What a probability that is None cannot exceed: only the likeliest tokens were recorded."""
    best: int | None = None
    """The likeliest token."""


@dataclass(frozen=True)
class Divergence:
    """The first divergent token of an answer."""

    place: int
    """Which token of the answer, from 0."""
    given: int | None
    """The token that the engine gave; None: it gave no more."""
    right: int | None
    """The reference decoder's; None: it gave no more."""
    given_text: str
    right_text: str
    invocation_id: int | None
    """The invocation that gave it; None where it was not recorded."""
    seq: int | None
    """The place among the events where it arrived, else where that invocation began."""
    t_s: float | None
    engine: Belief | None
    """What the engine itself computed in that invocation."""
    reference: Belief | None
    """What the reference decoder gives after the same right tokens."""
    lacking: tuple[str, ...] = ()
    """Why one of them is not there, in sentences."""


def divergence_of(
    case: Case, flown: Sequence[Flown], *, reference: bool = True
) -> Divergence | None:
    """Return where the answer left the reference; None if it did nowhere, or none was recorded.

    `reference` asks the reference decoder for its probabilities, in a child process.
    """
    place = case.request["first_divergence"]
    wanted, got = case.request["reference_tokens"] or (), case.request["tokens"] or ()
    if place is None:
        return None
    given, right = _at(got, place), _at(wanted, place)
    invocation = next((f for f in reversed(flown) if f.place == place), None)
    seq, seconds = _arrival(case, place)
    lacking: list[str] = []
    engine = _engine(invocation, given, right)
    if engine is None:
        lacking.append(_why_not(case, invocation, given))
    theirs, why = None, ""
    if reference:
        theirs, why = _reference(case, tuple(wanted[:place]), given, right)
    if why:
        lacking.append(why)
    names = token_names(_model(case))
    return Divergence(
        place=int(place),
        given=given,
        right=right,
        given_text=names.get(given, "nothing"),
        right_text=names.get(right, "nothing"),
        invocation_id=None if invocation is None else invocation.invocation_id,
        seq=seq if seq is not None else None if invocation is None else invocation.seq,
        t_s=seconds if seconds is not None else None if invocation is None else invocation.landed_s,
        engine=engine,
        reference=theirs,
        lacking=tuple(lacking),
    )


def token_name(case: Case, token: int | None) -> str:
    """Return a token as text in quotation marks, or its number where that is not known."""
    name: str = token_names(_model(case)).get(token, "nothing")
    return name


class _Names(dict[int | None, str]):
    """Names of tokens; one that has none goes by its number."""

    def get(self, key: int | None, default: Any = None) -> Any:
        return default if key is None else super().get(key, f"token {key}")


@lru_cache(maxsize=8)
def token_names(model: str | None) -> _Names:
    """Return the text of each token of a model, in quotation marks."""
    try:
        from analysis.model import ModelTokenizer, load_model

        artifacts = load_model(Path(model) if model else None)
        tokenizer = ModelTokenizer(artifacts)
        texts = {n: tokenizer.decode([n]) for n in range(tokenizer.vocabulary_size)}
    except (CachelabError, ImportError, AttributeError):
        return _Names()
    return _Names({n: f"“{text}”" for n, text in texts.items() if text})


def _engine(invocation: Flown | None, given: int | None, right: int | None) -> Belief | None:
    if invocation is None or not invocation.top:
        return None
    known = {token: math.exp(log) for token, log in invocation.top}
    return Belief(
        given=known.get(given) if given is not None else None,
        right=known.get(right) if right is not None else None,
        at_most=min(known.values()),
        best=invocation.top[0][0],
    )


def _why_not(case: Case, invocation: Flown | None, given: int | None) -> str:
    if given is None:
        return "The engine gave no token there, so it has no probability to show."
    if case.invocations.empty:
        return "No invocations were recorded, so what the engine itself computed is unknown."
    if invocation is None:
        return "The invocation that gave the token was not recorded."
    return (
        "The engine's own probabilities were not recorded with its invocations, so only the"
        " reference"
        " decoder's are shown."
    )


def _reference(
    case: Case, prefix: tuple[int, ...], given: int | None, right: int | None
) -> tuple[Belief | None, str]:
    from analysis.diagnosis.reference import reference_probabilities

    try:
        found = reference_probabilities(
            str(case.trial["release"]),
            str(case.request["prompt"]),
            tuple(case.request["prompt_tokens"]) if case.request["prompt_tokens"] else None,
            prefix,
            model=_model(case),
            batch_sizes=tuple(case.trial["batch_sizes"] or (4,)),
        )
    except CachelabError as error:
        return None, f"The reference decoder could not be asked: {error}"
    known: Mapping[int, float] = dict(enumerate(found))
    best = max(known, key=lambda token: known[token])
    return Belief(
        known.get(given) if given is not None else None,
        known.get(right) if right is not None else None,
        best=best,
    ), ""


def _model(case: Case) -> str | None:
    """Return the directory of the model that was asked, None for the one that ships."""
    plan = case.run.manifest.get("plan") or {}
    model = plan.get("model") if isinstance(plan, Mapping) else None
    return str(Path(model).resolve()) if model else None


def _arrival(case: Case, place: int) -> tuple[int | None, float | None]:
    """Return where among the events a token of the answer arrived, and when."""
    events = case.events
    arrived = events[
        (events["request_id"] == case.name) & events["kind"].isin(["first_token", "token"])
    ]
    if place >= len(arrived):
        return None, None
    event = arrived.iloc[place]
    return int(event["seq"]), float(event["t_s"])


def _at(values: Sequence[int], place: int) -> int | None:
    return int(values[place]) if place < len(values) else None
