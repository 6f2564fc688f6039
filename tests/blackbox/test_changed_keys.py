"""Keys and teams that commands change while the proxy serves: every worker does what they say within seconds."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from .conftest import KEYS, Json, endpoint, model
from .dialects import CHAT
from .proxy import Gateway
from .upstream import Upstream, new_marker

WITHIN_S = 60.0
IN_A_ROW = 20
"""So many new connections end at both workers, but for a chance of one in half a million."""


@pytest.fixture
def gateway(upstream: Upstream, start: Callable[..., Gateway]) -> Gateway:
    plain = f"http://127.0.0.1:{upstream.port}"
    places = {
        name: endpoint("openai", plain, name, model=name, price="free", tags=[name]) for name in ("eu", "us")
    }
    config: Json = {
        "listen": {"workers": 2},
        "keys": KEYS[:1],
        "endpoints": places,
        "models": {"m": model("eu", "us")},
    }
    return start(config)


def run(gateway: Gateway, *arguments: str) -> str:
    """What a command prints that is run beside the proxy."""
    command = [sys.executable, "-m", "apportion.cli", *arguments, "--config", str(gateway.config_file)]
    done = subprocess.run(command, env=gateway.env, cwd=gateway.directory, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


async def place(gateway: Gateway, upstream: Upstream, key: str) -> str:
    """Where a request with ``key`` was answered: an endpoint, or a status that is none of success."""
    marker = new_marker()
    response = await gateway.post(CHAT, CHAT.request("m", marker), key=key)
    return str(upstream.of(marker)[0].json["model"]) if response.status == 200 else str(response.status)


async def places(
    gateway: Gateway, upstream: Upstream, key: str, until: Callable[[set[str]], bool]
) -> set[str]:
    """Where requests are answered once ``until`` is true of so many in a row."""
    by = time.monotonic() + WITHIN_S
    while True:
        found = {await place(gateway, upstream, key) for _ in range(IN_A_ROW)}
        if until(found) or time.monotonic() > by:
            return found


async def test_what_a_key_demands_reaches_every_worker(gateway: Gateway, upstream: Upstream) -> None:
    key = run(gateway, "keys", "create", "carol")
    assert await places(gateway, upstream, key, lambda found: found == {"eu", "us"}) == {"eu", "us"}
    run(gateway, "keys", "set", "carol", "--require", "eu")
    assert await places(gateway, upstream, key, lambda found: found == {"eu"}) == {"eu"}
    run(gateway, "teams", "create", "far", "--require", "us")
    run(gateway, "keys", "set", "carol", "--team", "far", "--clear", "require")
    assert await places(gateway, upstream, key, lambda found: found == {"us"}) == {"us"}
    run(gateway, "teams", "set", "far", "--clear", "require")
    assert await places(gateway, upstream, key, lambda found: found == {"eu", "us"}) == {"eu", "us"}
