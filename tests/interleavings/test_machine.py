"""Long random sequences of operations on the real caches: with the fixes nothing ever breaks.

Without them Hypothesis finds it out, and shrinks it to a few steps.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support import ROOT, dialect, has

from analysis.shortfin.environments import python_of

# A child of the release's environment, where Hypothesis is not installed: a line asks for a new
# cache, a request or a request's next step, and is answered with the rules that do not hold then.
SERVER = """
import json, sys
from analysis.interleavings.examine import HarnessFactory
from analysis.interleavings.scenarios import Scenario
from analysis.shortfin.cache.driver import Request
from analysis.treatments import fixes

sharing, treated = sys.argv[1], sys.argv[2] == "treated"
with HarnessFactory(sharing) as factory:
    treatments = fixes(factory.release, sharing) if treated else ()
with HarnessFactory(sharing, treatments) as factory:
    harness = None
    for line in sys.stdin:
        asked = json.loads(line)
        if "pages" in asked:
            if harness is not None:
                harness.close()
            harness = factory.open(Scenario("random", "Random.", asked["pages"], ()))
            answer = []
        elif "prompt" in asked:
            request = Request(asked["name"], tuple(asked["prompt"]), asked["decodes"])
            harness.add(request)
            answer = list(harness.drivers[request.name].operations)
        else:
            answer = [[b.rule, b.message] for b in harness.step(asked["step"])] + (
                [["over", ""]] if harness.over else [])
        print(json.dumps(answer), flush=True)
    if harness is not None:
        harness.close()
"""
# Where requests allocate for themselves or with records, a decode takes 8 pages at once.
_PAGES = {"allocations": 14, "requests": 41, "records": 41}
_WORKERS = 3
prompts = st.builds(
    lambda head, length, tail: [*range(head, head + length), *tail],
    st.sampled_from([1, 1, 20]),
    st.integers(1, 6),
    st.lists(st.integers(50, 51), max_size=3),
)


class Server:
    """The child, asked a line at a time."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def ask(self, **asked: Any) -> Any:
        print(json.dumps(asked), file=self.process.stdin, flush=True)
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())


@contextmanager
def server(release: str, sharing: str, *, treated: bool) -> Iterator[Server]:
    process = subprocess.Popen(
        [str(python_of(release)), "-c", SERVER, sharing, "treated" if treated else "untreated"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        with process:
            yield Server(process)
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(timeout=30) == 0
    finally:
        process.kill()


def machine(child: Server, pages: int, ignored: set[str]) -> type[RuleBasedStateMachine]:
    """Return a machine of requests that come, take their steps in any order, and end."""

    class Requests(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.left: dict[str, list[str]] = {}
            self.count, self.over = 0, False

        @initialize()
        def begin(self) -> None:
            child.ask(pages=pages)

        @precondition(lambda self: len(self.left) < _WORKERS and not self.over)
        @rule(prompt=prompts, decodes=st.integers(0, 3))
        def come(self, prompt: list[int], decodes: int) -> None:
            self.count += 1
            name = f"R{self.count}"
            self.left[name] = child.ask(name=name, prompt=prompt, decodes=decodes)

        @precondition(lambda self: self.left and not self.over)
        @rule(data=st.data())
        def step(self, data: st.DataObject) -> None:
            name = data.draw(st.sampled_from(sorted(self.left)), label="request")
            broken = child.ask(step=name)
            self.left[name].pop(0)
            if not self.left[name]:
                del self.left[name]
            self.over = ["over", ""] in broken
            found = [one for one in broken if one[0] not in {"over", *ignored}]
            assert found == [], found

        @precondition(lambda self: self.over)
        @rule()
        def begin_again(self) -> None:
            # With allocations one thread does everything, and a decode that gets no page ends it.
            child.ask(pages=pages)
            self.left, self.over = {}, False

        def teardown(self) -> None:
            while self.left and not self.over:
                name = next(iter(self.left))
                while self.left[name] and not self.over:
                    broken = child.ask(step=name)
                    self.over = ["over", ""] in broken
                    self.left[name].pop(0)
                    found = [one for one in broken if one[0] not in {"over", *ignored}]
                    assert found == [], found
                del self.left[name]

    return Requests


def plan(examples: int, steps: int, *, shrink: bool) -> settings:
    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]
    return settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, derandomize=True,
        database=None, phases=phases, suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )  # fmt: skip


def test_with_the_fixes_nothing_breaks(release: str) -> None:
    with server(release, "trie", treated=True) as child:
        run_state_machine_as_test(
            machine(child, _PAGES[dialect(release)], set()), settings=plan(15, 60, shrink=False)
        )


@pytest.mark.slow
@pytest.mark.parametrize("sharing", ["none", "trie"])
def test_with_the_fixes_nothing_breaks_for_long(release: str, sharing: str) -> None:
    with server(release, sharing, treated=True) as child:
        run_state_machine_as_test(
            machine(child, _PAGES[dialect(release)], set()), settings=plan(400, 120, shrink=False)
        )


def test_without_them_it_is_found_and_shrunk_to_a_few_steps(release: str) -> None:
    with (
        server(release, "trie", treated=False) as child,
        pytest.raises(AssertionError) as caught,
    ):
        run_state_machine_as_test(
            # Without a shared prefix only a decode that finds no pages does harm.
            machine(
                child,
                _PAGES[dialect(release)] if has(release, "prefix-sharing") else 9,
                {"padding-page-allocated"},
            ),
            settings=plan(100, 60, shrink=True),
        )
    notes = "\n".join(getattr(caught.value, "__notes__", ()))
    # One or two requests suffice on each release; what they have left to do is done at the end.
    assert 1 <= notes.count("state.come(") <= 2, notes
    assert notes.count("state.step(") <= 8, notes
