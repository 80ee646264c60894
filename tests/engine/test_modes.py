"""Modes of an engine other than the default: they are options of every release."""

from __future__ import annotations

import pytest
from support import NEWEST, REPORTED, ChildRunner

from analysis.core.errors import EngineError
from analysis.shortfin.config import EngineConfig
from analysis.sweep.plan import Plan, PlanError
from analysis.sweep.runner import run_sweep

ASKED = """
from analysis.workloads.named import make_workload
from analysis.recording import observe

config = EngineConfig(options=OPTIONS, serialise_invocations=True)
with Engine(config) as engine, observe(engine) as recording:
    requests = engine.run(make_workload("mixed", count=8, seed=3), concurrency=4)
calls = recording.invocations
sizes = {phase: sorted(set(map(int, own["batch_size"]))) for phase, own in calls.groupby("phase")}
say({"outcomes": sorted(set(requests["outcome"])), "sizes": sizes})
"""


def test_prefill_and_decode_have_batch_sizes_of_their_own(child: ChildRunner, release: str) -> None:
    options = "OPTIONS = {'prefill_batch_sizes': [2]}\n"
    reply = child(release, options + ASKED).reply
    # Up to 3.2, as many requests decode at once as are prefilled, in the batch size of a decode.
    assert reply["sizes"] == {"prefill": [2], "decode": [4]}
    assert set(reply["outcomes"]) <= {"ok", "wrong"}


def test_programs_may_be_isolated_by_fiber(child: ChildRunner, release: str) -> None:
    reply = child(release, "OPTIONS = {'program_isolation': 'per_fiber'}\n" + ASKED).reply
    assert reply["sizes"] == {"prefill": [4], "decode": [4]}
    assert set(reply["outcomes"]) <= {"ok", "wrong"}


@pytest.mark.parametrize("sizes", ["2", 2, [], [4, 2], [0], ["2"], [True]])
def test_batch_sizes_that_are_none(sizes: object) -> None:
    with pytest.raises(EngineError, match="atch"):
        EngineConfig(options={"prefill_batch_sizes": sizes})


def test_an_axis_is_run_where_a_release_has_it() -> None:
    plan = Plan(
        releases=(REPORTED, NEWEST), concurrency=(4,), repeats=1,
        axes={"num_beams": [1, 2], "prefill_batch_sizes": [[2], [4]]},
    )  # fmt: skip
    options = {release: [] for release in plan.releases}
    for trial in plan.trials():
        options[trial.release].append(plan.options_of(trial))
    assert options[REPORTED] == [{"prefill_batch_sizes": (2,)}, {"prefill_batch_sizes": (4,)}]
    assert [o["num_beams"] for o in options[NEWEST]] == [1, 1, 2, 2]
    assert len({trial.trial_id for trial in plan.trials()}) == 6


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"axes": {"num_beams": []}}, "needs at least one value"),
        ({"axes": {"num_beams": [1, 1]}}, "has a value twice"),
        ({"axes": {"a": 5}}, "needs at least one value"),
        ({"axes": {"a": [{"b": 1}]}}, "takes numbers, texts and lists"),
        ({"axes": {"a/b": [1]}}, "is not the name of an option"),
        ({"axes": {"a": [1]}, "options": {"a": 1}}, "is an option and an axis"),
    ],
)
def test_axes_that_are_none(changed: dict[str, object], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        Plan(releases=(REPORTED,), concurrency=(1,), repeats=1, **changed)  # type: ignore[arg-type]


def test_a_sweep_has_a_row_for_each_value_of_an_axis(tmp_path) -> None:
    plan = Plan(
        releases=(NEWEST,), concurrency=(4,), repeats=1,
        axes={"program_isolation": ["per_call", "per_fiber"]},
    )  # fmt: skip
    run = run_sweep(plan, tmp_path / "run", jobs=2, progress=False)
    assert sorted(run.trials["options"]) == [
        '{"program_isolation": "per_call"}', '{"program_isolation": "per_fiber"}',
    ]  # fmt: skip
    assert set(run.requests["outcome"]) == {"ok"}
    again = run_sweep(plan, tmp_path / "run", progress=False)
    assert len(again.trials) == 2
