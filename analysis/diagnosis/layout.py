"""What an explanation's text is made of: sections with sentences and a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Table:
    """Rows under a heading."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Section:
    """A part of the text: sentences, then a table."""

    title: str
    sentences: tuple[str, ...] = ()
    table: Table | None = None


def percent(value: float) -> str:
    """Return a probability in percent, with the digits that tell it from 0 and from 100."""
    if not math.isfinite(value):
        return "not a number"
    if 0.001 <= value <= 0.999 or value in (0, 1):
        return f"{value:.1%}"
    if value < 1e-6:
        return "below 0.0001%"
    return "above 99.9999%" if value > 1 - 1e-6 else f"{value:.4%}"


def plain_table(table: Table) -> list[str]:
    """Return the lines of a table as plain text."""
    rows = [table.columns, *table.rows]
    widths = [max(len(row[n]) for row in rows) for n in range(len(table.columns))]
    lines = []
    for row in rows:
        trials = [trial.ljust(width) for trial, width in zip(row, widths, strict=True)]
        lines.append(("  " + "  ".join(trials)).rstrip())
    return lines


def html_table(table: Table) -> str:
    """Return a table as HTML."""

    def line(trials: Sequence[str], tag: str) -> str:
        style = "text-align:left;padding:1px 10px 1px 0;vertical-align:top"
        inner = "".join(f'<{tag} style="{style}">{escape(trial)}</{tag}>' for trial in trials)
        return f"<tr>{inner}</tr>"

    body = "".join(line(row, "td") for row in table.rows)
    return (
        '<div style="overflow-x:auto"><table style="border-collapse:collapse;font-size:90%">'
        f"{line(table.columns, 'th')}{body}</table></div>"
    )
