"""Hooks come off in any order and leave what they found."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_engine import MadeEngine, events, recorder_of
from support import ChildRunner

from analysis.recording import ObserverWarning
from analysis.shortfin import hooks
from analysis.shortfin.cache.nodes import NodeNumbers
from analysis.shortfin.locks import Locks, WatchedLock


def around(mark: str) -> hooks.Wrap:
    return lambda original: lambda self: [mark, *original(self)]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=20), st.booleans())
def test_wrappers_are_those_that_were_not_taken_off_in_the_order_they_came(steps, own) -> None:
    class Base:
        def call(self) -> list[str]:
            return ["original"]

    class Kind(Base):
        pass

    owner: Any = Base if own else Kind
    before = dict(vars(owner))
    on: list[tuple[str, hooks.Undo]] = []
    for number, (put, which) in enumerate(steps):
        if put or not on:
            on.append((str(number), hooks.wrap_attribute(owner, "call", around(str(number)))))
        else:
            on.pop(which % len(on))[1]()
        assert owner().call() == [*(mark for mark, _ in reversed(on)), "original"]
    for _, undo in on:
        undo()
    assert dict(vars(owner)) == before
    assert not hooks._wrapped


@given(st.permutations(range(4)))
def test_hooks_of_other_code_stay_as_long_as_needed(order) -> None:
    class Kind:
        def call(self) -> list[str]:
            return ["original"]

    original = Kind.call
    undos = [hooks.wrap_attribute(Kind, "call", around(mark)) for mark in "ab"]
    watched = Kind.call
    undos.append(hooks.replace_attribute(Kind, "call", lambda self: ["c", *watched(self)]))
    undos.append(hooks.wrap_attribute(Kind, "call", around("d")))
    assert Kind().call() == ["d", "c", "b", "a", "original"]
    for number in order:
        undos[number]()
        assert "original" in Kind().call()
    if order.index(3) < order.index(2):  # whatever lies over a replacement goes before it
        assert Kind.call is original


def test_two_observed_engines_do_not_disturb_each_other(child: ChildRunner, release: str) -> None:
    done = child(
        release,
        """
        from analysis import observe
        from analysis.sanitizer import settle

        def noted(engine):
            # What its probe keeps of requests, when all have ended.
            settle(engine, engine.probe.observer)
            return {name: len(value) for name, value in vars(engine.probe).items()
                    if isinstance(value, (dict, list, set)) and name != "_locks"}

        def kinds(engine):
            service = engine.service.native
            things = [type(service), type(service.page_cache), type(service.page_cache.page_pool)]
            import shortfin.array as sfnp
            from shortfin_apps.llm.components import generate
            things += [sfnp, generate.GenerateItemProcess, type(service.page_cache.page_pool
                                                              .page_tables[0])]
            return [{name: id(value) for name, value in vars(thing).items() if callable(value)}
                    for thing in things]

        def frames(recording):
            return [sorted(set(recording.events["request_id"].dropna())),
                    sorted({r for ids in recording.invocations["request_ids"] for r in ids})]

        pairs, left = [], []
        trie = EngineConfig(prefix_sharing="trie")
        with Engine(trie) as one, Engine(trie) as two:
            before = kinds(one)
            for first in (0, 1):
                blocks = [observe(one), observe(two)]
                recordings = [block.__enter__() for block in blocks]
                one.submit("1 2 3 4 5 ", 4, 60, "a").result()
                two.submit("1 2 3 4 5 ", 4, 60, "b").result()
                left += [noted(one), noted(two)]
                blocks[first].__exit__(None, None, None)
                other = (two, one)[first]
                other.submit("1 2 3 4 5 ", 4, 60, "c").result()
                blocks[1 - first].__exit__(None, None, None)
                pairs.append([frames(recording) for recording in recordings])
            restored = kinds(one) == before
        # What the engine answers may be anything: it must not come back to it as an error.
        import importlib
        from analysis.shortfin.port import Call
        ended = []
        call = Call("d", None, (1,), 1, lambda token: None, ended.append)
        modules = [importlib.import_module(kind.__module__) for kind in one._service_class.__mro__]
        kind = next(module._Responder for module in modules if hasattr(module, "_Responder"))
        odd = kind(call, lambda responder, answer: responder.call.on_end(answer))
        odd.send_response(b"\\xff" if has(one.release, "allocations") else [["no number"]])
        say([pairs, restored, left, [answer.error for answer in ended]])
        """,
    )
    assert done.returncode == 0, done.stderr
    (first, second), restored, left, (unread,) = done.reply
    assert "could not be read" in unread
    assert all(len(noted) > 2 and not any(noted.values()) for noted in left), left
    assert first == [[["a"]] * 2, [["b", "c"]] * 2]
    assert second == [[["a", "c"]] * 2, [["b"]] * 2]
    assert restored


class Watched:
    def call(self) -> str:
        return "original"


def watched_by(watcher: Any, **asked: Any) -> hooks.Hooks:
    kind = hooks.Hooks(watcher)
    kind.around(Watched, "call", "call", **asked)
    return kind


def raising(*args: Any, **named: Any) -> Any:
    raise MemoryError("planted")


def test_a_call_of_an_unknown_engine_is_not_reported() -> None:
    recorder = recorder_of(MadeEngine())
    on = watched_by(
        recorder, applies=raising, after=lambda *args: recorder.event("free", pages=[1])
    )
    with pytest.warns(ObserverWarning, match="planted"):
        assert Watched().call() == "original"
    on.restore()
    assert [row[5] for row in recorder.events] == ["observer_error"]
    on = watched_by(
        recorder, request_of=raising, after=lambda *args: recorder.event("free", pages=[1])
    )
    with pytest.warns(ObserverWarning, match="planted"):
        assert Watched().call() == "original"
    on.restore()
    assert [*events(recorder, "free")], "an own call is recorded, for any request"
    assert recorder.mark() is not None


@pytest.mark.parametrize("failing", ["begin", "end", "event"])
def test_no_error_of_an_observer_reaches_the_call(failing: str, monkeypatch) -> None:
    recorder = recorder_of(MadeEngine())
    monkeypatch.setattr(recorder, failing, raising)
    on = watched_by(recorder, after=lambda *args: recorder.event("free", pages=[1]))
    with pytest.warns(ObserverWarning, match="planted"):
        assert Watched().call() == "original"
    on.restore()


def test_a_change_that_cannot_be_undone_is_reported_and_does_not_block_others() -> None:
    changes, undone = hooks.Changes(), []
    blocks = [changes.block("a"), changes.block("b")]
    for block, undo in zip(blocks, (lambda: undone.append("a"), raising), strict=True):
        block.__enter__().callback(undo)
    with pytest.warns(ObserverWarning, match="Undoing b failed: MemoryError"):
        changes.undo_all()
    assert undone == ["a"]


def test_a_lock_is_taken_and_released_if_its_observer_raises() -> None:
    locks = Locks()
    lock = WatchedLock(threading.Lock(), "pool", locks)
    locks.took = raising  # type: ignore[method-assign]
    with pytest.warns(ObserverWarning, match="planted"), lock:
        assert lock.locked()
    assert not lock.locked()


def test_locks_taken_outside_observed_calls_are_not_recorded() -> None:
    locks = Locks()
    lock = WatchedLock(threading.Lock(), "pool", locks)
    for _ in range(100):
        with lock:
            pass
    mark = locks.begin(outermost=True)
    with lock:
        assert locks.names(mark) == ("pool",)
    assert locks.names(mark) == ("pool",)
    locks.end()
    with lock:
        pass
    assert locks.taken == ["pool"]


class Node:
    def __init__(self) -> None:
        self.ref_count = object()


def test_numbers_of_nodes_that_are_gone_are_forgotten_and_not_given_again() -> None:
    numbers, kept = NodeNumbers(), [Node() for _ in range(10)]
    for node in kept:
        numbers.of(node)
    for _ in range(1000):
        gone = Node()
        assert numbers.counted_by(gone.ref_count) is None
        last = numbers.of(gone)
        assert numbers.counted_by(gone.ref_count) is gone
    del gone
    assert last == 1009
    assert len(numbers._of_counts) == len(numbers._numbers) == len(kept)
    assert [numbers.counted_by(node.ref_count) for node in kept] == kept
