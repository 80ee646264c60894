"""Records the smallest workload in a run of its own, for the explanation in an issue."""

from __future__ import annotations

from pathlib import Path

from analysis.core.errors import RunError
from analysis.diagnosis import Explanation, explain
from analysis.diagnosis.request_trace import plain
from analysis.reproduction.package import shown_of
from analysis.reproduction.reproduce import Reproduction
from analysis.reproduction.symptom import is_frozen
from analysis.runs.store import Run
from analysis.sweep.plan import Plan
from analysis.sweep.runner import run_sweep


def record(found: Reproduction, workload: Path, out: Path) -> Run:
    """Sweep the smallest workload, sanitized, on as many engines as its script tries.

    The run has controls, too: engines with an injected fault. Raises the errors of `run_sweep`.
    """
    best, config, release = found.best, found.config, found.release
    plan = Plan(
        releases=(release,), prefix_sharing=(config["prefix_sharing"],), pages=(best.page_count,),
        concurrency=(best.concurrency,), workload=str(workload), repeats=shown_of(found).engines,
        batch_sizes=tuple(config["batch_sizes"]), device=config["device"],
        device_ids=tuple(config["device_ids"]), hip_target=config["hip_target"],
        model=config["model"], options=config["options"], sanitize=True,
        request_timeout_s=best.answer_s(release), trial_timeout_s=best.deadline_s(release) + 30.0,
    )  # fmt: skip
    return run_sweep(plan, out, progress=False)


def explained(found: Reproduction, run: Run, *, reference: bool = True) -> Explanation:
    """Explain the request of a run of `record` that failed like the recorded one.

    Raises RunError if none did.
    """
    for _, row in run.trials.iterrows():
        trial = plain(row)
        rows, findings = (
            [plain(one) for _, one in table[table["trial_id"] == trial["trial_id"]].iterrows()]
            for table in (run.requests, run.findings)
        )
        frozen = is_frozen(trial["status"], trial["exit_signal"])
        if (name := found.symptom.shown_by(rows, findings, frozen)) is not None:
            return explain(run, name, trial["trial_id"], reference=reference)
    raise RunError(
        f"None of the {len(run.trials)} recorded engines failed in the same way. Run the same"
        " command again, with another --out."
    )
