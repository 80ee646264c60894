"""Programs that ship: exported MLIR of an architecture, without weights.

`data/programs` has two files for each: NAME.json, with the architecture and the batch sizes, and
NAME.mlir.gz. With the extra `train` installed, this exports the second from the first:

    python -m analysis.model.programs data/programs/smollm2.json
"""

from __future__ import annotations

import gzip
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from analysis.core.errors import ModelError
from analysis.core.paths import shipped
from analysis.model.architecture import Architecture


@dataclass(frozen=True, slots=True)
class Program:
    """An exported program: what it is made for, and its portable MLIR."""

    architecture: Architecture
    batch_sizes: tuple[int, ...]
    mlir: str


def program_for(architecture: Architecture, directory: Path | None = None) -> Program:
    """Return a program for exactly this architecture: one that ships, or exported now.

    `directory` has the programs, by default those that ship. Exporting takes about a minute.

    Raises ModelError if none ships and the extra `train` is not installed.
    """
    for file in sorted((directory or shipped("data/programs")).glob("*.json")):
        sizes, batch_sizes = _read(file)
        if sizes == architecture:
            mlir = gzip.decompress(_compressed(file).read_bytes()).decode()
            return Program(architecture, batch_sizes, mlir)
    return export(architecture, (4,))


def export(architecture: Architecture, batch_sizes: tuple[int, ...]) -> Program:
    """Export a program. Raises ModelError if the extra `train` is not installed."""
    try:
        from analysis.model.train.architecture import Decoder
        from analysis.model.train.export import export_program
    except ImportError as error:
        raise ModelError(
            f"No program for a model of these sizes ships, and exporting one needs the extra"
            f" `train` ({error}): install it with `pip install '.[train]'` in a checkout."
        ) from None
    return Program(architecture, batch_sizes, export_program(Decoder(architecture), batch_sizes))


def _read(file: Path) -> tuple[Architecture, tuple[int, ...]]:
    facts = json.loads(file.read_text(encoding="utf-8"))
    return Architecture(**facts["architecture"]), tuple(facts["batch_sizes"])


def _compressed(file: Path) -> Path:
    return file.with_suffix(".mlir.gz")


if __name__ == "__main__":
    for name in map(Path, sys.argv[1:]):
        made = export(*_read(name))
        # Without a time in it, the same program gives the same file.
        _compressed(name).write_bytes(gzip.compress(made.mlir.encode(), mtime=0))
