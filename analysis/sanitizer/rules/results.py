"""Rules about results: from logits to the chosen token, and to the delivered answer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from analysis.core.wording import counted
from analysis.sanitizer.findings import WRONG_DATA, Finding
from analysis.sanitizer.rules.base import Rule, each
from analysis.sanitizer.sequence import Sequence
from analysis.sanitizer.state import EngineState
from analysis.sanitizer.step import ShadowStep
from analysis.sanitizer.trace import Event, Result

_KEPT = 10_000
"""Number of past rows that are kept to identify foreign logits."""


def _result(state: EngineState, event: Event) -> tuple[Sequence, Result] | None:
    """Return the sequence of an event `chosen` and its last result; None if unknown."""
    sequence = state.under_way.get(event.request)
    if sequence is None or sequence.unknown or sequence.result is None:
        return None
    return sequence, sequence.result


def _next_token(sequence: Sequence) -> str:
    return f"Token {len(sequence.chosen) + 1} of {sequence.request_id}"


def _wrong(cause: str, what: str, sequence: Sequence, other: str | None = None) -> Finding:
    """Return a finding about a request with a wrong token or answer."""
    return Finding(cause, what, sequence.request_id, other, severity=WRONG_DATA)


class LogitsMismatch(Rule):
    name = "logits-mismatch"
    sentence = "A token is chosen from the logits of its request's own row in its last invocation."
    causes = each(
        "earlier-invocation unknown-logits other-request",
        "The token belongs to another row or another step.",
    )
    limits = {
        "decoder": "Results are not followed with several beams, or if the device selects the"
        " tokens."
    }

    def __init__(self) -> None:
        super().__init__()
        self._seen: OrderedDict[int, tuple[str, int]] = OrderedDict()

    def invocation(self, state: EngineState, step: ShadowStep) -> None:
        invocation = step.invocation
        for row, digest in enumerate(invocation.result_digests or ()):
            self._seen[digest] = invocation.request_ids[row], invocation.invocation_id
            self._seen.move_to_end(digest)
        while len(self._seen) > _KEPT:
            self._seen.popitem(last=False)

    def on_chosen(self, state: EngineState, event: Event) -> Iterator[Finding]:
        known, digest = _result(state, event), event.digest
        if known is None or digest is None:
            return
        sequence, result = known
        own = f"its logits are those of invocation {result.invocation_id}"
        cause, other = "earlier-invocation", None
        if digest == result.digest:
            again, result.used = result.used, True
            if not again:
                return
            origin = f"of invocation {result.invocation_id}, which already gave a token"
        else:
            other, number = self._seen.get(digest, (None, None))
            if other is None:
                cause, origin = "unknown-logits", f"of unknown origin; {own}"
            elif other != sequence.request_id:
                cause, origin = "other-request", f"of {other} in invocation {number}; {own}"
            else:
                other, origin = None, f"of its invocation {number}; {own}"
        what = f"{_next_token(sequence)} was chosen from logits {origin}."
        yield _wrong(cause, what, sequence, other)


class SamplingMismatch(Rule):
    name = "sampling-mismatch"
    sentence = "A token is the argmax of its logits, and is passed on unchanged."
    causes = each(
        "not-argmax not-sampled changed",
        "The answer continues with a token that the model did not predict.",
    )
    limits = {
        "decoder": "Only greedy selection is checked, not several beams, a temperature other than 1"
        " or softmax normalisation."
    }

    def on_chosen(self, state: EngineState, event: Event) -> Iterator[Finding]:
        known = _result(state, event)
        if known is None or event.value is None:
            return
        sequence, result = known
        # `logits-mismatch` reports foreign logits. Logits with NaN have no argmax.
        if event.digest == result.digest and result.token >= 0 and event.value != result.token:
            argmax = f"the argmax of invocation {result.invocation_id}"
            what = f"{_next_token(sequence)} is {event.value}, but {argmax} is {result.token}."
            yield _wrong("not-argmax", what, sequence)

    def on_token(self, state: EngineState, event: Event) -> Iterator[Finding]:
        sequence = state.under_way.get(event.request)
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
        token = f"Token {place + 1} of {sequence.request_id}"
        yield _wrong(cause, f"{token} arrived as {event.value}, but {what}.", sequence)

    on_first_token = on_token


class AnswerMismatch(Rule):
    name = "answer-mismatch"
    sentence = "An answer has exactly the tokens that were chosen for its request, in order."
    causes = each(
        "other-request missing-tokens extra-tokens wrong-tokens answered-early",
        "The client does not get the answer that was computed.",
    )
    limits = {
        "text-answers": "Answers are compared as text: special tokens, and tokens with the same"
        " text, are not distinguished."
    }

    def on_answered(self, state: EngineState, event: Event) -> Iterator[Finding]:
        sequence = state.last_of.get(event.request)
        if sequence is None or not sequence.chosen or not sequence.follows:
            return
        delivered, chosen = list(event.tokens), sequence.chosen
        # `empty-answer` reports an empty answer.
        if None in chosen or not delivered or delivered == chosen:
            return
        alike = (s.request_id for s in reversed(state.last_of.values()) if s.chosen == delivered)
        other = next((name for name in alike if name != sequence.request_id), None)
        if other is not None:
            cause = "other-request"
        elif len(delivered) != len(chosen):
            cause = "missing-tokens" if len(delivered) < len(chosen) else "extra-tokens"
        else:
            cause = "wrong-tokens"
        pairs = enumerate(zip(delivered, chosen, strict=False))
        first = next((i for i, (a, b) in pairs if a != b), min(len(delivered), len(chosen)))
        origin = f"; it equals the answer of {other}" if other else ""
        what = (
            f"The answer of {sequence.request_id} has {counted(len(delivered), 'token')} where"
            f" {len(chosen)} were chosen, and differs from token {first + 1} on{origin}."
        )
        yield _wrong(cause, what, sequence, other)

    def on_chosen(self, state: EngineState, event: Event) -> Iterator[Finding]:
        sequence = state.last_of.get(event.request)
        if sequence is not None and sequence.answers:
            had = counted(len(sequence.chosen), "token")
            what = f"{sequence.request_id} was answered with {had}, but another was chosen later."
            yield _wrong("answered-early", what, sequence)


class DuplicateAnswer(Rule):
    name = "duplicate-answer"
    sentence = "A request is answered once."
    causes = {"answered-again": "The second answer is lost, or goes to another client."}
    tolerates_gaps = True

    def on_answered(self, state: EngineState, event: Event) -> Iterator[Finding]:
        # An answer after the client gave up still counts as the first.
        if (event.value or 0) > 1:
            what = f"{event.request_id} was answered {event.value} times."
            yield Finding("answered-again", what, event.request_id)
