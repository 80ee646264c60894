"""The sanitizer on the recordings of a run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from analysis.core.errors import CachelabError, RunError
from analysis.model.artifacts import load_model
from analysis.runs.manifest import read_manifest, refuse_light
from analysis.runs.schema import FAULT
from analysis.runs.store import load_run_trials, trial_tables
from analysis.runs.tables import arm_of, is_control
from analysis.sanitizer.checker import FULL, Checker
from analysis.sanitizer.findings import WRONG_DATA, Finding, Findings, Group, Unchecked
from analysis.sanitizer.rules import limits_of
from analysis.sanitizer.trace import events_of_table, invocations_of_table
from analysis.snapshots.snapshot import Snapshot

OnTrial = Callable[[str, Findings | None], None]


@dataclass
class Checked:
    """Findings of all trials of one setting."""

    release: str
    prefix_sharing: str
    treatments: tuple[str, ...]
    trials: int = 0
    unobserved: int = 0
    """Trials without a recording."""
    invocations: int = 0
    events: int = 0
    controls: int = 0
    """Number of engines with these treatments and an injected fault."""
    alarms: int = 0
    """Number of these in which the fault was detected."""
    idle: int = 0
    """Number of engines in which the fault could not be injected; they show nothing."""
    planted: list[str] = field(default_factory=list)
    """The injected faults."""
    groups: dict[tuple[str, str], list[tuple[str, Group]]] = field(default_factory=dict)
    """Groups of each trial, by rule and cause."""
    notes: list[str] = field(default_factory=list)
    unchecked: Unchecked = field(default_factory=Unchecked)
    """Unchecked invocations of all trials, with requests as trial/request."""
    unchecked_wrong: list[str] = field(default_factory=list)
    """Requests (trial/request) with unchecked invocations and wrong answers."""
    trial_ids: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The setting in words."""
        return " ".join([self.release, self.prefix_sharing, *self.treatments])

    @property
    def limits(self) -> dict[str, str]:
        """What each rule cannot detect on this release."""
        return limits_of(self.release)

    @property
    def void(self) -> bool:
        """Whether an injected fault was not detected, so that the results are invalid."""
        return self.alarms < self.controls

    @property
    def complete(self) -> bool:
        """Whether every rule was checked on the whole recording of every trial."""
        return not (self.unchecked or self.notes or self.unobserved)

    @property
    def not_checked(self) -> list[str]:
        """What was not checked, in sentences."""
        sentences = [f"Unchecked: {self.unchecked}."] if self.unchecked else []
        if self.unchecked_wrong:
            sentences.append(f"Of these, {', '.join(self.unchecked_wrong)} had wrong answers.")
        if self.unobserved:
            sentences.append(f"{self.unobserved} of {self.trials} trials have no recording.")
        return [*sentences, *self.notes]

    @property
    def wrong_data(self) -> list[tuple[str, str]]:
        """Rules and causes with wrong data read in some trial."""
        return [
            key
            for key, members in self.groups.items()
            if any(group.severity == WRONG_DATA for _, group in members)
        ]

    def lead(self, among: Collection[str] | None = None) -> tuple[str, Finding] | None:
        """Return the first finding with wrong data and its trial, else the first finding.

        `among` limits the trials. Trials are searched in order.
        """
        found = [
            (trial, group.first)
            for members in self.groups.values()
            for trial, group in members
            if among is None or trial in among
        ]

        def order(lead: tuple[str, Finding]) -> tuple[bool, int, int]:
            trial, first = lead
            place = -1 if first.seq is None else first.seq
            return first.severity != WRONG_DATA, self.trial_ids.index(trial), place

        return min(found, key=order, default=None)

    def add(self, trial_id: str, findings: Findings, requests: pa.Table | None = None) -> None:
        """Add the findings of a trial; `requests` is its table of requests."""
        self.trial_ids.append(trial_id)
        self.invocations += findings.invocations
        self.events += findings.events
        for group in findings.groups:
            self.groups.setdefault((group.rule, group.cause), []).append((trial_id, group))
        self.unchecked.update(findings.unchecked, trial_id)
        self.notes += [note for note in findings.notes if note not in self.notes]
        if requests is not None:
            wrong = requests.filter(pc.field("outcome") == "wrong")["request_id"].to_pylist()
            unchecked = findings.unchecked.requests
            self.unchecked_wrong += [f"{trial_id}/{r}" for r in wrong if unchecked[r]]


@dataclass(frozen=True)
class Control:
    """One engine with an injected fault and the treatments of its arm."""

    release: str
    prefix_sharing: str
    arm: tuple[str, ...]
    fault: str
    injected: bool
    """Whether the fault was injected; True if unknown."""
    alarmed: bool
    """Whether it was detected with the expected rule and cause."""

    @property
    def silent(self) -> bool:
        """Whether the sanitizer missed it, so that the arm's results are invalid."""
        return self.injected and not self.alarmed

    @classmethod
    def of(cls, trial: Mapping[str, Any], findings: Sequence[Mapping[str, Any]]) -> Control:
        """Return the control of a row of `trials`, from the rows of its findings.

        A finding counts if it has the rule and cause that the trial expects, and a request or the
        page of the injection, since the engine's own defects may violate the same rule. Values that
        an older run did not record are not compared.
        """
        names = tuple(trial["treatments"] or ())
        fault = next(name for name in names if name.startswith(FAULT))
        injection = trial.get("injection") or {}
        return cls(
            trial["release"],
            trial["prefix_sharing"],
            arm_of(names),
            fault,
            trial.get("injected") is not False,
            any(_matches(row, injection) for row in findings),
        )


