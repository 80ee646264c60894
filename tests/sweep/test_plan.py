"""A plan is complete, in a stable order, paired, and refused at once where it makes no sense."""

from __future__ import annotations

import dataclasses
import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import NEWEST, REPORTED

from analysis.core.errors import CachelabError
from analysis.runs.store import RunWriter
from analysis.runs.tables import arm_of, is_control
from analysis.sweep.plan import Plan, PlanError
from analysis.treatments import FAULTS, fixes
from analysis.treatments.faults import FAMILIES, TRIES


def some(values, size=3):
    return st.lists(values, min_size=1, max_size=size, unique=True).map(tuple)


plans = st.builds(
    Plan,
    releases=some(st.sampled_from([REPORTED, NEWEST])),
    prefix_sharing=some(st.sampled_from(["none", "trie"])),
    pages=some(st.integers(1, 1000)),
    concurrency=some(st.integers(1, 64)),
    workload=st.sampled_from(["reported", "mixed", "shared_prefix", "prefix_reuse"]),
    repeats=st.integers(1, 4),
    seed=st.integers(0, 2**40),
    observe=st.sampled_from(["nothing", "events", "snapshots"]),
    sanitize=st.booleans(),
)


@given(
    plans,
    some(st.sampled_from(["engine", "http"]), 2),
    st.dictionaries(st.sampled_from("ab"), some(st.integers(-1, 3) | st.text(max_size=90))),
)
def test_every_combination_has_one_trial_with_an_id_of_its_own(plan, targets, axes):
    if plan.observe == "nothing":
        plan = dataclasses.replace(plan, targets=targets)
    plan = dataclasses.replace(plan, axes=axes)
    trials = plan.trials()
    assert len({trial.trial_id for trial in trials}) == len(trials)
    assert all(re.fullmatch(r"[\w.=-]{1,200}", trial.trial_id, re.A) for trial in trials)
    modes = [
        tuple(zip(sorted(axes), values, strict=True))
        for values in itertools.product(*(axes[name] for name in sorted(axes)))
    ]
    assert {dataclasses.astuple(trial) for trial in trials if not is_control(trial.treatments)} == {
        (release, sharing, pages, concurrency, repeat, (), target, options)
        for release in plan.releases
        for sharing in plan.prefix_sharing
        for pages in plan.pages
        for concurrency in plan.concurrency
        for repeat in range(plan.repeats)
        for target in plan.targets
        for options in modes
    }


@given(plans, st.integers(1, 3))
def test_a_sanitized_plan_has_a_control_for_every_arm(plan, count):
    treatments = ((), ("lock-cache",), ("one-at-a-time",))[:count]
    plan = dataclasses.replace(plan, treatments=treatments)
    controls = [trial for trial in plan.trials() if is_control(trial.treatments)]
    wanted = wanted_arms(plan) if plan.sanitize else 0
    assert len(controls) == wanted
    assert plan.trials()[:wanted] == controls
    assert not plan.sanitize or plan.observe != "nothing"
    for trial in controls:
        assert arm_of(trial.treatments) in treatments
        [fault] = set(trial.treatments) - set(arm_of(trial.treatments))
        assert fault == trial.treatments[-1]
        assert FAULTS[fault].fits(trial.release, trial.prefix_sharing)
        assert FAULTS[fault].control


def test_controls_come_in_turn_from_all_faults_that_a_sweep_finds():
    for release in (REPORTED, NEWEST):
        for sharing in ("none", "trie"):
            seen = {
                trial.treatments[-1]
                for seed in range(200)
                for trial in Plan(
                    releases=(release,), prefix_sharing=(sharing,), sanitize=True, seed=seed
                ).trials()
                if is_control(trial.treatments)
            }
            assert seen == {
                name
                for name, fault in FAULTS.items()
                if fault.control and fault.fits(release, sharing)
            }


