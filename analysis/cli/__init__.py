"""`cachelab`, the command line: thin commands that import what they need when they run."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Annotated, Any, TextIO

import typer
from typer import Abort, TyperException

from analysis.cli import model, notebooks, releases, runs
from analysis.cli.check import check
from analysis.cli.compare import compare
from analysis.cli.explain import explain
from analysis.cli.export import export
from analysis.cli.lab import lab
from analysis.cli.plot import plot
from analysis.cli.report import report
from analysis.cli.reproduce import reproduce
from analysis.cli.rerun_solo import rerun_solo
from analysis.cli.show import show
from analysis.cli.sweep import sweep
from analysis.cli.treatments import treatments
from analysis.cli.validate import validate
from analysis.cli.values import emphasise
from analysis.core.errors import CachelabError, printable

app = typer.Typer(
    name="cachelab",
    epilog="Exit status: 0 success; 1 the command failed, its message says why; 2 options that"
    " cannot be read; 3 invalid or undecided, and 4 a rule broken or a fix that failed (check and"
    " validate); 130 Ctrl-C.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (
    sweep, show, compare, rerun_solo, export, plot, check, explain, reproduce, validate, treatments,
    report, lab,
):  # fmt: skip
    app.command(command.__name__.replace("_", "-"))(command)
app.add_typer(model.app, name="model")
app.add_typer(releases.app, name="releases")
app.add_typer(runs.app, name="runs")
app.add_typer(notebooks.app, name="notebooks")


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"cachelab {version('cachelab')}, shortfin {version('shortfin')}")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="print the versions and exit"
        ),
    ] = False,
) -> None:
    """Debug KV-cache failures in the shortfin LLM server under concurrent load."""


def main() -> None:
    """Run the command line; a user-correctable error is one sentence on stderr.

    The exit status is 1 then, 2 for options that cannot be read, and 130 after Ctrl-C.
    """
    with contextlib.ExitStack() as shown:
        if sys.stdout is not None:  # the shell can close either
            shown.enter_context(contextlib.redirect_stdout(_Printable(sys.stdout)))
        if sys.stderr is not None:
            shown.enter_context(contextlib.redirect_stderr(_Printable(sys.stderr)))
        _main()


def _main() -> None:
    try:
        status = app(standalone_mode=False)
    except CachelabError as error:
        line = str(error).replace("\n", "\\n")  # of a file's name
        emphasise(line, sys.stderr, fg="red")
        sys.exit(1)
    except TyperException as error:
        emphasise(error.format_message(), sys.stderr, fg="red")
        sys.exit(2)
    except Abort:  # what Typer makes of Ctrl-C
        sys.exit(130)
    except BrokenPipeError:
        # The reader closed the pipe: what Python flushes at exit goes to the null device.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        place = f"{error.filename} cannot be used" if error.filename else "A file cannot be used"
        emphasise(f"{place}: {error.strerror or error}.", sys.stderr, fg="red")
        sys.exit(1)
    sys.exit(status if isinstance(status, int) else 0)


class _Printable:
    """A stream that escapes terminal control sequences: ids, prompts and file names may hold some.

    The carriage return at the start of a progress bar's write is kept.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = self.raw = stream

    def write(self, text: str) -> int:
        bar = "\r" if text.startswith("\r") else ""
        return self._stream.write(bar + printable(text[len(bar) :]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
