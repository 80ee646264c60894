"""What the engine refuses, and what it promises whatever it is given."""

from __future__ import annotations

import math
import subprocess

import pytest
from support import CHILD_ENVIRONMENT, ROOT, ChildRunner

from analysis.core.errors import EngineError
from analysis.engine import EngineConfig
from analysis.engine.watchdog import Watchdog
from analysis.shortfin.devices import resolve
from analysis.shortfin.environments import python_of


@pytest.mark.parametrize(
    "settings",
    [
        {"page_count": "256"},
        {"page_count": 2.5},
        {"page_count": True},
        {"page_count": math.nan},
        {"batch_sizes": 4},
        {"batch_sizes": "4"},
        {"batch_sizes": (4.0,)},
        {"batch_sizes": ()},
        {"batch_sizes": None},
        {"device_ids": "0"},
        {"device_ids": (0,)},
        {"device": 5},
        {"device": []},
        {"prefix_sharing": None},
        {"prefix_sharing": ["trie"]},
        {"hip_target": "gfx000"},
        {"hip_target": 942},
        {"options": "x"},
        {"options": {1: 2}},
        {"model": 5},
    ],
)
def test_a_setting_of_another_kind_is_refused(settings):
    with pytest.raises(EngineError):
        EngineConfig(**settings)


def test_devices_cannot_be_named_where_there_is_only_the_cpu():
    with pytest.raises(EngineError, match="Remove them"):
        resolve("local-task", None, ("foo",))


@pytest.mark.parametrize("silence_s", [0, -1, math.inf, math.nan, "x", None, 0.5, 10**400])
def test_a_watchdog_that_would_end_a_healthy_process_is_refused(tmp_path, silence_s):
    with pytest.raises(EngineError, match="freeze_after_s"):
        Watchdog(tmp_path / "dump", silence_s)


