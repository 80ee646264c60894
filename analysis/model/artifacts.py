"""Reads a model directory: config, program, weights, tokenizer, checksums."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from analysis.core.errors import ModelError, writing
from analysis.core.files import write_atomically
from analysis.core.paths import cache_dir, repo_root

_CHECKSUMS, _FROM_POSITIONS = "checksums.json", "from_positions.mlir.gz"
_LOADED = {".json", ".mlir", ".vmfb", ".irpa", ".gguf"}
_SAMPLED_FROM = 1 << 30


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """config.json in the format of sharktank's export_paged_llm_v1; ``raw`` is the whole file."""

    module_name: str
    module_abi_version: int
    max_seq_len: int
    attn_head_dim: int
    prefill_batch_sizes: tuple[int, ...]
    decode_batch_sizes: tuple[int, ...]
    transformer_block_count: int
    attention_head_count_kv: int
    block_seq_stride: int
    device_block_count: int
    kv_cache_dtype: str
    has_prefill_position: bool
    raw: Mapping[str, Any]

    @property
    def page_shape(self) -> tuple[int, int, int, int, int]:
        """One page of the cache: (layers, 2 for K and V, tokens, kv heads, head dimension)."""
        return (
            self.transformer_block_count,
            2,
            self.block_seq_stride,
            self.attention_head_count_kv,
            self.attn_head_dim,
        )

    @property
    def page_elements(self) -> int:
        """Elements of one page of the cache."""
        layers, kinds, tokens, heads, size = self.page_shape
        return layers * kinds * tokens * heads * size


@dataclass(frozen=True, slots=True)
class ModelArtifacts:
    """A checked model directory.

    ``mlir`` and ``vmfb`` are not both None. ``checksum`` is a SHA-256 over the config, the program,
    the weights and the tokenizer (of weights files of a gibibyte and more: their size and both
    ends).
    """

    directory: Path
    config: ModelConfig
    mlir: Path | None
    vmfb: Path | None
    parameters: tuple[Path, ...]
    tokenizer_json: Path
    bos_token: str | None
    eos_token: str
    checksum: str


def shipped_model() -> Path:
    """Return the counting model's directory: `data/model` of the checkout, or inside the wheel.

    Raises ModelError if neither place has it.
    """
    root = repo_root()
    places = [root / "data" / "model"] if root else []
    places.append(Path(__file__).resolve().parent.parent / "_data" / "model")
    for place in places:
        if (place / "config.json").is_file():
            return place
    restore = "restore it with `git checkout data/model`" if root else "install the package again"
    raise ModelError(
        f"The counting model is missing from {places[0]}; {restore} or make it anew with"
        " `cachelab model train`."
    )


def imported_models() -> Path:
    """Return the directory of models that `cachelab model import` made."""
    return cache_dir() / "models"


def model_directory(model: str | os.PathLike[str] | None) -> Path:
    """Return the absolute directory of a model, which may not exist.

    `model` is a path or the name of an imported model; None is the shipped counting model. A
    directory of that name in the working directory is preferred.
    """
    if model is None:
        return Path(os.path.realpath(shipped_model()))
    path = Path(os.path.expanduser(model))
    if len(path.parts) == 1 and not os.path.lexists(path) and not path.is_absolute():
        path = imported_models() / path
    return Path(os.path.realpath(path))


def load_model(
    path: str | os.PathLike[str] | None = None, *, from_positions: bool = False
) -> ModelArtifacts:
    """Read and check a model directory, as `model_directory` finds it.

    The directory holds config.json, one .mlir or .vmfb (or both), .irpa or .gguf weights,
    tokenizer.json and tokenizer_config.json. If checksums.json is there, every file that it names
    is verified. `from_positions` asks for a program whose prefills take start positions: the
    model's own if config.json has `has_prefill_position`, else its from_positions.mlir.gz.

    Raises ModelError if a file is missing, corrupt or differs from its checksum.
    """
    directory = model_directory(path)
    if not os.path.lexists(directory) and directory.parent == Path(
        os.path.realpath(imported_models())
    ):
        name = directory.name
        raise ModelError(
            f"There is no directory {name}, and no model of that name was imported: import it with"
            f" `cachelab model import {name}`, or from a GGUF file with `cachelab model import"
            f" {name}.gguf`, or give a directory that holds config.json."
        )
    if not os.path.isdir(directory):
        raise ModelError(
            f"There is no model directory {directory}; give one that holds config.json."
        )
    try:
        return _load(directory, from_positions)
    except OSError as error:
        raise ModelError(
            f"{error.filename or directory} cannot be read ({error.strerror or error}); give a"
            " model of files that can be read."
        ) from error


