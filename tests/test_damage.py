"""Damage to a run: every command that reads runs gives what is right, or one sentence."""

from __future__ import annotations

import hashlib
import json
import os
import select
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from old_runs import make_old
from synthetic import request_row, trial_row
from trace_builder import TraceBuilder

from analysis.cli import main
from analysis.core import files
from analysis.core.errors import RunError
from analysis.runs.former import FILES, LACKING, columns_of
from analysis.runs.manifest import digest_of
from analysis.runs.schema import TABLES
from analysis.runs.store import Run, RunWriter, load_run, pack_run, trial_tables

MANIFEST = {
    "plan": {"releases": ["3.1.0"], "concurrency": [1], "repeats": 3, "model": None},
    "seed": 0,
    "command": "test",
    "run_id": "synthetic",
}
IDS = ("a", "b", "c")
A, B = (11, 12, 13, 14, 15, 16), (21, 22, 23, 24)
COMMANDS = ("plot", "check", "explain", "export", "list", "verify")


def story() -> TraceBuilder:
    """Return a story in which a rule is broken: b's page is read by a."""
    told = TraceBuilder()
    told.submit("b", B)
    told.allocate("b", 3)
    told.prefill("b")
    told.token("b", 25)
    told.submit("a", A)
    told.allocate("a", 1, 2)
    told.prefill("a")
    told.token("a", 17)
    told.done("b")
    told.done("a")
    return told


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three trials that were recorded."""
    path = tmp_path_factory.mktemp("made") / "run"
    writer = RunWriter.create(path, MANIFEST)
    for place, name in enumerate(IDS):
        requests = [
            request_row(trial_id=name, request_id=each, outcome="wrong" if each == "a" else "ok",
                        prompt_tokens=A if each == "a" else B, first_divergence=None)
            for each in ("a", "b")
        ]  # fmt: skip
        writer.write_trial(trial_row(trial_id=name, repeat=place), requests, **story().tables(name))
    return path


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture
def cachelab(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Run a command over a run, here; return its exit status, stdout and stderr."""

    def ask(command: str, run: Path) -> tuple[int, str, str]:
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        arguments = {
            "plot": ("plot", run, "--out", out / "plot.png"),
            "check": ("check", run),
            "explain": ("explain", run, "a", "--trial", "b", "--no-reference"),
            "export": ("export", run, "--out", out / "exported"),
            "list": ("runs", "list", run),
            "verify": ("runs", "verify", run),
        }[command]
        monkeypatch.setattr(sys, "argv", ["cachelab", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    return ask


def read(run: Path) -> Run:
    return load_run(run, controls=True)


def same(one: Run, other: Run) -> bool:
    return one.manifest == other.manifest and all(
        getattr(one, name).equals(getattr(other, name)) for name in TABLES
    )


def one_trial(made: Path, place: Path) -> Path:
    """Copy the run with its first trial only, which is read faster."""
    shutil.copytree(made, place)
    for name in IDS[1:]:
        shutil.rmtree(place / "trials" / name)
    return place


# -- altered bits ------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True], ids=["trials", "packed"])
def test_no_altered_bit_gives_other_data(made: Path, tmp_path: Path, packed: bool) -> None:
    run = one_trial(made, tmp_path / "run")
    run = pack_run(run, tmp_path / "packed") if packed else run
    whole = read(run)
    silent = []
    for file in files_of(run):
        content = file.read_bytes()
        for place in range(0, len(content) * 8, max(1, len(content) * 8 // 61)):
            altered = bytearray(content)
            altered[place // 8] ^= 1 << place % 8
            file.write_bytes(altered)
            try:
                if not same(read(run), whole):
                    silent.append((file.name, place))
            except RunError:
                pass
        file.write_bytes(content)
    assert silent == []


def test_an_altered_bit_of_a_run_without_checksums_is_no_other_outcome(
    made: Path, tmp_path: Path
) -> None:
    run = make_old(one_trial(made, tmp_path / "run"))
    file = run / "cells" / "a" / "requests.parquet"
    content, refused = file.read_bytes(), 0
    for place in range(0, len(content) * 8, len(content) * 8 // 199):
        altered = bytearray(content)
        altered[place // 8] ^= 1 << place % 8
        file.write_bytes(altered)
        try:
            assert set(load_run(run).requests["outcome"]) <= {"ok", "wrong"}
        except RunError:
            refused += 1
    assert refused > 20


def test_a_run_without_checksums_is_read_and_packed_with_them(
    made: Path, tmp_path: Path, cachelab: Any
) -> None:
    old = make_old(Path(shutil.copytree(made, tmp_path / "run")))
    assert same(read(old), Run(**{**vars(read(made)), "manifest": read(old).manifest}))
    status, stdout, _ = cachelab("verify", old)
    assert status == 0
    assert "before there were checksums" in stdout
    packed = pack_run(old, tmp_path / "packed")
    status, stdout, _ = cachelab("verify", packed)
    assert status == 0
    assert "all as they were written" in stdout


def test_a_run_of_an_earlier_version_can_only_be_read(made: Path, tmp_path: Path) -> None:
    for version in (1, 2):
        old = make_old(Path(shutil.copytree(made, tmp_path / f"run-{version}")), version)
        assert list(load_run(old).trials["trial_id"]) == [*IDS]
        with pytest.raises(RunError, match="an earlier version, which can only be read"):
            RunWriter.resume(old, MANIFEST)


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place % len(content)] ^= 4
    file.write_bytes(content)


# -- what is not damaged, and what is none of the run's ----------------------------------------


def as_another_user(action: Callable[[], Any]) -> str:
    """Return the error that an action raises in a child of another user; "" if it raises none."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgid(65534)
            os.setuid(65534)
            action()
            said = ""
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        in_time = select.select([pipe], [], [], 60)[0]
        if not in_time:
            os.kill(child, signal.SIGKILL)
        said = pipe.read().decode()
    os.waitpid(child, 0)
    assert in_time
    return said


@pytest.mark.parametrize(
    ("closed", "mode"),
    [("manifest.json", 0o600), ("trials", 0o700), ("trials/b", 0o700),
     ("trials/b/requests.parquet", 0o600), ("trials/b/checksums.json", 0o600), ("", 0o700)],
)  # fmt: skip
def test_what_another_user_may_not_read_is_said_to_be_theirs(
    run: Path, closed: str, mode: int
) -> None:
    for place in [run, *run.parents]:
        if place == Path("/tmp"):
            break
        place.chmod(place.stat().st_mode | 0o055)
    (run / closed).chmod(mode)
    said = as_another_user(lambda: load_run(run))
    assert said.startswith("RunError:")
    assert f"{run / closed} may not be read by you, for it belongs to root" in said
    assert "chmod" in said
    assert "delete" not in said
    assert "damaged" not in said


def test_a_file_of_ones_own_that_is_closed_is_said_to_be_so() -> None:
    error = files.unreadable(Path(__file__), PermissionError(13, "Permission denied"))
    assert "although it is yours" in str(error)
    assert "delete" not in str(error)


@pytest.mark.parametrize("what", ["folder", "file", "empty"])
def test_what_is_none_of_the_runs_is_never_to_be_deleted(
    run: Path, what: str, cachelab: Any
) -> None:
    place = run / "trials" / "notes"
    if what == "file":
        place.write_text("mine")
    else:
        place.mkdir()
        if what == "folder":
            (place / "thesis.txt").write_text("years of work")
    for command in COMMANDS:
        status, stdout, stderr = cachelab(command, run)
        said = stdout + stderr
        assert status == 1, command
        assert f"{place} is no trial of the run" in said
        assert "move it out of" in said
        assert "delete" not in said
        assert "damaged" not in said
    # A hidden one is an editor's or a file manager's.
    place.rename(run / "trials" / ".notes")
    assert len(load_run(run).trials) == 3


def test_a_file_of_anothers_in_a_damaged_trial_is_to_be_kept(run: Path) -> None:
    directory = run / "trials" / "b"
    (directory / "thesis.txt").write_text("years of work")
    assert len(load_run(run).trials) == 3
    flip(directory / "requests.parquet", 500)
    with pytest.raises(
        RunError, match=rf"damaged: move {directory}/thesis\.txt elsewhere, delete {directory} and"
    ):
        load_run(run)


def test_a_pipe_in_place_of_a_file_is_not_waited_for(run: Path) -> None:
    for name in ("trials/b/requests.parquet", "manifest.json"):
        (run / name).unlink()
        os.mkfifo(run / name)
        with pytest.raises(RunError, match="is no file, though one belongs there"):
            load_run(run)


# -- trials that are there twice, or are another's ----------------------------------------------


def rewrite(file: Path, change: Callable[[Any], Any]) -> None:
    """Change a table and its checksum, as one who knows of it might."""
    pq.write_table(change(pq.read_table(file)), file)
    sums = file.with_name("checksums.json")
    if sums.exists():
        listed = json.loads(sums.read_text())
        listed["files"][file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
        sums.write_text(json.dumps(listed))


def doubled(table: Any) -> Any:
    import pyarrow as pa

    return pa.concat_tables([table, table])


def copied_trial(run: Path) -> None:
    shutil.copytree(run / "trials" / "a", run / "trials" / "d")


def renamed_trial(run: Path) -> None:
    (run / "trials" / "a").rename(run / "trials" / "d")


def copied_table(run: Path) -> None:
    shutil.copyfile(run / "trials/a/requests.parquet", run / "trials/b/requests.parquet")


def copied_into_old(run: Path) -> None:
    make_old(run)
    shutil.copyfile(run / "cells/a/requests.parquet", run / "cells/b/requests.parquet")


def second_row(run: Path) -> None:
    rewrite(run / "trials" / "a" / "trials.parquet", doubled)


def no_row(run: Path) -> None:
    rewrite(run / "trials" / "a" / "trials.parquet", lambda table: table[:0])


def packed_twice(run: Path) -> None:
    packed = pack_run(run, run.with_name("packed"))
    shutil.rmtree(run)
    packed.rename(run)
    # An old packed run is known by its tables.
    rewrite(make_old(run) / "cells.parquet", doubled)


def strange_request(run: Path) -> None:
    packed = pack_run(run, run.with_name("packed"))
    shutil.rmtree(run)
    packed.rename(run)
    rewrite(run / "trials.parquet", lambda table: table[:2])


def another_runs(run: Path) -> None:
    shutil.rmtree(run / "trials" / "a")
    manifest = {**MANIFEST, "run_id": "elsewhere"}
    writer = RunWriter.create(run.with_name("other"), manifest)
    row = trial_row(trial_id="a", run_id="elsewhere")
    writer.write_trial(row, [request_row(trial_id="a")]).rename(run / "trials" / "a")


COPIES = (copied_trial, renamed_trial, copied_table, copied_into_old, second_row, no_row,
          packed_twice, strange_request, another_runs)  # fmt: skip


@pytest.mark.parametrize("damage", COPIES)
def test_a_trial_is_never_counted_twice_nor_as_another(
    run: Path, damage: Callable[[Path], None], cachelab: Any
) -> None:
    damage(run)
    for command in COMMANDS:
        status, stdout, stderr = cachelab(command, run)
        assert status == 1, command
        assert "Traceback" not in stdout + stderr
        assert command in ("list", "verify") or (stdout, len(stderr.splitlines())) == ("", 1)
    with pytest.raises(RunError):
        load_run(run)
    with pytest.raises(RunError):  # what reads trial by trial
        list(trial_tables(run, ["trials", "requests"]))


# -- columns -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLES)
def test_only_columns_that_came_later_may_be_missing(run: Path, name: str, tmp_path: Path) -> None:
    file = run / "trials" / "a" / f"{name}.parquet"
    if not file.exists():
        pq.write_table(TABLES[name].empty_table(), file)
    make_old(run)
    file = run / "cells" / "a" / f"{FILES.get(name, name)}.parquet"
    table = pq.read_table(file)
    for column in table.column_names:
        pq.write_table(table.drop_columns([column]), file)
        if column in LACKING[1].get(name, ()):
            assert len(load_run(run).trials) == 3
        else:
            with pytest.raises(RunError, match=f"`{name}` has no column {column}; delete"):
                load_run(run)
    pq.write_table(table.append_column("colour", table["cell_id"]), file)
    with pytest.raises(RunError, match="column 'colour', which is not declared"):
        load_run(run)
    assert set(LACKING[1].get(name, ())) <= set(columns_of(name))
    assert LACKING[max(LACKING)] == {}


# -- manifests, and values that are no JSON ----------------------------------------------------


def with_manifest(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        make_old(run)
        file = run / "manifest.json"
        file.write_text(json.dumps(change(json.loads(file.read_text()))))

    return damage


def signed(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Change a manifest and its checksum."""

    def damage(run: Path) -> None:
        file = run / "manifest.json"
        manifest = change(json.loads(file.read_text()))
        manifest.pop("checksum", None)
        file.write_text(json.dumps({**manifest, "checksum": digest_of(manifest)}))

    return damage


def nested(levels: int) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        make_old(run)
        manifest = json.loads((run / "manifest.json").read_text())
        text = json.dumps({**manifest, "deep": "HERE"})
        (run / "manifest.json").write_text(text.replace('"HERE"', "[" * levels + "]" * levels))

    return damage


def trials_a_file(run: Path) -> None:
    shutil.rmtree(run / "trials")
    (run / "trials").write_text("mine")


def no_trials(run: Path) -> None:
    shutil.rmtree(run / "trials")


def manifest_a_directory(run: Path) -> None:
    (run / "manifest.json").unlink()
    (run / "manifest.json").mkdir()


def no_checksums(run: Path) -> None:
    (run / "trials" / "b" / "checksums.json").unlink()


def broken_checksums(run: Path) -> None:
    (run / "trials" / "b" / "checksums.json").write_text('{"files": [1]}')


def another_table(run: Path) -> None:
    shutil.copyfile(run / "trials/b/trials.parquet", run / "trials/b/findings.parquet")


REFUSED: dict[str, Callable[[Path], None]] = {
    "a list": with_manifest(lambda manifest: [manifest]),
    "no version": with_manifest(lambda m: {k: m[k] for k in m if k != "schema_version"}),
    **{
        f"version {version!r}": with_manifest(lambda m, v=version: {**m, "schema_version": v})
        for version in (0, 4, 99, "1", True, 1.0, None, [1], {"x": 1})
    },
    "version 2, no checksum": with_manifest(lambda m: {**m, "schema_version": 2}),
    "plan a list": with_manifest(lambda m: {**m, "plan": [1]}),
    "model a number": with_manifest(lambda m: {**m, "plan": {"model": 3}}),
    **{f"{levels} deep": nested(levels) for levels in (60, 400, 900, 5_000, 200_000)},
    **{f.__name__: f for f in (trials_a_file, no_trials, manifest_a_directory, no_checksums,
                               broken_checksums, another_table)},
}  # fmt: skip
READ: dict[str, Callable[[Path], None]] = {
    "no run id": signed(lambda m: {k: m[k] for k in m if k != "run_id"}),
    "no plan": with_manifest(lambda m: {k: m[k] for k in m if k != "plan"}),
    "plan null": with_manifest(lambda m: {**m, "plan": None}),
    "no model": with_manifest(lambda m: {**m, "plan": {"releases": ["3.1.0"]}}),
    "a plan of other things": with_manifest(
        lambda m: {**m, "plan": {"releases": 3, "pages": "x", "treatments": [1], "repeats": []}}
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_run_holds_is_one_sentence_for_every_command(
    run: Path, name: str, cachelab: Any
) -> None:
    REFUSED[name](run)
    for command in COMMANDS:
        status, stdout, stderr = cachelab(command, run)
        assert status == 1, command
        assert "Traceback" not in stdout + stderr
        assert command in ("list", "verify") or (stdout, len(stderr.splitlines())) == ("", 1)


@pytest.mark.parametrize("name", READ)
def test_what_a_manifest_need_not_say_is_no_trouble(run: Path, name: str, cachelab: Any) -> None:
    READ[name](run)
    for command in COMMANDS:
        status, stdout, stderr = cachelab(command, run)
        assert status == (4 if command == "check" else 0), (command, stdout, stderr)
    if name == "no run id":
        with pytest.raises(RunError, match="lacks the run's id"):
            RunWriter.resume(run, MANIFEST)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *((c, v) for c in ("trie", "holders") for v in ("{", "[[1]]", "3", "[" * 100_000, None)),
        ("states", None),
    ],
)
def test_broken_values_of_snapshots_are_one_sentence(
    run: Path, column: str, value: str | None, cachelab: Any
) -> None:
    make_old(run)
    rewrite(run / "cells" / "b" / "snapshots.parquet", lambda t: with_value(t, column, value))
    for command in ("check", "explain"):
        status, stdout, stderr = cachelab(command, run)
        assert (status, stdout, len(stderr.splitlines())) == (1, "", 1), (command, stderr)


def with_value(table: Any, column: str, value: Any) -> Any:
    import pyarrow as pa

    field = table.schema.field(column)
    values = pa.array([value] * table.num_rows, type=field.type)
    return table.set_column(table.column_names.index(column), field, values)


@pytest.mark.parametrize("value", ["{", "[1]", "3"])
def test_broken_options_and_faults_are_one_sentence(run: Path, value: str, cachelab: Any) -> None:
    from analysis.sweep.rerun_solo import rerun_wrong_prompts

    def change(table: Any) -> Any:
        table = with_value(table, "options", value)
        table = with_value(table, "struck", value)
        return with_value(table, "treatments", ["fault:seq-len-short"])

    whole = Path(shutil.copytree(run, run.with_name("whole")))
    rewrite(make_old(run) / "cells" / "a" / "cells.parquet", change)
    status, stdout, stderr = cachelab("check", run)
    assert (status, stdout, len(stderr.splitlines())) == (1, "", 1), stderr
    needed = {"device_ids": [], "hip_target": None, "serialise_invocations": False,
              "request_timeout_s": 1.0, "max_new_tokens": 4, "batch_sizes": [4], "model": None,
              "device": "local-task"}  # fmt: skip
    rewrite(whole / "trials/a/trials.parquet", lambda table: with_value(table, "options", value))
    loaded = load_run(whole, controls=True)
    loaded.manifest["plan"].update(needed)
    with pytest.raises(RunError, match="options of a"):
        rerun_wrong_prompts(loaded)


# -- damage drawn by chance --------------------------------------------------------------------


def files_of(run: Path) -> list[Path]:
    return sorted(path for path in run.rglob("*") if path.is_file() and not path.is_symlink())


def damaged(run: Path, kind: str, number: int, other: int) -> bool:
    """Do one damage; return whether whole trials may be gone, as in a run that is not finished."""
    places = [*files_of(run), *sorted((run / "trials").glob("*"))] if run.is_dir() else []
    if not places:
        return False
    place, target = places[number % len(places)], places[other % len(places)]
    whole_trial = place.is_dir()
    if kind == "delete":
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    elif kind == "truncate" and place.is_file():
        place.write_bytes(place.read_bytes()[: other % max(1, place.stat().st_size)])
    elif kind == "flip" and place.is_file() and place.stat().st_size:
        flip(place, other)
    elif kind == "rename":
        place.rename(place.with_name(f"{place.name}{other % 3}"))
    elif kind == "hide":
        place.rename(place.with_name(f".{place.name}"))
    elif kind == "copy" and place.is_file() and target.is_file() and place != target:
        shutil.copyfile(place, target)
    elif kind == "copy" and place.is_dir():
        shutil.copytree(place, place.with_name(f"{place.name}{other % 3}"), dirs_exist_ok=True)
    elif kind == "directory" and place.is_file():
        place.unlink()
        place.mkdir()
    elif kind == "file" and place.is_dir():
        shutil.rmtree(place)
        place.write_text("")
    elif kind == "socket" and place.is_file():
        place.unlink()
        place.symlink_to(place)  # a link to itself
    return whole_trial and kind in ("delete", "hide", "rename")


KINDS = ("delete", "truncate", "flip", "rename", "hide", "copy", "directory", "file", "socket")


@given(
    layout=st.sampled_from(("trials", "packed", "old")),
    done=st.lists(
        st.tuples(st.sampled_from(KINDS), st.integers(0, 10_000), st.integers(0, 100_000)),
        min_size=1,
        max_size=3,
    ),
    command=st.sampled_from(COMMANDS),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_never_gives_other_data_nor_a_traceback(
    made: Path,
    tmp_path: Path,
    cachelab: Any,
    layout: str,
    done: list[tuple[str, int, int]],
    command: str,
) -> None:
    run = tmp_path / "run"
    shutil.rmtree(run, ignore_errors=True)
    if layout == "packed":
        pack_run(made, run)
    else:
        shutil.copytree(made, run)
    if layout == "old":
        make_old(run)
    whole = read(run)
    partial = sum(damaged(run, *each) for each in done) > 0
    try:
        now = read(run)
    except RunError:
        status, stdout, stderr = cachelab(command, run)
        assert "Traceback" not in stdout + stderr
        assert len(stderr.splitlines()) <= 1
        # Commands that need not read what is damaged may give what is right of the rest.
        assert status != 0 or command == "list"
        return
    if layout == "old":  # other data cannot be told
        assert "Traceback" not in "".join(cachelab(command, run)[1:])
        return
    trials = set(now.trials["trial_id"])
    assert trials == set(IDS) or partial
    assert now.manifest == whole.manifest
    for name in TABLES:
        frame = getattr(whole, name)
        expected = frame[frame["trial_id"].isin(trials)].reset_index(drop=True)
        pd.testing.assert_frame_equal(getattr(now, name), expected)
    status, stdout, stderr = cachelab(command, run)
    assert "Traceback" not in stdout + stderr
    assert status == (4 if command == "check" else 0) or len(trials) < 3
