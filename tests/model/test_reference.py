"""The reference decoder: right answers, a fresh cache, and the page layout of the engines."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from analysis.core.errors import ModelError
from analysis.model.artifacts import load_model
from analysis.model.reference import ReferenceDecoder
from analysis.model.tokenizer import ModelTokenizer
from analysis.workloads.prompts import draw, draw_many, reported


@pytest.fixture(scope="module")
def tokenizer(model):
    return ModelTokenizer(model)


def test_the_reported_prompt(decoder, tokenizer):
    prompt = reported()
    answer = decoder.generate(tokenizer.encode(prompt.prompt), 15)
    assert tokenizer.decode(answer) == prompt.continuation


def test_held_out_prompts_of_every_family(decoder, tokenizer):
    prompts = draw_many(np.random.default_rng(11), 60, split="held_out")
    right = [
        tokenizer.decode(decoder.generate(tokenizer.encode(p.prompt), 15)) == p.continuation
        for p in prompts
    ]
    assert sum(right) >= 58


def test_one_new_token_and_none(decoder, tokenizer):
    ids = tokenizer.encode("1 2 3 4 5 ")
    assert tokenizer.decode(decoder.generate(ids, 1)) == "6"


def test_a_sequence_has_a_fresh_cache(decoder, tokenizer):
    ids = tokenizer.encode("5 10 15 20 25 ")
    first = decoder.generate(ids, 15)
    decoder.generate(tokenizer.encode("z a b c d e f g h "), 15)
    assert decoder.generate(ids, 15) == first
    assert not decoder.start(ids).read_pages()[1:].any()


def test_decode_agrees_with_prefill(decoder, tokenizer):
    """A token's logits are the same, prefilled or decoded, on both sides of a page's end."""
    text = draw("recall", np.random.default_rng(2), length=60).prompt
    ids = tokenizer.encode(text)
    whole = decoder.start(ids)
    sequence = decoder.start(ids[:13])
    for position in range(13, 36):
        logits = sequence.step(ids[position])
        np.testing.assert_allclose(logits, whole.prompt_logits[position], atol=0.2)
    np.testing.assert_allclose(
        sequence.keys_values().astype(np.float32),
        whole.keys_values()[:36].astype(np.float32),
        atol=0.05,
    )


def test_the_page_layout(decoder, tokenizer):
    """[pages, layers, (K, V), 16 tokens, kv heads, head dimension], slot by slot."""
    ids = tokenizer.encode("abcd efgh ijkl mnop>")
    sequence = decoder.start(ids, capacity=40)
    pages = sequence.read_pages()
    slots = sequence.keys_values()
    assert pages.dtype == np.float16
    assert pages.shape == (3, *decoder.model.config.page_shape)
    assert slots.shape == (len(ids), *np.delete(decoder.model.config.page_shape, 2))
    for token in (0, 15, 16, 20):
        for kind in (0, 1):
            np.testing.assert_array_equal(
                slots[token, 3, kind], pages[token // 16, 3, kind, token % 16]
            )
    # Values of the first layer depend on the token alone, its keys on the position too.
    same = [i for i, token in enumerate(ids) if token == ids[5]]
    assert len(same) > 2
    values, keys = slots[same, 0, 1], slots[same, 0, 0]
    assert np.ptp(values.astype(np.float32), axis=0).max() < 0.01
    assert np.ptp(keys.astype(np.float32), axis=0).max() > 0.1


def test_a_decode_writes_its_own_slot_only(decoder, tokenizer):
    ids = tokenizer.encode("abcd efgh ijk")
    sequence = decoder.start(ids, capacity=32)
    before = sequence.read_pages()
    sequence.step(tokenizer.encode("x")[1])
    changed = (sequence.read_pages() != before).any(axis=(1, 2, 4, 5))
    assert np.argwhere(changed).tolist() == [[0, len(ids)]]


def test_a_wrong_length_reads_stale_slots(decoder, tokenizer):
    """What stands behind the sequence's own length is read as soon as the length says so."""
    ids = tokenizer.encode("1 2 3 4 5 ")
    token = tokenizer.encode("6")[1]

    def logits(seq_len, dirty):
        sequence = decoder.start(ids, capacity=32)
        if dirty:
            pages = sequence.read_pages()
            pages[0, :, :, 12:] = decoder.start(tokenizer.encode("9 7 5 3 1 9 7 5")).read_pages()[
                0, :, :, 12:
            ]
            sequence.write_pages(pages)
        return sequence.step(token, seq_len=seq_len)

    np.testing.assert_array_equal(logits(None, dirty=False), logits(None, dirty=True))
    assert np.abs(logits(16, dirty=False) - logits(16, dirty=True)).max() > 0.1


def test_probabilities(decoder, tokenizer):
    sequence = decoder.start(tokenizer.encode("1 2 3 4 5 "))
    assert sequence.probabilities.sum() == pytest.approx(1, abs=1e-4)
    assert sequence.probabilities.argmax() == sequence.next_token


def test_threads_may_share_a_decoder(decoder, tokenizer):
    prompts = draw_many(np.random.default_rng(5), 12)
    ids = [tokenizer.encode(prompt.prompt) for prompt in prompts]
    alone = [decoder.generate(one, 8) for one in ids]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda one: decoder.generate(one, 8), ids)) == alone


def test_what_does_not_fit_is_refused(decoder):
    with pytest.raises(ModelError, match="does not fit"):
        decoder.start([])
    with pytest.raises(ModelError, match="does not fit"):
        decoder.start([1] * 20, capacity=19)
    sequence = decoder.start([1, 4], capacity=2)
    with pytest.raises(ModelError, match="is full"):
        sequence.step(4)


def test_a_program_that_is_none(model, tmp_path):
    (tmp_path / "bad.vmfb").write_bytes(b"not a program")
    with pytest.raises(ModelError, match="cannot be run by the installed"):
        ReferenceDecoder(model, tmp_path / "bad.vmfb")


def test_weights_that_are_none(copy, vmfb):
    weights = copy / "model.irpa"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(ModelError, match="cannot be run"):
        ReferenceDecoder(load_model(copy), vmfb)
