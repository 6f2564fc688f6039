"""Server-sent events: cutting a byte stream into events without holding one back.

https://html.spec.whatwg.org/multipage/server-sent-events.html, section 9.2.6: an event ends at a blank line;
lines end with LF, CRLF or CR; lines that begin with a colon are comments.
"""

from __future__ import annotations

from typing import Final

_BOM: Final = b"\xef\xbb\xbf"
MAX_EVENT_BYTES: Final = 16 * 2**20
"""Largest single event; a longer one is refused instead of filling memory."""


class EventTooLarge(Exception):
    """One event is larger than ``MAX_EVENT_BYTES``."""


class Splitter:
    """Cuts bytes into events. ``feed`` returns the complete ones, each with its closing blank line."""

    __slots__ = ("_begun", "_carriage", "_tail")

    def __init__(self) -> None:
        self._tail = bytearray()
        self._carriage = False
        self._begun = False

    def feed(self, data: bytes) -> list[bytes]:
        """Complete events in ``data``, line ends normalised to LF, a byte order mark at the beginning left out."""
        if not self._begun:
            data = self._begin(data)
        if data and (b"\r" in data or self._carriage):
            data = self._normalise(data)
        tail = self._tail
        start = 0
        if tail:
            # Only the seam and what is new are searched, and a long event is put together once, at its end.
            seam = data.startswith(b"\n") and tail.endswith(b"\n")
            if not seam and b"\n\n" not in data:
                return self._wait(data)
            start = len(tail) - 1
            tail += data
            data = bytes(tail)
            tail.clear()
        end = data.find(b"\n\n", start)
        if end < 0:
            return self._wait(data)
        if end + 2 == len(data):
            return [data]
        events = []
        begin = 0
        while end >= 0:
            events.append(data[begin : end + 2])
            begin = end + 2
            end = data.find(b"\n\n", begin)
        tail += data[begin:]
        return events

    def _wait(self, data: bytes) -> list[bytes]:
        if len(self._tail) + len(data) > MAX_EVENT_BYTES:
            raise EventTooLarge
        self._tail += data
        return []

    def _begin(self, data: bytes) -> bytes:
        data = bytes(self._tail) + data
        self._tail.clear()
        if data and _BOM.startswith(data[:3]) and len(data) < 3:
            self._tail += data
            return b""
        self._begun = bool(data)
        return data.removeprefix(_BOM)

    def rest(self) -> bytes:
        """What is left when the stream has ended: a last event without its blank line, or nothing."""
        tail = bytes(self._tail)
        self._tail.clear()
        return tail.rstrip(b"\n") + b"\n\n" if tail.strip() else b""

    def _normalise(self, data: bytes) -> bytes:
        # A CR ends a line at once; an LF that follows it, perhaps in the next piece, ends nothing more.
        if self._carriage and data.startswith(b"\n"):
            data = data[1:]
        self._carriage = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def parse(event: bytes) -> tuple[bytes | None, bytes | None]:
    """(event name, data) of one event with LF line ends; data None if it has none (a comment, say)."""
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2:
        return None, event[6:-2]
    name: bytes | None = None
    data: list[bytes] = []
    for line in event.split(b"\n"):
        field, colon, value = line.partition(b":")
        if not field:
            continue
        if colon and value.startswith(b" "):
            value = value[1:]
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
        elif field not in (b"id", b"retry") and not colon:
            # A line without a colon that is no field of the format: half a line, or no event stream at all.
            data.append(line)
    if not data:
        return name, None
    return name, b"\n".join(data)
