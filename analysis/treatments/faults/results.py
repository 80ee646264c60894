"""Faults in results: logits of a row, the choice of a token, the answer of a request."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.shortfin.service.edits import Results
from analysis.shortfin.treatment import LiveEngine
from analysis.treatments.faults.base import Fault, Injection, fault, place_of
from analysis.treatments.faults.requests import CallFault

if TYPE_CHECKING:
    from analysis.shortfin.port import Call


# -- logits ------------------------------------------------------------------------------------


class ResultFault(Fault):
    """A fault in the logits of a row, in one invocation: `function(results, row, last)`.

    `last` are the logits and the row of each request's last invocation.
    """

    phase = "decode"
    after = 3
    """Number of invocations of the phase to skip first."""

    def apply(self, engine: LiveEngine, undo: ExitStack) -> None:
        """Try the results of every invocation."""
        passed = 0

        def edit(results: Results) -> None:
            nonlocal passed
            if results.phase != self.phase or self.injected is not None:
                return
            passed += 1
            for row, request_id in enumerate(results.request_ids):
                if passed > self.after and self.targets(request_id):
                    place = place_of(engine.probe)
                    injection = type(self).function(results, row, self.memory)
                    if injection is not None:
                        self.injected = dataclasses.replace(injection, seq=place)
                        return
            for row, request_id in enumerate(results.request_ids):
                self.memory[request_id] = (results.logits, row)

        engine.service.edits.edit_results(engine.service, undo, edit)


_wrong_row = partial(fault, rule="logits-mismatch", kind=ResultFault)


@_wrong_row("rows-exchanged", cause="other-request")
def rows_exchanged(results: Results, row: int, last: Any) -> Injection | None:
    """Swaps the logits of two rows of a decode, once."""
    ids = results.request_ids
    other = next((r for r in range(len(ids)) if r != row), None)
    if other is None:
        return None
    results.instead = {row: (results.logits, other, 0), other: (results.logits, row, 0)}
    return Injection(ids[row], ids[other])


@_wrong_row("row-off-by-one", cause="other-request")
def row_off_by_one(results: Results, row: int, last: Any) -> Injection | None:
    """Gives every request of a decode the logits of the next row, once."""
    ids, batch = results.request_ids, int(results.shape[0])
    if row + 1 >= len(ids):
        return None
    results.instead = {r: (results.logits, (r + 1) % batch, 0) for r in range(len(ids))}
    return Injection(ids[row], ids[row + 1])


@_wrong_row("padding-result", cause="unknown-logits")
def padding_result(results: Results, row: int, last: Any) -> Injection | None:
    """Gives a request of a decode the logits of a padding row, once."""
    if len(results.request_ids) >= results.shape[0]:
        return None
    results.instead = {row: (results.logits, len(results.request_ids), 0)}
    return Injection(results.request_ids[row])


@_wrong_row("stale-result", cause="earlier-invocation")
def stale_result(results: Results, row: int, last: Any) -> Injection | None:
    """Gives a request of a decode its logits of the previous decode, once."""
    request = results.request_ids[row]
    if request not in last:
        return None
    results.instead = {row: (*last[request], 0)}
    return Injection(request)


@_wrong_row("foreign-stale-result", cause="other-request")
def foreign_stale_result(results: Results, row: int, last: Any) -> Injection | None:
    """Gives a request of a decode another request's logits of the previous decode, once."""
    request = results.request_ids[row]
    other = next((r for r in last if r != request), None)
    if other is None:
        return None
    results.instead = {row: (*last[other], 0)}
    return Injection(request, other)


@_wrong_row("result-position-early", cause="unknown-logits", phase="prefill", after=0)
def result_position_early(results: Results, row: int, last: Any) -> Injection:
    """Gives a request of a prefill the logits of the last position but one, once."""
    results.instead = {row: (results.logits, row, -1)}
    return Injection(results.request_ids[row])


# -- the choice of a token ---------------------------------------------------------------------


class TokenFault(Fault):
    """A fault in the choice of one token; needs an observer to identify the request."""

    after = 4
    """Number of the request's tokens to skip first."""

    def is_due(self, request_id: str | None, engine: LiveEngine) -> bool:
        """Count a token of a request, and return whether it is the one to change."""
        if request_id is None:
            return False
        self.memory[request_id] = count = self.memory.get(request_id, 0) + 1
        if count <= self.after or not self.targets(request_id):
            return False
        self.injected = Injection(request_id, seq=place_of(engine.probe))
        return True


