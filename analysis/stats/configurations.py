"""Settings in which the trials of a run differ, and their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.core.wording import capitalised
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
    """Return trials with a name in `treatments`, not a tuple; the names sort like the tuples.

    If all treatments of a release and prefix sharing are an arm, and all but one of them another,
    these arms are called "all 3 treatments" and "all but X"; others are called "X + Y".
    """
    if "treatments" not in trials:
        return trials
    arms = trials["treatments"].map(lambda arm: tuple(arm or ()))
    names = arms.map(treated)
    for _, own in arms.groupby([trials["release"], trials["prefix_sharing"]], dropna=False):
        whole, several = max(own, key=len), {arm for arm in own if len(arm) > 1}
        left_out = {arm: [name for name in whole if name not in arm] for arm in several}
        short = {arm: f"all but {out[0]}" for arm, out in left_out.items() if len(out) == 1}
        if not short or not all(
            list(arm) == [name for name in whole if name in arm] for arm in several
        ):
            continue
        short[whole] = f"all {len(whole)} treatments"
        names.update(own.map(short).dropna())
    order = list(dict.fromkeys(names[arms.sort_values().index]))
    return trials.assign(treatments=pd.Categorical(names, categories=order, ordered=True))


def arms_in_full(trials: pd.DataFrame) -> str:
    """Return what the names "all 3 treatments" of `labelled` stand for, in sentences."""
    names = labelled(trials)["treatments"].astype(str)
    full = dict.fromkeys(
        (name, treated(arm))
        for name, arm in zip(names, trials["treatments"], strict=True)
        if name != treated(arm) and name.startswith("all ") and not name.startswith("all but ")
    )
    return " ".join(f"{capitalised(name)}: {text}." for name, text in full)


def setting_name(key: Mapping[str, Any]) -> str:
    """Return the name of a configuration, such as "shortfin X, prefix sharing trie"."""
    return ", ".join(
        _FORMS.get(name, name + " {}").format(
            treated(value) if name == "treatments" and not isinstance(value, str) else value
        )
        for name, value in key.items()
    )
