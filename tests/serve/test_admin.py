"""The admin API over a real socket: who may, what it makes, and what it never tells or takes."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from apportion.serve import admin, forms
from apportion.serve.config.pricing import all_prices
from apportion.serve.config.reader import loads
from apportion.serve.config.schema import Budget, Key, KeyBudget, KeyLimits, Team
from apportion.serve.gateway import Gateway
from apportion.serve.ledger.people import People, UnreachableError
from apportion.serve.worker import Worker

CONFIG = """
ledger: {url: "sqlite:///%s", journal: "%s"}
keys:
  - {name: boss, secret: sk-boss, admin: true}
  - {name: user, secret: sk-user, models: [m], team: blue}
  - {name: barred, secret: sk-off, admin: true, disabled: true}
  - {name: late, secret: sk-late, admin: true, expires: "2020-01-01T00:00:00Z"}
teams: {blue: {models: [m]}}
budgets: [{name: whole, amount: 100, window: 1d}]
endpoints:
  a: {kind: openai, base_url: "http://127.0.0.1:9/v1", price: free, tags: [eu, own]}
  b: {kind: openai, base_url: "http://127.0.0.1:9/v1", price: free}
models: {m: a, n: [a, b]}
"""
OPEN = {"/", "/health", "/health/live", "/health/ready", "/openapi.json"}
"""All that is answered without a key."""
OWN = {
    "/apportion/queues",
    "/v1/feedback",
    "/apportion/feedback",
    "/v1/models",
    "/models",
    "/v1/models/{id...}",
    "/models/{id...}",
    "/apportion/decisions/{id}",
} | {
    "/apportion/keys/self",
    "/apportion/spend",
    "/apportion/prices",
}
"""All that a user's key may ask, about itself."""


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    json: Any
    text: str


class Proxy:
    """A worker with its database, asked over a socket."""

    def __init__(self, gateway: Gateway, people: People, port: int) -> None:
        self.gateway = gateway
        self.people = people
        self.port = port

    async def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        key: str | None = "sk-boss",
        headers: Mapping[str, str] = {},
    ) -> Answer:
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        given = {"host": "127.0.0.1", "connection": "close", "content-length": str(len(content))}
        if key is not None:
            given["authorization"] = f"Bearer {key}"
        if content:
            given["content-type"] = "application/json"
        lines = "".join(f"{name}: {value}\r\n" for name, value in {**given, **headers}.items())
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + content)
        raw = await reader.read()
        writer.close()
        head, _, rest = raw.partition(b"\r\n\r\n")
        status, *lines_ = head.decode("latin-1").split("\r\n")
        found = dict(line.lower().split(": ", 1) for line in lines_)
        text = rest.decode()
        is_json = found.get("content-type") == "application/json" and bool(text)
        return Answer(int(status.split(" ")[1]), found, json.loads(text) if is_json else None, text)

    async def made(self, **fields: Any) -> tuple[str, str]:
        """A new key: its id and itself."""
        answer = await self.ask("POST", "/apportion/keys", fields)
        assert answer.status == 201, answer.text
        return answer.json["id"], answer.json["key"]


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[Proxy]:
    config = loads(CONFIG % (tmp_path / "ledger.db", tmp_path / "journal"), "apportion.yaml")
    worker = await Worker.open(config, all_prices(config), index=0, workers=1, directory=tmp_path)
    _, port = await worker.start("127.0.0.1", 0, reuse_port=False)
    people = worker.gateway.admin.people
    assert people is not None
    yield Proxy(worker.gateway, people, port)
    await worker.drain(1.0)


def filled(path: str) -> str:
    return path.replace("{id...}", "m").replace("{id}", "boss").replace("{name}", "blue")


