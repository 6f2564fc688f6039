"""Where the money went, asked of a running proxy and of its books: both say what the upstream billed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from decimal import Decimal

from click.testing import CliRunner

from apportion.cli.app import app

from .booked import booked
from .conftest import PRICE, Json
from .dialects import CHAT
from .proxy import Gateway
from .shapes import Want
from .upstream import Upstream, new_marker


async def test_the_proxy_and_its_books_say_what_was_billed(
    start: Callable[..., Gateway], small_config: Callable[..., Json], upstream: Upstream
) -> None:
    gateway = start(small_config())
    markers = [upstream.script(new_marker(), want=Want(words=3 + n)) for n in range(6)]
    for n, marker in enumerate(markers):
        body = CHAT.request("m", marker, max_tokens=50, stream=bool(n % 2))
        assert (await gateway.post(CHAT, body, key=("KEY_ALICE", "KEY_ADMIN")[n % 2])).status == 200
    await booked(gateway, "solo", 6)
    seen = [one for marker in markers for one in upstream.of(marker)]
    billed = (
        sum(
            one.tokens_in * Decimal(PRICE["input_usd_per_mtok"])
            + one.tokens_out * Decimal(PRICE["output_usd_per_mtok"])
            for one in seen
        )
        / 10**6
    )

    found = json.loads((await gateway.get("/apportion/spend?by=key,model,endpoint")).body)
    assert {row["key"]: row["requests"] for row in found["rows"]} == {"alice": 3, "admin": 3}
    assert Decimal(found["total"]["usd"]) == billed
    assert found["total"]["output_tokens"] == sum(one.tokens_out for one in seen)

    own = json.loads((await gateway.get("/apportion/spend?by=key", key="KEY_ALICE")).body)
    assert [row["key"] for row in own["rows"]] == ["alice"]
    assert own["total"]["usd"] == next(row["usd"] for row in found["rows"] if row["key"] == "alice")
    assert (await gateway.get("/apportion/spend?key=admin", key="KEY_ALICE")).status == 403
    assert (await gateway.get("/apportion/spend", key=None)).status == 401
    refused = await gateway.get("/apportion/spend?by=everything")
    assert refused.status == 400
    assert "cannot be grouped by" in refused.body.decode()

    books = ["--ledger", f"sqlite:///{gateway.directory}/.local/state/apportion/ledger.db"]
    told = await asyncio.to_thread(CliRunner().invoke, app, ["spend", *books, "--json"])
    assert json.loads(told.stdout)["total"] == found["total"]
    right = await asyncio.to_thread(CliRunner().invoke, app, ["ledger", "verify", *books])
    assert right.stdout.endswith(": right\n"), right.output
