"""Life of the process: start, reload with open streams, several workers, drain, stop."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import KEYS, Json, endpoint, model
from .dialects import CHAT, own_error
from .proxy import Gateway, assert_no_secret
from .shapes import Want
from .upstream import Upstream, new_marker
from .wire import Response, Wire, ask, request_bytes


@pytest.fixture
def config(upstream: Upstream) -> Json:
    plain = f"http://127.0.0.1:{upstream.port}"
    return {
        "listen": {"drain_s": 30},
        "keys": [k for k in KEYS if k["name"] != "bob"],
        "endpoints": {"solo": endpoint("openai", plain, "solo")},
        "models": {"m": model("solo")},
    }


async def open_stream(gateway: Gateway, upstream: Upstream, words: int) -> tuple[Wire, Response, str]:
    """A stream of ``words`` words, fifty a second, whose head has come."""
    marker = upstream.script(new_marker(), want=Want(words=words), delay_s=0.02)
    wire = await Wire.open(gateway.port)
    await wire.send(gateway.bytes_of(CHAT, CHAT.request("m", marker, stream=True)))
    return wire, await wire.head(), marker


async def rest(wire: Wire, response: Response) -> str:
    """The text of the stream, which must end well."""
    events = [e async for e in wire.events(response)]
    await wire.close()
    assert response.complete
    assert CHAT.ended(events), response.body[-500:]
    return CHAT.stream_text(events)


async def refuses(gateway: Gateway) -> bool:
    """Whether new connections are turned away."""
    try:
        await (await Wire.open(gateway.port)).close()
    except OSError:
        return True
    return False


async def until(condition: Callable[[], object], what: str) -> None:
    for _ in range(3000):
        result = condition()
        if asyncio.iscoroutine(result):
            result = await result
        if result:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"never came true: {what}")


class TestReload:
    async def test_new_model_appears_and_an_open_stream_survives(
        self, start: Callable[..., Gateway], config: Json, upstream: Upstream
    ) -> None:
        gateway = start(config)
        wire, response, _ = await open_stream(gateway, upstream, 60)
        plain = f"http://127.0.0.1:{upstream.port}"
        changed = {
            **config,
            "endpoints": {"other": endpoint("openai", plain, "other")},
            "models": {"fresh": model("other")},
        }
        gateway.write(changed)
        gateway.signal(signal.SIGHUP)

        async def fresh() -> bool:
            return (await gateway.post(CHAT, CHAT.request("fresh", "x"))).status == 200

        await until(fresh, "the new model is served")
        gone = await gateway.post(CHAT, CHAT.request("m", "x"))
        own_error(CHAT, gone, 404, "model_not_found")
        assert await rest(wire, response) == " ".join(f"w{i}" for i in range(60))

    @pytest.mark.parametrize(
        "broken",
        [
            "nonsense: [",
            "",
            "endpoints: 5",
            "unknown_key: 1",
            "models: {m: {endpoints: [missing]}}",
            "keys: [{name: a, secret: '${NOT_SET_ANYWHERE}'}]",
            "\x00\x01",
        ],
        ids=repr,
    )
    async def test_invalid_file_never_replaces_a_valid_one(
        self, start: Callable[..., Gateway], config: Json, broken: str
    ) -> None:
        gateway = start(config)
        gateway.write(broken)
        gateway.signal(signal.SIGHUP)
        await until(lambda: "configuration not reloaded" in gateway.output(), "somebody is told")
        for _ in range(5):
            assert (await gateway.post(CHAT, CHAT.request("m", "x"))).status == 200
        # and a repaired file is taken
        gateway.write({**config, "models": {"m": model("solo"), "repaired": model("solo")}})
        gateway.signal(signal.SIGHUP)

        async def repaired() -> bool:
            return (await gateway.post(CHAT, CHAT.request("repaired", "x"))).status == 200

        await until(repaired, "the repaired file is used")

    async def test_missing_file(self, start: Callable[..., Gateway], config: Json) -> None:
        gateway = start(config)
        gateway.config_file.unlink()
        gateway.signal(signal.SIGHUP)
        await until(lambda: "configuration not reloaded" in gateway.output(), "somebody is told")
        assert (await gateway.post(CHAT, CHAT.request("m", "x"))).status == 200

    async def test_revoked_key(self, start: Callable[..., Gateway], config: Json) -> None:
        """After the reload the key is refused, on connections that were open as well."""
        gateway = start(config)
        raw = gateway.bytes_of(CHAT, CHAT.request("m", "x"))
        async with await Wire.open(gateway.port) as wire:
            await wire.send(raw)
            assert (await wire.read()).status == 200
            gateway.write({**config, "keys": [k for k in config["keys"] if k["name"] != "alice"]})
            gateway.signal(signal.SIGHUP)

            async def refused() -> bool:
                return (await gateway.post(CHAT, CHAT.request("m", "x"))).status == 401

            await until(refused, "the key is refused")
            await wire.send(raw)
            assert (await wire.read()).status == 401

    async def test_many_reloads_under_load(
        self, start: Callable[..., Gateway], config: Json, upstream: Upstream
    ) -> None:
        """Reloads are not seen by those who are being served, and nothing piles up."""
        gateway = start(config)
        done = asyncio.Event()
        statuses: list[int] = []

        async def load() -> None:
            while not done.is_set():
                statuses.append((await gateway.post(CHAT, CHAT.request("m", "x"))).status)

        tasks = [asyncio.ensure_future(load()) for _ in range(4)]
        for i in range(10):
            gateway.write({**config, "models": {"m": model("solo"), f"extra-{i}": model("solo")}})
            gateway.signal(signal.SIGHUP)
            await asyncio.sleep(0.05)
        done.set()
        await asyncio.gather(*tasks)
        assert set(statuses) == {200}
        assert len(gateway.processes()) <= 2


class TestWorkers:
    async def test_metrics_and_decisions_over_all_workers(
        self, start: Callable[..., Gateway], config: Json, upstream: Upstream
    ) -> None:
        """Whoever answers `/metrics` or a decision answers for all; several workers do serve."""
        gateway = start(config, "--workers", "2")
        marker = new_marker()
        answers = await asyncio.gather(*(gateway.post(CHAT, CHAT.request("m", marker)) for _ in range(40)))
        assert [a.status for a in answers] == [200] * 40
        billed = sum(s.tokens_out for s in upstream.of(marker))
        assert billed == 320

        async def added_up() -> bool:
            found = await gateway.metrics()
            out = sum(v for k, v in found.items() if "token" in k and "_total" in k and "output" in k)
            return out == billed

        await until(added_up, "output tokens in the metrics are those billed")
        for _ in range(8):
            assert await added_up(), "two scrapes disagree"
        for answer in answers:
            record = await gateway.decision(answer)
            assert record["id"] == answer.header("x-apportion-decision-id")
        missing = await gateway.get("/apportion/decisions/none")
        assert missing.status == 404

    async def test_reload_and_stop_reach_every_worker(
        self, start: Callable[..., Gateway], config: Json, upstream: Upstream
    ) -> None:
        gateway = start(config, "--workers", "2")
        gateway.write({**config, "models": {"fresh": model("solo")}})
        gateway.signal(signal.SIGHUP)

        async def everywhere() -> bool:
            answers = await asyncio.gather(
                *(gateway.post(CHAT, CHAT.request("fresh", "x")) for _ in range(16))
            )
            workers = {(a.header("x-request-id") or "")[: len("req_00")] for a in answers}
            return len(workers) == 2 and all(a.status == 200 for a in answers)

        await until(everywhere, "every worker serves the new model")
        wire, response, _ = await open_stream_of(gateway, upstream, "fresh", 40)
        gateway.signal(signal.SIGTERM)
        assert await rest(wire, response) == " ".join(f"w{i}" for i in range(40))
        gateway.stop()

    async def test_a_killed_worker_is_replaced(self, start: Callable[..., Gateway], config: Json) -> None:
        import os

        gateway = start(config, "--workers", "2")
        assert gateway.process is not None
        children = [p for p in gateway.processes() if p != gateway.process.pid]
        assert len(children) >= 2
        os.kill(children[0], signal.SIGKILL)

        async def healed() -> bool:
            now = [p for p in gateway.processes() if gateway.process and p != gateway.process.pid]
            return len(now) >= len(children) and children[0] not in now

        await until(healed, "there are as many workers as before")
        answers = await asyncio.gather(*(gateway.post(CHAT, CHAT.request("m", "x")) for _ in range(16)))
        assert [a.status for a in answers] == [200] * 16


async def open_stream_of(
    gateway: Gateway, upstream: Upstream, name: str, words: int
) -> tuple[Wire, Response, str]:
    marker = upstream.script(new_marker(), want=Want(words=words), delay_s=0.02)
    wire = await Wire.open(gateway.port)
    await wire.send(gateway.bytes_of(CHAT, CHAT.request(name, marker, stream=True)))
    return wire, await wire.head(), marker


class TestStop:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    async def test_drains(
        self, start: Callable[..., Gateway], config: Json, upstream: Upstream, number: int
    ) -> None:
        """An open stream is finished, nobody new is let in, and the exit status is 0."""
        gateway = start(config)
        wire, response, _ = await open_stream(gateway, upstream, 60)
        gateway.signal(number)
        await until(lambda: refuses(gateway), "nobody new is let in")
        assert await rest(wire, response) == " ".join(f"w{i}" for i in range(60))
        gateway.stop()

    async def test_idle_connections_do_not_delay(self, start: Callable[..., Gateway], config: Json) -> None:
        gateway = start({**config, "listen": {"drain_s": 600}})
        idle = [await Wire.open(gateway.port) for _ in range(20)]
        for wire in idle[:10]:
            await wire.send(request_bytes("GET", "/health/live", {}))
            assert (await wire.read()).status == 200
        gateway.signal(signal.SIGTERM)
        assert gateway.wait() == 0
        for wire in idle:
            await wire.close()

    async def test_drain_has_an_end(
        self, start: Callable[..., Gateway], config: Json, upstream: Upstream
    ) -> None:
        """After `drain_s` what is left is cut, honestly: with an error in the stream, not a clean end."""
        gateway = start({**config, "listen": {"drain_s": 0.5}})
        marker = upstream.script(new_marker(), want=Want(words=100_000), delay_s=0.02)
        wire = await Wire.open(gateway.port)
        await wire.send(gateway.bytes_of(CHAT, CHAT.request("m", marker, stream=True)))
        response = await wire.head()
        gateway.signal(signal.SIGTERM)
        events = [e async for e in wire.events(response)]
        await wire.close()
        assert not CHAT.ended(events)
        assert CHAT.error(events) is not None or not response.complete
        gateway.stop()
        await until(lambda: upstream.of(marker)[0].gone_at_s is not None, "the upstream was cancelled")

    async def test_twice_is_at_once(
        self, start: Callable[..., Gateway], config: Json, upstream: Upstream
    ) -> None:
        """A second Ctrl-C does not wait for the drain, and still leaves nothing behind."""
        gateway = start({**config, "listen": {"drain_s": 600}})
        wire, _, _ = await open_stream(gateway, upstream, 100_000)
        gateway.signal(signal.SIGINT)
        await until(lambda: refuses(gateway), "it drains")  # else two signals may be one
        gateway.signal(signal.SIGINT)
        gateway.wait()
        assert gateway.processes() == []
        await wire.close()


class TestStart:
    def run(self, tmp_path: Path, text: str, *args: str) -> subprocess.CompletedProcess[str]:
        path = tmp_path / "apportion.yaml"
        path.write_text(text)
        command = [
            sys.executable,
            "-m",
            "apportion.cli",
            "serve",
            "--config",
            str(path),
            "--port",
            "0",
            *args,
        ]
        return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("modles: {}", ["modles", "models"]),
            ("listen: {prot: 1}", ["prot", "port"]),
            ("listen: {port: high}", ["port"]),
            ("models: {m: {endpoints: [nowhere]}}", ["nowhere"]),
            ("a: [", ["apportion.yaml"]),
            ("keys: [{name: a, secret: '${SURELY_NOT_SET}'}]", ["SURELY_NOT_SET"]),
            ("{listen: {host: 0.0.0.0}, auth: {required: false}}", ["auth.required", "127.0.0.1"]),
        ],
        ids=str,
    )
    def test_bad_configuration(self, tmp_path: Path, text: str, words: list[str]) -> None:
        """An exit status, the place and the right word; no traceback."""
        run = self.run(tmp_path, text)
        said = run.stdout + run.stderr
        assert run.returncode not in (0, 1) or "Traceback" not in said
        assert run.returncode != 0
        assert "Traceback" not in said
        for word in words:
            assert word in said, said

    def test_port_taken(self, gateway: Gateway, small_config: Callable[..., Json], tmp_path: Path) -> None:
        text = json.dumps(small_config(keys=[]))
        text = text.replace("${UPSTREAM_KEY}", "x").replace("${UPSTREAM_HEADER}", "x")
        run = self.run(tmp_path, text, "--port", str(gateway.port))
        said = run.stdout + run.stderr
        assert run.returncode not in (0, None)
        assert str(gateway.port) in said
        assert "Traceback" not in said


async def test_health(gateway: Gateway) -> None:
    live = await ask(gateway.port, "GET", "/health/live")
    ready = await ask(gateway.port, "GET", "/health/ready")
    assert (live.status, ready.status) == (200, 200)
    assert_no_secret(live.body.decode() + ready.body.decode())


async def test_metrics_have_bounded_labels(gateway: Gateway) -> None:
    """Names that clients invent never become labels."""
    for i in range(20):
        await gateway.post(CHAT, CHAT.request(f"invented-{i}", "x"), {"user-agent": f"agent-{i}"})
        await gateway.get(f"/v1/invented-path-{i}")
        await gateway.post(CHAT, CHAT.request("openai-one", "x", user=f"user-{i}"), key=f"invented-key-{i}")
    text = json.dumps(list(await gateway.metrics()))
    assert "invented" not in text
    assert "agent-" not in text
    assert "user-1" not in text
