"""Training the counting model anew; needs the extra `train` (torch, iree-turbine)."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Callable
from pathlib import Path

from analysis.core.errors import ModelError
from analysis.model.artifacts import ModelArtifacts, load_model, write_checksums


def train_model(
    directory: Path,
    *,
    seed: int = 0,
    steps: int | None = None,
    threads: int = 2,
    progress: Callable[[str], None] = lambda line: None,
) -> ModelArtifacts:
    """Train the counting model, export it to `directory` and load it from there.

    training.json beside it has how it was made: seed, steps, seconds, tokens, parameters,
    versions. The same seed, steps and library versions give the same model on the same kind of CPU.

    Raises ModelError if the extra `train` is not installed.
    """
    try:
        from analysis.model.train.export import export_model
        from analysis.model.train.training import Course, train
    except ImportError as error:
        raise ModelError(
            f"Training needs the extra `train` ({error}); install it with `pip install '.[train]'`."
        ) from None
    course = Course(seed=seed, threads=threads)
    if steps is not None:
        course = Course(seed=seed, threads=threads, steps=steps)
    trained = train(course, progress)
    progress(f"exporting to {directory}")
    export_model(trained.decoder, directory)
    facts = {
        "command": f"cachelab model train --seed {seed} --steps {course.steps}",
        "seed": seed,
        "steps": course.steps,
        "seconds": round(trained.seconds),
        "threads": threads,
        "tokens": trained.tokens,
        "parameters": sum(p.numel() for p in trained.decoder.parameters()),
        "sizes": trained.decoder.sizes.as_dict(),
        "python": platform.python_version(),
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("torch", "iree-turbine", "iree-base-compiler")
        },
    }
    text = json.dumps(facts, indent=2) + "\n"
    (directory / "training.json").write_text(text, encoding="utf-8")
    write_checksums(directory)
    return load_model(directory)
