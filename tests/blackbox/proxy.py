"""The proxy as a process: started with a generated configuration, asked, stopped and searched."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from .dialects import Dialect, Json
from .wire import Headers, Response, Wire, ask, request_bytes

START_S = 120.0
STOP_S = 60.0

SECRETS = {
    "KEY_ALICE": "sk-alice-SECRET-5f0c2d9a71",
    "KEY_BOB": "sk-bob-SECRET-8a41e7b3c6",
    "KEY_ADMIN": "sk-admin-SECRET-d07b11f2e9",
    "UPSTREAM_KEY": "up-key-SECRET-93cd40aa58",
    "UPSTREAM_HEADER": "up-header-SECRET-1be6f07d24",
}
"""Words that must never be seen anywhere but in the headers where they belong."""


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Gateway:
    """One running proxy."""

    def __init__(
        self, directory: Path, config: Json, *args: str, env: Mapping[str, str] | None = None
    ) -> None:
        self.directory = directory
        self.config_file = directory / "apportion.yaml"
        self.write(config)
        self.port = free_port()
        self.mark = f"blackbox-{uuid.uuid4().hex}"
        self.args = args
        self.env = {
            **{
                k: v
                for k, v in os.environ.items()
                if not k.startswith(("APPORTION", "OPENAI", "ANTHROPIC", "XDG"))
            },
            **SECRETS,
            "HOME": str(directory),
            "PYTHONUNBUFFERED": "1",
            "BLACKBOX": self.mark,
            **(env or {}),
        }
        self.process: subprocess.Popen[bytes] | None = None

    # -- life

    def write(self, config: Json | str) -> None:
        self.config_file.write_text(
            config if isinstance(config, str) else yaml.safe_dump(config, sort_keys=False)
        )

    def start(self, within_s: float = START_S) -> Gateway:
        command = [sys.executable, "-m", "apportion.cli", "serve", "--config", str(self.config_file)]
        command += ["--port", str(self.port), *self.args]
        with (self.directory / "stdout").open("ab") as out, (self.directory / "stderr").open("ab") as err:
            self.process = subprocess.Popen(
                command,
                stdout=out,
                stderr=err,
                stdin=subprocess.DEVNULL,
                env=self.env,
                start_new_session=True,
            )
        self.wait_ready(within_s)
        return self

    def wait_ready(self, within_s: float = START_S) -> None:
        assert self.process is not None
        until = time.monotonic() + within_s
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise AssertionError(
                    f"the proxy ended with {self.process.returncode}: {self.output()[-3000:]}"
                )
            try:
                with urllib.request.urlopen(f"{self.url}/health/ready", timeout=5) as answer:
                    # with several workers the first is ready before the last
                    if answer.status == 200 and "listens on" in self.output():
                        return
            except (urllib.error.URLError, OSError):
                pass
            time.sleep(0.05)
        self.kill()
        raise AssertionError(f"the proxy was not ready after {within_s} s: {self.output()[-3000:]}")

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, within_s: float = STOP_S) -> int:
        """Exit status of the main process; the whole session is killed when it does not come in time."""
        assert self.process is not None
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(
                f"the proxy did not stop within {within_s} s: {self.output()[-3000:]}"
            ) from None

    def stop(self) -> None:
        """SIGTERM; must exit 0, leave no process and have written neither secret nor traceback."""
        assert self.process is not None
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        status = self.wait()
        left = self.processes()
        self.kill()
        assert status == 0, f"exit status {status}: {self.output()[-3000:]}"
        assert left == [], f"processes left behind: {left}"
        self.search()

    def kill(self) -> None:
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if self.process is not None:
            self.process.wait(STOP_S)

    def processes(self) -> list[int]:
        """Live processes that the proxy is or has started: by session, or by the mark in their environment."""
        assert self.process is not None
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                after = (entry / "stat").read_text().rpartition(")")[2].split()
                marked = self.mark.encode() in (entry / "environ").read_bytes()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            if (marked or int(after[3]) == self.process.pid) and after[0] != "Z":
                found.append(int(entry.name))
        return found

    def rss_bytes(self) -> int:
        """Resident memory of all its processes."""
        total = 0
        for pid in self.processes():
            try:
                total += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            except (FileNotFoundError, ProcessLookupError):
                pass
        return total * os.sysconf("SC_PAGE_SIZE")

    def output(self) -> str:
        return "".join((self.directory / n).read_text(errors="replace") for n in ("stdout", "stderr"))

    def search(self) -> None:
        """No secret, no content and no traceback in what it wrote."""
        output = self.output()
        assert_no_secret(output)
        assert "marker-" not in output, "content of a request was logged"
        at = output.find("Traceback")
        assert at < 0, output[at : at + 4000]

    # -- asking

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def headers(self, dialect: Dialect | str = "openai", key: str | None = "KEY_ALICE") -> dict[str, str]:
        sdk = dialect if isinstance(dialect, str) else dialect.sdk
        found = {"content-type": "application/json"}
        if key is not None:
            secret = SECRETS.get(key, key)
            found |= {"x-api-key": secret} if sdk == "anthropic" else {"authorization": f"Bearer {secret}"}
        if sdk == "anthropic":
            found["anthropic-version"] = "2023-06-01"
        return found

    def bytes_of(
        self, dialect: Dialect, body: Json | bytes, headers: Headers = (), key: str | None = "KEY_ALICE"
    ) -> bytes:
        raw = body if isinstance(body, bytes) else encode(body)
        return request_bytes("POST", dialect.path, {**self.headers(dialect, key), **dict(headers)}, raw)

    async def post(
        self, dialect: Dialect, body: Json | bytes, headers: Headers = (), key: str | None = "KEY_ALICE"
    ) -> Response:
        """One request, whole answer, on a connection of its own."""
        async with await Wire.open(self.port) as wire:
            await wire.send(self.bytes_of(dialect, body, headers, key))
            return await wire.read()

    async def get(self, target: str, key: str | None = "KEY_ADMIN", headers: Headers = ()) -> Response:
        return await ask(self.port, "GET", target, {**self.headers(key=key), **dict(headers)})

    async def decision(self, response: Response) -> Json:
        """The record of the decision that ``response`` names."""
        name = response.header("x-apportion-decision-id")
        assert name, response.headers
        found = await self.get(f"/apportion/decisions/{name}")
        assert found.status == 200, found.body
        assert_no_secret(found.body.decode())
        return dict(found.json)

    async def metrics(self) -> dict[str, float]:
        """Every sample of ``/metrics``: ``name{label="value",...}`` (labels sorted) to its value."""
        response = await self.get("/metrics")
        assert response.status == 200
        assert_no_secret(response.body.decode())
        found = {}
        for family in text_string_to_metric_families(response.body.decode()):
            for sample in family.samples:
                labels = ",".join(f'{k}="{v}"' for k, v in sorted(sample.labels.items()))
                found[f"{sample.name}{{{labels}}}"] = sample.value
        return found

    async def total(self, name: str, **labels: str) -> float:
        """Sum of all samples called ``name`` that have these labels."""
        wanted = [f'{k}="{v}"' for k, v in labels.items()]
        found = await self.metrics()
        return sum(v for k, v in found.items() if k.startswith(name + "{") and all(w in k for w in wanted))


def encode(body: Any) -> bytes:
    return json.dumps(body).encode()


def assert_no_secret(text: str) -> None:
    for name, secret in SECRETS.items():
        assert secret not in text, f"{name} leaked near {text[max(0, text.find(secret) - 200) :][:400]!r}"
        assert secret[-10:] not in text, f"part of {name} leaked"
