"""A schedule carried out again, with every page's owner after each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.interleavings.examine import Laboratory
from analysis.interleavings.picture import Picture
from analysis.interleavings.scenarios import SCENARIOS, Schedule, Step, chosen
from analysis.interleavings.spec import Broken

FREE, CACHED, ASIDE, LOST, KEPT = "free", "cached", "set aside", "lost", "kept"


@dataclass(frozen=True)
class Moment:
    """What a step came to."""

    step: Step
    owners: tuple[tuple[str, ...], ...]
    """For every page, whose it is: requests by name, and `free`, `cached` and so on."""
    broken: tuple[Broken, ...]
    """Rules that do not hold after it."""


@dataclass(frozen=True)
class Replay:
    """A schedule, step by step."""

    release: str
    prefix_sharing: str
    scenario: str
    treatments: tuple[str, ...]
    first: tuple[tuple[str, ...], ...]
    """Owners of the pages before the first step."""
    moments: tuple[Moment, ...]

    @property
    def schedule(self) -> Schedule:
        """The schedule that was carried out."""
        return Schedule(tuple(moment.step for moment in self.moments))

    @property
    def failing(self) -> int | None:
        """The first step after which a rule is broken; None if none is."""
        return next((n for n, moment in enumerate(self.moments) if moment.broken), None)

    def __str__(self) -> str:
        """Tell a step a line, what changed hands, and what was broken by it."""
        lines, before, told = [], self.first, set[str]()
        for moment in self.moments:
            changed = [
                f"page {page}: {' and '.join(new)}"
                for page, (old, new) in enumerate(zip(before, moment.owners, strict=True))
                if old != new
            ]
            lines.append(f"{moment.step!s:<12} {'; '.join(changed)}".rstrip())
            for broken in moment.broken:
                if broken.rule not in told:
                    told.add(broken.rule)
                    lines.append(f"    {broken.rule}: {broken.message}")
            before = moment.owners
        return "\n".join(lines)


def replay(
    scenario: str,
    schedule: Schedule | str,
    prefix_sharing: str = "trie",
    treatments: Sequence[str] = (),
) -> Replay:
    """Carry out a schedule of a scenario on the installed release's cache.

    Raises IsolationError if there is no such scenario, or a step is not what its request does then.
    """
    chosen([scenario], prefix_sharing, ())
    schedule = Schedule.parse(schedule) if isinstance(schedule, str) else schedule
    with Laboratory(prefix_sharing, treatments) as lab:
        stage = lab.open(SCENARIOS[scenario])
        try:
            first = owners(stage.picture)
            moments = []
            for step in schedule.steps:
                (broken,) = stage.run(Schedule((step,)))
                moments.append(Moment(step, owners(stage.picture), broken))
        finally:
            stage.close()
        return Replay(lab.release, prefix_sharing, scenario, lab.treatments, first, tuple(moments))


def owners(picture: Picture) -> tuple[tuple[str, ...], ...]:
    """Return whose each page is."""
    places: dict[int, list[str]] = {page: [] for page in range(picture.page_count)}
    kinds = {FREE: picture.free, CACHED: list(picture.cached), ASIDE: picture.aside,
             KEPT: [*picture.kept, *picture.elsewhere]}  # fmt: skip
    for name, listed in kinds.items():
        for page in dict.fromkeys(listed):
            places[page].append(name)
    for request, pages in picture.holds.items():
        for page in {*pages, *picture.uses.get(request, ())}:
            places[page].append(request)
    return tuple(tuple(place) or (LOST,) for place in places.values())
