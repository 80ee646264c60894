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


def setting_name(key: Mapping[str, Any]) -> str:
    """Return the name of a configuration, such as "shortfin X, prefix sharing trie"."""
    return ", ".join(
        _FORMS.get(name, name + " {}").format(treated(value) if name == "treatments" else value)
        for name, value in key.items()
    )
