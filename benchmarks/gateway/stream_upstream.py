"""A model server that answers every request with a stream of chunks, one each 20 ms, exactly on time.

Each chunk carries, in its text, the moment it was handed to the kernel: `@NANOSECONDS;` on the clock of
`time.monotonic_ns`, which all processes of one machine share. Streams are spread evenly over the 20 ticks of
one millisecond that make up the interval, so that the load is smooth. `GET /stats` tells how many streams are
open. Plain sockets and an epoll loop: the upstream shares
a core with the client, so it must cost little.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import select
import socket
import time

from benchmarks.gateway.payload import CHUNK_BYTES, TOKENS_PER_S, chunk, usage_chunk
from benchmarks.gateway.timer import Timer

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_TICK_NS = 1_000_000
_SLOTS = 1_000_000_000 // TOKENS_PER_S // _TICK_NS
_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
    b"X-Accel-Buffering: no\r\nTransfer-Encoding: chunked\r\n\r\n"
)
_MODELS: dict[str, object] = {
    "object": "list",
    "data": [{"id": "bench-model", "object": "model", "owned_by": "bench"}],
}


def framed(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def timed_chunk() -> tuple[bytes, bytes]:
    """What stands before and after the twenty digits of the time in a chunk of CHUNK_BYTES bytes."""
    marker = "@" + "0" * 20 + ";"
    bare = chunk({"content": marker})
    padded = framed(chunk({"content": marker + " " * max(0, CHUNK_BYTES - len(bare))}))
    before, _, after = padded.partition(b"0" * 20)
    return before, after


class Stream:
    """One connection that is being answered."""

    __slots__ = ("asked_usage", "left", "slot", "socket", "tokens")

    def __init__(self, connection: socket.socket, tokens: int, asked_usage: bool, slot: int) -> None:
        self.socket = connection
        self.tokens = self.left = tokens
        self.asked_usage = asked_usage
        self.slot = slot


class Server:
    """All connections and streams of the process."""

    def __init__(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", port), backlog=4096)
        self._listener.setblocking(False)
        self._epoll = select.epoll()
        self._timer = Timer()
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        self._epoll.register(self._timer.fd, select.EPOLLIN)
        self._connections: dict[int, socket.socket] = {}
        self._unread: dict[int, bytes] = {}
        self._streams: dict[int, Stream] = {}
        self._slots: list[dict[int, Stream]] = [{} for _ in range(_SLOTS)]

    def run(self) -> None:
        """Serve until the process is ended."""
        before, after = timed_chunk()
        now_ns = time.monotonic_ns
        tick = 0
        next_ns = now_ns() + _TICK_NS
        self._timer.arm(next_ns)
        while True:
            for fd, _ in self._epoll.poll():
                if fd == self._timer.fd:
                    self._timer.clear()
                elif fd == self._listener.fileno():
                    self._accept()
                else:
                    self._read(fd)
            while next_ns <= now_ns():
                streams = self._slots[tick % _SLOTS]
                for fd, stream in list(streams.items()):
                    try:
                        stream.socket.send(b"%s%020d%s" % (before, now_ns(), after))
                    except (BlockingIOError, ConnectionError):
                        self._close(fd)
                        continue
                    stream.left -= 1
                    if not stream.left:
                        self._finish(fd, stream)
                tick += 1
                next_ns += _TICK_NS
            self._timer.arm(next_ns)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections[connection.fileno()] = connection
            self._epoll.register(connection.fileno(), select.EPOLLIN)

    def _read(self, fd: int) -> None:
        connection = self._connections.get(fd)
        if connection is None:
            return
        try:
            data = connection.recv(65536)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            self._close(fd)
            return
        data = self._unread.pop(fd, b"") + data
        head_end = data.find(b"\r\n\r\n")
        length = _LENGTH.search(data, 0, max(head_end, 0))
        whole = head_end + 4 + (int(length[1]) if length else 0)
        if head_end < 0 or len(data) < whole:
            self._unread[fd] = data
            return
        if data.startswith(b"POST"):
            self._begin(fd, connection, json.loads(data[head_end + 4 : whole]))
        elif data.startswith(b"GET /stats"):
            self._answer(connection, {"open_streams": len(self._streams)})
        else:
            self._answer(connection, _MODELS)

    def _begin(self, fd: int, connection: socket.socket, asked: dict[str, object]) -> None:
        slot = min(range(_SLOTS), key=lambda number: len(self._slots[number]))
        options = asked.get("stream_options")
        asked_usage = isinstance(options, dict) and bool(options.get("include_usage"))
        stream = Stream(connection, int(str(asked.get("max_tokens", 16))), asked_usage, slot)
        connection.send(_HEAD + framed(chunk({"role": "assistant", "content": ""})))
        self._streams[fd] = self._slots[slot][fd] = stream

    def _finish(self, fd: int, stream: Stream) -> None:
        end = framed(chunk({}, "stop"))
        if stream.asked_usage:
            end += framed(usage_chunk(70, stream.tokens))
        stream.socket.send(end + framed(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        self._forget(fd)

    def _forget(self, fd: int) -> None:
        stream = self._streams.pop(fd, None)
        if stream:
            self._slots[stream.slot].pop(fd, None)

    def _close(self, fd: int) -> None:
        self._forget(fd)
        self._unread.pop(fd, None)
        connection = self._connections.pop(fd, None)
        if connection:
            self._epoll.unregister(fd)
            connection.close()

    @staticmethod
    def _answer(connection: socket.socket, value: dict[str, object]) -> None:
        body = json.dumps(value).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.send(head.encode() + body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    server = Server(parser.parse_args().port)
    gc.disable()
    server.run()


if __name__ == "__main__":
    main()