@given(plans)
def test_faults_of_other_families_are_tried_if_one_cannot_be_injected(plan):
    plan = dataclasses.replace(plan, sanitize=True)
    idle: set[str] = set()
    tried: dict[tuple[str, str], list[str]] = {}
    for number in range(1, TRIES + 1):
        controls = [trial for trial in plan.trials(idle) if is_control(trial.treatments)]
        new = [trial for trial in controls if trial.trial_id not in idle]
        assert len(controls) == number * len(new) == number * wanted_arms(plan)
        for trial in new:
            tried.setdefault((trial.release, trial.prefix_sharing), []).append(trial.treatments[-1])
        # One that was injected is enough.
        [kept, *others] = new
        assert kept in plan.trials(idle | {trial.trial_id for trial in others})
        idle |= {trial.trial_id for trial in new}
    assert [trial.trial_id for trial in plan.trials(idle) if trial.trial_id not in idle] == [
        trial.trial_id for trial in plan.trials() if not is_control(trial.treatments)
    ]
    for faults in tried.values():
        families = [f for f in FAMILIES for name in faults if FAULTS[name] in f]
        assert len(set(families)) == TRIES


def wanted_arms(plan):
    return len(plan.releases) * len(plan.prefix_sharing) * len(plan.treatments)


@given(plans)
def test_ids_and_order_are_stable_and_repeats_are_outermost(plan):
    trials = plan.trials()
    assert trials == dataclasses.replace(plan).trials()
    assert [trial.repeat for trial in trials] == sorted(trial.repeat for trial in trials)
    one_more = dataclasses.replace(plan, repeats=plan.repeats + 1)
    assert one_more.trials()[: len(trials)] == trials


@given(plans, st.integers(1, 3))
def test_treatments_follow_each_other_and_turn_round_in_every_second_repeat(plan, arms):
    treatments = ((), ("lock-cache",), ("one-at-a-time",))[:arms]
    plan = dataclasses.replace(plan, treatments=treatments, sanitize=False)
    trials = plan.trials()
    blocks = [trials[i : i + arms] for i in range(0, len(trials), arms)]
    for block in blocks:
        order = [trial.treatments for trial in block]
        assert order == list(treatments[::-1] if block[0].repeat % 2 else treatments)
        assert len({dataclasses.replace(trial, treatments=()) for trial in block}) == 1
    # Over an even number of repeats each stands at every distance from either end equally often.
    if plan.repeats % 2 == 0:
        places = {names: [] for names in treatments}
        for block in blocks:
            for place, trial in enumerate(block):
                places[trial.treatments].append(place)
        assert {sum(found) / len(found) for found in places.values()} == {(arms - 1) / 2}


@given(plans)
def test_prompts_depend_on_nothing_but_seed_concurrency_and_repeat(plan):
    alone = dataclasses.replace(plan, releases=(NEWEST,), pages=(7,), prefix_sharing=("none",))
    for trial in plan.trials():
        key = trial.concurrency, trial.repeat
        assert plan.prompt_seed(*key) == alone.prompt_seed(*key)
    keys = {(trial.concurrency, trial.repeat) for trial in plan.trials()}
    assert len({plan.prompt_seed(*key) for key in keys}) == len(keys)


@given(plans)
def test_a_plan_is_recognised_on_disk(tmp_path_factory, plan):
    out = tmp_path_factory.mktemp("runs") / "run"
    manifest = {"plan": plan.as_dict(), "seed": plan.seed, "run_id": "r"}
    RunWriter.resume(out, manifest)
    RunWriter.resume(out, manifest)
    other = dataclasses.replace(plan, repeats=plan.repeats + 1)
    with pytest.raises(CachelabError, match="another plan"):
        RunWriter.resume(out, {**manifest, "plan": other.as_dict()})


def test_a_trial_id_is_a_directory_name_and_describes_the_trial():
    (trial,) = Plan(releases=(REPORTED,), concurrency=(8,), repeats=1).trials()
    assert trial.trial_id == f"{REPORTED}-none-p256-c8-r0"


