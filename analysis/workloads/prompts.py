"""The prompt families: text with a continuation that is known by construction.

One token is one character, and each prompt begins with a bos token, so a prompt of ``length``
tokens has ``length - 1`` characters. All random draws use the caller's
``numpy.random.Generator``: the same seed gives the same prompts on every machine.

Families
--------
``count``, ``descend``
    Numbers that rise or fall by a constant step: ``7 10 13 16 ``. From `LANES_FROM` tokens on, six
    counters of three digits are read in turn, each with a start and a step of its own.
``letters``
    Letters of the alphabet with a constant step, past ``z`` back to ``a``: ``a d g j ``. From
    `LANES_FROM` tokens on, twelve counters in turn.
``recall``
    A list of made-up words closed by ``>``. The continuation repeats the list from its start, or
    from the word whose first letters follow ``>``.

Counters in turn have a period of `PERIOD` = 24 characters. The next 15 tokens then depend on tokens
10 to 23 positions back, which include the last full page of 16 tokens wherever the prompt ends, and
not only the unfinished page after it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

Split = Literal["any", "train", "held_out"]

ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz >"
FAMILIES = ("count", "descend", "letters", "recall")
PAGE_TOKENS = 16
PERIOD = 24
LANES_FROM = 1 + 2 * PERIOD
MAX_LENGTH = 120

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_MINIMUM = {"count": 5, "descend": 7, "letters": 5, "recall": 5}
_NUMBER_STEP = 12
_LANE_STEP = 20
_LETTER_STEP = 8
_WORD = (3, 6)
_HELD_OUT_ONE_IN = 8
_DRAWS = 20_000


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt and its right continuation.

    ``continuation`` has one character a token.
    """

    family: str
    prompt: str
    continuation: str

    @property
    def tokens(self) -> int:
        """Length of the prompt in tokens, the bos token included."""
        return 1 + len(self.prompt)


def minimum_length(family: str) -> int:
    """Fewest tokens (bos included) for a prompt of this family to have only one right answer."""
    return _MINIMUM[_known(family)]


def reported(n: int = 15) -> Prompt:
    """Return the prompt of the bug report, ``1 2 3 4 5 ``, with `n` characters of its answer."""
    text = "".join(f"{value} " for value in range(1, 7 + n))
    return Prompt("count", text[:10], text[10 : 10 + n])


def is_held_out(prompt: str) -> bool:
    """Whether this prompt, and all others with the same stem, are excluded from training.

    The stem determines the answer's rule: the list with its ``>``, or the first two items of a
    sequence. One stem in eight is held out, by its SHA-256, and always that of the reported prompt.
    """
    stem = _stem(prompt)
    if stem == "1 2 ":
        return True
    return hashlib.sha256(stem.encode()).digest()[0] % _HELD_OUT_ONE_IN == 0


def draw(
    family: str,
    rng: np.random.Generator,
    *,
    length: int,
    n: int = 15,
    split: Split = "any",
) -> Prompt:
    """Draw one prompt of exactly `length` tokens (bos included) and `n` characters of continuation.

    Raises ValueError if the family is unknown, the length is not from ``minimum_length(family)`` to
    MAX_LENGTH, or no such prompt exists (a short descent cannot go on for long).
    """
    least = minimum_length(family)
    if not least <= length <= MAX_LENGTH:
        raise ValueError(
            f"A {family} prompt must have {least} to {MAX_LENGTH} tokens, bos included, not "
            f"{length}."
        )
    if n < 1:
        raise ValueError(f"A continuation must have at least one character, not {n}.")
    make = _MAKERS[family]
    for _ in range(_DRAWS):
        made = make(rng, length - 1, n)
        if made is not None and _wanted(made[0], split):
            return Prompt(family, *made)
    raise ValueError(
        f"No {family} prompt of {length} tokens has a continuation of {n} characters. Choose a "
        "longer prompt or fewer characters."
    )


def draw_many(
    rng: np.random.Generator,
    count: int,
    *,
    families: tuple[str, ...] = FAMILIES,
    n: int = 15,
    split: Split = "any",
) -> list[Prompt]:
    """Draw `count` distinct prompts, families in turn, 5 to MAX_LENGTH tokens.

    A length below a family's minimum is raised to that minimum.
    """
    seen: set[str] = set()
    prompts: list[Prompt] = []
    for _ in range(100 * count):
        if len(prompts) == count:
            return prompts
        family = families[len(prompts) % len(families)]
        length = max(int(rng.integers(5, MAX_LENGTH + 1)), minimum_length(family))
        made = draw(family, rng, length=length, n=n, split=split)
        if made.prompt not in seen:
            seen.add(made.prompt)
            prompts.append(made)
    raise ValueError(
        f"There are fewer than {count} distinct prompts of these families and lengths."
    )


def shared_prefix(
    rng: np.random.Generator,
    *,
    members: int,
    prefix_tokens: int = 2 * PAGE_TOKENS,
    length: int = 64,
    n: int = 15,
    split: Split = "any",
) -> list[Prompt]:
    """Draw prompts that share at least `prefix_tokens` tokens (bos included) and then differ.

    Each member is a recall prompt of `length` tokens: the shared words, its own words, ``>`` and
    the last shared word as the cue. So its right answer is its own words, which differ between
    members.

    Raises ValueError if `length` is too small for a member's own words.
    """
    shared = prefix_tokens - 1
    for _ in range(_DRAWS):
        head = _words(rng, shared - 1)
        if head is None:
            continue
        cue = head[head.rfind(" ") + 1 :] + " "
        own = length - 1 - len(head) - 2 - len(cue)
        if own < 4:
            raise ValueError(
                f"{length} tokens are too few for a member's own words after a shared prefix of "
                f"{prefix_tokens}. Choose at least {length + 4 - own}."
            )
        made = _family_of(rng, head + " ", cue, own, members, n, split)
        if made is not None:
            return made
    raise ValueError(
        f"No {members} prompts of {length} tokens share {prefix_tokens}. Choose fewer."
    )


