"""The sanitizer over the tables of a run, and the command `check`."""

from __future__ import annotations

import json
import sys

import pytest
from checker_traces import (
    ALARM,
    FAULT,
    ILL,
    MANIFEST,
    WELL,
    A,
    arrow,
    found,
    length_short,
    well,
    what,
)
from synthetic import request_row, trial_row
from trace_builder import TraceBuilder

from analysis.cli import main
from analysis.core.errors import RunError
from analysis.runs.packing import pack_runs
from analysis.runs.store import RunWriter, load_run, trial_tables
from analysis.runs.tables import to_table
from analysis.sanitizer import check_run, check_tables
from analysis.sanitizer.trace import Event, Invocation


@pytest.mark.parametrize("story", [WELL, ILL], ids=["well", "ill"])
def test_tables_give_the_same(story):
    assert what(check_tables(arrow(story), story.stride)) == what(story.check(close=False))


def test_tables_without_snapshots_or_events_are_not_checked():
    tables = arrow(WELL)
    for name in ("snapshots", "events"):
        assert check_tables({k: t for k, t in tables.items() if k != name}, 4) is None
    assert check_tables({**tables, "snapshots": tables["snapshots"][:0]}, 4) is None


def test_snapshots_without_a_place_are_an_error():
    rows = WELL.tables()
    for row in rows["snapshots"]:
        row["seq"] = None
    with pytest.raises(RunError, match="Record the run again"):
        check_tables({name: to_table(name, table) for name, table in rows.items()}, 4)


@pytest.mark.parametrize("lacking", ["seq", "end_seq", "request_ids"])
def test_invocations_without_a_place_or_requests_are_an_error(lacking):
    rows = WELL.tables()
    for row in rows["invocations"]:
        row[lacking] = None
    with pytest.raises(RunError, match="no sequence number or no requests"):
        check_tables({name: to_table(name, table) for name, table in rows.items()}, 4)


def test_events_alone_are_checked_too():
    tables = arrow(WELL)
    del tables["invocations"]
    findings = check_tables(tables, WELL.stride)
    assert findings.invocations == 0
    assert findings.events == sum(isinstance(item, Event) for _, item in WELL.items)


CONFLICTS = pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"misfiled": [1]}, "wrong-key"),
        ({"free": [0, 2, 2, 3, 4, 5, 6, 7]}, "two-states"),
        ({"free": [0, 1, 2, 3, 4, 5, 6, 7]}, "two-states"),
    ],
    ids=["misfiled", "twice free", "free and cached"],
)


def conflicting(changes) -> TraceBuilder:
    story = TraceBuilder()
    story.submit("a", A)
    story.allocate("a", 1, 2)
    story.prefill("a")
    story.publish("a", A, [1])
    story.close().snapshot(**changes)
    return story


@CONFLICTS
def test_conflicts_of_a_live_snapshot_are_reported(changes, cause):
    assert conflicting(changes).check().group("state-divergence", cause) is not None


@CONFLICTS
def test_conflicts_of_a_recorded_snapshot_are_reported(changes, cause):
    assert check_tables(arrow(conflicting(changes)), 4).group("state-divergence", cause) is not None


@pytest.fixture
def write_run(tmp_path):
    """Write a run: trial id -> its story (None if nothing was recorded) and changes of its row."""

    def write(**trials):
        writer = RunWriter.create(tmp_path / "run", MANIFEST)
        for trial_id, (story, changes) in trials.items():
            tables = {} if story is None else story.tables(trial_id)
            writer.write_trial(
                trial_row(trial_id=trial_id, **changes), [request_row(trial_id=trial_id)], **tables
            )
        return tmp_path / "run"

    return write


