"""The proxy's log, on standard error: for people, or one JSON object a line. No content, no secret.

What fails at every request is told at every request, in one line; its traceback the first time, the second, the
fourth, the eighth and so on.
"""

from __future__ import annotations

import logging
import time
from types import TracebackType
from typing import Final

import msgspec

from apportion.serve.config.schema import Log

_FAULTS: Final = 1000
"""Faults that are told apart; with more of them, counting begins anew."""


class _JSONLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(entry).decode()


class _Known(logging.Filter):
    """Takes the traceback from a fault that is known: logged in the same place, raised in the same place."""

    def __init__(self) -> None:
        super().__init__()
        self._times: dict[tuple[object, ...], int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Every record passes."""
        if not isinstance(record.exc_info, tuple) or record.exc_info[0] is None:
            return True
        kind, error, traceback = record.exc_info
        fault = (record.pathname, record.lineno, kind, *_raised(traceback))
        times = self._times.get(fault, 0) + 1
        if times == 1 and len(self._times) >= _FAULTS:
            self._times.clear()
        self._times[fault] = times
        if times.bit_count() > 1:
            record.msg = f"{record.getMessage()} ({kind.__name__}: {error}; time {times}, as before)"
            record.args = ()
            record.exc_info = record.exc_text = None
        return True


def _raised(traceback: TracebackType | None) -> tuple[str, int]:
    """The file and the line where it was raised."""
    if traceback is None:
        return "", 0
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback.tb_frame.f_code.co_filename, traceback.tb_lineno


def configure(log: Log) -> None:
    """Send what the proxy logs to standard error, as ``log`` says."""
    handler = logging.StreamHandler()
    if log.format == "json":
        handler.setFormatter(_JSONLines())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    handler.addFilter(_Known())
    root = logging.getLogger("apportion")
    root.handlers[:] = [handler]
    root.setLevel(log.level.upper())
    root.propagate = False
