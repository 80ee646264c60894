"""The reference decoder's probabilities of the next token."""

from __future__ import annotations

from functools import lru_cache

from analysis.shortfin.oracle import oracle_of


@lru_cache(maxsize=64)
def reference_probabilities(
    release: str,
    prompt: str,
    prompt_tokens: tuple[int, ...] | None,
    answer: tuple[int, ...],
    *,
    model: str | None = None,
    batch_sizes: tuple[int, ...] = (4,),
) -> tuple[float, ...]:
    """Return the probability of every token of the vocabulary after a prompt and its right answer.

    Raises ModelError if the decoder fails or stops answering, ReleaseError if the release has no
    environment here.
    """
    oracle = oracle_of(release, model=model, batch_sizes=batch_sizes)
    return oracle.probabilities(prompt, prompt_tokens, answer)
