"""cachelab: why an LLM engine's paged KV cache goes wrong under concurrent requests.

`Engine` needs shortfin and IREE; `load_run`, statistics and figures do not, so nothing is imported
before it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.diagnosis import explain
    from analysis.engine import Engine
    from analysis.recording import observe
    from analysis.runs.store import load_run
    from analysis.sanitizer import sanitize
    from analysis.shortfin.config import EngineConfig
    from analysis.treatments import treat

__version__ = "0.1.0"
__all__ = ["Engine", "EngineConfig", "explain", "load_run", "observe", "sanitize", "treat"]

_HOMES = {
    "Engine": "engine",
    "EngineConfig": "shortfin.config",
    "explain": "diagnosis",
    "load_run": "runs.store",
    "observe": "recording",
    "sanitize": "sanitizer",
    "treat": "treatments",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
