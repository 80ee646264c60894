"""The real engine, in child processes: what it answers, how it dies, that it always stops."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from support import NEWEST, REPORTED, ChildRunner

from analysis.engine import _guard


def test_answers_the_reported_prompt_alone(child: ChildRunner, release: str) -> None:
    done = child(
        release,
        """
        with Engine() as engine:
            text = engine.generate("1 2 3 4 5 ", max_new_tokens=15)
            ids = list(text.prompt_tokens)
            given = list(ids)
            from_ids = engine.generate(given, max_new_tokens=4)
            one = engine.generate("1 2 3 4 5 ", max_new_tokens=1)
            say({"release": engine.release, "device": engine.device,
                 "text": text.text, "outcome": text.outcome, "tokens": len(text.tokens),
                 "seen": len(text.token_s), "ttft": text.ttft_s, "latency": text.latency_s,
                 "from_ids": from_ids.text, "untouched": given == ids, "one": one.text})
        """,
    )
    assert done.returncode == 0, done.stderr
    reply = done.reply
    assert reply["release"] == release
    assert reply["device"] == "local-task"
    assert reply["outcome"] == "ok"
    assert reply["text"].startswith("6 7 8")
    assert reply["tokens"] == 15
    assert 0 < reply["ttft"] < reply["latency"]
    assert reply["seen"] >= 14  # the last one may arrive with the answer itself
    assert reply["from_ids"] == reply["text"][:4]
    assert reply["untouched"]
    assert reply["one"] == reply["text"][:1]


def test_engines_follow_one_another_and_the_interpreter_ends(
    child: ChildRunner, release: str
) -> None:
    done = child(
        release,
        """
        import threading
        texts = []
        for _ in range(2):
            with Engine() as engine:
                texts += [f.result().text for f in
                          [engine.submit("1 2 3 4 5 ", max_new_tokens=5) for _ in range(4)]]
        from _shortfin.asyncio_bridge import PyWorkerEventLoop
        say({"texts": texts, "handler": PyWorkerEventLoop.call_exception_handler.__qualname__,
             "threads": [t.name for t in threading.enumerate() if "cachelab" in t.name]})
        """,
    )
    assert done.returncode == 0, done.stderr
    assert [text[:5] for text in done.reply["texts"]] == ["6 7 8"] * 8
    assert done.reply["handler"] == "PyWorkerEventLoop.call_exception_handler"
    assert done.stderr == ""


def test_a_dead_worker_loses_its_requests_and_nothing_else(child: ChildRunner) -> None:
    done = child(
        REPORTED,
        """
        import time, warnings
        from analysis.shortfin import worker_crashes
        from analysis.recording import ObserverWarning
        from _shortfin.asyncio_bridge import PyWorkerEventLoop

        class Loud:
            def __getattr__(self, name):
                def fail(*args):
                    raise ValueError(f"planted in {name}")
                return fail

        class Quiet:
            heard = set()
            def __getattr__(self, name):
                return lambda *args: self.heard.add(name)

        shown = warnings.catch_warnings(record=True)
        warned = shown.__enter__()
        warnings.simplefilter("always")
        worker_crashes.listen(Loud().death)  # before the engine does
        with Engine(EngineConfig(prefix_sharing="trie", page_count=24)) as engine:
            engine.listeners += [Loud(), Quiet()]
            ended = []
            for first in range(100, 700, 10):
                # Two full pages, the same for all: each publishes its own copy of them.
                prompt = " ".join(str(first + n) for n in range(9))[:32]
                asked = [engine.submit(prompt, 5, timeout_s=30) for _ in range(4)]
                ended += [future.result() for future in asked]
                if engine.died:
                    break
            late = engine.generate(prompt)
            died, log = engine.died, engine.log
            worker_crashes.unlisten(worker_crashes._listeners[0])
        faults = engine.faults
        with Engine() as second:
            again = second.generate("1 2 3 4 5 ", max_new_tokens=5)
            second.service.native.batcher.board_flights = lambda: 1 / 0
            later = second.generate("1 2 3 4 5 ", 5, timeout_s=30)
        shown.__exit__(None, None, None)
        try:  # as a worker without an engine does, which has no listener any more
            PyWorkerEventLoop("another").call_exception_handler({"exception": KeyError("foreign")})
            foreign = "swallowed"
        except RuntimeError as error:
            foreign = str(error)
        say({"outcomes": sorted({c.outcome for c in ended}), "late": late.outcome,
             "late_error": late.error, "died": died and died.traceback, "log": log,
             "again": again.text, "heard": sorted(Quiet.heard), "faults": faults,
             "warned": [str(w.message) for w in warned if w.category is ObserverWarning],
             "later": [later.outcome, second.died and second.died.traceback, second.log],
             "same": engine.died is died, "foreign": foreign})
        """,
        short_strobes=False,  # the four must be in one batch
    )
    assert done.returncode == 0, done.stderr
    assert "engine_died" in done.reply["outcomes"]
    assert "timeout" not in done.reply["outcomes"]
    assert "KeyError" in done.reply["died"]
    # Listeners that raise affect neither the engine nor other listeners or observers.
    assert {"submitted", "token", "answered", "done", "died"} <= set(done.reply["heard"])
    assert "Async exception on" in done.reply["log"]
    assert "planted in death" in done.reply["log"]
    assert "planted in submitted" in done.reply["log"]
    assert any("planted in submitted" in text for text in done.reply["warned"])
    assert len(done.reply["warned"]) < 30 < done.reply["faults"]
    # A later engine's death is recorded for it alone, also after another engine died.
    outcome, traceback, log = done.reply["later"]
    assert outcome == "engine_died"
    assert "ZeroDivisionError" in traceback
    assert "Async exception on" in log
    assert done.reply["same"]
    assert "foreign" in done.reply["foreign"]
    assert done.reply["late"] == "engine_died"
    assert "KeyError" in done.reply["late_error"]
    assert "Unhandled exception" in done.reply["log"]
    assert done.reply["again"] == "6 7 8"
    assert done.stderr == ""


def test_a_dead_worker_is_seen_and_silent_after_its_engine(
    child: ChildRunner, release: str
) -> None:
    done = child(
        release,
        """
        async def failing(process):
            raise ZeroDivisionError("planted")
        with Engine() as engine:
            invocation = engine.service.invocation_class()
            run, invocation.run = invocation.run, failing
            ended = engine.generate("1 2 3 4 5 ", 5, timeout_s=30)
            invocation.run = run
            died = engine.died
        with Engine() as engine:
            again = engine.generate("1 2 3 4 5 ", max_new_tokens=5)
        say([ended.outcome, died and died.traceback.splitlines()[-1], again.text])
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.reply == ["engine_died", "ZeroDivisionError: planted", "6 7 8"]
    assert done.stderr == ""


