"""The scripted upstream does what it says, so that the tests built on it mean something."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from .upstream import FAULTS, Upstream, is_timed, new_marker
from .wire import Broken, Response, Wire, ask, request_bytes


@pytest.fixture(scope="module")
def server() -> Iterator[Upstream]:
    server = Upstream().start()
    yield server
    server.stop()


async def post(server: Upstream, path: str, body: dict[str, Any]) -> Response:
    headers = {"content-type": "application/json"}
    return await ask(server.port, "POST", path, headers, json.dumps(body).encode())


def chat(marker: str, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": marker}], **more}


async def test_answers_and_bills(server: Upstream) -> None:
    marker = new_marker()
    plain = await post(server, "/a/v1/chat/completions", chat(marker))
    assert plain.json["choices"][0]["message"]["content"] == "w0 w1 w2 w3 w4 w5 w6 w7"
    streamed = await post(server, "/a/v1/chat/completions", chat(marker, stream=True))
    deltas = [e.json["choices"][0]["delta"].get("content", "") for e in streamed.events[:-1]]
    assert "".join(d for d in deltas if d) == "w0 w1 w2 w3 w4 w5 w6 w7"
    assert streamed.events[-1].data == "[DONE]"
    assert [s.tokens_out for s in server.of(marker)] == [8, 8]
    assert all(s.done for s in server.of(marker))


@pytest.mark.parametrize("path", ["messages", "responses", "completions", "embeddings", "chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
async def test_every_shape(server: Upstream, path: str, stream: bool) -> None:
    text = new_marker()
    stream = stream and path != "embeddings"
    body = {"input": text, "prompt": text, **chat(text), "stream": stream}
    response = await post(server, f"/a/v1/{path}", body)
    assert response.status == 200
    assert response.complete
    assert response.events if body["stream"] else response.json


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("path", ["messages", "chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
async def test_every_fault_can_be_played(server: Upstream, name: str, path: str, stream: bool) -> None:
    fault = FAULTS[name]
    marker = server.script(new_marker(), fault=name, on="all")
    body = json.dumps(chat(marker, stream=stream)).encode()
    endless = is_timed(name)
    async with await Wire.open(server.port) as wire:
        await wire.send(request_bytes("POST", f"/a/v1/{path}", {}, body))
        try:
            async with asyncio.timeout(0.1 if endless else 60):
                response = await wire.read()
        except (Broken, OSError, TimeoutError):
            assert (fault.stream if stream else fault.plain) != "ok"
        else:
            if (fault.stream if stream else fault.plain) == "ok":
                assert response.status == 200
                assert response.complete
    if endless:
        for _ in range(3000):
            if (seen := server.of(marker)) and seen[0].gone_at_s is not None:
                break
            await asyncio.sleep(0.02)
        assert server.of(marker)[0].gone_at_s is not None
    assert len(server.of(marker)) == 1
    assert server.complaints == []


async def test_faults_can_be_limited_to_the_first_endpoint(server: Upstream) -> None:
    marker = server.script(new_marker(), fault="status_500")
    statuses = [(await post(server, f"/{e}/v1/chat/completions", chat(marker))).status for e in "aba"]
    assert statuses == [500, 200, 500]
    marker = server.script(new_marker(), fault="status_500", on="first_attempt")
    statuses = [(await post(server, f"/{e}/v1/chat/completions", chat(marker))).status for e in "aba"]
    assert statuses == [500, 200, 200]
