"""The real shortfin engine, started in this process, asked, watched over and stopped."""

from analysis.engine.config import Completion, EngineConfig, EngineDeath
from analysis.engine.engine import Engine

__all__ = ["Completion", "Engine", "EngineConfig", "EngineDeath"]
