"""What several rooms' tests share: a real engine runs in a child process of its release."""

from __future__ import annotations

import json
import os
import subprocess
import textwrap
from pathlib import Path

import pytest
from hypothesis import settings
from support import RELEASES, ROOT, Child, ChildRunner

from analysis.errors import ReleaseError
from analysis.releases import python_of

# No test fails for the time that it takes: machines are slow, and engines beside it busy.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

_PRELUDE = """
import json, os, sys
from pathlib import Path
from analysis.engine import Engine, EngineConfig
said = Path(sys.argv[1])
def say(value):
    said.write_text(json.dumps(value))
"""


@pytest.fixture
def child(tmp_path: Path) -> ChildRunner:
    """Run Python source in a child of a release's environment, with Engine and `say` at hand."""

    def run(release: str, source: str, *, timeout_s: float = 120) -> Child:
        try:
            python = python_of(release)
        except ReleaseError as error:
            pytest.fail(f"{error} (`make test` does)")
        said = tmp_path / "said.json"
        done = subprocess.run(
            [str(python), "-c", _PRELUDE + textwrap.dedent(source), str(said)],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        value = json.loads(said.read_text()) if said.exists() else None
        return Child(value, done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(params=RELEASES)
def release(request: pytest.FixtureRequest) -> str:
    """Each release that has an adapter."""
    return str(request.param)
