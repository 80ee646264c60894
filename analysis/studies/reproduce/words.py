"""The answer of notebook 01 in sentences: what failed, from which concurrency on, how certain."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd

from analysis.core.templates import paragraph
from analysis.core.wording import capitalised
from analysis.runs.store import Run
from analysis.stats.checks import BEGINNING, BEGINS, EXACT, by_check
from analysis.stats.configurations import setting_name
from analysis.stats.rates import per_trial
from analysis.studies.reproduce.estimates import (
    ALPHA,
    THRESHOLD,
    Contrast,
    Level,
    estimate,
    ran_at_once,
)
from analysis.studies.reproduce.reported_test import counts
from analysis.studies.wording import acts_through, exposure_in_words
from analysis.workloads.named import REPORTED_ANSWER

if TYPE_CHECKING:
    from analysis.sanitizer import Findings

_fill = partial(paragraph, "analysis.studies.reproduce", "words.j2")


def answer_in_words(run: Run, threshold: int = THRESHOLD) -> str:
    """Return whether more requests fail from the threshold on than below it, as Markdown.

    One paragraph for each configuration, then one for every two that differ in one setting only.
    """
    series, contrasts = estimate(run, threshold)
    paragraphs = [
        f"**{item.name}: {item.verdict}.** {_fill('configuration', item, ALPHA, _offers)}"
        for item in series
    ]
    paragraphs += [_fill("contrast", contrast, _exposures(contrast)) for contrast in contrasts]
    return "\n\n".join(paragraphs) or "The run holds no trials, so there is nothing to say."


def answer_in_a_sentence(run: Run, threshold: int = THRESHOLD) -> str:
    """Return the same answer as one sentence, for the index of a report."""
    series, _ = estimate(run, threshold)
    many = len(series) > 2  # then details would hide the answer
    clauses = [_fill("brief" if many else "clause", item, ALPHA, _offers) for item in series]
    if len(clauses) > 1:
        apart = [name for name in series[0].key if len({item.key[name] for item in series}) > 1]
        names = [setting_name({k: item.key[k] for k in apart}) for item in series]
        clauses = [f"{name}: {text}" for name, text in zip(names, clauses, strict=True)]
    sentence = "; ".join(clauses) or "the run holds no trials"
    return f"{sentence if sentence.startswith('shortfin') else capitalised(sentence)}."


def alone_in_words(again: Sequence[bool | None]) -> str:
    """Return how many prompts of wrong answers were answered right alone; "" if none was asked.

    `again` holds, for each answer, whether it was right; None where the right answer is unknown.
    """
    known = [right for right in again if right is not None]
    return _fill("alone", sum(known), len(known)) if known else ""


def reported_test_in_words(answers: pd.DataFrame, *, briefly: bool = False) -> str:
    """Return how the reported test ended by both checks; `answers` is of `run_reported_test`.

    `briefly` leaves out where the answers differ, and an example.
    """
    found = counts(answers)
    settings = ["prefix_sharing", "treatments", "engine"]
    groups = found.groupby(settings, sort=False)[["accepted", BEGINS, EXACT]].sum().reset_index()
    wrong = by_check(answers, EXACT)["outcome"] == "wrong"
    example = next(iter(answers[wrong].to_dict("records")), None)
    rows = groups.to_dict("records")
    levels = list(dict.fromkeys(answers["clients"]))
    totals = found[["accepted", "rejected", BEGINS, EXACT]].sum().to_dict()
    return _fill("reported_test", totals, rows, levels, example, REPORTED_ANSWER, briefly)


def first_step_in_words(
    findings: Findings, invocations: pd.DataFrame, answers: pd.DataFrame
) -> str:
    """Return the first rule that the reported test broke, and whether its own check saw it.

    `invocations` are those of the same recording, `answers` those of the tests that were checked.
    """
    first = findings.first
    decodes = invocations.loc[invocations["phase"] == "decode", "invocation_id"]
    place = 0
    if first is not None and first.invocation_id in set(decodes):
        place = int((decodes <= first.invocation_id).sum())
    fails = int(counts(answers)[BEGINS].sum())
    return _fill("first_step", first, place, findings.summary, fails, BEGINNING)


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
