"""Runs a plan's trials and stores them in a run; an interrupted sweep can be resumed."""

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
from analysis.core.fork_server import ForkServers
from analysis.recording.stream import cut_of, read_lacking, read_stream
from analysis.runs import store
from analysis.shortfin import environments as releases
from analysis.shortfin.releases import installed_release
from analysis.sweep import kernel
from analysis.sweep.estimate import Estimate
from analysis.sweep.grid import ENGINE, HTTP, Trial
from analysis.sweep.plan import Plan, PlanError
from analysis.sweep.prepare import Prepared, check_lengths, prepare
from analysis.sweep.process import TrialProcess, trial_servers
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
"""Called with a finished trial's row of `trials` and its number of requests by outcome."""
Runner = Literal["process", "kernel"]

_TICK_S = 0.05
_PAUSE_S = 10.0
"""Seconds without new trials after a trial that this machine could not run."""
_TRIES, _MOST_IN_A_ROW = 2, 3
"""Most tries of a trial, and most trials that could not be run before the rest is skipped."""
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

    Runners:

    - `process`: each trial in a child process of its release's environment, `jobs` at a time. A
      trial that crashes, freezes or passes its deadline becomes a row with that status.
    - `kernel`: one trial after another in this process, for notebooks. The plan may have only the
      installed release, and a trial ends only by its requests' deadlines or the watchdog.

    A second call with the same plan and `out` runs the remaining trials. A packed run is returned
    as it is. Ctrl-C, errors and a true
    `stop()` end all children and leave a valid run with the finished trials.

    A trial that this machine could not run (full disk, too little memory, too many open files) is
    not stored, and is retried once after a pause. If trials are missing at the end, MachineError
    says how many.

    Raises PlanError, ReleaseError, WorkloadError, ModelError, EngineError, RunError or
    MachineError.
    """
    if jobs < 1:
        raise PlanError(f"`--jobs` must be a whole number from 1, not {jobs}.")
    if jobs > 1 and not {ENGINE, HTTP}.issuperset(plan.targets):
        raise PlanError(f"The server at {plan.targets[0]} is one for all trials. Use `--jobs 1`.")
    manifest = store.new_manifest(command or _command(), plan.seed, plan=plan.as_dict())
    if store.is_packed_run(out, manifest):
        done, planned = len(store.load_run_trials(Path(out))), len(plan.trials())
        if progress and done < planned:
            sys.stderr.write(f"{out} is a packed run of {done} of {planned} trials.\n")
        return store.load_run(out)
    pythons = _interpreters(plan, runner)
    if not (Path(out) / store.MANIFEST).exists():  # a finished run can be read without its model
        check_lengths(plan)
    # A readable id that is unique across machines.
    manifest["run_id"] = f"{manifest['created'][:10]}-{uuid.uuid4().hex[:8]}"
    writer = store.RunWriter.resume(out, manifest)
    commit = (manifest["git"] or {}).get("commit")
    with store.alone_in(writer.path):
        return _Sweep(plan, writer, on_trial, progress, jobs, stop, commit).run(runner, pythons)


def _command() -> str:
    """Return the command line; a kernel's would only name temporary files."""
    is_kernel = Path(sys.argv[0]).name.startswith("ipykernel")
    return "a notebook" if is_kernel else shlex.join(sys.argv)


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
        """For each trial that has not run, what the machine lacked at each try."""
        self.in_a_row = 0
        self.not_before_s = 0.0
        self.running = dict[Trial, TrialProcess]()
        self.unreported: list[tuple[Row, dict[str, int]]] = []
        """Stored trials that are not yet reported."""

    def run(self, runner: Runner, pythons: Mapping[str, Path]) -> store.Run:
        """Run the remaining trials, and return the whole run."""
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
        with trial_servers() as servers:
            while self.left and not self.stop():
                self._start_trials(servers, pythons)
                for trial, process in list(self.running.items()):
                    if process.poll():
                        del self.running[trial]
                        with self._put_off_if_lacking(trial):
                            self._finish(trial, process.ended(), process.elapsed_s)
                        self._report_finished()
                if not self.running and self.in_a_row >= _MOST_IN_A_ROW:
                    self._give_up_rest()
                self.progress.running(self.running, self.left)
                time.sleep(_TICK_S)

    def _start_trials(self, servers: ForkServers, pythons: Mapping[str, Path]) -> None:
        waiting = [trial for trial in self.left if trial not in self.running]
        for trial in waiting[: self.jobs - len(self.running)]:
            if not self._may_start():
                break
            with self._put_off_if_lacking(trial):
                self.running[trial] = TrialProcess(
                    servers,
                    pythons[trial.release],
                    self._specification(trial),
                    self._work(trial),
                    self.plan.trial_timeout_s,
                )

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
        """Retry a trial later if the block fails because the machine lacks resources."""
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
        """Retry a trial after a pause, or skip it after its last try."""
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
            self.failed.setdefault(other, []).append("skipped after earlier failures")
        self.left.clear()

    def _not_run(self, trials: Sequence[Trial]) -> str:
        first = trials[0]
        return (
            f"{len(trials)} of {len(self.trials)} trials are not in {self.writer.path}, because"
            f" this machine could not run them: {first.trial_id} ({self.failed[first][-1]})"
            + (f" and {len(trials) - 1} more" if len(trials) > 1 else "")
            + ". Fix this and run the same command again: it runs only the missing trials."
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
            target=trial.target,
            trial_id=trial.trial_id,
        )

    def _work(self, trial: Trial) -> Path:
        return self.writer.path.resolve() / _WORK / trial.trial_id

    def _finish(self, trial: Trial, ended: Ended, elapsed_s: float) -> None:
        """Store an ended trial: first its logs, then its tables, which mark it as finished."""
        self._keep_logs(trial, ended)
        if ended.detail is not None:  # the logs were moved
            kept = self.writer.path / _LOGS / trial.trial_id
            detail = ended.detail.replace(str(self._work(trial)), str(kept))
            ended = dataclasses.replace(ended, detail=detail)
        # Also if the process was killed: keep what is on disk.
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
        """Report trials that were stored since the last call."""
        while self.unreported:
            row, counts = self.unreported.pop(0)
            self.progress.finished(row, counts, self.left)
            if self.on_trial is not None:
                self.on_trial(row, counts)

    def _try_another(self, control: Trial) -> None:
        """Plan another control if this one's fault was not injected."""
        self.idle.add(control.trial_id)
        known, self.trials = set(self.trials), self.plan.trials(self.idle)
        more = [trial for trial in self.trials if trial not in known]
        self.left[:0] = more
        self.progress.added(len(more))

    def _keep_logs(self, trial: Trial, ended: Ended) -> None:
        """Copy the output and dumps of a trial, unless it ended normally."""
        if ended.status == "ok":
            return
        logs = self.writer.path / _LOGS / trial.trial_id
        logs.mkdir(parents=True, exist_ok=True)
        for file in self._work(trial).glob("*"):
            if file.suffix in (".txt", ".log"):
                shutil.copyfile(file, logs / file.name)


def _with_detail(ended: Ended, more: str) -> Ended:
    """Return the end of a trial with a further sentence."""
    return dataclasses.replace(ended, detail=" ".join(filter(None, [ended.detail, more])))


def _idle(row: Mapping[str, Any]) -> bool:
    """Return whether a row of `trials` is a control without an injection."""
    return row["injected"] is False


def _interpreters(plan: Plan, runner: Runner) -> dict[str, Path]:
    """Return the interpreter of each release; raise ReleaseError if one has no environment."""
    if runner == "kernel":
        here = installed_release()
        if plan.releases != (here,):
            raise PlanError(
                f"This process can run only shortfin {here}, not {', '.join(plan.releases)}. Plan"
                ' only that release, or use runner="process".'
            )
    return {release: releases.python_of(release) for release in plan.releases}
