"""Engines in virtual time: continuous batching, iteration by iteration."""

from apportion.simulate.engine.batching import Batching, EngineError
from apportion.simulate.engine.engine import Done, Engine, Moved, Plan, Progress, cold, group

__all__ = ["Batching", "Done", "Engine", "EngineError", "Moved", "Plan", "Progress", "cold", "group"]
