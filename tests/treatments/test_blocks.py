"""Blocks that change an engine undo it all, whatever the order in which they end."""

from __future__ import annotations

import pytest
from support import ChildRunner

from analysis.core.errors import EngineError
from analysis.treatments import check_names


def test_blocks_that_end_out_of_order_raise_and_leave_nothing(
    child: ChildRunner, release: str
) -> None:
    done = child(
        release,
        """
        import itertools
        from analysis import observe, sanitize, treat
        from analysis.core.errors import EngineError

        def hooks(engine):
            cache = engine.service.native.page_cache
            things = [cache, cache.page_pool, engine.service.native]
            # Classes, too: what is left there stands in every engine that follows.
            things += [kind for thing in things for kind in type(thing).__mro__]
            return [[(id(value), repr(value)) for value in vars(thing).values()
                     if callable(value)] for thing in things]

        opened = {
            "treat": lambda engine: treat(engine, "poison-freed-pages"),
            "other": lambda engine: treat(engine, "zero-on-acquire"),
            "observe": lambda engine: observe(engine),
            "sanitize": lambda engine: sanitize(engine),
        }
        cases = []
        for first, second in [("treat", "other"), ("treat", "observe"), ("observe", "treat"),
                              ("sanitize", "treat"), ("treat", "sanitize")]:
            with Engine() as engine:
                before = hooks(engine)
                one, two = opened[first](engine), opened[second](engine)
                one.__enter__()
                two.__enter__()
                text = engine.generate("1 2 3 4 5 ", 5).text
                try:
                    one.__exit__(None, None, None)
                    complaint = ""
                except EngineError as error:
                    complaint = str(error)
                text += engine.generate("1 2 3 4 5 ", 5).text
                two.__exit__(None, None, None)
                text += engine.generate("1 2 3 4 5 ", 5).text
                cases.append([first, second, complaint, text, hooks(engine) == before])
        with Engine() as engine:
            before, still = hooks(engine), treat(engine, "poison-freed-pages")
            still.__enter__()
            engine.close()
            still.__exit__(None, None, None)
        cases.append(engine.probe is None)
        say(cases)
        """,
    )
    assert done.returncode == 0, done.stderr
    *cases, closed = done.reply
    assert closed
    for first, second, complaint, text, restored in cases:
        assert "End blocks in reverse order." in complaint, (first, second)
        assert text == "6 7 8" * 3, (first, second)
        assert restored, (first, second)


@pytest.mark.parametrize("names", [("lock-cache", "lock-cache"), (5,), (None,), ("no-such",)])
def test_what_is_no_treatment_or_given_twice_is_refused(names):
    with pytest.raises(EngineError):
        check_names(names)
