"""Treatments: named, reversible changes to a live engine, each a candidate cause or fix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from analysis.core.errors import EngineError, shown
from analysis.shortfin.cache.allocations import treatments as allocations
from analysis.shortfin.cache.records import treatments as records
from analysis.shortfin.releases import RELEASES
from analysis.shortfin.treatment import LiveEngine, Treatment
from analysis.treatments import arguments, pages, pool, scheduling
from analysis.treatments.faults import FAULTS, Fault

TREATMENTS: dict[str, type[Treatment]] = {
    kind.name: kind
    for kind in (
        arguments.correct_seq_lens,
        arguments.zero_start_positions,
        pages.zero_page_tables,
        pages.zero_on_acquire,
        allocations.copy_tokens,
        records.keep_decode_record,
        records.delist_freed_pages,
        records.register_once,
        records.refer_to_published,
        allocations.reuse_existing_node,
        allocations.true_leaves,
        allocations.give_back_reference,
        pool.FreeUnpublishedPages,
        pool.reserve_padding_page,
        pool.BigPool,
        scheduling.lock_cache,
        scheduling.one_worker,
        scheduling.one_at_a_time,
        scheduling.short_strobes,
        records.PinOnLookup,
        scheduling.requeue_unscheduled,
        scheduling.survive_allocation_failure,
        pages.PoisonFreedPages,
        pages.Quarantine,
        arguments.undo_correct_seq_lens,
    )
}
"""By name, candidate causes and fixes; faults are in `analysis.treatments.faults`."""

__all__ = [
    "FAULTS",
    "TREATMENTS",
    "Fault",
    "Treated",
    "Treatment",
    "applies",
    "check_names",
    "expand",
    "fixes",
    "page_count",
    "treat",
]


@dataclass(frozen=True)
class Treated:
    """What was applied to an engine, in order."""

    treatments: tuple[Treatment, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names as they were given."""
        return tuple(treatment.label for treatment in self.treatments)

    def __getitem__(self, name: str) -> Any:
        """Return the treatment of this name."""
        for treatment in self.treatments:
            if treatment.name == name:
                return treatment
        raise KeyError(name)


@contextmanager
def treat(engine: LiveEngine, *names: str) -> Iterator[Treated]:
    """Change a running engine as long as the block lasts, and put everything back at its end.

    Where several change the same thing, they do so in the order in which they are named.
    It may be observed already or be observed afterwards; end the blocks in reverse order. A name
    may have a parameter after a colon, such as `poison-freed-pages:nan`. Raises EngineError for a
    name that is not known, that is given twice, or that does not apply to this engine; then nothing
    is changed. So it does at an end out of order (see `analysis.shortfin.hooks.Changes`).
    """
    treatments = check_names(names)
    if engine.service is None:
        raise EngineError("The engine is not running, so it cannot be treated.")
    for treatment in treatments:
        treatment.check(engine.release, engine.config.prefix_sharing)
    with engine.changes.block(f"treat({', '.join(names)})") as undo:
        # What is applied last stands outermost and acts first: so the first named acts first.
        for treatment in reversed(treatments):
            treatment.apply(engine, undo)
        yield Treated(treatments)


def check_names(names: Iterable[str]) -> tuple[Treatment, ...]:
    """Return the treatments that are meant; EngineError for a name not known, or given twice."""
    found: list[Treatment] = []
    known = {**TREATMENTS, **FAULTS}
    for name in names:
        if not isinstance(name, str):
            raise EngineError(f"A treatment is given by its name, not as {shown(name)}.")
        prefix = "fault:" if name.startswith("fault:") else ""
        stem, colon, parameter = name.removeprefix(prefix).partition(":")
        kind = known.get(prefix + stem)
        if kind is None:
            offered = FAULTS if prefix else TREATMENTS
            raise EngineError(f"There is no treatment {name!r}: there are {', '.join(offered)}.")
        if any(type(treatment) is kind for treatment in found):
            raise EngineError(f"The treatment {prefix + stem} is named twice: once is enough.")
        found.append(kind(parameter if colon else None))
    return tuple(found)


def applies(names: Iterable[str], release: str) -> bool:
    """Return whether all these treatments apply to a release; EngineError for an unknown name."""
    return all(release in treatment.releases() for treatment in check_names(names))


def fixes(release: str, prefix_sharing: str) -> tuple[str, ...]:
    """Return the treatments that fix a defect of a release, in the order of application."""
    known = next((row.fixes for row in RELEASES if row.version == release), ())
    return tuple(name for name in known if TREATMENTS[name].fits(release, prefix_sharing))


ALL, ALL_BUT = "all", "all-but:"
"""Names that stand for every fix of a release, and for every fix without one."""


def expand(names: Iterable[str], release: str, prefix_sharing: str) -> tuple[str, ...]:
    """Return a set of names with `all` and `all-but:NAME` replaced by what they stand for.

    Raises EngineError if NAME is not among the fixes of the release, or a name is given twice.
    """
    names, found = tuple(names), []
    if len(set(names)) != len(names):
        raise EngineError(f"A set of treatments names one twice: {'+'.join(names)}.")
    everything = fixes(release, prefix_sharing)
    for name in names:
        if name.startswith(ALL_BUT):
            left_out = name.removeprefix(ALL_BUT)
            if left_out not in everything:
                raise EngineError(
                    f"{left_out!r} is no fix of shortfin {release} with prefix sharing"
                    f" {prefix_sharing}: those are {', '.join(everything)}."
                )
            found += [fix for fix in everything if fix != left_out]
        else:
            found += everything if name == ALL else (name,)
    return tuple(dict.fromkeys(found))


def page_count(names: Iterable[str], pages: int) -> int:
    """Return how many pages an engine must be started with, if `pages` are wanted otherwise."""
    return max([pages, *(t.page_count or 0 for t in check_names(names))])
