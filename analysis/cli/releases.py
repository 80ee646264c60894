"""`cachelab releases`: which shortfin releases have an environment here."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="The shortfin releases and their environments.", no_args_is_help=True)


@app.command("list")
def list_() -> None:
    """List every known release, and the interpreter of its environment if it has one.

    For example:

    cachelab releases list
    """
    from analysis.shortfin.environments import status

    for row in status():
        missing = "not installed" if row.locked else "not supported yet: no lock file"
        typer.echo(f"{row.release}  {row.python or missing}")


@app.command()
def install(
    releases: Annotated[list[str], typer.Argument(help="releases of `cachelab releases list`")],
) -> None:
    """Make the environments of releases, and register their Jupyter kernels.

    An environment takes about 1 GB, and a minute where packages come fast.


    For example:

    cachelab releases install 3.9.0
    """
    from analysis.shortfin.environments import install as make
    from analysis.shortfin.releases import row_of

    for release in releases:
        row_of(release)
    for release in releases:
        typer.echo(f"{release}  {make(release)}")


@app.command()
def remove(
    releases: Annotated[list[str], typer.Argument(help="releases of `cachelab releases list`")],
) -> None:
    """Remove the environments of releases and their Jupyter kernels; runs and reports stay.

    For example:

    cachelab releases remove 3.8.0
    """
    from analysis.shortfin.environments import check_removable
    from analysis.shortfin.environments import remove as take_away

    for release in releases:
        check_removable(release)
    for release in releases:
        typer.echo(f"{release}  removed {take_away(release)}")


@app.command()
def probe(
    release: Annotated[str, typer.Argument(help="a version of shortfin on the package index")],
    like: Annotated[
        str | None, typer.Option(help="a supported release [default: the one before it]")
    ] = None,
    tests: Annotated[
        list[str] | None, typer.Option(help="a file or directory below tests [default: all]")
    ] = None,
) -> None:
    """Try a release as if it were another one: the failed tests show the differences.

    Makes the release's lock file and environment if they are missing, runs the tests of an engine
    on it, and prints a table of what passed. Needs a checkout.


    For example:

    cachelab releases probe 3.8.0 --like 3.9.0 --tests engine
    """
    from analysis.shortfin.environments import probe as try_out

    raise typer.Exit(try_out(release, like, tests or ()))
