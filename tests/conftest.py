"""What several rooms' tests share: a real engine runs in a child process of its release."""

from __future__ import annotations

import json
import sys
import textwrap
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from support import CHOSEN, RELEASES, ROOT, Child, ChildRunner, run_python

from analysis.cli import main
from analysis.core.errors import ReleaseError

# No test fails for the time that it takes: machines are slow, and engines beside it busy.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

LONGEST = (
    "sanitizer/test_contents.py", "studies/validation/test_validate.py",
    "sanitizer/test_no_false_alarm.py",
    "sanitizer/test_faults_results.py", "sanitizer/test_bytes.py", "sweep/test_runner.py",
    "sweep/test_observed.py", "sweep/test_kills.py", "recording/test_conservation.py",
    "sanitizer/test_faults.py", "sweep/test_http.py",
    "studies/causes/test_scenarios.py", "recording/test_observe.py",
    "recording/test_observe_failures.py",
    "interleavings/test_examine.py", "interleavings/test_machine.py",
    "test_report.py", "test_installed.py", "model/test_compile.py",
    "model/test_verify.py",
    "sweep/test_sanitized.py", "sanitizer/test_shape.py", "test_calibration.py",
    "treatments/test_scheduling.py", "sanitizer/test_edges.py", "sanitizer/test_circumstances.py",
    "engine/test_engine.py", "treatments/test_treat.py", "sanitizer/test_execution_faults.py",
    "test_experiments.py", "diagnosis/test_recorded.py",
)  # fmt: skip
"""Files that take longest: they come first, so that none is left alone at the end."""

_PRELUDE = """
import json, os, sys
from pathlib import Path
from analysis.engine import Engine, EngineConfig
from analysis.shortfin.releases import row_of
def has(release, capability):
    return capability in row_of(release).capabilities
reply = Path(sys.argv[1])
def say(value):
    reply.write_text(json.dumps(value))
"""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the longest files first; of `make test-releases`, keep the tests of one release each."""
    places = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))
    if CHOSEN:
        config.hook.pytest_deselected(items=[i for i in items if not release_of(i.nodeid)])
        items[:] = [item for item in items if release_of(item.nodeid)]


def release_of(nodeid: str) -> str | None:
    """Return the release that a test is of, by the values in its brackets; None if of none."""
    values = nodeid.rpartition("[")[2].rstrip("]").split("-")
    return next((value for value in values if value in RELEASES), None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print, of `make test-releases`, what passed of what was run: file by release."""
    if not CHOSEN:
        return
    counts: dict[str, Counter[tuple[str, str]]] = {}
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            if (release := release_of(report.nodeid)) is not None:
                file = report.nodeid.partition("::")[0].removeprefix("tests/")
                counts.setdefault(file, Counter())[release, outcome] += 1
    terminalreporter.section("passed of run, by release")
    width = max(map(len, counts), default=0)
    terminalreporter.write_line(" ".join(["".ljust(width), *(r.rjust(8) for r in CHOSEN)]))
    for file, found in sorted(counts.items()):
        passed = {r: found[r, "passed"] for r in CHOSEN}
        run = {r: passed[r] + found[r, "failed"] + found[r, "error"] for r in CHOSEN}
        cells = [f"{passed[r]}/{run[r]}" if run[r] else "" for r in CHOSEN]
        terminalreporter.write_line(" ".join([file.ljust(width), *(c.rjust(8) for c in cells)]))


@pytest.fixture
def child(tmp_path: Path) -> ChildRunner:
    """Run Python source in a child of a release's environment, with Engine and `say` at hand.

    `short_strobes=False` leaves a batcher its long waits, where a batch must be full.
    """

    def run(
        release: str, source: str, *, timeout_s: float = 300, short_strobes: bool = True
    ) -> Child:
        reply = tmp_path / "reply.json"
        source = _PRELUDE + textwrap.dedent(source)
        try:
            done = run_python(
                release, source, str(reply), timeout_s=timeout_s, short_strobes=short_strobes
            )
        except ReleaseError as error:
            pytest.fail(f"{error} (`make test` does)")
        value = json.loads(reply.read_text()) if reply.exists() else None
        return Child(value, done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def cachelab(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the command line here; return its exit status, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cachelab", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run


@pytest.fixture(params=RELEASES)
def release(request: pytest.FixtureRequest) -> str:
    """Each supported release."""
    return str(request.param)
