"""What notebooks store of their measurements comes back as it was."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
    value=st.floats(allow_nan=False, allow_infinity=False),
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
    file = tmp_path_factory.mktemp("measured") / "result.json"
    measured(file, Result, lambda: result)
    again = measured(file, Result, lambda: pytest.fail("It was measured already."))
    pd.testing.assert_frame_equal(again.frame, frame)
    assert again.table.equals(table)
    assert (again.by_level, again.value) == (result.by_level, value)
    [snapshot] = again.snapshots
    assert snapshot.to_row() == Snapshot(state, seq=3).to_row()
    assert list(snapshot.state.free) == free


def test_a_failed_measurement_stores_nothing(tmp_path: Path) -> None:
    def fail() -> int:
        raise ValueError("no engine")

    with pytest.raises(ValueError, match="no engine"):
        measured(tmp_path / "result.json", int, fail)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("damaged", [b"", b"{", b'{"frame": 3}', b"[1]", b"\xff"])
def test_a_damaged_file_gets_a_sentence(tmp_path: Path, damaged: bytes) -> None:
    file = tmp_path / "result.json"
    file.write_bytes(damaged)
    with pytest.raises(RunError, match="Restore it, or delete it to measure again"):
        measured(file, Result, lambda: pytest.fail("It must not be measured."))
    assert file.read_bytes() == damaged
