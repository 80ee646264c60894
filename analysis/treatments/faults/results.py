"""Faults on the way back: whose logits a request gets, which token is chosen, what is answered."""

from __future__ import annotations

import dataclasses
import sys
from abc import abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from analysis.shortfin.cache.invocations import CURRENT_INVOCATION
from analysis.shortfin.cache.probe import CURRENT_REQUEST
from analysis.shortfin.treatment import part, replace_attribute
from analysis.treatments.faults.base import Fault, Injection, place_of

if TYPE_CHECKING:
    from analysis.engine import Engine
    from analysis.shortfin.port import Call


# -- whose logits a request gets ---------------------------------------------------------------


@dataclass
class Given:
    """The logits of an invocation, on their way to its requests."""

    phase: str
    request_ids: list[str]
    """Of each row that carries one; the rest is padding."""
    logits: Any
    """[batch, tokens, vocabulary]"""
    instead: dict[int, tuple[Any, int, int]] = field(default_factory=dict)
    """By row: the array, the row and the shift of position of what it gets instead."""

    @property
    def shape(self) -> Any:
        """The shape of the logits."""
        return self.logits.shape

    def view(self, row: int, *place: Any) -> Any:
        """Return what a row gets."""
        array, row, shift = self.instead.get(row, (self.logits, row, 0))
        return array.view(row, *((place[0] + shift, *place[1:]) if place else ()))


class ResultFault(Fault):
    """A fault in the logits that a row gets, in one invocation."""

    phase: ClassVar[str] = "decode"
    after: ClassVar[int] = 3
    """Invocations of the phase that pass first."""

    def apply(self, engine: Engine, undo: ExitStack) -> None:
        """Stand between the model and the requests of every invocation."""
        passed = 0

        def give(given: Given) -> None:
            nonlocal passed
            if given.phase != self.phase or self.injected is not None:
                return
            passed += 1
            for row, request_id in enumerate(given.request_ids):
                if passed > self.after and self.targets(request_id):
                    place = place_of(engine.probe)
                    injected = self.inject(given, row)
                    if injected is not None:
                        self.injected = replace(injected, seq=place)
                        return
            self.pass_by(given)

        _stand_between(engine, undo, give)

    @abstractmethod
    def inject(self, given: Given, row: int) -> Injection | None:
        """Give a row something else; None if it does not offer itself."""

    def pass_by(self, given: Given) -> None:  # few remember anything
        """Look at an invocation that is left alone."""


def _stand_between(engine: Engine, undo: ExitStack, give: Callable[[Given], None]) -> None:
    adapter = engine.service
    assert adapter is not None
    if engine.release == "3.1.0":
        for phase in ("prefill", "decode"):
            functions = getattr(adapter.native, f"{phase}_functions")
            for size, function in list(functions.items()):
                functions[size] = _giving(phase, function, give)
                undo.callback(functions.__setitem__, size, function)
        return
    lanes = adapter.native.unified_batcher._impl.batching_engine
    for phase in ("prefill", "decode"):
        responder = getattr(lanes, f"{phase}_lane")._llm_task_responder
        replace_attribute(undo, responder, "set_success", _succeeding(phase, responder, give))


def _giving(phase: str, function: Any, give: Callable[[Given], None]) -> Any:
    async def fly(*args: Any, fiber: Any) -> Any:
        results = await function(*args, fiber=fiber)
        process = CURRENT_INVOCATION.get()
        if process is None:
            return results
        given = Given(phase, [request.rid for request in process.exec_requests], results[0])
        give(given)
        return (given,)

    return fly


def _succeeding(phase: str, responder: Any, give: Callable[[Given], None]) -> Any:
    succeed = responder.set_success

    def succeeding(task: Any, logits: Any, indices: Any) -> None:
        requests = responder._get_requests_from_task(task)
        given = Given(phase, [request.rid for request in requests], logits)
        give(given)
        succeed(task, given, indices)

    return succeeding


