"""No miss: every planted fault is found in a live engine, where it struck and for what it is."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from typing import Any

import pytest
from support import RELEASES, ROOT

from analysis.releases import python_of
from analysis.treat.faults.cache import CACHE_FAULTS
from analysis.treat.faults.flights import FLIGHT_FAULTS
from analysis.treat.faults.requests import REQUEST_FAULTS

FAULTS = {fault.name: fault for fault in (*FLIGHT_FAULTS, *CACHE_FAULTS, *REQUEST_FAULTS)}
"""Each of the other families is planted in a test of its own."""

_STRIKE = """
import json, sys
from analysis.engine import Engine, EngineConfig
from analysis.sanitize import sanitize
from analysis.treat import treat
from analysis.treat.faults.cache import CACHE_FAULTS
from analysis.treat.faults.flights import FLIGHT_FAULTS
from analysis.treat.faults.requests import REQUEST_FAULTS
from analysis.workload import make_workload

FAULTS = {f.name: f for f in (*FLIGHT_FAULTS, *CACHE_FAULTS, *REQUEST_FAULTS)}
release, sharing, *own = sys.argv[1:]
base = []
if release == "3.1.0":
    base = ["correct-seq-lens", "zero-start-positions", "zero-page-tables"]
    # Batches that are not full wait less; only time is saved by it.
    from shortfin_apps.llm.components.service import BatcherProcess
    BatcherProcess.STROBE_SHORT_DELAY = BatcherProcess.STROBE_LONG_DELAY = 0.004

def strike(name):
    fault = FAULTS.get(name)
    workload = make_workload("mixed" if sharing == "none" else "shared_prefix", count=12, seed=3)
    rule = getattr(fault, "rule", None)
    names = [*base, *(["quarantine:4"] if rule == "written after free" else [])]
    contents = rule in ("finite contents", "whole copies", "written after free")
    with Engine(EngineConfig(prefix_sharing=sharing, page_count=96)) as engine:
        with sanitize(engine, contents=contents) as findings:
            with treat(engine, *names, *([name] if fault else [])) as treated:
                engine.run(workload, concurrency=4, timeout_s=5.0)
            recorder = engine.probe.watcher
        struck = treated[name].struck if fault else None
    return {
        "struck": struck and vars(struck),
        "findings": findings.rows(),
        "notes": findings.notes,
        "events": [[e[0], e[5], e[6]] for e in recorder.events],
    }

for name in ["nothing", *own]:
    print("\\n" + json.dumps([name, strike(name)]), flush=True)
"""

FIRST = {
    "fault:handed-out-twice": "acquire",
    "fault:padding-page-given": "acquire",
    "fault:nan-in-padding-page": "nonfinite",
    "fault:written-after-free": "written_after_free",
    "fault:copied-short": "copy",
    "fault:free-while-used": "free",
    "fault:double-free": "free",
    "fault:missing-leaf": "no_leaf",
    "fault:evict-referenced": "unlink",
}
"""Kind of the first event with the struck page after the strike, at which it must be found."""

CASES = [
    pytest.param(release, fault.sharing or "none", name, id=f"{release}-{name[6:]}")
    for release in RELEASES
    for name, fault in FAULTS.items()
    if release in (fault.releases or [release])
]


@functools.cache
def planted(release: str, sharing: str) -> dict[str, dict[str, Any]]:
    """Plant every fault that a release can have, each into an engine of its own."""
    own = [n for n, f in FAULTS.items() if (f.sharing or "none") == sharing]
    own = [n for n in own if release in (FAULTS[n].releases or [release])]
    done = subprocess.run(
        [str(python_of(release)), "-c", _STRIKE, release, sharing, *own],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    said = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith('["'))
    said["stderr"] = done.stderr[-3000:]
    return said


def case_of(release: str, sharing: str, name: str) -> dict[str, Any]:
    said = planted(release, sharing)
    assert name in said, said["stderr"]
    return said[name]


@pytest.mark.parametrize(("release", "sharing", "name"), CASES)
def test_a_fault_is_found_where_it_struck(release: str, sharing: str, name: str) -> None:
    case, fault = case_of(release, sharing, name), FAULTS[name]
    struck = case["struck"]
    assert struck is not None, "It found nothing to strike."
    assert not case["notes"]
    meant = fault.alarm(release)
    found = [row for row in case["findings"] if (row["rule"], row["cause"]) == meant]
    found = [row for row in found if _names(row, struck)]
    assert found, [(r["rule"], r["cause"], r["request_id"], r["page"]) for r in case["findings"]]
    first = found[0]
    assert first["message"].endswith(".")
    flight = struck["flight_id"]
    if first["flight_id"] is not None:
        assert first["flight_id"] == flight
    if name in FIRST:
        assert first["seq"] == _first_event(case["events"], FIRST[name], struck)


@pytest.mark.parametrize(("release", "sharing", "name"), CASES)
def test_no_wrong_data_is_told_before_a_fault(release: str, sharing: str, name: str) -> None:
    case = case_of(release, sharing, name)
    assert case["struck"] is not None
    wrong = [row["seq"] for row in case["findings"] if row["severity"] == "wrong data"]
    assert min(wrong, default=10**9) > (case["struck"]["seq"] or 0)


@pytest.mark.parametrize("sharing", ["none", "trie"])
@pytest.mark.parametrize("release", RELEASES)
def test_without_a_fault_no_wrong_data_is_told(release: str, sharing: str) -> None:
    case = case_of(release, sharing, "nothing")
    assert not [row for row in case["findings"] if row["severity"] == "wrong data"]
    known = {(row["rule"], row["cause"]) for row in case["findings"]}
    meant = {
        (fault.rule, fault.cause)
        for fault in FAULTS.values()
        if release in (fault.releases or [release]) and (fault.sharing or "none") == sharing
    }
    assert not known & meant


def test_there_are_faults_enough_and_each_says_what_it_breaks() -> None:
    assert len(FAULTS) >= 20
    assert len({fault.rule for fault in FAULTS.values()}) >= 15


def _names(row: dict[str, Any], struck: dict[str, Any]) -> bool:
    """Tell whether a finding names what a fault struck, as far as the fault says it."""
    return all(
        struck[name] is None or row[name] == struck[name]
        for name in ("request_id", "other_request_id", "page")
    )


def _first_event(events: list[Any], kind: str, struck: dict[str, Any]) -> int:
    """Return the first event of a kind after a strike that has its page, if it has any."""
    same = (
        seq
        for seq, told, pages in events
        if seq > struck["seq"] and told == kind and (pages is None or struck["page"] in pages)
    )
    return next(same)
