"""What notebooks do to one engine, beyond a sweep: until its pages are gone, until it dies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from analysis.snapshots.snapshot import STATES, Snapshot

if TYPE_CHECKING:
    from analysis.engine import Engine

PAGE_TOKENS = 16
_ROUND = ["round", "asked", "answered", "rejected", "outcomes", *STATES]


@dataclass(frozen=True)
class Step:
    """Requests that one engine was asked, and its cache before the first and after the last."""

    what: str
    """Who asked, to go on with after "after"."""
    outcomes: Sequence[str]
    before: Snapshot
    after: Snapshot


def crossing_prompt(number: int) -> str:
    """Return a prompt of 13 tokens, a different one for each number below 900.

    Three of its answer's tokens still fit into its first page; the fourth enters a new one.
    """
    return f"{100 + number} {101 + number} {102 + number} "


def use_up(
    engine: Engine,
    *,
    rounds: int,
    at_once: int = 4,
    max_new_tokens: int = 8,
    timeout_s: float = 5.0,
) -> pd.DataFrame:
    """Ask round after round, and count the pages when all requests of a round have ended.

    Every request is new, so that nothing is shared. It ends early after two rounds in which nothing
    was answered. Returns a row for each round: round, asked, answered and rejected (so far),
    outcomes (of this round, in words), free, live, cached and leaked (pages).
    """
    rows, asked, answered, rejected, silent = [], 0, 0, 0, 0
    for number in range(rounds):
        prompts = [crossing_prompt(asked + row) for row in range(at_once)]
        futures = [engine.submit(prompt, max_new_tokens, timeout_s) for prompt in prompts]
        outcomes = pd.Series([future.result().outcome for future in futures])
        asked += at_once
        answered += int((outcomes == "ok").sum())
        rejected += int((outcomes == "rejected").sum())
        silent = 0 if (outcomes == "ok").any() else silent + 1
        counts = outcomes.value_counts()
        rows.append(
            {
                "round": number,
                "asked": asked,
                "answered": answered,
                "rejected": rejected,
                "outcomes": ", ".join(f"{count} {name}" for name, count in counts.items()),
                **engine.cache.snapshot().counts,
            }
        )
        if silent == 2 or engine.died is not None:
            break
    return pd.DataFrame(rows, columns=_ROUND)


def crowd_in_words(rounds: int, death: str | None, events: pd.DataFrame) -> str:
    """Say what became of the requests, the pages and the engine of `crowd`, from its events."""
    counts = events.loc[events["kind"] == "done", "outcome"].value_counts()
    evicted = int(events.loc[events["kind"] == "evict", "pages"].map(len).sum())
    ended = ", ".join(f"{number} {outcome}" for outcome, number in counts.items())
    fate = f"the engine died in round {rounds}: {death}" if death else "the engine lived"
    return (
        f"In {rounds} rounds of equal prompts {int(counts.sum())} requests ended ({ended}),"
        f" {_pages(evicted)} were evicted, and {fate.rstrip('.')}."
    )


def alone_in_words(prompt: str, expected: str, answer: str, again: Sequence[bool | None]) -> str:
    """Say how prompts were answered alone: the reported one, and those of wrong answers.

    `again` says of each wrong answer that was asked again whether it was then right; None where no
    right answer is known.
    """
    right = "as expected" if answer.startswith(expected) else f"with {answer!r}, not {expected!r}"
    text = f"Asked alone, {prompt!r} was answered {right}."
    judged = [value for value in again if value is not None]
    if judged:
        text += f" Of {len(judged)} answers to prompts that had been answered wrong, asked again"
        text += f" alone, {sum(judged)} were right."
    return text


def crowd(engine: Engine, *, rounds: int, at_once: int = 4, timeout_s: float = 20.0) -> int:
    """Ask the same prompt of two full pages `at_once` times at once, another one every round.

    Each of them publishes pages of its own for the same tokens, and the trie grows by two pages a
    round until the pool is full and something must be evicted. Stops when the engine dies; returns
    the number of rounds that were asked.
    """
    for number in range(rounds):
        prompt = " ".join(str(100 + 10 * number + step) for step in range(9))[: 2 * PAGE_TOKENS]
        futures = [engine.submit(prompt, 5, timeout_s) for _ in range(at_once)]
        for future in futures:
            future.result()
        if engine.died is not None:
            return number + 1
    return rounds


def leak_in_words(sharing: str, used: pd.DataFrame) -> str:
    """Say what `use_up` found with a prefix sharing, in sentences computed from its rows."""
    if used.empty:
        return f"With prefix sharing {sharing}, nothing was asked."
    last, worst = used.iloc[-1], used[used["leaked"] == used["leaked"].max()].iloc[0]
    asked, answered, rejected = (int(last[name]) for name in ("asked", "answered", "rejected"))
    leaked, live = int(last["leaked"]), int(last["live"])
    pages = int(last[list(STATES)].sum())
    text = f"With prefix sharing {sharing}, {answered} of {asked} requests were answered"
    text += f" ({rejected} rejected)" if rejected else ""
    gained = used["answered"].diff().fillna(used["answered"]) > 0
    if int(worst["leaked"]) > leaked:
        text += f"; {int(worst['leaked'])} of {pages} pages had leaked after {int(worst['asked'])}"
        text += f" requests, {leaked} at the end"
    elif not leaked:
        text += f", and none of the {pages} pages leaked"
    else:
        text += f"; at the end {leaked} of {pages} pages had leaked"
        if gained.any():
            until = used[gained].iloc[-1]
            each = int(until["leaked"]) / int(until["answered"])
            text += f" ({each:.2f} leaked for each answered request)"
    if live:
        text += f", and {live} were held by requests that had not ended"
    if not gained.iloc[-1]:
        text += f". After {int(used.loc[gained, 'asked'].max()) if gained.any() else 0} requests"
        text += " nothing was answered any more"
    return text + "."


def put_back_in_words(sharing: str, steps: Sequence[Step], used: Mapping[str, pd.DataFrame]) -> str:
    """Return the answer to "does it put everything back?", from all that was asked.

    `steps` are what one engine with prefix sharing `sharing` was asked in turn; `used` are the
    results of `use_up`, by prefix sharing.
    """
    where, sentences = [], []
    for step in steps:
        leaked = step.after.counts["leaked"] - step.before.counts["leaked"]
        live = step.after.counts["live"]
        if leaked > 0 or live:
            where.append(f"{step.what} (prefix sharing {sharing})")
        counts = Counter(step.outcomes)
        ended = ", ".join(f"{number} {outcome}" for outcome, number in counts.items())
        words = f"After {step.what} ({ended}) {leaked} more of {step.after.page_count} pages had"
        words += f" leaked, {step.after.counts['leaked']} in all"
        sentences.append(words + (f", and {_pages(live)} held." if live else "."))
    for name, rows in used.items():
        sentences.append(leak_in_words(name, rows))
        if (rows["leaked"] > 0).any() or (rows["live"].tail(1) > 0).any():
            where.append(f"many small requests (prefix sharing {name})")
    total = len(steps) + len(used)
    if not total:
        return "Nothing was asked, so nothing can be said."
    head = f"Everything was put back in all {total} experiments."
    if where:
        head = f"Not everything was put back: pages were missing in {len(where)} of {total}"
        head += f" experiments, after {'; '.join(where)}."
    return " ".join([head, *sentences])


def _pages(number: int) -> str:
    return f"{number} page{'' if number == 1 else 's'}"