def test_an_invalid_request_is_refused_and_the_engine_continues(
    child: ChildRunner, release: str
) -> None:
    done = child(
        release,
        """
        from analysis.core.errors import CachelabError
        nan, inf = float("nan"), float("inf")
        fine = dict(prompt="1 2 3 4 5 ", max_new_tokens=3)
        wrong = [{"prompt": ""}, {"prompt": None}, {"prompt": 5}, {"prompt": []},
                 {"prompt": [1.5]}, {"prompt": [None]}, {"prompt": ["1"]}, {"prompt": [-1]},
                 {"prompt": [10**9]}, {"prompt": {}}, {"prompt": b"1 2"}, {"prompt": "1 " * 5000},
                 {"prompt": [1] * 300},
                 *({"max_new_tokens": n} for n in (2.5, nan, inf, 0, -1, "3", None, True, 10**6)),
                 *({"timeout_s": t} for t in (nan, inf, 0, -1, "3", None, 10**400)),
                 *({"request_id": i} for i in (5, "", b"x", ["x"]))]
        accepted, untyped, sentences = [], [], []
        with Engine() as engine:
            for changes in wrong:
                try:
                    engine.submit(**{**fine, **changes})
                    accepted.append(repr(changes)[:80])
                except CachelabError as error:
                    sentences.append(str(error))
                except BaseException as error:
                    untyped.append(f"{changes!r:.80}: {error!r}")
            text = engine.generate(**fine).text
        not_configs = []
        for config in ({}, "x", 5):
            try:
                Engine(config)
                not_configs.append(repr(config))
            except CachelabError:
                pass
        say({"accepted": accepted, "untyped": untyped, "text": text, "configs": not_configs,
             "long": [s for s in sentences if len(s) > 200 or "\\n" in s]})
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.reply == {
        "accepted": [], "untyped": [], "text": "6 7", "configs": [], "long": []
    }  # fmt: skip


def test_a_late_answer_ends_no_other_request_of_its_name(child: ChildRunner, release: str) -> None:
    done = child(
        release,
        """
        with Engine() as engine:
            first = engine.submit("1 2 3 4 5 ", 40, 0.001, "x").result(timeout=20)
            second = engine.submit("1 2 3 4 5 ", 40, 60, "x").result(timeout=70)
        say([first.outcome, second.outcome, second.text[:5]])
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.reply == ["timeout", "ok", "6 7 8"]


def test_a_closed_engine_gives_its_descriptors_and_threads_back(
    child: ChildRunner, release: str
) -> None:
    done = child(
        release,
        """
        def held():
            return [len(os.listdir("/proc/self/" + what)) for what in ("fd", "task")]
        counts = []
        for _ in range(4):
            with Engine() as engine:
                engine.generate("1 2 3 4 5 ", 3)
            counts.append(held())
        say(counts)
        """,
    )
    assert done.returncode == 0, done.stderr
    (fds, threads), last = done.reply[0], done.reply[-1]
    # shortfin itself keeps one open file of each engine's model.
    assert last[0] <= fds + 3
    assert last[1] <= threads


@pytest.mark.hard
def test_two_hundred_engines_in_one_process_with_as_many_open_files_as_usual(
    child: ChildRunner, release: str
) -> None:
    done = child(
        release,
        """
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
        outcomes, counts = [], []
        for _ in range(200):
            with Engine() as engine:
                outcomes.append(engine.generate("1 2 3 4 5 ", 3).outcome)
            counts.append([len(os.listdir("/proc/self/" + what)) for what in ("fd", "task")])
        say([outcomes, counts])
        """,
        timeout_s=1800,
    )
    assert done.returncode == 0, done.stderr
    outcomes, counts = done.reply
    assert outcomes == ["ok"] * 200
    (fds, threads), last = counts[0], counts[-1]
    # shortfin itself keeps one open file of each engine's model.
    assert last[0] <= fds + 199
    assert last[1] <= threads


def test_ctrl_c_ends_a_workload_and_the_engine_serves_on(child: ChildRunner, release: str) -> None:
    done = child(
        release,
        """
        import signal, threading, time
        from analysis.workloads.workload import Request, Workload
        many = tuple(Request(f"r{n}", "1 2 3 4 5 ", 100) for n in range(4000))
        answered = []
        def interrupt(row):
            answered.append(row)
            if len(answered) == 1:
                os.kill(os.getpid(), signal.SIGINT)
        with Engine() as engine:
            interrupted = False
            try:
                engine.run(Workload("many", many), 4, on_result=interrupt)
            except KeyboardInterrupt:
                interrupted = True
            # A thread that was being joined when the signal came counts as stopped before it is.
            until, names = time.monotonic() + 30, ["client"]
            while any("client" in name for name in names) and time.monotonic() < until:
                time.sleep(0.01)
                names = [thread.name for thread in threading.enumerate()]
            # It may have to put away first what was given up.
            while (done := engine.generate("1 2 3 4 5 ", 5)).outcome == "rejected":
                time.sleep(0.1)
            text = done.text
        say({"interrupted": interrupted, "answered": len(answered), "text": text,
             "clients": [name for name in names if "client" in name]})
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.reply["interrupted"]
    assert done.reply["answered"] <= 8
    assert done.reply["clients"] == []
    assert done.reply["text"] == "6 7 8"


def test_ctrl_c_while_closing_leaves_the_process_as_it_was(
    child: ChildRunner, release: str
) -> None:
    done = child(
        release,
        """
        import signal, threading, time
        before = os.fstat(2).st_ino
        engine = Engine().start()
        engine.generate("1 2 3 4 5 ", 3)
        stop = engine.service.stop_service
        def stopping():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
            stop()
        engine.service.stop_service = stopping
        interrupted = False
        try:
            engine.close()
            time.sleep(1)
        except KeyboardInterrupt:
            interrupted = True
        say({"interrupted": interrupted, "same": os.fstat(2).st_ino == before,
             "threads": [t.name for t in threading.enumerate() if "cachelab" in t.name]})
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.reply == {"interrupted": True, "same": True, "threads": []}


def test_ctrl_c_during_the_first_start_leaves_no_module_half_made(release: str) -> None:
    source = """
import os, signal, sys
from importlib.abc import MetaPathFinder
from analysis.engine import Engine
class Interrupter(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "dataclasses_json.core":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupter())
try:
    Engine()
except KeyboardInterrupt:
    print("interrupted")
sys.meta_path.pop(0)
with Engine() as engine:
    print(engine.generate("1 2 3 4 5 ", 5).text)
"""
    # Not forked from an interpreter that has imported everything.
    done = subprocess.run(
        [str(python_of(release)), "-c", source], capture_output=True, text=True, timeout=120,
        cwd=ROOT, env=CHILD_ENVIRONMENT,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("interrupted\n6 7 8\n", 0), done.stderr


def test_a_forked_child_ends_and_leaves_the_engine_alone(child: ChildRunner, release: str) -> None:
    done = child(
        release,
        """
        with Engine() as engine:
            engine.generate("1 2 3 4 5 ", 3)
            pid = os.fork()
            if pid == 0:
                sys.exit(3)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            say([status, engine.generate("1 2 3 4 5 ", 5).text])
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.reply == [3, "6 7 8"]
