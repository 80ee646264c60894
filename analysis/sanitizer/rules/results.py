"""The way back: from an invocation's logits to the token chosen, and to the answer delivered."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from analysis.core.wording import counted
from analysis.sanitizer.findings import WRONG_DATA, Finding
from analysis.sanitizer.passage import Passage
from analysis.sanitizer.rules.base import Rule
from analysis.sanitizer.world import Event, Sequence, World

_REMEMBERED = 10_000
"""Rows of past invocations by which foreign logits are recognised."""


class OwnResult(Rule):
    """A request's next token comes from its own row."""

    name = "logits-mismatch"
    sentence = "A token is chosen from the logits of its request's own row, in its last invocation."

    def __init__(self) -> None:
        self._seen: OrderedDict[int, tuple[str, int]] = OrderedDict()

    def invocation(self, world: World, passage: Passage) -> Iterator[Finding]:
        invocation = passage.invocation
        for row, digest in enumerate(invocation.result_digests or ()):
            self._seen[digest] = invocation.request_ids[row], invocation.invocation_id
            self._seen.move_to_end(digest)
        while len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return iter(())

    def on_chosen(self, world: World, event: Event) -> Iterator[Finding]:
        sequence, digest = world.under_way.get(event.request_id or ""), event.digest
        result = None if sequence is None or sequence.lost else sequence.result
        if sequence is None or result is None or digest is None:
            return
        if digest == result.digest:
            if result.used:
                yield self._breach(sequence, "earlier-invocation", result.invocation_id)
            result.used = True
            return
        other, number = self._seen.get(digest, (None, None))
        if other is None:
            yield self._breach(sequence, "unknown-logits", None)
        elif other != sequence.request_id:
            yield self._breach(sequence, "other-request", number, other)
        else:
            yield self._breach(sequence, "earlier-invocation", number)

    def _breach(
        self, sequence: Sequence, cause: str, number: int | None, other: str | None = None
    ) -> Finding:
        own = None if sequence.result is None else sequence.result.invocation_id
        if number is None:
            whose = f"that no row has at its last position; its own are of invocation {own}"
        elif number == own and other is None:
            whose = f"of invocation {own}, from which a token was chosen before"
        else:
            whose = (
                f"of {other or 'itself'} in invocation {number}; its own are of invocation {own}"
            )
        return Finding(
            cause=cause,
            message=f"Token {len(sequence.chosen) + 1} of {sequence.request_id} was chosen from"
            f" logits {whose}.",
            request_id=sequence.request_id,
            other_request_id=other,
            severity=WRONG_DATA,
        )


class OwnToken(Rule):
    """A token is what the selection made of the logits, and stays it."""

    name = "sampling-mismatch"
    sentence = "A token is the likeliest of the logits it was chosen from, and goes on unchanged."

    def on_chosen(self, world: World, event: Event) -> Iterator[Finding]:
        sequence, digest = world.under_way.get(event.request_id or ""), event.digest
        result = None if sequence is None or sequence.lost else sequence.result
        if sequence is None or result is None or event.value is None:
            return
        # Foreign logits are another rule's; of a NaN nobody knows which one is to be chosen.
        if digest == result.digest and result.token >= 0 and event.value != result.token:
            yield Finding(
                cause="not-argmax",
                message=f"Token {len(sequence.chosen) + 1} of {sequence.request_id} is"
                f" {event.value}, where the logits of invocation {result.invocation_id} have"
                f" {result.token} as the likeliest.",
                request_id=sequence.request_id,
                severity=WRONG_DATA,
            )

    def on_token(self, world: World, event: Event) -> Iterator[Finding]:
        sequence = world.under_way.get(event.request_id or "")
        if sequence is None or not sequence.chosen or not sequence.follows or event.value is None:
            return
        place = len(sequence.answer)
        chosen = sequence.chosen[place] if place < len(sequence.chosen) else None
        if place >= len(sequence.chosen):
            cause, what = "not-sampled", "was never chosen"
        elif chosen is not None and chosen != event.value:
            cause, what = "changed", f"was chosen as {chosen}"
        else:
            return
        yield Finding(
            cause=cause,
            message=f"Token {place + 1} of {sequence.request_id} went on as {event.value}, and"
            f" {what}.",
            request_id=sequence.request_id,
            severity=WRONG_DATA,
        )

    on_first_token = on_token


class WholeAnswer(Rule):
    """An answer is all tokens that were chosen for its request, and nothing else."""

    name = "answer-mismatch"
    sentence = "An answer has the tokens that were chosen for its request: each once, in order."

    def on_answered(self, world: World, event: Event) -> Iterator[Finding]:
        sequence = world.last_of.get(event.request_id or "")
        if sequence is None or not sequence.chosen or not sequence.follows:
            return
        delivered = list(event.tokens)
        chosen = sequence.chosen
        # An empty answer is found by another rule.
        if None in chosen or not delivered or delivered == chosen:
            return
        other = self._whose(world, delivered, sequence)
        if other is not None:
            cause = "other-request"
        elif len(delivered) != len(chosen):
            cause = "missing-tokens" if len(delivered) < len(chosen) else "extra-tokens"
        else:
            cause = "wrong-tokens"
        place = next(
            (i for i, (a, b) in enumerate(zip(delivered, chosen, strict=False)) if a != b),
            min(len(delivered), len(chosen)),
        )
        whose = f", as that of {other} is" if other else ""
        yield Finding(
            cause=cause,
            message=f"The answer of {sequence.request_id} has {counted(len(delivered), 'token')},"
            f" of {len(chosen)} that should be there, and differs from those at token"
            f" {place + 1}{whose}.",
            request_id=sequence.request_id,
            other_request_id=other,
            severity=WRONG_DATA,
        )

    def on_chosen(self, world: World, event: Event) -> Iterator[Finding]:
        sequence = world.last_of.get(event.request_id or "")
        if sequence is not None and sequence.answers:
            yield Finding(
                cause="answered-early",
                message=f"{sequence.request_id} was answered with"
                f" {counted(len(sequence.chosen), 'token')},"
                " and another one was chosen for it afterwards.",
                request_id=sequence.request_id,
                severity=WRONG_DATA,
            )

    def _whose(self, world: World, tokens: list[int], own: Sequence) -> str | None:
        """Return another request that has just this answer."""
        for other in reversed(world.last_of.values()):
            if other.request_id != own.request_id and other.chosen == tokens:
                return other.request_id
        return None


class OneAnswer(Rule):
    """Nobody is answered twice."""

    name = "duplicate-answer"
    sentence = "A request is answered once."
    bears_gaps = True

    def on_answered(self, world: World, event: Event) -> Iterator[Finding]:
        # A late answer, after the client gave up, is still the first.
        if (event.value or 0) > 1:
            yield Finding(
                cause="answered-again",
                message=f"{event.request_id} was answered {event.value} times.",
                request_id=event.request_id,
            )
