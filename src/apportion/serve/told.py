"""What a worker tells of a request that is over, and how it is written on the pipe to ``apportion.serve.spans``."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

import msgspec

from apportion.measure.usage import Usage
from apportion.serve.config.schema import Api, Log, Otel


class Try(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One attempt, as it is told. Times in nanoseconds since 1970, cost in pico-dollars."""

    endpoint: str
    provider: str
    address: str | None
    port: int | None
    model: str
    began_ns: int
    ended_ns: int
    http_status: int
    failure: str | None
    finish: str | None
    usage: Usage | None
    units: int | None
    server_s: float
    first_chunk_s: float | None


class Told(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One request, as it is told, and where it hangs in the client's trace."""

    traceparent: bytes | None
    tracestate: bytes | None
    began_ns: int
    ended_ns: int
    path: str
    api: Api
    http_status: int | None
    """None: the client went away before it was answered."""
    status: str
    error: str | None
    request_id: str
    decision_id: str
    key: str
    key_tags: dict[str, str]
    model: str
    """The logical name that was asked for."""
    tries: list[Try]
    stream: bool
    choices: int
    max_tokens: int | None
    settings: dict[str, bytes]
    effort: float | None
    priority: int | None
    tags: list[str] | None
    units: int | None
    mark: str
    overhead_s: float | None
    asked: bytes | None = None
    """The request's body, where content is traced and it is not too long."""
    answered: bytes | None = None
    """The answer's body, streams as they were sent, from its beginning."""


class Begin(msgspec.Struct, frozen=True):
    """The first message to the process: how to make spans."""

    otel: Otel
    log: Log
    worker: int


_encode = msgspec.msgpack.Encoder().encode
_decode_told = msgspec.msgpack.Decoder(Told).decode
_decode_begin = msgspec.msgpack.Decoder(Begin).decode


def frame(message: Begin | Told) -> bytes:
    """One message, with its length before it."""
    content = _encode(message)
    return struct.pack(">I", len(content)) + content


def messages(pipe: BinaryIO) -> Iterator[Told]:
    """What comes after the first message, until the pipe ends."""
    while True:
        content = _next(pipe)
        if content is None:
            return
        yield _decode_told(content)


def begin(pipe: BinaryIO) -> Begin | None:
    """The first message; None if the pipe ended before it."""
    content = _next(pipe)
    return None if content is None else _decode_begin(content)


def _next(pipe: BinaryIO) -> bytes | None:
    head = pipe.read(4)
    if len(head) < 4:
        return None
    (size,) = struct.unpack(">I", head)
    content = pipe.read(size)
    return content if len(content) == size else None
