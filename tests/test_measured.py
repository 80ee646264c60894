"""What notebooks store of their measurements comes back as it was."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.core.errors import RunError
from analysis.report import measured
from analysis.snapshots.snapshot import CacheState, Node, Snapshot

pages = st.integers(0, 7)


@dataclass(frozen=True)
class Result:
    frame: pd.DataFrame
    table: pa.Table
    by_level: dict[int, str | None]
    snapshots: list[Snapshot]
    value: float


@given(
    free=st.lists(pages),
    holdings=st.dictionaries(st.text(max_size=3), st.lists(pages), max_size=2),
    value=st.floats(),
)
def test_it_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory,
    free: list[int],
    holdings: dict[str, list[int]],
    value: float,
) -> None:
    node = Node(node=0, parent=None, page=None, tokens=(), ref_count=1, leaf=False)
    state = CacheState(page_count=8, free=free, holdings=holdings, nodes=(node,))
    frame = pd.DataFrame({"a": [1, 2], "b": ["x", None]}, index=[3, 5])
    table = pa.table({"tokens": pa.array([[1, 2], None], pa.list_(pa.int32()))})
    result = Result(frame, table, {2: None, 4: "died"}, [Snapshot(state, seq=3)], np.float64(value))
    results = iter([result])
    measure = partial(lambda: next(results))
    place = tmp_path_factory.mktemp("measured") / "result"
    for again in (measured(place, Result, measure), measured(place, Result, measure)):
        pd.testing.assert_frame_equal(again.frame, frame)
        assert again.table.equals(table)
        assert again.by_level == result.by_level
        np.testing.assert_equal(again.value, value)
        [snapshot] = again.snapshots
        assert snapshot.to_row() == Snapshot(state, seq=3).to_row()
        assert list(snapshot.state.free) == free


def test_other_arguments_are_measured_anew_and_other_places_are_not(tmp_path: Path) -> None:
    def double(number: int, home: Path, *, by: int = 2) -> int:
        calls.append(number)
        return number * by

    calls: list[int] = []
    for number in (1, 2, 1):
        assert measured(tmp_path / "a", int, partial(double, number, tmp_path)) == 2 * number
    assert measured(tmp_path / "a", int, partial(double, 1, tmp_path / "b")) == 2
    assert calls == [1, 2]
    assert measured(tmp_path / "a", int, partial(double, 1, tmp_path, by=3)) == 3
    assert len([*tmp_path.iterdir()]) == 3


def test_a_failed_measurement_stores_nothing(tmp_path: Path) -> None:
    def fail() -> int:
        raise ValueError("no engine")

    with pytest.raises(ValueError, match="no engine"):
        measured(tmp_path / "result", int, partial(fail))
    assert not [*tmp_path.iterdir()]


WHOLE = msgspec.msgpack.encode({"table": b"PAR1 no table PAR1"})


@pytest.mark.parametrize("damaged", [b"", b"{", b"\xff", WHOLE, WHOLE[:-4]])
def test_a_damaged_file_gets_a_sentence(tmp_path: Path, damaged: bytes) -> None:
    frame = pd.DataFrame({"a": [1]})
    measured(tmp_path / "result", dict[str, pa.Table],
             partial(lambda: {"table": pa.Table.from_pandas(frame)}))  # fmt: skip
    [file] = tmp_path.iterdir()
    file.write_bytes(damaged)
    with pytest.raises(RunError, match="Restore it, or delete it to measure again"):
        measured(tmp_path / "result", dict[str, pa.Table], partial(dict))
    assert file.read_bytes() == damaged
