"""Tables of a run on disk: what is written is read back, and what does not fit is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from old_runs import make_old
from support import ROOT
from synthetic import request_row, trial_row

from analysis.core.errors import RunError
from analysis.runs.store import (
    TABLES,
    RunWriter,
    describe,
    load_run,
    new_manifest,
    to_frame,
    to_table,
)

MANIFEST = {"plan": {"releases": ("3.1.0",)}, "seed": 0, "command": "test"}


def values_of(kind: pa.DataType) -> st.SearchStrategy[Any]:
    if pa.types.is_list(kind):
        return st.lists(values_of(kind.value_type), max_size=4)
    if kind == pa.int32():
        return st.integers(-(2**31), 2**31 - 1)
    if pa.types.is_integer(kind):
        return st.integers(-(2**63), 2**63 - 1)
    if pa.types.is_struct(kind):
        return st.fixed_dictionaries({part.name: st.none() | values_of(part.type) for part in kind})
    if pa.types.is_floating(kind):
        return st.floats(allow_nan=False)
    return st.booleans() if pa.types.is_boolean(kind) else st.text(max_size=8)


CHOICES = {
    ("requests", "outcome"): ["ok", "wrong", "engine_died"],
    ("events", "kind"): ["acquire", "evict", "done"],
    ("snapshots", "moment"): ["before", "asked"],
    ("trials", "status"): ["ok", "hung"],
}


def rows_of(name: str, fixed: dict[str, Any]) -> st.SearchStrategy[list[dict[str, Any]]]:
    columns = {}
    for field in TABLES[name]:
        values = values_of(field.type)
        columns[field.name] = st.none() | values if field.nullable else values
    columns.update({key: st.just(value) for key, value in fixed.items()})
    for (table, column), choices in CHOICES.items():
        if table == name:
            columns[column] = st.sampled_from(choices)
    return st.lists(st.fixed_dictionaries(columns), max_size=4)


def plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
    def value(item: Any) -> Any:
        if isinstance(item, tuple | list):
            return [value(part) for part in item]
        if isinstance(item, dict):
            return {name: value(part) for name, part in item.items()}
        if pd.isna(item):
            return None
        return item.item() if isinstance(item, np.generic) else item

    return [{k: value(v) for k, v in row.items()} for row in frame.to_dict("records")]


@given(data=st.data())
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_what_is_written_comes_back(tmp_path: Path, data: st.DataObject) -> None:
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    writer = RunWriter.create(tmp_path / "run", MANIFEST)
    written = {name: data.draw(rows_of(name, {"trial_id": "c"}), name) for name in TABLES}
    written["trials"] = [trial_row(status_detail=data.draw(st.none() | st.text()))]
    others = {n: rows for n, rows in written.items() if n not in ("trials", "requests")}
    writer.write_trial(written["trials"][0], written["requests"], **others)
    run = load_run(tmp_path / "run")
    for name, rows in written.items():
        frame = getattr(run, name)
        assert list(frame.columns) == TABLES[name].names
        complete = [{column: row.get(column) for column in TABLES[name].names} for row in rows]
        assert plain(frame) == complete


@pytest.mark.parametrize("name", TABLES)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_a_frame_has_the_rows_of_its_table_for_any_split(name: str, data: st.DataObject) -> None:
    rows = data.draw(rows_of(name, {"trial_id": "c"}))
    table = to_table(name, rows)
    cut = data.draw(st.integers(0, len(rows)))
    pieces = pa.concat_tables([table[:cut], table[cut:]])
    for start, whole in ((0, table), (0, pieces), (cut, table[cut:])):
        frame = to_frame(name, whole)
        assert plain(frame) == rows[start:]
        for field in TABLES[name]:
            if pa.types.is_list(field.type):
                assert {type(value) for value in frame[field.name]} <= {tuple, type(None)}
                if not pa.types.is_nested(field.type.value_type):
                    assert len(set(frame[field.name])) <= len(frame)  # each can be hashed


def test_lists_of_one_length_stay_tuples() -> None:
    row = {"seq": 0, "trial_id": "c", "t_s": 0.0, "kind": "free", "pages": [1, 2]}
    frame = to_frame("events", [row, {**row, "seq": 1, "pages": [3, 4]}])
    assert list(frame["pages"]) == [(1, 2), (3, 4)]
    assert to_frame("events", [{**row, "pages": []}])["pages"][0] == ()


def event_table(**changes: Any) -> pa.Table:
    row = {"seq": 0, "trial_id": "c", "t_s": 0.0, "kind": "free", "pages": [1, 2]}
    return to_table("events", [{**row, **changes}])


def test_arrow_tables_are_written_as_rows_are(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path, MANIFEST)
    bare = event_table().replace_schema_metadata(None)
    none = TABLES["invocations"].empty_table()
    target = writer.write_trial(trial_row(), [request_row()], events=bare, invocations=none)
    assert plain(load_run(tmp_path).events) == event_table().to_pylist()
    assert not (target / "invocations.parquet").exists()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (event_table().drop_columns("stack"), "has no column stack"),
        (
            event_table().append_column("x", pa.array([1])),
            "has an unknown column 'x'",
        ),
        (
            event_table().rename_columns(["colour", *TABLES["events"].names[1:]]),
            "has an unknown column 'colour'",
        ),
        (event_table().set_column(0, "seq", pa.array([0], pa.int8())), "is int8, not int64"),
        (event_table(trial_id="other"), "belongs to another trial"),
        (event_table().set_column(6, "kind", pa.array(["dance"])), "one of submitted"),
        (
            event_table().set_column(0, "seq", pa.array([None], pa.int64())),
            "seq` is missing in a row",
        ),
    ],
)
def test_an_arrow_table_that_does_not_fit_writes_nothing(
    tmp_path: Path, table: pa.Table, message: str
) -> None:
    writer = RunWriter.create(tmp_path, MANIFEST)
    with pytest.raises(RunError, match=message):
        writer.write_trial(trial_row(), [request_row()], events=table)
    assert list((tmp_path / "trials").iterdir()) == []


def test_a_run_of_before_there_were_recordings_still_loads(tmp_path: Path) -> None:
    # Packed, and written when some of today's columns did not exist.
    reference = tmp_path / "reference"
    shutil.copytree(ROOT / "data" / "reference", reference)
    make_old(reference)
    for name, later in (("cells", ["observed", "struck"]), ("requests", ["unchecked"])):
        table = pq.read_table(reference / f"{name}.parquet").drop_columns(later)
        pq.write_table(table, reference / f"{name}.parquet")
    run = load_run(reference)
    assert list(run.trials.columns) == TABLES["trials"].names
    assert run.trials["recording"].isna().all()
    assert len(run.requests) == pq.read_metadata(reference / "requests.parquet").num_rows
    assert all(isinstance(tokens, tuple) for tokens in run.requests["prompt_tokens"])
    assert run.events.empty
    assert list(run.events.columns) == TABLES["events"].names


def test_invocations_of_before_their_likeliest_tokens_were_noted_still_load(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path, MANIFEST)
    row = {
        "invocation_id": 0,
        "trial_id": "c",
        "phase": "decode",
        "rows": 1,
        "top_tokens": [[5, 3]],
    }
    file = writer.write_trial(trial_row(), [], invocations=[row]) / "invocations.parquet"
    assert load_run(tmp_path).invocations["top_tokens"][0] == ((5, 3),)
    make_old(tmp_path)
    file = tmp_path / "cells" / "c" / "flights.parquet"
    old = pq.read_table(file).drop_columns(["top_tokens", "top_logprobs"])
    pq.write_table(old, file)
    invocations = load_run(tmp_path).invocations
    assert list(invocations.columns) == TABLES["invocations"].names
    assert invocations["top_tokens"][0] is None
    assert invocations["invocation_id"][0] == 0


def test_many_trials_come_back_in_the_order_of_their_ids(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path, MANIFEST)
    for name in ("b", "a", "c"):
        requests = [request_row(trial_id=name, request_id=str(i)) for i in range(3)]
        writer.write_trial(trial_row(trial_id=name), requests)
    run = load_run(tmp_path)
    assert list(run.trials["trial_id"]) == ["a", "b", "c"]
    assert list(run.requests["trial_id"]) == [name for name in "abc" for _ in range(3)]
    assert run.manifest["plan"] == {"releases": ["3.1.0"]}
    assert run.invocations.empty
    assert list(run.findings.columns) == TABLES["findings"].names


def test_types_of_a_frame_do_not_depend_on_its_rows() -> None:
    for rows in ([], [request_row()], [request_row(first_divergence=3)]):
        frame = to_frame("requests", rows)
        assert str(frame["first_divergence"].dtype) == "Int64"
        assert frame["latency_s"].dtype == float
        assert frame["tokens"].dtype == object


def test_a_trial_without_requests_is_a_trial(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path, MANIFEST)
    writer.write_trial(trial_row(status="crashed", status_detail="It crashed.", exit_signal=11), [])
    run = load_run(tmp_path)
    assert run.requests.empty
    assert run.trials["exit_signal"][0] == 11


@pytest.mark.parametrize(
    ("trial", "requests", "message"),
    [
        ({"status": "fine"}, [], "`trials.status` must be one of ok, engine_died"),
        ({"colour": 1}, [], "`trials` has no column colour"),
        ({"release": None}, [], "`trials.release` is missing in a row"),
        ({"concurrency": "four"}, [], "`trials.concurrency` is not int64"),
        ({"trial_id": "../up"}, [], "cannot name a directory"),
        ({}, [request_row(trial_id="other")], "belongs to another trial"),
        ({}, [request_row(outcome="great")], "`requests.outcome` must be one of"),
    ],
)
def test_rows_that_do_not_fit_write_nothing(
    tmp_path: Path, trial: dict[str, Any], requests: list[dict[str, Any]], message: str
) -> None:
    writer = RunWriter.create(tmp_path, MANIFEST)
    with pytest.raises(RunError, match=message):
        writer.write_trial(trial_row(**trial), requests)
    assert list((tmp_path / "trials").iterdir()) == []


def test_a_finished_trial_is_never_written_again(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path, MANIFEST)
    writer.write_trial(trial_row(), [request_row()])
    with pytest.raises(RunError, match="A finished trial is never written again"):
        writer.write_trial(trial_row(), [])
    assert len(load_run(tmp_path).requests) == 1
    assert [path.name for path in (tmp_path / "trials").iterdir()] == ["c"]


def test_an_unknown_table_is_refused() -> None:
    with pytest.raises(RunError, match="Unknown table `fights`"):
        to_table("fights", [])


def test_every_column_says_what_it_means() -> None:
    for name in TABLES:
        described = describe(name)
        assert (described["meaning"].str.len() > 0).all()
        timed = described[described["column"].str.endswith("_s")]
        assert (timed["unit"] == "s").all()


def test_a_manifest_has_the_origin_of_a_run() -> None:
    manifest = new_manifest(["cachelab", "sweep"], 3, plan={"a": 1})
    assert manifest["command"] == "cachelab sweep"
    assert (manifest["seed"], manifest["plan"]) == (3, {"a": 1})
    assert manifest["machine"]["cores"] >= 1
    assert manifest["versions"]["pyarrow"] == pa.__version__
    json.dumps(manifest)
