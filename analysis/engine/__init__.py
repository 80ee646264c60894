"""The real shortfin engine in this process: start it, send requests, snapshot its cache."""

from analysis.engine.completion import Completion, EngineDeath
from analysis.engine.engine import Engine
from analysis.shortfin.config import EngineConfig

__all__ = ["Completion", "Engine", "EngineConfig", "EngineDeath"]
