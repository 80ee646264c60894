"""Modes of an engine other than the default: they are options of every release."""

from __future__ import annotations

import pytest
from support import NEWEST, RELEASES, REPORTED, ChildRunner, has

from analysis.core.errors import EngineError
from analysis.shortfin.config import EngineConfig
from analysis.sweep.plan import Plan, PlanError
from analysis.sweep.runner import run_sweep
from analysis.workloads.workload import Request, Workload

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


CHECKED = """
from analysis.recording import observe
from analysis.sanitizer import sanitize
from analysis.workloads.named import make_workload

config = EngineConfig(prefix_sharing=SHARING, options=OPTIONS, serialise_invocations=True)
with Engine(config) as engine, observe(engine) as recording, sanitize(engine) as findings:
    workload = make_workload(WORKLOAD, count=16, seed=3, max_new_tokens=TOKENS)
    requests = engine.run(workload, concurrency=CONCURRENCY)
prefills = recording.invocations.query("phase == 'prefill'")
starts = prefills["start_positions"]
say({
    "outcomes": requests["outcome"].value_counts().to_dict(), "faults": engine.faults,
    "rules": sorted({found.rule for found in findings}),
    "starts": [] if starts.isna().any() else [list(map(int, row)) for row in starts],
    "tokens": list(map(len, requests["tokens"])),
})
"""


def checked(
    child: ChildRunner, release: str, workload: str, sharing: str = "none", concurrency: int = 4,
    tokens: int = 15, **options: object,
):  # fmt: skip
    given = {"OPTIONS": options, "SHARING": sharing, "WORKLOAD": workload}
    settings = {**given, "CONCURRENCY": concurrency, "TOKENS": tokens}
    lines = [f"{name} = {value!r}\n" for name, value in settings.items()]
    reply = child(release, "".join(lines) + CHECKED).reply
    assert reply["faults"] == 0
    return reply


def with_mode(capability: str) -> list[str]:
    return [release for release in RELEASES if has(release, capability)]


@pytest.mark.parametrize("release", with_mode("streaming"))
def test_a_streamed_answer_is_whole(child: ChildRunner, release: str) -> None:
    reply = checked(child, release, "mixed", stream=True)
    assert set(reply["outcomes"]) <= {"ok", "wrong"}
    assert reply["tokens"] == [15] * 16


@pytest.mark.parametrize("release", with_mode("beams"))
def test_of_several_beams_one_is_right(child: ChildRunner, release: str) -> None:
    # Beams count as requests of a batch, so that two with two beams fill it.
    reply = checked(child, release, "mixed", concurrency=2, num_beams=2)
    # From 3.8 on, beams may get the same page, and then an answer may be wrong.
    assert set(reply["outcomes"]) <= {"ok", "wrong"}
    assert reply["outcomes"]["ok"] >= 12
    # Tokens of beams are not compared with the request's: they may be of another one.
    assert not {"sampling-mismatch", "token-without-invocation"} & set(reply["rules"])


@pytest.mark.parametrize("release", with_mode("prefill-positions"))
def test_prefills_start_behind_shared_pages(child: ChildRunner, release: str) -> None:
    reply = checked(child, release, "multi_turn", "trie", has_prefill_position=True)
    assert reply["outcomes"] == {"ok": 16}
    first, *_, last = reply["starts"]
    assert first == [0] * 4
    # 3.7 shares nothing.
    assert all(start and start % 16 == 0 for start in last) == has(release, "prefix-sharing")


@pytest.mark.parametrize("release", with_mode("chunked-prefill"))
def test_prompts_are_prefilled_in_chunks(child: ChildRunner, release: str) -> None:
    reply = checked(
        child, release, "multi_turn", has_prefill_position=True, chunk_block_size=2
    )  # fmt: skip
    assert reply["outcomes"] == {"ok": 16}
    assert {start for row in reply["starts"] for start in row} >= {0, 32, 64}


def test_chunks_need_start_positions() -> None:
    with pytest.raises(EngineError, match="set the option has_prefill_position"):
        EngineConfig(options={"chunk_block_size": 2})


def test_a_client_may_leave(child: ChildRunner, release: str) -> None:
    reply = checked(child, release, "cancelled", tokens=80)  # these take longer than a client stays
    assert reply["outcomes"]["cancelled"] >= 2
    # Requests whose clients left keep their places for a while, so others may be rejected.
    assert set(reply["outcomes"]) <= {"ok", "wrong", "cancelled", "rejected"}
    assert "stuck-request" not in reply["rules"]


def test_a_request_that_ended_before_its_client_left_is_no_cancelled_one(
    child: ChildRunner, release: str, tmp_path
) -> None:
    file = tmp_path / "prompts.jsonl"
    requests = [Request("a", "1 2 3 4 5 ", 1, cancel_after_s=30.0),
                Request("b", "1 2 3 4 5 ", 15, cancel_after_s=0.0)]  # fmt: skip
    Workload("two", tuple(requests)).write(file)
    assert Workload.read(file).requests == tuple(requests)
    reply = child(
        release,
        f"""
from analysis.workloads.workload import Workload
with Engine() as engine:
    say(list(engine.run(Workload.read({str(file)!r}), concurrency=2)["outcome"]))
""",
    ).reply
    assert reply == ["ok", "cancelled"]


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
