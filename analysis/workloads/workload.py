"""What is asked, and when an answer is right: requests, workloads as JSON Lines, and the judge.

It runs where shortfin, IREE and torch are not installed. Named workloads are made from
a seed; the same seed gives the same prompts on every machine and release.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from analysis.core.errors import WorkloadError, is_encodable, shown
from analysis.workloads import prompts

REPORTED_PROMPT = "1 2 3 4 5 "
REPORTED_ANSWER = "6 7 8"
"""The prompt of the reported test, and what its answers must start with."""

Answers = Mapping[tuple[str, int], Sequence[int]]
"""The reference decoder's tokens for (prompt, number of new tokens)."""
Decode = Callable[[Sequence[int]], str]

_FAMILY_MEMBERS = 4
_TURN_TOKENS = 17
_ROUND, _ROUND_S, _BUSY_TOKENS = (0.0, 0.4, 0.7, 1.2), 2.0, 80
"""When the requests of a round of `evict_found` arrive, in seconds, and how long a round takes."""
_SHARED_TOKENS = 2 * prompts.PAGE_TOKENS
_LONG_ANSWER = 5 * prompts.PAGE_TOKENS
"""Tokens of an answer that is then continued: it fills pages of its own wherever it begins."""
MAX_NEW_TOKENS, WHY_NEW_TOKENS = 16_384, "the reference decoder computes each of them"
"""Most tokens of an answer; the context of a model may allow fewer."""
LONGEST_ANSWER = max(_LONG_ANSWER, _BUSY_TOKENS)
"""Tokens of the longest answer that a workload asks for, however few are asked of it."""
_COPIES = {"continued": 1, "identical_then_continued": 4}
"""How often a prompt is asked in a row: as often as a batch has rows, or once."""
LATEST_ARRIVAL_S = 30 * 24 * 3600.0
_SPARE_TALKS = 4
"""Talks beyond those needed, for talks that lack a request."""


@dataclass(frozen=True)
class Request:
    """One question to the engine.

    `expected` is the text that the answer must start with; an answer cut off by `max_new_tokens`
    is compared on `expected[:max_new_tokens]` (a token is one character). `arrival_s` is in seconds
    from the start of the workload.
    """

    id: str
    prompt: str
    max_new_tokens: int = 15
    expected: str | None = None
    arrival_s: float = 0.0
    family: str = ""


