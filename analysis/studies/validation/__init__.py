"""Fixes validated step by step: the cache alone, then ever more concurrent requests.

Names are loaded when first used, so that results can be read without what climbs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.studies.validation.climb import Settings, validate
    from analysis.studies.validation.result import (
        LEVELS,
        Found,
        Isolated,
        Ladder,
        LadderError,
        Rung,
        overview,
    )
    from analysis.studies.validation.words import (
        answer_in_a_sentence,
        in_a_sentence,
        in_words,
        rung_in_words,
    )

__all__ = [
    "LEVELS",
    "Found",
    "Isolated",
    "Ladder",
    "LadderError",
    "Rung",
    "Settings",
    "answer_in_a_sentence",
    "in_a_sentence",
    "in_words",
    "overview",
    "rung_in_words",
    "validate",
]

_HOMES = {
    "Settings": "climb",
    "validate": "climb",
    "answer_in_a_sentence": "words",
    "in_a_sentence": "words",
    "in_words": "words",
    "rung_in_words": "words",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'result')}"), name)


def __dir__() -> list[str]:
    return __all__
