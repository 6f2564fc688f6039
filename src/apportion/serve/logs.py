"""The proxy's log, on standard error: for people, or one JSON object a line. No content, no secret."""

from __future__ import annotations

import logging
import time

import msgspec

from apportion.serve.config.schema import Log


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


def configure(log: Log) -> None:
    """Send what the proxy logs to standard error, as ``log`` says."""
    handler = logging.StreamHandler()
    if log.format == "json":
        handler.setFormatter(_JSONLines())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    root = logging.getLogger("apportion")
    root.handlers[:] = [handler]
    root.setLevel(log.level.upper())
    root.propagate = False
