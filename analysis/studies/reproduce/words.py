"""The answer of notebook 01 in sentences: what failed, from which concurrency on, how certain."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pandas as pd

from analysis.core.templates import paragraph
from analysis.core.wording import capitalised, counted
from analysis.runs.store import Run
from analysis.stats.configurations import setting_name
from analysis.stats.rates import per_trial
from analysis.studies.reproduce.estimates import ALPHA, Contrast, Level, estimate, ran_at_once
from analysis.studies.wording import acts_through, exposure_in_words

_fill = partial(paragraph, "analysis.studies.reproduce", "words.j2")


def answer_in_words(run: Run, threshold: int = 4) -> str:
    """Return the answer to "does it fail under concurrency, and from where on?" as Markdown.

    One paragraph for each configuration, then one for every two that differ in one setting only.
    `threshold` is the concurrency from which on the report saw failures; it separates the two sides
    of the test.
    """
    series, contrasts = estimate(run, threshold)
    paragraphs = [
        f"**{item.name}.** {_fill('configuration', item, ALPHA, _offers)}" for item in series
    ]
    paragraphs += [_fill("contrast", contrast, _exposures(contrast)) for contrast in contrasts]
    return "\n\n".join(paragraphs) or "The run holds no trials, so there is nothing to say."


def answer_in_a_sentence(run: Run, threshold: int = 4) -> str:
    """Return the same answer as one sentence, for the index of a report."""
    series, _ = estimate(run, threshold)
    clauses = [_fill("clause", item, ALPHA, _offers) for item in series]
    if len(clauses) > 1:
        apart = [name for name in series[0].key if len({item.key[name] for item in series}) > 1]
        names = [setting_name({k: item.key[k] for k in apart}) for item in series]
        clauses = [f"{name}: {text}" for name, text in zip(names, clauses, strict=True)]
    sentence = "; ".join(clauses) or "the run holds no trials"
    return f"{sentence if sentence.startswith('shortfin') else capitalised(sentence)}."


def alone_in_words(prompt: str, expected: str, answer: str, again: Sequence[bool | None]) -> str:
    """Return how prompts were answered alone: the reported one, and those of wrong answers.

    `again` holds, for each wrong answer that was repeated alone, whether it was then right; None
    where the right answer is unknown.
    """
    known = [right for right in again if right is not None]
    right = "as expected" if answer.startswith(expected) else f"with {answer!r}, not {expected!r}"
    text = f"Asked alone, {prompt!r} was answered {right}."
    if known:
        text += f" Of {counted(len(known), 'answer')} to prompts that had been answered wrong,"
        text += f" asked again alone, {sum(known)} were right."
    return text


def ran_in_words(requests: pd.DataFrame, trials: pd.DataFrame) -> str:
    """Return where engines ran fewer requests at once than they were offered; "" if nowhere."""
    levels = per_trial(requests, trials).groupby("concurrency", as_index=False)
    rows = levels.agg({"refused": "sum", "at_once": "max"}).to_dict("records")
    return _offered([(int(row["concurrency"]), ran_at_once(row)) for row in rows])


def _offers(levels: Sequence[Level]) -> str:
    return _offered([(level.offered, level.ran) for level in levels])


def _offered(levels: Sequence[tuple[int, int]]) -> str:
    """Return what was offered and ran less, such as "offered 8 and 16: ran 4"; "" if nothing."""
    offers: dict[int, list[int]] = {}
    for offered, ran in levels:
        if ran < offered:
            offers.setdefault(ran, []).append(offered)
    return _fill("offers", offers)


def _exposures(contrast: Contrast) -> str:
    if contrast.exposures is None:
        return "Exposure not recorded."
    if contrast.objections:
        return acts_through(contrast.exposures, contrast.through)
    return exposure_in_words(contrast.exposures, contrast.through)
