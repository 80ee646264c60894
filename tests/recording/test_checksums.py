"""Checksums of pages in plain memory: no write is missed, unchecked changes are reported."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from made_engine import PAGES, MadeEngine, decode, events, recorder_of

from analysis.recording import checksummed, checksums
from analysis.recording.checksums import Checksums
from analysis.recording.recorder import Recorder
from analysis.sanitizer.rules.contents import describe_coverage
from analysis.sanitizer.trace import Event

PAGE = 3


def execute(engine: MadeEngine, recorder: Recorder, page: int = PAGE) -> None:
    """Have a decode write a slot of a page."""
    invocation = recorder.invocation_begins("decode", ["a"])
    engine.table.content[page, ..., 0, :, :] += 1
    recorder.invocation_ends(invocation, decode(page), None)


def changed(recorder: Recorder) -> set[int]:
    """Return the pages for which a change without a write was reported."""
    return {row[6][0] for row in events(recorder, "bytes_changed")}


def coverage(recorder: Recorder) -> dict[str, Any]:
    *_, last = events(recorder, "checksums")
    output: dict[str, Any] = last[16]["coverage"]
    return output


@pytest.mark.parametrize("page", [PAGE, PAGES - 1])
def test_what_is_written_while_the_checking_begins_is_no_change(monkeypatch, page: int) -> None:
    engine = MadeEngine()
    recorder = recorder_of(engine)
    at_work = threading.Thread(target=execute, args=(engine, recorder, page))
    read = Checksums._of_pages

    def busy(self: Checksums, pages: Any) -> Any:
        # The engine comes after the pages were read, and before anybody knows what they held.
        digests = read(self, pages)
        if at_work.ident is None:
            at_work.start()
            at_work.join(timeout=0.2)
        return digests

    monkeypatch.setattr(Checksums, "_of_pages", busy)
    with checksummed(recorder, "landings"):
        at_work.join()
        engine.table.content[5] += 1  # what nothing wrote is seen all the same
    assert changed(recorder) == {5}


def test_pages_of_an_invocation_without_a_start_are_not_checked() -> None:
    engine = MadeEngine()
    recorder = recorder_of(engine)
    with checksummed(recorder, "landings"):
        assert recorder.checksums is not None
        engine.table.content[PAGE] += 1
        recorder.checksums.ends(0, "decode", ["a"], decode(PAGE), None)
    assert not changed(recorder)
    assert coverage(recorder)["not_judged"] == [PAGE]


def test_an_invocation_that_finishes_while_checking_begins_leaves_no_page_undecided(
    monkeypatch,
) -> None:
    engine = MadeEngine()
    recorder = recorder_of(engine)
    invocation, place = recorder.invocation_begins("decode", ["a"]), recorder._place
    watched = checksummed(recorder, "landings")

    def opening() -> tuple[int, int]:
        # As another thread may do, between two steps of the completion.
        monkeypatch.setattr(recorder, "_place", place)
        watched.__enter__()
        return place()

    monkeypatch.setattr(recorder, "_place", opening)
    recorder.invocation_ends(invocation, decode(PAGE), None)
    engine.table.content[5] += 1
    watched.__exit__(None, None, None)
    assert changed(recorder) == {5}
    assert coverage(recorder)["undecided"] == []


def test_changes_beyond_the_limit_are_counted_and_reported(monkeypatch) -> None:
    monkeypatch.setattr(checksums, "_MOST_PENDING", 2)
    engine = MadeEngine()
    recorder = recorder_of(engine)
    with checksummed(recorder, "landings"):
        recorder.invocation_begins("decode", ["a"])  # and may still be writing
        engine.table.content[4:8] += 1
        for page in range(4, 8):
            recorder.event("match", pages=[page])
        output = recorder.checksums.coverage  # type: ignore[union-attr]
    assert output["undecided"] == [4, 5]
    assert output["unchecked"] == 2
    assert any("2 changes not checked" in n for n in described(unchecked=2)[1])
    assert any("1 change not checked" in n for n in described(unchecked=1)[1])


def described(**changes: Any) -> tuple[str, list[str]]:
    output: dict[str, Any] = {
        "mode": "landings", "invocations": 1, "pages_read": 1, "slots_written": 1,
        "pages_offered": 1, "not_judged": [], "undecided": [],
    }  # fmt: skip
    event = Event(*[None] * (len(Event._fields) - 1), {"coverage": output | changes})
    return describe_coverage(event)


def test_one_page_is_in_the_singular() -> None:
    text, notes = described(not_judged=[3], undecided=[4])
    assert "1 written slot read back after 1 invocation, 1 page read again" in text
    assert "The bytes of 1 page were" in notes[0]
    assert "bytes of 1 page were" in notes[1]
    assert described()[1] == []


def test_coverage_is_reported_also_when_the_block_raises() -> None:
    engine = MadeEngine()
    recorder = recorder_of(engine)

    def broken_off() -> None:
        with checksummed(recorder, "landings"):
            execute(engine, recorder)
            raise KeyError

    with pytest.raises(KeyError):
        broken_off()
    assert coverage(recorder)["invocations"] == 1


def test_with_sampled_some_pages_are_followed_wholly_and_the_others_not_at_all() -> None:
    engine = MadeEngine()
    recorder = recorder_of(engine)
    with checksummed(recorder, "sampled"):
        checks = recorder.checksums
        assert checks is not None
        followed = checks._all
        assert len(followed) == -(-(PAGES - 1) // checksums.FOLLOWED)
        other = next(page for page in range(1, PAGES) if page not in followed)
        for page in (followed[0], other, followed[0]):
            execute(engine, recorder, page)
        assert changed(recorder) == set()
        engine.table.content[[followed[1], other]] += 1  # nothing wrote that
    assert changed(recorder) == {followed[1]}
    assert coverage(recorder)["invocations"] == 3
    assert coverage(recorder)["slots_written"] == 2