@pytest.mark.parametrize("packed", [False, True], ids=["trials", "packed"])
def test_a_run_has_the_message_of_the_stream(write_run, tmp_path, packed):
    run = write_run(c1=(ILL, {}), c2=(WELL, {}), c3=(ILL, {"release": "3.9.0"}), c4=(None, {}))
    if packed:
        run = pack_runs([run], tmp_path / "packed")
    output = {}
    settings = check_run(
        run, on_trial=lambda trial, f: output.update({trial: None if f is None else f.rows(trial)})
    )
    assert output == {"c1": found(ILL, "c1"), "c2": [], "c3": found(ILL, "c3"), "c4": None}
    old, new = settings
    assert (old.name, new.name) == ("3.1.0 none", "3.9.0 none")
    assert (old.trials, old.unobserved, new.trials, new.unobserved) == (3, 1, 1, 0)
    ill, well_ = ILL.check(close=False), WELL.check(close=False)
    assert old.events == ill.events + well_.events
    assert old.invocations == ill.invocations + well_.invocations
    assert new.invocations == ill.invocations
    assert list(new.groups) == [(group.rule, group.cause) for group in ill.groups]
    for members in old.groups.values():
        assert [trial for trial, _ in members] == ["c1"]
    assert [old.void, new.void] == [False, False]  # no control was asked for


def test_control_trials_are_left_out_of_a_run_unless_asked_for(write_run):
    run = write_run(c=(WELL, {}), control=(length_short(), {"treatments": FAULT}))
    whole, plain = load_run(run, controls=True), load_run(run)
    for name in ("trials", "requests", "events", "invocations", "snapshots"):
        assert set(getattr(whole, name)["trial_id"]) == {"c", "control"}
        assert set(getattr(plain, name)["trial_id"]) == {"c"}
        assert list(getattr(plain, name).index) == list(range(len(getattr(plain, name))))
    assert {trial for trial, _ in trial_tables(run, ["events"])} == {"c", "control"}


@pytest.mark.parametrize(
    ("control", "alarms"), [(length_short(), 1), (WELL, 0), (ILL, 0), (None, 0)]
)
def test_a_run_with_a_silent_control_is_invalid(write_run, control, alarms):
    run = write_run(
        c=(WELL, {}),
        treated=(WELL, {"treatments": ["zero-pages"]}),
        trie=(WELL, {"prefix_sharing": "trie"}),
        control=(control, {"treatments": FAULT, "injection": ALARM}),
    )
    plain, treated, trie = check_run(run)
    assert (plain.controls, plain.alarms, plain.void) == (1, alarms, not alarms)
    assert not plain.groups  # what a planted fault broke is no finding
    assert plain.trials == 1
    # A control is one of its own treatments only: these may blind the sanitizer.
    for other in (treated, trie):
        assert (other.controls, other.void) == (0, False)


def test_a_control_belongs_to_its_treated_arm(write_run):
    names = ["lock-cache"]
    run = write_run(
        c=(WELL, {}),
        treated=(WELL, {"treatments": names}),
        control=(WELL, {"treatments": [*names, *FAULT]}),
    )
    plain, treated = check_run(run)
    assert (plain.controls, plain.void) == (0, False)
    assert (treated.controls, treated.alarms, treated.void) == (1, 0, True)


@pytest.mark.parametrize(
    ("injected", "counts"),
    [
        (None, (1, 1, 0)),
        ({"request_id": "a"}, (1, 1, 0)),
        ({"request_id": "b"}, (1, 0, 0)),
        ({"page": 77}, (1, 0, 0)),
        ("nothing", (0, 0, 1)),
    ],
)
def test_a_finding_must_name_the_injected_fault(write_run, injected, counts):
    kept = {"injected": None if injected is None else injected != "nothing"}
    kept["injection"] = ALARM | injected if isinstance(injected, dict) else None
    run = write_run(c=(WELL, {}), control=(length_short(), {"treatments": FAULT, **kept}))
    (checked,) = check_run(run)
    assert (checked.controls, checked.alarms, checked.idle) == counts


