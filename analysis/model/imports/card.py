"""The card of an imported model: where it comes from, its licence, and what it is."""

from __future__ import annotations

from dataclasses import dataclass

from analysis.model.artifacts import sha256
from analysis.model.imports.checkpoint import Checkpoint
from analysis.model.imports.package import PACKAGES
from analysis.model.programs import Program


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an imported model comes from."""

    model: str
    licence: str
    source: str
    """The package or file, as a sentence's end."""
    command: str

    @classmethod
    def of(cls, source: str, checkpoint: Checkpoint) -> Origin:
        """Return the origin of a checkpoint that was imported by `source`."""
        digest = f"SHA-256 `{sha256(checkpoint.path)}`"
        file = f"`{checkpoint.path.name}` ({digest})"
        command = f"cachelab model import {source}"
        if package := PACKAGES.get(source):
            where = f"{file} in the Python package `{package.requirement}`"
            return cls(package.model, package.licence, where, command)
        name = str(checkpoint.metadata.get("general.name", checkpoint.path.stem))
        licence = str(checkpoint.metadata.get("general.license", "not stated in the file"))
        return cls(name, licence, file, command)


def model_card(checkpoint: Checkpoint, origin: Origin, program: Program) -> str:
    """Return README.md of an imported model."""
    sizes = checkpoint.architecture
    batches = ", ".join(map(str, program.batch_sizes))
    head = "The output matrix is the embedding." if sizes.tied_head else ""
    return f"""# {origin.model}

Licence: {origin.licence}. Imported from {origin.source} by

    {origin.command}

- {sizes.layers} layers, width {sizes.width}, {sizes.heads} heads of {sizes.head_dim} sharing
  {sizes.kv_heads} key-value heads, feed-forward {sizes.hidden}, {sizes.vocab:,} tokens. {head}
- RMSNorm with epsilon {sizes.norm_eps:g}, rotary embedding with base {sizes.rope_base:g}.
- Matrices: {", ".join(checkpoint.types)} in the file, dequantised to {sizes.weight_dtype} here.
  Rows of queries and keys are in the decoder's order, not in that of GGUF.
- Batch sizes {batches}; at most {sizes.max_seq_len} tokens; pages of {sizes.page_tokens} tokens,
  [layers, (K, V), {sizes.page_tokens} tokens, kv heads, head dimension], float16.
"""
