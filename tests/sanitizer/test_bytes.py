"""Bytes: damage and lost writes are found unasked, when it was promised; healthy runs have none."""

from __future__ import annotations

from typing import Any

import pytest
from planted import reported
from support import RELEASES, dialect

from analysis.recording.checksums import MODES
from analysis.treatments.faults import family

_INJECT = """
from analysis.recording import checksums
sharing, mode, *names = arguments
base = [name for name in base if name != "zero-page-tables"]
RULES = ("kv-corruption", "lost-write")

def inject(engine, number, name):
    fault = FAULTS.get(name)
    kind = "mixed" if sharing == "none" else "shared_prefix"
    workload = make_workload(kind, count=8, seed=number)
    with sanitize(engine, checksums=mode) as findings:
        with treat(engine, *base, *([name] if fault else [])) as treated:
            engine.run(workload, concurrency=4, timeout_s=20.0)
        recorder = engine.probe.observer
    injected = treated[name].injected if fault else None
    place = injected.seq if injected else 0
    return {
        "injected": injection_of(fault and treated[name]),
        "findings": [row for row in findings.rows() if row["rule"] in RULES],
        "notes": findings.notes,
        "bytes_checked": findings.bytes_checked,
        "coverage": [e[16]["coverage"] for e in recorder.events if e[5] == "checksums"],
        "landings": [f[10] for f in recorder.invocations if f[10] > place],
        "starts": [f[9] for f in recorder.invocations if f[9] > place],
        "given_up": [e[0] for e in recorder.events if injected and e[0] > place
                     and e[5] in ("free", "pages_dropped") and injected.page in (e[6] or ())],
    }

for number, name in enumerate(["nothing", *names]):
    if name != "nothing":
        checksums.FOLLOWED = 1
    # A new one each time: what an earlier one left in a page may be just what is written next.
    with Engine(EngineConfig(prefix_sharing=sharing, page_count=96)) as engine:
        report(name, inject(engine, number, name))
"""

# With *sampled* a fault must inject a page that is followed, so all are, but for a healthy engine.
FAST = {
    ("allocations", "none"): ["whole"],
    ("allocations", "trie"): ["landings"],
    ("requests", "none"): ["whole"],
    ("requests", "trie"): ["sampled"],
    ("records", "none"): ["sampled"],
    ("records", "trie"): ["landings"],
}
SETTINGS = [(release, sharing) for release in RELEASES for sharing in ("none", "trie")]
RUNS = [
    pytest.param(
        release,
        sharing,
        mode,
        id=f"{release}-{sharing}-{mode}",
        # Every setting costs fifteen engines: half of them will do, but for the patient.
        marks=[pytest.mark.slow] * (mode not in FAST[dialect(release), sharing]),
    )
    for release, sharing in SETTINGS
    for mode in MODES
]
CASES = [
    pytest.param(*run.values, fault, id=f"{run.id}-{fault.name[6:]}", marks=run.marks)
    for run in RUNS
    for fault in family("bytes")
    if fault.fits(*run.values[:2])
]


def case_of(release: str, sharing: str, mode: str, name: str) -> dict[str, Any]:
    """Return what was reported of a fault, planted while its engine is sanitized."""
    own = [fault.name for fault in family("bytes") if fault.fits(release, sharing)]
    return reported(name, _INJECT, release, sharing, mode, *own)


@pytest.mark.parametrize(("release", "sharing", "mode", "fault"), CASES)
def test_damage_is_found_in_the_stated_time(
    release: str, sharing: str, mode: str, fault: Any
) -> None:
    case = case_of(release, sharing, mode, fault.name)
    injected = case["injected"]
    assert injected is not None, "It was never injected."
    found = [
        row for row in case["findings"] if (row["rule"], row["cause"]) == (fault.rule, fault.cause)
    ]
    found = [row for row in found if row["page"] == injected["page"]]
    assert found, case["findings"]
    asked, other = injected["request_id"], injected["other_request_id"]
    assert asked is None or asked in {row["request_id"] for row in found}
    assert other is None or other in {row["other_request_id"] for row in found}
    first = min(row["seq"] for row in found)
    assert first > injected["seq"]
    assert not [row for row in case["findings"] if row["seq"] < injected["seq"]]
    started = sum(seq < first for seq in case["starts"])
    if fault.rule == "lost-write":
        # In either mode, when this invocation finishes.
        assert {row["severity"] for row in found} == {"wrong data"}
        assert f"Invocation {injected['invocation_id']} wrote" in found[0]["message"]
    elif mode == "whole" or fault.name == "fault:copied-without-layer":
        # At the next start or end of an invocation, or when those under way then have finished.
        assert started <= 1 + 4
    else:
        # At the latest when its page is given up or, if that is never, at the end.
        assert first <= min((seq for seq in case["given_up"]), default=first) + 20
    if fault.name == "fault:flipped-bit-free":
        assert {row["severity"] for row in found} == {"at risk"}


@pytest.mark.parametrize(("release", "sharing", "mode"), RUNS)
def test_without_a_fault_no_byte_is_reported(release: str, sharing: str, mode: str) -> None:
    case = case_of(release, sharing, mode, "nothing")
    assert case["findings"] == []
    first, last = case["coverage"]
    assert first["invocations"] == 0
    assert last["mode"] == mode
    assert last["invocations"] == len(case["landings"]) > 20
    if mode == "sampled":
        assert (last["followed"], last["page_count"]) == (3, 96)
    else:
        assert last["slots_written"] > 300
        assert last["pages_read"] >= last["invocations"]
    assert last["not_judged"] == last["undecided"] == []
    assert case["bytes_checked"].startswith(f"Bytes: {last['slots_written']} written slots")
