"""Recorded answers: which line answers, how streams are paced, what is recorded, what a file may not hold."""

from __future__ import annotations

import asyncio
import http.client
import json
import math
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apportion.core.errors import ParameterError
from apportion.serve.replay import (
    CutError,
    Exchange,
    Recorder,
    Replay,
    ReplayError,
    ReplayServer,
    Reply,
    load,
    request_hash,
)

CHAT = "/v1/chat/completions"


def exchange(**fields: object) -> Exchange:
    return msgspec.convert(fields, Exchange)


def ask(model: str = "m", question: str = "hi", **more: object) -> bytes:
    return json.dumps({"model": model, "messages": [{"role": "user", "content": question}], **more}).encode()


async def body_of(reply: Reply) -> bytes:
    if isinstance(reply.body, bytes):
        return reply.body
    return b"".join([piece async for piece in reply.body])


async def answer(replay: Replay, body: bytes, path: str = CHAT, method: str = "POST") -> bytes:
    return await body_of(await replay.respond(method, path, {}, body))


def test_request_hash_ignores_key_order_volatile_fields_and_the_version_prefix() -> None:
    one = request_hash("POST", CHAT, {"model": "m", "temperature": 1, "user": "a"})
    assert one == request_hash("post", "/chat/completions", {"temperature": 1, "model": "m", "metadata": {}})
    assert one != request_hash("POST", CHAT, {"model": "m", "temperature": 2})
    assert one != request_hash("POST", "/v1/completions", {"model": "m", "temperature": 1})


async def test_the_same_request_beats_the_model_which_beats_another_question_which_beats_any() -> None:
    asked = {"path": CHAT, "body": json.loads(ask())}
    replay = Replay(
        [
            exchange(request={}, body="any"),
            exchange(request={"model": "m"}, body="model"),
            exchange(request=asked, body="same"),
            exchange(request={"path": CHAT, "body": json.loads(ask("other", "why"))}, body="question"),
        ]
    )
    assert await answer(replay, ask(user="whoever")) == b"same"
    assert await answer(replay, ask(question="else")) == b"model"
    assert await answer(replay, ask("other", "else")) == b"question"
    assert await answer(replay, ask("other", "else", stream=True)) == b"any"
    assert await answer(replay, ask("third")) == b"any"
    assert await answer(replay, b"not json") == b"any"


async def test_lines_take_turns_and_start_over() -> None:
    replay = Replay([exchange(request={"model": "m"}, body=str(number)) for number in range(3)])
    assert [await answer(replay, ask()) for _ in range(7)] == [b"0", b"1", b"2", b"0", b"1", b"2", b"0"]


async def test_a_line_that_says_more_goes_first_and_does_not_answer_what_it_excludes() -> None:
    replay = Replay(
        [
            exchange(request={"model": "m"}, body="plain"),
            exchange(request={"model": "m", "stream": True}, body="streamed"),
            exchange(request={"model": "m", "path": "/v1/embeddings"}, body="embedded"),
        ]
    )
    assert await answer(replay, ask(stream=True)) == b"streamed"
    assert await answer(replay, ask()) == b"plain"
    assert await answer(replay, ask(), "/embeddings") == b"embedded"


async def test_a_recorded_hash_stands_for_a_body_that_was_not_kept() -> None:
    digest = request_hash("POST", CHAT, json.loads(ask()))
    replay = Replay([exchange(request={"sha256": digest}, body={"a": 1})])
    assert await answer(replay, ask()) == b'{"a":1}'


async def test_an_unrecorded_request_is_told_what_there_is() -> None:
    replay = Replay([exchange(request={"model": "m"}, body="x")])
    reply = await replay.respond("POST", CHAT, {}, ask("nobody"))
    assert reply.status == 404
    error = json.loads(await body_of(reply))["error"]
    assert error["code"] == "replay_no_match"
    assert "Recorded models: m." in error["message"]


async def test_health_and_models_are_answered_from_the_recording() -> None:
    replay = Replay([exchange(request={"model": "b"}), exchange(request={"body": json.loads(ask("a"))})])
    assert await answer(replay, b"", "/health", "GET") == b'{"status":"ok"}'
    data = json.loads(await answer(replay, b"", "/v1/models", "GET"))["data"]
    assert [model["id"] for model in data] == ["a", "b"]


