"""A proxy in this process in front of two llama.cpp servers of the same model, and a client that cuts and moves."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import httpx

from apportion.serve.config.pricing import all_prices
from apportion.serve.config.reader import loads
from apportion.serve.local import LocalEngine
from apportion.serve.worker import Address, Worker

WEIGHTS = "smollm2-135m-instruct"
CONFIG = f"""
ledger: {{url: memory}}
keys:
  - {{name: boss, secret: sk-boss, admin: true}}
endpoints:
  a: {{kind: local, weights: {WEIGHTS}, breaker: {{failures: 1000}}}}
  b: {{kind: local, weights: {WEIGHTS}, breaker: {{failures: 1000}}}}
models:
  m: {{endpoints: [a, b], retries: {{resume: true}}}}
"""
KEY = {"authorization": "Bearer sk-boss"}

How = Literal["whole", "broken", "drained"]


class Heard(NamedTuple):
    """What a client got: pieces with the times they came at (``perf_counter``), the end of the stream, who served."""

    pieces: list[str]
    at_s: list[float]
    finish: str | None
    usage: dict[str, Any]
    ended: bool
    by: list[str]
    id: str
    """Of the decision."""

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.pieces)

    @property
    def gaps_s(self) -> list[float]:
        """The times between pieces."""
        return [after - before for before, after in zip(self.at_s, self.at_s[1:], strict=False)]


class House:
    """The proxy and its engines, by endpoint."""

    def __init__(self, worker: Worker, port: int, engines: dict[str, LocalEngine]) -> None:
        self.worker = worker
        self.engines = engines
        self.url = f"http://127.0.0.1:{port}"
        self.cut = self._break
        """Cuts the connection under the stream of a decision, as a dying machine does."""
        self._client = httpx.AsyncClient(timeout=300.0, trust_env=False, headers=KEY)

    async def stream(self, prompt: str, tokens: int, how: How = "whole", cut: int = 0) -> Heard:
        """Ask at temperature 0. After ``cut`` pieces the connection to the endpoint breaks, or it is drained."""
        body = {
            "model": "m",
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        pieces: list[str] = []
        at_s: list[float] = []
        chunks: list[dict[str, Any]] = []
        ended = False
        async with self._client.stream("POST", self.url + "/v1/chat/completions", json=body) as answer:
            answer.raise_for_status()
            name, id = (answer.headers[f"x-apportion-{what}"] for what in ("endpoint", "decision-id"))
            async for line in answer.aiter_lines():
                ended = ended or line == "data: [DONE]"
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                chunks.append(chunk)
                choice = (chunk.get("choices") or [{}])[0]
                said = choice.get("delta", {}).get("content")
                if said:
                    pieces.append(said)
                    at_s.append(time.perf_counter())
                    if len(pieces) == cut and how == "broken":
                        self.cut(id)
                    elif len(pieces) == cut and how == "drained":
                        await self.drain(name)
        if how == "drained":
            await self.put_back(name)
        while self.worker.gateway.running:
            await asyncio.sleep(0.005)
        told = (await self._client.get(f"{self.url}/apportion/decisions/{id}")).json()
        reasons = [
            c["finish_reason"] for chunk in chunks for c in chunk.get("choices", ()) if c["finish_reason"]
        ]
        ids = {chunk["id"] for chunk in chunks if "id" in chunk}
        assert len(ids) == 1
        usage = chunks[-1].get("usage") or {}
        by = [f"{one['endpoint']} {one['failure'] or 'ok'}" for one in told["attempts"]]
        return Heard(pieces, at_s, reasons[-1] if len(reasons) == 1 else None, usage, ended, by, id)

    def _break(self, id: str) -> None:
        live = self.worker.gateway.running[id].live
        if live is not None and live.relay._connection is not None:
            live.relay._connection.close()

    async def drain(self, endpoint: str) -> None:
        (await self._client.post(f"{self.url}/apportion/endpoints/{endpoint}/drain")).raise_for_status()

    async def put_back(self, endpoint: str) -> None:
        url = f"{self.url}/apportion/endpoints/{endpoint}/drain"
        (await self._client.delete(url)).raise_for_status()

    async def close(self) -> None:
        await self._client.aclose()
        await self.worker.drain(1.0)


@asynccontextmanager
async def house(
    directory: Path, *, context_tokens: int = 2048, weights: str = WEIGHTS
) -> AsyncIterator[House]:
    """Two engines with a thread each, and a worker that has them as endpoints "a" and "b"."""
    async with AsyncExitStack() as stack:
        engines: dict[str, LocalEngine] = {}
        for name in "ab":
            engine = LocalEngine(weights, alias="tiny", slots=2, context_tokens=context_tokens, threads=1)
            engines[name] = await stack.enter_async_context(engine)
        config = loads(CONFIG, "moving.yaml")
        worker = await Worker.open(config, all_prices(config), index=0, workers=1, directory=directory)
        for name, engine in engines.items():
            worker.point(name, Address(f"{engine.address}/v1", engine.api_key))
        _, port = await worker.start("127.0.0.1", 0, reuse_port=False)
        here = House(worker, port, engines)
        stack.push_async_callback(here.close)
        yield here
