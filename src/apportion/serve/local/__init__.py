"""A model served by this machine: llama.cpp in a supervised child process."""

from apportion.serve.local.engine import LocalEngine, LocalEngineError, LocalMissingError

__all__ = ["LocalEngine", "LocalEngineError", "LocalMissingError"]
