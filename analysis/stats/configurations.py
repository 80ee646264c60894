"""Settings in which the trials of a run differ, and their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.runs.tables import treated

CONFIGURATION = ("release", "device", "prefix_sharing", "page_count", "workload", "treatments",
                 "options", "target")  # fmt: skip
"""Columns of `trials` that distinguish configurations."""
_FORMS = {
    "release": "shortfin {}",
    "prefix_sharing": "prefix sharing {}",
    "page_count": "{} pages",
    "workload": "workload {}",
    "device": "{}",
    "treatments": "{}",
    "options": "options {}",
    "target": "target {}",
}


def varying(trials: pd.DataFrame, columns: Sequence[str] = CONFIGURATION) -> list[str]:
    """Return the columns in which the trials differ from each other."""
    return [name for name in columns if name in trials and trials[name].nunique(dropna=False) > 1]


def series_columns(trials: pd.DataFrame) -> list[str]:
    """Return release, prefix sharing and the other columns in which the trials differ."""
    return list(dict.fromkeys(["release", "prefix_sharing", *varying(trials)]))


def labelled(trials: pd.DataFrame) -> pd.DataFrame:
    """Return trials with a short name in `treatments`, not a tuple; the names have its order.

    Of the arms of a release and prefix sharing, the largest one of three or more treatments that
    contains all others with several is "all N treatments", and without one of them "all but" it.
    """
    if "treatments" not in trials:
        return trials
    names = pd.Series("", index=trials.index, dtype=object)
    for _, own in trials.groupby(["release", "prefix_sharing"], dropna=False)["treatments"]:
        arms = {arm: frozenset(arm or ()) for arm in own}
        whole = max(arms.values(), key=len)
        ordered = len(whole) > 2 and all(
            arm <= whole for arm in arms.values() if len(arm) >= len(whole) - 1
        )
        for arm, found in arms.items():
            name, left_out = treated(arm), sorted(whole - found)
            if ordered and found == whole:
                name = f"all {len(whole)} treatments"
            elif ordered and len(left_out) == 1 and found < whole:
                name = f"all but {left_out[0]}"
            names[own.index[own.map(lambda each, arm=arm: each == arm)]] = name
    whole_arms = trials["treatments"].map(lambda arm: tuple(arm or ()))
    order = list(dict.fromkeys(names[whole_arms.sort_values().index]))
    return trials.assign(treatments=pd.Categorical(names, categories=order, ordered=True))


def setting_name(key: Mapping[str, Any]) -> str:
    """Return the name of a configuration, such as "shortfin X, prefix sharing trie"."""
    return ", ".join(
        _FORMS.get(name, name + " {}").format(
            treated(value) if name == "treatments" and not isinstance(value, str) else value
        )
        for name, value in key.items()
    )
