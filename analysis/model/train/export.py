"""Exporting a decoder: portable MLIR, weights, and the counting model's tokenizer and config."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import iree.turbine.aot as aot
import torch
from torch import Tensor

from analysis.model.architecture import Architecture
from analysis.model.artifacts import write_from_positions, write_model_files
from analysis.model.train.architecture import Decoder
from analysis.model.vocabulary import BOS, EOS, UNKNOWN, VOCABULARY

BATCH_SIZES = (1, 2, 4, 8)
_SCOPE = "model"


def export_model(decoder: Decoder, directory: Path) -> None:
    """Write the model to `directory`: config, program, weights, tokenizer, checksums."""
    directory.mkdir(parents=True, exist_ok=True)
    program = export_program(decoder, BATCH_SIZES)
    write_from_positions(directory, export_program(decoder, BATCH_SIZES, from_positions=True))
    aot.save_module_parameters(directory / "model.irpa", decoder)
    config = decoder.sizes.config(BATCH_SIZES)
    write_model_files(directory, program, config, _tokenizer(), _tokenizer_config(decoder.sizes))


def export_program(
    decoder: Decoder, batch_sizes: Sequence[int], *, from_positions: bool = False
) -> str:
    """Return the program as portable MLIR: prefill and decode for each batch size, no weights.

    With `from_positions`, prefills take start positions (see `Decoder.prefill_from`). From then on
    the decoder's weights are parameters of the scope `model`, by their names.
    """
    decoder = decoder.eval()
    for parameter in decoder.parameters():
        parameter.requires_grad_(False)
    aot.externalize_module_parameters(decoder, external_scope=_SCOPE)
    sizes = decoder.sizes
    builder = aot.FxProgramsBuilder(decoder)
    blocks = torch.export.Dim("blocks", min=2, max=sizes.max_seq_len // sizes.page_tokens - 1)
    table = torch.export.Dim("table", min=2, max=sizes.max_seq_len // sizes.page_tokens - 1)
    pages = torch.export.Dim("pages", min=2)
    for rows in batch_sizes:
        block_ids = torch.zeros((rows, 3), dtype=torch.int64)
        long_table = torch.zeros((rows, 5), dtype=torch.int64)
        slab = torch.zeros((8, sizes.page_elements), dtype=torch.float16)
        lengths = torch.ones(rows, dtype=torch.int64)
        prompt = torch.zeros((rows, 3 * sizes.page_tokens), dtype=torch.int64)

        prefill_shapes = {
            "tokens": {1: sizes.page_tokens * blocks},
            "seq_lens": {},
            "block_ids": {1: blocks},
            "slab": {0: pages},
        }
        if from_positions:
            # The table also has the blocks before the start.
            prefill_shapes["block_ids"] = {1: table}
            prefill_shapes["start_positions"] = {}
            builder.export_program(
                name=f"prefill_bs{rows}",
                args=(prompt, lengths - 1, lengths, long_table, slab),
                dynamic_shapes=prefill_shapes,
                strict=False,
            )(_prefill_from)
        else:
            builder.export_program(
                name=f"prefill_bs{rows}",
                args=(prompt, lengths, block_ids, slab),
                dynamic_shapes=prefill_shapes,
                strict=False,
            )(_prefill)
        builder.export_program(
            name=f"decode_bs{rows}",
            # Two tensors: given one object twice, torch.export would read it for both.
            args=(prompt[:, :1], lengths, lengths - 1, block_ids, slab),
            dynamic_shapes={
                "tokens": {},
                "seq_lens": {},
                "start_positions": {},
                "block_ids": {1: blocks},
                "slab": {0: pages},
            },
            strict=False,
        )(_decode)
    output = aot.export(builder)
    text = io.StringIO()
    output.mlir_module.print(file=text, enable_debug_info=False)
    return portable(text.getvalue())


def _prefill(
    model: Decoder, tokens: Tensor, seq_lens: Tensor, block_ids: Tensor, slab: Tensor
) -> Tensor:
    return model.prefill(tokens, seq_lens, block_ids, slab)


def _prefill_from(
    model: Decoder,
    tokens: Tensor,
    start_positions: Tensor,
    seq_lens: Tensor,
    block_ids: Tensor,
    slab: Tensor,
) -> Tensor:
    return model.prefill_from(tokens, start_positions, seq_lens, block_ids, slab)


def _decode(
    model: Decoder,
    tokens: Tensor,
    seq_lens: Tensor,
    start_positions: Tensor,
    block_ids: Tensor,
    slab: Tensor,
) -> Tensor:
    return model.decode(tokens, seq_lens, start_positions, block_ids, slab)


def portable(mlir: str) -> str:
    """Drop what older compilers do not know and what only describes the machine of the export."""
    lines = (
        line
        for line in mlir.splitlines()
        if "_assert_tensor_metadata" not in line and not line.startswith("#loc")
    )
    text = re.sub(r" loc\(#?[^)]*\)", "", "\n".join(lines) + "\n")
    # The attribute moved to another dialect; every compiler still reads its first name.
    text = text.replace("#flow.parameter.named<", "#stream.parameter.named<")
    return re.sub(r"^(module @)\S+", r"\1module", text, flags=re.MULTILINE)


def _tokenizer() -> dict[str, Any]:
    ids = {token: index for index, token in enumerate(VOCABULARY)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": ids[token],
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for token in (UNKNOWN, BOS, EOS)
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": "[\\s\\S]"},
            "behavior": "Isolated",
            "invert": False,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": BOS, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [
                {"SpecialToken": {"id": BOS, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {BOS: {"id": BOS, "ids": [ids[BOS]], "tokens": [BOS]}},
        },
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": ids, "unk_token": UNKNOWN},
    }


def _tokenizer_config(sizes: Architecture) -> dict[str, Any]:
    return {
        "bos_token": BOS,
        "eos_token": EOS,
        "unk_token": UNKNOWN,
        "model_max_length": sizes.max_seq_len,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
