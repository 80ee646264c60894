"""The arms of a comparison of costs: no treatment, each fix, a lock, all fixes at once."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.treatments import TREATMENTS, fixes

UNTREATED = "untreated"
ALL = "all fixes"
LOCK = "lock-cache"


def arms(release: str, prefix_sharing: str, *, each: bool = True) -> tuple[tuple[str, ...], ...]:
    """Return the sets of treatments to compare, untreated first, all fixes last.

    `each` has every fix of the release stand in an arm of its own. A lock around the cache is
    always among them, whether it mends anything or not.
    """
    all_of_them = fixes(release, prefix_sharing)
    single = [name for name in all_of_them if name != LOCK] if each else []
    sets = [(), (LOCK,), *((name,) for name in single), all_of_them]
    return tuple(dict.fromkeys(sets))


def arm_name(treatments: Sequence[str] | None, release: str, prefix_sharing: str) -> str:
    """Return how a set of treatments is called in a comparison of costs."""
    names = tuple(treatments or ())
    if not names:
        return UNTREATED
    if len(names) > 1 and set(names) == set(fixes(release, prefix_sharing)):
        return ALL
    return " + ".join(names)


def rank(arm: str) -> tuple[int, str]:
    """Return what arms are sorted by: untreated, the lock, single fixes in order, all fixes."""
    ends = {UNTREATED: -2, LOCK: -1, ALL: len(TREATMENTS) + 1}
    names = list(TREATMENTS)
    return ends.get(arm, names.index(arm) if arm in names else len(names)), arm
