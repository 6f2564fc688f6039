"""Passive health of one endpoint (`core.circuit`), where the proxy looks for it."""

from apportion.core.circuit import BreakerState, Circuit, ServerClock

__all__ = ["BreakerState", "Circuit", "ServerClock"]