def test_the_id_of_a_trial_with_many_treatments_is_short_and_its_own():
    plan = Plan(
        releases=(REPORTED,),
        prefix_sharing=("trie",),
        treatments=(fixes(REPORTED, "trie"), fixes(REPORTED, "trie")[::-1], ("lock-cache",)),
    )
    ids = {trial.trial_id for trial in plan.trials()}
    assert len(ids) == len(plan.trials())
    assert max(map(len, ids)) < 100
    assert f"{REPORTED}-trie-p256-c8-r0-lock-cache" in ids


@pytest.mark.parametrize(
    ("bad", "output"),
    [
        ({"releases": ()}, "--releases"),
        ({"releases": ("3.0.0",)}, "3.0.0"),
        ({"releases": (REPORTED, REPORTED)}, "twice"),
        ({"prefix_sharing": ("tree",)}, "tree"),
        ({"pages": (0,)}, "--pages"),
        ({"pages": (256, -1)}, "--pages"),
        ({"concurrency": (0,)}, "--concurrency"),
        ({"concurrency": ()}, "--concurrency"),
        ({"batch_sizes": (4, 1)}, "ascend"),
        ({"workload": "nothing.jsonl"}, "nothing.jsonl"),
        ({"workload": "mixed+nothing"}, "'nothing'"),
        ({"workload": "mixed+prefix_reuse", "repeats": 1}, "must be at least 2"),
        ({"repeats": 0}, "--repeats"),
        ({"rounds": 0}, "--rounds"),
        ({"seed": -1}, "--seed"),
        ({"max_new_tokens": 0}, "--max-new-tokens"),
        ({"device": "tpu"}, "tpu"),
        ({"trial_timeout_s": 0}, "--trial-timeout"),
        ({"request_timeout_s": float("nan")}, "--request-timeout"),
        ({"observe": "everything"}, "--observe"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_at_once(bad, output):
    with pytest.raises(CachelabError) as error:
        Plan(**{"releases": (REPORTED,), **bad})
    assert output in str(error.value)
    assert str(error.value).endswith(".")


def test_a_workload_file_is_part_of_the_plan(tmp_path):
    path = tmp_path / "w.jsonl"
    path.write_text('{"prompt": "1 2 3 "}\n')
    plan = Plan(releases=(REPORTED,), workload=str(path))
    before = plan.as_dict()
    path.write_text('{"prompt": "1 2 4 "}\n')
    assert plan.as_dict() != before
    with pytest.raises(PlanError, match="--rounds"):
        Plan(releases=(REPORTED,), workload=str(path), rounds=2)
    with pytest.raises(PlanError, match="cannot be combined"):
        Plan(releases=(REPORTED,), workload=f"mixed+{path}")


def test_repeats_ask_several_workloads_in_turn():
    plan = Plan(releases=(REPORTED,), workload="mixed+reported+prefix_reuse")
    assert [plan.workload_of(trial.repeat) for trial in plan.trials()[::4]] == [
        "mixed", "reported", "prefix_reuse", "mixed",
    ]  # fmt: skip
    mixed = dataclasses.replace(plan, workload="mixed")
    assert plan.prompt_seed(4, 0) == mixed.prompt_seed(4, 0)
    assert plan.prompt_seed(4, 1) != mixed.prompt_seed(4, 1)


def test_a_run_from_before_recordings_can_be_resumed(tmp_path):
    plan = Plan(releases=(REPORTED,))
    older = {key: value for key, value in plan.as_dict().items() if key != "observe"}
    RunWriter.create(tmp_path / "run", {"plan": older, "seed": 0})
    RunWriter.resume(tmp_path / "run", {"plan": plan.as_dict(), "seed": 0})
    watched = dataclasses.replace(plan, observe="events").as_dict()
    with pytest.raises(CachelabError, match="another plan"):
        RunWriter.resume(tmp_path / "run", {"plan": watched, "seed": 0})


def test_prefix_reuse_has_three_rounds_by_default():
    plan = Plan(releases=(REPORTED,), workload="prefix_reuse")
    assert plan.request_count(4) == 12
    assert dataclasses.replace(plan, rounds=2).request_count(4) == 8
    assert dataclasses.replace(plan, workload="mixed").request_count(4) == 4
