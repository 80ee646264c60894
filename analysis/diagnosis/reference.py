"""What the reference decoder gives for the next token, in a child process of the release."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from analysis.core import children
from analysis.core.errors import CachelabError, ModelError
from analysis.shortfin import environments as releases

_TIMEOUT_S = 300.0
"""Longest wait: the model may have to be compiled first."""


@lru_cache(maxsize=64)
def reference_probabilities(
    release: str,
    prompt: str,
    prompt_tokens: tuple[int, ...] | None,
    answer: tuple[int, ...],
    *,
    model: str | None = None,
    batch_sizes: tuple[int, ...] = (4,),
) -> tuple[float, ...]:
    """Return the probability of every token of the vocabulary after a prompt and its right answer.

    The prompt is encoded as the engine would where its tokens are not known. Raises ModelError if
    the decoder fails or stops answering, ReleaseError if the release has no environment here.
    """
    job = {
        "parent": os.getpid(),
        "model": model,
        "batch_sizes": batch_sizes,
        "prompt": prompt,
        "prompt_tokens": prompt_tokens,
        "answer": answer,
    }
    python = releases.python_of(release)
    with children.scratch("cachelab-reference") as directory:
        spec, log = Path(directory, "job.json"), Path(directory, "log")
        spec.write_text(json.dumps(job))
        with log.open("wb") as stderr:
            child = children.start(
                [python, "-m", "analysis.diagnosis.reference", spec],
                stdout=subprocess.PIPE,
                stderr=stderr,
            )
        try:
            out, _ = child.communicate(timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise ModelError(
                f"The reference decoder of shortfin {release} gave no answer for {_TIMEOUT_S:g} s."
            ) from None
        finally:
            children.kill_group(child)
        lines = [line for line in children.tail(log, 4000).splitlines() if line.strip()]
    try:
        said = json.loads(out.splitlines()[-1])
    except (ValueError, IndexError):
        reason = lines[-1].strip() if lines else "it said nothing"
        raise ModelError(f"The reference decoder of shortfin {release} failed: {reason}") from None
    if isinstance(said, dict):
        raise ModelError(said["error"])
    return tuple(said)


def probabilities_after(
    model: str | None,
    batch_sizes: Sequence[int],
    prompt: str,
    prompt_tokens: Sequence[int] | None,
    answer: Sequence[int],
) -> list[float]:
    """Return the same in this very process, which must have the release's own IREE runtime."""
    from analysis.model import ModelTokenizer, ReferenceDecoder, compile_model, load_model

    artifacts = load_model(Path(model) if model else None)
    vmfb = compile_model(artifacts, batch_sizes=tuple(batch_sizes), target="llvm-cpu")
    tokens = list(prompt_tokens or ModelTokenizer(artifacts).encode(prompt))
    sequence = ReferenceDecoder(artifacts, vmfb).start(
        tokens, capacity=len(tokens) + len(answer) + 1
    )
    for token in answer:
        sequence.step(token)
    return [float(p) for p in sequence.probabilities]


def main(spec: str) -> int:
    """Answer a job file with one JSON line (runs in the child)."""
    job: dict[str, Any] = json.loads(Path(spec).read_text())
    children.die_with_parent(job.pop("parent"))
    answers = os.dup(1)
    os.dup2(2, 1)  # whatever else is printed is no answer
    said: Any
    try:
        said = probabilities_after(**job)
    except CachelabError as error:
        said = {"error": str(error)}
    os.write(answers, json.dumps(said).encode() + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
