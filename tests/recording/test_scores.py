"""The likeliest next tokens of an invocation: in order, normalised, and those that the engine
chose.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from support import ChildRunner

from analysis.shortfin.scores import Scores, Top, copy_scores, likeliest


def scores_of(values: np.ndarray) -> Scores:
    return Scores(values.tobytes(), len(values), values.shape[1], str(values.dtype))


INVOCATIONS = st.lists(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.just(12)),
        elements=st.floats(-30, 30, width=32),
    ),
    min_size=1,
    max_size=4,
)


@given(INVOCATIONS, st.integers(1, 12))
def test_the_likeliest_come_first_and_the_whole_vocabulary_adds_up_to_one(invocations, count):
    whole = likeliest([scores_of(invocation) for invocation in invocations], 12)
    some = likeliest([scores_of(invocation) for invocation in invocations], count)
    for invocation, every, few in zip(invocations, whole, some, strict=True):
        assert np.exp(every.logprobs).sum(axis=1) == pytest.approx(1)
        assert (np.diff(every.logprobs, axis=1) <= 0).all()
        assert [row[0] for row in every.tokens] == invocation.argmax(axis=1).tolist()
        assert few.tokens == [row[:count] for row in every.tokens]
        assert few.logprobs == [row[:count] for row in every.logprobs]


def test_invocations_without_scores_stay_without_and_half_precision_is_read():
    half = np.array([[1, 3, 2]], dtype=np.float16)
    known = Top([[5]], [[-0.5]])
    empty = Scores(b"", 0, 3, "float16")
    nothing, first, same, last = likeliest([None, scores_of(half), known, empty], 2)
    assert nothing is None
    assert first.tokens == [[1, 2]]
    assert same is known
    assert last is None
    assert likeliest([None], 2) == [None]


def test_scores_of_a_large_vocabulary_are_put_into_order_at_once():
    rng = np.random.default_rng(0)
    small, large = (rng.normal(size=(2, n)).astype(np.float32) for n in (4096, 4097))
    assert isinstance(scores_of(small).kept(3), Scores)
    kept = scores_of(large).kept(3)
    assert isinstance(kept, Top)
    assert [row[0] for row in kept.tokens] == large.argmax(axis=1).tolist()
    assert [len(row) for row in kept.logprobs] == [3, 3]


class _Array:
    """An array as the device has it."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape = values, values.shape

    @property
    def dtype(self) -> str:
        return str(self.values.dtype)

    def view(self, row: int, place: int) -> _Array:
        return _Array(self.values[row, place])

    def map(self, *, read: bool) -> memoryview:
        return memoryview(self.values.tobytes())


def test_of_a_prefill_the_last_token_of_each_row_counts():
    values = np.arange(2 * 8 * 5, dtype=np.float32).reshape(2, 8, 5)
    arguments = {"seq_lens": ((2,), [3, 8])}
    whole = copy_scores(_Array(values), "prefill", 2, arguments)
    assert whole.array().tolist() == [values[0, 2].tolist(), values[1, 7].tolist()]
    arguments["start_positions"] = ((2,), [2, 0])
    later = copy_scores(_Array(values), "prefill", 1, arguments)
    assert later.array().tolist() == [values[0, 0].tolist()]
    decode = copy_scores(_Array(values[:, :1]), "decode", 2, arguments)
    assert decode.array().tolist() == values[:, 0].tolist()


def test_the_engine_answers_with_the_likeliest_token_of_each_invocation(
    child: ChildRunner, release: str
) -> None:
    done = child(
        release,
        """
from analysis.recording import observe
with Engine(EngineConfig(page_count=64)) as engine:
    with observe(engine, likeliest=4) as recording:
        asked = [engine.submit(p, 6, request_id=p) for p in ("1 2 3 ", "40 30 20 ", "b c d ")]
        answers = {f.result().request_id: list(f.result().tokens) for f in asked}
    with observe(engine) as plain:
        engine.submit("1 2 3 ", 4).result()
best = {prompt: [] for prompt in answers}
for invocation in recording.invocations.sort_values("seq").itertuples():
    for row, request in enumerate(invocation.request_ids):
        best[request].append(invocation.top_tokens[row][0])
sizes = recording.invocations["top_logprobs"].map(lambda rows: [len(row) for row in rows])
say([answers, best, [size for sizes in sizes for size in sizes], recording.faults,
     plain.invocations["top_tokens"].notna().sum().item(), len(plain.invocations)])
""",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers, best, sizes, faults, plain, invocations = done.reply
    assert faults == []
    assert all(len(tokens) == 6 for tokens in answers.values())
    for prompt, tokens in answers.items():
        assert best[prompt][:6] == tokens
    assert set(sizes) == {4}
    assert plain == 0 < invocations
