"""Bytes: damage and lost writes are found unasked, when it was promised; healthy runs have none."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from typing import Any

import pytest
from support import RELEASES, ROOT

from analysis.observe.checksums import MODES
from analysis.releases import python_of
from analysis.treat.faults.bytes import BYTES_FAULTS

_STRIKE = """
import json, sys
from analysis.engine import Engine, EngineConfig
from analysis.observe import checksums
from analysis.sanitize import sanitize
from analysis.treat import FAULTS, treat
from analysis.workload import make_workload

release, sharing, mode, *names = sys.argv[1:]
base = []
if release == "3.1.0":
    base = ["correct-seq-lens", "zero-start-positions"]
    # Batches that are not full wait less; only time is saved by it.
    from shortfin_apps.llm.components.service import BatcherProcess
    BatcherProcess.STROBE_SHORT_DELAY = BatcherProcess.STROBE_LONG_DELAY = 0.004
RULES = ("unwritten bytes", "arrived writes")

def strike(engine, number, name):
    fault = FAULTS.get(name)
    kind = "mixed" if sharing == "none" else "shared_prefix"
    workload = make_workload(kind, count=8, seed=number)
    with sanitize(engine, checksums=mode) as findings:
        with treat(engine, *base, *([name] if fault else [])) as treated:
            engine.run(workload, concurrency=4, timeout_s=20.0)
        recorder = engine.probe.watcher
    struck = treated[name].struck if fault else None
    place = struck.seq if struck else 0
    return {
        "struck": struck and vars(struck),
        "findings": [row for row in findings.rows() if row["rule"] in RULES],
        "notes": findings.notes,
        "bytes_checked": findings.bytes_checked,
        "coverage": [e[15] for e in recorder.events if e[5] == "checksums"],
        "landings": [f[10] for f in recorder.flights if f[10] > place],
        "starts": [f[9] for f in recorder.flights if f[9] > place],
        "given_up": [e[0] for e in recorder.events if struck and e[0] > place
                     and e[5] in ("free", "drop") and struck.page in (e[6] or ())],
    }

for number, name in enumerate(["nothing", *names]):
    if name != "nothing":
        checksums.FOLLOWED = 1
    # A new one each time: what an earlier one left in a page may be just what is written next.
    with Engine(EngineConfig(prefix_sharing=sharing, page_count=96)) as engine:
        print("\\n" + json.dumps([name, strike(engine, number, name)]), flush=True)
"""

# With *sampled* a fault must strike a page that is followed, so all are, but for a healthy engine.
FAST = {
    ("3.1.0", "none"): ["whole"],
    ("3.1.0", "trie"): ["landings"],
    ("3.9.0", "none"): ["sampled"],
    ("3.9.0", "trie"): ["landings"],
}
SETTINGS = [(release, sharing) for release in RELEASES for sharing in ("none", "trie")]
RUNS = [
    pytest.param(
        release,
        sharing,
        mode,
        id=f"{release}-{sharing}-{mode}",
        # Every setting costs fifteen engines: half of them will do, but for the patient.
        marks=[pytest.mark.slow] * (mode not in FAST[release, sharing]),
    )
    for release, sharing in SETTINGS
    for mode in MODES
]
CASES = [
    pytest.param(*run.values, fault, id=f"{run.id}-{fault.name[6:]}", marks=run.marks)
    for run in RUNS
    for sharing in [run.values[1]]
    for fault in BYTES_FAULTS
    if fault.sharing in (None, sharing)
]


@functools.cache
def planted(release: str, sharing: str, mode: str) -> dict[str, dict[str, Any]]:
    """Plant every fault, one after the other, each while it is sanitized anew."""
    own = [fault.name for fault in BYTES_FAULTS if fault.sharing in (None, sharing)]
    done = subprocess.run(
        [str(python_of(release)), "-c", _STRIKE, release, sharing, mode, *own],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    said = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith('["'))
    said["stderr"] = done.stderr[-3000:]
    return said


def case_of(release: str, sharing: str, mode: str, name: str) -> dict[str, Any]:
    said = planted(release, sharing, mode)
    assert name in said, said["stderr"]
    return said[name]


@pytest.mark.parametrize(("release", "sharing", "mode", "fault"), CASES)
def test_damage_is_found_in_the_stated_time(
    release: str, sharing: str, mode: str, fault: Any
) -> None:
    case = case_of(release, sharing, mode, fault.name)
    struck = case["struck"]
    assert struck is not None, "It found nothing to strike."
    found = [
        row for row in case["findings"] if (row["rule"], row["cause"]) == (fault.rule, fault.cause)
    ]
    found = [row for row in found if row["page"] == struck["page"]]
    assert found, case["findings"]
    asked, other = struck["request_id"], struck["other_request_id"]
    assert asked is None or asked in {row["request_id"] for row in found}
    assert other is None or other in {row["other_request_id"] for row in found}
    first = min(row["seq"] for row in found)
    assert first > struck["seq"]
    assert not [row for row in case["findings"] if row["seq"] < struck["seq"]]
    started = sum(seq < first for seq in case["starts"])
    if fault.rule == "arrived writes":
        # In either mode, when the very flight lands.
        assert {row["severity"] for row in found} == {"wrong data"}
        assert f"Flight {struck['flight_id']} wrote" in found[0]["message"]
    elif mode == "whole" or fault.name == "fault:copied-without-layer":
        # At the next start or landing, or when those have landed that were under way then.
        assert started <= 1 + 4
    else:
        # At the latest when its page is given up or, if that is never, at the end.
        assert first <= min((seq for seq in case["given_up"]), default=first) + 20
    if fault.name == "fault:flipped-bit-free":
        assert {row["severity"] for row in found} == {"at risk"}


@pytest.mark.parametrize(("release", "sharing", "mode"), RUNS)
def test_without_a_fault_no_byte_is_blamed(release: str, sharing: str, mode: str) -> None:
    case = case_of(release, sharing, mode, "nothing")
    assert case["findings"] == []
    first, last = map(json.loads, case["coverage"])
    assert first["flights"] == 0
    assert last["mode"] == mode
    assert last["flights"] == len(case["landings"]) > 20
    if mode == "sampled":
        assert last["followed"] == [3, 96]
    else:
        assert last["slots_written"] > 300
        assert last["pages_read"] >= last["flights"]
    assert last["not_judged"] == last["undecided"] == []
    assert case["bytes_checked"].startswith(f"Bytes: {last['slots_written']} written slots")