@dataclass(frozen=True)
class Workload:
    """Requests in the order in which they are sent, with the seed that made them (None: a file)."""

    name: str
    requests: tuple[Request, ...]
    seed: int | None = None

    @classmethod
    def read(cls, path: str | os.PathLike[str], *, max_new_tokens: int = 15) -> Workload:
        """Read a JSON Lines file of {id, prompt, max_new_tokens, expected, arrival_s}.

        Only `prompt` must be there; `max_new_tokens` is for the lines that do not say it. Raises
        WorkloadError that names the file and the line.
        """
        path = Path(path)
        try:
            lines = path.read_bytes().split(b"\n")
        except (OSError, ValueError) as error:  # a name with a null character is a ValueError
            reason = getattr(error, "strerror", None) or error
            raise WorkloadError(f"The workload {path} cannot be read: {reason}.") from None
        requests: list[Request] = []
        seen: dict[str, int] = {}
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                request = _parse(json.loads(line), f"r{number}", max_new_tokens)
            except (ValueError, RecursionError) as error:  # JSON and UTF-8 errors are ValueErrors
                raise WorkloadError(f"{path}, line {number}: {error}.") from None
            if request.id in seen:
                raise WorkloadError(
                    f"{path}, line {number}: the id {shown(request.id)} is that of line"
                    f" {seen[request.id]} too."
                )
            seen[request.id] = number
            requests.append(request)
        if not requests:
            raise WorkloadError(f"The workload {path} holds no request.")
        return cls(path.name, tuple(requests))

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the requests as JSON Lines, whole or not at all."""
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        rows = [asdict(request) for request in self.requests]
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="ascii")
        temporary.replace(path)


def make_workload(name: str, *, count: int, seed: int, max_new_tokens: int = 15) -> Workload:
    """Make a workload by name (see BUILDERS), or read the JSON Lines file `name`.

    A file is taken whole, whatever `count` says. The prompts are not checked against a model; see
    `candidates` and `select` for that. Raises WorkloadError.
    """
    if is_file(name):
        return Workload.read(name, max_new_tokens=max_new_tokens)
    chosen = candidates(name, count=count, seed=seed, max_new_tokens=max_new_tokens)
    return arrange(name, chosen[: distinct(name, count)], count=count, seed=seed)


def in_turn(name: str) -> tuple[str, ...]:
    """Return the workloads that `a+b+c` names; a file is one, whatever its name."""
    return (name,) if os.path.isfile(name) else tuple(name.split("+"))


def is_file(name: str) -> bool:
    """Return whether `name` means a JSON Lines file. Raises WorkloadError if it means nothing."""
    if name in BUILDERS:
        return False
    if os.path.isfile(name):  # False for a name that no file can have
        return True
    raise WorkloadError(
        f"There is no workload {shown(name)}: give one of {', '.join(BUILDERS)}, or the path of a"
        " JSON Lines file."
    )


def candidates(name: str, *, count: int, seed: int, max_new_tokens: int = 15) -> list[Request]:
    """Return more prompts than a workload of `count` requests needs, to `select` from."""
    if count < 1:
        raise WorkloadError(f"A workload needs at least one request, not {count}.")
    need = distinct(name, count)
    try:
        made = BUILDERS[name](need + max(16, need // 2), seed, max_new_tokens)
    except ValueError as error:
        raise WorkloadError(f"The workload {name!r} cannot be made: {error}") from None
    return [replace(request, id=f"{name}-{i:04d}") for i, request in enumerate(made)]


def select(
    chosen_from: Sequence[Request], count: int, references: Sequence[Answers], decode: Decode
) -> tuple[list[Request], int]:
    """Take the first `count` requests that every reference answers right, in their order.

    `references` are the reference decoder's answers, one mapping for each release that will be
    asked, and `decode` is its tokenizer's; so every wrong answer of a sweep is the engine's.
    Returns the requests and how many were dropped. Raises WorkloadError if too few are left.
    """
    kept: list[Request] = []
    dropped = 0
    for request in chosen_from:
        if len(kept) == count:
            break
        if all(answers_right(request, answers, decode) for answers in references):
            kept.append(request)
        else:
            dropped += 1
    if len(kept) < count:
        raise WorkloadError(
            f"The model itself answers {dropped} of {len(chosen_from)} prompts wrong, so only"
            f" {len(kept)} of {count} can be asked: check it with `cachelab model verify`."
        )
    return kept, dropped


def answers_right(request: Request, answers: Answers, decode: Decode) -> bool:
    """Return whether the reference decoder's own answer meets what the request expects."""
    tokens = answers[request.prompt, request.max_new_tokens]
    return judge(tokens, decode(tokens), "ok", request, tokens)[0] == "ok"


