"""The sanitizer over what a run recorded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from analysis.core.errors import CachelabError, RunError
from analysis.model.artifacts import load_model
from analysis.runs.schema import FAULT
from analysis.runs.store import load_run_trials, read_manifest, trial_tables
from analysis.runs.tables import arm_of, is_control
from analysis.sanitizer.blind import blind_spots
from analysis.sanitizer.checker import Checker
from analysis.sanitizer.findings import WRONG_DATA, Finding, Findings, Group
from analysis.sanitizer.stream import tabled_events, tabled_invocations
from analysis.sanitizer.unchecked import Unchecked
from analysis.snapshots.snapshot import Snapshot

OnTrial = Callable[[str, Findings | None], None]

"""Tokens of a page where no invocation shows it."""


@dataclass
class Checked:
    """What was found in all trials of one setting."""

    release: str
    prefix_sharing: str
    treatments: tuple[str, ...]
    trials: int = 0
    unobserved: int = 0
    """Trials of which nothing was recorded."""
    invocations: int = 0
    events: int = 0
    controls: int = 0
    """Engines with these treatments in which a planted fault was injected."""
    alarms: int = 0
    """Of these, in how many it was found for what it is."""
    idle: int = 0
    """Engines in which the planted fault was never injected: these say nothing."""
    planted: list[str] = field(default_factory=list)
    """The faults of all of them."""
    groups: dict[tuple[str, str], list[tuple[str, Group]]] = field(default_factory=dict)
    """By rule and cause: the trial and what it found there."""
    notes: list[str] = field(default_factory=list)
    unchecked: Unchecked = field(default_factory=Unchecked)
    """Invocations that could not be checked, over all trials; requests as trial/request."""
    unchecked_wrong: list[str] = field(default_factory=list)
    """Requests with unchecked invocations whose answers were wrong, as trial/request."""
    trial_ids: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The setting in words."""
        return " ".join([self.release, self.prefix_sharing, *self.treatments])

    @property
    def blind(self) -> list[str]:
        """What cannot be seen on this release, in sentences that begin with the rule."""
        return blind_spots(self.release)

    @property
    def void(self) -> bool:
        """Whether a control stayed silent, so that silence elsewhere means nothing."""
        return self.alarms < self.controls

    @property
    def complete(self) -> bool:
        """Whether all that was recorded was checked, by every rule, in every trial."""
        return not (self.unchecked or self.notes or self.unobserved)

    @property
    def not_checked(self) -> list[str]:
        """What was not checked, in sentences; [] if all was."""
        said = [f"Unchecked: {self.unchecked}."] if self.unchecked else []
        if self.unchecked_wrong:
            said.append(f"Of these requests, wrong were: {', '.join(self.unchecked_wrong)}.")
        if self.unobserved:
            said.append(f"{self.unobserved} of {self.trials} trials: nothing was recorded of them.")
        return [*said, *self.notes]

    @property
    def wrong_data(self) -> list[tuple[str, str]]:
        """Rules and causes of which wrong data was read in some trial."""
        return [
            key
            for key, members in self.groups.items()
            if any(group.severity == WRONG_DATA for _, group in members)
        ]

    def lead(self, among: Collection[str] | None = None) -> tuple[str, Finding] | None:
        """Return the first finding, with its trial: of wrong data if any was read, else of any.

        Of several trials (if `among` is given, of these) the one that comes first counts.
        """
        leads = [
            (trial, group.first)
            for members in self.groups.values()
            for trial, group in members
            if among is None or trial in among
        ]
        trials = self.trial_ids
        return min(
            leads,
            key=lambda lead: (
                lead[1].severity != WRONG_DATA,
                trials.index(lead[0]),
                -1 if lead[1].seq is None else lead[1].seq,
            ),
            default=None,
        )

    def add(self, trial_id: str, findings: Findings) -> None:
        """Add what was found in a trial."""
        self.trial_ids.append(trial_id)
        self.invocations += findings.invocations
        self.events += findings.events
        for group in findings.groups:
            self.groups.setdefault((group.rule, group.cause), []).append((trial_id, group))
        self.unchecked.update(findings.unchecked, trial_id)
        for note in findings.notes:
            if note not in self.notes:
                self.notes.append(note)

    def add_wrong(self, trial_id: str, findings: Findings, requests: pa.Table) -> None:
        """Add the requests of a trial that were answered wrong and not checked to the end."""
        wrong = requests.filter(pc.field("outcome") == "wrong")["request_id"].to_pylist()
        unchecked = findings.unchecked.requests
        self.unchecked_wrong += [f"{trial_id}/{request}" for request in wrong if unchecked[request]]


@dataclass(frozen=True)
class Control:
    """One engine in which a fault was planted, beside the treatments of its arm."""

    release: str
    prefix_sharing: str
    arm: tuple[str, ...]
    fault: str
    injected: bool
    """Whether the fault was injected, as far as it is known."""
    alarmed: bool
    """Whether it was found, for what it is."""

    @property
    def silent(self) -> bool:
        """Whether the sanitizer missed it, so that its silence in this arm means nothing."""
        return self.injected and not self.alarmed

    @classmethod
    def of(cls, trial: Mapping[str, Any], findings: Sequence[Mapping[str, Any]]) -> Control:
        """Return the control that a row of `trials` is, from the rows of its findings.

        The alarm counts only if it names a request or the page that the injection names, for an
        untreated engine may break the same rule by itself. In runs that did not keep what was
        injected, any finding of that rule and cause counts.
        """
        from analysis.treatments.faults import FAULTS  # treatments need the sanitizer's rules

        names = tuple(trial["treatments"] or ())
        [fault, *_] = [name for name in names if name.startswith(FAULT)]
        known = FAULTS.get(":".join(fault.split(":")[:2]))
        injection = trial.get("injection") or {}
        meant = None if known is None else known.alarm(trial["release"])
        alarmed = any(
            # A fault that this package no longer knows cannot be told for what it is.
            meant in (None, (row["rule"], row["cause"])) and _names(row, injection)
            for row in findings
        )
        return cls(trial["release"], trial["prefix_sharing"], arm_of(names), fault,
                   trial.get("injected") is not False, alarmed)  # fmt: skip


