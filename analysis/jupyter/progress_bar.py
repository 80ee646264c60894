"""The progress bar of a sweep in a notebook, in place of tqdm's on a terminal."""

from __future__ import annotations

from html import escape
from typing import Any

from IPython.display import HTML, display

_LINES = 5


class ProgressBar:
    """A bar below the cell, with the methods of tqdm that a sweep uses."""

    def __init__(self, total: int) -> None:
        self.total, self._done, self._now = total, 0, ""
        self._lines: list[str] = []
        self._view: Any = display(HTML(self.markup), display_id=True)  # type: ignore[no-untyped-call]

    @property
    def markup(self) -> str:
        """The bar, what runs now, and the last lines, as HTML."""
        lines = "".join(f"<div>{escape(line)}</div>" for line in self._lines[-_LINES:])
        return (
            f'<div style="font-size:90%"><progress max="{self.total}" value="{self._done}"'
            f' aria-label="Trials that have ended"></progress> {self._done} of {self.total} trials'
            f" <small>{escape(self._now)}</small>{lines}</div>"
        )

    def update(self, count: int) -> None:
        """Count ended trials."""
        self._done += count
        self._show()

    def set_postfix_str(self, words: str) -> None:
        """Show what runs now."""
        self._now = words
        self._show()

    def write(self, words: str, file: object = None) -> None:
        """Show a line below the bar."""
        self._lines.append(words)
        self._show()

    def close(self) -> None:
        """Show the end."""
        self.set_postfix_str("")

    def _show(self) -> None:
        if self._view is not None:  # there is none outside of a shell
            self._view.update(HTML(self.markup))  # type: ignore[no-untyped-call]
