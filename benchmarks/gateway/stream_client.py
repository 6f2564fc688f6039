"""Many concurrent streams, and how long each chunk was on its way.

Reads the time each chunk was sent from its text (see `stream_upstream`) and compares it with the time it was
received. Streams start evenly spread over a ramp; after a pause in which all run, a window is counted. A
random sample of the streams is timed, woken by every chunk; the others are read ten times a second, a few
each millisecond, and their chunks only counted: the client shares its core with the upstream, and reading
everything at once would make these two the limit before the gateway. Run as a module; prints one JSON object.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import re
import select
import socket
import sys
import time
from array import array
from collections import deque

from benchmarks.gateway.openloop import percentiles
from benchmarks.gateway.payload import TOKENS_PER_S, http_request, stream_body
from benchmarks.gateway.timer import Timer

_STAMP = re.compile(rb"@(\d{20});")
_SETTLE_NS = 500_000_000
_TICK_NS = 1_000_000
_TICKS_PER_ROUND = 100
_READ_BYTES = 4096


class Client:
    """The connections of one measurement."""

    def __init__(self, port: int, streams: int, timed: int) -> None:
        self._port = port
        self._timed = set(random.Random(1).sample(range(streams), min(timed, streams)))
        self._epoll = select.epoll()
        self._timer = Timer()
        self._epoll.register(self._timer.fd, select.EPOLLIN)
        self._sockets: dict[int, socket.socket] = {}
        self._timed_fds: set[int] = set()
        self._counted_only: deque[int] = deque()
        self._started: set[int] = set()
        self._rest: dict[int, bytes] = {}
        self._window_ns = (0, 0)
        self.streams = streams
        self.lags_ms = array("d")
        self.chunks = 0
        self.failed = 0
        self.first_failure = ""

    def run(self, ramp_s: float, window_s: float) -> None:
        """Open the streams, count the window, close everything."""
        tokens = int((ramp_s + _SETTLE_NS / 1e9 + window_s + 2.0) * TOKENS_PER_S)
        request = http_request(stream_body(tokens), self._port)
        now_ns = time.monotonic_ns
        begin_ns = now_ns()
        gap_ns = int(ramp_s * 1e9 / self.streams)
        from_ns = begin_ns + int(ramp_s * 1e9) + _SETTLE_NS
        to_ns = from_ns + int(window_s * 1e9)
        self._window_ns = (from_ns, to_ns)
        opened = 0
        tick_ns = begin_ns
        self._timer.arm(tick_ns)
        while now_ns() < to_ns:
            for fd, _ in self._epoll.poll():
                if fd != self._timer.fd:
                    self._read(fd)
                    continue
                self._timer.clear()
                # After a delay the ticks missed are skipped: one catching up would delay the timed streams.
                tick_ns = max(tick_ns + _TICK_NS, now_ns())
                self._timer.arm(tick_ns)
                for _ in range(len(self._counted_only) // _TICKS_PER_ROUND + 1):
                    if self._counted_only:
                        fd = self._counted_only.popleft()
                        if self._read(fd):
                            self._counted_only.append(fd)
                while opened < self.streams and begin_ns + opened * gap_ns <= now_ns():
                    self._open(request, opened)
                    opened += 1
        for fd in list(self._counted_only):
            self._read(fd)
        for connection in self._sockets.values():
            connection.close()
        self.failed += self.streams - len(self._started)

    def _open(self, request: bytes, number: int) -> None:
        connection = socket.create_connection(("127.0.0.1", self._port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.send(request)
        connection.setblocking(False)
        fd = connection.fileno()
        self._sockets[fd] = connection
        if number in self._timed:
            self._epoll.register(fd, select.EPOLLIN)
            self._timed_fds.add(fd)
        else:
            self._counted_only.append(fd)

    def _read(self, fd: int) -> bool:
        """Take what has arrived; False when the stream has ended or failed and is closed."""
        try:
            data = self._sockets[fd].recv(_READ_BYTES)
        except BlockingIOError:
            return True
        except ConnectionError:
            data = b""
        received_ns = time.monotonic_ns()
        refused = fd not in self._started and not data.startswith(b"HTTP/1.1 200")
        self._started.add(fd)
        if refused or not data:
            self.failed += 1
            self.first_failure = self.first_failure or data[:400].decode(errors="replace") or "cut off"
            self._sockets.pop(fd).close()
            return False
        if fd in self._rest:
            data = self._rest.pop(fd) + data
        if not data.endswith(b"\n"):
            whole = data.rfind(b"\n") + 1
            self._rest[fd] = data[whole:]
            data = data[:whole]
        from_ns, to_ns = self._window_ns
        for stamp in _STAMP.findall(data):
            sent_ns = int(stamp)
            if from_ns <= sent_ns < to_ns:
                self.chunks += 1
                if fd in self._timed_fds:
                    self.lags_ms.append((received_ns - sent_ns) / 1e6)
        return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--ramp", type=float, default=1.0, help="seconds over which the streams start")
    parser.add_argument("--window", type=float, default=4.0, help="seconds that are counted")
    parser.add_argument(
        "--timed", type=int, default=250, help="streams that are timed; the others are counted"
    )
    arguments = parser.parse_args()
    gc.disable()
    client = Client(arguments.port, arguments.streams, arguments.timed)
    client.run(arguments.ramp, arguments.window)
    due = arguments.streams * TOKENS_PER_S * arguments.window
    result = {
        "streams": arguments.streams,
        "chunks": client.chunks,
        "delivered_share": client.chunks / due,
        "failed": client.failed,
        "first_failure": client.first_failure,
        **{f"lag_{name}_ms": value for name, value in percentiles(client.lags_ms).items()},
    }
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
