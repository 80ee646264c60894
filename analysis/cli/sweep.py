"""`cachelab sweep`: a grid of trials, each a fresh engine in a process of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from analysis.cli.show import print_run
from analysis.cli.values import HipTarget, Json, Model, axes, named, numbers, sets, texts

if TYPE_CHECKING:
    from analysis.runs.store import Run
    from analysis.sweep.plan import Plan


def sweep(
    releases: Annotated[str, typer.Option(help="shortfin releases, separated by commas")],
    out: Annotated[
        Path | None,
        typer.Option(help="the run's directory, also to go on with it [default: a new one]"),
    ] = None,
    prefix_sharing: Annotated[str, typer.Option(help="none, trie or none,trie")] = "none",
    pages: Annotated[str, typer.Option(help="sizes of the page pool")] = "256",
    concurrency: Annotated[str, typer.Option(help="numbers of client threads")] = "1,2,4,8",
    workload: Annotated[
        str,
        typer.Option(
            help="reported, mixed, shared_prefix, forks, bursts, cancelled, prefix_reuse,"
            " multi_turn, evict_after_lookup, continued, identical_then_continued, several in"
            " turn as mixed+prefix_reuse, or a JSON Lines file"
        ),
    ] = "mixed",
    repeats: Annotated[int, typer.Option(help="fresh engines per configuration")] = 4,
    keep_wrong: Annotated[
        bool,
        typer.Option(
            "--keep-wrong",
            help="send also the prompts of a workload file that the model alone answers wrong",
        ),
    ] = False,
    rounds: Annotated[
        int | None, typer.Option(help="requests per client [default: 1; prefix_reuse: 3]")
    ] = None,
    seed: Annotated[int, typer.Option(help="the same seed gives the same prompts")] = 0,
    max_new_tokens: Annotated[int, typer.Option(help="tokens of an answer")] = 15,
    batch_sizes: Annotated[str, typer.Option(help="compiled batch sizes")] = "4",
    device: Annotated[str, typer.Option(help="auto, local-task or amdgpu")] = "auto",
    device_ids: Annotated[str, typer.Option(help="particular devices by name")] = "",
    hip_target: HipTarget = None,
    model: Model = None,
    option: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE, passed to the engine; repeatable")
    ] = None,
    axis: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=VALUE,VALUE: runs every value of an engine option, such as"
            " program_isolation=per_call,per_fiber, num_beams=1,2 or"
            " 'prefill_batch_sizes=[[1],[4]]'; repeatable"
        ),
    ] = None,
    serialise_invocations: Annotated[
        bool, typer.Option("--serialise-invocations", help="one invocation at a time on each fiber")
    ] = False,
    observe: Annotated[
        str, typer.Option(help="nothing, events or snapshots (and events): what to record")
    ] = "nothing",
    treatments: Annotated[
        str,
        typer.Option(
            help="changes to the live engine: sets separated by commas, none being one of them,"
            " names in a set joined by +; all: every fix, all-but:NAME: but one"
            " (`cachelab treatments` lists them)"
        ),
    ] = "none",
    target: Annotated[
        str,
        typer.Option(
            help="what answers: engine, http (the release's own server), both as engine,http, or"
            " the address of a server that runs already"
        ),
    ] = "engine",
    sanitize: Annotated[
        bool,
        typer.Option("--sanitize", help="check every invocation and event; adds a control trial"),
    ] = False,
    request_timeout: Annotated[float, typer.Option(help="seconds for one answer")] = 60.0,
    trial_timeout: Annotated[float, typer.Option(help="seconds for one trial")] = 120.0,
    resubmit: Annotated[
        float | None,
        typer.Option(help="seconds after which a refused request is sent again [default: never]"),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, max=1024, help="trials at the same time")] = 1,
    as_json: Json = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print the grid and an estimate, run nothing")
    ] = False,
) -> None:
    """Measure how often the engine fails, over a grid of releases, settings and concurrency.

    Run again with the same options and the same --out, it goes on where it stopped.


    For example:

    cachelab sweep --releases 3.9.0 --concurrency 4,8 --out runs/first

    cachelab sweep --releases 3.1.0 --repeats 1 --sanitize --out runs/checked

    cachelab sweep --releases 3.1.0,3.9.0 --prefix-sharing none,trie --dry-run
    """
    from analysis.core.errors import MachineError
    from analysis.core.paths import runs_dir
    from analysis.runs.store import load_run
    from analysis.sweep.plan import Plan
    from analysis.sweep.runner import run_sweep

    plan = Plan(
        releases=texts(releases),
        prefix_sharing=texts(prefix_sharing),
        pages=numbers("--pages", pages),
        concurrency=numbers("--concurrency", concurrency),
        workload=workload,
        keep_wrong=keep_wrong,
        repeats=repeats,
        rounds=rounds,
        seed=seed,
        max_new_tokens=max_new_tokens,
        batch_sizes=numbers("--batch-sizes", batch_sizes),
        device=device,
        device_ids=texts(device_ids),
        hip_target=hip_target,
        model=str(model) if model else None,
        options=named("--option", option or ()),
        axes=axes("--axis", axis or ()),
        serialise_invocations=serialise_invocations,
        request_timeout_s=request_timeout,
        trial_timeout_s=trial_timeout,
        resubmit_s=resubmit,
        observe=observe,
        treatments=sets(treatments),
        sanitize=sanitize,
        targets=texts(target),
    )
    if dry_run:
        _print_grid(plan, jobs)
        return
    place = out or runs_dir() / f"{datetime.now():%Y-%m-%d-%H%M%S}"
    try:
        run = run_sweep(plan, place, jobs=jobs, on_trial=_print_trial if as_json else None)
    except KeyboardInterrupt:
        done = len(list((place / "trials").glob("[!.]*")))
        sys.stderr.write(
            f"\nStopped with {done} of {len(plan.trials())} trials in {place}: run the same command"
            f" with --out {place} to go on.\n"
        )
        raise typer.Exit(130) from None
    except MachineError:
        if not as_json:
            _print_summary(load_run(place))
        raise
    if not as_json:
        _print_summary(run)
        _print_unchecked(run)
        print_run(run)


def _print_grid(plan: Plan, jobs: int) -> None:
    from analysis.sweep.estimate import Estimate
    from analysis.sweep.progress import duration

    estimate, trials = Estimate(plan, jobs), plan.trials()
    for trial in trials:
        typer.echo(f"{trial.trial_id}  about {duration(estimate.trial_s(trial))}")
    total = duration(estimate.total_s(trials))
    typer.echo(f"{len(trials)} trials, {jobs} at a time: about {total}")


def _print_trial(row: Mapping[str, Any], counts: Mapping[str, int]) -> None:
    sys.stdout.write(json.dumps({**row, **counts}) + "\n")
    sys.stdout.flush()


def _print_summary(run: Run) -> None:
    from analysis.runs.store import load_run_trials
    from analysis.runs.tables import count_requests, is_control

    bad = int((run.trials["status"] != "ok").sum())
    words = f"{len(run.trials)} trials ({bad} did not end well)"
    controls = [r for r in load_run_trials(run.path).values() if is_control(r["treatments"])]
    if controls:  # the tables of a run that was read leave them out
        bad = sum(row["status"] != "ok" for row in controls)
        words += f", {len(controls)} controls ({bad} did not end well)"
    typer.echo(f"{run.path}: {words}, {count_requests(run.requests['outcome'])}")


def _print_unchecked(run: Run) -> None:
    """Print the trials of which not everything was recorded or checked."""
    lacking = run.trials[(run.trials["status"] == "ok") & run.trials["status_detail"].notna()]
    for trial_id, detail in zip(lacking["trial_id"], lacking["status_detail"], strict=True):
        typer.echo(f"  not all of {trial_id} was checked: {detail}")
