"""A whole worker with its lessons: an answer is checked, judged through the worker's own flow, and spoken about."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apportion.measure.decision_log import Row, read
from apportion.serve import decision_log, inside
from apportion.serve.config.pricing import all_prices
from apportion.serve.config.reader import loads
from apportion.serve.worker import Worker

CONFIG = """
ledger: {url: memory}
records: {log: {directory: "%s"}}
keys:
  - {name: user, secret: sk-user}
  - {name: other, secret: sk-other}
  - {name: boss, secret: sk-boss, admin: true}
endpoints:
  a: {kind: openai, base_url: "http://127.0.0.1:%d/v1", price: {input_usd_per_mtok: 10, output_usd_per_mtok: 10}}
models:
  large: a
  chat:
    worth_usd: 0.02
    endpoints: [{endpoint: a, quality: 0.5}]
    feedback:
      checks: [{kind: not_empty}, {kind: finish}]
      judge: {model: large, share: 1, usd: %s, window: day}
      wait_s: 300ms
"""

CONNECTIONS: list[asyncio.StreamWriter] = []


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision_log, "_PATIENCE_S", 120.0)


async def upstream(answer: Callable[[dict[str, Any]], str]) -> asyncio.Server:
    """An OpenAI-compatible server that says what ``answer`` makes of the request."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        CONNECTIONS.append(writer)
        while True:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                writer.close()
                return
            length = int(re.search(rb"content-length: (\d+)", head.lower())[1])  # type: ignore[index]
            said = answer(json.loads(await reader.readexactly(length)))
            body = json.dumps(
                {
                    "id": "x",
                    "object": "chat.completion",
                    "created": 1,
                    "model": "m",
                    "choices": [
                        {
                            "index": 0,
                            "message": {"role": "assistant", "content": said},
                            "finish_reason": "stop",
                        }
                    ],
                    "usage": {"prompt_tokens": 100, "completion_tokens": 100, "total_tokens": 200},
                }
            ).encode()
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                % (len(body), body)
            )

    return await asyncio.start_server(serve, "127.0.0.1", 0)


def says(request: dict[str, Any]) -> str:
    """The judge's grade, or an answer."""
    mark = re.search(r"GRADE-([0-9a-f]+)", json.dumps(request))
    return f"Good.\nGRADE-{mark[1]}: 6" if mark else "Four."


class Proxy:
    """A worker, asked from inside."""

    def __init__(self, worker: Worker, server: asyncio.Server, log: Path) -> None:
        self.worker, self.server, self.log = worker, server, log

    async def call(self, path: str, body: dict[str, Any] | None, key: str = "sk-user") -> tuple[int, Any]:
        request = inside.request(path, b"" if body is None else json.dumps(body).encode())
        request.method = "GET" if body is None else "POST"
        request.headers[b"authorization"] = b"Bearer " + key.encode()
        answer = inside.Inside()
        await self.worker.gateway(request, answer)
        return answer.status, json.loads(answer.body)

    async def chat(self) -> None:
        question = {"model": "chat", "messages": [{"role": "user", "content": "What is two and two?"}]}
        status, found = await self.call("/v1/chat/completions", question)
        assert status == 200
        assert found["choices"][0]["message"]["content"] == "Four."

    async def until(self, text: str) -> str:
        """The metrics as soon as ``text`` stands in them."""
        async with asyncio.timeout(60):
            while True:
                self.worker.gateway.settlements.flush()
                self.worker._lessons.tick(time.time())
                found = self.worker.gateway.meters.registry.render()
                if text in found:
                    return found
                await asyncio.sleep(0.01)

    async def close(self) -> None:
        await self.worker.drain(1.0)
        self.server.close()
        while CONNECTIONS:
            connection = CONNECTIONS.pop()
            connection.close()
            await connection.wait_closed()

    def logged(self) -> dict[str, Row]:
        return {row.entry.key: row for row in read([self.log]).rows}


async def opened(directory: Path, monkeypatch: pytest.MonkeyPatch, usd: float) -> Proxy:
    monkeypatch.setenv("XDG_STATE_HOME", str(directory / "state"))
    server = await upstream(says)
    log = directory / "log"
    config = loads(CONFIG % (log, server.sockets[0].getsockname()[1], usd), "apportion.yaml")
    worker = await Worker.open(config, all_prices(config), index=0, workers=1, directory=directory)
    await worker.start("127.0.0.1", 0, reuse_port=False)
    return Proxy(worker, server, log)


async def test_an_answer_is_judged_and_the_judge_is_booked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = await opened(tmp_path, monkeypatch, 1.0)
    await proxy.chat()
    await proxy.until('apportion_judgements_total{model="chat",result="graded"} 1')
    metrics = await proxy.until('apportion_verdicts_total{model="chat",endpoint="a"} 1')
    assert 'apportion_quality_predicted_total{model="chat",endpoint="a"} 0.5' in metrics
    status, quality = await proxy.call("/apportion/quality", None, "sk-boss")
    assert status == 200
    # Passed checks and a grade of 6 of 10.
    assert quality["models"]["chat"]["a"]["quality"] == pytest.approx((1.0 + 1.0 + 4 * 0.6) / 6)
    await proxy.close()
    rows = proxy.logged()
    assert set(rows) == {"user", "judge:chat"}
    assert rows["user"].quality == pytest.approx((1.0 + 1.0 + 4 * 0.6) / 6)
    assert rows["judge:chat"].quality is None
    assert rows["judge:chat"].entry.cost["usd"] == 0.002
    assert rows["user"].entry.probability == 1.0
    assert "two and two" not in (proxy.log / "worker-00.jsonl").read_text()


async def test_a_person_has_the_last_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = await opened(tmp_path, monkeypatch, 1.0)
    await proxy.chat()
    proxy.worker.gateway.settlements.flush()
    id = next(record.id for record in proxy.worker.gateway.records._ring if record)
    status, found = await proxy.call("/v1/feedback", {"decision_id": id, "label": "wrong"})
    assert (status, found["quality"]) == (200, 0.0)
    assert (await proxy.call("/v1/feedback", {"decision_id": id, "score": 1}, "sk-other"))[0] == 404
    assert (await proxy.call("/apportion/feedback", {"decision_id": id, "score": 1}, "sk-boss"))[0] == 200
    assert (await proxy.call("/apportion/quality", None))[0] == 403
    await proxy.close()
    assert proxy.logged()["user"].quality == 1.0


async def test_a_judge_without_money_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = await opened(tmp_path, monkeypatch, 0.0001)
    await proxy.chat()
    await proxy.until('apportion_judgements_total{model="chat",result="failed"} 1')
    await proxy.close()
    assert set(proxy.logged()) == {"user"}
    assert proxy.logged()["user"].quality == 1.0
