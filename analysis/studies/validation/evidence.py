"""Evidence of a level: what each engine of its run showed, read while the run still grows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from analysis.core.errors import RunError
from analysis.runs.derive import max_at_once
from analysis.runs.schema import FAILURES
from analysis.runs.store import read_manifest, trial_tables
from analysis.runs.tables import is_control
from analysis.sanitizer.findings import WRONG_DATA, worst
from analysis.sanitizer.recorded import Control
from analysis.studies.validation.plan import Settings, Tolerated
from analysis.studies.validation.result import FindingGroup, Isolated, Level

TABLES = ("trials", "requests", "findings", "snapshots", "events")
"""The tables that evidence is read from."""


@dataclass(frozen=True)
class Evidence:
    """What one fresh engine showed."""

    trial: Mapping[str, Any]
    """The row of the table `trials`."""
    control: Control | None
    """The injected fault, if the engine is a control."""
    outcomes: Mapping[str, int]
    retries: int
    ending: str | None
    """Why the engine ended early."""
    unchecked: str | None
    findings: tuple[Mapping[str, Any], ...]
    """Rows of the table `findings` that are not tolerated."""
    tolerated: tuple[Mapping[str, Any], ...]
    leaked: int
    pages_in_use: int | None
    at_once: int | None
    failed_requests: tuple[str, ...]
    """In the order in which they were sent."""

    @property
    def trial_id(self) -> str:
        """The trial's name."""
        return str(self.trial["trial_id"])

    @property
    def accepted(self) -> int:
        """Requests that the engine accepted."""
        return sum(self.outcomes.values()) - self.outcomes.get("rejected", 0)

    @property
    def broken(self) -> bool:
        """Whether the engine fails its level; a control never does."""
        bad = self.failed_requests or self.ending or self.findings or self.leaked
        return bool(bad) and self.control is None


def read_evidence(
    path: str | Path, tolerated: Tolerated, skip: Iterable[str] = ()
) -> list[Evidence]:
    """Return the evidence of every finished trial but those in `skip`; [] if there is no run.

    Raises RunError if the run is damaged.
    """
    try:
        read_manifest(Path(path))
    except RunError:
        if (Path(path) / "manifest.json").exists():
            raise
        return []
    known = set(skip)
    return [
        _evidence(tables, tolerated)
        for trial_id, tables in trial_tables(path, TABLES)
        if trial_id not in known
    ]


def _evidence(tables: Mapping[str, pa.Table], tolerated: Tolerated) -> Evidence:
    [trial] = tables["trials"].to_pylist()
    times = tables["requests"].select(["outcome", "submitted_s", "latency_s"]).to_pandas()
    requests = tables["requests"].select(["request_id", "outcome", "retries", "submitted_s"])
    requests = requests.to_pylist()
    findings = tables["findings"].to_pylist() if "findings" in tables else []
    badly = trial["status"] != "ok"
    unchecked = None if badly else trial["status_detail"]
    if "snapshots" not in tables and not badly:
        unchecked = "Nothing was recorded."
    failed = [row for row in requests if row["outcome"] in FAILURES]
    failed.sort(key=lambda row: (row["submitted_s"] is None, row["submitted_s"], row["request_id"]))
    split: dict[bool, list[Mapping[str, Any]]] = {False: [], True: []}
    for row in findings:
        split[(row["rule"], row["cause"]) in tolerated].append(row)
    return Evidence(
        trial=trial,
        control=Control.of(trial, findings) if is_control(trial["treatments"] or ()) else None,
        outcomes=Counter(row["outcome"] for row in requests),
        retries=sum(row["retries"] or 0 for row in requests),
        ending=(trial["status_detail"] or trial["status"]) if badly else None,
        unchecked=unchecked,
        findings=tuple(split[False]),
        tolerated=tuple(split[True]),
        leaked=0 if badly else _leaked(tables),
        pages_in_use=_pages_in_use(tables, trial["page_count"]),
        at_once=max_at_once(times, trial["concurrency"]),
        failed_requests=tuple(row["request_id"] for row in failed),
    )


