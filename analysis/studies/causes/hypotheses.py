"""The report's hypotheses, each with the treatment that would end the failure if it were true."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from analysis.core.errors import EngineError
from analysis.treatments import TREATMENTS, Treatment, expand, fixes

Names = tuple[str, ...]

SUSPECTS = {
    "arguments": "What the model is told",
    "races": "Races in the cache",
    "bookkeeping": "Bookkeeping of nodes and references",
    "contention": "Contention for pages",
    "timing": "Timing, exhaustion and memory reuse",
}
"""The report's suspects, and what it did not suspect.

A race is what a lock or a single worker ends. What the cache notes wrongly in whatever order its
operations come is no race, even where several requests at once are its occasion.
"""


@dataclass(frozen=True)
class Hypothesis:
    """A suspected cause: what the report suspects, and the treatment that tries it."""

    suspect: str
    """A key of SUSPECTS."""
    treatment: str
    beside: Names = ()
    """Treatments that stand beside it with and without it, so that it can be tried in time."""
    through: Names = ()
    """Exposures (`analysis.runs.derive.EXPOSURES`) that are how it makes requests fail, as a
    leak does by using up pages. That these change when it is mended is no objection."""

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
        """The upstream change that corresponds to it."""
        return self._kind.upstream

    @property
    def _kind(self) -> type[Treatment]:
        return TREATMENTS[self.treatment]

    def with_it(self) -> Names:
        """Return the treatments of the trials that have it alone."""
        return (*self.beside, self.treatment)


_LEAK: Names = ("pages", "evictions", "hits")
"""A cause that loses or wastes pages makes requests fail by their want."""
_SHORT: Names = ("pages", "evictions")
"""A cause that stops an engine when pages run short changes how many are in use from then on."""

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
    # Without the other, what it spoils is cached under tokens that nobody asks for.
    Hypothesis("contention", "delist-freed-pages", ("keep-decode-record",)),
    Hypothesis("contention", "requeue-unscheduled", through=_SHORT),
    Hypothesis("contention", "survive-allocation-failure", through=_SHORT),
    Hypothesis("timing", "one-at-a-time", ("short-strobes",)),
    Hypothesis("timing", "short-strobes"),
    Hypothesis("timing", "big-pool"),
    Hypothesis("timing", "reserve-padding-page"),
    Hypothesis("timing", "zero-page-tables"),
    Hypothesis("timing", "zero-on-acquire"),
    Hypothesis("timing", "quarantine"),
)
"""All that can be tried; `applicable` says which of them a release and a way of sharing allow."""


def applicable(
    release: str, prefix_sharing: str, among: Iterable[str] | None = None
) -> list[Hypothesis]:
    """Return the hypotheses that can be tried, in order; `among` names treatments, None for all.

    Raises EngineError for a treatment that no hypothesis has.
    """
    wanted = None if among is None else list(among)
    known = {h.treatment for h in HYPOTHESES}
    if wanted is not None and (strange := [name for name in wanted if name not in known]):
        raise EngineError(
            f"No hypothesis is tried with {strange[0]!r}: those are {', '.join(sorted(known))}."
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
    """Return the sets of treatments that try them: none, each alone, all fixes, all but each.

    As `Plan(treatments=...)` takes them. What a hypothesis has beside it is a set by itself, too.
    """
    mending = fixes(release, prefix_sharing)
    sets: list[Names] = [()]
    for hypothesis in hypotheses:
        sets += [hypothesis.beside, hypothesis.with_it()]
    sets.append(mending)
    sets += [
        expand((f"all-but:{h.treatment}",), release, prefix_sharing)
        for h in hypotheses
        if h.treatment in mending
    ]
    return tuple(dict.fromkeys(sets))
