"""Run a plan's trials to a run on disk; a sweep that was interrupted goes on where it was."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from analysis.core.errors import MachineError, RunError, lacking
from analysis.recording.stream import cut_of, read_lacking, read_stream
from analysis.runs import store
from analysis.shortfin import environments as releases
from analysis.shortfin.releases import installed_release
from analysis.sweep import kernel
from analysis.sweep.estimate import Estimate
from analysis.sweep.plan import Plan, PlanError, Trial
from analysis.sweep.prepare import Prepared, check_lengths, prepare
from analysis.sweep.process import TrialProcess
from analysis.sweep.progress import Progress
from analysis.sweep.rows import (
    Ended,
    Row,
    add_observed,
    count_outcomes,
    finding_rows,
    request_rows,
    trial_row,
)
from analysis.sweep.trial import specification

OnTrial = Callable[[Row, dict[str, int]], None]
"""Called with a finished trial's row of `trials` and a count under each outcome's name."""
Runner = Literal["process", "kernel"]

_TICK_S = 0.05
_PAUSE_S = 10.0
"""How long nothing is started after a trial that this machine could not run."""
_TRIES, _MOST_IN_A_ROW = 2, 3
"""How often a trial is tried, and after how many that could not be run the rest is not tried."""
_LOGS, _WORK = store.LOGS, store.WORK


def run_sweep(
    plan: Plan,
    out: str | Path,
    *,
    runner: Runner = "process",
    jobs: int = 1,
    on_trial: OnTrial | None = None,
    progress: bool = True,
    command: str | None = None,
    stop: Callable[[], bool] | None = None,
) -> store.Run:
    """Run a plan's trials, each on a fresh engine, and return the run read back from disk.

    `process`: each trial in a child process of its release's environment, `jobs` at a time; a trial
    that crashes, freezes or passes its deadline becomes a row with that status. `kernel`: one trial
    after another in this process, for notebooks; the plan may then name only the installed release,
    and a trial ends only by its requests' deadlines or the engine's watchdog. Called again with the
    same plan and `out`, it runs the trials that are left. Ctrl-C, errors and a true `stop()` end
    every child and leave a valid run with the finished trials.

    A trial that this machine could not run (a full disk, too little memory, too many open files) is
    not stored, and is tried once more after a pause; MachineError at the end names how many are
    missing.

    Raises PlanError, ReleaseError, WorkloadError, ModelError, EngineError, RunError or
    MachineError.
    """
    if jobs < 1:
        raise PlanError(f"`--jobs` must be a whole number from 1, not {jobs}.")
    pythons = _interpreters(plan, runner)
    if not (Path(out) / store.MANIFEST).exists():  # what is finished needs no model to be read
        check_lengths(plan)
    command = command or shlex.join(sys.argv)
    manifest = store.new_manifest(command, plan.seed, plan=plan.as_dict())
    # A readable id that two runs on two machines do not share.
    manifest["run_id"] = f"{manifest['created'][:10]}-{uuid.uuid4().hex[:8]}"
    writer = store.RunWriter.resume(out, manifest)
    commit = (manifest["git"] or {}).get("commit")
    with store.alone_in(writer.path):
        return _Sweep(plan, writer, on_trial, progress, jobs, stop, commit).run(runner, pythons)


class _Sweep:
    """One call of `run_sweep`."""

    def __init__(
        self,
        plan: Plan,
        writer: store.RunWriter,
        on_trial: OnTrial | None,
        progress: bool,
        jobs: int,
        stop: Callable[[], bool] | None,
        git_commit: str | None,
    ) -> None:
        self.git_commit = git_commit
        self.plan, self.writer, self.jobs = plan, writer, jobs
        self.on_trial = on_trial
        self.stop = stop or (lambda: False)
        self.run_id = str(writer.manifest["run_id"])
        self.estimate = Estimate(plan, jobs)
        finished = store.load_run_trials(writer.path)
        self.idle = {name for name, row in finished.items() if _idle(row)}
        self.trials = plan.trials(self.idle)
        self.left = [trial for trial in self.trials if trial.trial_id not in finished]
        self.progress = Progress(len(self.trials), self.estimate, shown=progress)
        self.prepared = Prepared({}, {}, 0)
        self.failed: dict[Trial, list[str]] = {}
        """What the machine lacked at each try of a trial that is not run yet."""
        self.in_a_row = 0
        self.not_before_s = 0.0
        self.unreported: list[tuple[Row, dict[str, int]]] = []
        """Stored trials that were not reported yet."""

    def run(self, runner: Runner, pythons: Mapping[str, Path]) -> store.Run:
        """Run the trials that are left, and read the whole run back."""
        try:
            self.progress.begins(self.writer.path, len(self.trials) - len(self.left))
            if self.left:
                self.prepared = prepare(self.plan, self.progress.preparing)
                self.writer.note(dropped_prompts=self.prepared.dropped)
                if runner == "process":
                    self._in_processes(pythons)
                else:
                    self._in_this_kernel()
            shutil.rmtree(self.writer.path / _WORK, ignore_errors=True)
        finally:
            self.progress.close()
        if given_up := [trial for trial in self.failed if trial not in self.left]:
            raise MachineError(self._not_run(given_up))
        return store.load_run(self.writer.path)

    def _in_processes(self, pythons: Mapping[str, Path]) -> None:
        running = dict[Trial, TrialProcess]()
        try:
            while self.left and not self.stop():
                waiting = [trial for trial in self.left if trial not in running]
                for trial in waiting[: self.jobs - len(running)]:
                    if not self._may_start():
                        break
                    with self._put_off_if_lacking(trial):
                        running[trial] = TrialProcess(
                            pythons[trial.release],
                            self._specification(trial),
                            self._work(trial),
                            self.plan.trial_timeout_s,
                        )
                for trial, process in list(running.items()):
                    if process.poll():
                        del running[trial]
                        with self._put_off_if_lacking(trial):
                            self._finish(trial, process.ended(), process.elapsed_s)
                        self._report_finished()
                if not running and self.in_a_row >= _MOST_IN_A_ROW:
                    self._give_up_rest()
                self.progress.running(running, self.left)
                time.sleep(_TICK_S)
        finally:
            for process in running.values():
                process.kill()

    def _in_this_kernel(self) -> None:
        while self.left and not self.stop():
            if self.in_a_row >= _MOST_IN_A_ROW:
                self._give_up_rest()
                break
            if not self._may_start():
                time.sleep(_TICK_S)
                continue
            trial = self.left[0]
            self.progress.running([trial], self.left)
            started = time.monotonic()
            with self._put_off_if_lacking(trial):
                ended = kernel.run_trial(self._specification(trial), self._work(trial))
                self._finish(trial, ended, time.monotonic() - started)
            self._report_finished()

    def _may_start(self) -> bool:
        return self.in_a_row < _MOST_IN_A_ROW and time.monotonic() >= self.not_before_s

    @contextmanager
    def _put_off_if_lacking(self, trial: Trial) -> Iterator[None]:
        """Put a trial off if the block fails for what this machine lacks."""
        try:
            yield
        except (MachineError, RunError, OSError, MemoryError) as error:
            why = str(error) if isinstance(error, MachineError) else lacking(error)
            if why is None or trial not in self.left:
                raise
            self._put_off(trial, why)
        else:
            if trial not in self.left:
                self.failed.pop(trial, None)
                self.in_a_row = 0

    def _put_off(self, trial: Trial, why: str) -> None:
        """Try a trial again after a pause; give it up if that was the last try."""
        self.not_before_s = time.monotonic() + _PAUSE_S
        whys = self.failed.setdefault(trial, [])
        whys.append(why)
        if len(whys) < _TRIES:
            self.progress.put_off(trial, why, _PAUSE_S)
            return
        self.left.remove(trial)
        self.in_a_row += 1
        self.progress.put_off(trial, why, None)

    def _give_up_rest(self) -> None:
        for other in self.left:
            self.failed.setdefault(other, []).append("it was not tried any more")
        self.left.clear()

    def _not_run(self, trials: Sequence[Trial]) -> str:
        first = trials[0]
        return (
            f"{len(trials)} of {len(self.trials)} trials could not be run for what this machine"
            " lacks,"
            f" and are not in {self.writer.path}: {first.trial_id} ({self.failed[first][-1]})"
            + (f" and {len(trials) - 1} more" if len(trials) > 1 else "")
            + ". Fix that and run the same command again: it runs only those."
        )

    def _specification(self, trial: Trial) -> dict[str, Any]:
        return specification(
            self.plan.engine_config(trial),
            self.prepared.workload(trial),
            trial.concurrency,
            self.plan.request_timeout_s,
            observe=self.plan.observe,
            sanitize=self.plan.sanitize,
            treatments=trial.treatments,
            resubmit_s=self.plan.resubmit_s,
            trial_id=trial.trial_id,
        )

    def _work(self, trial: Trial) -> Path:
        return self.writer.path.resolve() / _WORK / trial.trial_id

    def _finish(self, trial: Trial, ended: Ended, elapsed_s: float) -> None:
        """Store a trial that has ended: its logs first, then its tables, which make it finished."""
        self._keep_logs(trial, ended)
        if ended.detail is not None:  # the logs were moved
            kept = self.writer.path / _LOGS / trial.trial_id
            detail = ended.detail.replace(str(self._work(trial)), str(kept))
            ended = dataclasses.replace(ended, detail=detail)
        # Also where the process was killed: what is on disk by now is kept.
        recorded = read_stream(self._work(trial), ended.ended_ns)
        missing = " ".join(filter(None, [read_lacking(self._work(trial)), cut_of(recorded)]))
        if missing:
            ended = _with_detail(ended, missing)
        workload = self.prepared.workload(trial)
        requests = request_rows(trial, workload, self.prepared.answers[trial.release], ended)
        add_observed(requests, recorded)
        findings: list[dict[str, Any]] = []
        unchecked = None
        if self.plan.sanitize:
            findings, unchecked = finding_rows(self.plan, trial, requests, recorded, ended)
        if unchecked is not None and ended.status == "ok":
            ended = _with_detail(ended, unchecked)
        row = trial_row(self.run_id, self.plan, trial, ended, self.git_commit)
        self.writer.write_trial(row, requests, **recorded, findings=findings)
        shutil.rmtree(self._work(trial), ignore_errors=True)
        self.left.remove(trial)
        if _idle(row):
            self._try_another(trial)
        self.estimate.measured(trial, elapsed_s)
        self.unreported.append((row, count_outcomes(requests)))

    def _report_finished(self) -> None:
        """Report trials that were stored since the last time."""
        while self.unreported:
            row, counts = self.unreported.pop(0)
            self.progress.finished(row, counts, self.left)
            if self.on_trial is not None:
                self.on_trial(row, counts)

    def _try_another(self, control: Trial) -> None:
        """Plan another control where this one's fault was never injected, if there is one."""
        self.idle.add(control.trial_id)
        known, self.trials = set(self.trials), self.plan.trials(self.idle)
        more = [trial for trial in self.trials if trial not in known]
        self.left[:0] = more
        self.progress.added(len(more))

    def _keep_logs(self, trial: Trial, ended: Ended) -> None:
        """Copy what the trial's process printed and dumped, unless the trial ended well."""
        if ended.status == "ok":
            return
        logs = self.writer.path / _LOGS / trial.trial_id
        logs.mkdir(parents=True, exist_ok=True)
        for file in self._work(trial).glob("*"):
            if file.suffix in (".txt", ".log"):
                shutil.copyfile(file, logs / file.name)


def _with_detail(ended: Ended, more: str) -> Ended:
    """Return how a trial ended with a further sentence."""
    return dataclasses.replace(ended, detail=" ".join(filter(None, [ended.detail, more])))


def _idle(row: Mapping[str, Any]) -> bool:
    """Return whether a row of `trials` is that of a control whose fault was never injected."""
    return row["injected"] is False


def _interpreters(plan: Plan, runner: Runner) -> dict[str, Path]:
    """Return the interpreter of each release. Raises ReleaseError for one without environment."""
    if runner == "kernel":
        here = installed_release()
        if plan.releases != (here,):
            raise PlanError(
                f"In this process only shortfin {here} can run, not {', '.join(plan.releases)}:"
                ' plan that release alone, or use runner="process".'
            )
    return {release: releases.python_of(release) for release in plan.releases}
