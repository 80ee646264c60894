"""Steps executed twice, on other pages, never or after a stall are found; deadlines are not."""

from __future__ import annotations

from typing import Any

import pytest
from planted import reported
from support import RELEASES

from analysis.treatments.faults import family

ENDS_ENGINE = ("fault:never-finishes", "fault:dropped-by-batcher")
"""Faults that leave unfinished requests in the engine: each has an engine of its own."""

_INJECT = """
from analysis.treatments.faults import family

alone = arguments

def run(engine, name, timeout_s, max_new_tokens=15):
    workload = make_workload("mixed", count=8, seed=3, max_new_tokens=max_new_tokens)
    fault = [name] if name.startswith("fault:") else []
    # Corrected for as long as the engine works on requests that were given up.
    with (treat(engine, *base), sanitize(engine, checksums="landings") as findings,
          treat(engine, *fault) as treated):
        done = engine.run(workload, concurrency=4, timeout_s=timeout_s)
    report(name, {
        "injected": injection_of(fault and treated[name]),
        "outcomes": done["outcome"].value_counts().to_dict(),
        "findings": findings.rows(),
        "unchecked": findings.unchecked.requests,
        "notes": findings.notes,
        "summary": findings.summary,
    })

own = [f.name for f in family("execution") if release in f.releases()]
with Engine(EngineConfig(page_count=512)) as engine:
    for name in ["nothing", *[n for n in own if n not in alone]]:
        run(engine, name, 30.0)
    # No machine makes 100 tokens, each more than 1 ms, in this time.
    run(engine, "short deadlines", 0.05, max_new_tokens=100)
for name in alone:
    with Engine(EngineConfig(page_count=96)) as engine:
        run(engine, name, 4.0)
"""

CASES = [
    pytest.param(release, fault, id=f"{release}-{fault.name[6:]}")
    for release in RELEASES
    for fault in family("execution")
    if release in fault.releases()
]
AT_RISK = {("page-leak", "dropped"), ("not-quiescent", "missing-pages")}
"""What 3.9.0 breaks without a fault: every request's last page is given up and never freed."""


def case_of(release: str, name: str) -> dict[str, Any]:
    """Return what was reported of a fault, or of short deadlines."""
    return reported(name, _INJECT, release, *ENDS_ENGINE)


@pytest.mark.parametrize(("release", "fault"), CASES)
def test_a_fault_of_execution_is_found_where_it_was_injected(release: str, fault: Any) -> None:
    case = case_of(release, fault.name)
    injected = case["injected"]
    assert injected is not None, "It was never injected."
    # The writes of an invocation that did not finish are unknown.
    assert bool(case["notes"]) == (fault.name == "fault:never-finishes")
    rows = case["findings"]
    found = [row for row in rows if (row["rule"], row["cause"]) == (fault.rule, fault.cause)]
    assert injected["request_id"] in {row["request_id"] for row in found}, rows
    if found[0]["invocation_id"] is not None:
        assert (
            found[0]["invocation_id"] == injected["invocation_id"]
            or injected["invocation_id"] is None
        )
    wrong = [row["seq"] for row in rows if row["severity"] == "wrong data"]
    assert min(wrong, default=10**9) > (injected["seq"] or 0)
    # Whatever it did, checking goes on: only what never finished is unchecked, and is counted.
    if fault.name == "fault:never-finishes":
        assert injected["request_id"] in case["unchecked"]
        assert "unchecked: 1 invocation" in case["summary"]
    else:
        assert case["unchecked"] == {}, case["summary"]


@pytest.mark.parametrize("release", RELEASES)
def test_without_a_fault_every_invocation_is_checked_and_right(release: str) -> None:
    case = case_of(release, "nothing")
    assert {(row["rule"], row["cause"]) for row in case["findings"]} <= AT_RISK
    assert case["unchecked"] == {}
    assert not case["notes"]


@pytest.mark.parametrize("release", RELEASES)
def test_a_clients_short_deadline_is_no_finding_about_the_engine(release: str) -> None:
    case = case_of(release, "short deadlines")
    assert case["outcomes"].get("timeout", 0) > 0
    rules = {row["rule"] for row in case["findings"]}
    assert "stuck-request" not in rules, case["findings"]
    assert not [row for row in case["findings"] if row["severity"] == "wrong data"]
    assert case["unchecked"] == {}, case["summary"]
    assert not case["notes"]
