"""Faults: defects injected on purpose, to verify that the sanitizer reports them.

A fault is a function with the decorator `fault`, which gives the expected rule and cause. Its
docstring is the description. `kind` determines where and with what it is called.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

from analysis.recording.recorder import Recorder
from analysis.shortfin.releases import row_of
from analysis.shortfin.treatment import LiveEngine, Place, Treatment
from analysis.treatments.invocations import Ints, PendingInvocation, edit_invocations

_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Injection:
    """The change that a fault made."""

    request_id: str | None = None
    """The request whose data or state is damaged."""
    other_request_id: str | None = None
    page: int | None = None
    invocation_id: int | None = None
    """The invocation in which it was injected, as numbered in a recording; None outside of one."""
    seq: int | None = None
    """Sequence number among the recorded events, just before the injection."""


class Fault(Treatment):
    """A defect that is injected once."""

    hypothesis = "None: it checks that the sanitizer detects such a defect."
    takes = "a prefix of the ids of the requests that it may damage"
    acts_on: ClassVar[Place] = "server"
    family: ClassVar[str]
    """The module of the fault; controls alternate between families."""
    rule: ClassVar[str]
    """The expected rule."""
    cause: ClassVar[str]
    """The expected cause."""
    instead: ClassVar[Mapping[str, tuple[str, str]]] = {}
    """Expected rule and cause on releases with a capability, if they differ there."""
    control: ClassVar[bool] = True
    """Whether a sanitized sweep can detect it, so that controls may use it."""
    function: ClassVar[Callable[..., Any]]
    """The decorated function."""

    def __init__(self, parameter: str | None = None) -> None:
        super().__init__(parameter)
        self.injected: Injection | None = None
        self.memory: dict[Any, Any] = {}
        """State of the function between calls."""

    @classmethod
    def alarm(cls, release: str) -> tuple[str, str]:
        """Return the expected rule and cause on a release."""
        capabilities = row_of(release).capabilities
        others = [alarm for name, alarm in cls.instead.items() if name in capabilities]
        return others[0] if others else (cls.rule, cls.cause)

    def targets(self, request_id: str) -> bool:
        """Return whether it may still be injected into a request."""
        return self.injected is None and request_id.startswith(self.parameter or "")

    def apply(self, engine: LiveEngine, undo: ExitStack) -> None:
        """Call the function with this fault, the engine and the stack."""
        type(self).function(self, engine, undo)


class InvocationFault(Fault):
    """A fault in one invocation, before the model is called: `function(site)`.

    The function changes the invocation or the cache and returns an Injection, or None if the site
    is not suitable.
    """

    phase: ClassVar[str] = "decode"
    after: ClassVar[int] = 3
    """Number of invocations of the phase to skip first, so that there is state to damage."""
    secret: ClassVar[bool] = False
    """Whether the arguments are changed only while the device reads them."""

    def apply(self, engine: LiveEngine, undo: ExitStack) -> None:
        """Try every row of every invocation until the fault is injected."""
        passed = 0
        probe = engine.probe or engine.service.probe()

        def edit(invocation: PendingInvocation) -> None:
            nonlocal passed
            if invocation.phase != self.phase or self.injected is not None:
                return
            passed += 1
            if passed <= self.after:
                return
            for row, request_id in enumerate(invocation.request_ids):
                if not self.targets(request_id):
                    continue
                place = place_of(probe)
                injection = self.inject(Site(invocation, row, probe, engine.service, self.memory))
                if injection is not None:
                    self.injected = replace(injection, seq=place)
                    invocation.secretly = invocation.put_back = self.secret
                    self._note_number(invocation, probe)
                    return

        edit_invocations(engine, undo, edit)

    def inject(self, site: Site) -> Injection | None:
        """Damage a row; return None if the site is not suitable."""
        injection: Injection | None = type(self).function(site)
        return injection

    def _note_number(self, invocation: PendingInvocation, probe: Any) -> None:
        """Record the number of the invocation when it begins."""
        then, observer = invocation.afterwards, probe.observer

        def begun() -> None:
            if then is not None:
                then()
            if isinstance(observer, Recorder) and self.injected is not None:
                number = observer.last_invocation_of(invocation.request_ids)
                self.injected = replace(self.injected, invocation_id=number)

        invocation.afterwards = begun


@dataclass
class Site:
    """One row of an invocation that is about to be called."""

    invocation: PendingInvocation
    row: int
    probe: Any
    service: Any
    memory: dict[Any, Any]

    @property
    def request(self) -> str:
        """The request of the row."""
        return self.invocation.request_ids[self.row]

    @property
    def other(self) -> int | None:
        """Another row with a request; None if there is none."""
        return next((row for row in range(self.invocation.real) if row != self.row), None)

    @property
    def arrays(self) -> dict[str, Ints]:
        """The arguments of the model."""
        return self.invocation.arrays

    @property
    def tables(self) -> Ints:
        """The block tables of all rows."""
        return self.arrays["block_tables"]

    @property
    def table(self) -> Ints:
        """The block table of the row."""
        row: Ints = self.tables[self.row]
        return row

    @property
    def start(self) -> int:
        """The start position of a decode row: the slot it writes."""
        return int(self.arrays["start_positions"][self.row])

    @property
    def stride(self) -> int:
        """Tokens of a page."""
        return int(self.probe.cache.tokens_per_page)

    @property
    def own_block(self) -> int:
        """Index in the block table of the page that a decode row writes to."""
        return min(self.start // self.stride, len(self.table) - 1)

    @property
    def free(self) -> Any:
        """The pool's own free list."""
        return self.probe.pool.available_pages

    @property
    def held(self) -> list[int]:
        """The pages of the request, uncached ones first."""
        nodes = {node.page for node in self.probe.read().nodes}
        pages = self.probe.holdings().get(self.request, [])
        return sorted(pages, key=lambda page: page in nodes)

    def entry(self, page: int) -> Any:
        """Return the pool's own object for a page."""
        return self.probe.pool.attn_page_entries[page]

    def injection(self, page: int | None = None, other: int | None = None) -> Injection:
        """Return an injection into the row's request; `other` is a row."""
        name = None if other is None else self.invocation.request_ids[other]
        return Injection(self.request, name, None if page is None else int(page))


FAULTS: dict[str, type[Fault]] = {}
"""Faults by name; names begin with `fault:`."""


def fault(
    name: str,
    rule: str,
    cause: str,
    *,
    kind: type[Fault] = InvocationFault,
    needs: Iterable[str] = (),
    **settings: Any,
) -> Callable[[_Function], _Function]:
    """Register a function as a fault; `settings` are class attributes of `kind`."""

    def register(function: _Function) -> _Function:
        text = inspect.cleandoc(function.__doc__ or "")
        values = {
            "__doc__": text, "__module__": function.__module__, "name": f"fault:{name}",
            "change": text, "family": function.__module__.rpartition(".")[2], "rule": rule,
            "cause": cause, "needs": frozenset(needs), "function": staticmethod(function),
        }  # fmt: skip
        FAULTS[f"fault:{name}"] = type(function.__name__, (kind,), values | settings)
        return function

    return register


def place_of(probe: Any) -> int | None:
    """Return the current `seq` of the recording; None without a recording."""
    observer = None if probe is None else probe.observer
    if not isinstance(observer, Recorder):
        return None
    place = observer.reserve()
    observer.unused(place)
    return place[0]
