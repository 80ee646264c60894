"""The counting model's own vocabulary: one token a character, and three special ones."""

from __future__ import annotations

from analysis.workloads.prompts import ALPHABET

UNKNOWN, BOS, EOS = "<unk>", "<s>", "</s>"

# Engines pad with id 0, which is the unknown token, as in llama tokenizers.
VOCABULARY = (UNKNOWN, BOS, EOS, *ALPHABET)

_IDS = {token: index for index, token in enumerate(VOCABULARY)}


def encode(text: str) -> list[int]:
    """Token ids of `text` after the bos token, as with tokenizer.json."""
    return [_IDS[BOS], *(_IDS.get(character, 0) for character in text)]