class RowsExchanged(ResultFault):
    """Two requests get each other's logits."""

    name = "fault:rows-exchanged"
    change = "Two rows of one decode give each other's requests their logits, once."
    rule, cause = "logits-mismatch", "other-request"

    def inject(self, given: Given, row: int) -> Injection | None:
        other = next((r for r in range(len(given.request_ids)) if r != row), None)
        if other is None:
            return None
        given.instead = {row: (given.logits, other, 0), other: (given.logits, row, 0)}
        return Injection(given.request_ids[row], given.request_ids[other])


class RowOffByOne(ResultFault):
    """Every request gets the logits of the row after its own."""

    name = "fault:row-off-by-one"
    change = "Every row of one decode gives its request the next row's logits, once."
    rule, cause = "logits-mismatch", "other-request"

    def inject(self, given: Given, row: int) -> Injection | None:
        ids, batch = given.request_ids, int(given.shape[0])
        if row + 1 >= len(ids):
            return None
        given.instead = {r: (given.logits, (r + 1) % batch, 0) for r in range(len(ids))}
        return Injection(ids[row], ids[row + 1])


class PaddingResult(ResultFault):
    """A request gets the logits of a padding row."""

    name = "fault:padding-result"
    change = "One row of a decode gives its request a padding row's logits, once."
    rule, cause = "logits-mismatch", "unknown-logits"

    def inject(self, given: Given, row: int) -> Injection | None:
        if len(given.request_ids) >= given.shape[0]:
            return None
        given.instead = {row: (given.logits, len(given.request_ids), 0)}
        return Injection(given.request_ids[row])


class StaleResult(ResultFault):
    """A request gets the logits of its invocation before."""

    name = "fault:stale-result"
    change = "One row of a decode gives its request the logits of the decode before, once."
    rule, cause = "logits-mismatch", "earlier-invocation"

    def __init__(self, parameter: str | None = None) -> None:
        super().__init__(parameter)
        self._last: dict[str, tuple[Any, int]] = {}

    def pass_by(self, given: Given) -> None:
        self._last.update({r: (given.logits, row) for row, r in enumerate(given.request_ids)})

    def inject(self, given: Given, row: int) -> Injection | None:
        request = given.request_ids[row]
        if request not in self._last:
            return None
        given.instead = {row: (*self._last[request], 0)}
        return Injection(request)


class ForeignStaleResult(StaleResult):
    """A request gets logits of another one that has gone on since."""

    name = "fault:foreign-stale-result"
    change = "One row of a decode gives its request another one's logits of the one before, once."
    rule, cause = "logits-mismatch", "other-request"

    def inject(self, given: Given, row: int) -> Injection | None:
        request = given.request_ids[row]
        other = next((r for r in self._last if r != request), None)
        if other is None:
            return None
        given.instead = {row: (*self._last[other], 0)}
        return Injection(request, other)


class PositionEarly(ResultFault):
    """A prompt's next token comes from the position before its last."""

    name = "fault:result-position-early"
    change = "One row of a prefill gives the logits of the position before its last, once."
    phase, after = "prefill", 0
    rule, cause = "logits-mismatch", "unknown-logits"

    def inject(self, given: Given, row: int) -> Injection | None:
        given.instead = {row: (given.logits, row, -1)}
        return Injection(given.request_ids[row])


# -- which token is chosen ---------------------------------------------------------------------


class TokenFault(Fault):
    """A fault in the choice of one token; it needs an observer, who knows whose it is."""

    after: ClassVar[int] = 4
    """Tokens of the request that pass first."""

    def __init__(self, parameter: str | None = None) -> None:
        super().__init__(parameter)
        self._passed: dict[str, int] = {}

    def strikes(self, request_id: str | None, engine: Engine) -> bool:
        """Tell whether this token of a request is the one, and take note of it."""
        if request_id is None:
            return False
        self._passed[request_id] = passed = self._passed.get(request_id, 0) + 1
        if passed <= self.after or not self.targets(request_id):
            return False
        self.injected = Injection(request_id, seq=place_of(engine.probe))
        return True


