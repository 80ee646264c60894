"""The counting model's own vocabulary: one token a character, and three special ones."""

from __future__ import annotations

from analysis.workloads.prompts import ALPHABET

UNKNOWN, BOS, EOS = "<unk>", "<s>", "</s>"

# Id 0 is what engines pad with; it is the unknown token, as llama tokenizers have it.
VOCABULARY = (UNKNOWN, BOS, EOS, *ALPHABET)

_IDS = {token: index for index, token in enumerate(VOCABULARY)}


def encode(text: str) -> list[int]:
    """Token ids of `text` with the bos token before it, as tokenizer.json gives them."""
    return [_IDS[BOS], *(_IDS.get(character, 0) for character in text)]
