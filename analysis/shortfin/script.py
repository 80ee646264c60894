"""A script that shows a failure of one release to someone who has nothing else of this package."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.core.errors import EngineError
from analysis.core.templates import render
from analysis.model.artifacts import ModelArtifacts
from analysis.model.compile import target_flags
from analysis.shortfin.config import PHASES
from analysis.shortfin.releases import number_of, row_of
from analysis.workloads.workload import Request

FROZEN = "frozen"
"""Instead of an outcome: the whole process stands still."""
OUTCOMES = {
    "ok": "pages are lost although every answer is right",
    "wrong": "a request gets a wrong answer",
    "empty": "a request gets an empty answer",
    "rejected": "a request is refused",
    "error": "a request ends with an error",
    "timeout": "a request gets no answer",
    "engine_died": "the engine dies before it answers a request",
    FROZEN: "the whole process stands still",
}
_UNWRITTEN = ("attn_dtype", "kv_cache_dtype", "stream")


@dataclass(frozen=True)
class Shown:
    """What a script shows."""

    title: str
    """The failure, in one line."""
    description: str
    outcome: str
    """One of OUTCOMES; `ok` if pages are lost although every answer is right."""
    leaks: bool
    """Whether the script also requires that pages are lost."""
    answer_s: float
    """Longest wait for one answer, in seconds."""
    deadline_s: float
    """Longest time of an engine, in seconds."""
    engines: int
    """Most engines to try."""


def script_of(
    release: str,
    model: ModelArtifacts,
    config: Mapping[str, Any],
    requests: Sequence[tuple[Request, Sequence[int], str]],
    concurrency: int,
    shown: Shown,
    *,
    device: str,
    target: str,
    file: str,
) -> str:
    """Return the Python source of a script that sends requests to a release's server objects.

    `config` are the settings of the engine, as `EngineConfig.from_json` takes them; `requests` come
    with their right answers as tokens and as text. The script imports only shortfin and the
    standard library, and reads the folder `model` beside it. Raises EngineError for an option that
    cannot be written.
    """
    row = row_of(release)
    options = {n: v for n, v in config["options"].items() if n not in _batch_options()}
    if bad := [name for name in options if name in _UNWRITTEN or not _is_plain(options[name])]:
        raise EngineError(f"The option {bad[0]!r} cannot be written into a script. Remove it.")
    texts = "text-answers" in row.capabilities
    return render(
        "analysis.shortfin",
        "script.py.j2",
        **vars(shown),
        outcomes=OUTCOMES,
        release=release,
        number=number_of(row),
        service=row.service,
        text_answers=texts,
        surplus=number_of(row) < (3, 6),
        file=file,
        device=device,
        compiled=model.mlir is not None,
        flags=target_flags(target),
        sharing=config["prefix_sharing"],
        pages=config["page_count"],
        options=options,
        concurrency=concurrency,
        cancels=any(request.cancel_after_s is not None for request, *_ in requests),
        requests=[
            {**vars(request), "right": text if texts else list(tokens)}
            for request, tokens, text in requests
        ],
        model=_model_parameters(model, config),
        dtype=model.config.kv_cache_dtype,
        has_prefill_position=model.config.has_prefill_position,
        page_tokens=model.config.block_seq_stride,
        kv_heads=model.config.attention_head_count_kv,
        page_elements=model.config.page_elements,
        eos_token=model.eos_token,
    )


def _batch_options() -> list[str]:
    return [f"{phase}_batch_sizes" for phase in PHASES]


def _is_plain(value: Any) -> bool:
    return bool(json.loads(json.dumps(value)) == value)


def _model_parameters(model: ModelArtifacts, config: Mapping[str, Any]) -> dict[str, Any]:
    sizes = {
        name: list(config["options"].get(name, config["batch_sizes"])) for name in _batch_options()
    }
    return {
        "max_seq_len": model.config.max_seq_len,
        "transformer_block_count": model.config.transformer_block_count,
        "attn_head_dim": model.config.attn_head_dim,
        **sizes,
        "module_name": model.config.module_name,
        "module_abi_version": model.config.module_abi_version,
    }
