"""Reading a model directory: what is right loads, what is wrong says so in one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from model_help import change_json

from analysis.core.errors import ModelError
from analysis.model.artifacts import load_model, shipped_model, write_checksums
from analysis.model.tokenizer import ModelTokenizer
from analysis.model.vocabulary import VOCABULARY, encode


def test_the_shipped_model_is_whole_and_small(model):
    assert model.mlir is not None
    assert model.vmfb is None
    assert [file.name for file in model.parameters] == ["model.irpa"]
    assert (model.bos_token, model.eos_token) == ("<s>", "</s>")
    assert sum(file.stat().st_size for file in model.directory.iterdir()) <= 5 << 20


def test_every_shipped_file_is_covered_by_the_checksums(model):
    listed = json.loads((model.directory / "checksums.json").read_text())["files"]
    lies = {file.name for file in model.directory.iterdir()} - {"checksums.json", "README.md"}
    assert set(listed) == lies


def test_the_shipped_config_has_only_keys_that_every_release_knows(model):
    assert set(model.config.raw) == {
        "module_name",
        "module_abi_version",
        "max_seq_len",
        "attn_head_dim",
        "prefill_batch_sizes",
        "decode_batch_sizes",
        "transformer_block_count",
        "paged_kv_cache",
    }
    assert set(model.config.raw["paged_kv_cache"]) == {
        "attention_head_count_kv",
        "block_seq_stride",
        "device_block_count",
    }
    assert model.config.prefill_batch_sizes == model.config.decode_batch_sizes == (1, 2, 4, 8)
    assert model.config.block_seq_stride == 16
    assert model.config.kv_cache_dtype == "float16"


def test_the_program_tells_nothing_of_where_it_was_made(model):
    text = model.mlir.read_text()
    assert "loc(" not in text
    assert "/home" not in text
    assert "/root" not in text
    assert "_assert_tensor_metadata" not in text


def test_a_users_directory_needs_no_checksums_and_may_bring_a_vmfb(copy):
    (copy / "model.mlir").unlink()
    (copy / "theirs.vmfb").write_bytes(b"compiled")
    model = load_model(copy)
    assert model.mlir is None
    assert model.vmfb == (copy / "theirs.vmfb").resolve()


def test_later_exporters_keys_are_read(copy):
    cache = json.loads((copy / "config.json").read_text())["paged_kv_cache"]
    change_json(
        copy / "config.json",
        attn_dtype="float32",
        has_prefill_position=True,
        paged_kv_cache={**cache, "kv_cache_dtype": "float32"},
    )
    config = load_model(copy).config
    assert config.kv_cache_dtype == "float32"
    assert config.has_prefill_position


def test_the_checksum_follows_the_content_not_the_place(copy, tmp_path):
    first = load_model(copy).checksum
    moved = tmp_path / "moved"
    shutil.copytree(copy, moved)
    assert load_model(moved).checksum == first
    change_json(moved / "config.json", max_seq_len=128)
    assert load_model(moved).checksum != first


def missing(name):
    return lambda directory: (directory / name).unlink()


def written(name, content):
    return lambda directory: (directory / name).write_bytes(content)


def changed(name, **changes):
    return lambda directory: change_json(directory / name, **changes)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (missing("config.json"), "config.json is missing"),
        (missing("model.mlir"), "holds no program"),
        (missing("model.irpa"), "holds no weights"),
        (missing("tokenizer.json"), "tokenizer.json is missing"),
        (missing("tokenizer_config.json"), "tokenizer_config.json is missing"),
        (written("config.json", b"{not json"), "cannot be read as JSON"),
        (written("config.json", b"\xff\xfe"), "cannot be read as JSON"),
        (written("config.json", b"[]"), "must hold one JSON object"),
        (written("model.irpa", b"GARBAGE"), "is not a .irpa file"),
        (written("model.irpa", b""), "is not a .irpa file"),
        (written("model.mlir", b""), "is empty"),
        (written("other.mlir", b"module {}"), "more than one .mlir"),
        (written("tokenizer.json", b"{}"), "no key 'model'"),
        (changed("config.json", max_seq_len=None), "'max_seq_len'"),
        (changed("config.json", attn_head_dim="wide"), "'attn_head_dim'"),
        (changed("config.json", decode_batch_sizes=[]), "'decode_batch_sizes'"),
        (changed("config.json", prefill_batch_sizes=[0, 4]), "at least 1"),
        (changed("config.json", paged_kv_cache=None), "'paged_kv_cache'"),
        (changed("config.json", paged_kv_cache={}), "'attention_head_count_kv'"),
        (changed("tokenizer_config.json", eos_token=None), "eos_token"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(copy, damage, words):
    damage(copy)
    with pytest.raises(ModelError) as caught:
        load_model(copy)
    message = str(caught.value)
    assert words in message
    assert "\n" not in message
    assert message.endswith(".")


def test_a_directory_that_is_not_there(tmp_path):
    with pytest.raises(ModelError, match="There is no model directory"):
        load_model(tmp_path / "nowhere")


def test_a_damaged_file_does_not_pass_its_checksum(copy):
    write_checksums(copy)
    load_model(copy)
    weights = bytearray((copy / "model.irpa").read_bytes())
    weights[-100] ^= 1
    (copy / "model.irpa").write_bytes(weights)
    with pytest.raises(ModelError, match=r"model\.irpa is not the file that checksums.json"):
        load_model(copy)
    (copy / "model.irpa").unlink()
    with pytest.raises(ModelError, match="though checksums"):
        load_model(copy)


def test_the_model_is_found_inside_a_wheel(monkeypatch, tmp_path: Path):
    monkeypatch.setattr("analysis.model.artifacts.repo_root", lambda: None)
    packaged = tmp_path / "analysis" / "_data" / "model"
    shutil.copytree(shipped_model_of_the_checkout(), packaged)
    monkeypatch.setattr(
        "analysis.model.artifacts.__file__", str(tmp_path / "analysis" / "model" / "artifacts.py")
    )
    assert load_model().directory == packaged.resolve()
    shutil.rmtree(packaged)
    with pytest.raises(ModelError, match="counting model is missing"):
        load_model()


def shipped_model_of_the_checkout() -> Path:
    return Path(__file__).resolve().parents[2] / "data" / "model"


def test_one_token_is_one_character(model):
    assert shipped_model() == shipped_model_of_the_checkout()
    tokenizer = ModelTokenizer(model)
    text = "1 2 3 abc xyz>"
    ids = tokenizer.encode(text)
    assert len(ids) == 1 + len(text)
    assert ids == encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.vocabulary_size == len(VOCABULARY)
    assert tokenizer.encode("Ü") == [1, 0]


def test_a_tokenizer_that_is_none(copy):
    (copy / "tokenizer.json").write_text('{"model": {"type": "Nonsense"}}')
    with pytest.raises(ModelError, match="is not a tokenizer"):
        ModelTokenizer(load_model(copy))
