"""Scripts of real failures, in the bare environment of their release."""

from __future__ import annotations

import ast
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import NEWEST, REPORTED

from analysis.reproduction.candidate import Candidate
from analysis.reproduction.package import run_script, write_folder
from analysis.runs.store import load_run
from analysis.shortfin.oracle import oracle_of
from analysis.shortfin.script import Shown
from analysis.sweep.plan import Plan
from analysis.sweep.runner import run_sweep
from analysis.workloads.workload import Request, Workload

FAILED, NOT_FAILED = 1, 0
OF_THE_RELEASE = ("numpy", "shortfin", "shortfin_apps", "_shortfin")
REQUEST = Request("r0", "1 2 3 4 5 ", 1)
SHOWN = Shown("a title", "A description.", "wrong", False, 20.0, 60.0, 1)


def config(release: str) -> dict[str, Any]:
    plan = Plan(releases=(release,))
    return plan.engine_config(plan.trials()[0])


def imported(script: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(script.read_text())))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names}


def test_a_script_fails_only_if_an_answer_differs_from_the_right_one(
    release: str, tmp_path: Path
) -> None:
    """One token, of a prefill only, is right on every release."""
    one = Candidate((REQUEST,), 1, 16)
    right = oracle_of(release).generate(one.requests)[REQUEST.prompt, 1]
    for answer, status in ((right, NOT_FAILED), ((right[0] + 1,), FAILED)):
        script = write_folder(
            tmp_path / str(status), release, config(release), one, {"r0": answer}, SHOWN
        )
        assert imported(script) <= {*sys.stdlib_module_names, *OF_THE_RELEASE}
        done = run_script(release, script, 1, SHOWN.deadline_s)
        assert done.status == status, done.output
        assert "0 lost" in done.output


def test_a_script_of_another_release_cannot_run(tmp_path: Path) -> None:
    one = Candidate((REQUEST,), 1, 16)
    script = write_folder(tmp_path / "out", NEWEST, config(NEWEST), one, {"r0": (1,)}, SHOWN)
    done = run_script(REPORTED, script, 1, SHOWN.deadline_s)
    assert done.status == 2
    assert f"needs shortfin {NEWEST}" in done.output


def test_a_request_without_an_answer_ends_with_queues_and_stacks(tmp_path: Path) -> None:
    """The prompt needs more pages than there are, which ends the only worker of this release."""
    one = Candidate((replace(REQUEST, prompt="7 " * 40),), 1, 2)
    shown = replace(SHOWN, outcome="engine_died")
    script = write_folder(tmp_path / "out", REPORTED, config(REPORTED), one, {"r0": (1,)}, shown)
    done = run_script(REPORTED, script, 1, shown.deadline_s)
    assert done.status == FAILED, done.output
    assert "died of TypeError" in done.output
    assert "pending prefills: none" in done.output
    assert "2 before, 2 now, 0 in the trie, of 2" in done.output
    assert "in one_engine" in done.output  # a stack
    # It is not what another script would describe.
    other = write_folder(tmp_path / "other", REPORTED, config(REPORTED), one, {"r0": (1,)}, SHOWN)
    done = run_script(REPORTED, other, 1, shown.deadline_s)
    assert done.status == NOT_FAILED
    assert "failed in another way" in done.output


def swept(release: str, path: Path, **settings: Any) -> Path:
    plan = Plan(releases=(release,), repeats=1, sanitize=True, **settings)
    run_sweep(plan, path, jobs=2, progress=False)
    return path


@pytest.mark.slow
def test_wrong_answers_become_a_small_script_and_an_issue(cachelab: Any, tmp_path: Path) -> None:
    run = swept(
        REPORTED, tmp_path / "run", concurrency=(4,), rounds=2, pages=(32,), max_new_tokens=8
    )
    out = tmp_path / "out"
    status, printed, error = cachelab(
        "reproduce", run, "--out", out, "--format", "issue", "--replays", 5
    )
    assert status == 0, error
    assert "a request gets a wrong answer: seq-len-mismatch (overread)" in printed
    left = Workload.read(out / "workload.jsonl").requests
    whole = load_run(run).requests
    assert len(left) < len(whole)
    assert max(r.max_new_tokens for r in left) < 8
    issue = (out / "issue.md").read_text()
    assert issue.startswith(f"# shortfin LLM server {REPORTED}: a request gets a wrong answer")
    assert (out / "reproduce.py").read_text() in issue
    for part in ("FAILED as described", "95% interval", "Ruled out", "seq-len-mismatch", "3.1.0 |"):
        assert part in issue


@pytest.mark.slow
def test_lost_pages_become_a_small_script(cachelab: Any, tmp_path: Path) -> None:
    run = swept(NEWEST, tmp_path / "run", concurrency=(2,), rounds=1, pages=(32,))
    out = tmp_path / "out"
    status, printed, error = cachelab("reproduce", run, "--out", out, "--replays", 5)
    assert status == 0, error
    assert "pages are lost although every answer is right: page-leak (dropped)" in printed
    assert len(Workload.read(out / "workload.jsonl").requests) == 1
    # Exit status 1 comes from the pages: without a decode none is lost.
    script = out / "reproduce.py"
    text = script.read_text()
    (request,) = Workload.read(out / "workload.jsonl").requests
    assert request.max_new_tokens > 1
    right = oracle_of(NEWEST).generate([replace(request, max_new_tokens=1)])[request.prompt, 1]
    lines = [
        '        "max_new_tokens": 1,'
        if '"max_new_tokens": ' in line and line.startswith("        ")
        else f'        "right": {list(right)},'
        if line.startswith('        "right": ')
        else line
        for line in text.splitlines()
    ]
    script.write_text("\n".join(lines))
    done = run_script(NEWEST, script, 5, 60.0)
    assert done.status == NOT_FAILED, done.output


def test_what_cannot_be_reproduced_is_one_sentence(cachelab: Any, tmp_path: Path) -> None:
    plan = Plan(releases=(NEWEST,), concurrency=(1,), repeats=1, rounds=1, max_new_tokens=2)
    run_sweep(plan, tmp_path / "run", progress=False)
    status, _, error = cachelab("reproduce", tmp_path / "run", "--out", tmp_path / "out")
    assert (status, "No request of" in error) == (1, True)
    status, _, error = cachelab("reproduce", tmp_path / "run", "r0000", "--out", tmp_path / "out")
    assert (status, "was answered right" in error) == (1, True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    status, _, error = cachelab("reproduce", tmp_path / "run", "r0000", "--out", tmp_path / "out")
    assert (status, "exists. Choose another --out" in error) == (1, True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
