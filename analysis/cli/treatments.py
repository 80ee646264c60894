"""`cachelab treatments`: the named changes to a live engine, and what each is for."""

from __future__ import annotations

import textwrap
from typing import Annotated

import typer

from analysis.core.errors import EngineError
from analysis.core.wording import listed


def treatments(
    release: Annotated[str | None, typer.Option(help="only those that apply to it")] = None,
    prefix_sharing: Annotated[str, typer.Option(help="none or trie, with --release")] = "trie",
    faults: Annotated[bool, typer.Option(help="also the faults that can be injected")] = False,
) -> None:
    """List the treatments: what each tests, what it changes, and where it applies.

    An asterisk marks a fix of the release: `all` stands for these.


    For example:

    cachelab treatments --release 3.9.0 --prefix-sharing none

    cachelab treatments --faults
    """
    from analysis.shortfin.config import PREFIX_SHARING
    from analysis.shortfin.releases import row_of, supported
    from analysis.treatments import FAULTS, TREATMENTS, fixes

    if prefix_sharing not in PREFIX_SHARING:
        raise EngineError(f"`--prefix-sharing` is none or trie, not {prefix_sharing!r}.")
    if release is not None:
        row_of(release)
    fixing = fixes(release, prefix_sharing) if release else ()
    for name, kind in {**TREATMENTS, **(FAULTS if faults else {})}.items():
        if release is not None and not kind.fits(release, prefix_sharing):
            continue
        named = kind.releases()
        where = "all releases" if named == supported() else listed(named)
        where += f", {listed(kind.sharings())} only" if len(kind.sharings()) == 1 else ""
        where += f", upstream {kind.upstream}" if kind.upstream else ""
        star = " *" if name in fixing else ""
        typer.echo(f"{name}{star}  ({where})")
        for sentence in (f"Tests: {kind.hypothesis}", f"Changes: {kind.change}"):
            typer.echo(textwrap.fill(sentence, 96, initial_indent="    ", subsequent_indent="    "))
