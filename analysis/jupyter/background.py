"""Sweeps in the background of a notebook: the kernel stays free, and a view follows them."""

from __future__ import annotations

import threading
import time
from html import escape
from pathlib import Path

from IPython.display import HTML, DisplayHandle, display

from analysis.core.errors import RunError
from analysis.core.wording import counted
from analysis.jupyter.images import image_html, show
from analysis.plots.failure_rate import failure_rate
from analysis.plots.tables import outcomes_table
from analysis.runs.store import MANIFEST, Run, load_run, load_run_trials
from analysis.sweep.plan import Plan
from analysis.sweep.runner import run_sweep

_LEAST_S, _SHARE = 2.0, 10.0
"""Seconds between two views: these, and as many times as long as a view takes to make."""


class BackgroundSweep:
    """A sweep in a thread of this process.

    Call `cancel` to end it, and `wait` for its run. The same call of `start_sweep` goes on with a
    cancelled sweep. It ends with the kernel; finished trials are on disk.
    """

    def __init__(self, plan: Plan, out: str | Path, jobs: int) -> None:
        self.plan, self.path = plan, Path(out)
        self.error: Exception | None = None
        """What ended it, if it did not come to its end."""
        self.finished = 0
        """Trials that ended since it was started."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(jobs,), daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether trials are still to come."""
        return self._thread.is_alive()

    @property
    def state(self) -> str:
        """Where it stands, in a few words."""
        if self.error is not None:
            return f"ended: {self.error}"
        planned = len(self.plan.trials())
        missing = planned - len(load_run_trials(self.path)) if self._begun else planned
        if self.running:
            return f"running, {missing} of {counted(planned, 'trial')} to come"
        return "finished" if missing <= 0 else f"cancelled, {missing} of {planned} trials missing"

    @property
    def run(self) -> Run:
        """The run with the trials that have finished. Raises RunError before its directory is."""
        if not self._begun:
            raise RunError(f"The sweep in {self.path} has not begun. Try again in a second.")
        return load_run(self.path)

    def cancel(self, timeout_s: float = 30.0) -> None:
        """End the sweep with its running trials, and keep the finished ones."""
        self._stop.set()
        self._thread.join(timeout_s)

    def wait(self, timeout_s: float | None = None) -> Run:
        """Return the run when the sweep has ended, or after the timeout.

        Raises what ended the sweep (see `run_sweep`).
        """
        self._thread.join(timeout_s)
        if self.error is not None:
            raise self.error
        return self.run

    @property
    def _begun(self) -> bool:
        return (self.path / MANIFEST).is_file()

    def _run(self, jobs: int) -> None:
        try:
            run_sweep(
                self.plan, self.path, jobs=jobs, progress=False, stop=self._stop.is_set,
                on_trial=lambda *_: self._count(), command="start_sweep in a notebook",
            )  # fmt: skip
        except Exception as error:
            self.error = error

    def _count(self) -> None:
        self.finished += 1


def start_sweep(plan: Plan, out: str | Path, *, jobs: int = 1) -> BackgroundSweep:
    """Start a sweep in the background, show it below the cell as it goes, and return it.

    `plan`, `out` and `jobs` are those of `run_sweep`.
    """
    view = display("The sweep starts.", display_id=True)  # type: ignore[no-untyped-call]
    sweep = BackgroundSweep(plan, out, jobs)
    if view is not None:
        threading.Thread(target=_follow, args=(sweep, view), daemon=True).start()
    return sweep


def _follow(sweep: BackgroundSweep, view: DisplayHandle) -> None:
    """Show every change of a sweep until it has ended."""
    shown = -1
    while sweep.running:
        began = time.monotonic()
        if sweep.finished != shown:
            shown = sweep.finished
            view.update(HTML(sweep_html(sweep)))  # type: ignore[no-untyped-call]
        time.sleep(max(_LEAST_S, _SHARE * (time.monotonic() - began)))
    view.update(HTML(sweep_html(sweep)))  # type: ignore[no-untyped-call]


def sweep_html(sweep: BackgroundSweep) -> str:
    """Return the state of a background sweep, its table of outcomes, and its failure rates."""
    parts = [f"<p>Sweep in {escape(str(sweep.path))}: {escape(sweep.state)}.</p>"]
    try:
        run = sweep.run
    except RunError:  # it has not begun
        return parts[0]
    if len(run.trials):
        alt = "Share of failed requests so far against concurrency; the table has numbers."
        parts.append(outcomes_table(run.requests, run.trials).markup)
        parts.append(image_html(show(failure_rate(run.requests, run.trials), alt)) or "")
    return "".join(parts)
