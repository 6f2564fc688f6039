"""A load generator that sends on schedule, whether or not the server keeps up.

Each request has the moment it should be sent; its latency counts from that moment, so that a stall is paid by
every request that should have been sent during it (no coordinated omission). One process, plain sockets, an
epoll loop and a kernel timer. Run as a module; prints one JSON object.
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
from collections.abc import Iterator

from benchmarks.gateway.payload import http_request, request_body
from benchmarks.gateway.timer import Timer

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


def schedule(rate_per_s: float, seconds: float, arrivals: str) -> Iterator[int]:
    """Nanoseconds after the start at which to send, evenly spaced or as a Poisson process (seeded)."""
    if arrivals == "even":
        for number in range(int(rate_per_s * seconds)):
            yield int(number * 1e9 / rate_per_s)
        return
    generator = random.Random(1)
    at_s = generator.expovariate(rate_per_s)
    while at_s < seconds:
        yield int(at_s * 1e9)
        at_s += generator.expovariate(rate_per_s)


def is_whole(answer: bytes) -> bool:
    """Whether an HTTP/1.1 answer with a length, or chunked, has arrived to its end."""
    head_end = answer.find(b"\r\n\r\n")
    if head_end < 0:
        return False
    length = _LENGTH.search(answer, 0, head_end)
    if length:
        return len(answer) >= head_end + 4 + int(length[1])
    return answer.endswith(b"0\r\n\r\n")


class Client:
    """Kept connections to one server, and what was measured over them."""

    def __init__(self, port: int, connections: int) -> None:
        self._request = http_request(request_body(), port)
        self._epoll = select.epoll()
        self._timer = Timer()
        self._epoll.register(self._timer.fd, select.EPOLLIN)
        self._sockets: dict[int, socket.socket] = {}
        for _ in range(connections):
            connection = socket.create_connection(("127.0.0.1", port))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setblocking(False)
            self._sockets[connection.fileno()] = connection
            self._epoll.register(connection.fileno(), select.EPOLLIN)
        self._idle = deque(self._sockets)
        self._waiting: deque[int] = deque()
        self._due_by_fd: dict[int, int] = {}
        self._parts: dict[int, bytes] = {}
        self._counted_from_ns = 0
        self._latencies_us, self._lateness_us = array("d"), array("d")
        self._errors = 0

    def drive(self, moments_ns: list[int], skip_ns: int) -> dict[str, float]:
        """Send at the given moments.

        Returns latency and lateness in microseconds, the rate reached per second, and the number of answers
        that were not 200 or did not come. What was due in the first `skip_ns` nanoseconds is sent but not
        counted.
        """
        now_ns = time.monotonic_ns
        begin_ns = now_ns() + 50_000_000
        self._counted_from_ns = begin_ns + skip_ns
        upcoming = deque(begin_ns + moment_ns for moment_ns in moments_ns)
        give_up_ns = upcoming[-1] + 30_000_000_000
        self._timer.arm(upcoming[0])
        while (upcoming or self._waiting or self._due_by_fd) and now_ns() < give_up_ns:
            for fd, _ in self._epoll.poll(1.0):
                if fd == self._timer.fd:
                    self._timer.clear()
                else:
                    self._receive(fd)
            now = now_ns()
            rang = bool(upcoming) and upcoming[0] <= now
            while upcoming and upcoming[0] <= now:
                self._waiting.append(upcoming.popleft())
            while self._waiting and self._idle:
                self._send(self._idle.popleft(), self._waiting.popleft())
            if rang and upcoming:
                self._timer.arm(upcoming[0])
        seconds = (now_ns() - self._counted_from_ns) / 1e9
        return {
            "requests": len(self._latencies_us),
            "rate_per_s": len(self._latencies_us) / seconds,
            "errors": self._errors + len(self._due_by_fd) + len(self._waiting) + len(upcoming),
            **{f"{name}_us": value for name, value in percentiles(self._latencies_us).items()},
            **{f"late_{name}_us": value for name, value in percentiles(self._lateness_us).items()},
        }

    def _send(self, fd: int, due_ns: int) -> None:
        self._sockets[fd].send(self._request)
        self._due_by_fd[fd] = due_ns
        if due_ns >= self._counted_from_ns:
            self._lateness_us.append((time.monotonic_ns() - due_ns) / 1e3)

    def _receive(self, fd: int) -> None:
        data = self._sockets[fd].recv(16384)
        if not data:
            raise ConnectionError("the server closed a kept connection")
        if fd in self._parts:
            data = self._parts.pop(fd) + data
        if not is_whole(data):
            self._parts[fd] = data
            return
        due_ns = self._due_by_fd.pop(fd)
        self._idle.append(fd)
        self._errors += not data.startswith(b"HTTP/1.1 200")
        if due_ns >= self._counted_from_ns:
            self._latencies_us.append((time.monotonic_ns() - due_ns) / 1e3)


def percentiles(values: array[float]) -> dict[str, float]:
    """p50, p99 and p99.9 by the nearest rank."""
    ordered = sorted(values)
    if not ordered:
        return {"p50": 0.0, "p99": 0.0, "p999": 0.0}
    last = len(ordered) - 1
    return {name: ordered[round(last * q)] for name, q in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True, help="requests a second")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--skip", type=float, default=0.5, help="seconds at the start that are not counted")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--arrivals", choices=("even", "poisson"), default="even")
    arguments = parser.parse_args()
    moments_ns = list(schedule(arguments.rate, arguments.seconds + arguments.skip, arguments.arrivals))
    gc.disable()
    client = Client(arguments.port, arguments.connections)
    json.dump(client.drive(moments_ns, int(arguments.skip * 1e9)), sys.stdout)


if __name__ == "__main__":
    main()
