"""What was recorded is on disk soon, once and whole, and no error of writing reaches anyone."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.observe import ObserverWarning
from analysis.observe.spill import Spill, read_lacking, read_spilled
from analysis.tables import TABLES, to_table

FLIGHT = {"phase": "decode", "rows": 1, "request_ids": ["r"], "tokens": [[1]]}


class Made:
    """A recording that is made up: events and flights by their `seq`, in order of recording."""

    def __init__(self) -> None:
        self.rows: dict[str, list[int]] = {"events": [], "flights": [], "snapshots": []}
        self.overflow: str | None = None

    def sizes(self) -> dict[str, int]:
        return {name: len(rows) for name, rows in self.rows.items()}

    def table(self, name: str, cell_id: str = "", start: int = 0) -> pa.Table:
        own: dict[str, dict[str, Any]] = {
            "events": {"t_ns": 0, "kind": "token"},
            "flights": {**FLIGHT, "flight_id": 0},
            "snapshots": {"moment": "asked"},
        }
        seqs = sorted(self.rows[name][start:])
        return to_table(name, [{"seq": s, "cell_id": cell_id, **own[name]} for s in seqs])


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def seqs(directory: Path) -> dict[str, list[int]]:
    return {name: table["seq"].to_pylist() for name, table in read_spilled(directory).items()}


@given(
    st.permutations(range(12)), st.lists(st.integers(0, 11)), st.sampled_from(["flights", "events"])
)
@settings(max_examples=40, deadline=None)
def test_every_row_is_written_once_in_the_end_in_order(tmp_path_factory, order, moments, name):
    directory, made = tmp_path_factory.mktemp("spill"), Made()
    spill = Spill(made, directory, "c")
    for number, seq in enumerate(order):
        made.rows[name].append(seq)
        for _ in range(moments.count(number)):
            spill.write()
    spill.write()
    assert seqs(directory) == {name: sorted(order)}
    table = read_spilled(directory)[name]
    assert table.schema.equals(TABLES[name])
    assert set(table["cell_id"].to_pylist()) == {"c"}
    parts = {file.name for file in (directory / "recorded").iterdir()}
    wrote = len(set(moments) | {11})
    assert parts == {f"{name}-{part:05d}.parquet" for part in range(1, wrote + 1)}


def test_it_writes_while_the_block_lasts_and_at_its_end(tmp_path: Path) -> None:
    made = Made()
    made.rows["events"] = [0, 1]
    with Spill(made, tmp_path, "c", every_s=0.01):
        wait_for(lambda: seqs(tmp_path) == {"events": [0, 1]})
        made.rows["snapshots"] = [2]
        wait_for(lambda: "snapshots" in seqs(tmp_path))
    with Spill(made, tmp_path / "other", "c", every_s=1000):
        made.rows["flights"] = [7]
    assert seqs(tmp_path / "other") == {"events": [0, 1], "flights": [7], "snapshots": [2]}


def test_an_error_within_the_block_is_the_block_s_own(tmp_path: Path) -> None:
    made = Made()

    def block() -> None:
        with Spill(made, tmp_path, "c", every_s=1000):
            made.rows["events"] = [5]
            raise KeyError

    with pytest.raises(KeyError):
        block()
    assert seqs(tmp_path) == {"events": [5]}


def test_what_cannot_be_written_is_warned_of_once_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Made()
    made.rows["events"] = [0]
    write = pq.write_table

    def full(table: pa.Table, where: Path, **_: Any) -> None:
        Path(where).write_bytes(b"PAR1")
        raise OSError("no space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    spill = Spill(made, tmp_path, "c")
    with pytest.warns(ObserverWarning, match="no space left"):
        spill.write()
    spill.write()  # a second warning would be an error here
    assert spill.error is not None
    assert read_spilled(tmp_path) == {}
    assert not list(tmp_path.glob("recorded/*.tmp"))
    assert "no space left" in str(read_lacking(tmp_path))
    monkeypatch.setattr(pq, "write_table", write)
    made.rows["events"] += [1]
    spill.write()
    assert seqs(tmp_path) == {"events": [0, 1]}


def test_where_warnings_are_errors_none_leaves_the_block(tmp_path: Path) -> None:
    (tmp_path / "recorded").write_text("a file where the directory should be")
    made = Made()
    made.rows["events"] = [0]
    with Spill(made, tmp_path, "c", every_s=0.01) as spill:
        wait_for(lambda: spill.error)
        assert spill._thread.is_alive()
    assert read_spilled(tmp_path) == {}


def test_a_recording_that_breaks_is_no_matter_to_the_block(tmp_path: Path) -> None:
    class Broken(Made):
        def table(self, name: str, cell_id: str = "", start: int = 0) -> pa.Table:
            if name == "events":
                raise RuntimeError("boom")
            return super().table(name, cell_id, start)

    made = Broken()
    made.rows = {"events": [0], "flights": [1], "snapshots": []}
    with Spill(made, tmp_path, "c", every_s=1000):
        pass
    assert seqs(tmp_path) == {"flights": [1]}  # the other tables come all the same
    assert "boom" in str(read_lacking(tmp_path))


def test_a_full_recording_says_so_beside_its_parts(tmp_path: Path) -> None:
    made = Made()
    spill = Spill(made, tmp_path, "c")
    spill.write()
    assert read_lacking(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    made.overflow = "The recording was full: 3 events were counted but not kept."
    spill.write()
    assert read_lacking(tmp_path) == made.overflow


def test_files_that_were_not_finished_are_left_out(tmp_path: Path) -> None:
    made = Made()
    spill = Spill(made, tmp_path, "c")
    for seq in (3, 1):
        made.rows["events"].append(seq)
        spill.write()
    folder = tmp_path / "recorded"
    whole = (folder / "events-00001.parquet").read_bytes()
    (folder / "events-00003.tmp").write_bytes(whole)
    (folder / "events-00004.parquet").write_bytes(whole[: len(whole) // 2])
    (folder / "events-00005.parquet").write_bytes(b"")
    assert seqs(tmp_path) == {"events": [1, 3]}
    assert read_spilled(tmp_path / "nowhere") == {}
