"""Settling gives way to requests that have just arrived, and the proxy's arrays to no second thread."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from apportion.cli import start
from apportion.measure.metrics import Registry
from apportion.serve import supervisor
from apportion.serve.config.reader import loads
from apportion.serve.meters import Meters
from apportion.serve.records import Records
from apportion.serve.settlement import Settlements


async def test_a_request_that_has_arrived_goes_before_settling(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    order: list[str] = []
    monkeypatch.setattr(Settlements, "_job", lambda self, job, now: order.append(job))
    settlements = Settlements(Meters(Registry(tmp_path, 0)), Records(10, 0), {})
    settlements.add("settled")  # type: ignore[arg-type]
    loop = asyncio.get_running_loop()
    loop.call_soon(order.append, "answered")
    settlements._due()
    await asyncio.sleep(0)
    assert order == ["answered", "settled"]
    assert not settlements.flush()


def test_openblas_is_told_to_use_one_thread_unless_it_was_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str | None] = []

    def ran(*_: Any, **__: Any) -> int:
        seen.append(os.environ.get("OPENBLAS_NUM_THREADS"))
        return 0

    monkeypatch.setattr(supervisor, "run", ran)
    config = loads(
        "endpoints: {e: {kind: openai, base_url: 'http://x/v1'}}\nmodels: {m: {endpoints: [e]}}\n", "x.yaml"
    )
    for told in (None, "3"):
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", told or "")
        if told is None:
            monkeypatch.delenv("OPENBLAS_NUM_THREADS")
        start.run(config, None, host=None, port=None, workers=None, no_auth=True, on_ready=lambda _: None)
    assert seen == ["1", "3"]
