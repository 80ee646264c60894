"""The named workloads, one class each. A seed gives the same prompts on every machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np

from analysis.core.errors import WorkloadError, shown
from analysis.workloads import prompts
from analysis.workloads.workload import Answers, Request, Workload, check_output

REPORTED_PROMPT = "1 2 3 4 5 "
REPORTED_ANSWER = "6 7 8"
"""The prompt of the reported test, and the required start of its answers."""

Decode = Callable[[Sequence[int]], str]

_TURN_TOKENS = 17
_LONG_ANSWER = 5 * prompts.PAGE_TOKENS
"""Tokens of an answer that is continued later: enough to fill pages of its own."""


class NamedWorkload:
    """Base class: offers candidates, and arranges the chosen ones into a workload."""

    name: ClassVar[str]
    rounds: ClassVar[int] = 1
    """Default number of requests of a client."""
    longest_answer: ClassVar[int] = 0
    """Most tokens of an answer, if fixed by the workload."""

    def offer(self, count: int, rng: np.random.Generator, max_new_tokens: int) -> list[Request]:
        """Return `count` candidates, group by group. Raises ValueError if there are none."""
        made: list[Request] = []
        while len(made) < count:
            made += self.group(rng, max_new_tokens, len(made))
        return made[:count]

    def group(self, rng: np.random.Generator, max_new_tokens: int, number: int) -> list[Request]:
        """Return candidates that belong together; `number` counts earlier candidates."""
        raise NotImplementedError

    def distinct(self, count: int) -> int:
        """Return the number of distinct candidates for a workload of `count` requests."""
        return count

    def arrange(self, chosen: Sequence[Request], count: int) -> list[Request]:
        """Return chosen candidates in the order of sending."""
        return list(chosen[:count])


class Reported(NamedWorkload):
    """The prompt of the bug report, repeated."""

    name = "reported"

    def offer(self, count: int, rng: np.random.Generator, max_new_tokens: int) -> list[Request]:
        return [Request("", REPORTED_PROMPT, max_new_tokens, REPORTED_ANSWER, family="count")]

    def distinct(self, count: int) -> int:
        return 1

    def arrange(self, chosen: Sequence[Request], count: int) -> list[Request]:
        return list(chosen[:1]) * count


class Mixed(NamedWorkload):
    """Prompts of every family and length."""

    name = "mixed"

    def offer(self, count: int, rng: np.random.Generator, max_new_tokens: int) -> list[Request]:
        drawn = prompts.draw_many(rng, count, n=max_new_tokens, split="held_out")
        return [_request(prompt, max_new_tokens) for prompt in drawn]


class SharedPrefix(NamedWorkload):
    """Groups of prompts that share two pages."""

    name = "shared_prefix"

    def group(self, rng: np.random.Generator, max_new_tokens: int, number: int) -> list[Request]:
        family = prompts.shared_prefix(
            rng,
            members=4,
            prefix_tokens=2 * prompts.PAGE_TOKENS,
            n=max_new_tokens,
            split="held_out",
        )
        return [_request(prompt, max_new_tokens) for prompt in family]


class Forks(NamedWorkload):
    """Groups of prompts that fork at any token: inside a page as well as between two."""

    name = "forks"
    _least_shared, _least_own = 6, 18

    def group(self, rng: np.random.Generator, max_new_tokens: int, number: int) -> list[Request]:
        shared = int(rng.integers(self._least_shared, prompts.MAX_LENGTH - self._least_own))
        family = prompts.shared_prefix(
            rng,
            members=4,
            prefix_tokens=shared,
            length=int(rng.integers(shared + self._least_own, prompts.MAX_LENGTH + 1)),
            n=max_new_tokens,
            split="held_out",
        )
        return [_request(prompt, max_new_tokens) for prompt in family]


class Bursts(Mixed):
    """The same as `mixed`, arriving in bursts at random: seven of eight gaps are short, one long.

    A client that is late sends its next request at once.
    """

    name = "bursts"
    _short_s, _long_s = 0.02, 0.8

    def arrange(self, chosen: Sequence[Request], count: int) -> list[Request]:
        rng = np.random.default_rng(count)
        means = np.where(rng.random(count) < 7 / 8, self._short_s, self._long_s)
        arrivals = np.cumsum(rng.exponential(means)).round(3).tolist()
        pairs = zip(chosen[:count], arrivals, strict=True)
        return [replace(request, arrival_s=arrival) for request, arrival in pairs]


class Cancelled(Mixed):
    """The same as `mixed`; every second client, at random, leaves within 0.3 s."""

    name = "cancelled"
    _longest_s = 0.3

    def arrange(self, chosen: Sequence[Request], count: int) -> list[Request]:
        rng = np.random.default_rng(count)
        leaves, after = rng.random(count) < 0.5, rng.uniform(0, self._longest_s, count).round(3)
        return [
            replace(request, cancel_after_s=float(after_s)) if left else request
            for request, left, after_s in zip(chosen[:count], leaves, after, strict=True)
        ]


class PrefixReuse(Mixed):
    """Prompts A, then other prompts B, then A again: three waves, one a request of a client."""

    name = "prefix_reuse"
    rounds = 3

    def distinct(self, count: int) -> int:
        first = -(-count // 3)
        return first + (count - first + 1) // 2

    def arrange(self, chosen: Sequence[Request], count: int) -> list[Request]:
        distinct = self.distinct(count)
        return [*chosen[:distinct], *chosen[: count - distinct]]


class MultiTurn(NamedWorkload):
    """Alternating conversations; each prompt continues the previous one."""

    name = "multi_turn"

    def group(self, rng: np.random.Generator, max_new_tokens: int, number: int) -> list[Request]:
        talks = [
            prompts.draw(family, rng, length=prompts.MAX_LENGTH, n=max_new_tokens, split="held_out")
            for family in ("count", "letters", "descend", "letters")
        ]
        made = []
        for length in range(prompts.LANES_FROM, prompts.MAX_LENGTH + 1, _TURN_TOKENS):
            for talk in talks:
                whole = talk.prompt + talk.continuation
                prompt, rest = whole[: length - 1], whole[length - 1 :]  # after the bos token
                made.append(_asked(prompt, max_new_tokens, rest, talk.family))
        return made


class EvictAfterLookup(NamedWorkload):
    """Rounds of four requests for two clients and a pool of 17 pages; each round is a family.

    First a long prompt, then one with a long answer. During its decodes, a third prompt shares
    three pages with the first and needs eight, so that some pages found in its lookup must be
    evicted. Its answer is on the third shared page. The fourth request only fills the round.
    """

    name = "evict_after_lookup"
    longest_answer = 80
    _arrivals_s, _round_s = (0.0, 0.4, 0.7, 1.2), 2.0

    def group(self, rng: np.random.Generator, max_new_tokens: int, number: int) -> list[Request]:
        first, third = prompts.shared_prefix(
            rng,
            members=2,
            prefix_tokens=3 * prompts.PAGE_TOKENS,
            length=prompts.MAX_LENGTH,
            n=4,
            split="held_out",
        )
        listed = third.prompt[: third.prompt.index(">") + 1]
        cue = listed.index(" ", 2 * prompts.PAGE_TOKENS) + 1
        answer = cue + 3
        busy = prompts.draw("letters", rng, length=30, n=self.longest_answer, split="held_out")
        even = prompts.draw("letters", rng, length=10, n=4, split="held_out")
        name = f"round {number // len(self._arrivals_s)}"
        return [
            Request("", first.prompt, 4, family=name),
            Request("", busy.prompt, self.longest_answer, family=name),
            Request("", listed + listed[cue:answer], 4, listed[answer : answer + 4], family=name),
            Request("", even.prompt, 1, family=name),
        ]

    def distinct(self, count: int) -> int:
        return count + 2 * len(self._arrivals_s)  # for incomplete rounds

    def arrange(self, chosen: Sequence[Request], count: int) -> list[Request]:
        sent = [
            replace(request, arrival_s=number * self._round_s + after)
            for number, members in enumerate(_whole_families(chosen, len(self._arrivals_s)))
            for request, after in zip(members, self._arrivals_s, strict=True)
        ]
        return sent[:count]


class Continued(NamedWorkload):
    """Prompts with long answers, then each prompt with its answer as a new prompt.

    The two requests are a family. The second one uses the cached pages of the first, including its
    answer. With an even number of requests a client, the two halves are sent separately.
    """

    name = "continued"
    longest_answer = _LONG_ANSWER
    copies: ClassVar[int] = 1
    """Number of times that a prompt is sent in a row."""

    def group(self, rng: np.random.Generator, max_new_tokens: int, number: int) -> list[Request]:
        talk = prompts.draw(
            prompts.FAMILIES[number // 2 % len(prompts.FAMILIES)],
            rng,
            length=int(rng.integers(prompts.LANES_FROM, prompts.MAX_LENGTH + 1)),
            n=_LONG_ANSWER + max_new_tokens,
            split="held_out",
        )
        answer, rest = talk.continuation[:_LONG_ANSWER], talk.continuation[_LONG_ANSWER:]
        return [
            _asked(talk.prompt, _LONG_ANSWER, answer, f"talk {number // 2}"),
            _asked(talk.prompt + answer, max_new_tokens, rest, f"talk {number // 2}"),
        ]

    def distinct(self, count: int) -> int:
        spare = 4  # for incomplete talks
        return 2 * (-(-(count - count // 2) // self.copies) + spare)

    def arrange(self, chosen: Sequence[Request], count: int) -> list[Request]:
        asked, continued = [], []
        for first, second in _whole_families(chosen, 2):
            asked += [first] * self.copies
            continued += [second] * self.copies
        return [*asked[: count - count // 2], *continued[: count // 2]]


class IdenticalThenContinued(Continued):
    """The same with each prompt sent four times in a row, the number of rows of a batch."""

    name = "identical_then_continued"
    copies = 4


WORKLOADS: Mapping[str, NamedWorkload] = {
    kind.name: kind()
    for kind in (Reported, Mixed, SharedPrefix, Forks, Bursts, Cancelled, PrefixReuse,
                 MultiTurn, EvictAfterLookup, Continued, IdenticalThenContinued)
}  # fmt: skip
LONGEST_ANSWER = max(kind.longest_answer for kind in WORKLOADS.values())
"""Most tokens of an answer in any workload, for the smallest `max_new_tokens`."""


def make_workload(name: str, *, count: int, seed: int, max_new_tokens: int = 15) -> Workload:
    """Make a workload by name (see WORKLOADS), or read the JSON Lines file `name`.

    `count` is ignored for a file. The prompts are not checked with a model; see `candidates` and
    `select` for that. Raises WorkloadError.
    """
    if is_file(name):
        return Workload.read(name, max_new_tokens=max_new_tokens)
    chosen = candidates(name, count=count, seed=seed, max_new_tokens=max_new_tokens)
    return arrange(name, chosen[: distinct(name, count)], count=count, seed=seed)


def in_turn(name: str) -> tuple[str, ...]:
    """Return the workloads of a name `a+b+c`; an existing file is one workload."""
    return (name,) if os.path.isfile(name) else tuple(name.split("+"))


def is_file(name: str) -> bool:
    """Return whether `name` is a JSON Lines file. Raises WorkloadError for an unknown name."""
    if name in WORKLOADS:
        return False
    if os.path.isfile(name):  # False for an invalid file name
        return True
    raise WorkloadError(
        f"Unknown workload {shown(name)}. Give one of {', '.join(WORKLOADS)}, or the path of a JSON"
        " Lines file."
    )


def candidates(name: str, *, count: int, seed: int, max_new_tokens: int = 15) -> list[Request]:
    """Return more prompts than a workload of `count` requests needs, to `select` from."""
    if count < 1:
        raise WorkloadError(f"A workload needs at least one request, not {count}.")
    need = distinct(name, count)
    offered, rng = need + max(16, need // 2), np.random.default_rng(seed)
    try:
        made = WORKLOADS[name].offer(offered, rng, max_new_tokens)
    except ValueError as error:
        raise WorkloadError(f"The workload {name!r} cannot be made: {error}") from None
    return [replace(request, id=f"{name}-{i:04d}") for i, request in enumerate(made)]


def select(
    offered: Sequence[Request], count: int, references: Sequence[Answers], decode: Decode
) -> tuple[list[Request], int]:
    """Return the first `count` requests that every reference answers correctly, in order.

    This ensures that every wrong answer of a sweep comes from the engine. `references` are the
    reference decoder's answers, one mapping for each release, and `decode` is its tokenizer's
    function. Returns the requests and the number of dropped ones. Raises WorkloadError if too few
    are left.
    """
    kept: list[Request] = []
    dropped = 0
    for request in offered:
        if len(kept) == count:
            break
        if all(answers_right(request, answers, decode) for answers in references):
            kept.append(request)
        else:
            dropped += 1
    if len(kept) < count:
        raise WorkloadError(
            f"The model alone answers {dropped} of {len(offered)} prompts wrong, so only"
            f" {len(kept)} of {count} can be sent. Check it with `cachelab model verify`."
        )
    return kept, dropped


def answers_right(request: Request, answers: Answers, decode: Decode) -> bool:
    """Return whether the reference decoder's answer starts with the request's expected text."""
    tokens = answers[request.prompt, request.max_new_tokens]
    return check_output(tokens, decode(tokens), "ok", request, tokens)[0] == "ok"


def distinct(name: str, count: int) -> int:
    """Return the number of distinct prompts of a workload of `count` requests."""
    return WORKLOADS[name].distinct(count)


def arrange(name: str, chosen: Sequence[Request], *, count: int, seed: int | None) -> Workload:
    """Return a workload of `distinct(name, count)` chosen requests in the order of sending."""
    sent = WORKLOADS[name].arrange(chosen, count)
    return Workload(name, tuple(replace(r, id=f"r{i:04d}") for i, r in enumerate(sent)), seed)


def _asked(prompt: str, max_new_tokens: int, answer: str, family: str) -> Request:
    return Request("", prompt, max_new_tokens, answer[:max_new_tokens], family=family)


def _request(prompt: prompts.Prompt, max_new_tokens: int) -> Request:
    return _asked(prompt.prompt, max_new_tokens, prompt.continuation, prompt.family)


def _whole_families(chosen: Sequence[Request], size: int) -> list[list[Request]]:
    """Return the families without dropped requests."""
    families: dict[str, list[Request]] = {}
    for request in chosen:
        families.setdefault(request.family, []).append(request)
    return [members for members in families.values() if len(members) == size]
