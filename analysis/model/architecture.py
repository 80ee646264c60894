"""The sizes of a llama-style decoder, without torch: what an exported program is made for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

_PAGES = 256


@dataclass(frozen=True, slots=True)
class Architecture:
    """Sizes and kind of a decoder. The defaults, but `vocab`, are those of the counting model."""

    vocab: int
    width: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    hidden: int = 256
    page_tokens: int = 16
    """Tokens of a page, which holds keys and values of all layers."""
    max_seq_len: int = 256
    rope_base: float = 10_000.0
    norm_eps: float = 1e-5
    query_key_norm: bool = True
    """Queries and keys are normalised, as in OLMo 2 and Qwen3."""
    tied_head: bool = False
    """The embedding is the output matrix, too."""
    flat_products: bool = False
    """Matrices multiply rows and positions as one dimension, which compiles to faster code."""
    weight_dtype: str = "float32"
    """Type of stored matrices, float16 or float32; sums are of float32 in both cases."""

    @property
    def page_elements(self) -> int:
        """Elements of a page: layers x (K, V) x tokens x kv heads x head dimension."""
        return self.layers * 2 * self.page_tokens * self.kv_heads * self.head_dim

    def as_dict(self) -> dict[str, int | float | bool | str]:
        """Return the sizes as plain JSON values."""
        return asdict(self)

    def config(self, batch_sizes: Sequence[int]) -> dict[str, Any]:
        """Return config.json of a model with this decoder, exported for these batch sizes."""
        # Only keys that the oldest release knows: it refuses any other.
        return {
            "module_name": "module",
            "module_abi_version": 1,
            "max_seq_len": self.max_seq_len,
            "attn_head_dim": self.head_dim,
            "prefill_batch_sizes": list(batch_sizes),
            "decode_batch_sizes": list(batch_sizes),
            "transformer_block_count": self.layers,
            "paged_kv_cache": {
                "attention_head_count_kv": self.kv_heads,
                "block_seq_stride": self.page_tokens,
                "device_block_count": _PAGES,
            },
        }
