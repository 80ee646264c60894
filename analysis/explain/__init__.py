"""Why a request failed, in one call: `explain(run, request_id)`."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from analysis.explain.explanation import Explanation, explain

__all__ = ["Explanation", "explain"]


class _Room(ModuleType):
    """Lets `from analysis import explain` be called, whoever imported this room before."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        return explain(*args, **options)


sys.modules[__name__].__class__ = _Room
