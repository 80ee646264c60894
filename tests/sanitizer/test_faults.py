"""Every fault that is injected into a live engine is found, at its place and for what it is."""

from __future__ import annotations

from typing import Any

import pytest
from planted import names_injection, reported
from support import RELEASES

from analysis.treatments.faults import family

FAULTS = {
    fault.name: fault for name in ("invocations", "cache", "requests") for fault in family(name)
}
"""Each of the other families is planted in a test of its own."""

_INJECT = """
from dataclasses import replace
sharing, *own = arguments

def inject(name):
    fault = FAULTS.get(name)
    # With the trie it takes that a later request comes upon what was injected.
    kind, count = ("mixed", 8) if sharing == "none" else ("shared_prefix", 12)
    workload = make_workload(kind, count=count, seed=3)
    if name == "fault:stale-prefix":  # of just these two prefixes: all are asked again
        again = [replace(r, id=f"{r.id}-again") for r in workload.requests]
        workload = replace(workload, requests=(*workload.requests, *again))
    rule = getattr(fault, "rule", None)
    names = [*base, *(["quarantine:4"] if rule == "write-after-free" else [])]
    contents = rule in ("nonfinite-kv", "partial-copy", "write-after-free")
    with Engine(EngineConfig(prefix_sharing=sharing, page_count=96)) as engine:
        with sanitize(engine, contents=contents) as findings:
            with treat(engine, *names, *([name] if fault else [])) as treated:
                engine.run(workload, 4, timeout_s=5.0 if rule == "stuck-request" else 60.0)
            recorder = engine.probe.observer
    return {
        "injected": injection_of(fault and treated[name]),
        "findings": findings.rows(),
        "notes": findings.notes,
        "events": [[e[0], e[5], e[6]] for e in recorder.events],
    }

for name in ["nothing", *own]:
    report(name, inject(name))
"""

FIRST = {
    "fault:handed-out-twice": "acquire",
    "fault:padding-page-given": "acquire",
    "fault:nan-in-padding-page": "nonfinite",
    "fault:written-after-free": "written_after_free",
    "fault:copied-short": "copy",
    "fault:free-while-used": "free",
    "fault:double-free": "free",
    "fault:missing-leaf": "leaf_removed",
    "fault:evict-referenced": "unlink",
}
"""Kind of the first event with the injection's page after it, at which it must be found."""

CASES = [
    pytest.param(release, fault.sharings()[0], name, id=f"{release}-{name[6:]}")
    for release in RELEASES
    for name, fault in FAULTS.items()
    if release in fault.releases()
]


def case_of(release: str, sharing: str, name: str) -> dict[str, Any]:
    """Return what was reported of a fault; all of a setting are planted in one process."""
    own = [n for n, f in FAULTS.items() if f.sharings()[0] == sharing]
    own = [n for n in own if release in FAULTS[n].releases()]
    return reported(name, _INJECT, release, sharing, *own)


@pytest.mark.parametrize(("release", "sharing", "name"), CASES)
def test_a_fault_is_found_where_it_was_injected(release: str, sharing: str, name: str) -> None:
    case, fault = case_of(release, sharing, name), FAULTS[name]
    injected = case["injected"]
    assert injected is not None, "It was never injected."
    assert not case["notes"]
    meant = fault.alarm(release)
    found = [row for row in case["findings"] if (row["rule"], row["cause"]) == meant]
    found = [row for row in found if names_injection(row, injected)]
    assert found, [(r["rule"], r["cause"], r["request_id"], r["page"]) for r in case["findings"]]
    first = found[0]
    assert first["message"].endswith(".")
    invocation = injected["invocation_id"]
    if first["invocation_id"] is not None:
        assert first["invocation_id"] == invocation
    if name in FIRST:
        assert first["seq"] == _first_event(case["events"], FIRST[name], injected)


@pytest.mark.parametrize(("release", "sharing", "name"), CASES)
def test_no_wrong_data_is_reported_before_a_fault(release: str, sharing: str, name: str) -> None:
    case = case_of(release, sharing, name)
    assert case["injected"] is not None
    wrong = [row["seq"] for row in case["findings"] if row["severity"] == "wrong data"]
    assert min(wrong, default=10**9) > (case["injected"]["seq"] or 0)


@pytest.mark.parametrize("sharing", ["none", "trie"])
@pytest.mark.parametrize("release", RELEASES)
def test_without_a_fault_no_wrong_data_is_reported(release: str, sharing: str) -> None:
    case = case_of(release, sharing, "nothing")
    assert not [row for row in case["findings"] if row["severity"] == "wrong data"]
    known = {(row["rule"], row["cause"]) for row in case["findings"]}
    meant = {
        (fault.rule, fault.cause)
        for fault in FAULTS.values()
        if release in fault.releases() and fault.sharings()[0] == sharing
    }
    assert not known & meant


def test_there_are_enough_faults_and_each_has_its_rule() -> None:
    assert len(FAULTS) >= 20
    assert len({fault.rule for fault in FAULTS.values()}) >= 15


def _first_event(events: list[Any], kind: str, injected: dict[str, Any]) -> int:
    """Return the first event of a kind after a inject that has its page, if it has any."""
    same = (
        seq
        for seq, event, pages in events
        if seq > injected["seq"] and event == kind and (pages is None or injected["page"] in pages)
    )
    return next(same)