class TestRoles:
    async def test_every_route_has_a_role_that_is_held(self, proxy: Proxy) -> None:
        """A route added without a thought for who may ask it fails here (CVE-2026-35029)."""
        table = proxy.gateway.routes.table
        assert {route.path for route in table if route.role == "open"} == OPEN
        assert {route.path for route in table if route.role == "exposed"} == {"/metrics"}
        assert {route.path for route in table if route.role == "key"} <= OWN
        asked = 0
        for route in table:
            if route.role in ("open", "exposed"):
                continue
            path = filled(route.path)
            for key in (None, "sk-nobody", "sk-off", "sk-late"):
                assert (await proxy.ask(route.method, path, key=key)).status == 401, (route, key)
            user = (await proxy.ask(route.method, path, key="sk-user")).status
            boss = (await proxy.ask(route.method, path)).status
            assert boss not in (401, 403, 405), route
            assert (user == 403) == (route.role == "admin"), route
            asked += 1
        assert asked >= 20
        assert proxy.people.audit() == [], "nobody who may not has changed anything, nor an empty body"

    @pytest.mark.parametrize(
        "headers",
        [
            {"host": "127.0.0.1:1/health?"},
            {"host": "/health"},
            {"host": "x/openapi.json#"},
            {"x-forwarded-host": "x/health", "x-forwarded-prefix": "/health"},
            {"x-original-url": "/health", "x-rewrite-url": "/health"},
            {"x-http-method-override": "GET", "x-method-override": "GET"},
        ],
    )
    async def test_headers_do_not_move_a_request_to_another_route(
        self, proxy: Proxy, headers: dict[str, str]
    ) -> None:
        """CVE-2026-49468: the Host header made the guard look at another path than the router."""
        for path in ("/apportion/keys", "http://x/apportion/keys", "/apportion/%6beys"):
            form = {"name": "intruder", "admin": True}
            assert (await proxy.ask("POST", path, form, key=None, headers=headers)).status == 401
            assert (await proxy.ask("POST", path, form, key="sk-user", headers=headers)).status == 403
        assert proxy.people.all_keys() == []

    @pytest.mark.parametrize(
        "path",
        [
            "/health/../apportion/keys",
            "//apportion/keys",
            "/apportion//keys",
            "/apportion/keys/",
            "/APPORTION/keys",
            "/apportion/keys;x=/health",
            "/apportion/keys%00",
            "/apportion/keys/%2e%2e/keys",
            "/v1/apportion/keys",
        ],
    )
    async def test_other_spellings_are_other_paths(self, proxy: Proxy, path: str) -> None:
        assert (await proxy.ask("POST", path, {"name": "x"}, key=None)).status in (401, 404, 405)
        assert (await proxy.ask("POST", path, {"name": "x"}, key="sk-user")).status in (403, 404, 405)
        assert proxy.people.all_keys() == []


class TestLargeBodies:
    """Who may not ask is told so for the head alone: nothing is read of strangers but that."""

    @pytest.mark.parametrize(
        ("method", "path", "key", "status"),
        [
            ("POST", "/v1/chat/completions", None, 401),
            ("POST", "/v1/messages", "sk-nobody", 401),
            ("POST", "/v1/chat/completions", "sk-late", 401),
            ("POST", "/apportion/keys", None, 401),
            ("POST", "/apportion/keys", "sk-user", 403),
            ("POST", "/nothing/here", None, 404),
            ("PUT", "/v1/chat/completions", None, 405),
        ],
    )
    async def test_they_are_refused_before_they_come(
        self, proxy: Proxy, method: str, path: str, key: str | None, status: int
    ) -> None:
        empty = await proxy.ask(method, path, key=key)
        large = await proxy.ask(method, path, key=key, headers={"content-length": "10000000"})
        assert large.status == empty.status
        changing = {"x-request-id", "request-id", "date", "content-length"}
        assert large.headers.keys() == empty.headers.keys()
        same = large.headers.keys() - changing
        assert {name: large.headers[name] for name in same} == {name: empty.headers[name] for name in same}
        assert large.status == status

    async def test_who_may_ask_is_read(self, proxy: Proxy) -> None:
        large = b'{"model": "nope", "messages": [{"role": "user", "content": "%b"}]}' % (b"x" * 1_000_000)
        answer = await proxy.ask("POST", "/v1/chat/completions", large, key="sk-user")
        assert (answer.status, answer.json["error"]["code"]) == (404, "model_not_found")


