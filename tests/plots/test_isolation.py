"""What is drawn and written of an examination, from results of known truth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from matplotlib.patches import Rectangle

from analysis.interleavings import Covered, Failure, Replay, Result, Schedule, Step, Violation
from analysis.interleavings.replay import Moment
from analysis.studies.isolation.figures import interleaving_figure
from analysis.studies.isolation.table import (
    broken_rules_table,
    isolation_table,
    left_out_table,
)
from analysis.studies.isolation.words import answer_in_a_sentence, answer_in_words

_BROKEN = Violation("page-conflict", "Page 1 is used by A and B, and is not cached.", "A", (1,))
_REPLAY = Replay(
    "9.9.9",
    "trie",
    "a story",
    ("lock-cache",),
    (("free",), ("free",), ("leaked",)),
    (
        Moment(Step("A", "take"), (("free",), ("A",), ("leaked",)), ()),
        Moment(Step("B", "take"), (("cached", "B"), ("A", "B"), ("leaked",)), (_BROKEN,)),
    ),
)


def texts(figure: Any) -> list[str]:
    found = [text.get_text() for axes in figure.axes for text in axes.texts]
    found += [axes.get_title(loc="left") for axes in figure.axes]
    return [*found, figure.get_suptitle()]


def test_a_schedule_is_drawn_with_its_failing_step_and_page() -> None:
    figure = interleaving_figure(_REPLAY)
    output = texts(figure)
    assert output.count("take") == 2
    assert any("After step 2, “page-conflict” is broken." in text for text in output)
    assert any("a story: shortfin 9.9.9" in text and "lock-cache" in text for text in output)
    assert "A B" in output  # held by both
    marked = [
        patch
        for axes in figure.axes
        for patch in axes.patches
        if isinstance(patch, Rectangle) and patch.get_linewidth() > 2
    ]
    assert len(marked) == 2  # the step, and the page
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"held by A", "held by B", "free", "leaked"} <= set(labels)


def test_an_unbroken_or_empty_schedule_is_drawn_too() -> None:
    clean = replace(_REPLAY, moments=_REPLAY.moments[:1])
    assert "No rule is broken." in texts(interleaving_figure(clean))
    empty = interleaving_figure(replace(_REPLAY, moments=()))
    assert "nothing to draw" in empty.texts[0].get_text()


def test_a_replay_is_written_line_by_line() -> None:
    assert str(_REPLAY).splitlines() == [
        "A.take       page 1: A",
        "B.take       page 0: cached and B; page 1: A and B",
        "    page-conflict: Page 1 is used by A and B, and is not cached.",
    ]
    assert _REPLAY.failing == 1


def failure(rule: str, *, sequential: bool, schedule: str = "A.take B.take") -> Failure:
    return Failure("a story", Schedule.parse(schedule), rule, "It is.", sequential, 3)


def result(*failures: Failure, complete: bool = True, treatments: tuple[str, ...] = ()) -> Result:
    covered = Covered("a story", 2, 20, 10, 100, 3 if failures else 0, complete)
    return Result("9.9.9", "trie", treatments, (), "one thread", list(failures), [covered])


_FAILING = result(
    failure("missing-page", sequential=True),
    failure("duplicate-page", sequential=False),
    failure("duplicate-page", sequential=False, schedule="A.take B.take A.go"),
)
_CLEAN = result(treatments=("lock-cache",))


def test_a_result_is_written_in_words() -> None:
    assert not _FAILING.ok
    assert _CLEAN.ok
    assert "In all 20 interleavings of 1 scenario," in _CLEAN.words
    assert (
        "breaks 2 rules: in any order, missing-page; only interleaved, duplicate-page."
        in _FAILING.words
    )
    assert [f.rule for f in _FAILING.shortest()] == ["duplicate-page", "missing-page"]
    some = result(complete=False)
    assert not some.complete
    assert some.interleavings == 0
    assert "that were covered in time" in some.words
    assert _FAILING.as_json()["failures"][0]["schedule"] == "A.take B.take"


def test_the_answer_follows_from_the_results() -> None:
    assert answer_in_a_sentence([_FAILING], [_CLEAN]) == (
        "The cache of shortfin 9.9.9 by itself: with the trie 2 rules are broken, in 3 of 20"
        " interleavings; with all fixes applied, every rule holds in all 20 interleavings."
    )
    assert "these rules stay broken: duplicate-page, missing-page" in answer_in_a_sentence(
        [_FAILING], [_FAILING]
    )
    unsure = answer_in_a_sentence([_FAILING], [result(complete=False)])
    assert "but only 0 interleavings were covered" in unsure
    words = answer_in_words([_FAILING], [_CLEAN], {"a fix": _FAILING, "another": _CLEAN})
    head, _, *table = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in words.splitlines()
        if line.startswith("|")
    ]
    assert [dict(zip(head, row, strict=True)) for row in table] == [
        {
            "prefix sharing": "trie",
            "broken rule": rule,
            "one request after another": serial,
            "operations of requests interleaved": "broken",
            "its threads can do that": "yes",
        }
        for rule, serial in (("duplicate-page", "holds"), ("missing-page", "broken"))
    ]
    assert "bring a failure back: `a fix`." in words
    assert "make no difference here: `another`." in words


def test_tables_have_what_was_found() -> None:
    table = isolation_table([_FAILING], [_CLEAN])
    (row,) = table.frame.to_dict("records")
    assert (row["interleavings"], row["failing"], row["failing with the fixes"]) == (20, 3, 0)
    assert row["broken in any order"] == "missing-page"
    (row,) = isolation_table([result(complete=False)], [_CLEAN]).frame.to_dict("records")
    assert row["failing"] == "not all covered"
    rules = broken_rules_table([_FAILING])
    assert list(rules.frame["takes"]) == ["interleaving", "any order"]
    assert "<code>A.take B.take</code>" in rules.markup
    assert len(broken_rules_table([_CLEAN])) == 0
    back = left_out_table({"a fix": _FAILING, "another": _CLEAN})
    assert list(back.frame["comes back"]) == [
        "duplicate-page, missing-page",
        "nothing that shows here",
    ]
