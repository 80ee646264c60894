"""The answer of notebook 02 in sentences: which pages came back, and which did not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

import pandas as pd

from analysis.core.templates import paragraph
from analysis.snapshots.snapshot import STATES
from analysis.studies.snapshots.plan import Step

_fill = partial(paragraph, "analysis.studies.snapshots", "words.j2")


def leak_in_words(sharing: str, used: pd.DataFrame) -> str:
    """Return what `exhaust_pool` measured with a prefix sharing, in sentences."""
    if used.empty:
        return f"With prefix sharing {sharing}, nothing was asked."
    last, worst = used.iloc[-1], used[used["leaked"] == used["leaked"].max()].iloc[0]
    gained = used[used["answered"].diff().fillna(used["answered"]) > 0]
    pages, stopped = int(last[list(STATES)].sum()), gained.empty or gained.index[-1] < last.name
    final = None if gained.empty else gained.iloc[-1]
    return _fill("leak", sharing, last, worst, final, pages, stopped)


def put_back_in_words(sharing: str, steps: Sequence[Step], used: Mapping[str, pd.DataFrame]) -> str:
    """Return the answer to "does it put everything back?".

    `steps` are the requests that one engine with prefix sharing `sharing` received in turn; `used`
    holds the results of `exhaust_pool` by prefix sharing.
    """
    if not steps and not used:
        return "No request was sent, so there is no result."
    where, sentences = [], []
    for step in steps:
        before, after = step.before.counts, step.after.counts
        more = after["leaked"] - before["leaked"]
        if more > 0 or after["live"]:
            where.append(f"{step.what} (prefix sharing {sharing})")
        ended = Counter(step.outcomes)
        sentences.append(_fill("step", step, ended, more, after))
    for name, rows in used.items():
        sentences.append(leak_in_words(name, rows))
        if (rows["leaked"] > 0).any() or (rows["live"].tail(1) > 0).any():
            where.append(f"many small requests (prefix sharing {name})")
    head = _fill("head", where, len(steps) + len(used))
    return " ".join([head, *sentences])
