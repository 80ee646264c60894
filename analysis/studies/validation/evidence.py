"""What a run says about a rung: read trial by trial, also while the run still grows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from analysis.core.errors import RunError
from analysis.runs.derive import max_at_once
from analysis.runs.store import read_manifest, trial_tables
from analysis.runs.tables import is_control
from analysis.sanitizer.findings import WRONG_DATA, worst
from analysis.sanitizer.recorded import Control
from analysis.stats.rates import FAILURES
from analysis.studies.validation.result import Found, Rung

READ = ("trials", "requests", "findings", "snapshots", "events")
"""The tables that evidence is taken from."""

Tolerated = Mapping[tuple[str, str], str]
"""Rule and cause of findings that do not fail a rung, and the reason why."""


@dataclass(frozen=True)
class Evidence:
    """What one fresh engine showed."""

    trial_id: str
    workload: str
    control: bool
    alarmed: bool
    """Whether a control's fault was found for what it is."""
    injected: bool
    """Whether a control's fault was injected."""
    fault: str
    """A control's fault, else ""."""
    outcomes: Mapping[str, int]
    refusals: int
    ending: str | None
    """How it ended if not well."""
    unchecked: str | None
    findings: tuple[Mapping[str, Any], ...]
    """Rows of the table `findings`, tolerated ones left out."""
    tolerated: tuple[Mapping[str, Any], ...]
    leaked: int
    peak_rss_bytes: int | None
    pages_in_use: int | None
    at_once: int | None
    """Requests that it worked on at once, at most."""
    page_count: int
    duration_s: float
    failed_requests: tuple[str, ...] = field(default=())
    """In the order in which they were sent."""

    @property
    def accepted(self) -> int:
        """Requests that the engine took."""
        return sum(self.outcomes.values()) - self.outcomes.get("rejected", 0)

    @property
    def broken(self) -> bool:
        """Whether it fails its rung; a control never does."""
        bad = self.failed_requests or self.ending or self.findings or self.leaked
        return bool(bad) and not self.control


def evidence_of(tables: Mapping[str, pa.Table], tolerated: Tolerated) -> Evidence:
    """Return what the tables of one trial, of those named in `READ`, say."""
    [trial] = tables["trials"].to_pylist()
    times = tables["requests"].select(["outcome", "submitted_s", "latency_s"]).to_pandas()
    at_once = max_at_once(times, trial["concurrency"])
    requests = tables["requests"].select(["request_id", "outcome", "retries", "submitted_s"])
    requests = requests.to_pylist()
    findings = tables["findings"].to_pylist() if "findings" in tables else []
    keys = [(row["rule"], row["cause"]) for row in findings]
    badly = trial["status"] != "ok"
    unchecked = None if badly else trial["status_detail"]
    if "snapshots" not in tables and not badly:
        unchecked = "Nothing was recorded."
    failed = [row for row in requests if row["outcome"] in FAILURES]
    failed.sort(key=lambda row: (row["submitted_s"] is None, row["submitted_s"], row["request_id"]))
    control = Control.of(trial, findings) if is_control(trial["treatments"] or ()) else None
    return Evidence(
        trial_id=trial["trial_id"],
        workload=trial["workload"],
        control=control is not None,
        alarmed=control is not None and control.alarmed,
        injected=control is not None and control.injected,
        fault="" if control is None else control.fault,
        outcomes=Counter(row["outcome"] for row in requests),
        refusals=sum(row["retries"] or 0 for row in requests),
        ending=(trial["status_detail"] or trial["status"]) if badly else None,
        unchecked=unchecked,
        findings=tuple(r for r, k in zip(findings, keys, strict=True) if k not in tolerated),
        tolerated=tuple(r for r, k in zip(findings, keys, strict=True) if k in tolerated),
        leaked=0 if badly else _leaked(tables),
        peak_rss_bytes=trial["peak_rss_bytes"],
        pages_in_use=_pages_in_use(tables, trial["page_count"]),
        at_once=at_once,
        page_count=trial["page_count"],
        duration_s=trial["duration_s"],
        failed_requests=tuple(row["request_id"] for row in failed),
    )


def read_evidence(
    path: str | Path, tolerated: Tolerated, skip: Iterable[str] = ()
) -> list[Evidence]:
    """Return what every finished trial of a run says, but for those in `skip`; [] if there is none.

    Raises RunError if something in it is damaged.
    """
    try:
        read_manifest(Path(path))
    except RunError:
        if (Path(path) / "manifest.json").exists():
            raise
        return []
    known = set(skip)
    return [
        evidence_of(tables, tolerated)
        for trial_id, tables in trial_tables(path, READ)
        if trial_id not in known
    ]


def rung_of(
    level: int,
    evidence: Iterable[Evidence],
    *,
    needed: int,
    confidence: float,
    rate: float,
    tolerated: Tolerated,
    run: str = "",
) -> Rung:
    """Return the rung that these engines make."""
    every = list(evidence)
    own = [item for item in every if not item.control]
    controls = [item for item in every if item.control and item.injected]
    outcomes = sum((Counter(item.outcomes) for item in own), Counter[str]())
    memory = [item.peak_rss_bytes for item in own if item.peak_rss_bytes]
    pages = [item.pages_in_use for item in own if item.pages_in_use is not None]
    return Rung(
        level=level,
        needed=needed,
        confidence=confidence,
        rate=rate,
        accepted=sum(item.accepted for item in own),
        failures={name: outcomes[name] for name in FAILURES if outcomes[name]},
        rejected=outcomes["rejected"],
        refusals=sum(item.refusals for item in own),
        trials=len(own),
        failed_trials=sum(item.broken for item in own),
        workloads=dict(Counter(item.workload for item in own)),
        at_once=max((item.at_once for item in own if item.at_once is not None), default=None),
        endings=tuple(item.ending for item in own if item.ending),
        findings=_grouped(own, "findings", {}),
        tolerated=_grouped(own, "tolerated", tolerated),
        leaked=sum(item.leaked for item in own),
        controls=len(controls),
        alarms=sum(item.alarmed for item in controls),
        planted=tuple(item.fault for item in every if item.control),
        unchecked=tuple(sorted({item.unchecked for item in own if item.unchecked})),
        peak_rss_bytes=max(memory, default=None),
        pages_in_use=max(pages, default=None),
        page_count=max((item.page_count for item in own), default=None),
        seconds=sum(item.duration_s for item in every),
        run=run,
        failing=_failing(own),
    )


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


def _grouped(own: list[Evidence], name: str, reasons: Tolerated) -> tuple[Found, ...]:
    """Return the findings by rule and cause, wrong data first, then what most engines showed."""
    groups: dict[tuple[str, str], list[tuple[str, Mapping[str, Any]]]] = {}
    for item in own:
        for row in getattr(item, name):
            groups.setdefault((row["rule"], row["cause"]), []).append((item.trial_id, row))
    found = [
        Found(
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
