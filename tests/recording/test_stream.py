"""What was recorded is on disk soon, once and whole, and no error of writing reaches anyone."""

from __future__ import annotations

import errno
import io
import os
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import wait_for

from analysis.recording import ObserverWarning
from analysis.recording.stream import StreamWriter, cut_of, read_lacking, read_stream
from analysis.runs.schema import TABLES
from analysis.runs.tables import to_table

INVOCATION = {"phase": "decode", "rows": 1, "request_ids": ["r"], "tokens": [[1]]}


class Made:
    """A recording that is made up: events and invocations by their `seq`, in order of recording."""

    def __init__(self) -> None:
        self.rows: dict[str, list[int]] = {"events": [], "invocations": [], "snapshots": []}
        self.overflow: str | None = None
        self.ended = True
        self.t_ns = 0
        self.kinds: dict[int, tuple[str, str]] = {}
        self.unfinished: list[list[Any]] = []
        self.invocations: list[list[Any]] = []
        self.skipped: list[int] = []

    def sizes(self) -> dict[str, int]:
        return {name: len(rows) for name, rows in self.rows.items()}

    def standing(self, skipped: int = 0) -> dict[str, Any]:
        return {
            "ended": self.ended,
            "full": False,
            "began_ns": 1_000,
            "t_ns": self.t_ns,
            "unfinished": self.unfinished,
            "invocations": self.invocations,
            "skipped": self.skipped[skipped:],
        }

    def table(self, name: str, trial_id: str = "", start: int = 0) -> pa.Table:
        own: dict[str, dict[str, Any]] = {
            "events": {"t_s": 0.0},
            "invocations": {**INVOCATION, "invocation_id": 0},
            "snapshots": {"moment": "asked"},
        }
        rows = []
        for seq in sorted(self.rows[name][start:]):
            row = {"seq": seq, "trial_id": trial_id, **own[name]}
            if name == "events":
                row["kind"], row["request_id"] = self.kinds.get(seq, ("token", "r"))
            if name == "invocations":
                row["end_seq"] = seq + 1
            rows.append(row)
        return to_table(name, rows)


def seqs(directory: Path) -> dict[str, list[int]]:
    return {name: table["seq"].to_pylist() for name, table in read_stream(directory).items()}


@given(
    st.permutations(range(12)),
    st.lists(st.integers(0, 11)),
    st.sampled_from(["invocations", "events"]),
)
@settings(max_examples=40, deadline=None)
def test_every_row_is_written_once_in_the_end_in_order(tmp_path_factory, order, moments, name):
    directory, made = tmp_path_factory.mktemp("writer"), Made()
    writer = StreamWriter(made, directory, "c")
    for number, seq in enumerate(order):
        made.rows[name].append(seq)
        for _ in range(moments.count(number)):
            writer.write()
    writer.write()
    assert seqs(directory) == {name: sorted(order)}
    table = read_stream(directory)[name]
    assert table.schema.equals(TABLES[name])
    assert set(table["trial_id"].to_pylist()) == {"c"}
    assert {file.name for file in directory.iterdir()} == {"recorded"}


def test_it_writes_while_the_block_lasts_and_at_its_end(tmp_path: Path) -> None:
    made = Made()
    made.rows["events"] = [0, 1]
    with StreamWriter(made, tmp_path, "c").writing(0.01):
        wait_for(lambda: seqs(tmp_path) == {"events": [0, 1]}, "the events")
        made.rows["snapshots"] = [2]
        wait_for(lambda: "snapshots" in seqs(tmp_path), "the snapshots")
    with StreamWriter(made, tmp_path / "other", "c").writing(1000):
        made.rows["invocations"] = [7]
    assert seqs(tmp_path / "other") == {"events": [0, 1], "invocations": [7], "snapshots": [2]}


def test_an_error_within_the_block_is_the_block_s_own(tmp_path: Path) -> None:
    made = Made()

    def block() -> None:
        with StreamWriter(made, tmp_path, "c").writing(1000):
            made.rows["events"] = [5]
            raise KeyError

    with pytest.raises(KeyError):
        block()
    assert seqs(tmp_path) == {"events": [5]}


