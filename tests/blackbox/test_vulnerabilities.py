"""What went wrong in other gateways, tried on this one: keys, roles, hashes, caches, addresses, secrets.

Each test names the advisory it is made from. The proxy runs as in production: a process with two workers, keys made
by its own commands and its own API, books in a database.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from .dialects import CHAT, MESSAGES, Json
from .proxy import SECRETS, Gateway
from .upstream import Upstream, new_marker
from .wire import Response, ask

OPEN = {"/", "/health", "/health/live", "/health/ready", "/openapi.json"}
"""All paths that need no key."""
EXPOSED = {"/metrics"}
"""Those that need none on this machine only."""
ELSEWHERE = "http://169.254.169.254/latest"


def command(gateway: Gateway, *arguments: str, status: int = 0) -> str:
    """What a command of the same user writes to standard output."""
    done = subprocess.run(
        [sys.executable, "-m", "apportion.cli", *arguments],
        env={**gateway.env, "APPORTION_PORT": str(gateway.port)},
        cwd=gateway.directory,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done.stdout.strip()


async def send(
    gateway: Gateway, method: str, path: str, body: object = None, key: str | None = None
) -> Response:
    content = b"" if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    if key is not None:
        headers["authorization"] = f"Bearer {SECRETS.get(key, key)}"
    return await ask(gateway.port, method, path, headers, content)


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """Workers notice a change within a second; a slow machine gets more time."""
    for _ in range(1200):
        if await condition():
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"never came true: {what}")


async def everywhere(gateway: Gateway, key: str, status: int) -> None:
    """Both workers answer ``key`` with ``status``; an id begins with the number of the worker that gave it."""

    async def all_of_them() -> bool:
        workers = set()
        for _ in range(64):
            answer = await send(gateway, "GET", "/v1/models", key=key)
            if answer.status != status:
                return False
            workers.add((answer.header("x-request-id") or "")[4:6])
            if len(workers) == 2:
                return True
        return False

    await until(all_of_them, f"{status} from all workers")


@pytest.fixture
def gateway(start: Callable[..., Gateway], small_config: Callable[..., Json], tmp_path: Path) -> Gateway:
    budgets = [
        {"name": "whole", "amount": 10000, "window": "day"},
        {"name": "own", "amount": 1000, "window": "day", "scope": "key"},
    ]
    ledger = {"url": f"sqlite:///{tmp_path / 'ledger.db'}"}
    return start(small_config(ledger=ledger, budgets=budgets), "--workers", "2")


@pytest.fixture
def database(gateway: Gateway, tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def rows(database: Path, table: str) -> list[dict[str, Any]]:
    with sqlite3.connect(database) as connection:
        connection.row_factory = sqlite3.Row
        found = [dict(row) for row in connection.execute(f'SELECT * FROM "{table}"')]
    connection.close()
    return found


def kept(database: Path) -> str:
    """Everything that is in the database, as text, the files beside it included."""
    return "".join(
        path.read_bytes().decode("latin-1")
        for path in database.parent.glob(f"{database.name}*")
        if path.is_file()
    )


class TestStart:
    """The first key, and who needs none."""

    async def test_the_first_start_makes_a_key_and_shows_it_once(
        self, start: Callable[..., Gateway], small_config: Callable[..., Json], tmp_path: Path
    ) -> None:
        config = small_config(keys=[], ledger={"url": f"sqlite:///{tmp_path / 'ledger.db'}"})
        first = start(config, "--workers", "2")
        (key,) = re.findall(r"sk-ap-[0-9a-f]{12}-[\w-]{43}", first.output())
        said = (first.directory / "stdout").read_text()
        assert said.strip() == key, "alone on standard output"
        await everywhere(first, key, 200)
        await everywhere(first, "sk-something", 401)
        assert (await send(first, "GET", "/apportion/keys", key=key)).status == 200
        first.stop()
        second = start(config, "--workers", "2")
        assert "sk-ap-" not in second.output()
        await everywhere(second, key, 200)

    async def test_no_request_without_a_key(self, gateway: Gateway) -> None:
        """CVE-2026-12795: no path may be forgotten. What is open is named here."""
        document = (await ask(gateway.port, "GET", "/openapi.json")).json
        asked = 0
        for path, item in document["paths"].items():
            for method in item:
                filled = path.replace("{id}", "x").replace("{name}", "x")
                for key in (None, "sk-unknown", ""):
                    status = (
                        await send(gateway, method.upper(), filled, {} if method != "get" else None, key)
                    ).status
                    assert status == 401 or path in OPEN | EXPOSED, (method, path, key, status)
                    asked += 1
        assert asked > 100

    def test_this_users_commands_need_no_key(self, gateway: Gateway) -> None:
        assert command(gateway, "ask", "hello", "--max-tokens", "5")
        base = Path(os.environ.get("XDG_RUNTIME_DIR") or os.environ.get("TMPDIR") or "/tmp")
        private = base / f"apportion-{os.getuid()}"
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
        own = json.loads(command(gateway, "ask", "hello", "--json"))["decision"]
        assert own["key"] == "local"


class TestKeys:
    async def test_a_key_is_no_statement(self, gateway: Gateway, database: Path) -> None:
        """CVE-2026-42208: ``Bearer ' OR '1'='1`` let everybody in."""
        name = "x'); DROP TABLE keys; --"
        made = await send(gateway, "POST", "/apportion/keys", {"name": name}, "KEY_ADMIN")
        assert made.status == 201
        id = made.json["id"]
        for wrong in (
            "' OR '1'='1",
            "' OR '1'='1' --",
            "x' UNION SELECT * FROM keys --",
            f"sk-ap-{id}-' OR '1'='1",
            f"sk-ap-{id}-{'%' * 43}",
            "sk-ap-____________-" + "_" * 43,
            name,
            id,
        ):
            assert (await send(gateway, "GET", "/v1/models", key=wrong)).status == 401
            assert (await send(gateway, "GET", "/apportion/keys", key=wrong)).status == 401
        assert [row["name"] for row in rows(database, "keys")] == [name]
        await everywhere(gateway, made.json["key"], 200)

    async def test_what_is_stored_is_no_key(self, gateway: Gateway, database: Path) -> None:
        """GHSA-69x8-hrgq-fjj8: stored hashes could be sent in place of the password."""
        secret = command(gateway, "keys", "create", "alice2", "--config", str(gateway.config_file))
        await everywhere(gateway, secret, 200)
        (row,) = rows(database, "keys")
        pepper = (database.parent / "pepper").read_text()
        for given in (
            row["digest"],
            f"sk-ap-{row['id']}-{row['digest']}",
            f"sk-ap-{row['id']}-{pepper[:43]}",
            pepper,
        ):
            assert (await send(gateway, "GET", "/v1/models", key=given)).status == 401
        assert secret[-43:] not in kept(database)
        assert stat.S_IMODE((database.parent / "pepper").stat().st_mode) == 0o600

    async def test_no_part_of_a_key_is_one(self, gateway: Gateway) -> None:
        """CVE-2026-35030: a cache keyed by the first 20 characters let others in as its owner."""
        secret = command(gateway, "keys", "create", "alice2", "--config", str(gateway.config_file))
        await everywhere(gateway, secret, 200)
        for length in (18, 20, 32, len(secret) - 1):
            for wrong in (secret[:length], secret[:length] + "A" * (len(secret) - length)):
                assert wrong == secret or (await send(gateway, "GET", "/v1/models", key=wrong)).status == 401
        await everywhere(gateway, secret, 200)

    async def test_what_has_ended_has_ended_in_every_worker(self, gateway: Gateway) -> None:
        """CVE-2026-12772: sessions outlived their expiry."""
        config = ("--config", str(gateway.config_file))
        until_s = time.time() + 3
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(until_s))
        short = command(gateway, "keys", "create", "short", "--expires", moment, *config)
        for name, *change in (
            ("disabled", "keys", "disable"),
            ("deleted", "keys", "delete"),
            ("rotated", "keys", "rotate"),
        ):
            secret = command(gateway, "keys", "create", name, *config)
            await everywhere(gateway, secret, 200)
            command(gateway, *change, name, *config)
            await everywhere(gateway, secret, 401)
        await asyncio.sleep(max(0.0, until_s - time.time()))
        await everywhere(gateway, short, 401)


class TestRoles:
    async def test_no_user_administers(self, gateway: Gateway, database: Path) -> None:
        """CVE-2026-35029: ``/config/update`` asked for a key, but not for whose."""
        document = (await ask(gateway.port, "GET", "/openapi.json")).json
        refused = 0
        for path, item in document["paths"].items():
            if not path.startswith("/apportion/"):
                continue
            for method, operation in item.items():
                filled = path.replace("{id}", "admin").replace("{name}", "x")
                answer = await send(
                    gateway, method.upper(), filled, {} if method != "get" else None, "KEY_ALICE"
                )
                if "admin" in operation["tags"] and not path.endswith("/self"):
                    assert answer.status == 403, (method, path, answer.status)
                    refused += 1
        assert refused >= 16
        assert rows(database, "audit") == []

    async def test_the_host_header_chooses_no_route(self, gateway: Gateway, database: Path) -> None:
        """CVE-2026-49468: ``Host: x/health?`` made the guard see another path than the router."""
        body = b'{"name": "intruder", "admin": true}'
        for host in ("x/health?", "127.0.0.1/openapi.json#", "x/", "/health", "x/v1/models?", "x@y"):
            for target in ("/apportion/keys", "http://x/health/../apportion/keys", "http://x/apportion/keys"):
                for extra in ({}, {"authorization": f"Bearer {SECRETS['KEY_ALICE']}"}):
                    headers = {"host": host, "content-type": "application/json", **extra}
                    answer = await ask(gateway.port, "POST", target, headers, body)
                    assert answer.status in (400, 401, 403, 404, 405), (host, target, answer.status)
        assert rows(database, "keys") == []

    async def test_a_key_sees_nothing_of_another(self, gateway: Gateway, upstream: Upstream) -> None:
        """Other keys, what they asked and what they spent."""
        made = await send(gateway, "POST", "/apportion/keys", {"name": "mallory"}, "KEY_ADMIN")
        mallory = made.json["key"]
        await everywhere(gateway, mallory, 200)
        marker = upstream.script(new_marker())
        answered = await gateway.post(CHAT, CHAT.request("m", marker))
        assert answered.status == 200
        decision = answered.header("x-apportion-decision-id")
        assert (await gateway.decision(answered))["key"] == "alice"
        for path in (
            f"/apportion/decisions/{decision}",
            "/apportion/keys",
            "/apportion/keys/alice",
            "/apportion/audit",
            "/apportion/budgets",
            "/apportion/teams",
            "/apportion/spend?key=alice",
        ):
            answer = await send(gateway, "GET", path, key=mallory)
            assert answer.status in (403, 404), (path, answer.status)
            assert b"alice" not in answer.body.replace(b"keys/alice", b"").replace(b"key=alice", b"")
        for path in ("/apportion/keys/self", "/apportion/spend?by=key", "/apportion/prices"):
            answer = await send(gateway, "GET", path, key=mallory)
            assert answer.status == 200
            assert b"alice" not in answer.body

        async def shared(key: str) -> list[Json]:
            pages = [(await send(gateway, "GET", "/apportion/prices", key=key)).json for _ in range(12)]
            return [page["scopes"]["all"] for page in pages if "all" in page["scopes"]]

        assert any("why" in said for said in await shared("KEY_ADMIN"))
        for said in await shared(mallory):
            assert said.keys() == {"prices", "budgets"}, "not how much of it others have spent"


class TestAddresses:
    @pytest.mark.parametrize(
        "header",
        [
            "x-portkey-custom-host",
            "x-prefiller-url",
            "x-prefiller-host-port",
            "x-upstream-url",
            "x-base-url",
            "x-forwarded-host",
            "x-original-url",
            "x-apportion-base-url",
            "forwarded",
        ],
    )
    async def test_no_header_sends_a_request_elsewhere(
        self, gateway: Gateway, upstream: Upstream, header: str
    ) -> None:
        """CVE-2025-66405, llm-d-router#242: SSRF by a header that names the host."""
        marker = upstream.script(new_marker())
        answer = await gateway.post(CHAT, CHAT.request("m", marker), headers={header: ELSEWHERE})
        assert answer.status == 200
        (seen,) = upstream.of(marker)
        assert seen.endpoint == "solo"
        assert ELSEWHERE.encode() not in seen.head

    @pytest.mark.parametrize(
        "field", ["api_base", "base_url", "api_key", "user_config", "mcp_servers", "callbacks"]
    )
    async def test_no_field_sends_a_request_elsewhere(
        self, gateway: Gateway, upstream: Upstream, field: str
    ) -> None:
        """GHSA-x2h6-g9p789: SSRF by ``api_base`` in the body. Strange fields are the upstream's to refuse."""
        marker = upstream.script(new_marker())
        answer = await gateway.post(CHAT, CHAT.request("m", marker, **{field: ELSEWHERE}))
        # A tool server may cost anything, which the hard dollar budget refuses.
        assert answer.status == (422 if field == "mcp_servers" else 200)
        for seen in upstream.of(marker):
            assert seen.endpoint == "solo"
            assert seen.header("authorization") == f"Bearer {SECRETS['UPSTREAM_KEY']}"

    async def test_nothing_that_runs_or_reads_can_be_set(self, gateway: Gateway, database: Path) -> None:
        """CVE-2026-30623, CVE-2026-35029: commands and files by way of the admin API, by its own admins even."""
        for path in ("/apportion/keys", "/apportion/teams", "/apportion/budgets"):
            for field in ("base_url", "file", "command", "env", "secret", "callback", "template", "headers"):
                body = {"name": "x", "amount": 1, field: "/etc/passwd"}
                if path != "/apportion/budgets":
                    del body["amount"]
                answer = await send(gateway, "POST", path, body, "KEY_ADMIN")
                assert (answer.status, answer.json["error"]["param"]) == (400, field)
        for path in ("/config/update", "/apportion/config", "/apportion/models"):
            for method in ("GET", "POST", "PUT", "PATCH"):
                assert (await send(gateway, method, path, {}, "KEY_ADMIN")).status == 404
        endpoints = (await send(gateway, "GET", "/apportion/endpoints", {}, "KEY_ADMIN")).body
        for method in ("POST", "PUT", "PATCH", "DELETE"):  # they are listed, and drained, no more
            body = {"name": "x", "base_url": ELSEWHERE}
            assert (await send(gateway, method, "/apportion/endpoints", body, "KEY_ADMIN")).status == 405
            assert (await send(gateway, method, "/apportion/endpoints/x", body, "KEY_ADMIN")).status == 404
        assert (await send(gateway, "GET", "/apportion/endpoints", {}, "KEY_ADMIN")).body == endpoints
        assert rows(database, "audit") == []

    async def test_what_is_sent_is_no_template(self, gateway: Gateway, upstream: Upstream) -> None:
        """GHSA-46cm-pfwv-cgf8: templates in a request were run. Here text is text, and names are names."""
        payload = "{{7*7}} ${7*7} {% for x in ().__class__ %} %(x)s {0.__class__} ${UPSTREAM_KEY}"
        marker = upstream.script(new_marker())
        answer = await gateway.post(CHAT, CHAT.request("m", f"{marker} {payload}"))
        assert answer.status == 200
        assert upstream.of(marker)[0].json["messages"][0]["content"] == f"{marker} {payload}"
        made = await send(gateway, "POST", "/apportion/keys", {"name": "{{7*7}} ${HOME}"}, "KEY_ADMIN")
        assert made.json["name"] == "{{7*7}} ${HOME}"