_wrong_token = partial(fault, rule="sampling-mismatch", kind=TokenFault)


@_wrong_token("second-best-token", cause="not-argmax")
def second_best(self: TokenFault, engine: LiveEngine, undo: ExitStack) -> None:
    """Chooses the second most likely token for a request, once."""

    def choose(scores: Any) -> int:
        return int(np.argsort(-scores, kind="stable")[1])

    engine.service.edits.edit_choices(undo, lambda request: self.is_due(request, engine), choose)


@_wrong_token("token-changed", cause="changed")
def token_changed(self: TokenFault, engine: LiveEngine, undo: ExitStack) -> None:
    """Replaces a token of a request after it was chosen, once."""

    def edit(request_id: str | None, token: int) -> int:
        if not self.is_due(request_id, engine):
            return token
        return token - 1 if token > 5 else token + 1

    engine.service.edits.edit_tokens(undo, edit)


# -- the answer --------------------------------------------------------------------------------


class AnswerFault(Fault):
    """A fault in the tokens of a whole answer: `function(tokens, request, memory)`.

    The function returns the changed tokens and the request they belong to, or None.
    """

    def apply(self, engine: LiveEngine, undo: ExitStack) -> None:
        """Try every answer that is long enough."""

        def edit(request_id: str, tokens: list[int]) -> list[int]:
            if len(tokens) <= 4 or not self.targets(request_id):
                return tokens
            place = place_of(engine.probe)
            changed = type(self).function(list(tokens), request_id, self.memory)
            if changed is None:
                return tokens
            self.injected = Injection(request_id, changed[1], seq=place)
            return list(changed[0])

        engine.service.edits.edit_answers(undo, edit)


_Changed = tuple[list[int], str | None]
_wrong_answer = partial(fault, rule="answer-mismatch", kind=AnswerFault)


@_wrong_answer("token-dropped", cause="missing-tokens")
def token_dropped(tokens: list[int], request: str, memory: Any) -> _Changed:
    """Drops a token in the middle of an answer, once."""
    return tokens[:2] + tokens[3:], None


@_wrong_answer("token-repeated", cause="extra-tokens")
def token_repeated(tokens: list[int], request: str, memory: Any) -> _Changed:
    """Repeats a token in the middle of an answer, once."""
    return tokens[:3] + tokens[2:], None


@_wrong_answer("tokens-reordered", cause="wrong-tokens")
def tokens_reordered(tokens: list[int], request: str, memory: Any) -> _Changed | None:
    """Swaps two adjacent tokens of an answer, once."""
    place = next((i for i in range(len(tokens) - 1) if tokens[i] != tokens[i + 1]), None)
    if place is None:
        return None
    tokens[place : place + 2] = [tokens[place + 1], tokens[place]]
    return tokens, None


@_wrong_answer("foreign-answer", cause="other-request")
def foreign_answer(tokens: list[int], request: str, memory: Any) -> _Changed | None:
    """Answers a request with the tokens of an earlier request, once."""
    ended = memory.get("ended")
    memory["ended"] = (request, tokens)
    if ended is None or ended[1] == tokens:
        return None
    return list(ended[1]), ended[0]


@fault("answered-twice", "duplicate-answer", "answered-again", kind=CallFault)
def answered_twice(service: Any, call: Call, launch: Callable[[Call], None]) -> None:
    """Answers a request twice."""
    launch(call)
    if (responder := service.responder_of(call.request_id)) is not None:
        send = responder.send_response

        def twice(response: Any) -> None:
            send(response)
            send(response)

        responder.send_response = twice


@_wrong_answer("answered-early", cause="answered-early", kind=CallFault)
def answered_early(service: Any, call: Call, launch: Callable[[Call], None]) -> None:
    """Answers a request after its first three tokens, and continues it."""
    seen: list[int] = []

    def arrived(token: int | None) -> None:
        call.on_token(token)
        seen.append(int(token or 0))
        responder = service.responder_of(call.request_id)
        if len(seen) == 3 and responder is not None:
            response = service.edits.encode_answer(service, list(seen))
            type(responder).send_response(responder, response)

    launch(dataclasses.replace(call, on_token=arrived))
    if (responder := service.responder_of(call.request_id)) is not None:
        responder.send_response = lambda response: None
