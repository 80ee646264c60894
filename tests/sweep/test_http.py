"""The release's own server, driven over HTTP, beside the engine in this package's process."""

from __future__ import annotations

import contextlib
import threading
import time

import psutil
import pytest
from support import RELEASES, REPORTED, has
from sweep_help import has_answered

from analysis.core.errors import EngineError
from analysis.runs.tables import count_requests
from analysis.stats.clustered import rate
from analysis.sweep.plan import Plan, PlanError
from analysis.sweep.runner import run_sweep

HTTP = Plan(releases=(REPORTED,), concurrency=(4,), repeats=1, seed=3, targets=("http",))


@pytest.mark.parametrize(
    "release", [release for release in RELEASES if not has(release, "shared-worker")]
)
def test_a_server_fails_as_often_as_the_engine_in_process(release, tmp_path):
    concurrency = 8 if release == REPORTED else 4
    plan = Plan(
        releases=(release,),
        concurrency=(concurrency,),
        repeats=5,  # fewer engines have no interval of their own
        seed=5,
        prefix_sharing=("trie",) if release == REPORTED else ("none",),
        targets=("engine", "http"),
    )
    run = run_sweep(plan, tmp_path / "run", jobs=2, progress=False)
    assert set(run.trials["status"]) == {"ok"}, list(run.trials["status_detail"])
    rates = {}
    for target, trials in run.trials.groupby("target"):
        own = run.requests[run.requests["trial_id"].isin(trials["trial_id"])]
        counts = [count_requests(group) for _, group in own.groupby("trial_id")["outcome"]]
        rates[target] = rate([c.failed for c in counts], [c.accepted for c in counts])
    engine, http = rates["engine"], rates["http"]
    assert abs(engine.value - http.value) < 0.6
    assert engine.low <= http.high
    assert http.low <= engine.high
    if release == REPORTED:
        assert engine.failures
        assert http.failures
    else:
        assert not http.failures
    prompts = [list(group) for _, group in run.requests.groupby("trial_id")["prompt"]]
    assert prompts[0::2] == prompts[1::2]


def test_the_death_of_a_server_is_a_row(tmp_path):
    plan = Plan(**{**vars(HTTP), "workload": "reported", "rounds": 200})
    killed = []

    def kill() -> None:
        deadline = time.monotonic() + 60
        while not killed and time.monotonic() < deadline:
            if has_answered(tmp_path / "run"):
                for process in psutil.Process().children(recursive=True):
                    with contextlib.suppress(psutil.Error):
                        if "shortfin_apps.llm.server" in process.cmdline():
                            process.kill()
                            killed.append(process.pid)
            time.sleep(0.2)

    thread = threading.Thread(target=kill)
    thread.start()
    run = run_sweep(plan, tmp_path / "run", progress=False)
    thread.join()
    assert killed
    (trial,) = run.trials.to_dict("records")
    assert trial["status"] == "engine_died"
    assert trial["status_detail"] == "The server's process exited with status -9."
    assert {"ok", "engine_died"} <= set(run.requests["outcome"])
    assert not any(psutil.pid_exists(pid) for pid in killed)


def test_a_server_that_runs_already(child, tmp_path):
    reply = child(
        REPORTED,
        f"""
from pathlib import Path
from analysis.engine.http_engine import HttpEngine
from analysis.shortfin.config import EngineConfig
from analysis.sweep.plan import Plan
from analysis.sweep.runner import run_sweep

place = Path({str(tmp_path)!r})
with HttpEngine(EngineConfig(), log_dir=place) as server:
    address = f"http://{{server.host}}:{{server.port}}"
    plan = Plan(releases=({REPORTED!r},), concurrency=(4,), repeats=2, targets=(address,))
    run = run_sweep(plan, place / "run", progress=False)
    say([bool(run.trials.target.eq(address).all()), len(run.requests), list(run.trials.status)])
""",
        timeout_s=120,
    ).reply
    assert reply == [True, 8, ["ok", "ok"]]


def test_what_is_no_server_gets_a_sentence(tmp_path):
    address = "http://127.0.0.1:9"
    with pytest.raises(EngineError, match=f"No shortfin server can be reached at {address}: "):
        run_sweep(Plan(**{**vars(HTTP), "targets": (address,)}), tmp_path / "a", progress=False)
    strange = {**vars(HTTP), "options": {"strange_option": 1}}
    with pytest.raises(EngineError, match=r"did not start: .* unrecognized arguments"):
        run_sweep(Plan(**strange), tmp_path / "b", progress=False)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"targets": ("ftp://host",)}, "is not the address of a server"),
        ({"targets": ("http://a b:8000",)}, "is not the address of a server"),
        ({"targets": (f"http://{'a' * 70}:80",)}, "is not the address of a server"),
        ({"targets": ("http://h:1",), "axes": {"a": [1]}}, "has its own options"),
        ({"targets": ("http://h:1",), "options": {"a": 1}}, "has its own options"),
        ({"targets": ("http://host:port",)}, "is not the address of a server"),
        ({"sanitize": True}, "Remove `--sanitize`"),
        ({"treatments": (("all",),)}, "Remove `--treatments`"),
        ({"targets": ("http://h:1", "http")}, "Give one value each"),
        ({"targets": ("http://h:1",), "pages": (64, 256)}, "Give one value each"),
    ],
)
def test_a_plan_that_cannot_be_sent_to_a_server(changed, words):
    with pytest.raises(PlanError, match=words):
        Plan(**{**vars(HTTP), **changed})


def test_trials_at_an_address_run_one_at_a_time(tmp_path):
    plan = Plan(**{**vars(HTTP), "targets": ("http://127.0.0.1:9",)})
    with pytest.raises(PlanError, match="Use `--jobs 1`"):
        run_sweep(plan, tmp_path / "run", jobs=2, progress=False)
