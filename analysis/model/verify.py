"""Verify a model through the reference decoder, on prompts that the counting model never saw.

It measures whether the reported prompt is right, how many prompts are answered exactly, whether
another prompt's page changes an answer, whether lengths that are too long change tokens, and what
can be answered without the context.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.model.artifacts import ModelArtifacts
from analysis.model.overread import Overread, overread
from analysis.model.reference import ReferenceDecoder, ReferenceSequence
from analysis.model.tokenizer import ModelTokenizer
from analysis.model.vocabulary import VOCABULARY
from analysis.stats.bounds import wilson
from analysis.workloads.prompts import (
    FAMILIES,
    LANES_FROM,
    MAX_LENGTH,
    PAGE_TOKENS,
    Prompt,
    draw,
    draw_many,
    minimum_length,
    reported,
)

ACCURACY_NEEDED = 0.995
SENSITIVITY_NEEDED = 0.95
NEW_TOKENS = 15


@dataclass(frozen=True, slots=True)
class Share:
    """`hits` of `trials`, with the 95% interval of Wilson (1927)."""

    hits: int
    trials: int

    @property
    def share(self) -> float:
        """Hits divided by trials."""
        return self.hits / self.trials

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end of the interval."""
        return wilson(self.hits, self.trials)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.share:.1%} ({self.hits} of {self.trials}; {low:.1%} to {high:.1%})"

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "share": self.share, "interval": self.interval}


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """Results of `verify_model`; shares by family."""

    checksum: str
    seed: int
    is_counting_model: bool
    reported_answer: str
    reported_right: bool
    accuracy: dict[str, Share]
    sensitivity: dict[str, Share]
    overread: dict[str, Overread]
    last_two_tokens: dict[str, Share]
    last_page: dict[str, Share]

    @property
    def overall_accuracy(self) -> Share:
        """All families together."""
        return _together(self.accuracy)

    @property
    def passed(self) -> bool:
        """Whether the model is what this project needs: of an imported one, only to count."""
        return self.reported_right and (
            not self.is_counting_model
            or (
                self.overall_accuracy.share >= ACCURACY_NEEDED
                and min(share.share for share in self.sensitivity.values()) >= SENSITIVITY_NEEDED
            )
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "checksum": self.checksum,
            "seed": self.seed,
            "passed": self.passed,
            "reported": {"answer": self.reported_answer, "right": self.reported_right},
            "accuracy": _plain(self.accuracy),
            "sensitivity": _plain(self.sensitivity),
            "overread": {family: asdict(found) for family, found in self.overread.items()},
            "last_two_tokens": _plain(self.last_two_tokens),
            "last_page": _plain(self.last_page),
        }


