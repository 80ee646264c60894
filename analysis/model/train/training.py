"""Training on sequences from `analysis.workloads.prompts`: plain next-token prediction, seeded."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from analysis.model.architecture import Architecture
from analysis.model.train.architecture import Decoder
from analysis.model.vocabulary import VOCABULARY, encode
from analysis.workloads.prompts import FAMILIES, LANES_FROM, MAX_LENGTH, Prompt, draw, draw_many


@dataclass(frozen=True, slots=True)
class Course:
    """How long to train, and how fast. The defaults are those of the shipped model."""

    steps: int = 1_600
    rows: int = 40
    warmup: int = 100
    rate: float = 4e-3
    seed: int = 0
    threads: int = 2


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained decoder and what it took."""

    decoder: Decoder
    seconds: float
    tokens: int
    course: Course


def train(
    course: Course | None = None, progress: Callable[[str], None] = lambda line: None
) -> Trained:
    """Train a decoder from scratch; the same course gives the same data in the same order."""
    course = course or Course()
    torch.manual_seed(course.seed)
    torch.set_num_threads(course.threads)
    rng = np.random.default_rng(course.seed)
    decoder = Decoder(Architecture(vocab=len(VOCABULARY)))
    matrices = [p for block in decoder.blocks for p in block.parameters() if p.dim() == 2]
    others = [p for p in decoder.parameters() if not any(p is m for m in matrices)]
    optimizers = [
        torch.optim.Muon(
            matrices, lr=course.rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=course.rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    began = time.monotonic()
    seen = 0
    for step in range(course.steps):
        ramp = min(1.0, (step + 1) / course.warmup)
        rate = course.rate * ramp * min(1.0, 1.25 * (1 - step / course.steps))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        tokens, answers = _batch(rng, course.rows)
        seen += tokens.numel()
        logits = decoder(tokens[:, :-1])
        wanted = answers[:, 1:]
        loss = functional.cross_entropy(logits[wanted], tokens[:, 1:][wanted])
        decoder.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        if (step + 1) % (10 if course.steps < 100 else 100) == 0:
            spent = time.monotonic() - began
            line = f"step {step + 1} of {course.steps}, loss {loss.item():.4f}, {spent:.0f} s"
            if (step + 1) % 500 == 0:
                line += ", held-out " + _words(heldout_accuracy(decoder))
            progress(line)
    return Trained(decoder.eval(), time.monotonic() - began, seen, course)


def heldout_accuracy(decoder: Decoder) -> dict[str, float]:
    """Return the share of held-out prompts that are answered exactly (15 tokens), by family."""
    rng = np.random.default_rng(1)
    shares = {}
    for family in FAMILIES:
        prompts = draw_many(rng, 100, families=(family,), split="held_out")
        tokens, answers = _tensors(prompts, MAX_LENGTH + 15)
        with torch.no_grad():
            guesses = decoder(tokens[:, :-1]).argmax(-1)
        right = (guesses == tokens[:, 1:]) | ~answers[:, 1:]
        shares[family] = right.all(1).float().mean().item()
    return shares


def _words(shares: dict[str, float]) -> str:
    return " ".join(f"{family} {share:.2f}" for family, share in shares.items())


# Sequences of one kind are about equally long, so that a batch holds little padding:
# kind -> (its share of the batches, tokens of a sequence, rows for each row of the course).
_KINDS = {
    "plain": (0.40, 64, 2.5),
    "short": (0.15, 96, 2.0),
    "lanes": (0.28, MAX_LENGTH + 48, 1.0),
    "recall": (0.17, 2 * MAX_LENGTH, 0.8),
}
_NUMBERS = ("count", "descend")


def _batch(rng: np.random.Generator, rows: int) -> tuple[Tensor, Tensor]:
    """Token ids ``[rows, length]`` and which of them are to be learned (same shape)."""
    kind = str(rng.choice(list(_KINDS), p=[share for share, _, _ in _KINDS.values()]))
    _, length, factor = _KINDS[kind]
    return _tensors([_sequence(rng, kind, length) for _ in range(int(rows * factor))], length)


def _sequence(rng: np.random.Generator, kind: str, length: int) -> Prompt:
    if kind == "recall":
        family, tokens = "recall", int(rng.integers(24, MAX_LENGTH + 1))
    elif kind == "lanes":
        family, tokens = FAMILIES[int(rng.integers(3))], LANES_FROM
    else:
        family = str(rng.choice(_NUMBERS if kind == "plain" else FAMILIES))
        # All that follows two items is learned, so short prompts teach the long ones too.
        tokens = int(rng.integers(7, 49 if family == "recall" else 13))
        if family != "descend" and rng.integers(4) == 0:
            tokens = int(rng.integers(5, 9))
    n = length - tokens
    if family == "descend" and kind != "lanes" and rng.integers(2):
        # Only small steps go on for long before zero; the others are seen in shorter ones.
        n = 24
    return draw(family, rng, length=tokens, n=n, split="train")


def _tensors(prompts: list[Prompt], length: int) -> tuple[Tensor, Tensor]:
    tokens = torch.zeros((len(prompts), length), dtype=torch.int64)
    answers = torch.zeros((len(prompts), length), dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids = encode(prompt.prompt + prompt.continuation)[:length]
        tokens[row, : len(ids)] = torch.tensor(ids)
        answers[row, prompt.tokens : len(ids)] = True
    return tokens, answers
