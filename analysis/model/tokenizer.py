"""The model's tokenizer: text to token ids with the bos token, and back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from analysis.core.errors import ModelError
from analysis.model.artifacts import ModelArtifacts


class ModelTokenizer:
    """Reads tokenizer.json with the `tokenizers` package, as the engine does.

    Raises ModelError if tokenizer.json is not a tokenizer.
    """

    def __init__(self, model: ModelArtifacts) -> None:
        import tokenizers

        self._path = model.tokenizer_json
        try:
            self._raw: Any = tokenizers.Tokenizer.from_file(str(model.tokenizer_json))
        except Exception as error:
            raise ModelError(
                f"{model.tokenizer_json} is not a tokenizer ({error}); restore the file."
            ) from None

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, the bos token first if the tokenizer adds one."""
        return list(self._raw.encode(text).ids)

    def encode_answer(self, text: str) -> list[int]:
        """Token ids of `text`, without those that the tokenizer puts before every text."""
        return self.encode(text)[len(self.encode("")) :]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, without special tokens."""
        return str(self._raw.decode(list(ids)))

    def token_id(self, token: str) -> int:
        """Id of a token of the vocabulary. Raises ModelError if it is unknown."""
        found = self._raw.token_to_id(token)
        if found is None:
            raise ModelError(
                f"The token {token!r} is not in the vocabulary of {self._path}: correct"
                " tokenizer_config.json."
            )
        return int(found)

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens, including special ones."""
        return int(self._raw.get_vocab_size())
