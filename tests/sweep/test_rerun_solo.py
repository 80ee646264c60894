"""Wrong answers asked again: the run is made up, the engine that is asked is real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from support import NEWEST
from synthetic import request_row, trial_row

from analysis.cli.rerun_solo import rerun_solo
from analysis.runs.store import RunWriter, load_run
from analysis.shortfin.oracle import oracle_of
from analysis.sweep.plan import Plan
from analysis.sweep.rerun_solo import rerun_wrong_prompts, wrong_prompts
from analysis.workloads.workload import Request


def _run(path: Path, prompts: list[tuple[str, str | None]], reference: Any = None) -> Any:
    plan = Plan(releases=(NEWEST,), prefix_sharing=("trie",), max_new_tokens=5)
    trial = plan.trials()[0]
    writer = RunWriter.create(path, {"plan": plan.as_dict(), "seed": 0})
    row = trial_row(trial_id=trial.trial_id, release=NEWEST, prefix_sharing="trie", concurrency=2)
    requests = [
        request_row(request_id=f"r{n}", trial_id=trial.trial_id, prompt=prompt, outcome="wrong",
                    expected_text=expected, reference_tokens=reference)
        for n, (prompt, expected) in enumerate(prompts)
    ]  # fmt: skip
    writer.write_trial(row, requests)
    return load_run(path)


def test_each_wrong_prompt_is_asked_once_alone_on_a_fresh_engine(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", [("1 2 3 4 5 ", "6 7 8"), ("1 2 3 4 5 ", "6 7 8"),
                                  ("10 20 30 ", "99 98")])  # fmt: skip
    assert list(wrong_prompts(run)["prompt"]) == ["1 2 3 4 5 ", "10 20 30 "]
    seen: list[Any] = []
    asked = rerun_wrong_prompts(run, prefix_sharing="none", jobs=2, on_answer=seen.append)
    asked = asked.set_index("prompt")
    assert asked.loc["1 2 3 4 5 ", "text"] == "6 7 8"
    assert asked.loc["1 2 3 4 5 ", "outcome"] == "ok"
    assert asked.loc["10 20 30 ", "outcome"] == "wrong"  # no engine answers 99 98 to that
    assert set(asked["prefix_sharing"]) == {"none"}
    assert len(seen) == 2
    assert len(asked.loc["1 2 3 4 5 ", "tokens"]) == 5
    (one,) = rerun_wrong_prompts(run, prompts=wrong_prompts(run).tail(1)).to_dict("records")
    assert (one["prompt"], one["prefix_sharing"]) == ("10 20 30 ", "trie")


def test_a_prompt_without_an_expected_text_is_checked_with_the_reference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A frame has NaN where there is no text: no JSON, and no text that an answer begins with.
    _run(tmp_path / "run", [("1 2 3 4 5 ", None)])
    assert command(tmp_path / "run") == 0  # the decoder was asked what is right
    assert f"{NEWEST} trie: 1 of 1 answered right alone\n" in capsys.readouterr().out
    known = oracle_of(NEWEST).generate([Request("", "1 2 3 4 5 ", 5)])
    wrong = [*next(iter(known.values()))[:-1], 0]
    refuted = _run(tmp_path / "other", [("1 2 3 4 5 ", None)], reference=wrong)
    assert list(rerun_wrong_prompts(refuted)["outcome"]) == ["wrong"]


def test_a_prompt_that_could_not_be_asked_is_not_called_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _run(tmp_path / "run", [("1 2 3 4 5 ", "6 7 8")])
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho No module named analysis >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr("analysis.shortfin.environments.python_of", lambda release: broken)
    (row,) = rerun_wrong_prompts(run).to_dict("records")
    assert row["outcome"] is None
    assert "No module named analysis" in row["detail"]
    assert command(tmp_path / "run") == 1
    output = capsys.readouterr()
    assert f"{NEWEST} trie: 0 of 0 answered right alone; 1 could not be tried\n" in output.out
    assert "could not be tried (its process could not start the engine: No module" in output.err


def command(run: Path) -> int:
    """Run `cachelab rerun-solo` here; return its exit status."""
    try:
        rerun_solo(run)
    except typer.Exit as end:
        return end.exit_code
    return 0
