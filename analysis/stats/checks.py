"""Two checks of an answer, side by side: its beginning, as the report's test, and all of it."""

from __future__ import annotations

import pandas as pd

from analysis.workloads.named import REPORTED_ANSWER

BEGINNING = len(REPORTED_ANSWER)
"""Characters of an answer that the report's check reads."""
BEGINS, EXACT = "begins", "exact"
CHECKS = {
    BEGINS: f"The report's check:\nthe first {BEGINNING} characters",
    EXACT: "Exact equality with\nthe reference decoder",
}
"""Title of each check, on two lines."""


def by_check(requests: pd.DataFrame, check: str) -> pd.DataFrame:
    """Return the table `requests` with the outcome of completed requests by one check alone.

    `begins`: ok if the text starts with the first five characters of what the prompt demands, as
    "6 7 8" in the reported test. `exact`: ok if all tokens are those of the reference decoder.
    Where a request has no expected text, or no reference, its outcome stays.
    """
    outcome = requests["outcome"]
    if check == BEGINS:
        pairs = zip(requests["text"], requests["expected_text"], strict=True)
        begins = [_begins(text, expected) for text, expected in pairs]
        right = pd.Series(begins, index=requests.index, dtype=bool)
        outcome = outcome.mask((outcome == "wrong") & right, "ok")
    else:
        known = requests["reference_tokens"].map(lambda tokens: isinstance(tokens, tuple))
        completed = outcome.isin(("ok", "wrong")) & known.astype(bool)
        differs = requests["first_divergence"].notna()
        outcome = outcome.mask(completed & differs, "wrong").mask(completed & ~differs, "ok")
    return requests.assign(outcome=outcome)


def _begins(text: object, expected: object) -> bool:
    both = isinstance(text, str) and isinstance(expected, str)
    return both and str(text).startswith(str(expected)[:BEGINNING])
