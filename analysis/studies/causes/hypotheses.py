"""Hypotheses about failures, each with the treatment that removes them if it is true."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from analysis.core.errors import EngineError
from analysis.treatments import TREATMENTS, Treatment, expand, fixes

Names = tuple[str, ...]

SUSPECTS = {
    "arguments": "Arguments of the model",
    "races": "Races in the cache",
    "bookkeeping": "Bookkeeping of nodes and references",
    "contention": "Contention for pages",
    "timing": "Timing, exhaustion and memory reuse",
}
"""The suspects of the report, and "arguments", which it did not suspect.

A race is what a lock or a single worker ends. Wrong bookkeeping that occurs in any order of the
cache's operations is no race, even if only concurrent requests trigger it.
"""


@dataclass(frozen=True)
class Hypothesis:
    """A suspected cause and the treatment that tests it."""

    suspect: str
    """A key of SUSPECTS."""
    treatment: str
    beside: Names = ()
    """Treatments that both arms have, so that the hypothesis can be tested."""
    through: Names = ()
    """Exposures (`analysis.runs.derive.EXPOSURES`) by which it makes requests fail, as a leak does
    by using up pages. A change of these is no objection to its verdict."""

    @property
    def statement(self) -> str:
        """The hypothesis in a sentence."""
        return self._kind.hypothesis

    @property
    def change(self) -> str:
        """What the treatment changes, in a sentence."""
        return self._kind.change

    @property
    def upstream(self) -> str | None:
        """The corresponding upstream change."""
        return self._kind.upstream

    @property
    def _kind(self) -> type[Treatment]:
        return TREATMENTS[self.treatment]

    def with_it(self) -> Names:
        """Return the treatments of its single arm."""
        return (*self.beside, self.treatment)


_LEAK: Names = ("pages", "evictions", "hits")
"""A cause that leaks or wastes pages makes requests fail when pages run out."""
_SHORT: Names = ("pages", "evictions")
"""A cause that stops an engine when pages run short changes how many are in use afterwards."""

HYPOTHESES = (
    Hypothesis("arguments", "correct-seq-lens"),
    Hypothesis("arguments", "zero-start-positions"),
    Hypothesis("races", "lock-cache"),
    Hypothesis("races", "one-worker"),
    Hypothesis("bookkeeping", "pin-on-lookup"),
    Hypothesis("bookkeeping", "reuse-existing-node", through=_LEAK),
    Hypothesis("bookkeeping", "give-back-reference", through=_LEAK),
    Hypothesis("bookkeeping", "register-once", through=_LEAK),
    Hypothesis("bookkeeping", "refer-to-published"),
    Hypothesis("contention", "copy-tokens", through=("hits",)),
    Hypothesis("contention", "true-leaves"),
    Hypothesis("contention", "free-unpublished-pages", through=_LEAK),
    Hypothesis("contention", "keep-decode-record", through=_LEAK),
    # Without the other, the pages that it corrupts are cached under tokens that no request has.
    Hypothesis("contention", "delist-freed-pages", ("keep-decode-record",)),
    Hypothesis("contention", "requeue-unscheduled", through=_SHORT),
    Hypothesis("contention", "survive-allocation-failure", through=_SHORT),
    Hypothesis("timing", "one-at-a-time", ("short-strobes",)),
    Hypothesis("timing", "short-strobes"),
    Hypothesis("timing", "serialise-invocations"),
    Hypothesis("timing", "separate-fibers"),
    Hypothesis("timing", "big-pool"),
    Hypothesis("timing", "reserve-padding-page"),
    Hypothesis("timing", "zero-page-tables"),
    Hypothesis("timing", "zero-on-acquire"),
    Hypothesis("timing", "quarantine"),
)
"""All hypotheses; `applicable` selects those of a release and prefix sharing."""


def applicable(
    release: str, prefix_sharing: str, among: Iterable[str] | None = None
) -> list[Hypothesis]:
    """Return the hypotheses that can be tested, in order; `among` names treatments, None for all.

    Raises EngineError for a treatment that no hypothesis has.
    """
    wanted = None if among is None else list(among)
    known = {h.treatment for h in HYPOTHESES}
    if wanted is not None and (strange := [name for name in wanted if name not in known]):
        raise EngineError(
            f"No hypothesis is tested by {strange[0]!r}: choose among {', '.join(sorted(known))}."
        )
    found = []
    for hypothesis in HYPOTHESES:
        if wanted is not None and hypothesis.treatment not in wanted:
            continue
        beside = tuple(
            name for name in hypothesis.beside if TREATMENTS[name].fits(release, prefix_sharing)
        )
        if TREATMENTS[hypothesis.treatment].fits(release, prefix_sharing):
            found.append(replace(hypothesis, beside=beside))
    return found


def arms(hypotheses: Sequence[Hypothesis], release: str, prefix_sharing: str) -> tuple[Names, ...]:
    """Return the sets of treatments that test them: none, each alone, all fixes, all but each.

    For `Plan(treatments=...)`. The treatments `beside` a hypothesis are a set as well.
    """
    every = fixes(release, prefix_sharing)
    sets: list[Names] = [()]
    for hypothesis in hypotheses:
        sets += [hypothesis.beside, hypothesis.with_it()]
    sets.append(every)
    sets += [
        expand((f"all-but:{h.treatment}",), release, prefix_sharing)
        for h in hypotheses
        if h.treatment in every
    ]
    return tuple(dict.fromkeys(sets))
