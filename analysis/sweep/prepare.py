"""Prepares the prompts of a sweep: only those that the reference decoder answers correctly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.core.errors import WorkloadError, shown
from analysis.model.oracle import Oracle
from analysis.shortfin.config import EngineConfig
from analysis.shortfin.oracle import oracle_of
from analysis.sweep.grid import Trial
from analysis.sweep.plan import Plan
from analysis.workloads.named import (
    Decode,
    answers_right,
    arrange,
    candidates,
    distinct,
    is_file,
    select,
)
from analysis.workloads.workload import Answers, Request, Workload

OnProgress = Callable[[str, int, int], None]
"""Called with a release and the numbers of known and needed reference answers."""

_Key = tuple[int, int]


@dataclass(frozen=True)
class Prepared:
    """The workloads by (concurrency, repeat), and the reference decoder's answers by release."""

    workloads: Mapping[_Key, Workload]
    answers: Mapping[str, Answers]
    dropped: int
    """Prompts that are not sent, because the model alone answers them wrong."""

    def workload(self, trial: Trial) -> Workload:
        """Return the workload of a trial, equal for every release, prefix sharing and pool size."""
        return self.workloads[trial.concurrency, trial.repeat]


def check_lengths(plan: Plan) -> None:
    """Raise WorkloadError for lengths beyond the model's context, or ModelError."""
    from analysis.model.artifacts import load_model
    from analysis.model.tokenizer import ModelTokenizer

    model = load_model(Path(plan.model) if plan.model else None)
    context = model.config.max_seq_len
    most = f"from 1 to {context}, the model's context,"
    if plan.max_new_tokens > context:
        raise WorkloadError(f"`--max-new-tokens` must be {most} not {plan.max_new_tokens}.")
    if not any(map(is_file, plan.workloads)):
        return
    encode = ModelTokenizer(model).encode
    asked = Workload.read(plan.workload, max_new_tokens=plan.max_new_tokens).requests
    for request in asked:
        name = f"{plan.workload}, request {shown(request.id)}"
        if request.max_new_tokens > context:
            raise WorkloadError(
                f"{name}: `max_new_tokens` must be {most} not {request.max_new_tokens}."
            )
        if (tokens := len(encode(request.prompt))) > context:
            raise WorkloadError(f"{name}: its prompt must have {most} tokens, not {tokens}.")


def prepare(plan: Plan, on_progress: OnProgress | None = None) -> Prepared:
    """Make the plan's workloads, and get the reference answers of every release.

    Raises WorkloadError, ModelError or ReleaseError.
    """
    from analysis.model.artifacts import load_model
    from analysis.model.tokenizer import ModelTokenizer

    decode = ModelTokenizer(load_model(Path(plan.model) if plan.model else None)).decode
    _compile(plan)
    keys = [(c, r) for r in range(plan.repeats) for c in plan.concurrency]
    if any(map(is_file, plan.workloads)):
        read = Workload.read(plan.workload, max_new_tokens=plan.max_new_tokens).requests
        answers = _ask(plan, read, on_progress)
        kept = [r for r in read if plan.keep_wrong or _right(r, answers, decode)]
        if not kept:
            raise WorkloadError(f"The model alone answers every prompt of {plan.workload} wrong.")
        whole = Workload(plan.workload, tuple(kept))
        return Prepared(dict.fromkeys(keys, whole), answers, len(read) - len(kept))

    names = {key: plan.workload_of(key[1]) for key in keys}
    offered = {key: _offered(plan, *key) for key in keys}
    needed = {key: distinct(names[key], plan.request_count(key[0])) for key in keys}
    answers = _ask_until_enough(plan, offered, needed, decode, on_progress)
    workloads, dropped = {}, 0
    for key, requests in offered.items():
        chosen, lost = select(requests, needed[key], list(answers.values()), decode)
        count, seed = plan.request_count(key[0]), plan.prompt_seed(*key)
        workloads[key] = arrange(names[key], chosen, count=count, seed=seed)
        dropped += lost
    return Prepared(workloads, answers, dropped)


def _offered(plan: Plan, concurrency: int, repeat: int) -> list[Request]:
    return candidates(
        plan.workload_of(repeat),
        count=plan.request_count(concurrency),
        seed=plan.prompt_seed(concurrency, repeat),
        max_new_tokens=plan.max_new_tokens,
    )


def _ask_until_enough(
    plan: Plan,
    offered: dict[_Key, list[Request]],
    needed: Mapping[_Key, int],
    decode: Decode,
    on_progress: OnProgress | None,
) -> dict[str, Answers]:
    """Ask the reference decoder until there are enough prompts; drop the rest of `offered`."""
    asked = dict(needed)
    while True:
        answers = _ask(plan, [r for k, n in asked.items() for r in offered[k][:n]], on_progress)
        short = False
        for key, count in asked.items():
            right = sum(_right(request, answers, decode) for request in offered[key][:count])
            more = min(len(offered[key]), count + needed[key] - right)
            short |= more > count
            asked[key] = more
        if not short:
            break
    for key, count in asked.items():
        del offered[key][count:]
    return answers


def _ask(
    plan: Plan, requests: list[Request] | tuple[Request, ...], on_progress: OnProgress | None
) -> dict[str, Answers]:
    answers: dict[str, Answers] = {}
    for release in plan.releases:

        def report(known: int, wanted: int, release: str = release) -> None:
            if on_progress is not None:
                on_progress(release, known, wanted)

        answers[release] = _oracle(plan, release).generate(requests, report)
    return answers


def _oracle(plan: Plan, release: str, **settings: Any) -> Oracle:
    known = {"batch_sizes": plan.batch_sizes, "model": plan.model, "device": plan.device}
    return oracle_of(release, **{**known, "hip_target": plan.hip_target, **settings})


def _compile(plan: Plan) -> None:
    """Compile the programs of modes beforehand, so that no trial's deadline includes it."""
    needed = set()
    for trial in {(trial.release, trial.options): trial for trial in plan.trials()}.values():
        config = EngineConfig.from_json(plan.engine_config(trial))
        sizes = tuple(config.compiled_batch_sizes)
        if (sizes, config.prefills_from_positions) != (plan.batch_sizes, False):
            needed.add((trial.release, sizes, config.prefills_from_positions))
    for release, sizes, from_positions in sorted(needed):
        _oracle(plan, release, batch_sizes=sizes, from_positions=from_positions).compile()


def _right(request: Request, answers: Mapping[str, Answers], decode: Decode) -> bool:
    return all(answers_right(request, known, decode) for known in answers.values())
