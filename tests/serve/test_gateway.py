"""What a proxy that can be reached from outside shows to whom."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from apportion.core.errors import ApportionError
from apportion.serve import worker
from apportion.serve.config.pricing import all_prices
from apportion.serve.config.reader import loads
from apportion.serve.store.encoder import EncoderFiles
from apportion.serve.worker import Worker

CONFIG = """
listen: {host: %s}
ledger: {url: memory}
keys:
  - {name: boss, secret: sk-boss, admin: true}
  - {name: user, secret: sk-user}
endpoints: {a: {kind: openai, base_url: "http://127.0.0.1:9/v1", price: free}}
models: {m: a}
"""


async def status(port: int, key: str | None) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    auth = f"authorization: Bearer {key}\r\n" if key else ""
    writer.write(f"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{auth}\r\n".encode())
    answer = await reader.read()
    writer.close()
    return int(answer.split(b" ", 2)[1])


@pytest.mark.parametrize(
    ("host", "answers"),
    [("127.0.0.1", [200, 200, 200, 200]), ("0.0.0.0", [401, 401, 403, 200])],
)
async def test_metrics_are_for_admins_where_others_can_reach_them(
    tmp_path: Path, host: str, answers: list[int]
) -> None:
    config = loads(CONFIG % host, "apportion.yaml")
    worker = await Worker.open(config, all_prices(config), index=0, workers=1, directory=tmp_path)
    _, port = await worker.start("127.0.0.1", 0, reuse_port=False)
    try:
        assert [await status(port, key) for key in (None, "sk-wrong", "sk-user", "sk-boss")] == answers
    finally:
        await worker.drain(1.0)


async def test_an_encoder_that_cannot_be_loaded_ends_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy whose encoder is missing would decide everything without it, and nobody would know."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(
        worker, "ensure_encoder", lambda: EncoderFiles(tmp_path / "graph.onnx", tmp_path / "tokenizer.json")
    )
    config = loads(CONFIG % "127.0.0.1" + "text: {encoder: minilm}\n", "apportion.yaml")
    with pytest.raises(ApportionError, match="onnxruntime") as caught:
        await Worker.open(config, all_prices(config), index=0, workers=1, directory=tmp_path)
    assert "apportion[text]" in str(caught.value.fix)
