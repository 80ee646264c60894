"""Importing a GGUF file: the weights, the tokenizer and the program, run by decoder and engine."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny_gguf
from support import NEWEST
from tiny_gguf import PROGRAMS, TOKENS, forward, random_tensors, write_gguf

from analysis.core.errors import CachelabError
from analysis.model.artifacts import load_model
from analysis.model.compile import compile_model
from analysis.model.imports import import_model
from analysis.model.imports.checkpoint import read_checkpoint
from analysis.model.reference import ReferenceDecoder
from analysis.model.tokenizer import ModelTokenizer

IDS = [5, 9, 200, 31, 77, 261, 14, 14, 90, 3, 120, 44, 250, 8, 60, 61, 62, 100, 7]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The imported file of a few kB."""
    place = tmp_path_factory.mktemp("import")
    file = write_gguf(place / "tiny.gguf", kind="F16")
    assert file.stat().st_size < 100_000
    return import_model(str(file), place / "model", programs=PROGRAMS)


@pytest.fixture(scope="module")
def decoder(tiny):
    return ReferenceDecoder(tiny, compile_model(tiny))


def stored() -> dict[str, np.ndarray]:
    """The tensors as F16 stores the matrices."""
    return {
        name: values.astype(np.float16).astype(np.float32) if values.ndim > 1 else values
        for name, values in random_tensors().items()
    }


def test_the_imported_model_gives_the_files_own_scores(decoder):
    expected = forward(stored(), IDS)
    sequence = decoder.start(IDS)
    np.testing.assert_allclose(sequence.prompt_logits, expected, atol=0.02, rtol=0.02)
    assert np.abs(expected).max() > 2


def test_decodes_give_the_scores_of_a_prefill(decoder):
    expected = forward(stored(), IDS)
    sequence = decoder.start(IDS[:7])
    for position in range(7, len(IDS)):  # over the end of a page
        sequence.step(IDS[position])
        np.testing.assert_allclose(sequence.logits, expected[position], atol=0.03, rtol=0.03)


def test_an_engine_gives_the_decoders_answer(tiny, decoder, child):
    prompt = IDS[:9]
    reply = child(
        NEWEST,
        f"""
        with Engine(EngineConfig(model={str(tiny.directory)!r}, page_count=16)) as engine:
            say(engine.generate({prompt}, 6).tokens)
        """,
    ).reply
    assert reply == decoder.generate(prompt, 6, end=0)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_weights_are_those_that_the_file_stores(tmp_path, kind):
    tensors = random_tensors(3)
    checkpoint = read_checkpoint(write_gguf(tmp_path / "a.gguf", tensors, kind=kind))
    weights = dict(checkpoint.weights())
    type_ = gguf.GGMLQuantizationType[kind]
    value = gguf.dequantize(gguf.quantize(tensors["blk.1.attn_v.weight"], type_), type_)
    np.testing.assert_array_equal(weights["blocks.1.value.weight"], value)
    # Row r of a head in the file is row r / 2 of its first half, or its second half if r is odd.
    q = gguf.dequantize(gguf.quantize(tensors["blk.0.attn_q.weight"], type_), type_)
    heads = q.reshape(tiny_gguf.HEADS, tiny_gguf.HEAD_DIM, -1)
    ours = weights["blocks.0.query.weight"].reshape(heads.shape)
    np.testing.assert_array_equal(ours[:, : tiny_gguf.HEAD_DIM // 2], heads[:, 0::2])
    np.testing.assert_array_equal(ours[:, tiny_gguf.HEAD_DIM // 2 :], heads[:, 1::2])
    np.testing.assert_array_equal(
        weights["norm.weight"], tensors["output_norm.weight"], strict=True
    )


def test_the_output_matrix_may_be_the_embedding(tmp_path):
    tensors = random_tensors()
    del tensors["output.weight"]
    sizes = read_checkpoint(write_gguf(tmp_path / "a.gguf", tensors)).architecture
    assert sizes.tied_head
    assert sizes.vocab == len(TOKENS)


def test_rope_factors_divide_the_frequencies(tmp_path):
    plain = dict(read_checkpoint(write_gguf(tmp_path / "a.gguf")).weights())["inverse_frequencies"]
    np.testing.assert_allclose(plain, 500.0 ** -(np.arange(0, 8, 2) / 8), rtol=1e-6)
    factors = np.array([1, 2, 4, 8], np.float32)
    tensors = random_tensors() | {"rope_freqs.weight": factors}
    found = dict(read_checkpoint(write_gguf(tmp_path / "b.gguf", tensors)).weights())
    np.testing.assert_allclose(found["inverse_frequencies"], plain / factors, rtol=1e-6)
    linear = {"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": 2.0}
    found = dict(read_checkpoint(write_gguf(tmp_path / "c.gguf", **linear)).weights())
    np.testing.assert_allclose(found["inverse_frequencies"], plain / 2, rtol=1e-6)


def test_the_tokenizer_is_that_of_the_file(tiny):
    tokenizer = ModelTokenizer(tiny)
    assert tokenizer.vocabulary_size == len(TOKENS)
    ids = tokenizer.encode("abc 12 a<tool>é")
    assert [TOKENS[i] for i in ids] == ["abc", "Ġ", "1", "2", "Ġa", "<tool>", "Ã", "©"]
    assert tokenizer.decode(ids) == "abc 12 a<tool>é"
    assert (tiny.bos_token, tiny.eos_token) == ("<begin>", "<end>")


def test_a_begin_token_is_put_first_where_the_file_says_so(tmp_path):
    file = write_gguf(tmp_path / "a.gguf", tokenizer__ggml__add_bos_token=True)
    model = import_model(str(file), tmp_path / "model", programs=PROGRAMS)
    assert ModelTokenizer(model).encode("abc")[0] == 1


def test_the_directory_is_like_that_of_the_shipped_model(tiny, model):
    names = {file.name for file in tiny.directory.iterdir()}
    only_shipped = {"training.json", "from_positions.mlir.gz"}
    assert names == {file.name for file in model.directory.iterdir()} - only_shipped
    assert set(tiny.config.raw) == set(model.config.raw)
    assert tiny.config.page_shape == (2, 2, 16, 2, 8)
    listed = json.loads((tiny.directory / "checksums.json").read_text())["files"]
    assert set(listed) == names - {"checksums.json", "README.md"}
    assert "`tiny.gguf` (SHA-256" in (tiny.directory / "README.md").read_text()


def test_an_imported_model_is_found_by_its_name(tmp_path, monkeypatch, cachelab):
    monkeypatch.setenv("CACHELAB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("analysis.model.programs.shipped", lambda name: PROGRAMS)
    with pytest.raises(CachelabError, match="import it with `cachelab model import tiny`"):
        load_model("tiny")
    file = write_gguf(tmp_path / "tiny.gguf")
    status, out, err = cachelab("model", "import", file)
    assert (status, err) == (0, "writing 2 layers\n")
    assert load_model("tiny").directory == Path(out.strip()) == tmp_path / "cache/models/tiny"


def test_a_directory_is_preferred_to_a_name(tmp_path, monkeypatch, copy):
    monkeypatch.setenv("CACHELAB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(copy.parent)
    assert load_model(copy.name).directory == copy
