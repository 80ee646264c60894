"""What should this request have said? The reference decoder's answers, computed once and kept.

The decoder runs in a child process of the release's own environment, so that two native runtimes
never share a process, on the same compiled model as the engine (on `amdgpu`: the same compiled for
the CPU). Answers are appended to a file in
the cache directory one by one: what was computed before a crash or Ctrl-C is there the next time,
and two processes may fill the same file at once.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from analysis.core import children, paths
from analysis.core.errors import CachelabError, ModelError
from analysis.shortfin import environments as releases
from analysis.shortfin.config import EngineConfig
from analysis.workloads.workload import Request

FIRST_ANSWER_TIMEOUT_S = 600.0
"""Longest wait for the first answer: the model may have to be compiled before it."""
NEXT_ANSWER_TIMEOUT_S = 60.0
"""Longest wait between two answers; one takes well under a second."""

Question = tuple[str, int]
"""A prompt and the number of new tokens."""


def reference_answers(
    requests: Iterable[Request],
    *,
    release: str,
    model: str | os.PathLike[str] | None = None,
    batch_sizes: Sequence[int] = (4,),
    device: str = "local-task",
    hip_target: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[Question, tuple[int, ...]]:
    """Return the reference decoder's tokens for every (prompt, max_new_tokens) of `requests`.

    `on_progress` is called with how many are known and how many there are. Also compiles the model
    for `release` if that was not done yet. Raises ModelError if the decoder fails or stops
    answering, ReleaseError if the release has no environment here.
    """
    questions = list(dict.fromkeys((r.prompt, r.max_new_tokens) for r in requests))
    python = releases.python_of(release)
    file = _cache_file(release, model, batch_sizes)
    known = _read(file)
    missing = [question for question in questions if question not in known]
    report = on_progress or (lambda done, total: None)
    report(len(questions) - len(missing), len(questions))
    if missing:
        job = _job(model, batch_sizes, device, hip_target, missing)
        for done, (question, tokens) in enumerate(_ask(python, release, job), 1):
            known[question] = tokens
            _append(file, question, tokens)
            report(len(questions) - len(missing) + done, len(questions))
        lost = [question for question in missing if question not in known]
        if lost:
            raise ModelError(
                f"The reference decoder of shortfin {release} ended with {len(lost)} of"
                f" {len(missing)} prompts unanswered: run the same command again to go on."
            )
    return {question: known[question] for question in questions}


def compile_for(
    release: str,
    *,
    model: str | os.PathLike[str] | None = None,
    batch_sizes: Sequence[int] = (4,),
    device: str = "auto",
    hip_target: str | None = None,
) -> None:
    """Compile the model for a release in its own environment, unless that is in the cache.

    Raises EngineError for settings with which no engine starts, ModelError if the compiler fails,
    ReleaseError if the release has no environment here.
    """
    # Refuses what no engine would take, also what the device here makes no use of.
    EngineConfig(model=Path(model) if model else None, batch_sizes=tuple(batch_sizes),
                 device=device, hip_target=hip_target)  # fmt: skip
    python = releases.python_of(release)
    for _ in _ask(python, release, _job(model, batch_sizes, device, hip_target, [])):
        pass


def _job(
    model: str | os.PathLike[str] | None,
    batch_sizes: Sequence[int],
    device: str,
    hip_target: str | None,
    questions: Sequence[Question],
) -> dict[str, Any]:
    return {
        "parent": os.getpid(),
        "model": os.fspath(Path(model).resolve()) if model else None,
        "batch_sizes": list(batch_sizes),
        "device": device,
        "hip_target": hip_target,
        "questions": list(questions),
    }


def _cache_file(
    release: str, model: str | os.PathLike[str] | None, batch_sizes: Sequence[int]
) -> Path:
    from analysis.model import load_model

    parts = [load_model(Path(model) if model else None).checksum, release, list(batch_sizes)]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    return paths.cache_dir() / "reference" / f"{release}-{key}.jsonl"


def _read(file: Path) -> dict[Question, tuple[int, ...]]:
    """Return what is kept in a cache file; a line that is not whole counts as absent."""
    known: dict[Question, tuple[int, ...]] = {}
    if file.is_file():
        for line in file.read_bytes().split(b"\n"):
            try:
                row = json.loads(line)
                known[row["prompt"], row["n"]] = tuple(row["tokens"])
            except (ValueError, KeyError, TypeError):
                continue
    return known


def _append(file: Path, question: Question, tokens: Sequence[int]) -> None:
    """Add one whole line, also beside another process that does, or died within a line."""
    row = {"prompt": question[0], "n": question[1], "tokens": list(tokens)}
    line = json.dumps(row).encode() + b"\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a+b", buffering=0) as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        if handle.seek(0, os.SEEK_END):
            handle.seek(-1, os.SEEK_END)
            if handle.read(1) != b"\n":
                line = b"\n" + line
        handle.write(line)


def _ask(
    python: Path, release: str, job: dict[str, Any]
) -> Iterator[tuple[Question, tuple[int, ...]]]:
    """Yield the answers of a child process as they come; kill it when they stop coming."""
    with children.scratch("cachelab-oracle") as directory:
        log = Path(directory, "log")
        spec = Path(directory, "job.json")
        spec.write_text(json.dumps(job))
        with log.open("wb") as stderr:
            child = children.start(
                [python, "-m", "analysis.model.oracle", spec], stdout=subprocess.PIPE, stderr=stderr
            )
        try:
            for line in _lines(child, release):
                said = json.loads(line)
                if isinstance(said, dict):
                    raise ModelError(said["error"])
                prompt, n, tokens = said
                yield (prompt, n), tuple(tokens)
            if child.wait(timeout=NEXT_ANSWER_TIMEOUT_S) != 0:
                raise ModelError(
                    f"The reference decoder of shortfin {release} failed: {_last_line(log)}"
                )
        finally:
            children.kill_group(child)
            if child.stdout is not None:
                child.stdout.close()


def _lines(child: subprocess.Popen[bytes], release: str) -> Iterator[bytes]:
    assert child.stdout is not None
    pending, patience = b"", FIRST_ANSWER_TIMEOUT_S
    deadline = time.monotonic() + patience
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise ModelError(
                    f"The reference decoder of shortfin {release} gave no answer for {patience:g} s"
                    " and was ended: run the same command again to go on."
                )
            chunk = os.read(child.stdout.fileno(), 65536)
            if not chunk:
                return
            *whole, pending = (pending + chunk).split(b"\n")
            yield from whole
            patience = NEXT_ANSWER_TIMEOUT_S
            deadline = time.monotonic() + patience


def _last_line(log: Path) -> str:
    lines = [line for line in children.tail(log, 4000).splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing."


@contextmanager
def _private_stdout() -> Iterator[int]:
    """Yield a descriptor of what was stdout, and send all else that is printed to stderr."""
    answers = os.dup(1)
    os.dup2(2, 1)
    try:
        yield answers
    finally:
        os.close(answers)


def main(spec: str) -> int:
    """Answer the questions of a job file, one JSON line each (runs in the child)."""
    job = json.loads(Path(spec).read_text())
    children.die_with_parent(job["parent"])
    from analysis.model import ModelTokenizer, ReferenceDecoder, compile_model, load_model
    from analysis.shortfin import devices

    sizes = tuple(job["batch_sizes"])
    with _private_stdout() as answers:

        def say(value: Any) -> None:
            os.write(answers, json.dumps(value).encode() + b"\n")

        try:
            model = load_model(Path(job["model"]) if job["model"] else None)
            _, target = devices.resolve(job["device"], job["hip_target"])
            compile_model(model, batch_sizes=sizes, target=target)  # for the engine
            vmfb = compile_model(model, batch_sizes=sizes, target="llvm-cpu")
            if job["questions"]:
                decoder, tokenizer = ReferenceDecoder(model, vmfb), ModelTokenizer(model)
            for prompt, n in job["questions"]:
                say([prompt, n, decoder.generate(tokenizer.encode(prompt), n)])
        except CachelabError as error:
            say({"error": str(error)})
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
