"""Treatments: named, reversible changes to a live engine, each a candidate cause or fix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from analysis.core.errors import EngineError, shown
from analysis.core.spans import spanning
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
        scheduling.serialise_invocations,
        scheduling.separate_fibers,
        scheduling.one_at_a_time,
        scheduling.short_strobes,
        records.PinOnLookup,
        scheduling.requeue_unscheduled,
        scheduling.ignore_unreserved,
        scheduling.survive_allocation_failure,
        pages.PoisonFreedPages,
        pages.Quarantine,
        arguments.undo_correct_seq_lens,
    )
}
"""Candidate causes and fixes by name; faults are in `analysis.treatments.faults`."""

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
    """The treatments applied to an engine, in order."""

    treatments: tuple[Treatment, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names as given."""
        return tuple(treatment.label for treatment in self.treatments)

    def __getitem__(self, name: str) -> Any:
        """Return the treatment of this name."""
        for treatment in self.treatments:
            if treatment.name == name:
                return treatment
        raise KeyError(name)


@spanning
def treat(engine: LiveEngine, *names: str) -> Iterator[Treated]:
    """Apply treatments to a running engine during the block, and revert them at its end.

    Treatments of the same part act in the given order. The engine may be observed before or
    afterwards; end the blocks in reverse order. A name may have a parameter after a colon, such as
    `poison-freed-pages:nan`. Raises EngineError, and changes nothing, if a name is unknown, given
    twice or does not apply to this engine; also if blocks end out of order (see
    `analysis.shortfin.hooks.Changes`).
    """
    treatments = check_names(names)
    if engine.service is None:
        raise EngineError("The engine is not running, so it cannot be treated.")
    for treatment in treatments:
        treatment.check(engine.release, engine.config.prefix_sharing)
    with engine.changes.block(f"treat({', '.join(names)})") as undo:
        # The last applied is outermost and acts first, so apply in reverse order.
        for treatment in reversed(treatments):
            treatment.apply(engine, undo)
        yield Treated(treatments)


def check_names(names: Iterable[str]) -> tuple[Treatment, ...]:
    """Return treatments by name; raise EngineError for unknown or repeated names."""
    found: list[Treatment] = []
    known = {**TREATMENTS, **FAULTS}
    for name in names:
        if not isinstance(name, str):
            raise EngineError(f"The name of a treatment is a text, not {shown(name)}.")
        prefix = "fault:" if name.startswith("fault:") else ""
        stem, colon, parameter = name.removeprefix(prefix).partition(":")
        kind = known.get(prefix + stem)
        if kind is None:
            offered = FAULTS if prefix else TREATMENTS
            raise EngineError(f"Unknown treatment {name!r}. Known are {', '.join(offered)}.")
        if any(type(treatment) is kind for treatment in found):
            raise EngineError(f"The treatment {prefix + stem} is given twice. Give it once.")
        found.append(kind(parameter if colon else None))
    return tuple(found)


def applies(names: Iterable[str], release: str) -> bool:
    """Return whether all these treatments apply to a release; EngineError for unknown names."""
    return all(release in treatment.releases() for treatment in check_names(names))


def fixes(release: str, prefix_sharing: str) -> tuple[str, ...]:
    """Return the treatments that fix defects of a release, in the order of application."""
    known = next((row.fixes for row in RELEASES if row.version == release), ())
    return tuple(name for name in known if TREATMENTS[name].fits(release, prefix_sharing))


ALL, ALL_BUT = "all", "all-but:"
"""Names for all fixes of a release, and for all fixes except one."""


def expand(names: Iterable[str], release: str, prefix_sharing: str) -> tuple[str, ...]:
    """Return a set of names with `all` and `all-but:NAME` replaced by the names of fixes.

    Raises EngineError if NAME is not a fix for the release, or if a name is given twice.
    """
    names, found = tuple(names), []
    if len(set(names)) != len(names):
        raise EngineError(f"A name is given twice in {'+'.join(names)}. Give each name once.")
    everything = fixes(release, prefix_sharing)
    for name in names:
        if name.startswith(ALL_BUT):
            left_out = name.removeprefix(ALL_BUT)
            if left_out not in everything:
                raise EngineError(
                    f"{left_out!r} is not a fix for shortfin {release} with prefix sharing"
                    f" {prefix_sharing}. Its fixes are {', '.join(everything)}."
                )
            found += [fix for fix in everything if fix != left_out]
        else:
            found += everything if name == ALL else (name,)
    return tuple(dict.fromkeys(found))


def page_count(names: Iterable[str], pages: int) -> int:
    """Return the pages to start an engine with; `pages` is the number without treatments."""
    return max([pages, *(t.page_count or 0 for t in check_names(names))])
