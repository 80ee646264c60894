"""Faults beyond a table's length, in the trie's pointers and in the cache's lists are found."""

from __future__ import annotations

from typing import Any

import pytest
from planted import names_injection, reported
from support import RELEASES

from analysis.treatments.faults import family

_INJECT = """
sharing, *names = arguments
# Without the release's own faults, so that each finding is of the planted one.
base = fixes(release, sharing)

def inject(name):
    fault = FAULTS.get(name)
    workload = make_workload("mixed", count=8, seed=3)
    with Engine(EngineConfig(prefix_sharing=sharing, page_count=96)) as engine:
        # With a snapshot before and after every request.
        with observe(engine, memory_every_s=0) as recording:
            names = [*base, *([name] if fault else [])]
            with sanitize(engine) as findings, treat(engine, *names) as treated:
                engine.run(workload, concurrency=4, timeout_s=60.0)
        recorder = recording.recorder
    return {
        "injected": injection_of(fault and treated[name]),
        "findings": findings.rows(),
        "notes": findings.notes,
        "events": [[e[0], e[5], e[6]] for e in recorder.events],
        "snapshots": [s.seq for s in recorder.snapshots if s.consistent],
    }

for name in ["nothing", *names]:
    # Whether a fault has an occasion depends on how requests meet in batches.
    for _ in range(3):
        case = inject(name)
        if name == "nothing" or case["injected"] is not None:
            break
    report(name, case)
"""

AT_INVOCATION = ("block-table-padding", "unprotected-page")
"""Rules that a fault is found under at the very invocation that it was injected."""
SEEN_BY = {
    # No event reports these changes: the next operation on them does.
    "fault:reference-taken-quietly": "unprotected",
    "fault:allocation-has-free-page": "pages_held",
    "fault:free-page-aside": "free",
    "fault:entry-lost": "unlisted",
}
"""Kind of event that a fault shows in, if no snapshot comes before it; else `detached`."""
ALSO = {"fault:entry-twice": ("allocation-list-mismatch", "listed-and-cached")}
"""What else a fault may be found as: published meanwhile, one of two entries is left."""
PLANTED = [fault for fault in family("shape") if fault.name != "fault:lock-kept"]
SHARINGS = ("none", "trie")

CASES = [
    pytest.param(release, sharing, fault, id=f"{release}-{sharing}-{fault.name[6:]}")
    for release in RELEASES
    for sharing in SHARINGS
    for fault in PLANTED
    if fault.fits(release, sharing)
]


def case_of(release: str, sharing: str, name: str) -> dict[str, Any]:
    """Return what was reported of a fault; each has an engine of its own, all in one process."""
    names = [fault.name for fault in PLANTED if fault.fits(release, sharing)]
    return reported(name, _INJECT, release, sharing, *names)


@pytest.mark.parametrize(("release", "sharing", "fault"), CASES)
def test_a_fault_of_shape_is_found_where_it_was_injected(
    release: str, sharing: str, fault: Any
) -> None:
    case = case_of(release, sharing, fault.name)
    injected = case["injected"]
    assert injected is not None, "It was never injected."
    assert not case["notes"]
    found = [
        row
        for row in case["findings"]
        if (row["rule"], row["cause"]) == (fault.rule, fault.cause)
        and names_injection(row, injected)
    ] or [
        # What is published is no request's any more.
        row
        for row in case["findings"]
        if (row["rule"], row["cause"]) == ALSO.get(fault.name) and row["page"] == injected["page"]
    ]
    assert found, [(r["rule"], r["cause"], r["request_id"], r["page"]) for r in case["findings"]]
    first = found[0]
    assert first["message"].endswith(".")
    if fault.name == "fault:allocation-loses-page":
        # What it has instead is seen when the next decode reads it.
        assert first["invocation_id"] > injected["invocation_id"]
    elif fault.rule in AT_INVOCATION and fault.name not in SEEN_BY:
        assert first["invocation_id"] == injected["invocation_id"]
    else:
        assert first["seq"] == _next_look(case, fault, injected)


@pytest.mark.parametrize(("release", "sharing", "fault"), CASES)
def test_nothing_is_reported_before_it(release: str, sharing: str, fault: Any) -> None:
    case = case_of(release, sharing, fault.name)
    assert case["injected"] is not None
    early = [row for row in case["findings"] if row["seq"] < case["injected"]["seq"]]
    assert not [row for row in early if row["severity"] == "wrong data"]
    assert (fault.rule, fault.cause) not in {(row["rule"], row["cause"]) for row in early}


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("release", RELEASES)
def test_without_a_fault_nothing_is_reported(release: str, sharing: str) -> None:
    case = case_of(release, sharing, "nothing")
    assert not [row for row in case["findings"] if row["severity"] == "wrong data"]
    known = {(row["rule"], row["cause"]) for row in case["findings"]}
    meant = {(fault.rule, fault.cause) for fault in PLANTED if fault.fits(release, sharing)}
    assert not known & meant


def _next_look(case: dict[str, Any], fault: Any, injected: dict[str, Any]) -> int:
    """Return the first place after a inject at which somebody came upon what it did."""
    kind = SEEN_BY.get(fault.name, "detached")
    seen = [
        seq
        for seq, event, pages in case["events"]
        if seq > injected["seq"] and event == kind and injected["page"] in pages
    ]
    if fault.rule not in ("double-free", "free-while-referenced"):
        seen += [seq for seq in case["snapshots"] if seq > injected["seq"]]
    return min(seen)
