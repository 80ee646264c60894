"""Exposures of two arms: what moved, what did not, and what cannot be estimated."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.runs.derive import EXPOSURES
from analysis.stats.exposure import Change, changes
from analysis.studies.wording import exposure_cell, exposure_in_words


def arm(engines: int = 8, **values: float | list[float]) -> pd.DataFrame:
    columns = {name: values.get(name, np.nan) for name in EXPOSURES}
    return pd.DataFrame({"repeat": range(engines), **columns})


def of(first: pd.DataFrame, second: pd.DataFrame) -> dict[str, Change]:
    return {change.name: change for change in changes(first, second, ["repeat"])}


def test_decreases_and_increases_are_distinguished_from_scatter() -> None:
    rng = np.random.default_rng(0)
    noise = [float(value) for value in rng.normal(4, 0.3, 8)]
    first = arm(batch_rows=noise, pages=noise, hits=noise, evictions=0.0)
    second = arm(batch_rows=[v / 2 for v in noise], pages=[v * 2 for v in noise],
                 hits=noise[::-1], evictions=3.0)  # fmt: skip
    found = of(first, second)
    assert (found["batch_rows"].fell, found["batch_rows"].rose) == (True, False)
    assert (found["pages"].fell, found["pages"].rose) == (False, True)
    assert (found["hits"].fell, found["hits"].rose) == (False, False)
    assert (found["evictions"].fell, found["evictions"].rose) == (False, True)
    assert "overlap" not in found  # not recorded
    assert found["batch_rows"].label.startswith("mean number of requests in a batch: ")


def test_a_change_below_a_fifth_and_one_of_few_engines_is_none() -> None:
    little = of(arm(pages=10.0), arm(pages=9.0))
    assert not little["pages"].fell
    assert not of(arm(4, pages=10.0), arm(4, pages=1.0))
    never = of(arm(evictions=0.0), arm(evictions=0.0))
    assert not never["evictions"].rose


def test_the_exposure_of_a_cause_is_reported_separately() -> None:
    noise = [4.0, 4.1, 3.9, 4.2, 3.8, 4.0, 4.1, 3.9]
    first, second = (
        arm(pages=noise, batch_rows=4.0),
        arm(pages=[v / 4 for v in noise], batch_rows=4.0),
    )
    found = changes(first, second, ["repeat"])
    words = exposure_in_words(found, ("pages",))
    assert words.startswith(
        "The exposure that it acts through changed with it (most pages in use at the same time: 4"
    )
    assert words.endswith("Other exposures are alike (within 20%).")
    assert exposure_in_words(found).startswith("Exposure differed (most pages")
    cell = exposure_cell(found, ("pages",))
    assert cell.startswith("acts through most pages in use at the same time: 4")
    assert cell.endswith("; alike (within 20%)")
    assert exposure_cell(found).startswith("differed: most pages in use at the same time")
    # Eight engines recorded it: that nothing else was recorded is not for want of engines of these.
    alone = exposure_in_words(changes(arm(pages=noise), arm(pages=noise), ["repeat"]), ("pages",))
    assert "The exposure that it acts through is not shown to have changed (most pages" in alone
    assert "No other exposure was recorded" in alone
    assert exposure_in_words([], ("pages",)) == "Exposure not compared: too few engines."
    assert exposure_cell([]) == "not compared: too few engines"