def _family_of(
    rng: np.random.Generator, head: str, cue: str, own: int, members: int, n: int, split: Split
) -> list[Prompt] | None:
    made: dict[str, Prompt] = {}
    for _ in range(60 * members):
        if len(made) == members:
            return list(made.values())
        words = _words(rng, own, before=head)
        if words is None:
            continue
        listed = words + ">"
        prompt = listed + cue
        answer = _repeat(listed, len(head), n)
        # The first three characters differ, so that the answers differ early.
        if _wanted(prompt, split) and answer[:3] not in made:
            made[answer[:3]] = Prompt("recall", prompt, answer)
    return None


def _known(family: str) -> str:
    if family not in FAMILIES:
        raise ValueError(f"Unknown prompt family {family!r}. Known are {', '.join(FAMILIES)}.")
    return family


def _stem(prompt: str) -> str:
    if ">" in prompt:
        return prompt[: prompt.index(">") + 1]
    found = re.match(r"\S+ \S+ ", prompt)
    return found.group() if found else prompt


def _wanted(prompt: str, split: Split) -> bool:
    return split == "any" or is_held_out(prompt) == (split == "held_out")


def _numbers(
    rng: np.random.Generator, chars: int, n: int, direction: int
) -> tuple[str, str] | None:
    """Return numbers from 0 to 999, rising (1) or falling (-1); None if the draw does not fit."""
    total = chars + n
    lanes = PERIOD // 4 if 1 + chars >= LANES_FROM else 1
    widest = _NUMBER_STEP if lanes == 1 else _LANE_STEP
    steps = [direction * int(step) for step in rng.integers(1, widest + 1, size=lanes)]
    if lanes == 1:
        low, high = 0, 10 ** int(rng.integers(1, 4))
        values = [int(rng.integers(low, high))]
        head = f"{values[0]} {values[0] + steps[0]} "
        if len(head) > chars or _stem(head) != head:
            return None
    else:
        low = 100
        span = _LANE_STEP * (total // PERIOD + 1)
        first = (100, 1000 - span) if direction > 0 else (100 + span, 1000)
        if first[0] >= first[1]:
            return None
        values = [int(value) for value in rng.integers(*first, size=lanes)]
    parts: list[str] = []
    size = 0
    while size < total:
        for lane in range(lanes):
            if not low <= values[lane] <= 999:
                return None
            parts.append(f"{values[lane]} ")
            size += len(parts[-1])
            values[lane] += steps[lane]
    text = "".join(parts)
    return text[:chars], text[chars:total]


def _alphabet(rng: np.random.Generator, chars: int, n: int) -> tuple[str, str]:
    total = chars + n
    lanes = PERIOD // 2 if 1 + chars >= LANES_FROM else 1
    starts = rng.integers(0, len(_LETTERS), size=lanes)
    steps = rng.integers(1, _LETTER_STEP + 1, size=lanes)
    rows = total // (2 * lanes) + 1
    table = (starts[None, :] + np.arange(rows)[:, None] * steps[None, :]) % len(_LETTERS)
    text = "".join(f"{_LETTERS[index]} " for index in table.ravel())
    return text[:chars], text[chars:total]


def _recall(rng: np.random.Generator, chars: int, n: int) -> tuple[str, str] | None:
    cue = int(rng.integers(2, 9)) if chars >= 16 and rng.integers(2) else 0
    words = _words(rng, chars - 1 - cue)
    if words is None:
        return None
    listed = words + ">"
    start = 0
    if cue:
        begins = [0, *(found.end() for found in re.finditer(" ", words))]
        start = int(rng.choice(begins))
    prompt = listed + _repeat(listed, start, cue)
    return prompt, _repeat(listed, start + cue, n)


def _repeat(listed: str, start: int, n: int) -> str:
    start %= len(listed)
    return (listed * (2 + (start + n) // len(listed)))[start : start + n]


def _words(rng: np.random.Generator, chars: int, before: str = "") -> str | None:
    """Return `before` and `chars` more characters of made-up words without repeated letter pairs.

    Two letters then identify the position in the list. None if this draw runs out of pairs.
    """
    text = before
    goal = len(before) + chars
    used = {before[i : i + 2] for i in range(len(before) - 1)}
    order = [_LETTERS[i] for i in rng.permutation(len(_LETTERS))]
    for size in _word_sizes(rng, chars):
        if len(text) > len(before):
            if text[-1] + " " in used:
                return None
            used.add(text[-1] + " ")
            text += " "
        for place in range(size):
            offset = int(rng.integers(len(order)))
            last = place == size - 1
            for letter in order[offset:] + order[:offset]:
                pair = text[-1:] + letter
                if pair in used or (last and letter + " " in used):
                    continue
                if len(pair) == 2:
                    used.add(pair)
                text += letter
                break
            else:
                return None
    return text if len(text) == goal else None


def _word_sizes(rng: np.random.Generator, chars: int) -> Iterator[int]:
    left = chars
    while left > _WORD[1]:
        size = min(int(rng.integers(_WORD[0], _WORD[1] + 1)), left - 2)
        yield size
        left -= size + 1
    yield left


_MAKERS: dict[str, Callable[[np.random.Generator, int, int], tuple[str, str] | None]] = {
    "count": lambda rng, chars, n: _numbers(rng, chars, n, 1),
    "descend": lambda rng, chars, n: _numbers(rng, chars, n, -1),
    "letters": _alphabet,
    "recall": _recall,
}
