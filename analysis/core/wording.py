"""Formats numbers and lists in sentences, the same everywhere."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun: "1 page", "3 pages", "12,000 pages"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def listed(items: Iterable[object], *, most: int | None = None) -> str:
    """Return items as "a, b and c", or "a, b and 3 more" beyond `most`; "none" for no items."""
    texts = [str(item) for item in items]
    if most is not None and len(texts) > most:
        texts = [*texts[:most], f"{len(texts) - most} more"]
    if len(texts) < 2:
        return texts[0] if texts else "none"
    return f"{', '.join(texts[:-1])} and {texts[-1]}"


def markdown_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Return rows as a Markdown table with their keys as heads; "" without rows.

    Columns without any text are left out. Cells are padded, for readers in a terminal.
    """
    heads = [
        head
        for head in dict.fromkeys(head for row in rows for head in row)
        if any(_cell(row.get(head, "")) for row in rows)
    ]
    if not heads:
        return ""
    lines = [heads, *([_cell(row.get(head, "")) for head in heads] for row in rows)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(heads))]
    lines.insert(1, ["-" * width for width in widths])
    # The last column has the longest texts: with padding, every line would wrap.
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line[:-1], widths, strict=False))}"
        f"{' | ' if len(line) > 1 else ''}{line[-1]} |"
        for line in lines
    )


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def numbered(noun: str, numbers: Collection[int], *, most: int | None = None) -> str:
    """Return numbers with their noun before them: "page 3", "pages 3, 4 and 7"."""
    return f"{noun}{'' if len(numbers) == 1 else 's'} {listed(numbers, most=most)}"


def percent(share: float, digits: int = 0) -> str:
    """Return a share from 0 to 1 in percent; "less than 1%" if it only rounds to 0."""
    text = f"{100 * share:.{digits}f}"
    least = 10.0**-digits
    if float(text) == 0 and share > 0:
        return f"less than {least:g}%"
    if float(text) == 100 and share < 1:
        return f"more than {100 - least:g}%"
    return f"{text}%"


def short_percent(share: float) -> str:
    """Return a share in percent with two significant digits: "0.93%", "26%", "99.7%"."""
    return f"{100 * share:.{2 if share < 0.995 else 3}g}%"


def p_value(value: float) -> str:
    """Return a p value with two significant digits: "p = 0.012", "p < 0.0001"."""
    return "p < 0.0001" if value < 0.0001 else f"p = {value:.2g}"


def finding_name(rule: str, cause: object) -> str:
    """Return the name of a kind of findings: "page-leak (dropped)"."""
    return f"{rule} ({cause})" if cause else rule


def capitalised(text: str) -> str:
    """Return a text with a capital first letter, and the rest unchanged."""
    return text[:1].upper() + text[1:]


def one_line(text: object, most: int = 300) -> str:
    """Return a text on one line; a text of more than `most` characters is cut."""
    line = " ".join(str(text).split())
    return line if len(line) <= most else line[: most - 1] + "…"


_INSTALLED = re.compile(r"^.*?/(?:lib/python3\.\d+/(?:site-packages/)?|(?=analysis/[\w/]+\.py$))")


def short_file(name: str) -> str:
    """Return the name of a module's file relative to where it is installed."""
    return _INSTALLED.sub("", name)


def short_files(traceback: str) -> str:
    """Return a traceback with every file of a module named as by `short_file`."""
    return re.sub(r'(?<=File ")[^"\n]+(?=")', lambda found: short_file(found[0]), traceback)


def plain(text: str, most: int) -> str:
    """Return text that any font can show, in one line, cut to `most` characters."""
    shown = "".join(
        c if c.isprintable() and ord(c) < 0x250 else c.encode("unicode_escape").decode()
        for c in text
    )
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def probability(value: float) -> str:
    """Return a probability in percent, with more digits close to 0 and to 1."""
    if math.isnan(value):
        return "not a number"
    return percent(value, 1 if 0.001 <= value <= 0.999 or value in (0, 1) else 4)


def ranges(numbers: Iterable[int], most: int = 8) -> str:
    """Return numbers as "3-5 and 9"; beyond `most` ranges, only the count of the rest."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    parts = [f"{a}" if a == b else f"{a}-{b}" for a, b in runs[:most]]
    if more := sum(b - a + 1 for a, b in runs[most:]):
        parts.append(f"{more} more")
    return listed(parts) if parts else ""


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Return a short form of each name: itself, or eight characters if it is too long.

    The first eight are used if they differ between the names, else the last eight.
    """
    known = list(dict.fromkeys(names))
    for part in (slice(8), slice(-8, None)):
        short = {name: name if len(name) <= 14 else name[part] for name in known}
        if len(set(short.values())) == len(known):
            return short
    return {name: name for name in known}
