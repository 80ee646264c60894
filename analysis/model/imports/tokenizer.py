"""A GGUF file's tokenizer as tokenizer.json: byte-level BPE."""

from __future__ import annotations

from typing import Any

from analysis.core.errors import ModelError, shown
from analysis.model.imports.checkpoint import Checkpoint

_KEY = "tokenizer.ggml"
_CONTROL, _USER_DEFINED = 3, 4
"""Types of tokens that are found in a text before it is split."""

_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_SPLITS: dict[str, dict[str, Any]] = {
    "default": _BYTES,
    "gpt-2": _BYTES,
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTES],
    },
}
"""How a text is split before merging, by the name that GGUF gives it."""


def tokenizer_files(checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return tokenizer.json and tokenizer_config.json of a checkpoint.

    Raises ModelError for a tokenizer that is not supported or does not fit the model.
    """
    path = checkpoint.path
    kind = checkpoint.get(f"{_KEY}.model", str)
    split = checkpoint.get(f"{_KEY}.pre", str, "default")
    if kind != "gpt2" or split not in _SPLITS:
        raise ModelError(
            f"{path} has the tokenizer {shown(kind)} with the split {shown(split)}, which is not"
            f" supported: only byte-level BPE (gpt2) with {', '.join(_SPLITS)} is."
        )
    tokens: list[str] = checkpoint.get(f"{_KEY}.tokens", list)
    merges = [merge.split(" ") for merge in checkpoint.get(f"{_KEY}.merges", list)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if len(tokens) != checkpoint.architecture.vocab or len(vocabulary) != len(tokens):
        raise ModelError(
            f"{path} has {len(vocabulary)} different tokens and {checkpoint.architecture.vocab}"
            " rows of the embedding: these must be equal."
        )
    for merge in merges:
        if len(merge) != 2 or not {*merge, "".join(merge)} <= vocabulary.keys():
            raise ModelError(f"{path} merges {shown(' '.join(merge))}, which are no tokens of its.")
    types = checkpoint.get(f"{_KEY}.token_type", list, [])
    added = [
        _added(number, token, special=types[number] == _CONTROL)
        for number, token in enumerate(tokens[: len(types)])
        if types[number] in (_CONTROL, _USER_DEFINED)
    ]
    eos = _token(checkpoint, tokens, "eos")
    if eos is None:
        raise ModelError(f"{path} names no end token ({_KEY}.eos_token_id): the engine needs one.")
    bos = _token(checkpoint, tokens, "bos")
    adds_bos = bool(checkpoint.metadata.get(f"{_KEY}.add_bos_token")) and bos is not None
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": _SPLITS[split],
        "post_processor": _put_first(bos, vocabulary[bos]) if adds_bos and bos else None,
        "decoder": _BYTES,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }
    config = {
        "bos_token": bos,
        "eos_token": eos,
        "model_max_length": checkpoint.architecture.max_seq_len,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    return tokenizer, config


def _token(checkpoint: Checkpoint, tokens: list[str], name: str) -> str | None:
    key = f"{_KEY}.{name}_token_id"
    number: int | None = checkpoint.get(key, int, None)
    if number is None:
        return None
    if not 0 <= number < len(tokens):
        raise ModelError(f"{checkpoint.path} has {number} under {key}, which is no token.")
    return tokens[number]


def _added(number: int, token: str, *, special: bool) -> dict[str, Any]:
    return {
        "id": number,
        "content": token,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


def _put_first(token: str, number: int) -> dict[str, Any]:
    """Return the post-processor that puts one token before every text."""
    first = {"SpecialToken": {"id": token, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            first,
            {"Sequence": {"id": "A", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }
