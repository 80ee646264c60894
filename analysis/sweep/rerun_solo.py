"""Reruns each wrongly answered prompt alone, on a fresh engine."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from analysis.core import children
from analysis.core.errors import MachineError, RunError
from analysis.runs.store import Run
from analysis.runs.tables import broken_json
from analysis.shortfin import environments as releases
from analysis.shortfin.oracle import oracle_of
from analysis.sweep.process import TrialProcess, trial_servers
from analysis.sweep.rows import Ended, checked_outcome
from analysis.sweep.trial import specification
from analysis.workloads.workload import Request, Workload

_TICK_S = 0.05
_NEEDED = ("model", "device", "batch_sizes", "device_ids", "hip_target", "serialise_invocations",
           "request_timeout_s", "max_new_tokens")  # fmt: skip
"""Settings of a run's plan that a rerun needs."""
_KEY = ["release", "prefix_sharing", "page_count", "options"]


def wrong_requests(run: Run) -> pd.DataFrame:
    """Return the requests with wrong answers in a run, with their trials' settings."""
    wrong = run.requests[run.requests["outcome"] == "wrong"]
    return wrong.merge(run.trials[["trial_id", *_KEY]], on="trial_id")


def wrong_prompts(run: Run) -> pd.DataFrame:
    """Return the distinct prompts of `wrong_requests`."""
    return wrong_requests(run).drop_duplicates(["prompt", *_KEY])


def rerun_wrong_prompts(
    run: Run,
    *,
    prompts: pd.DataFrame | None = None,
    prefix_sharing: str | None = None,
    jobs: int = 1,
    timeout_s: float = 120.0,
    on_answer: Callable[[dict[str, Any]], None] | None = None,
) -> pd.DataFrame:
    """Ask each wrongly answered prompt of a run alone, on a fresh engine without treatments.

    It is an engine in process, also if a server gave the wrong answer.

    `prompts` are rows of `wrong_requests` (None: each prompt once); `prefix_sharing` replaces that
    of the run.
    Returns a row for each prompt: its settings, `prompt`, `expected_text`, `text` and `tokens` (the
    answer alone), `outcome` (checked as in the sweep; None if it could not be sent), and `detail`
    if the trial did not end normally. If the run has neither an expected text nor reference
    tokens, the reference decoder computes them. Raises ReleaseError, ModelError or EngineError.
    """
    prompts = _with_references(run, wrong_prompts(run) if prompts is None else prompts)
    if prefix_sharing is not None:
        prompts = prompts.assign(prefix_sharing=prefix_sharing)
        prompts = prompts.drop_duplicates(["prompt", *_KEY])
    waiting = list(prompts.to_dict("records"))
    running: list[tuple[dict[Any, Any], TrialProcess]] = []
    rows: list[dict[str, Any]] = []
    with children.scratch("cachelab-rerun") as scratch, trial_servers() as servers:
        while waiting or running:
            while waiting and len(running) < jobs:
                case = waiting.pop(0)
                python, directory = releases.python_of(case["release"]), scratch / str(len(waiting))
                spec = _specification(run, case)
                running.append((case, TrialProcess(servers, python, spec, directory, timeout_s)))
            for case, process in [pair for pair in running if pair[1].poll()]:
                running.remove((case, process))
                rows.append(_row(run, case, _ended(process)))
                if on_answer is not None:
                    on_answer(rows[-1])
            time.sleep(_TICK_S)
    columns = [*_KEY, "prompt", "expected_text", "text",
               "tokens", "outcome", "detail"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def _ended(process: TrialProcess) -> Ended:
    try:
        return process.ended()
    except MachineError as error:
        return Ended([], process.elapsed_s, "not run", str(error))


def _with_references(run: Run, prompts: pd.DataFrame) -> pd.DataFrame:
    """Return the prompts, with reference tokens for those without an expected text."""
    cases = prompts.to_dict("records")
    plan = plan_of(run)
    for release in prompts["release"].unique():
        blank = [
            case
            for case in cases
            if case["release"] == release
            and not isinstance(case["expected_text"], str)
            and not isinstance(case["reference_tokens"], tuple)
        ]
        if not blank:
            continue
        oracle = oracle_of(
            release,
            model=plan["model"],
            batch_sizes=plan["batch_sizes"],
            device=plan["device"],
            hip_target=plan["hip_target"],
        )
        answers = oracle.generate([_request(run, case) for case in blank])
        for case in blank:
            request = _request(run, case)
            case["reference_tokens"] = answers[request.prompt, request.max_new_tokens]
    return prompts.assign(
        reference_tokens=pd.Series(
            [case["reference_tokens"] for case in cases], index=prompts.index, dtype=object
        )
    )


def plan_of(run: Run) -> dict[str, Any]:
    """Return the plan of a run. Raises RunError if it lacks what sending again needs."""
    plan = run.manifest.get("plan")
    lacking = [name for name in _NEEDED if not isinstance(plan, dict) or name not in plan]
    if lacking:
        raise RunError(
            f"The plan in the manifest of {run.path} has no {lacking[0]!r}, so its prompts cannot"
            " be sent again. Restore the manifest."
        )
    assert isinstance(plan, dict)
    return plan


def _specification(run: Run, case: dict[Any, Any]) -> dict[str, Any]:
    config, timeout_s = engine_config_of(run, case), plan_of(run)["request_timeout_s"]
    return specification(config, Workload("solo", (_request(run, case),)), 1, timeout_s)


def engine_config_of(run: Run, case: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the settings of the engine of a trial, from its row of `trials`.

    Raises RunError if they are missing or broken.
    """
    plan = plan_of(run)
    with broken_json(f"The options of {case['trial_id']} in {run.path}"):
        options = json.loads(case["options"])
    if not isinstance(options, dict):
        raise RunError(
            f"The options of {case['trial_id']} in {run.path} are no JSON object. Restore the run."
        )
    return {
        "model": plan["model"],
        "device": plan["device"],
        "device_ids": plan["device_ids"],
        "hip_target": plan["hip_target"],
        "prefix_sharing": case["prefix_sharing"],
        "page_count": int(case["page_count"]),
        "batch_sizes": plan["batch_sizes"],
        "serialise_invocations": plan["serialise_invocations"],
        "options": options,
    }


def _request(run: Run, case: dict[Any, Any]) -> Request:
    # A frame has NaN for a missing expected text.
    expected, reference = case["expected_text"], case["reference_tokens"]
    known = isinstance(reference, tuple) and reference
    tokens = len(reference) if known else plan_of(run)["max_new_tokens"]
    return Request("solo", case["prompt"], tokens, expected if isinstance(expected, str) else None)


def _row(run: Run, case: dict[Any, Any], ended: Ended) -> dict[str, Any]:
    request, reference = _request(run, case), case["reference_tokens"]
    answer = ended.records[0] if ended.records else {"text": None, "tokens": None}
    outcome: str | None = None
    if ended.records:
        outcome, _ = checked_outcome(
            answer, request, reference if isinstance(reference, tuple) else None
        )
    elif ended.status == "hung":
        outcome = "timeout"
    elif ended.exit_signal is not None:
        outcome = "engine_died"
    return {
        **{name: case[name] for name in (*_KEY, "prompt")},
        "expected_text": request.expected,
        "text": answer["text"],
        "tokens": answer["tokens"],
        "outcome": outcome,
        "detail": ended.detail,
    }