class SecondBest(TokenFault):
    """The second likeliest token is chosen."""

    name = "fault:second-best-token"
    change = "One token of a request is the second likeliest, once."
    rule, cause = "sampling-mismatch", "not-argmax"

    def apply(self, engine: Engine, undo: ExitStack) -> None:
        """Stand in for the engine's own selection."""
        if engine.release == "3.1.0":
            arrays = part(engine, "generate").sfnp
            argmax = arrays.argmax

            def choose(logits: Any, *args: Any, **named: Any) -> Any:
                chosen = argmax(logits, *args, **named)
                if not self.strikes(CURRENT_REQUEST.get(), engine):
                    return chosen
                return _Chosen([int(_second(np.array(logits.items).ravel()))])

            replace_attribute(undo, arrays, "argmax", choose)
            return
        selectors = part(engine, "decoder.decoder").TokenSelector
        step = selectors.step

        def stepping(selector: Any, logits: Any, indices: Any) -> Any:
            if not self.strikes(CURRENT_REQUEST.get(), engine):
                return step(selector, logits, indices)
            own = selector._select_function
            selector._select_function = _select_second
            try:
                return step(selector, logits, indices)
            finally:
                selector._select_function = own

        replace_attribute(undo, selectors, "step", stepping)


@dataclass
class _Chosen:
    """A token, in the shape of an array of one."""

    items: list[int]


def _second(scores: Any) -> Any:
    return np.argsort(-scores, kind="stable")[1]


def _select_second(scores: Any, config: Any) -> Any:
    tokens = np.array([_second(scores.flatten())])
    return tokens, scores.flatten()[tokens]


class TokenChanged(TokenFault):
    """A token becomes another one when it has been chosen."""

    name = "fault:token-changed"
    change = "One token of a request is another one from when it was chosen, once."
    rule, cause = "sampling-mismatch", "changed"

    def apply(self, engine: Engine, undo: ExitStack) -> None:
        """Change the token where it goes on from the selection."""
        if engine.release == "3.1.0":
            clients = sys.modules[type(engine.service).__module__]._Client
            stream = clients.stream_results

            def streaming(client: Any, process: Any) -> None:
                if self.strikes(process.gen_req.rid, engine):
                    process.result_token_ids[-1] = _other(process.result_token_ids[-1])
                stream(client, process)

            replace_attribute(undo, clients, "stream_results", streaming)
            return
        selectors = part(engine, "decoder.decoder").TokenSelector
        step = selectors.step

        def stepping(selector: Any, logits: Any, indices: Any) -> Any:
            beams, tokens = step(selector, logits, indices)
            if tokens and self.strikes(CURRENT_REQUEST.get(), engine):
                tokens = [_other(int(tokens[0]))]
            return beams, tokens

        replace_attribute(undo, selectors, "step", stepping)


def _other(token: int) -> int:
    return token - 1 if token > 5 else token + 1


# -- what is answered --------------------------------------------------------------------------


class AnswerFault(Fault):
    """A fault in the tokens of an answer, when all were chosen."""

    def apply(self, engine: Engine, undo: ExitStack) -> None:
        """Change a request's tokens when its own process has ended."""
        items = part(engine, "generate").GenerateItemProcess
        run = items.run

        async def running(process: Any) -> None:
            await run(process)
            request = process.gen_req.rid if hasattr(process, "gen_req") else process.rid
            tokens = process.result_token_ids
            nested = bool(tokens) and isinstance(tokens[0], list)
            flat = tokens[0] if nested else tokens
            if len(flat) > 4 and self.targets(request):
                place, changed = place_of(engine.probe), self.changed(list(flat), request)
                if changed is not None:
                    self.injected = Injection(request, self.other, seq=place)
                    process.result_token_ids = [changed] if nested else changed

        replace_attribute(undo, items, "run", running)

    other: str | None = None
    """The request whose answer it is."""

    @abstractmethod
    def changed(self, tokens: list[int], request_id: str) -> list[int] | None:
        """Return other tokens; None if these do not offer themselves."""


class TokenDropped(AnswerFault):
    """An answer lacks one of its tokens."""

    name = "fault:token-dropped"
    change = "One token in the middle of an answer is left out, once."
    rule, cause = "answer-mismatch", "missing-tokens"

    def changed(self, tokens: list[int], request_id: str) -> list[int] | None:
        return tokens[:2] + tokens[3:]


