"""What a notebook shows of engines, runs, recordings, findings, explanations and tables.

`%load_ext analysis.jupyter` registers a formatter for each type in `FORMATTERS`. No other module
imports IPython.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from IPython.display import Image

from analysis.jupyter.background import start_sweep, sweep_html
from analysis.jupyter.browse import browse
from analysis.jupyter.cache_html import change_html, recording_html, snapshot_html
from analysis.jupyter.explanation_html import explanation_html
from analysis.jupyter.facts_html import completion_html, engine_html, run_html, workload_html
from analysis.jupyter.findings_html import finding_html, findings_html
from analysis.jupyter.images import image_html, show
from analysis.jupyter.magics import register
from analysis.jupyter.progress_bar import ProgressBar
from analysis.jupyter.replay import replay
from analysis.sweep import progress

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["FORMATTERS", "browse", "html_of", "load_ipython_extension", "replay", "show",
           "start_sweep"]  # fmt: skip

FORMATTERS: dict[str, Callable[[Any], str]] = {
    "analysis.snapshots.snapshot.Snapshot": snapshot_html,
    "analysis.snapshots.diff.Diff": change_html,
    "analysis.recording.recording.Recording": recording_html,
    "analysis.sanitizer.findings.Finding": finding_html,
    "analysis.sanitizer.findings.Findings": findings_html,
    "analysis.diagnosis.explanation.Explanation": explanation_html,
    "analysis.engine.engine.Engine": engine_html,
    "analysis.engine.completion.Completion": completion_html,
    "analysis.workloads.workload.Workload": workload_html,
    "analysis.runs.store.Run": run_html,
    "analysis.jupyter.background.BackgroundSweep": sweep_html,
    "analysis.jupyter.frames.FramedPage": lambda view: str(view.markup),
    "analysis.plots.tables.HtmlTable": lambda table: str(table.markup),
}
"""By the path of a type, the function that renders it as HTML without scripts."""


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Register the formatters, magics and progress bar (`%load_ext analysis.jupyter`)."""
    formatter: Any = shell.display_formatter.formatters["text/html"]  # type: ignore[union-attr,unused-ignore]
    for path, render in FORMATTERS.items():
        module, _, name = path.rpartition(".")
        formatter.for_type_by_name(module, name, render)
    formatter.for_type(Image, image_html)
    register(shell)
    if hasattr(shell, "kernel") and not os.environ.get(progress.LINES):
        progress.notebook_bar = ProgressBar


def html_of(value: object) -> str:
    """Return the HTML that a notebook shows for a value. Raises KeyError for other types."""
    kind = type(value)
    return FORMATTERS[f"{kind.__module__}.{kind.__qualname__}"](value)