def test_what_cannot_be_written_is_warned_of_once_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.FileIO):
        """A file on a disk that takes half of what it is given, and then nothing."""

        def write(self, content: Any) -> int:
            if len(content) < 20:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(content[: len(content) // 2])

    made = Made()
    made.rows["events"] = [0]
    writer = StreamWriter(made, tmp_path, "c")
    writer.write()
    made.rows["events"] += [1]
    before = (tmp_path / "recorded").read_bytes()
    monkeypatch.setattr("builtins.open", lambda file, mode, buffering: Full(file, "r+b"))
    with pytest.warns(ObserverWarning, match="No space left"):
        writer.write()
    writer.write()  # a second warning would be an error here
    monkeypatch.undo()
    assert isinstance(writer.failure, OSError)
    assert (tmp_path / "recorded").read_bytes() == before
    made.rows["events"] += [2]
    writer.write()
    assert writer.failure is None
    assert seqs(tmp_path) == {"events": [0, 1, 2]}
    assert read_lacking(tmp_path) is None  # for nothing is


def test_no_warning_leaves_the_block_if_warnings_are_errors(tmp_path: Path) -> None:
    (tmp_path / "recorded").mkdir()  # where a file should be
    made = Made()
    made.rows["events"] = [0]
    writer = StreamWriter(made, tmp_path, "c")
    with writer.writing(0.01):
        wait_for(lambda: writer.failure, "an error")
        assert "cachelab-stream" in [thread.name for thread in threading.enumerate()]
    with pytest.raises(IsADirectoryError):  # what cannot be read is not an empty recording
        read_stream(tmp_path)


def test_an_error_of_the_recording_does_not_affect_the_block(tmp_path: Path) -> None:
    class Broken(Made):
        def table(self, name: str, trial_id: str = "", start: int = 0) -> pa.Table:
            if name == "events":
                raise RuntimeError("boom")
            return super().table(name, trial_id, start)

    made = Broken()
    made.rows = {"events": [0], "invocations": [1], "snapshots": []}
    with StreamWriter(made, tmp_path, "c").writing(1000):
        pass
    assert seqs(tmp_path) == {"invocations": [1]}  # the other tables come all the same
    assert "boom" in str(read_lacking(tmp_path))


def test_a_full_recording_is_reported_with_its_parts(tmp_path: Path) -> None:
    made = Made()
    writer = StreamWriter(made, tmp_path, "c")
    writer.write()
    assert read_lacking(tmp_path) is None
    assert read_stream(tmp_path) == {}
    made.overflow = "The recording was full: 3 events were counted but not kept."
    writer.write()
    assert read_lacking(tmp_path) == made.overflow


@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.data())
@settings(max_examples=40)
def test_wherever_the_file_ends_what_was_whole_is_read(tmp_path_factory, sizes, data):
    directory, made, ends = tmp_path_factory.mktemp("writer"), Made(), [0]
    writer = StreamWriter(made, directory, "c")
    for size in sizes:
        made.rows["events"] += range(len(made.rows["events"]), len(made.rows["events"]) + size)
        writer.write()
        ends.append((directory / "recorded").stat().st_size)
    cut = data.draw(st.integers(0, ends[-1]))
    os.truncate(directory / "recorded", cut)
    whole = sum(sizes[: sum(end <= cut for end in ends) - 1])
    assert seqs(directory).get("events", []) == list(range(whole))
    assert read_stream(directory / "nowhere") == {}


def test_a_recording_that_its_process_did_not_end_says_where_it_ends(tmp_path: Path) -> None:
    made = Made()
    made.ended = False
    made.kinds = {0: ("submitted", "a"), 1: ("submitted", "b"), 6: ("done", "a")}
    made.rows["events"] = [0, 1, 6]
    made.rows["invocations"] = [3]  # until 4
    made.skipped = [2]
    made.invocations = [[5, 20, 1, "decode", ["b"]]]
    made.unfinished = [[7, 30, "b", "acquire"]]
    made.t_ns = 40
    writer = StreamWriter(made, tmp_path, "c")
    writer.write()
    made.rows["events"] += [9]  # before it is one more, of which nothing is known
    made.t_ns = 2_000_000_040
    writer.write()
    tables = read_stream(tmp_path, ended_ns=1_000 + 40 + 7_000_000)
    events = [row for row in tables["events"].to_pylist() if row["seq"] >= 5]
    assert [(row["seq"], row["kind"]) for row in events] == [
        (5, "invocation_unfinished"), (6, "done"), (7, "unfinished"), (8, "cut"),
    ]  # fmt: skip
    assert (events[0]["value"], events[0]["t_s"]) == (1, 20 / 1e9)
    assert (events[0]["phase"], events[0]["request_ids"]) == ("decode", ["b"])
    assert (events[2]["request_id"], events[2]["operation"]) == ("b", "acquire")
    assert (events[3]["t_s"], events[3]["late_s"]) == (40 / 1e9, 0.007)
    assert events[3]["request_ids"] == ["b"]
    assert cut_of(tables) == (
        "The recording ends at 0.000 s, at most 7 ms before its process; 1 request has no end"
        " in it, so the engine's end is not recorded."
    )
    made.rows["events"] += [5, 7, 8, 10]
    made.invocations, made.unfinished, made.ended = [], [], True
    writer.write()
    assert cut_of(read_stream(tmp_path)) is None
    assert seqs(tmp_path)["events"] == [0, 1, 5, 6, 7, 8, 9, 10]
