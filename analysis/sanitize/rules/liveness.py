"""That every accepted request is served to its end."""

from __future__ import annotations

import json
from collections.abc import Iterator

from analysis.sanitize.findings import WRONG_DATA, Finding
from analysis.sanitize.rules.base import Rule
from analysis.sanitize.world import Event, World


class Completed(Rule):
    """A request that was accepted gets its answer."""

    name = "completion"
    sentence = "Every accepted request is answered."
    bears_gaps = True

    def __init__(self) -> None:
        self._waiting: dict[str, Event] = {}
        self._death: Event | None = None

    def on_died(self, world: World, event: Event) -> Iterator[Finding]:
        self._death = self._death or event
        waiting = ", ".join(sorted(world.under_way)) or "nobody"
        yield Finding(
            cause="dead worker",
            message=f"A worker of the engine died while {waiting} waited: {event.detail}",
            request_id=event.request_id,
        )

    def on_waiting(self, world: World, event: Event) -> Iterator[Finding]:
        if event.request_id is not None:
            self._waiting[event.request_id] = event
        return iter(())

    def on_done(self, world: World, event: Event) -> Iterator[Finding]:
        request, outcome = event.request_id, event.detail
        if outcome in ("timeout", "lost"):
            waiting = self._waiting.pop(request or "", None)
            said = json.loads(waiting.detail or "{}") if waiting is not None else {}
            cause, what = self._why(str(said.get("where", "unknown")), world, request)
            for kept in said.get("locks") or ():
                cause = "lock never released"
                what = (
                    f"thread {kept['thread']} has had the lock of the {kept['lock']} for"
                    f" {kept['seconds']:g} s"
                )
            threads = said.get("threads") or {}
            stacks = "\n".join(f"{name}: {' < '.join(f)}" for name, f in threads.items())
            yield Finding(
                cause=cause,
                message=f"{request} ended without its answer ({outcome}): {what}.",
                request_id=request,
                other_stack=stacks or None,
            )
        elif outcome == "empty":
            yield Finding(
                cause="answered with nothing",
                message=f"{request} was completed without a single token.",
                request_id=request,
            )

    def _why(self, where: str, world: World, request: str | None) -> tuple[str, str]:
        """Return what kind of standstill it is, and what the request waits for."""
        if self._death is not None:
            return "dead worker", f"a worker had died in event {self._death.seq}"
        phase = where.partition(" ")[2]
        match where.partition(" ")[0]:
            case "pending":
                return "stuck batcher", f"it waits to be boarded for a {phase or 'flight'}"
            case "reserved":
                return "stuck batcher", "the scheduler waits for others of its group"
            case "flying":
                return "flight without end", "its flight never landed"
        sequence = world.last_of.get(request or "")
        flown = 0 if sequence is None else sequence.takeoffs
        return "lost wake-up", f"nothing is to be done for it, after {flown} flights"

    def finish(self, world: World) -> Iterator[Finding]:
        for request in sorted(world.under_way):
            sequence = world.under_way[request]
            yield Finding(
                cause="dead worker" if self._death else "not ended",
                message=f"{request} was still under way when the recording ended, after"
                f" {sequence.takeoffs} flights.",
                request_id=request,
            )


class FlownTokens(Rule):
    """No token comes from nowhere."""

    name = "flown tokens"
    sentence = "Every token of an answer comes from a flight of its own."

    def after_token(self, world: World, event: Event) -> Iterator[Finding]:
        sequence = world.under_way.get(event.request_id or "")
        if sequence is None or sequence.lost:
            return
        if len(sequence.answer) > sequence.takeoffs:
            yield Finding(
                cause="token without a flight",
                message=f"{event.request_id} got token {len(sequence.answer)} of its answer after"
                f" {sequence.takeoffs} flights.",
                request_id=event.request_id,
                severity=WRONG_DATA,
            )

    after_first_token = after_token

    def after_done(self, world: World, event: Event) -> Iterator[Finding]:
        if event.value and event.detail in ("ok", "wrong"):
            sequence = world.last_of.get(event.request_id or "")
            flown = "" if sequence is None else f", after {sequence.takeoffs} flights"
            yield Finding(
                cause="completed early",
                message=f"{event.request_id} was completed {event.value} tokens too early{flown}.",
                request_id=event.request_id,
            )
