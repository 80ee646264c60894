"""Runs injected faults of a file in one child process per setting, and keeps the output."""

from __future__ import annotations

import functools
import json
from typing import Any

from support import run_python

_PRELUDE = """
import json, sys
from analysis.engine import Engine, EngineConfig
from analysis.recording import observe
from analysis.sanitizer import sanitize
from analysis.treatments import FAULTS, fixes, treat
from analysis.workloads.named import make_workload

release, *arguments = sys.argv[1:]
# Without the defects that would hide an injected one.
CORRECTED = ["correct-seq-lens", "zero-start-positions", "zero-page-tables"]
base = [name for name in CORRECTED if name in fixes(release, "trie")]

def injection_of(fault):
    return fault and fault.injected and vars(fault.injected)

def report(name, case):
    print("\\n" + json.dumps([name, case], default=str), flush=True)
"""


@functools.cache
def planted(source: str, release: str, *arguments: str) -> dict[str, Any]:
    """Run `source` in a child of a release's environment; return what it reports, by name.

    `source` finds `release`, `arguments` and the names of the prelude, and calls
    `report(name, case)`. What it wrote to stderr is in `"stderr"`.
    """
    done = run_python(release, _PRELUDE + source, release, *arguments, timeout_s=600)
    cases = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith('["'))
    return {**cases, "stderr": done.stderr[-3000:]}


def reported(name: str, source: str, release: str, *arguments: str) -> Any:
    """Return what was reported of one fault; fail with the child's stderr if nothing was."""
    cases = planted(source, release, *arguments)
    assert name in cases, cases["stderr"]
    return cases[name]


def names_injection(row: dict[str, Any], injected: dict[str, Any]) -> bool:
    """Return whether a finding names the request and page of an injection, where it has them."""
    return all(
        injected[name] is None or row[name] == injected[name]
        for name in ("request_id", "other_request_id", "page")
    )
