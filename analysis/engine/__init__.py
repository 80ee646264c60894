"""Runs the real shortfin engine in this process: start, send requests, snapshot the cache."""

from analysis.engine.completion import Completion, EngineDeath
from analysis.engine.engine import Engine
from analysis.shortfin.config import EngineConfig

__all__ = ["Completion", "Engine", "EngineConfig", "EngineDeath"]
