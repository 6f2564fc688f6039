"""A worker and its upstreams in this process: for tests of what is decided, without processes or waiting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec

from apportion.serve.config.pricing import all_prices
from apportion.serve.config.reader import loads
from apportion.serve.http.server import Request, Responder, Server, ServerLimits
from apportion.serve.worker import Worker

Json = dict[str, Any]
Reply = Callable[[Json], "Json | str | Awaitable[Json | str]"]


def chat(text: str, *, model: str = "m", finish: str = "stop", tokens_in: int = 10, **usage: Any) -> Json:
    """A chat completion that says ``text``."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}],
        "usage": {
            "prompt_tokens": tokens_in,
            "completion_tokens": max(1, len(text.split())),
            "total_tokens": tokens_in + max(1, len(text.split())),
            **usage,
        },
    }


class Upstream:
    """An OpenAI-shaped server. ``asked`` are the bodies it got; ``reply`` makes the answer of each."""

    def __init__(self) -> None:
        self.asked: list[Json] = []
        self.at_work = 0
        self.most_at_work = 0
        self.reply: Reply = lambda body: chat(f"by {body['model']}", model=body["model"])
        self.port = 0
        self._server: Server | None = None

    async def start(self) -> None:
        self._server = Server(self._answer, ServerLimits())
        _, self.port = await self._server.listen("127.0.0.1", 0, reuse_port=False)

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.drain(0.1)

    async def _answer(self, request: Request, responder: Responder) -> None:
        body: Json = msgspec.json.decode(request.body)
        self.asked.append(body)
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        try:
            found = self.reply(body)
            answer = await found if isinstance(found, Awaitable) else found
        finally:
            self.at_work -= 1
        if isinstance(answer, str):
            responder.send(500, b"content-type: application/json\r\n", answer.encode())
        elif body.get("stream"):
            responder.start(200, b"content-type: text/event-stream\r\n")
            for event in events(answer):
                responder.write(event)
                await asyncio.sleep(0)
            responder.finish()
        else:
            responder.send(200, b"content-type: application/json\r\n", msgspec.json.encode(answer))

    @property
    def models(self) -> list[str]:
        """The models that were asked for, in order."""
        return [body["model"] for body in self.asked]


def events(answer: Json) -> list[bytes]:
    """A chat completion as a stream, a word at a time."""
    head = {"id": answer["id"], "object": "chat.completion.chunk", "created": 1, "model": answer["model"]}
    choice = answer["choices"][0]
    words = choice["message"]["content"].split(" ")
    deltas: list[Json] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": word if i == 0 else f" {word}"} for i, word in enumerate(words)]
    chunks: list[Json] = [
        {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas
    ]
    chunks.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}]})
    chunks.append({**head, "choices": [], "usage": answer["usage"]})
    return [b"data: %b\n\n" % msgspec.json.encode(chunk) for chunk in chunks] + [b"data: [DONE]\n\n"]


class Proxy:
    """A worker that is asked over HTTP."""

    def __init__(self, worker: Worker, port: int, client: httpx.AsyncClient) -> None:
        self.worker = worker
        self.client = client
        self.url = f"http://127.0.0.1:{port}"

    async def ask(
        self, content: str = "hello", *, model: str = "m", key: str = "sk-user", **fields: Any
    ) -> httpx.Response:
        """One chat completion."""
        messages = fields.pop("messages", [{"role": "user", "content": content}])
        body = {"model": model, "messages": messages, **fields}
        return await self.client.post(f"{self.url}/v1/chat/completions", json=body, headers=auth(key))

    async def get(self, path: str, key: str = "sk-boss") -> httpx.Response:
        return await self.client.get(f"{self.url}{path}", headers=auth(key))

    async def decision(self, answer: httpx.Response) -> Json:
        """How an answer came about."""
        found = await self.get(f"/apportion/decisions/{answer.headers['x-apportion-decision-id']}")
        assert found.status_code == 200, found.text
        return found.json()  # type: ignore[no-any-return]


def auth(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


KEYS = """
ledger: {url: memory}
keys:
  - {name: boss, secret: sk-boss, admin: true}
  - {name: user, secret: sk-user}
  - {name: other, secret: sk-other}
"""


@asynccontextmanager
async def proxy(directory: Path, config: str, upstream: Upstream) -> AsyncIterator[Proxy]:
    """A proxy with ``config``, in which ``UPSTREAM`` stands for the upstream's address."""
    await upstream.start()
    text = KEYS + config.replace("UPSTREAM", f"http://127.0.0.1:{upstream.port}/v1")
    configured = loads(text, "apportion.yaml")
    worker = await Worker.open(configured, all_prices(configured), index=0, workers=1, directory=directory)
    _, port = await worker.start("127.0.0.1", 0, reuse_port=False)
    try:
        async with httpx.AsyncClient(timeout=120.0, trust_env=False) as client:
            yield Proxy(worker, port, client)
    finally:
        await worker.drain(1.0)
        await upstream.stop()