def _matches(row: Mapping[str, Any], injection: Mapping[str, Any]) -> bool:
    """Return whether a finding is about an injected fault."""
    if any(injection.get(name) not in (None, row[name]) for name in ("rule", "cause")):
        return False
    requests = {injection.get("request_id"), injection.get("other_request_id")} - {None}
    page = injection.get("page")
    if not requests and page is None:
        return True
    return bool(requests & {row["request_id"], row["other_request_id"]}) or (
        page is not None and row["page"] == page
    )


def controls_of(path: str | Path) -> list[Control]:
    """Return the controls of a sanitized run, from its recorded findings.

    Raises RunError if `path` is not a run, or is damaged.
    """
    found, trials = [], load_run_trials(path)
    for trial_id, tables in trial_tables(path, ("findings",)):
        if is_control(trials[trial_id]["treatments"] or ()):
            rows = tables["findings"].to_pylist() if "findings" in tables else []
            found.append(Control.of(trials[trial_id], rows))
    return found


def check_run(path: str | Path, on_trial: OnTrial | None = None) -> list[Checked]:
    """Check every trial of a run except controls, and return the findings of each setting.

    `on_trial` is called with each trial's id and findings (None without a recording). Raises
    RunError if `path` is not a run, is damaged, is light, or has no recording.
    """
    trials = load_run_trials(path)
    manifest = read_manifest(path)
    refuse_light(path, manifest)
    [*_, one] = manifest.get("runs", [manifest])  # all of the same model
    context_length = context_length_of(one.get("plan"))
    settings: dict[tuple[str, str, tuple[str, ...]], Checked] = {}
    controls: list[Control] = []
    for trial_id, tables in trial_tables(path, ("requests", "events", "invocations", "snapshots")):
        trial = trials[trial_id]
        names = tuple(trial["treatments"] or ())
        findings = check_tables(tables, trial["page_tokens"], context_length=context_length)
        if is_control(names):
            rows = [] if findings is None else findings.rows(trial_id)
            controls.append(Control.of(trial, rows))
            continue
        if on_trial is not None:
            on_trial(trial_id, findings)
        key = trial["release"], trial["prefix_sharing"], names
        checked = settings.setdefault(key, Checked(*key))
        checked.trials += 1
        if findings is None:
            checked.unobserved += 1
        else:
            checked.add(trial_id, findings, tables["requests"])
    for control in controls:
        own = settings.get((control.release, control.prefix_sharing, control.arm))
        if own is not None:
            own.planted.append(control.fault)
            own.controls += control.injected
            own.alarms += control.injected and control.alarmed
            own.idle += not control.injected
    if not settings:
        raise RunError(f"{path} has only controls, so there is nothing to check.")
    if all(checked.unobserved == checked.trials for checked in settings.values()):
        raise RunError(f"No trial of {path} has a recording. Sweep with --sanitize or --observe.")
    return list(settings.values())


def context_length_of(plan: Any) -> int | None:
    """Return the context length of the model of a run's plan; None if the model is missing."""
    model = plan.get("model") if isinstance(plan, dict) else None
    try:
        return load_model(Path(model) if model else None).config.max_seq_len
    except CachelabError:
        return None


def check_tables(
    tables: Mapping[str, pa.Table], page_tokens: int | None, *, context_length: int | None = None
) -> Findings | None:
    """Check the recording of one trial from its tables, by name; return None without one.

    `page_tokens` is the number of tokens a page; `context_length` is the model's, None if unknown.
    Raises RunError if `page_tokens` is missing.
    """
    if "snapshots" not in tables or "events" not in tables or not tables["snapshots"].num_rows:
        return None
    rows = tables["snapshots"].sort_by("seq").to_pylist()
    first, *later = [Snapshot.from_row(row) for row in rows]
    if first.seq is None:
        raise RunError("The snapshots have no sequence number. Record the run again.")
    if page_tokens is None:
        raise RunError("The trial has no page_tokens (tokens of a page). Record the run again.")
    events, invocations = tables["events"], tables.get("invocations")
    last = pc.max(events["seq"]).as_py() or 0
    checker = Checker(first, page_tokens, context_length=context_length)
    for snapshot in later:
        checker.put_snapshot(snapshot)
    for event in events_of_table(events):
        checker.put(event.seq, event)
    unchecked = checker.findings.unchecked
    full, numbers = False, set()
    for seq, end_seq, invocation in (
        invocations_of_table(invocations) if invocations is not None else ()
    ):
        numbers.add(invocation.invocation_id)
        # A full recording still has invocations, but no events between them.
        full |= seq > last
        if seq < last:
            checker.put(seq, invocation)
            checker.put(end_seq, None)
        else:
            unchecked.add(FULL, invocation.request_ids)
    unended = events.filter(pc.field("kind") == "invocation_unfinished")
    numbers.update(unended["value"].to_pylist())
    if missing := max(numbers, default=-1) + 1 - len(numbers):
        unchecked.add("not finished at the end of the recording", count=missing)
    return checker.finish(full=full)
