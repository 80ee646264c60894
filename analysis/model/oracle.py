"""Runs the reference decoder in a child process, in a release's environment.

The decoder runs the same compiled model as the engine (for `amdgpu`, compiled for the CPU). A child
process is needed because two native runtimes cannot share one. Greedy answers are kept in the cache
directory.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.core import jobs, paths
from analysis.core.errors import ModelError
from analysis.model.artifacts import load_model, model_directory
from analysis.workloads.workload import Request

_FIRST_ANSWER_S = 600.0
"""Longest wait for the first answer in seconds, which includes compiling the model."""
_NEXT_ANSWER_S = 60.0
"""Longest wait between two answers in seconds; one takes less than a second."""

Question = tuple[str, int]
"""A prompt and the number of new tokens."""
Answers = dict[Question, tuple[int, ...]]


@dataclass(frozen=True)
class Computed:
    """One step: the logits of the next token, and the keys and values before it."""

    logits: npt.NDArray[np.float32]
    """``[vocab]``"""
    slots: npt.NDArray[Any]
    """``[tokens, layers, 2 (K, V), kv heads, head dimension]``"""


@dataclass(frozen=True)
class Oracle:
    """The reference decoder of one release.

    Every method raises ModelError if the decoder fails or stops answering.
    """

    release: str
    python: Path
    """The interpreter of the release's environment."""
    model: Path | None = None
    """A model directory; None is the counting model."""
    batch_sizes: tuple[int, ...] = (4,)
    targets: tuple[str, ...] = ("llvm-cpu",)
    """Targets that the model is compiled for, in addition to the decoder's CPU."""
    from_positions: bool = False
    """Whether it is the program whose prefills take start positions."""

    def compile(self) -> Path:
        """Compile the model for the targets, unless it is in the cache; return the first's file."""
        (compiled,) = self._ask([])
        return Path(compiled["vmfb"])

    def generate(
        self, requests: Iterable[Request], on_progress: Callable[[int, int], None] | None = None
    ) -> Answers:
        """Return the greedy tokens for every (prompt, max_new_tokens) of the requests.

        `on_progress` is called with the numbers of known and of all answers. Answers are appended
        to a file one by one, so that they survive a crash or Ctrl-C.
        """
        questions = list(dict.fromkeys((r.prompt, r.max_new_tokens) for r in requests))
        file = self._cache_file()
        known = _read(file)
        missing = [question for question in questions if question not in known]
        report = on_progress or (lambda done, total: None)
        report(len(questions) - len(missing), len(questions))
        queries = [{"prompt": prompt, "new_tokens": n} for prompt, n in missing]
        for left, question, answer in zip(
            range(len(missing) - 1, -1, -1), missing, self._ask(queries), strict=False
        ):
            known[question] = tuple(answer["tokens"])
            append(file, question, known[question])
            report(len(questions) - left, len(questions))
        if unanswered := sum(question not in known for question in questions):
            raise ModelError(
                f"The reference decoder of shortfin {self.release} ended with {unanswered} of"
                f" {len(missing)} prompts unanswered. Run the same command again to continue."
            )
        return {question: known[question] for question in questions}

    def probabilities(
        self, prompt: str, prompt_tokens: Sequence[int] | None, answer: Sequence[int]
    ) -> tuple[float, ...]:
        """Return the probability of every token of the vocabulary after a prompt and an answer.

        If its tokens are unknown, the prompt is encoded as by the engine.
        """
        query = {"prompt": prompt, "prompt_tokens": prompt_tokens, "answer": answer,
                 "want": "probabilities"}  # fmt: skip
        (answered,) = self._ask([query])
        return tuple(answered["probabilities"])

    def keys_values(
        self, sequences: Iterable[tuple[int, Sequence[int]]], timeout_s: float
    ) -> list[npt.NDArray[Any]]:
        """Return keys and values, [tokens, layers, 2, heads, dim], of each sequence.

        The first `prompt` tokens of a sequence (prompt, tokens) are prefilled, the others decoded
        one by one, as in an engine. `timeout_s` is for one sequence.
        """
        queries = [
            {"prompt_tokens": tokens[:prompt], "answer": tokens[prompt:], "want": "keys_values"}
            for prompt, tokens in sequences
        ]
        return [_slots(answered) for answered in self._ask(queries, timeout_s, timeout_s)]

    def compute(self, ways: Iterable[Mapping[str, Any]]) -> list[Computed]:
        """Compute several steps, each in one of two ways.

        Either the tokens `answer` are decoded one by one after the prefilled `prompt_tokens`, or
        the `calls` of an engine are made again: the arguments of `ReferenceDecoder.recompute`.
        """
        queries = [{**way, "want": "step"} for way in ways]
        return [
            Computed(np.array(answered["logits"], dtype=np.float32), _slots(answered))
            for answered in self._ask(queries)
        ]

    def _ask(
        self,
        queries: Sequence[Mapping[str, Any]],
        first_s: float = _FIRST_ANSWER_S,
        next_s: float = _NEXT_ANSWER_S,
    ) -> Iterator[dict[str, Any]]:
        job = {
            "model": os.fspath(model_directory(self.model)) if self.model else None,
            "batch_sizes": self.batch_sizes,
            "targets": self.targets,
            "from_positions": self.from_positions,
            "queries": queries,
        }
        name = f"The reference decoder of shortfin {self.release}"
        return jobs.ask(
            self.python, __name__, job, name, error=ModelError, first_s=first_s, next_s=next_s
        )

    def _cache_file(self) -> Path:
        model = load_model(self.model, from_positions=self.from_positions)
        parts = [model.checksum, self.release, list(self.batch_sizes)]
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
        return paths.cache_dir() / "reference" / f"{self.release}-{key}.jsonl"


