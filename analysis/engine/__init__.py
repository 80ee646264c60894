"""The real shortfin engine, started in this process, asked, watched over and stopped."""

from analysis.engine.engine import Engine
from analysis.shortfin.config import Completion, EngineConfig, EngineDeath

__all__ = ["Completion", "Engine", "EngineConfig", "EngineDeath"]
