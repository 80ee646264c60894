"""That every accepted request is served to its end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from analysis.core.wording import counted
from analysis.sanitizer.findings import WRONG_DATA, Finding
from analysis.sanitizer.passage import Passage
from analysis.sanitizer.rules.base import Rule
from analysis.sanitizer.stream import unlanded
from analysis.sanitizer.world import Event, World

REST_S = 1.5
"""How long nothing must have happened to a request, and no invocation begun, until it stands still.

3.1.0 lets a request wait for up to 0.5 s for others to share its invocation; later releases less.
"""
STARVED_S = 10.0
"""After how long a request stands still to which nothing happened while others were served."""
_NAMED = 6


class Completed(Rule):
    """A request that was accepted gets its answer.

    That a client's deadline passed says nothing yet: what counts is whether the engine has ended
    the request when the recording ends, or at least still works on it.
    """

    name = "stuck-request"
    sentence = "Every accepted request is answered."
    bears_gaps = True

    def __init__(self) -> None:
        self._waiting: dict[str, Event] = {}
        self._given_up: dict[str, Event] = {}
        """The end of each request that its client gave up and the engine has not ended."""
        self._ended: set[str] = set()
        """Requests that the engine ended before it was told that their clients gave them up."""
        self._moved_s: dict[str, float] = {}
        """When something happened last to a request that is under way, or was given up."""
        self._begun_s = 0.0
        """When the last invocation began."""
        self._now_s = 0.0
        self._cut = False
        """Whether the recording ends before the engine had its time."""
        self._death: Event | None = None
        self._threads: Sequence[Mapping[str, Any]] = ()
        """What every thread did when the first request was given up; told once."""

    def on_worker_died(self, world: World, event: Event) -> Iterator[Finding]:
        self._death = self._death or event
        waiting = ", ".join(sorted(world.under_way)) or "nobody"
        yield Finding(
            cause="worker-died",
            message=f"A worker of the engine died while {waiting} waited: {event.message}",
            request_id=event.request_id,
        )

    def invocation(self, world: World, passage: Passage) -> Iterator[Finding]:
        self._begun_s = max(self._begun_s, passage.invocation.t_s)
        for request in passage.invocation.request_ids:
            self._moves(world, request, passage.invocation.t_s)
        return iter(())

    def _moves(self, world: World, request: str | None, t_s: float) -> None:
        self._now_s = max(self._now_s, t_s)
        if request is not None and (request in world.under_way or request in self._given_up):
            self._moved_s[request] = max(t_s, self._moved_s.get(request, 0.0))

    def on_token(self, world: World, event: Event) -> Iterator[Finding]:
        self._moves(world, event.request_id, event.t_s)
        return iter(())

    on_first_token = on_pages_held = on_pages_dropped = on_token

    def on_submitted(self, world: World, event: Event) -> Iterator[Finding]:
        # The same name may be sent in again, after a refusal.
        self._forget(event.request_id or "")
        return self.on_snapshot(world, event)

    def after_submitted(self, world: World, event: Event) -> Iterator[Finding]:
        return self.on_token(world, event)

    def _forget(self, request: str) -> None:
        """Forget what was noted of a request that the engine has ended."""
        self._ended.discard(request)
        for known in (self._given_up, self._moved_s, self._waiting):
            known.pop(request, None)

    def on_invocation_unfinished(self, world: World, event: Event) -> Iterator[Finding]:
        self._begun_s = max(self._begun_s, event.t_s)
        for request in unlanded(event).request_ids:
            self._moves(world, request, event.t_s)
        return iter(())

    def on_snapshot(self, world: World, event: Event) -> Iterator[Finding]:
        self._moves(world, None, event.t_s)
        return iter(())

    on_memory = on_snapshot

    def on_stall(self, world: World, event: Event) -> Iterator[Finding]:
        if event.request_id is not None:
            self._waiting[event.request_id] = event
            self._threads = event.extras["stall"].get("threads") or self._threads
        self._moves(world, None, event.t_s)
        return iter(())

    def on_cut(self, world: World, event: Event) -> Iterator[Finding]:
        self._cut = True
        return self.on_snapshot(world, event)

    def on_late(self, world: World, event: Event) -> Iterator[Finding]:
        self._forget(event.request_id or "")
        if event.request_id in world.under_way:  # only then its end is told afterwards
            self._ended.add(event.request_id)
        return self.on_token(world, event)

    def on_done(self, world: World, event: Event) -> Iterator[Finding]:
        request, outcome = event.request_id or "", event.outcome
        self._moves(world, None, event.t_s)
        if outcome in ("timeout", "engine_died"):
            if self._death is not None:
                yield self._finding(world, event)
            elif request not in self._ended:
                self._given_up[request] = event
                # Of one that was under way before the watching began nothing else is known.
                self._moved_s.setdefault(request, event.t_s)
        if request not in self._given_up:
            self._forget(request)

    def _finding(self, world: World, event: Event) -> Finding:
        request = event.request_id or ""
        waiting = self._waiting.get(request)
        said = waiting.extras["stall"] if waiting is not None else {}
        cause, what = self._why(said.get("state"), said.get("phase"), world, request)
        # The oldest: who waits for it may have others. A dead worker keeps what it had.
        kept = max(said.get("locks") or (), key=lambda lock: lock["seconds"], default=None)
        if kept is not None and kept["seconds"] >= REST_S and self._death is None:
            cause = "lock-held"
            what = (
                f"thread {kept['thread']} held the lock of the {kept['lock']} and had not released"
                f" it after {kept['seconds']:g} s"
            )
        threads, self._threads = self._threads, ()
        stacks = "\n".join(f"{t['thread']}: {' < '.join(t['frames'])}" for t in threads)
        return Finding(
            cause=cause,
            message=f"{request} ended without its answer ({event.outcome}): {what}.",
            request_id=request,
            other_stack=stacks or None,
            seq=event.seq,
            t_s=event.t_s,
            thread=event.thread,
        )

    def _why(
        self, state: str | None, phase: str | None, world: World, request: str
    ) -> tuple[str, str]:
        """Return what kind of standstill it is, and what the request waits for."""
        if self._death is not None:
            return "worker-died", f"a worker had died in event {self._death.seq}"
        if request in world.unlanded:
            return "invocation-pending", "its invocation never landed"
        match state:
            case "pending":
                return "batcher-stalled", f"it waits to be boarded for a {phase or 'invocation'}"
            case "reserved":
                return "batcher-stalled", "the scheduler waits for others of its group"
        sequence = world.last_of.get(request)
        flown = 0 if sequence is None else sequence.takeoffs
        invocations = counted(flown, "invocation")
        if sequence is None or flown > len(sequence.answer):
            return "lost-wakeup", f"nothing is to be done for it, after {invocations}"
        return "batcher-stalled", f"no invocation was begun for its next step, after {invocations}"

    def _stands_still(self, request: str) -> bool:
        """Tell whether a request had not gone on for so long that it would never have."""
        still_s = self._now_s - self._moved_s.get(request, 0.0)
        at_rest = still_s >= REST_S and self._now_s - self._begun_s >= REST_S
        return at_rest or still_s >= STARVED_S

    def finish(self, world: World) -> Iterator[Finding]:
        early = []
        for request, event in sorted(self._given_up.items()):
            if self._death is not None or self._stands_still(request):
                yield self._finding(world, event)
            else:
                early.append(request)
        if early:
            more = f" and {len(early) - _NAMED} more" if len(early) > _NAMED else ""
            world.remarks.append(
                f"Whether the engine would have ended {', '.join(early[:_NAMED])}{more}, which"
                " their clients gave up, is not known: the recording ended too soon."
            )
        for request in sorted(world.under_way):
            sequence = world.under_way[request]
            if self._cut and self._death is None and not self._stands_still(request):
                continue  # its process was ended, and nothing says that the engine had stopped
            yield Finding(
                cause="worker-died" if self._death else "not-ended",
                message=f"{request} was still under way when the recording ended, after"
                f" {counted(sequence.takeoffs, 'invocation')}.",
                request_id=request,
            )


class EmptyAnswer(Rule):
    """A request is answered with tokens."""

    name = "empty-answer"
    sentence = "The answer of a request has at least one token."
    bears_gaps = True

    def on_done(self, world: World, event: Event) -> Iterator[Finding]:
        if event.outcome == "empty":
            yield Finding(
                cause="no-tokens",
                message=f"{event.request_id} was completed without a single token.",
                request_id=event.request_id,
            )


class OnceExecuted(Rule):
    """No step of a request is executed more than once."""

    name = "duplicate-execution"
    sentence = "Every step of a request is executed once."
    bears_gaps = True

    def invocation(self, world: World, passage: Passage) -> Iterator[Finding]:
        invocation = passage.invocation
        for row, sequence in passage.known_rows():
            if not passage.repeats[row]:
                continue
            twin, first = passage.twin_of[row] != row, int(passage.first[row])
            when = "in the same invocation" if twin else f"as in invocation {passage.made_by[row]}"
            yield Finding(
                cause="repeated-step",
                message=f"A {invocation.phase} of {sequence.request_id} from position {first} on is"
                f" executed once more, {when}.",
                request_id=sequence.request_id,
            )


class FlownTokens(Rule):
    """No token comes from nowhere."""

    name = "token-without-invocation"
    sentence = "Every token of an answer comes from an invocation of its own."
    bears_gaps = True

    def after_token(self, world: World, event: Event) -> Iterator[Finding]:
        sequence = world.under_way.get(event.request_id or "")
        if sequence is None or sequence.lost:
            return
        if len(sequence.answer) > sequence.takeoffs:
            yield Finding(
                cause="extra-token",
                message=f"{event.request_id} got token {len(sequence.answer)} of its answer after"
                f" {counted(sequence.takeoffs, 'invocation')}.",
                request_id=event.request_id,
                severity=WRONG_DATA,
            )

    after_first_token = after_token

    def after_done(self, world: World, event: Event) -> Iterator[Finding]:
        if event.value and event.outcome in ("ok", "wrong"):
            sequence = world.last_of.get(event.request_id or "")
            flown = (
                "" if sequence is None else f", after {counted(sequence.takeoffs, 'invocation')}"
            )
            yield Finding(
                cause="completed-early",
                message=f"{event.request_id} was completed"
                f" {counted(event.value, 'token')} too early{flown}.",
                request_id=event.request_id,
            )
