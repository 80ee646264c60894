"""The treatments that may remove what an explanation found, and the sweeps of notebook 00."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from analysis.core.errors import RunError
from analysis.core.paths import shipped
from analysis.core.wording import finding_name
from analysis.diagnosis import Explanation, explain
from analysis.runs.derive import failed_requests
from analysis.runs.store import Run, load_run
from analysis.runs.tables import arm_of
from analysis.stats.clustered import engines_to_reach
from analysis.studies.releases.catalogue import treatments_for
from analysis.sweep.plan import Plan
from analysis.treatments import TREATMENTS

_TIMEOUT_S, _SPARE = 8.0, 2


@dataclass(frozen=True)
class Suspect:
    """A treatment that may remove a finding."""

    treatment: str
    finding: str
    """The finding, by its rule and cause."""
    hypothesis: str
    """What the treatment tests."""


def example() -> tuple[Run, Run]:
    """Return the runs that ship: one with failed requests, and the sweep of its treatments."""
    home = shipped("data/recorded/00_debug_one_failure-3.9.0")
    failing, tested = (next(home.glob(f"{name}-*")) for name in ("failing", "tested"))
    return load_run(failing), load_run(tested)


def explain_first(run: Run, *, reference: bool = True) -> Explanation | None:
    """Explain the first failed request of a run; None if none failed.

    The order is that of `failed_requests`, and `reference` that of `explain`.
    """
    failed = failed_requests(run.requests, run.trials)
    if failed.empty:
        return None
    return explain(run, *failed.iloc[0][["request_id", "trial_id"]], reference=reference)


def suspects(explanation: Explanation | None) -> list[Suspect]:
    """Return the treatments that may remove the findings of a failed request, first finding first.

    Treatments that its engine had already are left out. None has none.
    """
    if explanation is None:
        return []
    trial = explanation.trial
    had = arm_of(trial["treatments"])
    found: dict[str, Suspect] = {}
    for finding in explanation.findings:
        for name in treatments_for(
            finding.rule, finding.cause, str(trial["release"]), str(trial["prefix_sharing"])
        ):
            if name not in had:
                cause = finding_name(finding.rule, finding.cause)
                found.setdefault(name, Suspect(name, cause, TREATMENTS[name].hypothesis))
    return list(found.values())


def failing_sweep(
    release: str, prefix_sharing: str, pages: int, concurrency: int, **more: Any
) -> Plan:
    """Return a sanitized sweep of one engine; `more` are further fields of `Plan`."""
    return Plan(
        releases=(release,), prefix_sharing=(prefix_sharing,), pages=(pages,),
        concurrency=(concurrency,), repeats=1, sanitize=True, request_timeout_s=_TIMEOUT_S, **more,
    )  # fmt: skip


def treated_sweep(explanation: Explanation, found: Sequence[Suspect]) -> Plan:
    """Return the sweep that tests suspects in the setting of the explained request's trial.

    Its arms: the trial's own treatments, each suspect added to them, and all suspects together. It
    has two more engines than the fewest with which a difference can be significant after Holm's
    adjustment.

    Raises RunError if the run has no plan, or if there are no suspects.
    """
    trial, run = explanation.trial, explanation.trace.run
    plan = run.manifest.get("plan")
    if not plan:
        raise RunError(f"{run.path} has no plan, so its sweep cannot be repeated with treatments.")
    if not found:
        raise RunError(f"No treatment is known for the findings of {explanation.request_id}.")
    had, names = arm_of(trial["treatments"]), [one.treatment for one in found]
    arms = [had, *((*had, name) for name in names)]
    arms += [(*had, *names)] if len(names) > 1 else []
    return Plan.from_manifest(
        plan, releases=(trial["release"],), prefix_sharing=(trial["prefix_sharing"],),
        pages=(trial["page_count"],), concurrency=(trial["concurrency"],),
        workload=trial["workload"], treatments=tuple(arms), sanitize=False, observe="nothing",
        repeats=engines_to_reach(len(arms) - 1) + _SPARE, axes={},
        options=json.loads(trial["options"] or "{}"),
    )  # fmt: skip