class TestKeys:
    async def test_a_life(self, proxy: Proxy) -> None:
        form = {
            "name": "carol",
            "team": "blue",
            "models": ["m"],
            "endpoints": ["a"],
            "expires": "30d",
            "tags": {"cost_centre": "7"},
            "limits": {"requests_per_minute": 60},
            "budget": {"usd": 5, "window": "month", "time_zone": "Europe/Berlin"},
        }
        answer = await proxy.ask("POST", "/apportion/keys", form)
        assert answer.status == 201
        id, secret = answer.json["id"], answer.json["key"]
        assert secret.startswith(f"sk-ap-{id}-")
        for name in ("team", "models", "endpoints", "tags"):
            assert answer.json[name] == form[name]
        assert answer.json["budget"] == {
            "usd": 5.0,
            "tokens": None,
            "window": "month",
            "time_zone": "Europe/Berlin",
            "hard": True,
        }
        # It is known at once, and allowed what it says.
        models = await proxy.ask("GET", "/v1/models", key=secret)
        assert [each["id"] for each in models.json["data"]] == ["m"]
        assert (await proxy.ask("GET", "/apportion/keys", key=secret)).status == 403
        # By id or name it is found, never with its secret.
        for path in (f"/apportion/keys/{id}", "/apportion/keys/carol", "/apportion/keys"):
            shown = await proxy.ask("GET", path)
            assert shown.status == 200
            assert secret[-43:] not in shown.text
        change = {"models": None, "endpoints": None, "team": None, "budget": None, "tags": {}}
        changed = await proxy.ask("PATCH", f"/apportion/keys/{id}", change)
        assert changed.status == 200
        assert {name: changed.json[name] for name in change} == change
        assert changed.json["limits"]["requests_per_minute"] == 60, "what is not named stays"
        models = await proxy.ask("GET", "/v1/models", key=secret)
        assert [each["id"] for each in models.json["data"]] == ["m", "n"]
        assert (await proxy.ask("PATCH", "/apportion/keys/carol", {"disabled": True})).json[
            "state"
        ] == "disabled"
        assert (await proxy.ask("GET", "/v1/models", key=secret)).status == 401
        assert (await proxy.ask("PATCH", "/apportion/keys/carol", {"disabled": False})).status == 200
        deleted = await proxy.ask("DELETE", f"/apportion/keys/{id}")
        assert (deleted.status, deleted.json["deleted"]) == (200, True)
        assert (await proxy.ask("GET", "/v1/models", key=secret)).status == 401
        assert (await proxy.ask("DELETE", f"/apportion/keys/{id}")).status == 404
        again = await proxy.ask("POST", "/apportion/keys", form)
        assert (again.status, again.json["error"]["param"]) == (409, "name"), (
            "it would go on with what carol spent"
        )

    async def test_rotation(self, proxy: Proxy) -> None:
        id, first = await proxy.made(name="carol")
        answer = await proxy.ask("POST", f"/apportion/keys/{id}/rotate", {"grace": "1h"})
        second = answer.json["key"]
        assert answer.json["previous_until"] is not None
        for key in (first, second):
            assert (await proxy.ask("GET", "/v1/models", key=key)).status == 200
        third = (await proxy.ask("POST", "/apportion/keys/carol/rotate")).json["key"]
        for key, status in ((first, 401), (second, 401), (third, 200)):
            assert (await proxy.ask("GET", "/v1/models", key=key)).status == status
        for grace in ("forever", -1, "31d", 1e12):
            wrong = await proxy.ask("POST", "/apportion/keys/carol/rotate", {"grace": grace})
            assert (wrong.status, wrong.json["error"]["param"]) == (400, "grace")

    async def test_what_a_key_and_its_team_demand_holds_at_once(self, proxy: Proxy) -> None:
        team = {"name": "red", "require": ["own"], "routing": False}
        made = await proxy.ask("POST", "/apportion/teams", team)
        assert {name: made.json[name] for name in team} == team
        await proxy.made(name="carol", team="red", require=["eu"])

        def access() -> tuple[frozenset[str], bool]:
            runtime = proxy.gateway.runtime
            (key,) = (each for each in runtime.config.keys if each.name == "carol")
            return runtime.access(key).require, runtime.access(key).routing

        assert access() == ({"eu", "own"}, False)
        await proxy.ask("PATCH", "/apportion/teams/red", {"require": [], "routing": True})
        assert access() == ({"eu"}, True)
        changed = await proxy.ask("PATCH", "/apportion/keys/carol", {"routing": False})
        assert (changed.json["require"], changed.json["routing"]) == (["eu"], False)
        assert access() == ({"eu"}, False)

    async def test_an_admin_may_be_kept_from_models(self, proxy: Proxy) -> None:
        _, secret = await proxy.made(name="clerk", admin=True, models=[])
        assert (await proxy.ask("GET", "/apportion/keys", key=secret)).status == 200
        assert (await proxy.ask("GET", "/v1/models", key=secret)).json["data"] == []
        assert (await proxy.ask("GET", "/v1/models/m", key=secret)).status == 404

    async def test_keys_of_the_configuration_are_shown_and_not_changed(self, proxy: Proxy) -> None:
        listed = (await proxy.ask("GET", "/apportion/keys")).json["data"]
        states = {each["name"]: (each["source"], each["state"]) for each in listed}
        assert states == {
            "boss": ("configuration", "active"),
            "user": ("configuration", "active"),
            "barred": ("configuration", "disabled"),
            "late": ("configuration", "expired"),
        }
        assert (await proxy.ask("POST", "/apportion/keys", {"name": "boss"})).status == 409
        assert (await proxy.ask("PATCH", "/apportion/keys/user", {"admin": True})).status == 409
        assert (await proxy.ask("DELETE", "/apportion/keys/boss")).status == 409
        assert (await proxy.ask("POST", "/apportion/keys/user/rotate")).status == 409

    async def test_a_key_sees_itself_and_nobody_else(self, proxy: Proxy) -> None:
        id, secret = await proxy.made(name="carol", team="blue")
        await proxy.made(name="dave")
        own = await proxy.ask("GET", "/apportion/keys/self", key=secret)
        assert own.status == 200
        assert (own.json["id"], own.json["name"], own.json["team"]) == (id, "carol", "blue")
        assert own.json["usable_models"] == ["m"], "its team's"
        assert own.json["budgets"] == []
        assert not any(word in own.text for word in ("dave", "boss", "digest", secret[-43:]))
        for path in (f"/apportion/keys/{id}", "/apportion/keys/dave", "/apportion/keys", "/apportion/audit"):
            assert (await proxy.ask("GET", path, key=secret)).status == 403
        assert (await proxy.ask("GET", "/apportion/keys/self", key="sk-user")).json[
            "source"
        ] == "configuration"