def _load(directory: Path, from_positions: bool) -> ModelArtifacts:
    digests = _verified(directory)
    config = _config(directory / "config.json")
    mlir, vmfb = _only(directory, "mlir"), _only(directory, "vmfb")
    if from_positions and not config.has_prefill_position:
        mlir, vmfb = _from_positions(directory / _FROM_POSITIONS), None
        config = replace(config, has_prefill_position=True)
    if mlir is None and vmfb is None:
        raise ModelError(
            f"{directory} holds no program; add the .mlir or the .vmfb that the exporter wrote."
        )
    parameters = tuple(sorted([*directory.glob("*.irpa"), *directory.glob("*.gguf")]))
    if not parameters:
        raise ModelError(f"{directory} holds no weights; add the .irpa or .gguf file of the model.")
    for weights in parameters:
        _check_weights(weights)
    tokenizer = directory / "tokenizer.json"
    if "model" not in _json(tokenizer):
        raise ModelError(
            f"{tokenizer} has no key 'model'; replace it by a Hugging Face tokenizers file."
        )
    tokenizer_config = directory / "tokenizer_config.json"
    words = _json(tokenizer_config)
    eos = _token(words.get("eos_token"))
    if eos is None:
        raise ModelError(f"{tokenizer_config} names no eos_token; add the model's end token to it.")
    files = [directory / "config.json", tokenizer, tokenizer_config, *parameters]
    files += [program for program in (mlir, vmfb) if program is not None]
    return ModelArtifacts(
        directory=directory,
        config=config,
        mlir=mlir,
        vmfb=vmfb,
        parameters=parameters,
        tokenizer_json=tokenizer,
        bos_token=_token(words.get("bos_token")),
        eos_token=eos,
        checksum=_checksum(files, digests),
    )