def _names(row: Mapping[str, Any], injected: Mapping[str, Any]) -> bool:
    """Tell whether a finding names a request or the page of the injection, if it says any."""
    requests = {injected.get("request_id"), injected.get("other_request_id")} - {None}
    page = injected.get("page")
    if not requests and page is None:
        return True
    return bool(requests & {row["request_id"], row["other_request_id"]}) or (
        page is not None and row["page"] == page
    )


def controls_of(path: str | Path) -> list[Control]:
    """Return the controls of a sanitized run, by the findings that it holds.

    Raises RunError if `path` is no run or something in it is damaged.
    """
    found = []
    trials = load_run_trials(path)
    for trial_id, tables in trial_tables(path, ("findings",)):
        trial = trials[trial_id]
        if is_control(trial["treatments"] or ()):
            rows = tables["findings"].to_pylist() if "findings" in tables else []
            found.append(Control.of(trial, rows))
    return found


def check_run(path: str | Path, on_trial: OnTrial | None = None) -> list[Checked]:
    """Check every trial of a run and return what was found in each setting.

    `on_trial` is told each trial's id and findings, None where the trial was not observed; controls
    are left out. Raises RunError if `path` is no run, something in it is damaged, or none of its
    trials was observed.
    """
    trials = load_run_trials(path)
    context = context_of(read_manifest(path).get("plan"))
    settings: dict[tuple[str, str, tuple[str, ...]], Checked] = {}
    controls: list[Control] = []
    for trial_id, tables in trial_tables(path, ("requests", "events", "invocations", "snapshots")):
        trial = trials[trial_id]
        names = tuple(trial["treatments"] or ())
        findings = check_tables(tables, trial["page_tokens"], context=context)
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
            checked.add(trial_id, findings)
            checked.add_wrong(trial_id, findings, tables["requests"])
    for control in controls:
        own = settings.get((control.release, control.prefix_sharing, control.arm))
        if own is not None:
            own.planted.append(control.fault)
            own.controls += control.injected
            own.alarms += control.injected and control.alarmed
            own.idle += not control.injected
    if not settings:
        raise RunError(f"{path} has no trial but controls, so there is nothing to check.")
    if all(checked.unobserved == checked.trials for checked in settings.values()):
        raise RunError(
            f"Nothing was recorded in the trials of {path}: sweep with --sanitize or --observe."
        )
    return list(settings.values())


def context_of(plan: Any) -> int | None:
    """Return how many positions the model of a run's plan was made for; None if it is not here."""
    model = plan.get("model") if isinstance(plan, dict) else None
    try:
        return load_model(Path(model) if model else None).config.max_seq_len
    except CachelabError:
        return None


def check_tables(
    tables: Mapping[str, pa.Table], page_tokens: int | None, *, context: int | None = None
) -> Findings | None:
    """Check what was recorded of one trial, by the names of its tables; None if nothing was.

    `context` is how many positions the model was made for; None if that is not known. Raises
    RunError where there is something to check and `page_tokens`, the tokens of a page, is None.
    """
    if "snapshots" not in tables or "events" not in tables or not tables["snapshots"].num_rows:
        return None
    rows = tables["snapshots"].sort_by("seq").to_pylist()
    snapshots = [Snapshot.from_row(row) for row in rows]
    if snapshots[0].seq is None:
        raise RunError("The snapshots have no place among the events: record the run again.")
    if page_tokens is None:
        raise RunError("The trial lacks the tokens of a page (page_tokens): record the run again.")
    invocations = tables.get("invocations")
    last = pc.max(tables["events"]["seq"]).as_py() or 0
    checker = Checker(snapshots[0], page_tokens, context=context)
    for snapshot in snapshots[1:]:
        checker.put_snapshot(snapshot)
    for event in tabled_events(tables["events"]):
        checker.put(event.seq, event)
    unchecked = checker.findings.unchecked
    full, numbers = False, set()
    for seq, end_seq, invocation in (
        tabled_invocations(invocations) if invocations is not None else ()
    ):
        numbers.add(invocation.invocation_id)
        # Once a recording is full it has invocations still, and no events between them.
        full |= seq > last
        if seq < last:
            checker.put(seq, invocation)
            checker.put(end_seq, None)
        else:
            unchecked.add("the recording was full", invocation.request_ids)
    numbers.update(
        tables["events"].filter(pc.field("kind") == "invocation_unfinished")["value"].to_pylist()
    )
    if missing := max(numbers, default=-1) + 1 - len(numbers):
        unchecked.add("nothing was recorded of their end", count=missing)
    findings = checker.finish(to_the_end=not full)
    if full:
        findings.note("The recording was full: what came later was not checked.")
    return findings