@pytest.mark.parametrize(
    ("part", "form", "not_there"),
    [
        (Key, forms.KeyChange, {"name", "secret", "secret_sha256"}),
        (Team, forms.TeamChange, set()),
        (Budget, forms.BudgetChange, {"name", "resource", "scope"}),
        (KeyLimits, forms.Limits, set()),
        (KeyBudget, forms.Spending, set()),
    ],
)
def test_whatever_the_configuration_can_say_can_be_said_here(
    part: type[msgspec.Struct], form: type[msgspec.Struct], not_there: set[str]
) -> None:
    assert set(part.__struct_fields__) - set(form.__struct_fields__) == not_there


class TestWhatIsTaken:
    @pytest.mark.parametrize(
        ("path", "form"),
        [
            ("/apportion/keys", {"name": "x"}),
            ("/apportion/teams", {"name": "x"}),
            ("/apportion/budgets", {"name": "x", "amount": 1}),
        ],
    )
    @pytest.mark.parametrize(
        "strange",
        [
            {"base_url": "http://169.254.169.254/"},
            {"api_key": "x"},
            {"secret": "sk-chosen"},
            {"secret_sha256": "0" * 64},
            {"digest": "0" * 64},
            {"id": "000000000000"},
            {"file": "/etc/passwd"},
            {"command": "id"},
            {"unknown": None},
            {"limits": {"unknown": 1}},
            {"budget": {"usd": 1, "unknown": 1}},
        ],
    )
    async def test_only_known_fields(
        self, proxy: Proxy, path: str, form: dict[str, Any], strange: Any
    ) -> None:
        """No address, file, secret or command can be set: SSRF, file reads, RCE (CVE-2026-35029, GHSA-x2h6)."""
        answer = await proxy.ask("POST", path, {**form, **strange})
        assert answer.status == 400
        assert answer.json["error"]["param"].split(".")[0] == next(iter(strange))
        assert proxy.people.version() == 0

    @pytest.mark.parametrize(
        ("form", "field"),
        [
            ({}, "name"),
            ({"name": ""}, "name"),
            ({"name": "a/b"}, "name"),
            ({"name": "self"}, "name"),
            ({"name": 5}, "name"),
            ({"name": "x" * 101}, "name"),
            ({"name": "x", "models": ["nope"]}, "models[0]"),
            ({"name": "x", "models": "m"}, "models"),
            ({"name": "x", "endpoints": ["nope"]}, "endpoints[0]"),
            ({"name": "x", "require": ["mars"]}, "require[0]"),
            ({"name": "x", "require": None}, "require"),
            ({"name": "x", "routing": "no"}, "routing"),
            ({"name": "x", "team": "nope"}, "team"),
            ({"name": "x", "expires": "tomorrow"}, "expires"),
            ({"name": "x", "expires": "2027-01-01"}, "expires"),
            ({"name": "x", "limits": {"parallel": 0}}, "limits.parallel"),
            ({"name": "x", "limits": {"parallel": 1.5}}, "limits.parallel"),
            ({"name": "x", "budget": {}}, "budget"),
            ({"name": "x", "budget": {"usd": -1}}, "budget.usd"),
            ({"name": "x", "budget": {"usd": 1, "window": "soon"}}, "budget.window"),
            (
                {"name": "x", "budget": {"usd": 1, "window": "day", "time_zone": "Mars/Base"}},
                "budget.time_zone",
            ),
            ({"name": "x", "tags": {"a": 1}}, "tags[...]"),
            ({"name": "x", "admin": "yes"}, "admin"),
            ([], None),
        ],
    )
    async def test_a_wrong_field_is_named(self, proxy: Proxy, form: Any, field: str | None) -> None:
        answer = await proxy.ask("POST", "/apportion/keys", form)
        assert answer.status == 400, answer.text
        assert answer.json["error"]["param"] == field
        assert answer.headers["x-apportion-error"] == "invalid_request"
        assert proxy.people.version() == 0

    async def test_bodies_that_are_none(self, proxy: Proxy) -> None:
        for body in (b"", b"{", b"\xff", b"[" * 100_000):
            answer = await proxy.ask(
                "POST", "/apportion/keys", body, headers={"content-type": "application/json"}
            )
            assert answer.status == 400, body[:10]
        form = b'{"name": "x"}'
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
            # What a page of another site can make a browser send without asking first.
            answer = await proxy.ask("POST", "/apportion/keys", form, headers={"content-type": kind})
            assert answer.status == 415
        large = json.dumps({"name": "x", "models": ["m" * 199] * 7000}).encode()
        assert (await proxy.ask("POST", "/apportion/keys", large)).status == 413
        assert proxy.people.version() == 0

    async def test_nothing_of_the_environment_gets_in(
        self, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("UPSTREAM_KEY", "up-secret")
        answer = await proxy.ask(
            "POST", "/apportion/keys", {"name": "${UPSTREAM_KEY}", "tags": {"a": "${HOME}"}}
        )
        assert answer.status == 201
        assert (answer.json["name"], answer.json["tags"]) == ("${UPSTREAM_KEY}", {"a": "${HOME}"})

    async def test_hostile_names_are_names(self, proxy: Proxy) -> None:
        """CVE-2026-42208."""
        name = "x'); DROP TABLE keys;--"
        id, secret = await proxy.made(name=name)
        assert (await proxy.ask("GET", "/v1/models", key=secret)).status == 200
        for key in ("' OR '1'='1", "' OR '1'='1' --", f"sk-ap-{id}-' OR '1'='1", "%", "sk-ap-____________-%"):
            assert (await proxy.ask("GET", "/apportion/keys", key=key)).status == 401
        for path in ("%27%20OR%20%271%27=%271", "%25", "x%27%20OR%201=1--"):
            assert (await proxy.ask("GET", f"/apportion/keys/{path}")).status == 404
            assert (await proxy.ask("DELETE", f"/apportion/keys/{path}")).status == 404
        assert len(proxy.people.all_keys()) == 1


class TestTeamsAndBudgets:
    async def test_teams(self, proxy: Proxy) -> None:
        made = await proxy.ask(
            "POST", "/apportion/teams", {"name": "red", "models": ["n"], "budget": {"usd": 1}}
        )
        assert made.status == 201
        _, secret = await proxy.made(name="carol", team="red")
        models = await proxy.ask("GET", "/v1/models", key=secret)
        assert [each["id"] for each in models.json["data"]] == ["n"]
        assert (await proxy.ask("DELETE", "/apportion/teams/red")).status == 409, "it has a key"
        changed = await proxy.ask("PATCH", "/apportion/teams/red", {"models": ["m"]})
        assert changed.json["models"] == ["m"]
        models = await proxy.ask("GET", "/v1/models", key=secret)
        assert [each["id"] for each in models.json["data"]] == ["m"]
        listed = (await proxy.ask("GET", "/apportion/teams")).json["data"]
        assert [(each["name"], each["source"]) for each in listed] == [
            ("blue", "configuration"),
            ("red", "database"),
        ]
        assert (await proxy.ask("GET", "/apportion/teams/red")).json["budget"]["usd"] == 1
        assert (await proxy.ask("GET", "/apportion/teams/green")).status == 404
        await proxy.ask("DELETE", "/apportion/keys/carol")
        assert (await proxy.ask("DELETE", "/apportion/teams/red")).status == 200
        assert (await proxy.ask("POST", "/apportion/teams", {"name": "blue"})).status == 409
        assert (await proxy.ask("PATCH", "/apportion/teams/blue", {"models": None})).status == 409

    async def test_budgets(self, proxy: Proxy) -> None:
        form = {"name": "daily", "amount": 5, "window": "day", "scope": "key", "time_zone": "Asia/Tokyo"}
        made = await proxy.ask("POST", "/apportion/budgets", form)
        assert made.status == 201, made.text
        assert {name: made.json[name] for name in form} == form
        assert (await proxy.ask("POST", "/apportion/budgets", form)).status == 409
        assert any(each.name == "daily" for each in proxy.gateway.runtime.config.budgets), "it holds at once"
        changed = await proxy.ask(
            "PATCH", "/apportion/budgets/daily", {"amount": 6, "window": "1h", "time_zone": "UTC"}
        )
        assert (changed.json["amount"], changed.json["window"]) == (6, "1h")
        shown = await proxy.ask("GET", "/apportion/budgets/daily")
        assert shown.json["accounts"] == []
        listed = (await proxy.ask("GET", "/apportion/budgets")).json["data"]
        assert [(each["name"], each["source"]) for each in listed] == [
            ("whole", "configuration"),
            ("daily", "database"),
        ]
        assert (await proxy.ask("DELETE", "/apportion/budgets/daily")).status == 200
        assert (await proxy.ask("GET", "/apportion/budgets/daily")).status == 404
        assert (await proxy.ask("DELETE", "/apportion/budgets/whole")).status == 409

    async def test_budgets_of_a_key_that_was_never_used(self, proxy: Proxy) -> None:
        await proxy.ask("POST", "/apportion/teams", {"name": "red", "budget": {"tokens": 70}})
        form = {"name": "daily", "amount": 5, "window": "day", "scope": "key"}
        await proxy.ask("POST", "/apportion/budgets", form)
        _, secret = await proxy.made(name="carol", team="red", budget={"usd": 3})
        own = await proxy.ask("GET", "/apportion/keys/self", key=secret)
        left = [
            (each["budget"], each["subject"], each["spent"], each["left"]) for each in own.json["budgets"]
        ]
        assert left == [
            ("daily", "key:carol", "0", "5"),
            ("key:carol:usd", "key:carol", "0", "3"),
            ("team:red:tokens", "team:red", "0", "70"),
        ]
        listed = (await proxy.ask("GET", "/apportion/budgets")).json["data"]
        assert [(each["name"], each["source"]) for each in listed] == [
            ("whole", "configuration"),
            ("daily", "database"),
            ("team:red:tokens", "database"),
            ("key:carol:usd", "database"),
        ]
        for name in ("team:red:tokens", "key:carol:usd"):
            shown = await proxy.ask("GET", f"/apportion/budgets/{name}")
            assert (shown.status, shown.json["source"]) == (200, "database")

    @pytest.mark.parametrize(
        ("form", "field"),
        [
            ({"name": "x"}, "amount"),
            ({"name": "x", "amount": 1, "resource": "flops"}, "resource"),
            ({"name": "x", "amount": 1, "resource": "nothing"}, "resource"),
            ({"name": "x", "amount": 1, "scope": "everybody"}, "scope"),
            ({"name": "x", "amount": 1, "scope": "key:nobody"}, "scope"),
            ({"name": "x", "amount": 1, "scope": "model:nothing"}, "scope"),
            ({"name": "x", "amount": 1, "window": "day", "refill_per_s": 1}, None),
            ({"name": "x", "amount": 1, "window": "day", "sliding": True}, "sliding"),
            ({"name": "key:x", "amount": 1}, "name"),
            ({"name": "x@y", "amount": 1}, "name"),
        ],
    )
    async def test_wrong_budgets(self, proxy: Proxy, form: dict[str, Any], field: str | None) -> None:
        answer = await proxy.ask("POST", "/apportion/budgets", form)
        assert (answer.status, answer.json["error"]["param"]) == (400, field), answer.text
        assert proxy.people.version() == 0

    async def test_a_change_must_leave_a_right_budget(self, proxy: Proxy) -> None:
        await proxy.ask("POST", "/apportion/budgets", {"name": "x", "amount": 1, "window": "1h"})
        answer = await proxy.ask("PATCH", "/apportion/budgets/x", {"refill_per_s": 1})
        assert answer.status == 400
        answer = await proxy.ask("PATCH", "/apportion/budgets/x", {"scope": "key"})
        assert (answer.status, answer.json["error"]["param"]) == (400, "scope"), "an account stays what it is"


class TestAudit:
    async def test_who_did_what(self, proxy: Proxy) -> None:
        id, secret = await proxy.made(name="carol", admin=True)
        await proxy.ask("PATCH", f"/apportion/keys/{id}", {"admin": False}, key=secret)
        await proxy.ask("POST", f"/apportion/keys/{id}/rotate")
        lines = (await proxy.ask("GET", "/apportion/audit")).json["data"]
        assert [(each["actor"], each["action"], each["object"]) for each in lines] == [
            ("key:boss", "rotate", "key:carol"),
            ("key:carol", "change", "key:carol"),
            ("key:boss", "create", "key:carol"),
        ]
        assert lines[1]["detail"] == {"admin": False}
        assert len((await proxy.ask("GET", "/apportion/audit?limit=1")).json["data"]) == 1
        for limit in ("0", "x", "1001", "-1"):
            assert (await proxy.ask("GET", f"/apportion/audit?limit={limit}")).status == 400

    async def test_nothing_secret_is_told_anywhere(
        self, proxy: Proxy, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        id, first = await proxy.made(name="carol", admin=True)
        second = (await proxy.ask("POST", f"/apportion/keys/{id}/rotate", {"grace": "1h"})).json["key"]
        await proxy.ask("GET", "/v1/models", key=f"{second}x")
        await proxy.ask("POST", "/apportion/keys", {"name": first, "unknown": second}, key=first)
        with proxy.people._engine.connect() as connection:
            digests = [
                value
                for row in connection.exec_driver_sql("SELECT digest, previous_digest FROM keys").all()
                for value in row
            ]
        said = [caplog.text]
        for route in proxy.gateway.routes.table:
            if route.method == "GET":
                said.append((await proxy.ask("GET", filled(route.path), key=second)).text)
                said.append((await proxy.ask("GET", filled(route.path), key=f"{first}x")).text)
        for word in (first[-43:], second[-43:], proxy.people.pepper.decode(), *digests):
            assert not any(word in text for text in said)


class TestDatabase:
    async def test_it_is_asked_in_a_thread(self, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
        asked_in: list[int] = []
        people = proxy.gateway.admin.people
        assert people is not None
        ask = people.all_keys
        monkeypatch.setattr(people, "all_keys", lambda: (asked_in.append(threading.get_ident()), ask())[1])
        assert (await proxy.ask("GET", "/apportion/keys")).status == 200
        assert asked_in
        assert threading.get_ident() not in asked_in

    async def test_one_that_hangs_takes_only_so_many(
        self, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(admin, "_WAITING", 4)
        answers = threading.Event()
        monkeypatch.setattr(proxy.gateway.admin.people, "all_keys", lambda: answers.wait(240) and [])
        waiting = [asyncio.create_task(proxy.ask("GET", "/apportion/keys")) for _ in range(4)]
        while proxy.gateway.admin._waiting < 4:
            await asyncio.sleep(0.01)
        assert (await proxy.ask("GET", "/apportion/keys")).status == 503
        # What else needs a thread is not kept waiting, nor is who is known already.
        assert await asyncio.to_thread(lambda: "done") == "done"
        assert (await proxy.ask("GET", "/v1/models", key="sk-user")).status == 200
        answers.set()
        assert {(await each).status for each in waiting} == {200}
        assert (await proxy.ask("GET", "/apportion/keys")).status == 200

    async def test_one_that_does_not_answer(self, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail() -> None:
            raise UnreachableError("no route to db.internal, password x", field="ledger.url")

        people = proxy.gateway.admin.people
        monkeypatch.setattr(people, "all_keys", fail)
        answer = await proxy.ask("GET", "/apportion/keys")
        assert (answer.status, answer.json["error"]["code"]) == (503, "ledger_unavailable")
        assert "db.internal" not in answer.text
        assert (await proxy.ask("GET", "/v1/models", key="sk-user")).status == 200, "who is known stays known"

    async def test_what_others_change_is_taken_over(self, proxy: Proxy) -> None:
        _, secret = await proxy.made(name="carol")
        assert (await proxy.ask("GET", "/v1/models", key=secret)).status == 200
        proxy.people.delete_key("carol", "cli:somebody")
        await proxy.gateway.admin.refresh()
        assert (await proxy.ask("GET", "/v1/models", key=secret)).status == 401
        before = proxy.gateway.runtime.people
        await proxy.gateway.admin.refresh()
        assert proxy.gateway.runtime.people is before, "nothing has changed"


async def test_methods_that_a_path_has(proxy: Proxy) -> None:
    for path, allow in (
        ("/apportion/keys", "get, head, post"),
        ("/apportion/keys/x", "delete, get, head, patch"),
        ("/apportion/keys/x/rotate", "post"),
        ("/v1/models", "get, head"),
    ):
        answer = await proxy.ask("PUT", path, {})
        assert (answer.status, answer.headers["allow"]) == (405, allow)
