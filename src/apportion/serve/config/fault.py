"""One thing wrong between the parts of a configuration."""

from __future__ import annotations

from typing import NamedTuple

from apportion.serve.config.document import Path


class Fault(NamedTuple):
    """One thing wrong, before the reader adds the file and the line."""

    path: Path
    message: str
    fix: str | None = None
