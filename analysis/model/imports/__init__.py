"""Importing a model: from a GGUF file, or from a package that carries one, to a model directory."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from analysis.core import children
from analysis.core.errors import ModelError, check_writable, writing
from analysis.model.artifacts import ModelArtifacts, imported_models, load_model, write_model_files
from analysis.model.imports.card import Origin, model_card
from analysis.model.imports.checkpoint import Checkpoint, read_checkpoint
from analysis.model.imports.package import PACKAGES, fetch
from analysis.model.imports.tokenizer import tokenizer_files
from analysis.model.programs import program_for
from analysis.model.reference import iree_runtime

Progress = Callable[[str], None]


def import_model(
    source: str,
    directory: Path | None = None,
    *,
    programs: Path | None = None,
    progress: Progress = lambda line: None,
) -> ModelArtifacts:
    """Import a model by its name (see PACKAGES) or from a llama GGUF file, and load it.

    `directory` must not exist; by default it is that of imported models, where engines find it by
    its name: that of the package, or the file's without `.gguf`. `programs` is a directory of
    exported programs, by default those that ship. The directory appears whole or not at all.

    Raises ModelError for what cannot be fetched, read or run, PlaceError if it cannot be written.
    """
    file = Path(os.path.expanduser(source))
    if source not in PACKAGES and file.suffix != ".gguf":
        raise ModelError(
            f"There is no model {source!r} to import: give {', '.join(PACKAGES)}, or a file with"
            " the ending .gguf."
        )
    name = source if source in PACKAGES else file.stem
    target = Path(os.path.abspath((directory or imported_models() / name).expanduser()))
    if os.path.lexists(target):
        raise ModelError(
            f"{target} exists already: use it with `--model`, remove it to import the model anew,"
            " or choose another place with `--out`."
        )
    check_writable(target.parent)
    with writing(target), children.scratch(".importing", target.parent) as scratch:
        if source in PACKAGES:
            progress(f"fetching {PACKAGES[source].requirement}")
            file = fetch(source, scratch)
        made = scratch / "model"
        made.mkdir()
        _write(read_checkpoint(file), made, source, programs, progress)
        load_model(made)
        os.rename(made, target)
    return load_model(target)


def _write(
    checkpoint: Checkpoint, directory: Path, source: str, programs: Path | None, progress: Progress
) -> None:
    tokenizer, tokenizer_config = tokenizer_files(checkpoint)
    program = program_for(checkpoint.architecture, programs)
    progress(f"writing {checkpoint.architecture.layers} layers")
    _write_weights(checkpoint, directory / "model.irpa")
    config = checkpoint.architecture.config(program.batch_sizes)
    write_model_files(directory, program.mlir, config, tokenizer, tokenizer_config)
    card = model_card(checkpoint, Origin.of(source, checkpoint), program)
    (directory / "README.md").write_text(card, encoding="utf-8")


def _write_weights(checkpoint: Checkpoint, path: Path) -> None:
    index = iree_runtime().ParameterIndex()
    from iree.runtime.io import parameter_index_add_numpy_ndarray

    for name, values in checkpoint.weights():
        parameter_index_add_numpy_ndarray(index, name, values)
    index.create_archive_file(str(path))
