"""`cachelab validate`: validate treatments from the cache alone up to many requests at once."""

from __future__ import annotations

import json
import math
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analysis.cli.values import Json, Model, OptionError, numbers, one_set

if TYPE_CHECKING:
    from analysis.studies.validation.result import Isolated, Level


def validate(
    release: Annotated[str, typer.Option(help="a shortfin release")],
    prefix_sharing: Annotated[str, typer.Option(help="none or trie")] = "none",
    treatments: Annotated[
        str,
        typer.Option(
            help="changes to the live engine: one set, names joined by +; all: every fix,"
            " all-but:NAME: but one; none"
        ),
    ] = "all",
    confidence: Annotated[float, typer.Option(help="confidence of each level's bound")] = 0.95,
    rate: Annotated[float, typer.Option(help="failure rate that must have shown")] = 0.01,
    concurrency: Annotated[str, typer.Option(help="the levels")] = "2,4,8,16,32",
    pages: Annotated[int, typer.Option(help="size of the page pool")] = 256,
    workload: Annotated[
        str | None,
        typer.Option(help="as of `sweep` [default: every one that it can make, in turn]"),
    ] = None,
    batch_sizes: Annotated[str, typer.Option(help="compiled batch sizes")] = "4",
    model: Model = None,
    max_new_tokens: Annotated[int, typer.Option(help="tokens of an answer")] = 15,
    seed: Annotated[int, typer.Option(help="the same seed gives the same prompts")] = 0,
    request_timeout: Annotated[
        float | None,
        typer.Option(help="seconds for one answer [default: 60, or as long ones take]"),
    ] = None,
    isolated: Annotated[
        float, typer.Option(help="seconds for the cache's operations alone; 0: leave them out")
    ] = 120.0,
    tolerate: Annotated[
        list[str] | None,
        typer.Option(help="'RULE:CAUSE=REASON' of findings that fail no level; repeatable"),
    ] = None,
    time_budget: Annotated[
        float | None, typer.Option(help="seconds after which it ends undecided [default: none]")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="the validation's directory, also to continue it [default: a new one]"),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1, max=1024, help="engines at the same time [default: as the cores allow]"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Validate treatments: the cache alone, then 2, 4, 8, 16 and 32 requests at once.

    Each level runs every workload on fresh engines: mixed prompts, shared prefixes, equal prompts
    at once, long answers, continuations of answers. A level is clean if no request failed, no rule
    was broken and no page leaked, over so many accepted requests that the given failure rate would
    have shown. The first level that is not clean ends the validation and is explained. Exit status:
    0 if all levels were clean, 4 if one failed, 3 if one is undecided or an injected fault was not
    detected, 1 or 2 if nothing could be run.


    For example:

    cachelab validate --release 3.9.0 --prefix-sharing trie

    cachelab validate --release 3.1.0 --treatments correct-seq-lens --rate 0.1
    """
    from analysis.core.paths import runs_dir
    from analysis.studies.validation.plan import Settings
    from analysis.studies.validation.run import validate as run_validation
    from analysis.studies.validation.words import in_words
    from analysis.treatments import expand

    settings = Settings(
        release=release,
        prefix_sharing=prefix_sharing,
        treatments=expand(one_set(treatments), release, prefix_sharing),
        confidence=confidence,
        rate=rate,
        levels=numbers("--concurrency", concurrency),
        pages=pages,
        workload=workload,
        batch_sizes=numbers("--batch-sizes", batch_sizes),
        model=str(model) if model else None,
        max_new_tokens=max_new_tokens,
        seed=seed,
        request_timeout_s=request_timeout,
        isolated_s=isolated,
        tolerate=dict(map(_tolerated, tolerate or ())),
    )
    place = out or runs_dir() / f"validate-{datetime.now():%Y-%m-%d-%H%M%S}"
    try:
        validation = run_validation(
            settings,
            place,
            jobs=jobs,
            budget_s=math.inf if time_budget is None else time_budget,
            on_step=_say_step,
            progress=True,
        )
    except KeyboardInterrupt:
        sys.stderr.write(f"\nStopped: run the same command with --out {place} to go on.\n")
        raise typer.Exit(130) from None
    if as_json:
        sys.stdout.write(json.dumps({**validation.as_dict(), "out": str(place)}) + "\n")
    else:
        typer.echo(in_words(validation))
    raise typer.Exit(validation.exit_status)


def _tolerated(value: str) -> tuple[tuple[str, str], str]:
    finding, equals, reason = value.partition("=")
    rule, colon, cause = finding.partition(":")
    if not (colon and equals and rule.strip() and cause.strip() and reason.strip()):
        raise OptionError(f"`--tolerate` takes RULE:CAUSE=REASON, not {value!r}.")
    return (rule.strip(), cause.strip()), reason.strip()


def _say_step(step: Isolated | Level) -> None:
    from analysis.studies.validation.result import Level

    level = step.name if isinstance(step, Level) else "the cache alone"
    sys.stderr.write(f"{level}: {step.verdict}\n")