@pytest.mark.parametrize(
    ("speed", "waits"), [(1.0, [0.5, 0.2, 0.1]), (2.0, [0.25, 0.1, 0.05]), (math.inf, [])]
)
async def test_streams_are_paced_by_the_recorded_gaps(speed: float, waits: list[float]) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    events = [
        {"after_s": 0.2, "data": {"x": "é"}},
        {"event": "done", "data": "[DONE]"},
        {"after_s": 0.1, "raw": ": ping\n\n"},
    ]
    replay = Replay([exchange(request={}, after_s=0.5, events=events)], speed=speed, sleep=sleep)
    reply = await replay.respond("POST", CHAT, {}, ask(stream=True))
    assert reply.headers["content-type"] == "text/event-stream"
    expected = 'data: {"x":"é"}\n\nevent: done\ndata: [DONE]\n\n: ping\n\n'
    assert await body_of(reply) == expected.encode()
    assert slept == waits


async def test_a_cut_stream_does_not_end_cleanly() -> None:
    replay = Replay([exchange(request={}, events=[{"data": 1}], end="cut")])
    reply = await replay.respond("POST", CHAT, {}, ask())
    assert not isinstance(reply.body, bytes)
    assert await anext(reply.body) == b"data: 1\n\n"
    with pytest.raises(CutError):
        await anext(reply.body)


@pytest.mark.parametrize("speed", [0.0, -1.0, math.nan])
def test_speed_must_be_positive(speed: float) -> None:
    with pytest.raises(ParameterError, match="above 0"):
        Replay([], speed=speed)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "truncated"),
        ("[]", "Expected `object`"),
        ('{"status": 200}', "missing required field `request`"),
        ('{"request": {}, "status": 99}', ">= 100"),
        ('{"request": {}, "statsu": 200}', "unknown field `statsu`"),
        ('{"request": {}, "after_s": -1}', ">= 0"),
        ('{"request": {}, "body": 1, "events": []}', "more than one of body"),
        ('{"request": {}, "events": [{"after_s": 1}]}', "exactly one of data"),
        ('{"request": {}, "events": [{"data": 1, "raw": "x"}]}', "exactly one of data"),
        ('{"request": {}, "body_base64": "*"}', "is not base64"),
        ('{"request": {}, "headers": {"a": "b\\r\\nc: d"}}', "no header may have"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(tmp_path: Path, line: str, why: str) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text('{"request": {}}\n\n' + line + "\n")
    with pytest.raises(ReplayError, match=why) as caught:
        load(file)
    assert f"{file}:3" in str(caught.value)


def test_files_that_are_missing_or_too_large_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ReplayError, match="cannot be read"):
        load(tmp_path / "none.jsonl")
    file = tmp_path / "answers.jsonl"
    file.write_text('{"request": {}}\n' * 100)
    with pytest.raises(ReplayError, match="larger than"):
        load(file, bytes_max=1000)
    assert len(load(file)) == 100


async def replayed(file: Path, body: bytes = b"{}", path: str = CHAT) -> tuple[Reply, bytes]:
    reply = await Replay(load(file), speed=math.inf).respond("POST", path, {}, body)
    return reply, await body_of(reply)


@given(
    chunks=st.lists(
        st.one_of(
            st.binary(max_size=12),
            st.sampled_from(
                [
                    b'data: {"a":1}\n\n',
                    b"data: [DONE]\n\n",
                    b"event: x\ndata: {}\n\n",
                    b": p\n\n",
                    b"data: 1\r\n\r\n",
                ]
            ),
        ),
        max_size=6,
    ),
    streamed=st.booleans(),
)
async def test_what_was_recorded_is_replayed_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[bytes], streamed: bool
) -> None:
    file = tmp_path_factory.mktemp("replay") / "answers.jsonl"
    recorder = Recorder(file)
    kind = "text/event-stream; charset=utf-8" if streamed else "application/json"
    recorder.record("POST", CHAT, ask(), 201, {"Content-Type": kind}, [(0.25, chunk) for chunk in chunks])
    recorder.close()
    reply, body = await replayed(file, ask())
    assert (reply.status, reply.headers["content-type"]) == (201, kind)
    assert body == b"".join(chunks)