class TokenRepeated(AnswerFault):
    """An answer has one of its tokens twice."""

    name = "fault:token-repeated"
    change = "One token in the middle of an answer is repeated, once."
    rule, cause = "answer-mismatch", "extra-tokens"

    def changed(self, tokens: list[int], request_id: str) -> list[int] | None:
        return tokens[:3] + tokens[2:]


class TokensReordered(AnswerFault):
    """Two tokens of an answer stand in each other's place."""

    name = "fault:tokens-reordered"
    change = "Two tokens of an answer that follow each other are exchanged, once."
    rule, cause = "answer-mismatch", "wrong-tokens"

    def changed(self, tokens: list[int], request_id: str) -> list[int] | None:
        place = next((i for i in range(len(tokens) - 1) if tokens[i] != tokens[i + 1]), None)
        if place is None:
            return None
        tokens[place : place + 2] = [tokens[place + 1], tokens[place]]
        return tokens


class ForeignAnswer(AnswerFault):
    """A request gets the answer of another one."""

    name = "fault:foreign-answer"
    change = "One request is answered with the tokens of one that ended before, once."
    rule, cause = "answer-mismatch", "other-request"

    def __init__(self, parameter: str | None = None) -> None:
        super().__init__(parameter)
        self._ended: tuple[str, list[int]] | None = None

    def changed(self, tokens: list[int], request_id: str) -> list[int] | None:
        ended, self._ended = self._ended, (request_id, tokens)
        if ended is None or ended[1] == tokens:
            return None
        self.other = ended[0]
        return list(ended[1])


class ResponderFault(Fault):
    """A fault in when, and how often, a request is answered."""

    def apply(self, engine: Engine, undo: ExitStack) -> None:
        """Stand before the responder of one request, from its launch on."""
        adapter = engine.service
        assert adapter is not None
        launch = adapter.launch

        def launched(call: Call) -> None:
            if not self.targets(call.request_id) or call.max_new_tokens < 4:
                launch(call)
                return
            self.injected = Injection(call.request_id, seq=place_of(engine.probe))
            launch(self.before(call, engine))
            responder = adapter.responder_of(call.request_id)
            if responder is not None:
                self.after_launch(responder)

        replace_attribute(undo, adapter, "launch", launched)

    def before(self, call: Call, engine: Engine) -> Call:
        """Return the call as it is to go in."""
        return call

    @abstractmethod
    def after_launch(self, responder: Any) -> None:
        """Change the responder of the request that was launched."""


class AnsweredTwice(ResponderFault):
    """A request is answered twice."""

    name = "fault:answered-twice"
    change = "One request is sent its answer twice."
    rule, cause = "duplicate-answer", "answered-again"

    def after_launch(self, responder: Any) -> None:
        send = responder.send_response

        def twice(response: Any) -> None:
            send(response)
            send(response)

        responder.send_response = twice


class AnsweredEarly(ResponderFault):
    """A request is answered before its last tokens are there."""

    name = "fault:answered-early"
    change = "One request is sent an answer of its first three tokens, and goes on."
    rule, cause = "answer-mismatch", "answered-early"

    def before(self, call: Call, engine: Engine) -> Call:
        adapter, seen = engine.service, list[int]()
        assert adapter is not None

        def arrived(token: int | None) -> None:
            call.on_token(token)
            seen.append(int(token or 0))
            responder = adapter.responder_of(call.request_id)
            if len(seen) == 3 and responder is not None:
                if engine.release == "3.1.0":
                    (text,) = adapter.native.tokenizer.decode([seen])
                    response: Any = b"data: " + text.encode() + b"\n\n"
                else:
                    response = [list(seen)]
                type(responder).send_response(responder, response)

        return dataclasses.replace(call, on_token=arrived)

    def after_launch(self, responder: Any) -> None:
        responder.send_response = lambda response: None


RESULT_FAULTS = (
    RowsExchanged, RowOffByOne, PaddingResult, StaleResult, ForeignStaleResult, PositionEarly,
    SecondBest, TokenChanged, TokenDropped, TokenRepeated, TokensReordered, ForeignAnswer,
    AnsweredTwice, AnsweredEarly,
)  # fmt: skip
