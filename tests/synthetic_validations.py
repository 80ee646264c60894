"""Staged validations of known truth, without an engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from support import REPORTED

from analysis.studies.validation.plan import Settings
from analysis.studies.validation.result import FindingGroup, Isolated, Level, StagedValidation

FIXES = ("correct-seq-lens", "zero-start-positions", "zero-page-tables")
ISOLATED = Isolated(True, 33_776, True, seconds=3.2)
LEAK = FindingGroup("page-leak", "dropped", "at risk", 32, 1, "Page 245 of r0003 was lost.")
BEYOND = FindingGroup(
    "seq-len-mismatch", "overread", "wrong data", 12, 3, "r0001 reads position 16 of r0002."
)


def level(concurrency: int, accepted: int = 320, **changes: Any) -> Level:
    """A clean level, but for what is changed."""
    made = Level(
        concurrency=concurrency, needed=299, accepted=accepted, trials=10, workloads={"mixed": 10},
        controls=1, detected=1,
        peak_rss_bytes=(220 + concurrency) * 2**20, pages_in_use=12 * concurrency, page_count=512,
        seconds=33.0, run=f"level-{concurrency:02d}",
    )  # fmt: skip
    return replace(made, **changes)


def validation(
    *levels: Level, isolated: Isolated | None = ISOLATED, **changes: Any
) -> StagedValidation:
    settings = Settings(release=REPORTED, treatments=FIXES, workload="mixed")
    made = StagedValidation(settings, isolated=isolated, results=levels)
    return change(made, **changes)


def change(made: StagedValidation, **changes: Any) -> StagedValidation:
    """Change a validation, or its settings."""
    own = {name: changes.pop(name) for name in list(changes) if name in vars(made)}
    return replace(made, settings=replace(made.settings, **changes), **own)


CLEAN = validation(*map(level, (2, 4, 8, 16, 32)))
FAILED = validation(
    level(2), level(4),
    level(8, 32, failures={"wrong": 7, "timeout": 1}, findings=(BEYOND,), trials=1, failed_trials=1,
         failing=("c", "r0003"), explanation="r0003 read what r0002 had written."),
)  # fmt: skip
TOO_FEW = validation(level(2), level(4, 211, rejected=109, retries=3000), out_of_time=True)
LEAKS = validation(level(2, 32, leaked=32, trials=1, failed_trials=1, controls=0, detected=0))
VOID = validation(level(2, detected=0))
ALONE = validation(
    isolated=Isolated(False, 5372, False, ("equal prompts: B gets no pages.",), 2, "", 6)
)
ALL = {
    "clean": CLEAN, "failed": FAILED, "too few": TOO_FEW, "leaks": LEAKS, "void": VOID,
    "alone": ALONE,
}  # fmt: skip
