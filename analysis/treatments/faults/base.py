"""What a planted fault is: it strikes once, and keeps what it did."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from analysis.recording.recorder import Recorder
from analysis.shortfin.treatment import Treatment
from analysis.treatments.flights import Boarded, edit_flights

if TYPE_CHECKING:
    from analysis.engine import Engine


@dataclass(frozen=True)
class Struck:
    """What a fault did."""

    request_id: str | None = None
    """The request that suffers."""
    other_request_id: str | None = None
    page: int | None = None
    flight_id: int | None = None
    """The flight at which it was done, as a recording numbers it; None for one not made."""
    seq: int | None = None
    """A place among the recorded events just before it was done."""


def place_of(probe: Any) -> int | None:
    """Return a place among the events that a probe tells, None if nothing is recorded."""
    watcher = None if probe is None else probe.watcher
    if not isinstance(watcher, Recorder):
        return None
    place = watcher.reserve()
    watcher.unused(place)
    return place[0]


class Fault(Treatment):
    """A defect planted on purpose, to see whether the alarm sounds.

    Its parameter is the beginning of the ids of the requests that it may strike.
    """

    hypothesis = "None: it shows that the sanitizer finds such a defect."
    takes = "the beginning of a request's id"
    needs = "launch"
    rule: ClassVar[str]
    """The rule that it breaks."""
    cause: ClassVar[str]
    """In which way."""
    otherwise: ClassVar[Mapping[str, tuple[str, str]]] = {}
    """Releases on which it sets off another alarm: rule and cause."""
    control: ClassVar[bool] = True
    """Whether a sanitized sweep finds it from what it records, so that controls may have it."""

    def __init__(self, parameter: str | None = None) -> None:
        super().__init__(parameter)
        self.struck: Struck | None = None

    @classmethod
    def alarm(cls, release: str) -> tuple[str, str]:
        """Return rule and cause of the alarm that it must set off on a release."""
        return cls.otherwise.get(release, (cls.rule, cls.cause))

    def may_strike(self, request_id: str) -> bool:
        """Tell whether a request is one that it is meant for."""
        return self.struck is None and request_id.startswith(self.parameter or "")


class FlightFault(Fault):
    """A fault in what the model is called with, in one flight."""

    phase: ClassVar[str] = "decode"
    after: ClassVar[int] = 3
    """Flights of the phase that pass first, so that there is something to damage."""

    def apply(self, engine: Engine, undo: ExitStack) -> None:
        """Look at every flight for one that it can strike."""
        passed = 0
        probe = engine.probe or engine.adapter.probe()  # type: ignore[union-attr]

        def edit(flight: Boarded) -> None:
            nonlocal passed
            if flight.phase != self.phase or self.struck is not None:
                return
            passed += 1
            if passed <= self.after:
                return
            for row, request_id in enumerate(flight.request_ids):
                if self.may_strike(request_id):
                    place = place_of(probe)
                    struck = self.strike(flight, row, probe)
                    if struck is not None:
                        self.struck = replace(struck, seq=place)
                        self._note_number(flight, probe)
                        return

        edit_flights(engine, undo, edit)

    def _note_number(self, flight: Boarded, probe: Any) -> None:
        """Have the number of the flight noted when it has begun, if it is recorded."""
        then, watcher = flight.afterwards, probe.watcher

        def begun() -> None:
            if then is not None:
                then()
            if isinstance(watcher, Recorder) and self.struck is not None:
                number = watcher.last_flight_of(flight.request_ids)
                self.struck = replace(self.struck, flight_id=number)

        flight.afterwards = begun

    @abstractmethod
    def strike(self, flight: Boarded, row: int, probe: Any) -> Struck | None:
        """Damage a row; return what was done, None if this one does not offer itself."""


def another(flight: Boarded, row: int) -> int | None:
    """Return another real row of a flight, None if there is none."""
    return next((other for other in range(flight.real) if other != row), None)


def own_block(flight: Boarded, row: int, probe: Any) -> int:
    """Return the place in the block table that a decode's row writes to."""
    width = flight.arrays["block_tables"].shape[1]
    place = int(flight.arrays["start_positions"][row]) // int(probe.cache.tokens_per_page)
    return int(min(place, width - 1))
