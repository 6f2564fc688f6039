"""Requests that the proxy makes to itself, through its own flow: decided, booked and limited like any other."""

from __future__ import annotations

import re
import time
from typing import Final

from apportion.serve.http.server import Request, Responder

_MOST_BYTES: Final = 4 * 2**20
_DECISION: Final = re.compile(rb"x-apportion-decision-id: (\S+)")


class Inside(Responder):
    """Where the answer to such a request is written: into memory. Of a longer one the rest is thrown away."""

    __slots__ = ("_parts", "_size", "cut", "decision_id", "status")

    def __init__(self) -> None:
        self.started = False
        self.on_gone = self.on_pause = self.on_drain = None
        self.status = 0
        """0 until there is one."""
        self.decision_id: str | None = None
        """The decision that the answer came of, once there is one."""
        self.cut = False
        """Whether it was aborted or too long."""
        self._parts: list[bytes] = []
        self._size = 0

    @property
    def body(self) -> bytes:
        """What was written."""
        return b"".join(self._parts)

    def send(self, status: int, headers: bytes, body: bytes) -> None:
        self.start(status, headers, body)

    def start(self, status: int, headers: bytes, first: bytes = b"") -> None:
        self.started = True
        self.status = status
        named = _DECISION.search(headers)
        self.decision_id = None if named is None else named[1].decode()
        self.write(first)

    def write(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > _MOST_BYTES:
            self.cut = True
        elif data:
            self._parts.append(data)

    def finish(self, data: bytes = b"") -> None:
        self.write(data)

    def abort(self) -> None:
        self.cut = True

    @property
    def gone(self) -> bool:
        return False

    @property
    def paused(self) -> bool:
        return False


def request(path: str, body: bytes) -> Request:
    """A request of the proxy's own."""
    made = Request(
        "POST", path.encode(), "1.1", {b"content-type": b"application/json", b"host": b"localhost"}, True
    )
    made.body = body
    made.received_s = time.perf_counter()
    return made
