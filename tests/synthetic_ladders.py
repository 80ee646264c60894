"""Ladders of known truth, without any engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from analysis.studies.validation import Found, Isolated, Ladder, Rung

FIXES = ("correct-seq-lens", "zero-start-positions", "zero-page-tables")
ISOLATED = Isolated(True, 33_776, True, seconds=3.2)
LEAK = Found("page-leak", "dropped", "at risk", 32, 1, "Page 245 of r0003 was lost.")
BEYOND = Found(
    "seq-len-mismatch", "overread", "wrong data", 12, 3, "r0001 reads position 16 of r0002."
)


def rung(level: int, accepted: int = 320, **changes: Any) -> Rung:
    """A clean rung, but for what is changed."""
    made = Rung(
        level=level, needed=299, accepted=accepted, trials=10, workloads={"mixed": 10},
        controls=1, alarms=1,
        peak_rss_bytes=(220 + level) * 2**20, pages_in_use=12 * level, page_count=512,
        seconds=33.0, run=f"rung-{level:02d}",
    )  # fmt: skip
    return replace(made, **changes)


def ladder(*rungs: Rung, isolated: Isolated | None = ISOLATED, **changes: Any) -> Ladder:
    made = Ladder("3.1.0", "none", FIXES, isolated=isolated, rungs=rungs)
    return replace(made, **changes)


CLEAN = ladder(*map(rung, (2, 4, 8, 16, 32)))
FAILED = ladder(
    rung(2), rung(4),
    rung(8, 32, failures={"wrong": 7, "timeout": 1}, findings=(BEYOND,), trials=1, failed_trials=1,
         failing=("c", "r0003"), explanation="r0003 read what r0002 had written."),
)  # fmt: skip
TOO_FEW = ladder(rung(2), rung(4, 211, rejected=109, refusals=3000), out_of_time=True)
LEAKS = ladder(rung(2, 32, leaked=32, trials=1, failed_trials=1, controls=0, alarms=0))
VOID = ladder(rung(2, alarms=0))
ALONE = ladder(
    isolated=Isolated(False, 5372, False, ("equal prompts: B gets no pages.",), 2, "", 6)
)
ALL = {
    "clean": CLEAN, "failed": FAILED, "too few": TOO_FEW, "leaks": LEAKS, "void": VOID,
    "alone": ALONE,
}  # fmt: skip
