"""What a finding's picture is drawn from: the pages involved, before and after its step."""

from __future__ import annotations

from dataclasses import dataclass

from analysis.sanitizer.findings import Finding
from analysis.sanitizer.passage import Passage
from analysis.sanitizer.shadow import NOTHING, PADDING, UNKNOWN
from analysis.sanitizer.world import World

NOTHING_KIND, UNKNOWN_KIND, PADDING_KIND, TOKEN_KIND = "nothing", "unknown", "padding", "token"
_MOST_PAGES = 6


@dataclass(frozen=True)
class Slot:
    """What one slot holds."""

    kind: str
    """nothing, unknown, padding or token."""
    request_id: str | None = None
    """Whose token it is."""
    position: int = -1
    """Its position in that request."""
    tainted: bool = False
    """Whether it was computed from wrong data."""


@dataclass(frozen=True)
class PageScene:
    """A page at the step of a finding."""

    page: int
    where: str
    """In whose hands it was, in words."""
    before: tuple[Slot, ...]
    after: tuple[Slot, ...]
    """Of every slot; equal to `before` where the step wrote nothing."""


@dataclass(frozen=True)
class Scene:
    """The pages of the requests involved; the page of the finding comes first."""

    pages: tuple[PageScene, ...]
    tables: dict[str, tuple[int, ...]]
    """Pages of each request involved: its block table in the invocation, or those that it held."""
    lengths: dict[str, int]
    """Own length of each, in tokens."""
    reads: tuple[tuple[int, int], ...] = ()
    """Slots (page, slot) that the suffering request's row attended to in the invocation."""


def scene_of(world: World, finding: Finding, passage: Passage | None) -> Scene:
    """Return the scene of a finding just made; it is a copy and does not change any more.

    One that is of no page and no invocation has none to show.
    """
    if finding.page is None and passage is None:
        return Scene((), {}, {})
    requests = [r for r in (finding.request_id, finding.other_request_id) if r]
    tables: dict[str, tuple[int, ...]] = {}
    lengths: dict[str, int] = {}
    reads: tuple[tuple[int, int], ...] = ()
    for request in requests:
        tables[request] = tuple(sorted(world.held.get(request, ())))
        if (sequence := world.last_of.get(request)) is not None:
            lengths[request] = sequence.length
    if passage is not None:
        for row, request in enumerate(passage.invocation.request_ids):
            if request in tables and passage.sequences[row] is not None:
                blocks = max(len(passage.pages_of(row)), _blocks_read(passage, row))
                tables[request] = tuple(passage.invocation.tables[row, :blocks].tolist())
                if request == finding.request_id:
                    slots = passage.read_slots[row][passage.reads[row]].tolist()
                    reads = tuple((s // world.stride, s % world.stride) for s in slots)
    pages = [] if finding.page is None else [finding.page]
    pages += [page for request in requests for page in tables[request]]
    shown = [p for p in dict.fromkeys(pages) if 0 <= p < world.page_count][:_MOST_PAGES]
    return Scene(
        pages=tuple(_page(world, page, passage) for page in shown),
        tables=tables,
        lengths=lengths,
        reads=reads,
    )


def _blocks_read(passage: Passage, row: int) -> int:
    count = int(passage.reads[row].sum()) if row < len(passage.reads) else 0
    return -(-count // passage.world.stride)


def _page(world: World, page: int, passage: Passage | None) -> PageScene:
    stride, shadow = world.stride, world.shadow
    first = page * stride
    after = [
        _slot(
            world,
            int(shadow.content[s]),
            int(shadow.writer[s]),
            int(shadow.position[s]),
            bool(shadow.tainted[s]),
        )
        for s in range(first, first + stride)
    ]
    before = list(after)
    if passage is not None:
        rows, columns = (passage.write_slots // stride == page).nonzero()
        # A slot that several rows write held the same before all of them.
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            before[int(passage.write_slots[row, column]) - first] = _slot(
                world,
                int(passage.before[row, column]),
                int(passage.writer_before[row, column]),
                int(passage.position_before[row, column]),
                tainted=False,
            )
    return PageScene(page, world.where(page), tuple(before), tuple(after))


def _slot(world: World, content: int, writer: int, position: int, tainted: bool) -> Slot:
    if content == int(NOTHING):
        return Slot(NOTHING_KIND)
    if content == int(UNKNOWN):
        return Slot(UNKNOWN_KIND)
    if content == int(PADDING):
        return Slot(PADDING_KIND, world.name(writer))
    return Slot(TOKEN_KIND, world.name(writer), position, tainted)
