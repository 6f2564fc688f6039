"""`apportion profiles` and `apportion calibrate`, as a person uses them."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from apportion.cli.app import app
from apportion.simulate.profile import Profile, read


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path


class Machine:
    """A server of the OpenAI kind that takes 2 ms for each word and 4 ms for each token, one request at a time. Its
    time is a number: it goes on only when whoever asked has read it, so that all that is heard is exact.
    """

    def __init__(self) -> None:
        self.address = ""
        self.now_s = 0.0
        self.looks = 0

    def perf_counter(self) -> float:
        """The time, for the one that measures."""
        self.looks += 1
        return self.now_s

    async def run(self, ready: threading.Event, stop: asyncio.Event) -> None:
        self.turn = asyncio.Lock()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        ready.set()
        await stop.wait()
        server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        size = next(x for x in head.lower().split(b"\r\n") if x.startswith(b"content-length"))
        body = json.loads(await reader.readexactly(int(size.split()[1])))
        words = len(body["messages"][0]["content"].split())
        sent = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n"
        async with self.turn:
            self.now_s += 0.002 * words
            for _ in range(body["max_tokens"]):
                self.now_s += 0.004
                looks = self.looks
                writer.write(sent + b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n')
                sent = b""
                while self.looks == looks and not writer.is_closing():
                    await asyncio.sleep(0.0005)
        usage = {"prompt_tokens": words, "completion_tokens": body["max_tokens"]}
        writer.write(
            b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\ndata: [DONE]\n\n"
        )
        await writer.drain()
        writer.close()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    loop, ready, stop, made = asyncio.new_event_loop(), threading.Event(), asyncio.Event(), Machine()
    monkeypatch.setattr("apportion.cli.calibrate.time", made)
    thread = threading.Thread(target=lambda: loop.run_until_complete(made.run(ready, stop)))
    thread.start()
    ready.wait()
    yield made
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


def test_calibrating_an_address(home: Path, machine: Machine) -> None:
    done = CliRunner().invoke(
        app,
        [
            *("calibrate", machine.address, "--model", "small", "--name", "mine"),
            *(
                "--max-seconds",
                "60",
                "--max-requests",
                "40",
                "--max-prompt-tokens",
                "128",
                "--max-concurrency",
                "1",
            ),
        ],
    )
    assert done.exit_code == 0, done.output
    assert "Error on held-out measurements" in done.output
    assert "profile: " in done.output
    profile = read(home / "data" / "apportion" / "profiles" / "mine.json")
    slower_s = float(profile.seconds_of(128)) - float(profile.seconds_of(32))
    assert slower_s == pytest.approx(0.002 * (128 - 32), rel=0.02)
    shown = CliRunner().invoke(app, ["profiles", "show", "mine"])
    assert shown.exit_code == 0, shown.output
    assert "Profile mine" in shown.output
    assert "apportion calibrate" in shown.output


def test_what_cannot_be_calibrated(home: Path) -> None:
    run = CliRunner().invoke
    unknown = run(app, ["calibrate", "nobody"])
    assert unknown.exit_code == 1
    assert "There is no endpoint 'nobody'" in unknown.output
    away = run(app, ["calibrate", "http://127.0.0.1:9/v1", "--model", "a", "--max-seconds", "5"])
    assert away.exit_code == 1
    assert "does not answer" in away.output
    assert ".. " not in away.output
    money = run(app, ["calibrate", "http://127.0.0.1:9/v1", "--max-usd", "1"])
    assert money.exit_code == 1
    assert "max-usd" in money.output or "costs is not known" in money.output
    clock = run(app, ["calibrate", "http://127.0.0.1:9/v1", "--clock", "cpu"])
    assert "processor time" in clock.output


def test_listing_and_showing(home: Path) -> None:
    run = CliRunner().invoke
    Profile(name="homemade", tokens=(1.0, 9.0), seconds=(0.1, 0.2)).save(home / "profiles" / "homemade.json")
    listed = json.loads(run(app, ["profiles", "list", "--json"]).output)
    assert {"homemade", "h100-llama2-70b-tp8"} <= {entry["name"] for entry in listed}
    few = run(app, ["profiles", "list", "h100", "BLOOM"]).output
    assert "h100-bloom-176b-tp8" in few
    assert "homemade" not in few
    none = run(app, ["profiles", "list", "zzz"])
    assert "No profile" in none.stderr
    assert none.exit_code == 1
    assert run(app, ["profiles", "list", "zzz", "--json"]).output == "[]\n"
    measured = run(app, ["profiles", "show", "h100-llama2-70b-tp8"]).output
    assert "error of each token" in measured
    assert "measurements fitted" in measured
    assert "token_s" not in measured
    assert "1024 tokens" in run(app, ["profiles"]).output
    own = run(app, ["profiles", "show", "homemade", "--json"]).output
    assert json.loads(own)["tokens"] == [1.0, 9.0]
    sheet = run(app, ["profiles", "show", "roofline:h100/llama3.1-8b/tp1"]).output
    assert "data sheets" in sheet
    Profile(name="api", kind="hosted", ttft_s=0.3, tokens_per_s=80.0).save(home / "api.json")
    assert "80.0 tokens/s" in run(app, ["profiles", "show", "./api.json"]).output
    wrong = run(app, ["profiles", "show", "h100-llama2-70b-tp9"])
    assert wrong.exit_code == 1
    assert "h100-llama2-70b-tp8" in wrong.output