def test_a_hung_engine_times_out_and_closes(child: ChildRunner, release: str) -> None:
    done = child(
        release,
        """
        import asyncio
        async def never(*args, fiber):
            await asyncio.sleep(3600)
        with Engine() as engine:
            for functions in (engine.service.native.prefill_functions,
                              engine.service.native.decode_functions):
                for size in functions:
                    functions[size] = never
            hung = engine.generate("1 2 3 4 5 ", timeout_s=2)
            waiting = engine.submit("1 2 3 4 5 ", timeout_s=600)
            waiting.cancel()  # it is the engine's to end, and ends all the same
        lost = waiting.result(timeout=1)
        with Engine() as engine:
            again = engine.generate("1 2 3 4 5 ", max_new_tokens=5)
        say({"hung": hung.outcome, "lost": lost.outcome, "again": again.text})
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.reply == {"hung": "timeout", "lost": "engine_died", "again": "6 7 8"}


def test_a_freeze_with_the_gil_held_is_ended_from_outside(
    child: ChildRunner, release: str, tmp_path: Path
) -> None:
    done = child(
        release,
        f"""
        import ctypes
        with Engine(log_dir=Path({str(tmp_path)!r}), freeze_after_s=3) as engine:
            say(engine.generate("1 2 3 4 5 ", max_new_tokens=5).text)
            ctypes.PyDLL(None).sleep(3600)  # PyDLL keeps the GIL
        """,
    )
    assert done.returncode == -signal.SIGKILL
    assert done.reply == "6 7 8"  # nothing that was already recorded is lost
    assert "was frozen for 3 s" in done.stderr
    (dump,) = tmp_path.glob("watchdog-*.txt")
    sentence, _, stacks = dump.read_text().partition("\n")
    assert sentence in done.stderr
    assert str(dump) in sentence
    assert "most recent call first" in stacks


def test_a_process_at_work_or_stopped_by_a_debugger_is_not_frozen(child: ChildRunner) -> None:
    done = child(
        REPORTED,
        """
        import os, signal, subprocess, tempfile, time
        from analysis.engine import watchdog
        dump = Path(tempfile.mkdtemp()) / "dump.txt"
        watchdog.BEAT_S = 0.05
        guard = watchdog.Watchdog(dump, silence_s=1)
        guard.start()
        subprocess.Popen(["sh", "-c", f"sleep 2; kill -CONT {os.getpid()}"])
        os.kill(os.getpid(), signal.SIGSTOP)
        end = time.monotonic() + 2
        while time.monotonic() < end:  # busy, but Python code
            sum(i * i for i in range(100_000))
        guard.stop()
        say({"left": dump.exists()})
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.reply["left"] is False


@pytest.mark.parametrize(("resumed_s", "beats_s", "killed"), [(3.9, 5.5, False), (3.9, 9.0, True)])
def test_a_process_that_was_resumed_has_all_its_time_to_beat(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, resumed_s: float, beats_s: float, killed: bool
) -> None:
    now, signals = [0.0], []

    def wait(inputs: list[int], _: object, __: object, timeout_s: float) -> tuple[list[int], ...]:
        now[0] += timeout_s
        return (inputs if now[0] >= beats_s else []), [], []

    monkeypatch.setattr(_guard.select, "select", wait)
    monkeypatch.setattr(_guard, "_state", lambda pid: "T" if now[0] < resumed_s else "R")
    monkeypatch.setattr(_guard.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(_guard.os, "read", lambda *_: b"")
    monkeypatch.setattr(_guard.os, "write", lambda *_: 0)
    monkeypatch.setattr(_guard.os, "kill", lambda pid, number: signals.append(number))
    _guard.guard(os.getpid(), 2.0, tmp_path / "dump.txt")
    assert signals == [signal.SIGUSR2, signal.SIGKILL] * killed


def test_a_full_queue_rejects_with_its_reason(child: ChildRunner) -> None:
    done = child(
        NEWEST,
        """
        with Engine() as engine:
            ended = [f.result() for f in [engine.submit("1 2 3 4 5 ") for _ in range(16)]]
        say([[c.outcome, c.error] for c in ended])
        """,
    )
    assert done.returncode == 0, done.stderr
    rejected = [error for outcome, error in done.reply if outcome == "rejected"]
    assert rejected
    assert all("QUEUE_FULL" in error for error in rejected)
    assert {outcome for outcome, _ in done.reply} <= {"ok", "rejected"}


def test_invocations_are_serialised_on_request(child: ChildRunner, release: str) -> None:
    done = child(
        release,
        """
        config = EngineConfig(serialise_invocations=True)
        with Engine(config) as engine:
            invocation = engine.service.invocation_class()
            inside = invocation.run.__qualname__
            texts = [f.result().text for f in
                     [engine.submit("1 2 3 4 5 ", max_new_tokens=5) for _ in range(4)]]
        say({"texts": texts, "inside": inside, "after": invocation.run.__qualname__})
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.reply["texts"] == ["6 7 8"] * 4
    assert "serialise_invocations" in done.reply["inside"]
    assert "serialise_invocations" not in done.reply["after"]


def test_what_cxx_prints_is_kept_and_what_python_prints_is_shown(
    child: ChildRunner, release: str
) -> None:
    done = child(
        release,
        """
        with Engine() as engine:
            os.write(2, b"from beneath\\n")
            print("from Python", file=sys.stderr)
            log = engine.log
        os.write(2, b"afterwards\\n")
        say(log)
        """,
    )
    assert done.returncode == 0
    assert done.reply == "from beneath\n"
    assert done.stderr == "from Python\nafterwards\n"


def test_an_impossible_start_or_request_is_one_sentence(child: ChildRunner, release: str) -> None:
    done = child(
        release,
        """
        from analysis.core.errors import CachelabError
        said_ = []
        def attempt(action):
            try:
                action()
            except CachelabError as error:
                said_.append(str(error))
            else:
                said_.append(None)
        def begin(**settings):
            attempt(lambda: Engine(EngineConfig(**settings)).start())
        begin(options={"no_such_option": 1})
        begin(device="amdgpu")
        begin(batch_sizes=(3,))
        begin(model=Path("/no/such/model"))
        with Engine() as engine:
            attempt(lambda: engine.submit([], 5))
            attempt(lambda: engine.submit("1 2 ", 0))
            attempt(lambda: engine.submit([10**6], 5))
        attempt(lambda: engine.submit("1 2 ", 5))
        attempt(engine.start)
        say(said_)
        """,
    )
    assert done.returncode == 0, done.stderr
    option, device, sizes, model, empty, none, ids, closed, twice = done.reply
    assert "no option 'no_such_option'. It has " in option
    assert "async_allocs" in option
    assert "libamdhip64.so" in device
    assert "3" in sizes
    assert "/no/such/model" in model
    assert "empty" in empty
    assert "from 1 to 256, not 0" in none
    assert "token ids" in ids
    assert "not running" in closed
    assert "new Engine" in twice


def test_what_the_engine_logs_in_python_is_kept_and_not_sprayed(child: ChildRunner) -> None:
    done = child(
        NEWEST,
        """
        import time
        logs = []
        for _ in range(2):  # the second one too: the first must not leave a handler behind
            with Engine(EngineConfig(page_count=8)) as engine:
                # Its answer enters a second page, and the engine then wants a block of eight.
                asked = engine.submit("100 101 102 ", 8)
                while "CacheAllocationFailure" not in engine.log and not asked.done():
                    time.sleep(0.05)
                logs.append("CacheAllocationFailure" in engine.log)
        say(logs)
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.reply == [True, True]
    assert done.stderr == ""
