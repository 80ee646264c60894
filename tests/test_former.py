"""Tables of schema versions 1 and 2 become those of today, value by value."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from old_runs import _older
from synthetic import request_row, trial_row

from analysis.core.errors import RunError
from analysis.runs.former import VERSIONS, page_tokens_of
from analysis.runs.schema import EVENT_EXTRAS, EVENT_KINDS, TABLES
from analysis.runs.tables import as_declared, to_table

BLOCKS = [{"layer": 1, "kind": "V", "head": 0}, {"layer": 0, "kind": "K", "head": 1}]
STALL = {
    "state": "executing", "phase": "decode", "invocations": [3],
    "locks": [{"lock": "pool", "thread": "w0", "seconds": 1.5}],
    "threads": [{"thread": "MainThread 1", "frames": ["a.py:1 in f"]}],
}  # fmt: skip
COVERAGE = {
    "mode": "sampled", "followed": 3, "page_count": 96, "invocations": 4, "pages_read": 5,
    "slots_written": 6, "pages_offered": 7, "not_judged": [8], "undecided": [], "unchecked": 1,
}  # fmt: skip
CHANGED = {
    "slots": [2, 3], "blocks": BLOCKS, "moment": "pages_dropped", "since_invocation": 1,
    "seen_invocation": 2, "holders": ["a"], "copy_of": 4, "zeros": False, "from_page": 5,
    "from_slot": 6,
}  # fmt: skip
KEPT = [
    {"slot": 3, "whole": True, "blocks": None, "zeros": False, "other_token": True},
    {"slot": 4, "whole": False, "blocks": BLOCKS, "zeros": True, "other_token": False},
]
EXTRAS: dict[str, dict[str, Any]] = {
    "submitted": {"tokens": [1, 2, 3]},
    "answered": {"tokens": [4, 5], "value": 1},
    "create": {"tokens": [1, 2], "node": 1, "parent": 0, "pages": [3]},
    "chosen": {"digest": 0xDEADBEEF, "value": 7},
    "done": {"outcome": "engine_died", "value": 2},
    "late": {"outcome": "ok"},
    "alloc_failed": {"wanted": 3, "free_pages": 1},
    "evict": {"wanted": 2, "pages": [1]},
    "failed": {"message": "KeyError: 3", "operation": "acquire"},
    "worker_died": {"message": "a worker died"},
    "observer_error": {"message": "ValueError: x"},
    "memory": {"value": 1 << 30, "page_table_bytes": 1 << 20},
    "invocation_unfinished": {"phase": "decode", "request_ids": ["a", "b"], "value": 4},
    "unfinished": {"operation": "acquire", "request_id": "a"},
    "cut": {"late_s": 0.007, "request_ids": ["a"]},
    "stall": {"stall": STALL},
    "checksums": {"coverage": COVERAGE},
    "bytes_changed": {"changed_bytes": CHANGED, "pages": [1], "value": 2},
    "bytes_kept": {"kept_bytes": KEPT, "pages": [1], "value": 9},
    "snapshot": {"moment": "before"},
}
"""By kind, the columns that a text of versions 1 and 2 held, and others beside them."""


def events() -> list[dict[str, Any]]:
    return [
        {"seq": seq, "trial_id": "c", "t_s": seq / 8, "kind": kind, **EXTRAS.get(kind, {})}
        for seq, kind in enumerate(EVENT_KINDS)
    ]


ROWS: dict[str, list[dict[str, Any]]] = {
    "trials": [
        trial_row(page_tokens=None, recording="events", injected=done, injection=injection)
        for done, injection in (
            (None, None),
            (False, None),
            (True, {"request_id": "a", "other_request_id": None, "page": 3, "invocation_id": None,
                    "seq": 7}),
        )
    ],
    "requests": [request_row(outcome=outcome, retries=2) for outcome in ("ok", "engine_died")],
    "invocations": [
        {"invocation_id": 0, "trial_id": "c", "phase": "decode", "rows": 1, "changed": changed}
        for changed in (
            None,
            [{"argument": "tokens", "row": 0, "column": 1, "filled": 2, "read": 3,
              "moment": "landed"}],
        )
    ],
    "events": events(),
    "snapshots": [
        {
            "trial_id": "c", "moment": "asked", "states": "fl",
            "holders": [{"request_id": "a", "pages": [1]}],
            "trie": [{"node": 0, "parent": None, "page": None, "tokens": [], "ref_count": 0,
                      "leaf": False}],
            "conflicts": [
                {"code": "free-twice", "page": 1, "node": None, "times": 2, "request_ids": None},
                {"code": "free-and-held", "page": 2, "node": None, "times": None,
                 "request_ids": ["a", "b"]},
                {"code": "free-and-cached", "page": 3, "node": 4, "times": None,
                 "request_ids": None},
                {"code": "in-several-nodes", "page": 5, "node": None, "times": 3,
                 "request_ids": None},
                {"code": "no-such-page", "page": -1, "node": None, "times": None,
                 "request_ids": None},
                {"code": "wrong-key", "page": 6, "node": 7, "times": None, "request_ids": None},
            ],
        }
    ],
}  # fmt: skip


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ROWS)
def test_a_table_of_an_earlier_version_comes_back_as_that_of_today(name: str, version: int) -> None:
    table = to_table(name, ROWS[name])
    old = _older(name, table)
    assert old.column_names != table.column_names
    assert not any(pa.types.is_struct(kind) for kind in old.schema.types)
    assert as_declared(name, old, version).to_pylist() == table.to_pylist()


def test_a_trial_of_before_there_were_servers_was_of_an_engine_in_process() -> None:
    table = to_table("trials", ROWS["trials"])
    old = table.drop_columns(["target"])
    assert as_declared("trials", old, 3).to_pylist() == table.to_pylist()
    with pytest.raises(RunError, match="no column target"):
        as_declared("trials", old, 4)


def test_every_extra_column_and_kind_is_compared_with_its_old_text() -> None:
    assert set(EVENT_EXTRAS) == {c for row in EXTRAS.values() for c in row} & set(EVENT_EXTRAS)
    assert {row["kind"] for row in events()} == set(EVENT_KINDS)


@pytest.mark.parametrize(
    ("kind", "detail"), [("chosen", "xyz"), ("waiting", "{"), ("bytes_kept", "[]"), ("cut", "3")]
)
def test_a_broken_text_of_an_event_is_refused(kind: str, detail: str) -> None:
    old = _older("events", to_table("events", events()[:1]))
    for column, value in (("kind", kind), ("detail", detail)):
        old = old.set_column(old.column_names.index(column), column, pa.array([value]))
    with pytest.raises(RunError):
        as_declared("events", old, 2)


def test_the_tokens_of_a_page_are_the_most_that_were_seen_on_one() -> None:
    assert page_tokens_of(None, None) == 16
    row = {"trial_id": "c", "invocation_id": 0, "phase": "prefill", "rows": 1,
           "tokens": [[1] * 16], "block_tables": [[1, 2]]}  # fmt: skip
    assert page_tokens_of(to_table("invocations", [row]), TABLES["snapshots"].empty_table()) == 8