def level_of(
    settings: Settings, concurrency: int, evidence: Iterable[Evidence], run: str = ""
) -> Level:
    """Return the level that these engines make."""
    every = list(evidence)
    own = [item for item in every if item.control is None]
    controls = [item.control for item in every if item.control is not None]
    injected = [control for control in controls if control.injected]
    outcomes = sum((Counter(item.outcomes) for item in own), Counter[str]())
    return Level(
        concurrency=concurrency,
        needed=settings.needed,
        confidence=settings.confidence,
        rate=settings.rate,
        accepted=sum(item.accepted for item in own),
        failures={name: outcomes[name] for name in FAILURES if outcomes[name]},
        rejected=outcomes["rejected"],
        retries=sum(item.retries for item in own),
        trials=len(own),
        failed_trials=sum(item.broken for item in own),
        workloads=dict(Counter(item.trial["workload"] for item in own)),
        at_once=_most(item.at_once for item in own),
        endings=tuple(item.ending for item in own if item.ending),
        findings=_grouped(own, "findings", {}),
        tolerated=_grouped(own, "tolerated", settings.tolerate),
        leaked=sum(item.leaked for item in own),
        controls=len(injected),
        detected=sum(control.alarmed for control in injected),
        faults=tuple(control.fault for control in controls),
        unchecked=tuple(sorted({item.unchecked for item in own if item.unchecked})),
        peak_rss_bytes=_most(item.trial["peak_rss_bytes"] for item in own),
        pages_in_use=_most(item.pages_in_use for item in own),
        page_count=_most(item.trial["page_count"] for item in own),
        seconds=sum(item.trial["duration_s"] for item in every),
        run=run,
        failing=_failing(own),
    )


def isolated_of(output: Mapping[str, Any], seconds: float) -> Isolated:
    """Return the result for the cache alone from what `analysis.interleavings --json` printed.

    Raises KeyError or TypeError if it is something else.
    """
    reachable = [failure for failure in output["failures"] if failure["reachable"]]
    return Isolated(
        ok=not reachable,
        interleavings=int(output["interleavings"]),
        complete=bool(output["complete"]),
        failures=tuple(f"{failure['scenario']}: {failure['message']}" for failure in reachable),
        unreachable=len(output["failures"]) - len(reachable),
        seconds=seconds,
    )


def _most(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def _leaked(tables: Mapping[str, pa.Table]) -> int:
    """Return the pages that are neither free nor cached in the last snapshot."""
    if "snapshots" not in tables:
        return 0
    last = tables["snapshots"].sort_by("seq").slice(tables["snapshots"].num_rows - 1).to_pylist()[0]
    return int(last["live"]) + int(last["leaked"])


def _pages_in_use(tables: Mapping[str, pa.Table], page_count: int) -> int | None:
    if "events" not in tables:
        return None
    least = pc.min(tables["events"]["free_pages"]).as_py()
    return None if least is None else page_count - int(least)


def _grouped(own: list[Evidence], name: str, reasons: Tolerated) -> tuple[FindingGroup, ...]:
    """Return findings by rule and cause: wrong data first, then those of most engines."""
    groups: dict[tuple[str, str], list[tuple[str, Mapping[str, Any]]]] = {}
    for item in own:
        for row in getattr(item, name):
            groups.setdefault((row["rule"], row["cause"]), []).append((item.trial_id, row))
    found = [
        FindingGroup(
            rule=rule,
            cause=cause,
            severity=worst(row["severity"] for _, row in rows),
            requests=len({(trial, row["request_id"]) for trial, row in rows if row["request_id"]}),
            trials=len({trial for trial, _ in rows}),
            message=rows[0][1]["message"],
            reason=reasons.get((rule, cause), ""),
        )
        for (rule, cause), rows in groups.items()
    ]
    return tuple(sorted(found, key=lambda f: (f.severity != WRONG_DATA, -f.trials, -f.requests)))


def _failing(own: list[Evidence]) -> tuple[str, str] | None:
    """Return the trial and request to explain: a failed one, else one of wrong data, else any."""
    for item in own:
        if item.failed_requests:
            return item.trial_id, item.failed_requests[0]
    rows = [(item.trial_id, row) for item in own for row in item.findings]
    rows.sort(key=lambda pair: (pair[1]["severity"] != WRONG_DATA, pair[1]["request_id"] is None))
    if rows:
        return rows[0][0], rows[0][1]["request_id"] or ""
    return next(((item.trial_id, "") for item in own if item.broken), None)
