"""The request that is to be explained, with what was recorded of its cell."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
import pyarrow as pa

from analysis.core.errors import RunError
from analysis.recording.spill import cut_in_words, without_end
from analysis.runs.store import Run
from analysis.runs.tables import TABLES, to_frame, to_table

_NAMED = 8
_STRIDE = 16
"""Tokens of a page where no flight shows it."""


@dataclass(frozen=True)
class Case:
    """One request of one cell; every frame is of that cell alone, in the order of its events."""

    run: Run
    cell: Mapping[str, Any]
    """The cell's row of `cells`; what is missing is None."""
    request: Mapping[str, Any]
    """Its row of `requests`; what is missing is None."""
    requests: pd.DataFrame
    flights: pd.DataFrame
    events: pd.DataFrame
    snapshots: pd.DataFrame
    findings: pd.DataFrame

    @property
    def name(self) -> str:
        """The request's id."""
        return str(self.request["request_id"])

    @property
    def outcome(self) -> str:
        """How it ended."""
        return str(self.request["outcome"])

    @property
    def recorded(self) -> bool:
        """Whether anything was recorded of its cell."""
        return len(self.events) > 0 or len(self.flights) > 0

    @cached_property
    def stride(self) -> int:
        """Tokens of a page."""
        prefills = self.flights[self.flights["phase"] == "prefill"].head(20)
        for flight in prefills.to_dict("records"):
            tokens, tables = flight["tokens"], flight["block_tables"]
            if tokens and tables and not any(flight["start_positions"] or ()):
                return len(tokens[0]) // len(tables[0])
        return _STRIDE

    @property
    def cut(self) -> str | None:
        """Where the recording ends that has no end of the request, in a sentence, if it was cut."""
        for event in self.events[self.events["kind"] == "cut"].to_dict("records"):
            if self.name in without_end(event["detail"]):
                return cut_in_words(event["t_ns"], value_of(event["value"]), event["detail"])
        return None

    def seq_of(self, kind: str) -> int | None:
        """Return the place of the request's first event of a kind, None if there is none."""
        found = self.events[
            (self.events["kind"] == kind) & (self.events["request_id"] == self.name)
        ]
        return None if found.empty else int(found["seq"].iloc[0])


def case_of(run: Run, request_id: str, cell_id: str | None = None) -> Case:
    """Return a request of a run. `cell_id` says of which cell where several have one of that name.

    What the sanitizer finds is asked now if nobody has. Raises RunError, which names what there is,
    if there is no such cell or request, or if several cells have one.
    """
    row = _row(run, request_id, cell_id)
    cell_id = str(row["cell_id"])
    own = {name: _of_cell(getattr(run, name), cell_id) for name in TABLES if name != "cells"}
    plan = run.manifest.get("plan") or {}
    if own["findings"].empty and not own["snapshots"].empty and not plan.get("sanitize"):
        own["findings"] = _findings(own, cell_id)
    cell = run.cells[run.cells["cell_id"] == cell_id].iloc[0]
    return Case(run=run, cell=plain(cell), request=plain(row), **own)


def plain(row: pd.Series[Any]) -> dict[str, Any]:
    """Return a row as Python values, None where there is none."""
    return {str(name): value_of(value) for name, value in row.items()}


def value_of(value: Any) -> Any:
    """Return a value of a frame as a Python value, None where it is missing."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return None
    return value.item() if hasattr(value, "item") else value


def _row(run: Run, request_id: str, cell_id: str | None) -> pd.Series[Any]:
    requests, cells = run.requests, list(run.cells["cell_id"])
    if cell_id is not None:
        if cell_id not in cells:
            raise RunError(f"{run.path} has no cell {cell_id!r}: it has {_listed(cells)}.")
        requests = requests[requests["cell_id"] == cell_id]
    found = requests[requests["request_id"] == request_id]
    if found.empty:
        where = f"cell {cell_id} of {run.path}" if cell_id else str(run.path)
        names = _listed(sorted(requests["request_id"].unique()))
        raise RunError(f"{where} has no request {request_id!r}: it has {names or 'none'}.")
    if len(found) > 1:
        found = found.sort_values("outcome", key=lambda kinds: kinds == "ok", kind="stable")
        among = [f"{row.cell_id} ({row.outcome})" for row in found.itertuples()]
        raise RunError(
            f"{len(found)} cells of {run.path} have a request {request_id!r}, so name the cell:"
            f" {_listed(among)}."
        )
    return found.iloc[0]


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMED])
    return f"{shown} and {len(names) - _NAMED} more" if len(names) > _NAMED else shown


def _of_cell(frame: pd.DataFrame, cell_id: str) -> pd.DataFrame:
    own = frame[frame["cell_id"] == cell_id]
    if "seq" in own.columns:
        own = own.sort_values("seq", kind="stable")
    return own.reset_index(drop=True)


def _findings(frames: Mapping[str, pd.DataFrame], cell_id: str) -> pd.DataFrame:
    from analysis.sanitizer.recorded import check_tables

    recorded: dict[str, pa.Table] = {}
    for name in ("events", "flights", "snapshots"):
        rows = [
            {str(key): value_of(value) for key, value in row.items()}
            for row in frames[name].to_dict("records")
        ]
        if rows:
            recorded[name] = to_table(name, rows)
    findings = check_tables(recorded)
    return to_frame("findings", [] if findings is None else findings.rows(cell_id))
