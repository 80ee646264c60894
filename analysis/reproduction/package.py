"""Writes a reproduction: a folder with the script, the model, and the workload."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.core import children
from analysis.core.errors import PlaceError, writing
from analysis.core.files import write_atomically
from analysis.model.artifacts import ModelArtifacts, load_model
from analysis.model.compile import select_functions
from analysis.model.tokenizer import ModelTokenizer
from analysis.reproduction.candidate import Candidate
from analysis.reproduction.reproduce import Reproduction
from analysis.reproduction.words import description_of
from analysis.shortfin import devices
from analysis.shortfin.config import PHASES, EngineConfig
from analysis.shortfin.environments import python_of
from analysis.shortfin.oracle import oracle_of
from analysis.shortfin.script import FROZEN, Shown, script_of
from analysis.stats.bounds import requests_to_see

SCRIPT, MODEL, WORKLOAD = "reproduce.py", "model", "workload.jsonl"
_MOST_ENGINES = 20
_RARE = 0.2
"""Assumed share of engines that fail, if it was not measured."""
_SLACK_S = 10.0
"""Seconds for a process to start and to end."""
KILLED = -9


@dataclass(frozen=True)
class ScriptRun:
    """What the script did in the bare environment of its release."""

    status: int
    """Its exit status: 1 if it fails as described."""
    output: str


def check_place(out: Path) -> None:
    """Raise PlaceError if a folder cannot be made there."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PlaceError(f"{out} exists. Choose another --out, or remove it.")
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent):
            pass


def write_package(found: Reproduction, out: Path) -> Path:
    """Write the folder of a reproduction, whole or not at all; return the script's file.

    Raises PlaceError, ModelError, ReleaseError or EngineError.
    """
    return write_folder(out, found.release, found.config, found.best, found.right, shown_of(found))


def write_folder(
    out: Path,
    release: str,
    settings: Mapping[str, Any],
    candidate: Candidate,
    right: Mapping[str, Sequence[int]],
    shown: Shown,
) -> Path:
    """Write the folder of a candidate with the `right` answers by id; return the script's file.

    `settings` are those of the engine, for `EngineConfig.from_json`. Raises as `write_package`.
    """
    settings = {**settings, "page_count": candidate.page_count}
    config = EngineConfig.from_json(settings)
    model = load_model(config.model, from_positions=config.prefills_from_positions)
    sizes = config.compiled_batch_sizes
    device, target = devices.resolve(config.device, config.hip_target, config.device_ids)
    vmfb = oracle_of(
        release, model=settings["model"], batch_sizes=sizes, device=config.device,
        hip_target=config.hip_target, from_positions=config.prefills_from_positions,
    ).compile()  # fmt: skip
    decode = ModelTokenizer(model).decode
    requests = [(r, right[r.id], decode(right[r.id])) for r in candidate.requests]
    source = script_of(
        release, model, settings, requests, candidate.concurrency, shown,
        device=device, target=target, file=SCRIPT,
    )  # fmt: skip
    with writing(out), children.scratch(f".{out.name}", out.parent) as scratch:
        whole = scratch / "whole"
        _write_model(model, vmfb, sizes, whole / MODEL)
        candidate.workload.write(whole / WORKLOAD)
        write_atomically(whole / SCRIPT, source)
        if out.is_dir():
            out.rmdir()
        os.replace(whole, out)
    return out / SCRIPT


def shown_of(found: Reproduction) -> Shown:
    """Return what the script shows: as many engines as show it with 95% probability."""
    symptom, best, release = found.symptom, found.best, found.release
    low = _RARE if found.replay is None else max(0.01, found.replay.low)
    answer_s = best.answer_s(release)
    deadline_s = best.deadline_s(release)
    return Shown(
        title=symptom.title,
        description=description_of(found),
        outcome=symptom.outcome,
        leaks=symptom.leaks and symptom.outcome in ("ok", "rejected"),
        answer_s=answer_s if symptom.outcome != FROZEN else deadline_s,
        deadline_s=deadline_s,
        engines=min(_MOST_ENGINES, requests_to_see(min(low, 0.9))),
    )


def _write_model(model: ModelArtifacts, vmfb: Path, sizes: list[int], into: Path) -> None:
    """Copy the files that the script reads, and the program of the compiled batch sizes."""
    into.mkdir(parents=True)
    shutil.copyfile(vmfb, into / "model.vmfb")
    for file in model.parameters:
        shutil.copyfile(file, into / file.name)
    shutil.copyfile(model.tokenizer_json, into / "tokenizer.json")
    if model.mlir is not None:
        names = [f"{phase}_bs{size}" for phase in PHASES for size in sizes]
        text = select_functions(model.mlir.read_text(encoding="utf-8"), names, model.mlir)
        (into / "model.mlir").write_text(text, encoding="utf-8")


def run_script(release: str, script: Path, engines: int, deadline_s: float) -> ScriptRun:
    """Run a script once in the bare environment of its release, and end it in any case.

    It has time for its engines, each with its deadline in seconds.
    """
    command: list[str | Path] = [python_of(release), "-I", script]
    with children.scratch("cachelab-script") as scratch:
        output = scratch / "output.txt"
        try:
            status = children.run(command, output, engines * (deadline_s + _SLACK_S))
        except subprocess.TimeoutExpired:
            status = KILLED
        return ScriptRun(status, children.tail(output))


def show(found: Reproduction, script: Path) -> ScriptRun:
    """Run the script of a reproduction once."""
    shown = shown_of(found)
    return run_script(found.release, script, shown.engines, shown.deadline_s)
