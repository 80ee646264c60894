"""The reported test as it was, on a fresh engine and on one that has served other prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis.runs.schema import FAILURES
from analysis.stats.checks import BEGINS, EXACT, by_check
from analysis.workloads.named import REPORTED_ANSWER, REPORTED_PROMPT, make_workload
from analysis.workloads.workload import Request, check_output

if TYPE_CHECKING:
    from analysis.engine import Engine
    from analysis.engine.completion import Completion

FRESH, USED = "fresh engine", "after other prompts"
_OTHERS, _OTHERS_AT_ONCE = 16, 4
"""Requests of other prompts, and how many at once: full batches, which 3.1.0 does not delay."""
KEY = ["prefix_sharing", "treatments", "engine", "clients"]
"""Columns that distinguish the tests."""

Test = Callable[["Engine", int], Sequence["Completion"]]


def run_reported_test(
    test: Test,
    clients: Sequence[int],
    *,
    prefix_sharing: Sequence[str],
    treatments: Sequence[str] = ("none",),
    model: Path | None = None,
    max_new_tokens: int = 15,
    seed: int = 0,
    log_dir: Path | None = None,
) -> pd.DataFrame:
    """Run `test(engine, n)` for each n of `clients` in turn on one engine, and check its answers.

    For each prefix sharing and each of `treatments` there are two engines: a fresh one, and one
    that has served other prompts (`mixed`, 4 at once). Returns one row an answer: the columns
    `KEY`, those of the table `requests` that checks read, and `reference_text`.
    Raises EngineError or ModelError.
    """
    from analysis.engine import Engine, EngineConfig  # needs shortfin
    from analysis.shortfin.oracle import oracle_of

    request = Request("", REPORTED_PROMPT, max_new_tokens, REPORTED_ANSWER)
    others = make_workload("mixed", count=_OTHERS, seed=seed)
    reference: tuple[int, ...] | None = None
    rows = []
    for sharing in prefix_sharing:
        for names in treatments:
            for history in (FRESH, USED):
                config = EngineConfig(prefix_sharing=sharing, model=model)
                with Engine(config, log_dir=log_dir) as engine, treated(engine, names):
                    if reference is None:
                        oracle = oracle_of(engine.release, model=model)
                        reference = tuple(*oracle.generate([request]).values())
                        reference_text = engine.tokenizer.decode(reference)
                    if history == USED:
                        engine.run(others, concurrency=_OTHERS_AT_ONCE)
                    for number in clients:
                        for answer in test(engine, number):
                            setting = dict(zip(KEY, (sharing, names, history, number), strict=True))
                            row = _checked(answer, request, reference)
                            rows.append({**setting, **row, "reference_text": reference_text})
    return pd.DataFrame(rows)


@contextmanager
def treated(engine: Engine, names: str) -> Iterator[None]:
    """Apply treatments such as `none`, `all` or `a+b` as long as the block lasts."""
    from analysis.treatments import expand, treat

    chosen = treatment_set(names)
    with treat(engine, *expand(chosen, engine.release, engine.config.prefix_sharing)):
        yield


def treatment_set(names: str) -> tuple[str, ...]:
    """Return the set of treatments that a name such as `none`, `all` or `a+b` stands for."""
    return () if names == "none" else tuple(names.split("+"))


def counts(answers: pd.DataFrame) -> pd.DataFrame:
    """Return how the answers of each test fared: `KEY`, accepted, rejected, begins and exact.

    `begins` and `exact` count the answers that fail this check of `stats.checks`.
    """
    columns = answers[KEY].assign(rejected=answers["outcome"] == "rejected")
    columns["accepted"] = ~columns["rejected"]
    for check in (BEGINS, EXACT):
        columns[check] = by_check(answers, check)["outcome"].isin(FAILURES)
    return columns.groupby(KEY, sort=False).sum().astype(int).reset_index()


def _checked(answer: Completion, request: Request, reference: Sequence[int]) -> dict[str, Any]:
    tokens, text = answer.tokens, answer.text
    outcome, divergence = check_output(tokens, text, answer.outcome, request, reference)
    return {
        "text": text, "tokens": tokens, "expected_text": request.expected,
        "reference_tokens": reference, "outcome": outcome, "first_divergence": divergence,
    }  # fmt: skip
