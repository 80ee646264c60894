"""What a planted fault is: it strikes once, and keeps what it did."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from analysis.recording.recorder import Recorder
from analysis.shortfin.releases import row_of
from analysis.shortfin.treatment import Place, Treatment
from analysis.treatments.invocations import PendingInvocation, edit_invocations

if TYPE_CHECKING:
    from analysis.engine import Engine


@dataclass(frozen=True)
class Injection:
    """What a fault did."""

    request_id: str | None = None
    """The request that suffers."""
    other_request_id: str | None = None
    page: int | None = None
    invocation_id: int | None = None
    """The invocation at which it was done, as a recording numbers it; None for one not made."""
    seq: int | None = None
    """A place among the recorded events just before it was done."""


def place_of(probe: Any) -> int | None:
    """Return a place among the events that a probe tells, None if nothing is recorded."""
    watcher = None if probe is None else probe.observer
    if not isinstance(watcher, Recorder):
        return None
    place = watcher.reserve()
    watcher.unused(place)
    return place[0]


class Fault(Treatment):
    """A defect planted on purpose, to see whether the alarm sounds.

    Its parameter is the beginning of the ids of the requests that it may inject.
    """

    hypothesis = "None: it shows that the sanitizer finds such a defect."
    takes = "the beginning of a request's id"
    acts_on: ClassVar[Place] = "server"
    rule: ClassVar[str]
    """The rule that it breaks."""
    cause: ClassVar[str]
    """In which way."""
    instead: ClassVar[Mapping[str, tuple[str, str]]] = {}
    """By capability, rule and cause on releases that have it, where those differ."""
    control: ClassVar[bool] = True
    """Whether a sanitized sweep finds it from what it records, so that controls may have it."""

    def __init__(self, parameter: str | None = None) -> None:
        super().__init__(parameter)
        self.injected: Injection | None = None

    @classmethod
    def alarm(cls, release: str) -> tuple[str, str]:
        """Return rule and cause of the alarm that it must set off on a release."""
        capabilities = row_of(release).capabilities
        others = [alarm for name, alarm in cls.instead.items() if name in capabilities]
        return others[0] if others else (cls.rule, cls.cause)

    def targets(self, request_id: str) -> bool:
        """Tell whether a request is one that it is meant for."""
        return self.injected is None and request_id.startswith(self.parameter or "")


class InvocationFault(Fault):
    """A fault in what the model is called with, in one invocation."""

    phase: ClassVar[str] = "decode"
    after: ClassVar[int] = 3
    """Invocations of the phase that pass first, so that there is something to damage."""

    def apply(self, engine: Engine, undo: ExitStack) -> None:
        """Look at every invocation for one that it can inject."""
        passed = 0
        probe = engine.probe or engine.service.probe()  # type: ignore[union-attr]

        def edit(invocation: PendingInvocation) -> None:
            nonlocal passed
            if invocation.phase != self.phase or self.injected is not None:
                return
            passed += 1
            if passed <= self.after:
                return
            for row, request_id in enumerate(invocation.request_ids):
                if self.targets(request_id):
                    place = place_of(probe)
                    injected = self.inject(invocation, row, probe)
                    if injected is not None:
                        self.injected = replace(injected, seq=place)
                        self._note_number(invocation, probe)
                        return

        edit_invocations(engine, undo, edit)

    def _note_number(self, invocation: PendingInvocation, probe: Any) -> None:
        """Have the number of the invocation noted when it has begun, if it is recorded."""
        then, watcher = invocation.afterwards, probe.observer

        def begun() -> None:
            if then is not None:
                then()
            if isinstance(watcher, Recorder) and self.injected is not None:
                number = watcher.last_invocation_of(invocation.request_ids)
                self.injected = replace(self.injected, invocation_id=number)

        invocation.afterwards = begun

    @abstractmethod
    def inject(self, invocation: PendingInvocation, row: int, probe: Any) -> Injection | None:
        """Damage a row; return what was done, None if this one does not offer itself."""


def another(invocation: PendingInvocation, row: int) -> int | None:
    """Return another real row of an invocation, None if there is none."""
    return next((other for other in range(invocation.real) if other != row), None)


def own_block(invocation: PendingInvocation, row: int, probe: Any) -> int:
    """Return the place in the block table that a decode's row writes to."""
    width = invocation.arrays["block_tables"].shape[1]
    place = int(invocation.arrays["start_positions"][row]) // int(probe.cache.tokens_per_page)
    return int(min(place, width - 1))
