"""What a row's token is by its logits, and which arguments were not read as they were filled."""

from __future__ import annotations

from array import array
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.shortfin.hooks import Hooks
from analysis.shortfin.scores import Scores
from analysis.shortfin.verify import NO_TOKEN, Filled, changes, chosen_by

NAMES = ("tokens", "seq_lens")


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@given(st.lists(st.lists(st.sampled_from([-1.5, 0.0, 2.0, 7.0]), min_size=5, max_size=5)))
def test_the_first_of_the_likeliest_is_chosen(kind, rows):
    logits = np.array(rows, dtype=kind)
    scores = Scores(logits.tobytes(), len(logits), 5, kind.__name__)
    tokens, digests = chosen_by(scores)
    assert tokens == [row.index(max(row)) for row in rows]
    assert len(digests) == len(rows)
    assert [a == b for a in digests for b in digests] == [a == b for a in rows for b in rows]


def test_a_row_with_a_nan_has_no_token():
    logits = np.array([[1, np.nan, 3], [1, 2, 3]], dtype=np.float32)
    scores = Scores(logits.tobytes(), len(logits), 3, "float32")
    assert chosen_by(scores)[0] == [NO_TOKEN, 2]


def differing(before, content, returned, landed):
    """Compare two arguments, [2, 2] and [2], given as flat lists."""
    arguments = [object(), object()]
    filled = {
        id(argument): Filled(*(np.array(part, dtype=np.int64).tobytes() for part in parts))
        for argument, *parts in zip(arguments, before, content, strict=True)
    }
    then = [np.array(part, dtype=np.int64).tobytes() for part in returned]
    arrays = {
        name: (shape, array("q", values))
        for name, shape, values in zip(NAMES, ((2, 2), (2,)), landed, strict=True)
    }
    fields = changes(NAMES, arguments, filled, then, arrays)
    return [tuple(entry.values()) for entry in fields or ()]


OLD, NEW = ([1, 2, 3, 4], [5, 6]), ([11, 12, 13, 14], [15, 16])


def test_unchanged_arguments_have_no_finding():
    assert not differing(OLD, NEW, NEW, NEW)


def test_a_transfer_that_is_still_under_way_is_silent():
    assert not differing(OLD, NEW, OLD, NEW)
    assert not differing(OLD, NEW, (NEW[0], OLD[1]), NEW)


def test_the_old_content_is_reported_if_a_later_transfer_has_ended():
    assert differing(OLD, NEW, (OLD[0], NEW[1]), NEW) == [
        ("tokens", 0, 0, 11, 1, "returned"),
        ("tokens", 1, 0, 13, 3, "returned"),
    ]


def test_one_changed_value_is_reported_with_row_and_column():
    changed = ([11, 12, 13, 99], NEW[1])
    assert differing(OLD, NEW, changed, NEW) == [("tokens", 1, 1, 14, 99, "returned")]
    assert differing(OLD, NEW, NEW, changed) == [("tokens", 1, 1, 14, 99, "landed")]
    assert differing(OLD, NEW, changed, changed) == [("tokens", 1, 1, 14, 99, "returned")]


values = st.lists(st.integers(0, 3), min_size=4, max_size=4)


@given(values, values, values)
def test_changed_arguments_at_the_end_are_reported(before, content, landed):
    fields = differing((before, OLD[1]), (content, NEW[1]), (content, NEW[1]), (landed, NEW[1]))
    rows = {row for row in (0, 1) if content[2 * row :][:2] != landed[2 * row :][:2]}
    assert {entry[1] for entry in fields} == rows
    for _, row, column, filled, read, when in fields:
        place = 2 * row + column
        assert (filled, read, when) == (content[place], landed[place], "landed")
        assert filled != read


def test_a_choice_with_unreadable_logits_is_reported_as_unknown(monkeypatch):
    from analysis.shortfin.cache.allocations import choices
    from analysis.shortfin.cache.allocations.probe import AllocationProbe

    emitted, faults, batcher = [], [], object()

    class Item:
        """A request's process of 3.1.0, which appends what it chose."""

        client = SimpleNamespace(batcher=batcher)
        gen_req = SimpleNamespace(rid="a")

        def append_token(self, token):
            self.tokens = [*getattr(self, "tokens", []), token]

    def unreadable(logits):
        if logits is None:
            raise RuntimeError("planted")
        return logits

    monkeypatch.setattr(choices, "sfnp", SimpleNamespace(argmax=lambda logits, *rest: 5))
    monkeypatch.setattr(choices, "GenerateItemProcess", Item)
    monkeypatch.setattr(choices, "raw", lambda logits: unreadable(logits.content))
    observer = SimpleNamespace(
        verifies=True, fault=faults.append,
        event=lambda kind, **fields: emitted.append((kind, fields)),
        at_token=lambda kind, request, value, digest: emitted.append((kind, {"value": value})),
    )  # fmt: skip
    probe = object.__new__(AllocationProbe)
    probe.read_logits = {}
    probe.native, probe.observer = SimpleNamespace(batcher=batcher), observer
    choices.hook_choices(probe, Hooks(observer))
    request, item = choices.CURRENT_REQUEST.set("a"), Item()
    try:
        for content in (b"1", None, b"1"):
            token = choices.sfnp.argmax(SimpleNamespace(content=content))
            item.append_token(token)
    finally:
        choices.CURRENT_REQUEST.reset(request)
    assert item.tokens == [5, 5, 5]
    assert len(faults) == 1
    assert [(kind, fields.get("value")) for kind, fields in emitted] == [
        ("chosen", 5), ("chosen", None), ("chosen", 5)
    ]  # fmt: skip
