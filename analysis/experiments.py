"""What notebooks do to one engine, beyond a sweep: until its pages are gone, until it dies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from analysis.snapshot import STATES

if TYPE_CHECKING:
    from analysis.engine import Engine

PAGE_TOKENS = 16


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
    was answered. Returns a row for each round: round, asked (so far), answered (so far), outcomes
    (of this round, in words), free, live, cached and leaked (pages).
    """
    rows, asked, answered, silent = [], 0, 0, 0
    for number in range(rounds):
        prompts = [crossing_prompt(asked + row) for row in range(at_once)]
        futures = [engine.submit(prompt, max_new_tokens, timeout_s) for prompt in prompts]
        outcomes = pd.Series([future.result().outcome for future in futures])
        asked += at_once
        answered += int((outcomes == "ok").sum())
        silent = 0 if (outcomes == "ok").any() else silent + 1
        counts = outcomes.value_counts()
        rows.append(
            {
                "round": number,
                "asked": asked,
                "answered": answered,
                "outcomes": ", ".join(f"{count} {name}" for name, count in counts.items()),
                **engine.cache.snapshot().counts,
            }
        )
        if silent == 2 or engine.died is not None:
            break
    return pd.DataFrame(rows, columns=["round", "asked", "answered", "outcomes", *STATES])


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
    last = used.iloc[-1]
    asked, answered = int(last["asked"]), int(last["answered"])
    leaked, live = int(last["leaked"]), int(last["live"])
    pages = int(last[list(STATES)].sum())
    text = f"With prefix sharing {sharing}, {answered} of {asked} requests were answered"
    gained = used["answered"].diff().fillna(used["answered"]) > 0
    if not leaked:
        text += f", and none of the {pages} pages leaked"
    else:
        text += f"; at the end {leaked} of {pages} pages belonged to nobody"
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
