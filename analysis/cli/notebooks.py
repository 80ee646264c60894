"""`cachelab notebooks`: the notebooks that ship with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="The notebooks: list them, copy them for editing.", no_args_is_help=True)


@app.command("list")
def list_() -> None:
    """List the notebooks that ship, with their paths.

    For example:

    cachelab notebooks list
    """
    from analysis.report import find_notebooks

    for path in find_notebooks(["all"]):
        typer.echo(f"{path.stem}  {path}")


@app.command()
def copy(
    directory: Annotated[Path, typer.Argument(help="a new or empty directory")],
) -> None:
    """Copy the notebooks into a directory, for editing; nothing is overwritten.

    For example:

    cachelab notebooks copy my-notebooks
    """
    from analysis.report import copy_notebooks

    for path in copy_notebooks(directory):
        typer.echo(path)
