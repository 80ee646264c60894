"""Columns, manifests and JSON values that do not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from damages import COMMANDS, MANIFEST, rewrite, with_value
from old_runs import make_old

from analysis.core.errors import RunError
from analysis.runs.former import FILES, LACKING, columns_of
from analysis.runs.manifest import digest_of
from analysis.runs.schema import TABLES
from analysis.runs.store import RunWriter, load_run


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
            with pytest.raises(RunError, match=f"`{name}` has no column {column}\\. Delete"):
                load_run(run)
    pq.write_table(table.append_column("colour", table["cell_id"]), file)
    with pytest.raises(RunError, match="unknown column 'colour'"):
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
def test_a_missing_request_is_one_sentence_for_every_command(
    run: Path, name: str, cachelab: Any
) -> None:
    REFUSED[name](run)
    for command in COMMANDS:
        status, stdout, stderr = cachelab(command, run)
        assert status == 1, command
        assert "Traceback" not in stdout + stderr
        assert command in ("list", "verify") or (stdout, len(stderr.splitlines())) == ("", 1)


@pytest.mark.parametrize("name", READ)
def test_optional_values_of_a_manifest_may_be_missing(run: Path, name: str, cachelab: Any) -> None:
    READ[name](run)
    for command in COMMANDS:
        status, stdout, stderr = cachelab(command, run)
        assert status == (4 if command == "check" else 0), (command, stdout, stderr)
    if name == "no run id":
        with pytest.raises(RunError, match="has no run id"):
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
