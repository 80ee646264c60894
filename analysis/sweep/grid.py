"""A trial's configuration and its id."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

ENGINE, HTTP = "engine", "http"
"""Values of `targets`: an engine in the trial's process, or the release's own server."""
_SAFE = re.compile(r"[A-Za-z0-9_.=-]*")
_LONGEST_AXES = 60
"""Most characters for the values of axes in a trial's id; otherwise they are a digest."""
_LONGEST_TREATED = 120
"""Most characters for treatments in a trial's id, because it names a directory."""


@dataclass(frozen=True)
class Trial:
    """One fresh engine with one workload: a configuration and its repeat."""

    release: str
    prefix_sharing: str
    page_count: int
    concurrency: int
    repeat: int
    treatments: tuple[str, ...] = ()
    """Names of the treatments of the engine."""
    target: str = ENGINE
    options: tuple[tuple[str, Any], ...] = ()
    """Values of the plan's axes: names and values of engine options, lists as tuples."""

    @property
    def trial_id(self) -> str:
        """The same for the same configuration in every run; valid as a directory name.

        If there are too many treatments to name, it has their number and a digest.
        """
        treated = "".join(f"-{name.replace(':', '=')}" for name in self.treatments)
        if len(treated) > _LONGEST_TREATED:
            treated = f"-{len(self.treatments)}-treatments-{_digest(treated)}"
        axes = "".join(f"-{name}={value}" for name, value in self.options)
        if len(axes) > _LONGEST_AXES or not _SAFE.fullmatch(axes):
            names = "-".join(name for name, _ in self.options)[:_LONGEST_AXES]
            axes = f"-{names}-{_digest(axes)}"
        through = "" if self.target == ENGINE else f"-{HTTP}"
        return (
            f"{self.release}-{self.prefix_sharing}-p{self.page_count}"
            f"-c{self.concurrency}-r{self.repeat}{axes}{through}{treated}"
        )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
