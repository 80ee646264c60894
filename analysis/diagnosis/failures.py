"""The failed requests of a run, in the order in which they are worth an explanation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from analysis.runs.schema import FAILURES
from analysis.stats.rates import with_trials

if TYPE_CHECKING:
    import pandas as pd

    from analysis.runs.store import Run


def failures(run: Run) -> pd.DataFrame:
    """Return the failed requests: untreated ones first, and wrong answers before other failures.

    A wrong answer leaves more to examine. Columns: request_id, trial_id, outcome, treatments.
    """
    asked = with_trials(run.requests, run.trials, ["treatments"])
    failed = asked.loc[
        asked["outcome"].isin(FAILURES), ["request_id", "trial_id", "outcome", "treatments"]
    ]
    order = failed.assign(
        treated=failed["treatments"].map(bool), rank=failed["outcome"].map(FAILURES.index)
    )
    order = order.sort_values(["treated", "rank"], kind="stable")
    return order.drop(columns=["treated", "rank"]).reset_index(drop=True)