def test_recordings_are_readable_and_hold_no_secret(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    recorder = Recorder(file)
    headers = {
        "content-type": "text/event-stream",
        "set-cookie": "secret",
        "authorization": "secret",
        "Retry-After": "1",
    }
    chunks = [(0.5, b'data: {"a"'), (0.25, b':1}\n\nevent: e\ndata: {"b":2}\n\n'), (1.0, b"data: [DONE]\n\n")]
    assert recorder.record("POST", CHAT, ask(), 200, headers, chunks, after_s=0.125, cut=True)
    recorder.close()
    line = json.loads(file.read_text())
    assert line["events"] == [
        {"after_s": 0.75, "data": {"a": 1}},
        {"event": "e", "data": {"b": 2}},
        {"after_s": 1.0, "data": "[DONE]"},
    ]
    assert (line["after_s"], line["end"], line["request"]["model"]) == (0.125, "cut", "m")
    assert "secret" not in file.read_text()
    assert line["headers"]["retry-after"] == "1"


async def test_bodies_need_not_be_kept(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    recorder = Recorder(file, keep_bodies=False)
    recorder.record("POST", CHAT, ask(question="private"), 200, {}, [(0.0, b"{}")])
    recorder.record("POST", CHAT, ask(question="other"), 200, {}, [(0.0, b"[]")])
    recorder.close()
    assert "private" not in file.read_text()
    assert (await replayed(file, ask(question="other")))[1] == b"[]"


def test_the_recorder_stays_inside_its_bounds(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    recorder = Recorder(file, exchange_bytes_max=1000, file_bytes_max=2000)
    assert not recorder.record("POST", CHAT, b"", 200, {}, [(0.0, b"x" * 1001)])
    kept = [recorder.record("POST", CHAT, b"", 200, {}, [(0.0, b"x" * 800)]) for _ in range(3)]
    recorder.close()
    assert kept == [True, True, False]
    assert recorder.left_out == 2
    assert file.stat().st_size <= 2000


@pytest.fixture
async def server() -> AsyncIterator[ReplayServer]:
    exchanges = [
        exchange(request={"model": "plain"}, status=429, headers={"retry-after": "2"}, body={"ok": True}),
        exchange(request={"model": "stream"}, events=[{"data": {"n": n}} for n in range(3)]),
        exchange(request={"model": "cut"}, events=[{"data": {"n": 0}}], end="cut"),
        exchange(request={"model": "never"}, events=[{"data": 1}, {"after_s": 3600, "data": 2}]),
    ]
    async with ReplayServer(Replay(exchanges)) as running:
        yield running


def connection(server: ReplayServer) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(server.address.removeprefix("http://"), timeout=60)


async def test_the_server_keeps_connections_and_streams_in_chunks(server: ReplayServer) -> None:
    def talk() -> list[tuple[int, str | None, bytes]]:
        seen = []
        client = connection(server)
        for model in ("plain", "stream", "plain"):
            client.request("POST", CHAT, ask(model))
            response = client.getresponse()
            seen.append((response.status, response.getheader("retry-after"), response.read()))
        client.close()
        return seen

    events = b"".join(b'data: {"n":%d}\n\n' % n for n in range(3))
    assert await asyncio.to_thread(talk) == [
        (429, "2", b'{"ok":true}'),
        (200, None, events),
        (429, "2", b'{"ok":true}'),
    ]


async def test_a_cut_reaches_the_client_as_a_cut(server: ReplayServer) -> None:
    def talk() -> bytes:
        client = connection(server)
        client.request("POST", CHAT, ask("cut"))
        response = client.getresponse()
        try:
            response.read()
        except http.client.IncompleteRead as error:
            return error.partial
        finally:
            client.close()
        raise AssertionError("the stream ended cleanly")

    assert await asyncio.to_thread(talk) == b'data: {"n":0}\n\n'


async def test_pipelined_and_chunked_requests_are_read(server: ReplayServer) -> None:
    host, port = server.address.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = ask("plain")
    chunked = b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n"
    path = CHAT.encode()
    writer.write(
        chunked % (path, b"", len(body), body) + chunked % (path, b"Connection: close\r\n", len(body), body)
    )
    said = await asyncio.wait_for(reader.read(), 60)
    writer.close()
    await writer.wait_closed()
    assert said.count(b'{"ok":true}') == 2


async def test_what_is_not_http_is_refused(server: ReplayServer) -> None:
    host, port = server.address.removeprefix("http://").split(":")
    for nonsense in (b"\x16\x03\x01 hello\r\n\r\n", b"GET / HTTP/1.1\r\nA: " + b"x" * 70_000):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(nonsense)
        assert (await asyncio.wait_for(reader.read(), 60)).startswith(b"HTTP/1.1 400 ")
        writer.close()
        await writer.wait_closed()


async def test_stop_drops_running_streams() -> None:
    exchanges = [exchange(request={}, events=[{"data": 1}, {"after_s": 3600, "data": 2}])]
    server = ReplayServer(Replay(exchanges))
    await server.start()
    host, port = server.address.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}" % CHAT.encode())
    await asyncio.wait_for(reader.readuntil(b"data: 1\n\n"), 60)
    await asyncio.wait_for(server.stop(), 60)
    assert b"0\r\n\r\n" not in await asyncio.wait_for(reader.read(), 60)
    writer.close()
    await writer.wait_closed()
