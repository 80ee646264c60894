"""A llama GGUF file of a few kB with random weights, and its forward pass in GGUF's own terms.

The program that runs it is `programs/tiny.mlir.gz`, made by
`python -m analysis.model.programs tests/model/programs/tiny.json` with the extra `train`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

PROGRAMS = Path(__file__).with_name("programs")
WIDTH, LAYERS, HEADS, KV_HEADS, HEAD_DIM, HIDDEN = 32, 2, 4, 2, 8, 64
BASE, EPS = 500.0, 1e-6
BYTES = sorted(ByteLevel.alphabet())
MERGES = ["a b", "ab c", "Ġ a", "d e", "f g"]
TOKENS = ["<end>", "<begin>", "<tool>", *BYTES, *(m.replace(" ", "") for m in MERGES)]
Tensors = dict[str, np.ndarray]


def random_tensors(seed: int = 0) -> Tensors:
    """Weights by GGUF's names, float32; queries and keys in GGUF's order of rows."""
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return rng.normal(0, columns**-0.5, (rows, columns)).astype(np.float32)

    def vector() -> np.ndarray:
        return rng.uniform(0.5, 1.5, WIDTH).astype(np.float32)

    tensors = {
        "token_embd.weight": matrix(len(TOKENS), WIDTH) * 4,
        "output_norm.weight": vector(),
        "output.weight": matrix(len(TOKENS), WIDTH) * 2,
    }
    for layer in range(LAYERS):
        tensors |= {
            f"blk.{layer}.{name}.weight": values
            for name, values in {
                "attn_norm": vector(),
                "attn_q": matrix(HEADS * HEAD_DIM, WIDTH) * 2,
                "attn_k": matrix(KV_HEADS * HEAD_DIM, WIDTH) * 2,
                "attn_v": matrix(KV_HEADS * HEAD_DIM, WIDTH),
                "attn_output": matrix(WIDTH, HEADS * HEAD_DIM),
                "ffn_norm": vector(),
                "ffn_gate": matrix(HIDDEN, WIDTH),
                "ffn_up": matrix(HIDDEN, WIDTH),
                "ffn_down": matrix(WIDTH, HIDDEN),
            }.items()
        }
    return tensors


def header() -> dict[str, Any]:
    """The header's values by key."""
    return {
        "llama.block_count": LAYERS,
        "llama.context_length": 128,
        "llama.embedding_length": WIDTH,
        "llama.feed_forward_length": HIDDEN,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": EPS,
        "llama.rope.freq_base": BASE,
        "llama.rope.dimension_count": HEAD_DIM,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3, 3, 4] + [1] * (len(TOKENS) - 3),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
    }


def write_gguf(
    path: Path,
    tensors: Tensors | None = None,
    *,
    kind: str = "F32",
    architecture: str = "llama",
    **changes: Any,
) -> Path:
    """Write a GGUF file. `changes` replace values of the header (None leaves one out).

    `__` in a name stands for a dot. Matrices are stored as `kind`.
    """
    writer = gguf.GGUFWriter(path, architecture)
    values = header() | {name.replace("__", "."): value for name, value in changes.items()}
    for key, value in values.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif value is not None:
            writer.add_array(key, value)
    for name, tensor in (random_tensors() if tensors is None else tensors).items():
        if tensor.ndim == 1 or tensor.dtype != np.float32:
            writer.add_tensor(name, tensor)
            continue
        type_ = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quantize(tensor, type_), raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def forward(tensors: Tensors, tokens: list[int]) -> np.ndarray:
    """Scores ``[tokens, vocab]`` of plain causal attention, with GGUF's rotary embedding.

    It turns neighbours of a head together, as llama.cpp does with rows in this order.
    """
    length = len(tokens)
    angles = np.arange(length)[:, None] * BASE ** (-np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]

    def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS) * weight

    def turned(x: np.ndarray) -> np.ndarray:
        even, odd = x[..., 0::2], x[..., 1::2]
        return np.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(x.shape)

    x = tensors["token_embd.weight"][tokens].astype(np.float64)
    for layer in range(LAYERS):
        at = {
            name.split(".")[2]: values
            for name, values in tensors.items()
            if name.startswith(f"blk.{layer}.")
        }
        y = norm(x, at["attn_norm"])
        q = turned((y @ at["attn_q"].T).reshape(length, HEADS, HEAD_DIM))
        k = turned((y @ at["attn_k"].T).reshape(length, KV_HEADS, HEAD_DIM))
        v = (y @ at["attn_v"].T).reshape(length, KV_HEADS, HEAD_DIM)
        k, v = (np.repeat(part, HEADS // KV_HEADS, 1) for part in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) * HEAD_DIM**-0.5
        scores[:, ~np.tri(length, dtype=bool)] = -np.inf
        raised = np.exp(scores - scores.max(-1, keepdims=True))
        attended = np.einsum("hqk,khd->qhd", raised / raised.sum(-1, keepdims=True), v)
        x = x + attended.reshape(length, -1) @ at["attn_output"].T
        y = norm(x, at["ffn_norm"])
        gate = y @ at["ffn_gate"].T
        x = x + (gate / (1 + np.exp(-gate)) * (y @ at["ffn_up"].T)) @ at["ffn_down"].T
    return norm(x, tensors["output_norm.weight"]) @ tensors["output.weight"].T
