"""A llama GGUF file: its metadata as an architecture, its tensors as the decoder's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.core.errors import ModelError, shown
from analysis.model.architecture import Architecture

Array = npt.NDArray[Any]

_LONGEST_CONTEXT = 512
"""Most tokens of an imported model: scores of a prefill take 4 bytes x rows x tokens x vocab."""
_PAGE_TOKENS = 16
_LEAST_CONTEXT = 4 * _PAGE_TOKENS
_REQUIRED = object()

_LAYER = {
    "attn_norm": "attention_norm",
    "attn_q": "query",
    "attn_k": "key",
    "attn_v": "value",
    "attn_output": "out",
    "ffn_norm": "feed_norm",
    "ffn_gate": "gate",
    "ffn_up": "up",
    "ffn_down": "down",
}
"""Tensors of a layer: the GGUF file's name, and the decoder's."""


@dataclass(frozen=True)
class Checkpoint:
    """A GGUF file that was read and checked. Made by `read_checkpoint`."""

    path: Path
    architecture: Architecture
    metadata: Mapping[str, Any]
    """Every value of the file's header, by its key."""
    types: tuple[str, ...]
    """Types of the stored matrices, such as Q4_1, without repeats."""
    _tensors: Mapping[str, Any]

    def get(self, key: str, kind: type | tuple[type, ...], default: Any = _REQUIRED) -> Any:
        """Return a value of the header. Raises ModelError if it is missing or of another type."""
        return _get(self.path, self.metadata, key, kind, default)

    def weights(self) -> Iterator[tuple[str, Array]]:
        """Yield each weight of the decoder by name; vectors are float32.

        Raises ModelError for a type that cannot be dequantised, or a value that the type of the
        architecture's matrices cannot hold.
        """
        sizes = self.architecture
        exponents = np.arange(0, sizes.head_dim, 2, dtype=np.float32) / sizes.head_dim
        frequencies = np.float32(sizes.rope_base) ** -exponents / self._rope_factor()
        yield "inverse_frequencies", frequencies.astype(np.float32)
        for theirs, (ours, shape) in _places(sizes).items():
            values = self._dequantised(theirs).reshape(shape)
            if theirs.endswith("attn_q.weight"):
                values = _halves_together(values, sizes.heads)
            elif theirs.endswith("attn_k.weight"):
                values = _halves_together(values, sizes.kv_heads)
            yield ours, self._stored(theirs, values)

    def _rope_factor(self) -> Array | float:
        if "rope_freqs.weight" in self._tensors:
            return self._dequantised("rope_freqs.weight")
        if self.get("llama.rope.scaling.type", str, "none") == "linear":
            return float(self.get("llama.rope.scaling.factor", (float, int)))
        return 1.0

    def _dequantised(self, name: str) -> Array:
        from gguf import dequantize

        tensor = self._tensors[name]
        try:
            return np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        except NotImplementedError:
            raise ModelError(
                f"{self.path} stores {name} as {tensor.tensor_type.name}, which cannot be"
                " dequantised: import a file with a quantisation such as Q4_1, Q8_0 or F16."
            ) from None

    def _stored(self, name: str, values: Array) -> Array:
        """Return values in the type that the decoder stores them in."""
        if values.ndim == 1:
            return values
        with np.errstate(over="ignore"):
            stored = values.astype(self.architecture.weight_dtype)
        if not np.isfinite(stored).all():
            raise ModelError(
                f"{self.path} has values in {name} that are not finite in"
                f" {self.architecture.weight_dtype}: import another file of the model."
            )
        return np.ascontiguousarray(stored)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the header of a GGUF file, and check that the decoder can run the model.

    Raises ModelError with what is unsupported, missing or damaged.
    """
    metadata, tensors = _read(path)
    name = _get(path, metadata, "general.architecture", str)
    if name != "llama":
        raise ModelError(
            f"{path} holds a model of the architecture {shown(name)}: only llama can be imported"
            " (Llama, SmolLM and others of its form)."
        )
    sizes = _architecture(path, metadata, tensors)
    _check_tensors(path, sizes, tensors)
    types = tuple(dict.fromkeys(t.tensor_type.name for t in tensors.values() if len(t.shape) > 1))
    return Checkpoint(path, sizes, metadata, types, tensors)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ModelError(
            f"Importing a model needs the package `gguf` ({error}): install it with"
            " `pip install gguf`."
        ) from None
    try:
        with path.open("rb") as file:
            magic = file.read(4)
        if magic != b"GGUF":
            raise ModelError(f"{path} is no GGUF file: give one that begins with GGUF.")
        reader = GGUFReader(path)
        metadata = {key: field.contents() for key, field in reader.fields.items()}
        return metadata, {tensor.name: tensor for tensor in reader.tensors}
    except ModelError:
        raise
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # the reader raises of many types on a damaged file
        raise ModelError(
            f"{path} cannot be read as GGUF ({shown(str(error))}): it is damaged or incomplete, so"
            " fetch it again."
        ) from error


def _get(
    path: Path,
    metadata: Mapping[str, Any],
    key: str,
    kind: type | tuple[type, ...],
    default: Any = _REQUIRED,
) -> Any:
    value = metadata.get(key, default)
    if value is _REQUIRED:
        raise ModelError(f"{path} has no value {key}: import a GGUF file that has it.")
    if value is not default and (not isinstance(value, kind) or isinstance(value, bool)):
        raise ModelError(f"{path} has {shown(value)} under {key}, which cannot be used.")
    return value


def _architecture(
    path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Any]
) -> Architecture:
    def number(key: str, default: Any = _REQUIRED) -> int:
        value = int(_get(path, metadata, f"llama.{key}", int, default))
        if value < 1:
            raise ModelError(f"{path} has {value} under llama.{key}, which cannot be used.")
        return value

    width, heads = number("embedding_length"), number("attention.head_count")
    head_dim = number("attention.key_length", width // heads)
    context = number("context_length")
    for key in ("attention.value_length", "rope.dimension_count"):
        if number(key, head_dim) != head_dim:
            raise ModelError(
                f"{path} has {number(key)} under llama.{key} and heads of {head_dim}: only models"
                " where these are equal can be imported."
            )
    if head_dim % 2 or heads % number("attention.head_count_kv", heads):
        raise ModelError(f"{path} has heads that cannot be used: their sizes do not divide.")
    if context < _LEAST_CONTEXT:
        raise ModelError(
            f"{path} is for a context of {context} tokens: at least {_LEAST_CONTEXT} are needed."
        )
    for key, fine in (("rope.scaling.type", ("none", "linear")), ("expert_count", (0,))):
        if (value := metadata.get(f"llama.{key}", fine[0])) not in fine:
            raise ModelError(
                f"{path} has {shown(value)} under llama.{key}, which is not supported: import a"
                " model without it."
            )
    window = metadata.get("llama.attention.sliding_window")
    if window and window < min(context, _LONGEST_CONTEXT):
        raise ModelError(f"{path} attends to {window} tokens only, which is not supported.")
    embedding = tensors.get("token_embd.weight")
    return Architecture(
        vocab=int(embedding.shape[-1]) if embedding is not None else 0,
        width=width,
        layers=number("block_count"),
        heads=heads,
        kv_heads=number("attention.head_count_kv", heads),
        head_dim=head_dim,
        hidden=number("feed_forward_length"),
        page_tokens=_PAGE_TOKENS,
        max_seq_len=min(context, _LONGEST_CONTEXT) // _PAGE_TOKENS * _PAGE_TOKENS,
        rope_base=_rounded(_get(path, metadata, "llama.rope.freq_base", float, 10_000.0)),
        norm_eps=_rounded(_get(path, metadata, "llama.attention.layer_norm_rms_epsilon", float)),
        query_key_norm=False,
        tied_head="output.weight" not in tensors,
        flat_products=True,
        weight_dtype="float32",
    )


def _rounded(value: float) -> float:
    """Return the shortest number that is this one in float32, in which GGUF stores it."""
    return float(str(np.float32(value)))


def _check_tensors(path: Path, sizes: Architecture, tensors: Mapping[str, Any]) -> None:
    places = _places(sizes)
    if missing := [name for name in places if name not in tensors]:
        raise ModelError(f"{path} lacks the tensor {missing[0]} (of {len(missing)} that it lacks).")
    if more := sorted(tensors.keys() - places.keys() - {"rope_freqs.weight"}):
        raise ModelError(
            f"{path} has the tensor {shown(more[0])}, for which this decoder has no place: only"
            " plain llama models can be imported, without biases and experts."
        )
    shapes = {name: shape for name, (_, shape) in places.items()}
    shapes["rope_freqs.weight"] = (sizes.head_dim // 2,)
    for name, tensor in tensors.items():
        found = tuple(int(size) for size in reversed(tensor.shape))
        if found != shapes[name]:
            raise ModelError(f"{path} has {name} of shape {found}, not {shapes[name]}.")


def _places(sizes: Architecture) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the decoder's name and shape of each tensor, by the GGUF file's name."""
    inner, kv_inner = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    width, hidden = sizes.width, sizes.hidden
    shapes = {
        "attention_norm": (width,), "query": (inner, width), "key": (kv_inner, width),
        "value": (kv_inner, width), "out": (width, inner), "feed_norm": (width,),
        "gate": (hidden, width), "up": (hidden, width), "down": (width, hidden),
    }  # fmt: skip
    places: dict[str, tuple[str, tuple[int, ...]]] = {
        "token_embd.weight": ("embedding.weight", (sizes.vocab, width)),
        "output_norm.weight": ("norm.weight", (width,)),
    }
    if not sizes.tied_head:
        places["output.weight"] = ("head.weight", (sizes.vocab, width))
    for layer in range(sizes.layers):
        for theirs, ours in _LAYER.items():
            name = f"blocks.{layer}.{ours}.weight"
            places[f"blk.{layer}.{theirs}.weight"] = (name, shapes[ours])
    return places


def _halves_together(values: Array, heads: int) -> Array:
    """Undo the order of rows that GGUF gives queries and keys of llama.

    There a head's rows alternate between the halves that the rotary embedding turns together; the
    decoder has one half after the other. `values` are ``[heads * head dimension, width]``.
    """
    pairs = values.reshape(heads, -1, 2, values.shape[1])
    return pairs.swapaxes(1, 2).reshape(values.shape)
