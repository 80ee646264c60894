"""Frames of the engine's code, stored as code objects and formatted on demand."""

from __future__ import annotations

import functools
import re
import sys
import threading
from collections.abc import Sequence
from types import CodeType, FrameType
from typing import Any

from analysis.core.wording import short_file

_SHOWN_FRAMES = 12
_ENGINE = re.compile(r"(?<!/analysis)/_?shortfin\w*/")


def current_stack() -> tuple[tuple[CodeType, int], ...]:
    """Return the engine's frames, innermost first; `stack_in_words` formats them."""
    frames = []
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        if _is_engines(code):
            # Finding the line is slow, so it is done on demand.
            frames.append((code, frame.f_lasti))
        frame = frame.f_back
    return tuple(frames)


def is_of_engine(file: str) -> bool:
    """Return True for a file of shortfin's packages, False for one of `analysis/shortfin/`."""
    return _ENGINE.search(file) is not None


@functools.cache
def _is_engines(code: CodeType) -> bool:
    return is_of_engine(code.co_filename)


def stack_in_words(frames: Sequence[tuple[CodeType, int]] | str | None) -> str | None:
    """Return frames of the engine as text, one a line, innermost last."""
    if frames is None or isinstance(frames, str):
        return frames
    return "\n".join(_frame(code, _line(code, at)) for code, at in reversed(frames))


@functools.cache
def _line(code: CodeType, at: int) -> int | None:
    """Return the line of an instruction."""
    lines = (line for first, last, line in code.co_lines() if first <= at < last)
    return next(lines, code.co_firstlineno)


def _frame(code: CodeType, line: int | None) -> str:
    return f"{short_file(code.co_filename)}:{line} in {code.co_qualname}"


def all_threads() -> list[dict[str, Any]]:
    """Return the frames of every thread of the process, innermost first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    found: list[dict[str, Any]] = []
    for ident, top in list(sys._current_frames().items()):
        lines: list[str] = []
        frame: FrameType | None = top
        while frame is not None and len(lines) < _SHOWN_FRAMES:
            lines.append(_frame(frame.f_code, frame.f_lineno))
            frame = frame.f_back
        found.append({"thread": f"{names.get(ident, 'thread')} {ident}", "frames": lines})
    return found
