"""`%%sanitize` and `%explain`, which `%load_ext analysis.jupyter` registers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError
from IPython.display import display

from analysis.core.errors import CachelabError
from analysis.diagnosis import Explanation, explain
from analysis.engine.engine import Engine
from analysis.runs.derive import failed_requests
from analysis.runs.store import Run, load_run
from analysis.sanitizer import sanitize

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell


def register(shell: InteractiveShell) -> None:
    """Register the magics, and the completion of ids after `%explain`."""

    def sanitize_cell(line: str, cell: str) -> None:
        """Check an engine while the cell runs: `%%sanitize engine`.

        Shows the findings at the end, and keeps them as `findings`.
        """
        engine = shell.user_ns.get(line.strip())
        if not isinstance(engine, Engine):
            raise UsageError("Give the name of a running engine: `%%sanitize engine`.")
        try:
            with sanitize(engine) as findings:
                shell.user_ns["findings"] = findings
                result = shell.run_cell(cell)  # type: ignore[no-untyped-call]
        except CachelabError as error:
            raise UsageError(str(error)) from error
        display(findings)  # type: ignore[no-untyped-call]
        result.raise_error()

    def explain_line(line: str) -> Explanation:
        """Explain a failed request: `%explain run`, or `%explain run REQUEST TRIAL`.

        `run` is the name of a run, or its directory. Without a request it is the first failed one.
        """
        words = line.split()
        if not 1 <= len(words) <= 3:
            raise UsageError("Give a run, and a request and its trial: `%explain run r0003 TRIAL`.")
        try:
            run = _run(shell, words[0])
            if len(words) == 1:
                if not (failed := _failed(run)):
                    raise UsageError(f"No request of {run.path} failed. Name the one to explain.")
                words += failed[0]
            return explain(run, *words[1:])
        except CachelabError as error:
            raise UsageError(str(error)) from error

    def ids(_: Any, event: Any) -> list[str]:
        """Complete a run, then one of its failed requests, then a trial of this request."""
        words = event.line.split()[1:] + ([""] if event.line.endswith(" ") else [])
        if len(words) < 2:
            return [name for name, value in shell.user_ns.items() if isinstance(value, Run)]
        try:
            failed = _failed(_run(shell, words[0]))
        except CachelabError:
            return []
        if len(words) == 2:
            return list(dict.fromkeys(request for request, _ in failed))
        return [trial for request, trial in failed if request == words[1]]

    register_magic: Any = shell.register_magic_function
    register_magic(sanitize_cell, "cell", "sanitize")
    register_magic(explain_line, "line", "explain")
    set_hook: Any = shell.set_hook
    set_hook("complete_command", ids, str_key="%explain")


def _run(shell: InteractiveShell, name: str) -> Run:
    value = shell.user_ns.get(name)
    return value if isinstance(value, Run) else load_run(name)


def _failed(run: Run) -> list[tuple[str, str]]:
    """Return request and trial of each failed request, those to explain first at the top."""
    failed = failed_requests(run.requests, run.trials)
    return list(failed[["request_id", "trial_id"]].itertuples(index=False, name=None))
