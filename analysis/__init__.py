"""cachelab: why an LLM engine's paged KV cache goes wrong under concurrent requests.

`Engine` needs shortfin and IREE; `load_run`, statistics and figures do not, so nothing is imported
before it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.engine import Engine, EngineConfig
    from analysis.explain import explain
    from analysis.observe import observe
    from analysis.sanitize import sanitize
    from analysis.store import load_run
    from analysis.treat import treat

__version__ = "0.1.0"
__all__ = ["Engine", "EngineConfig", "explain", "load_run", "observe", "sanitize", "treat"]

_HOMES = {
    "Engine": "analysis.engine",
    "EngineConfig": "analysis.engine",
    "load_run": "analysis.store",
}
_ROOMS = ("explain", "observe", "sanitize", "treat")
"""Rooms that can be called by their own name, for that is what each of them is for."""


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
