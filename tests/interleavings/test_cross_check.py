"""The sanitizer, watching the same cache by its own hooks, agrees with the sequential model."""

from __future__ import annotations

from support import ChildRunner, dialect, has

# A schedule of each release, and what the sanitizer must say of it.
AGREED = {
    "allocations": {
        "evicting what has children": (
            "W.acquire W.publish W.release B.acquire B.publish C.acquire",
            {"free-while-referenced: held", "shared-page-write: request-row"},
        ),
        "equal prompts": (
            "A.acquire B.acquire A.publish B.publish",
            {"orphaned-node: overwritten", "page-leak: dropped"},
        ),
        "answers that enter a page": (
            "A.acquire A.publish A.extend A.publish A.extend A.publish A.extend A.publish A.extend",
            {"block-table-mismatch: padding-page"},
        ),
    },
    "allocations, repaired": {
        "equal prompts": ("A.acquire B.acquire A.publish B.publish", {"page-leak: dropped"}),
    },
    "requests": {
        "equal prompts": ("A.allocate B.allocate", {"padding-page-allocated: allocated"}),
    },
    "records": {
        "lookup, evict, allocate": (
            "W.lookup W.allocate W.publish W.finish W.release B.lookup C.lookup C.allocate"
            " B.allocate",
            {"block-table-mismatch: duplicate-page", "shared-page-write: request-row"},
        ),
        "equal prompts, whole pages": (
            "A.lookup A.allocate A.publish A.extend A.finish A.release",
            {"page-leak: dropped"},
        ),
    },
}


def agreed_of(release: str) -> dict[str, tuple[str, set[str]]]:
    """Return the schedules of a release."""
    repaired = has(release, "allocations") and not has(release, "blind-publish")
    return AGREED[f"{dialect(release)}{', repaired' * repaired}"]


def test_it_finds_what_the_model_finds_and_nothing_with_the_fixes(
    child: ChildRunner, release: str
) -> None:
    done = child(
        release,
        """
import random
from analysis.interleavings import SCENARIOS, Schedule, Step, cross_check
from analysis.interleavings.examine import HarnessFactory
from analysis.treatments import fixes

def causes(findings):
    return sorted({f"{f.rule}: {f.cause}" for f in findings})

found = {name: causes(cross_check(name, text)) for name, text in AGREED.items()}
treatments, rng, fixed = fixes(RELEASE, "trie"), random.Random(0), {}
with HarnessFactory("trie") as factory:
    harnesses = {name: factory.open(s) for name, s in SCENARIOS.items()}
for name, scenario in SCENARIOS.items():
    if scenario.reserved:
        continue  # the sanitizer takes pages that no request holds for leaked
    steps = {n: [Step(n, s) for s in a.operations] for n, a in harnesses[name].drivers.items()}
    before = [step for r in scenario.before for step in steps[r.name]]
    for _ in range(2):
        workers = [list(steps[w.name]) for w in scenario.workers]
        order = [w for w, left in enumerate(workers) for _ in left]
        rng.shuffle(order)
        mixed = [workers[w].pop(0) for w in order]
        schedule = Schedule((*before, *mixed))
        if found_causes := causes(cross_check(name, schedule, "trie", treatments)):
            fixed[f"{name}: {schedule}"] = found_causes
say([found, fixed])
""".replace("AGREED", repr({n: text for n, (text, _) in agreed_of(release).items()})).replace(
            "RELEASE", repr(release)
        ),
        timeout_s=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found, fixed = done.reply
    for name, (_, expected) in agreed_of(release).items():
        assert expected <= set(found[name]), name
    assert fixed == {}
