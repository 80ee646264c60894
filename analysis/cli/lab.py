"""`cachelab lab`: JupyterLab with a kernel for each release."""

from __future__ import annotations

from typing import Annotated

import typer


def lab(
    arguments: Annotated[
        list[str] | None, typer.Argument(help="behind --, go to JupyterLab: -- --allow-root")
    ] = None,
) -> None:
    """Start JupyterLab on 127.0.0.1 with its token on, and a kernel for each release.

    It opens the checkout, or the current directory if the package was installed.


    For example:

    cachelab lab

    cachelab lab -- --no-browser --port 8899
    """
    from analysis.shortfin.environments import start_lab

    raise typer.Exit(start_lab(arguments or ()))