def test_every_control_must_be_detected(write_run):
    run = write_run(
        c=(WELL, {}),
        one=(length_short(), {"treatments": FAULT}),
        two=(WELL, {"treatments": FAULT, "repeat": 1}),
    )
    (checked,) = check_run(run)
    assert (checked.controls, checked.alarms, checked.void) == (2, 1, True)


@pytest.fixture
def cachelab(monkeypatch, capsys):
    """Run the command line here; return its exit status, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["cachelab", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    return run


CONTROL = (length_short(), {"treatments": FAULT})


def test_a_clean_run_exits_with_0(write_run, cachelab):
    status, stdout, stderr = cachelab("check", write_run(c=(WELL, {}), control=CONTROL))
    assert (status, stderr) == (0, "")
    assert "3.1.0 none: 1 of 1 trials checked" in stdout
    assert "1 of 1 planted faults found" in stdout
    assert "No rule was broken." in stdout


def test_what_was_not_checked_is_undecided_and_exits_with_3(tmp_path, cachelab):
    story = well()
    story.submit("c", A)
    number = max(i.invocation_id for _, i in story.items if isinstance(i, Invocation)) + 1
    story.event("invocation_unfinished", value=number, phase="prefill", request_ids=["c"])
    story.done("c")
    writer = RunWriter.create(tmp_path / "run", MANIFEST)
    requests = [request_row(trial_id="one", request_id="c", outcome="wrong")]
    writer.write_trial(trial_row(trial_id="one"), requests, **story.tables("one"))
    (checked,) = check_run(tmp_path / "run")
    assert not checked.complete
    assert checked.unchecked_wrong == ["one/c"]
    status, stdout, stderr = cachelab("check", tmp_path / "run")
    assert status == 3
    assert "No rule was broken in what was checked." in stdout
    assert "Unchecked: 1 invocation of one/c (1)" in stdout
    assert "Of these, one/c had wrong answers." in stdout
    assert "undecided" in stderr


def test_a_broken_rule_exits_with_4_and_is_shown(write_run, cachelab):
    status, stdout, stderr = cachelab("check", write_run(c=(ILL, {}), other=(WELL, {})))
    assert (status, stderr) == (4, "")
    assert "no fault was planted as a control" in stdout
    for finding in ILL.check(close=False):
        assert f"{finding.rule} ({finding.cause})" in stdout
        assert finding.text in stdout


def test_a_silent_control_exits_with_3_for_any_findings(write_run, cachelab):
    run = write_run(c=(ILL, {}), control=(WELL, {"treatments": FAULT}))
    status, stdout, stderr = cachelab("check", run)
    assert status == 3
    assert "0 of 1 planted faults found (fault:seq-len-short): VOID" in stdout
    assert len(stderr.splitlines()) == 1


def test_json_is_one_finding_a_line(write_run, cachelab):
    run = write_run(c=(ILL, {}), d=(WELL, {}), control=CONTROL)
    status, stdout, _ = cachelab("check", run, "--json")
    assert status == 4
    assert [json.loads(line) for line in stdout.splitlines()] == found(ILL, "c")


@pytest.mark.parametrize(
    "place", ["nothing", "no run", "no recordings", "no events", "only controls"]
)
def test_what_cannot_be_checked_is_one_sentence(write_run, cachelab, tmp_path, place):
    if place == "no recordings":
        path = write_run(c=(None, {}), d=(None, {}))
    elif place == "only controls":
        path = write_run(control=CONTROL)
    elif place == "no events":
        path = write_run(c=(None, {}), control=(None, {"treatments": FAULT}))
    else:
        path = tmp_path / "place"
    if place == "no run":
        path.mkdir()
        (path / "letter.txt").write_text("mine")
    status, stdout, stderr = cachelab("check", path)
    assert (status, stdout) == (1, "")
    assert len(stderr.splitlines()) == 1
    assert str(path) in stderr
