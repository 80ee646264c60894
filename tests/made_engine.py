"""An engine that is made up: a page table of plain memory, and nothing that moves by itself."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from analysis.recording.recorder import Recorder
from analysis.shortfin.hooks import Changes
from analysis.snapshots.snapshot import CacheState

PAGES, STRIDE = 200, 4


class Table:
    """A page table, [pages, layers, 2, slots, heads, elements] of 16 bits each."""

    def __init__(self) -> None:
        shape = (PAGES, 2, 2, STRIDE, 1, 4)
        self.content = np.random.default_rng(0).integers(1, 1000, shape).astype(np.uint16)

    def map(self, read: bool) -> Any:
        return self.content


class MadeEngine:
    """What a recorder and `observe` ask an engine for."""

    def __init__(self, holdings: dict[str, list[int]] | None = None) -> None:
        self.table, self.held = Table(), holdings or {}
        self.listeners: list[Any] = []
        self.changes = Changes()
        self.died = self.service = None
        self.made = SimpleNamespace(
            observer=None,
            dtype="float16",
            cache=SimpleNamespace(tokens_per_page=STRIDE),
            pool=SimpleNamespace(attn_page_entries=[None] * PAGES, page_tables=[self.table]),
            native=SimpleNamespace(
                model_params=SimpleNamespace(
                    transformer_block_count=2,
                    paged_kv_cache=SimpleNamespace(attention_head_count_kv=1),
                )
            ),
            holdings=lambda: self.held,
            kept_locks=list,
            page_table_bytes=0,
            read=lambda: CacheState(PAGES, [*range(1, PAGES)], dict(self.held), ()),
        )
        self.probe: Any = None

    def clock_s(self) -> float:
        return 0.0

    def watch(self, observer: Recorder) -> None:
        self.probe, self.made.observer = self.made, observer

    def unwatch(self) -> None:
        self.probe = None


def recorder_of(engine: MadeEngine, **options: Any) -> Recorder:
    """Return a recorder that watches an engine that is made up."""
    values = {"snapshots": False, "stacks": False, "max_events": 1000, "max_snapshots": 10}
    recorder = Recorder(engine, **(values | options))  # type: ignore[arg-type]
    engine.watch(recorder)
    return recorder


def decode(page: int, slot: int = 0) -> dict[str, Any]:
    """Return the arguments of a decode of one row that writes one slot of a page."""
    return {
        "tokens": ((1, 1), [7]),
        "seq_lens": ((1,), [slot + 1]),
        "start_positions": ((1,), [slot]),
        "block_tables": ((1, 1), [page]),
    }


def events(recorder: Recorder, kind: str) -> Iterator[tuple[Any, ...]]:
    return (row for row in recorder.events if row[5] == kind)
