"""What several rooms' tests share: a real engine runs in a child process of its release."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest
from hypothesis import settings
from support import RELEASES, Child, ChildRunner, run_python

from analysis.errors import ReleaseError

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
    """Run Python source in a child of a release's environment, with Engine and `say` at hand.

    `short_strobes=False` leaves 3.1.0's batcher its long waits, where a batch must be full.
    """

    def run(
        release: str, source: str, *, timeout_s: float = 300, short_strobes: bool = True
    ) -> Child:
        said = tmp_path / "said.json"
        source = _PRELUDE + textwrap.dedent(source)
        try:
            done = run_python(
                release, source, str(said), timeout_s=timeout_s, short_strobes=short_strobes
            )
        except ReleaseError as error:
            pytest.fail(f"{error} (`make test` does)")
        value = json.loads(said.read_text()) if said.exists() else None
        return Child(value, done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(params=RELEASES)
def release(request: pytest.FixtureRequest) -> str:
    """Each release that has an adapter."""
    return str(request.param)