async def test_secrets_are_nowhere(gateway: Gateway, upstream: Upstream, database: Path) -> None:
    """LiteLLM, 2026-03-18: raw ``Authorization`` headers in spend logs and traces."""
    made = await send(gateway, "POST", "/apportion/keys", {"name": "carol", "admin": True}, "KEY_ADMIN")
    first = made.json["key"]
    await everywhere(gateway, first, 200)
    rotated = await send(gateway, "POST", "/apportion/keys/carol/rotate", {"grace": "1h"}, "KEY_ADMIN")
    second = rotated.json["key"]
    await everywhere(gateway, second, 200)
    for dialect, stream, fault in (
        (CHAT, False, None),
        (CHAT, True, None),
        (MESSAGES, True, None),
        (CHAT, False, "status_500"),
    ):
        marker = upstream.script(new_marker(), **({"fault": fault} if fault else {}))
        answer = await gateway.post(dialect, dialect.request("m", marker, stream=stream), key=second)
        decision = answer.header("x-apportion-decision-id")
        assert (await send(gateway, "GET", f"/apportion/decisions/{decision}", key=second)).status == 200
    await send(gateway, "POST", "/apportion/keys", {"name": first, "unknown": second}, first)
    await send(gateway, "GET", "/v1/models", key=f"{second}x")
    document = (await ask(gateway.port, "GET", "/openapi.json")).json
    pages = [
        (
            await send(gateway, "GET", path.replace("{id}", "carol").replace("{name}", "x"), key="KEY_ADMIN")
        ).body.decode()
        for path, item in document["paths"].items()
        if "get" in item
    ]
    (row,) = rows(database, "keys")
    pepper = (database.parent / "pepper").read_text()
    for secret in (first, second, *SECRETS.values()):
        for page in (*pages, gateway.output(), kept(database)):
            assert secret[-20:] not in page
    for word in (row["digest"], row["previous_digest"], pepper):
        assert not any(word in page for page in (*pages, gateway.output()))
