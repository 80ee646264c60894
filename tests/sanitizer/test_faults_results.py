"""No miss on the way back, and none between filling and reading: live, and in what was recorded.

All faults of a setting inject one engine, one after another, each only requests of its own.
"""

from __future__ import annotations

from typing import Any

import pytest
from planted import reported
from support import RELEASES

from analysis.treatments.faults import FAULTS, family

OWN_RULES = {
    "logits-mismatch", "sampling-mismatch", "answer-mismatch", "duplicate-answer",
    "argument-changed", "read-before-write",
}  # fmt: skip

_INJECT = """
import dataclasses
from analysis.sanitizer import check_tables
from analysis.workloads.workload import Workload

sharing, *names = arguments

def ask(number, *treatments):
    kind = "mixed" if sharing == "none" else "shared_prefix"
    made = make_workload(kind, count=6, seed=3 + number)
    requests = tuple(dataclasses.replace(r, id=f"{number:02d}-{r.id}") for r in made.requests)
    with treat(engine, *base, *treatments) as treated:
        engine.run(Workload(kind, requests), concurrency=3, timeout_s=30)
    return treated

injected = {}
# Both releases leak pages of the trie: there must be enough for all.
with Engine(EngineConfig(prefix_sharing=sharing, page_count=4096)) as engine:
    with observe(engine, snapshots=False, stacks=True, memory_every_s=0, verifies=True) as seen:
        with sanitize(engine) as findings:
            ask(0)
            for number, name in enumerate(names, 1):
                treated = ask(number, f"{name}:{number:02d}-")
                injected[name] = injection_of(treated[name])
tables = {name: seen.table(name) for name in ("events", "invocations", "snapshots")}
again = check_tables(tables, engine.model.config.block_seq_stride)
report("all", {
    "injected": injected, "findings": findings.rows(), "notes": findings.notes,
    "limits": findings.limits,
    "again": again.rows(), "faults": seen.faults,
})
"""


def faults_of(release: str, sharing: str) -> list[str]:
    return [f.name for f in (*family("results"), *family("arguments")) if f.fits(release, sharing)]


SETTINGS = [(release, sharing) for release in RELEASES for sharing in ("none", "trie")]
CASES = [
    pytest.param(release, sharing, name, id=f"{release}-{sharing}-{name[6:]}")
    for release, sharing in SETTINGS
    for name in faults_of(release, sharing)
]


def planted(release: str, sharing: str) -> dict[str, Any]:
    """Plant every fault that fits into one engine, each beside requests of its own."""
    return reported("all", _INJECT, release, sharing, *faults_of(release, sharing))


@pytest.mark.parametrize(("release", "sharing", "name"), CASES)
def test_a_fault_is_found_where_it_was_injected(release: str, sharing: str, name: str) -> None:
    output, fault = planted(release, sharing), FAULTS[name]
    injected = output["injected"].get(name)
    assert injected is not None, "It was never injected."
    own = [row for row in output["findings"] if row["request_id"] == injected["request_id"]]
    found = [row for row in own if (row["rule"], row["cause"]) == (fault.rule, fault.cause)]
    assert found, [(row["rule"], row["cause"]) for row in own]
    for column in ("other_request_id", "page"):
        assert injected[column] in (None, found[0][column])
    if found[0]["invocation_id"] is not None:
        assert injected["invocation_id"] in (None, found[0]["invocation_id"])
    assert found[0]["message"].endswith(".")
    # These rules report nothing of the request before the injection, and of all that reads
    # wrong data the fault's own rule speaks first; but for one that injects twice.
    ours = [row for row in own if row["rule"] in OWN_RULES or row["severity"] == "wrong data"]
    assert min(row["seq"] for row in ours) > injected["seq"]
    if name != "fault:next-before-finish" and sharing == "none":
        assert found[0]["seq"] == min(row["seq"] for row in ours)


@pytest.mark.parametrize(("release", "sharing"), SETTINGS)
def test_requests_without_a_fault_have_no_finding(release: str, sharing: str) -> None:
    output = planted(release, sharing)
    assert not output["notes"]
    assert not output["faults"]
    met = {
        s[key] for s in output["injected"].values() for key in ("request_id", "other_request_id")
    }
    first = [row for row in output["findings"] if (row["request_id"] or "").startswith("00-")]
    assert not [row for row in first if row["rule"] in OWN_RULES]
    shaken = {f"{n:02d}" for n, name in enumerate(output["injected"], 1) if name in _OF_MANY}
    others = [
        row
        for row in output["findings"]
        if row["rule"] in OWN_RULES
        and row["request_id"] not in met
        and (row["request_id"] or "")[:2] not in shaken
    ]
    assert not others, [(row["rule"], row["cause"], row["request_id"]) for row in others]


_OF_MANY = {
    "fault:row-off-by-one", "fault:tokens-exchanged-after-filling", "fault:refilled-in-invocation",
    "fault:tokens-of-last-invocation",
}  # fmt: skip
"""Faults that inject more rows of their invocation than they name."""


@pytest.mark.parametrize(("release", "sharing"), SETTINGS)
def test_the_recording_gives_the_same(release: str, sharing: str) -> None:
    output = planted(release, sharing)
    live, again = (
        [(r["rule"], r["cause"], r["request_id"], r["seq"]) for r in output[name]]
        for name in ("findings", "again")
    )
    assert [row for row in again if row[0] in OWN_RULES] == [
        row for row in live if row[0] in OWN_RULES
    ]


@pytest.mark.parametrize(("release", "sharing"), SETTINGS)
def test_limits_are_reported(release: str, sharing: str) -> None:
    limits = planted(release, sharing)["limits"]
    assert "argument-changed" in limits


def test_each_fault_has_its_expected_findings() -> None:
    for fault in (*family("results"), *family("arguments")):
        assert fault.rule in OWN_RULES
    assert {fault.rule for fault in (*family("results"), *family("arguments"))} == OWN_RULES
