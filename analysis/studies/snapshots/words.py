"""The answer of notebook 02 in words: which pages came back, and which did not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

import pandas as pd

from analysis.core.templates import paragraph
from analysis.core.wording import listed, markdown_table
from analysis.snapshots.snapshot import STATES
from analysis.studies.snapshots.plan import Step

_fill = partial(paragraph, "analysis.studies.snapshots", "words.j2")


def leak_in_words(sharing: str, used: pd.DataFrame) -> str:
    """Return what `exhaust_pool` measured with a prefix sharing, in sentences."""
    if used.empty:
        return f"With prefix sharing {sharing}, nothing was asked."
    last, worst = used.iloc[-1], _worst(used)
    gained = used[used["answered"].diff().fillna(used["answered"]) > 0]
    pages, stopped = int(last[list(STATES)].sum()), gained.empty or gained.index[-1] < last.name
    final = None if gained.empty else gained.iloc[-1]
    return _fill("leak", sharing, last, worst, final, pages, stopped)


def put_back_in_words(sharing: str, steps: Sequence[Step], used: Mapping[str, pd.DataFrame]) -> str:
    """Return the answer to "does it put everything back?" as Markdown: a sentence and a table.

    `steps` are the requests that one engine with prefix sharing `sharing` received in turn; `used`
    holds the results of `exhaust_pool` by prefix sharing.
    """
    rows = [_step_row(sharing, step) for step in steps]
    rows += [_rounds_row(name, used[name]) for name in used]
    answer = answer_in_a_sentence(sharing, steps, used)
    return f"{answer}\n\n{markdown_table(rows)}".strip()


def answer_in_a_sentence(
    sharing: str, steps: Sequence[Step], used: Mapping[str, pd.DataFrame]
) -> str:
    """Return in how many experiments pages did not come back, and in which."""
    if not steps and not used:
        return "No request was sent, so there is no result."
    where = []
    for step in steps:
        if (leaked := _leaked(step)) > 0 or step.after.counts["live"]:
            where.append((leaked, step.after.counts["live"], step.what, sharing))
    for name, rows in used.items():
        held = int(rows["live"].iloc[-1]) if len(rows) else 0
        if (rows["leaked"] > 0).any() or held:
            where.append((int(rows["leaked"].max()), held, "many small requests", name))
    return _fill("head", where, len(steps) + len(used))


def _step_row(sharing: str, step: Step) -> dict[str, object]:
    ended = Counter(step.outcomes)
    return {
        "requests": step.what,
        "prefix sharing": sharing,
        "ended": listed(f"{number} {name}" for name, number in ended.items()),
        "pages leaked": f"{_leaked(step)} of {step.after.page_count}",
        "pages still held": step.after.counts["live"],
    }


def _rounds_row(sharing: str, used: pd.DataFrame) -> dict[str, object]:
    if used.empty:
        return {"requests": "many small requests", "prefix sharing": sharing, "ended": "none sent"}
    last, worst = used.iloc[-1], _worst(used)
    leaked = f"{last['leaked']} of {int(last[list(STATES)].sum())}"
    if worst["leaked"] > last["leaked"]:
        leaked = f"{worst['leaked']} after {worst['asked']} requests, {leaked} at the end"
    rejected = f", {last['rejected']} rejected" if last["rejected"] else ""
    return {
        "requests": "many small requests",
        "prefix sharing": sharing,
        "ended": f"{last['answered']} of {last['asked']} ok{rejected}",
        "pages leaked": leaked,
        "pages still held": last["live"],
    }


def _leaked(step: Step) -> int:
    return int(step.after.counts["leaked"] - step.before.counts["leaked"])


def _worst(used: pd.DataFrame) -> pd.Series:
    """Return the first round after which most pages had leaked."""
    row: pd.Series = used[used["leaked"] == used["leaked"].max()].iloc[0]
    return row
