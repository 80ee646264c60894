"""Writes the tables or the trials of a run in formats of other tools."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from analysis.core.errors import RunError
from analysis.diagnosis.request_trace import check_trial
from analysis.report.memory_viz import memory_snapshot
from analysis.report.perfetto import perfetto_trace
from analysis.runs.manifest import is_whole, refuse_light
from analysis.runs.packing import new_place, whole_or_not
from analysis.runs.schema import TABLES
from analysis.runs.store import Run, load_run

Format = Literal["csv", "perfetto", "memory-viz"]
_TRACES: Mapping[str, tuple[str, Callable[[Run, str], bytes]]] = {
    "perfetto": ("pftrace", perfetto_trace),
    "memory-viz": ("pickle", memory_snapshot),
}


def hand_over(path: Path, out: Path, format: Format, trials: Sequence[str] = ()) -> Path:
    """Write a run to the new directory `out`, and return it.

    `csv`: a file a table, lists and structures as JSON. `perfetto` and `memory-viz`: a file a trial
    with recorded events, of `trials` if given. Raises RunError if the run cannot be read or lacks
    what the format needs, or if `out` exists or cannot be written.
    """
    out = new_place(out)
    run = load_run(path, controls=bool(trials))
    for trial_id in trials:
        check_trial(run, trial_id)
    chosen = list(trials) or list(run.trials["trial_id"])
    with whole_or_not(out) as temporary:
        if format == "csv":
            for name in TABLES:
                _as_text(getattr(run, name), chosen).to_csv(temporary / f"{name}.csv", index=False)
            return out
        ending, trace = _TRACES[format]
        for trial_id in _recorded(run, chosen, trials):
            name = trial_id.replace("/", "-")
            (temporary / f"{name}.{ending}").write_bytes(trace(run, trial_id))
    return out


def _recorded(run: Run, chosen: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Return the chosen trials with events; raise RunError if there are none."""
    whole = [name for name in chosen if is_whole(run.manifest, name)]
    for trial_id in wanted:
        refuse_light(run.path, run.manifest, trial_id)
    if not whole:
        refuse_light(run.path, run.manifest)
    recorded = set(run.events["trial_id"])
    found = [name for name in whole if name in recorded]
    if lacking := [name for name in wanted if name not in recorded] or (not found and chosen):
        raise RunError(
            f"Nothing was recorded of {lacking[0]}. Sweep again with `--observe events`, with"
            " `--observe snapshots` or with `--sanitize`."
        )
    return found


def _as_text(frame: pd.DataFrame, trials: Sequence[str]) -> pd.DataFrame:
    """Return the rows of trials, with lists and structures as JSON."""
    rows = frame[frame["trial_id"].isin(trials)]

    def text(value: Any) -> Any:
        return json.dumps(value, default=list) if isinstance(value, tuple | list | dict) else value

    nested = [name for name in rows.columns if pd.api.types.is_object_dtype(rows[name])]
    return rows.assign(**{name: rows[name].map(text) for name in nested})