def verify_model(
    model: ModelArtifacts,
    vmfb: Path,
    *,
    trials: int = 1_000,
    seed: int = 0,
    progress: Callable[[str], None] = lambda line: None,
) -> VerifyReport:
    """Measure the model through the reference decoder; two to four minutes for 1,000 trials.

    * accuracy: `trials` distinct held-out prompts, the families in turn, 5 to 120 tokens. A hit:
      all 15 greedy tokens are the known continuation.
    * sensitivity: `trials` / 5 for each family. A trial prefills a held-out prompt and another of
      the same family and length, each in a cache of its own, copies one full page of the other's
      over the same page of the first, and goes on decoding. Sequences (49 tokens and longer, 15 new
      tokens): the last full page. Recall (17 tokens and longer, as many new tokens as the list is
      long): any full page. A hit: the answer differs from the undisturbed one.
    * overread: `trials` / 10 prompts of each family, their answers of 15 tokens decoded with the
      lengths of shortfin 3.1.0 over slots that hold other prompts of the same family and length;
      see `analysis.model.overread`. A hit: a token that differs.
    * last_two_tokens: `trials` / 5 for each family, 10 tokens and longer. A hit: the right answer
      from the bos token and the last two tokens alone.
    * last_page: the same with the last 16 tokens of prompts of 49 tokens and more.

    Raises ModelError if the model or the program cannot be loaded.
    """
    tokenizer = ModelTokenizer(model)
    decoder = ReferenceDecoder(model, vmfb)
    rng = np.random.default_rng(seed)
    each = max(1, trials // 5)
    begin = tokenizer.encode("")  # the bos token, if there is one

    def right(prompt: Prompt, ids: Sequence[int]) -> bool:
        # No more tokens than characters: a token is one of them or more.
        sequence = decoder.start(ids, capacity=len(ids) + len(prompt.continuation))
        return _writes(sequence, tokenizer, prompt.continuation)

    asked = reported(NEW_TOKENS)
    answer = tokenizer.decode(decoder.generate(tokenizer.encode(asked.prompt), NEW_TOKENS))
    progress(f"The reported prompt is answered {answer!r}.")

    prompts = draw_many(rng, trials, n=NEW_TOKENS, split="held_out")
    accuracy = _by_family(
        (prompt.family, right(prompt, tokenizer.encode(prompt.prompt))) for prompt in prompts
    )
    progress(f"Answered exactly: {_together(accuracy)}.")

    sensitivity = _by_family(
        (family, _disturbed(family, rng, tokenizer, decoder))
        for family in FAMILIES
        for _ in range(each)
    )
    progress(f"Changed by a foreign page: {_together(sensitivity)}.")

    misread = measure_overread(decoder, max(1, trials // 10), seed)
    progress(f"Changed by lengths that are too long: {Overread.sum(misread.values())}.")

    def cut(least: int, kept: int) -> dict[str, Share]:
        results = []
        for family in FAMILIES:
            for _ in range(each):
                length = int(rng.integers(least, MAX_LENGTH + 1))
                prompt = draw(family, rng, length=length, n=NEW_TOKENS, split="held_out")
                ids = tokenizer.encode(prompt.prompt)
                results.append((family, right(prompt, [*begin, *ids[-kept:]])))
        return _by_family(results)

    last_two = cut(10, 2)
    last_page = cut(LANES_FROM, PAGE_TOKENS)
    progress(f"Answered from the last two tokens: {_together(last_two)}.")
    progress(f"Answered from the last 16 tokens: {_together(last_page)}.")
    return VerifyReport(
        checksum=model.checksum,
        seed=seed,
        is_counting_model=tokenizer.vocabulary_size == len(VOCABULARY),
        reported_answer=answer,
        reported_right=answer == asked.continuation,
        accuracy=accuracy,
        sensitivity=sensitivity,
        overread=misread,
        last_two_tokens=last_two,
        last_page=last_page,
    )


def measure_overread(decoder: ReferenceDecoder, answers: int, seed: int = 0) -> dict[str, Overread]:
    """Return, by family, how many tokens change when lengths are too long; see `verify_model`."""
    tokenizer, rng = ModelTokenizer(decoder.model), np.random.default_rng([seed, 1])
    return {
        family: Overread.sum(_overread(family, rng, tokenizer, decoder) for _ in range(answers))
        for family in FAMILIES
    }


def _disturbed(
    family: str, rng: np.random.Generator, tokenizer: ModelTokenizer, decoder: ReferenceDecoder
) -> bool:
    """Return whether another prompt's page changes the answer: one trial of sensitivity."""
    least = PAGE_TOKENS + 1 if family == "recall" else LANES_FROM
    full = 0
    while not full:  # of another tokenizer, a short prompt may fill no page
        length = int(rng.integers(least, MAX_LENGTH + 1))
        own, other = (
            draw(family, rng, length=length, n=NEW_TOKENS, split="held_out").prompt
            for _ in range(2)
        )
        ids, foreign = tokenizer.encode(own), tokenizer.encode(other)
        full = min(len(ids), len(foreign)) // PAGE_TOKENS
    page = int(rng.integers(full)) if family == "recall" else full - 1
    n = own.index(">") + 1 if family == "recall" else NEW_TOKENS
    undisturbed = decoder.generate(ids, n)
    sequence = decoder.start(ids, capacity=len(ids) + n)
    pages = sequence.read_pages()
    pages[page] = decoder.start(foreign).read_pages()[page]
    sequence.write_pages(pages)
    return not _says(sequence, undisturbed)


def _says(sequence: ReferenceSequence, wanted: Sequence[int]) -> bool:
    """Return whether the sequence continues with these tokens; stops at the first difference."""
    for token in wanted[:-1]:
        if sequence.next_token != token:
            return False
        sequence.step(token)
    return sequence.next_token == wanted[-1]


def _writes(sequence: ReferenceSequence, tokenizer: ModelTokenizer, wanted: str) -> bool:
    """Whether the sequence goes on with this text; stops asking at the first other character."""
    answer: list[int] = []
    text = ""
    while True:
        answer.append(sequence.next_token)
        before, text = text, tokenizer.decode(answer)
        if len(text) <= len(before) or not wanted.startswith(text[: len(wanted)]):
            return False
        if len(text) >= len(wanted):
            return True
        sequence.step(answer[-1])


def _overread(
    family: str, rng: np.random.Generator, tokenizer: ModelTokenizer, decoder: ReferenceDecoder
) -> Overread:
    """Decode an answer with lengths that are too long: one trial of `overread`."""
    length = int(rng.integers(minimum_length(family), MAX_LENGTH + 1))
    own = tokenizer.encode(draw(family, rng, length=length, split="held_out").prompt)
    other, foreign = "", own[:0]
    while len(foreign) < len(own) + NEW_TOKENS + PAGE_TOKENS:
        other += draw(family, rng, length=length, split="held_out").prompt
        foreign = tokenizer.encode(other)
    return overread(decoder, own, foreign, NEW_TOKENS)


def _by_family(results: Any) -> dict[str, Share]:
    counted: dict[str, list[bool]] = {family: [] for family in FAMILIES}
    for family, hit in results:
        counted[family].append(hit)
    return {family: Share(sum(hits), len(hits)) for family, hits in counted.items() if hits}


def _together(shares: dict[str, Share]) -> Share:
    return Share(sum(s.hits for s in shares.values()), sum(s.trials for s in shares.values()))


def _plain(shares: dict[str, Share]) -> dict[str, Any]:
    return {"all": _together(shares).as_dict()} | {
        family: share.as_dict() for family, share in shares.items()
    }