def _slots(answered: Mapping[str, Any]) -> npt.NDArray[Any]:
    data = base64.b64decode(answered["keys_values"])
    return np.frombuffer(data, answered["dtype"]).reshape(answered["shape"])


def _read(file: Path) -> Answers:
    """Return the answers in a cache file, without incomplete lines."""
    known: Answers = {}
    for row in jobs.read_lines(file):
        try:
            known[row["prompt"], row["n"]] = tuple(row["tokens"])
        except (KeyError, TypeError):
            continue
    return known


def append(file: Path, question: Question, tokens: Sequence[int]) -> None:
    """Append one line; safe with other processes, and after an incomplete line."""
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


def _work(job: dict[str, Any], emit: jobs.Emit) -> None:
    """Answer the queries of a job (runs in the child)."""
    from analysis.model.compile import compile_model
    from analysis.model.reference import ReferenceDecoder
    from analysis.model.tokenizer import ModelTokenizer

    directory = Path(job["model"]) if job["model"] else None
    model = load_model(directory, from_positions=job["from_positions"])
    sizes = tuple(job["batch_sizes"])
    made = [compile_model(model, batch_sizes=sizes, target=target) for target in job["targets"]]
    vmfb = compile_model(model, batch_sizes=sizes, target="llvm-cpu")
    if not job["queries"]:
        emit({"vmfb": str(made[0])})
        return
    decoder, tokenizer = ReferenceDecoder(model, vmfb), ModelTokenizer(model)
    end = tokenizer.token_id(model.eos_token)
    for query in job["queries"]:
        if "calls" in query:
            computed = decoder.recompute(
                *(query[name] for name in ("calls", "pages", "row", "length"))
            )
            emit({"logits": computed[0].tolist(), **_packed(computed[1])})
            continue
        prompt = query.get("prompt_tokens") or tokenizer.encode(query["prompt"])
        if "new_tokens" in query:
            emit({"tokens": decoder.generate(prompt, query["new_tokens"], end=end)})
            continue
        sequence = decoder.start(prompt, capacity=len(prompt) + len(query["answer"]) + 1)
        for token in query["answer"]:
            sequence.step(token)
        if query["want"] == "probabilities":
            emit({"probabilities": [float(p) for p in sequence.probabilities]})
            continue
        logits = sequence.logits.tolist() if query["want"] == "step" else None
        emit({"logits": logits, **_packed(sequence.keys_values())})


def _packed(slots: npt.NDArray[Any]) -> dict[str, Any]:
    data = base64.b64encode(np.ascontiguousarray(slots).tobytes()).decode()
    return {"keys_values": data, "dtype": str(slots.dtype), "shape": slots.shape}


if __name__ == "__main__":
    jobs.serve(_work)