def write_model_files(
    directory: Path, program: str, config: object, tokenizer: object, tokenizer_config: object
) -> None:
    """Write a model's files beside its weights, which are there already, and all checksums."""
    (directory / "model.mlir").write_text(program, encoding="utf-8")
    for name, value in (
        ("config.json", config),
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", tokenizer_config),
    ):
        (directory / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    write_checksums(directory)


def write_checksums(directory: Path) -> None:
    """Write checksums.json (SHA-256) for every file of `directory` that a model is loaded from."""
    names = sorted(
        file.name
        for file in directory.iterdir()
        if (file.suffix in _LOADED or file.name == _FROM_POSITIONS) and file.name != _CHECKSUMS
    )
    files = {name: sha256(directory / name) for name in names}
    text = json.dumps({"algorithm": "sha256", "files": files}, indent=2) + "\n"
    (directory / _CHECKSUMS).write_text(text, encoding="utf-8")


def write_from_positions(directory: Path, program: str) -> None:
    """Write a model's second program, whose prefills take start positions."""
    # Without a time in it, the same program gives the same file.
    compressed = gzip.compress(program.encode(), mtime=0)
    (directory / _FROM_POSITIONS).write_bytes(compressed)


def _from_positions(path: Path) -> Path:
    """Return a model's second program, unpacked in the cache."""
    _check_regular(path)
    if not path.is_file():
        raise ModelError(
            f"{path.parent} has no program whose prefills take start positions ({path.name}), so"
            " has_prefill_position and chunk_block_size cannot be used with it. Use the counting"
            " model, or a model that was exported with start positions."
        )
    unpacked = cache_dir() / "programs" / f"{sha256(path)[:20]}.mlir"
    if not unpacked.is_file():
        try:
            text = gzip.decompress(path.read_bytes())
        except (OSError, EOFError, ValueError) as error:
            raise ModelError(f"{path} cannot be unpacked ({error}). Restore the file.") from None
        with writing(unpacked):
            write_atomically(unpacked, text)
    return unpacked


def _verified(directory: Path) -> dict[str, str]:
    path = directory / _CHECKSUMS
    if not path.is_file():
        return {}
    files = _json(path).get("files")
    if not isinstance(files, dict):
        raise ModelError(f"{path} has no table 'files'; delete it or write it anew.")
    for name, expected in files.items():
        if not (directory / name).is_file():
            raise ModelError(
                f"{directory / name} is missing, though checksums.json lists it; restore the file."
            )
        if sha256(directory / name) != expected:
            raise ModelError(
                f"{directory / name} is not the file that checksums.json describes; restore it, or "
                "delete checksums.json if the change was meant."
            )
    return dict(files)


def _config(path: Path) -> ModelConfig:
    raw = _json(path)
    cache = raw.get("paged_kv_cache")
    if not isinstance(cache, dict):
        raise ModelError(f"{path} has no table 'paged_kv_cache'; the engine needs a paged model.")

    def number(table: Mapping[str, Any], key: str, default: int | None = None) -> int:
        value = table.get(key, default)
        if type(value) is not int or value < 1:
            raise ModelError(f"{path} needs a positive whole number under '{key}', not {value!r}.")
        return value

    def sizes(key: str) -> tuple[int, ...]:
        value = raw.get(key)
        if not isinstance(value, list) or not value:
            raise ModelError(f"{path} needs a list of batch sizes under '{key}', not {value!r}.")
        if not all(type(size) is int and size >= 1 for size in value):
            raise ModelError(
                f"{path} needs batch sizes of at least 1 under '{key}', not {value!r}."
            )
        return tuple(sorted(value))

    return ModelConfig(
        module_name=str(raw.get("module_name", "module")),
        module_abi_version=number(raw, "module_abi_version", 1),
        max_seq_len=number(raw, "max_seq_len"),
        attn_head_dim=number(raw, "attn_head_dim"),
        prefill_batch_sizes=sizes("prefill_batch_sizes"),
        decode_batch_sizes=sizes("decode_batch_sizes"),
        transformer_block_count=number(raw, "transformer_block_count"),
        attention_head_count_kv=number(cache, "attention_head_count_kv"),
        block_seq_stride=number(cache, "block_seq_stride"),
        device_block_count=number(cache, "device_block_count"),
        kv_cache_dtype=str(cache.get("kv_cache_dtype", raw.get("attn_dtype", "float16"))),
        has_prefill_position=bool(raw.get("has_prefill_position", False)),
        raw=MappingProxyType(raw),
    )


def _check_regular(path: Path) -> None:
    """Raise ModelError for a directory, or a file that would block, such as a pipe."""
    if os.path.lexists(path) and not os.path.isfile(path):
        raise ModelError(f"{path} is no file that can be read; restore the file.")


def _json(path: Path) -> dict[str, Any]:
    _check_regular(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{path} is missing; put the file that the exporter wrote beside the others."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({error}); restore the file.") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} must hold one JSON object; restore the file.")
    return value


def _only(directory: Path, suffix: str) -> Path | None:
    found = sorted(directory.glob(f"*.{suffix}"))
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise ModelError(
            f"{directory} holds more than one .{suffix} ({names}); leave only one there."
        )
    if not found:
        return None
    _check_regular(found[0])
    if found[0].stat().st_size == 0:
        raise ModelError(f"{found[0]} is empty; restore the file.")
    return found[0]


def _check_weights(path: Path) -> None:
    _check_regular(path)
    magic = {".irpa": b"IRPA", ".gguf": b"GGUF"}[path.suffix]
    with path.open("rb") as file:
        if file.read(4) != magic:
            raise ModelError(
                f"{path} is not a {path.suffix} file, or is damaged; restore the file."
            )


def _token(value: object) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _checksum(files: list[Path], digests: Mapping[str, str]) -> str:
    whole = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.name):
        whole.update(f"{file.name} {digests.get(file.name) or _fingerprint(file)}\n".encode())
    return whole.hexdigest()


def _fingerprint(path: Path) -> str:
    size = path.stat().st_size
    if size < _SAMPLED_FROM:
        return sha256(path)
    # Hashing tens of GiB at every start would take longer than most runs.
    with path.open("rb") as file:
        ends = file.read(1 << 20)
        file.seek(-(1 << 20), 2)
        ends += file.read()
    return hashlib.sha256(str(size).encode() + ends).hexdigest()


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
