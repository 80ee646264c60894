"""What the pages really hold, where somebody looked."""

from __future__ import annotations

from collections.abc import Iterator

from analysis.sanitize.findings import WRONG_DATA, Finding
from analysis.sanitize.rules.base import Rule
from analysis.sanitize.world import PADDING_PAGE, Event, World


class FiniteContents(Rule):
    """A masked slot is multiplied by nothing, unless it holds NaN or infinity."""

    name = "finite contents"
    sentence = "No slot of a page that is flown holds NaN or infinity, not even a masked one."
    bears_gaps = True

    def on_nonfinite(self, world: World, event: Event) -> Iterator[Finding]:
        page = event.pages[0]
        cause = "the padding page" if page == PADDING_PAGE else "a page that it does not hold"
        if page in world.held.get(event.request_id or "", ()):
            cause = "a request's page"
        yield Finding(
            cause=cause,
            message=f"Slot {event.value} of page {page}, which {event.request_id} flew with, holds"
            " NaN or infinity; a mask that is added does not hide it.",
            request_id=event.request_id,
            page=page,
            slot=event.value,
            severity=WRONG_DATA,
        )


class WholeCopies(Rule):
    """A copied page is the page."""

    name = "whole copies"
    sentence = "A page that was copied holds the same bytes as its source."
    bears_gaps = True

    def after_copy(self, world: World, event: Event) -> Iterator[Finding]:
        # `value` is the first slot that differs, looked at only on request.
        if event.value is not None:
            source, target = event.pages[:2]
            yield Finding(
                cause="short copy",
                message=f"Page {target} was copied from page {source} but for slot {event.value}.",
                request_id=event.request_id,
                page=target,
                slot=event.value,
                severity=WRONG_DATA,
            )


class WrittenAfterFree(Rule):
    """Nobody writes to a page that was freed."""

    name = "written after free"
    sentence = "A page that comes back from quarantine is as it was when it was freed."
    bears_gaps = True

    def on_written_after_free(self, world: World, event: Event) -> Iterator[Finding]:
        for page in event.pages:
            there = 0 <= page < world.page_count
            writer = world.name(int(world.shadow.writer[page * world.stride])) if there else None
            yield Finding(
                cause="written",
                message=f"Page {page} was written after it was freed"
                + (f"; the last write to it that was seen is by {writer}." if writer else "."),
                request_id=event.request_id,
                other_request_id=writer,
                page=page,
            )
