"""Progress of a sweep: a bar on a terminal and in a notebook, else a line for each trial."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from analysis.core.wording import counted
from analysis.runs.tables import RequestCounts, count_requests, is_control
from analysis.sweep.estimate import Estimate
from analysis.sweep.grid import Trial

_REFRESH_S = 0.5
LINES = "CACHELAB_PROGRESS_LINES"
"""Environment variable: if it is set, a notebook prints lines, which a report shows."""
notebook_bar: Callable[[int], Any] | None = None
"""Makes a bar for so many trials; set by `analysis.jupyter` in a notebook."""


class Progress:
    """Shows running trials, failures and remaining time, on stderr or in a notebook."""

    def __init__(
        self, trials: int, estimate: Estimate, *, shown: bool = True, stream: TextIO | None = None
    ) -> None:
        self._stream = stream or sys.stderr
        self._trials, self._estimate = trials, estimate
        self._done = 0
        self._requests = RequestCounts()
        self._bar: Any = None
        self._shown = shown
        self._next_s = 0.0
        if shown and stream is None and notebook_bar is not None:
            self._bar = notebook_bar(trials)
        elif shown and self._stream.isatty():
            from tqdm import tqdm

            form = "{desc} {n_fmt}/{total_fmt} trials |{bar}| {elapsed}{postfix}"
            self._bar = tqdm(total=trials, file=self._stream, bar_format=form, desc="sweep")

    def preparing(self, release: str, known: int, wanted: int) -> None:
        """Show how many prompts the reference decoder of a release has answered."""
        words = f"reference answers of shortfin {release}: {known} of {wanted}"
        if self._bar is not None:
            self._bar.set_postfix_str(words)
        elif self._shown and known in (0, wanted):
            self._line(words)

    def begins(self, path: Path, done: int) -> None:
        """Show the run's directory; count the trials already on disk."""
        self._done += done
        if self._bar is not None:
            self._bar.update(done)
        if self._shown and done:
            self._line(f"{path}: {done} of {self._trials} trials are already on disk")
        elif self._shown:
            self._line(f"{path}: new run of {counted(self._trials, 'trial')}")

    def added(self, count: int) -> None:
        """Count additional trials."""
        self._trials += count
        if self._bar is not None:
            self._bar.total += count

    def running(self, running: Iterable[Trial], left: Iterable[Trial]) -> None:
        """Show the running trials and the estimated remaining time; call it often."""
        if self._bar is None or time.monotonic() < self._next_s:
            return
        self._next_s = time.monotonic() + _REFRESH_S
        names = ", ".join(trial.trial_id for trial in running)
        words = (names, str(self._requests), self._left(left))
        self._bar.set_postfix_str(" · ".join(word for word in words if word))

    def finished(
        self, row: Mapping[str, Any], counts: Mapping[str, int], left: Iterable[Trial]
    ) -> None:
        """Count a finished trial."""
        self._done += 1
        if not is_control(row["treatments"]):  # failures there come from an injected fault
            self._requests += count_requests(counts)
        if self._bar is not None:
            self._bar.update(1)
        elif self._shown:
            kinds = ", ".join(f"{n} {outcome}" for outcome, n in counts.items() if n)
            self._line(
                f"[{self._done}/{self._trials}] {row['trial_id']}: {row['status']}, {kinds},"
                f" {row['duration_s']:.1f} s · {self._left(left)}"
            )

    def put_off(self, trial: Trial, why: str, pause_s: float | None) -> None:
        """Show a trial that this machine could not run, and when it is retried."""
        again = "it is skipped" if pause_s is None else f"it is retried in {pause_s:g} s"
        if self._shown:
            self._line(f"{trial.trial_id} could not be run ({why}): {again}")

    def close(self) -> None:
        """Close the progress bar."""
        if self._bar is not None:
            self._bar.close()

    def _left(self, left: Iterable[Trial]) -> str:
        return f"about {duration(self._estimate.total_s(left))} left"

    def _line(self, words: str) -> None:
        if self._bar is not None:
            self._bar.write(words, file=self._stream)
            return
        self._stream.write(words + "\n")
        self._stream.flush()


def duration(seconds: float) -> str:
    """Return a duration as text: 45 s, 12 min, 3 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