def distinct(name: str, count: int) -> int:
    """Return how many different prompts a workload of `count` requests is arranged from."""
    if name == "reported":
        return 1
    if name == "aba":
        return sum(_thirds(count)[:2])
    if name == "evict_found":
        return count + 2 * len(_ROUND)  # for rounds that lack one
    if name in _COPIES:
        first = count - count // 2
        return 2 * (-(-first // _COPIES[name]) + _SPARE_TALKS)
    return count


def arrange(name: str, chosen: Sequence[Request], *, count: int, seed: int | None) -> Workload:
    """Put `distinct(name, count)` chosen requests into the order in which they are sent.

    `reported` repeats its one prompt; `aba` asks a first third A, then B, then A again: with three
    requests per client, three waves. `continued` and `identical_then_continued` ask all prompts,
    then all continuations of their answers: an even number of requests per client keeps the two
    apart.
    """
    if name == "reported":
        sent = list(chosen[:1]) * count
    elif name == "aba":
        first, second, third = _thirds(count)
        again = chosen[:third]
        sent = [*chosen[: first + second], *again]
    elif name == "evict_found":
        sent = _rounds(chosen, count)
    elif name in _COPIES:
        sent = _talks(chosen, count, _COPIES[name])
    else:
        sent = list(chosen[:count])
    return Workload(name, tuple(replace(r, id=f"r{i:04d}") for i, r in enumerate(sent)), seed)


def judge(
    completion_tokens: Sequence[int],
    text: str,
    outcome: str,
    request: Request,
    reference: Sequence[int] | None,
) -> tuple[str, int | None]:
    """Return the outcome after the two oracles, and the first token that differs.

    `outcome` is the engine's own and stays, unless it is "ok" and the answer is wrong: it does not
    start with `request.expected`, or, where nothing is expected, differs from `reference`, the
    reference decoder's tokens. The second value is the index of the first token that differs from
    the reference's, None if none does or there is no reference; tokens that are missing differ
    only in an answer that claims to be complete.
    """
    divergence: int | None = None
    if reference is not None:
        wanted = list(reference[: request.max_new_tokens])
        got = list(completion_tokens[: request.max_new_tokens])
        pairs = enumerate(zip(got, wanted, strict=False))
        divergence = next((i for i, (a, b) in pairs if a != b), None)
        if divergence is None and len(got) != len(wanted) and outcome == "ok":
            divergence = min(len(got), len(wanted))
    if outcome != "ok":
        return outcome, divergence
    if request.expected is not None:
        right = text.startswith(request.expected[: request.max_new_tokens])
    else:
        right = divergence is None
    return ("ok" if right else "wrong"), divergence


def _thirds(count: int) -> tuple[int, int, int]:
    first = -(-count // 3)
    second = (count - first + 1) // 2
    return first, second, count - first - second


def _reported(count: int, seed: int, max_new_tokens: int) -> list[Request]:
    return [Request("", REPORTED_PROMPT, max_new_tokens, REPORTED_ANSWER, family="count")]


def _mixed(count: int, seed: int, max_new_tokens: int) -> list[Request]:
    rng = np.random.default_rng(seed)
    drawn = prompts.draw_many(rng, count, n=max_new_tokens, split="held_out")
    return [_asked(prompt, max_new_tokens) for prompt in drawn]


def _shared_prefix(count: int, seed: int, max_new_tokens: int) -> list[Request]:
    rng = np.random.default_rng(seed)
    made: list[Request] = []
    while len(made) < count:
        family = prompts.shared_prefix(
            rng,
            members=_FAMILY_MEMBERS,
            prefix_tokens=_SHARED_TOKENS,
            n=max_new_tokens,
            split="held_out",
        )
        made.extend(_asked(prompt, max_new_tokens) for prompt in family)
    return made[:count]


def _growing(count: int, seed: int, max_new_tokens: int) -> list[Request]:
    """Conversations in turn, each a sequence that is asked again and again, longer every time."""
    rng = np.random.default_rng(seed)
    made: list[Request] = []
    while len(made) < count:
        talks = [
            prompts.draw(family, rng, length=prompts.MAX_LENGTH, n=max_new_tokens, split="held_out")
            for family in ("count", "letters", "descend", "letters")[:_FAMILY_MEMBERS]
        ]
        for length in range(prompts.LANES_FROM, prompts.MAX_LENGTH + 1, _TURN_TOKENS):
            for talk in talks:
                whole = talk.prompt + talk.continuation
                prompt, rest = whole[: length - 1], whole[length - 1 :]  # bos stands before it
                made.append(
                    Request("", prompt, max_new_tokens, rest[:max_new_tokens], family=talk.family)
                )
    return made[:count]


def _evict_found(count: int, seed: int, max_new_tokens: int) -> list[Request]:
    """Make rounds of four requests, for two clients and a pool of 17 pages; a round is a family.

    A long prompt; one that decodes for long; while it does, one that shares three pages with the
    first, needs eight, and so finds cached pages of which it must evict some. It is asked for words
    that lie on the third shared page. The last one only makes the rounds even.
    """
    rng = np.random.default_rng(seed)
    made: list[Request] = []
    while len(made) < count:
        first, third = prompts.shared_prefix(
            rng,
            members=2,
            prefix_tokens=3 * prompts.PAGE_TOKENS,
            length=prompts.MAX_LENGTH,
            n=4,
            split="held_out",
        )
        listed = third.prompt[: third.prompt.index(">") + 1]
        asked_for = listed.index(" ", 2 * prompts.PAGE_TOKENS) + 1
        cued = asked_for + 3
        busy = prompts.draw("letters", rng, length=30, n=_BUSY_TOKENS, split="held_out")
        even = prompts.draw("letters", rng, length=10, n=4, split="held_out")
        name = f"round {len(made) // len(_ROUND)}"
        made += [
            Request("", first.prompt, 4, family=name),
            Request("", busy.prompt, _BUSY_TOKENS, family=name),
            Request("", listed + listed[asked_for:cued], 4, listed[cued : cued + 4], family=name),
            Request("", even.prompt, 1, family=name),
        ]
    return made[:count]


def _continued(count: int, seed: int, max_new_tokens: int) -> list[Request]:
    """Make talks of two requests: a prompt with a long answer, and prompt and answer as a prompt.

    A talk is a family. The second request needs what the first one cached, its answer included.
    """
    rng = np.random.default_rng(seed)
    made: list[Request] = []
    while len(made) < count:
        number = len(made) // 2
        talk = prompts.draw(
            prompts.FAMILIES[number % len(prompts.FAMILIES)],
            rng,
            length=int(rng.integers(prompts.LANES_FROM, prompts.MAX_LENGTH + 1)),
            n=_LONG_ANSWER + max_new_tokens,
            split="held_out",
        )
        answer, rest = talk.continuation[:_LONG_ANSWER], talk.continuation[_LONG_ANSWER:]
        name = f"talk {number}"
        made += [
            Request("", talk.prompt, _LONG_ANSWER, answer, family=name),
            Request("", talk.prompt + answer, max_new_tokens, rest, family=name),
        ]
    return made[:count]


def _talks(chosen: Sequence[Request], count: int, copies: int) -> list[Request]:
    """Ask every prompt `copies` times in a row, then every continuation as often."""
    asked, continued = [], []
    for first, second in _whole_families(chosen, 2):
        asked += [first] * copies
        continued += [second] * copies
    return [*asked[: count - count // 2], *continued[: count // 2]]


def _whole_families(chosen: Sequence[Request], size: int) -> list[list[Request]]:
    """Return the families of which no request was dropped."""
    families: dict[str, list[Request]] = {}
    for request in chosen:
        families.setdefault(request.family, []).append(request)
    return [members for members in families.values() if len(members) == size]


def _rounds(chosen: Sequence[Request], count: int) -> list[Request]:
    """Take rounds of which no request was dropped, and say when each of them arrives."""
    whole = _whole_families(chosen, len(_ROUND))
    sent = [
        replace(request, arrival_s=number * _ROUND_S + after)
        for number, members in enumerate(whole)
        for request, after in zip(members, _ROUND, strict=True)
    ]
    return sent[:count]


def _asked(prompt: prompts.Prompt, max_new_tokens: int) -> Request:
    return Request("", prompt.prompt, max_new_tokens, prompt.continuation, family=prompt.family)


BUILDERS: Mapping[str, Callable[[int, int, int], list[Request]]] = {
    "reported": _reported,
    "mixed": _mixed,
    "shared_prefix": _shared_prefix,
    "aba": _mixed,
    "growing": _growing,
    "evict_found": _evict_found,
    "continued": _continued,
    "identical_then_continued": _continued,
}
"""What each named workload is made of: (count, seed, max_new_tokens) -> candidates."""


def _parse(row: Any, default_id: str, default_tokens: int) -> Request:
    if not isinstance(row, dict):
        raise ValueError("it is not a JSON object")
    unknown = sorted(set(row) - set(Request.__dataclass_fields__))
    if unknown:
        raise ValueError(f"unknown field {shown(unknown[0])}")
    prompt = row.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        raise ValueError("`prompt` must be a text that is not empty")
    tokens = row.get("max_new_tokens", default_tokens)
    if type(tokens) is not int or not 1 <= tokens <= MAX_NEW_TOKENS:
        raise ValueError(
            f"`max_new_tokens` must be a whole number from 1 to {MAX_NEW_TOKENS}, as"
            f" {WHY_NEW_TOKENS}, and not {shown(tokens)}"
        )
    arrival = row.get("arrival_s", 0.0)
    if type(arrival) not in (int, float) or not 0 <= arrival <= LATEST_ARRIVAL_S:
        raise ValueError(
            f"`arrival_s` must be from 0 to {LATEST_ARRIVAL_S:g} seconds, not {shown(arrival)}"
        )
    name, expected, family = row.get("id", default_id), row.get("expected"), row.get("family", "")
    if not isinstance(name, str) or not name:
        raise ValueError("`id` must be a text that is not empty")
    if not (expected is None or isinstance(expected, str)):
        raise ValueError("`expected` must be a text or null")
    if not isinstance(family, str):
        raise ValueError("`family` must be a text")
    for field, text in (("prompt", prompt), ("id", name), ("expected", expected or ""),
                        ("family", family)):  # fmt: skip
        if not is_encodable(text):
            raise ValueError(
                f"`{field}` must be text that UTF-8 can encode, and {shown(text)} has a lone"
                " surrogate"
            )
    return Request(name, prompt, tokens, expected, float(arrival), family)
