"""What the upstream has billed: one line a request in an append-only file that outlives whoever wrote it."""

from __future__ import annotations

import os
from pathlib import Path


class Meter:
    """Appended to by many processes at once; a line is written whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def bill(self, reservation: str, tokens: int) -> None:
        os.write(self._file, f"{reservation} {tokens}\n".encode())

    def billed(self) -> dict[str, int]:
        """Tokens by reservation. One that was billed twice is a fault of the worker."""
        found: dict[str, int] = {}
        for line in self.path.read_text().splitlines():
            reservation, tokens = line.split()
            assert reservation not in found, f"{reservation} was asked of the upstream twice"
            found[reservation] = int(tokens)
        return found

    def close(self) -> None:
        os.close(self._file)
