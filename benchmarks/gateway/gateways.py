"""The gateways under test: whether each is installed, its configuration and its command."""

from __future__ import annotations

import http.client
import importlib.metadata
import json
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, final

from benchmarks.gateway.payload import API_KEY, MODEL, request_body
from benchmarks.gateway.processes import REPOSITORY, BenchError, free_port

RIVALS = REPOSITORY / "benchmarks" / ".rivals"
"""One virtual environment per rival from PyPI, made by `--install-rivals`; ignored by git."""

RIVAL_PACKAGES = {"vllm-router": "vllm-router==0.1.17", "litellm": "litellm[proxy]==1.106.2"}


class Gateway(ABC):
    """Something that passes chat completions on to one upstream on the loopback."""

    name: ClassVar[str]
    title: ClassVar[str]
    required: ClassVar[bool] = False
    """Without it there is no measurement; any other gateway that does not start is left out."""

    @abstractmethod
    def missing(self) -> str | None:
        """Why it cannot be measured here, or None."""

    @abstractmethod
    def version(self) -> str:
        """What was measured."""

    @abstractmethod
    def command(self, directory: Path, port: int, upstream_port: int) -> Sequence[str]:
        """Write the configuration into `directory`; the command that listens on `port`."""

    def env(self) -> Mapping[str, str]:
        """Environment variables it needs."""
        return {}

    def verify(self, port: int) -> None:  # noqa: B027 (most promise nothing)
        """Raise BenchError when what is measured is not what its title says."""


@final
class Nginx(Gateway):
    """The yardstick: `proxy_pass` with kept connections and nothing else.

    Answers are buffered unless the upstream says `X-Accel-Buffering: no`, as the upstream of streams does.
    """

    name = "nginx"
    title = "nginx proxy_pass"
    required = True

    def missing(self) -> str | None:
        return None if nginx_program() else "nginx is not installed"

    def version(self) -> str:
        program = nginx_program()
        return _output([program, "-v"]).rpartition("/")[2] if program else ""

    def command(self, directory: Path, port: int, upstream_port: int) -> Sequence[str]:
        return nginx_command(
            directory,
            "nginx",
            f"""
            upstream bench {{
                server 127.0.0.1:{upstream_port};
                keepalive 2048; keepalive_requests 1000000000; keepalive_timeout 1h;
            }}
            server {{
                listen 127.0.0.1:{port} backlog=4096;
                location / {{
                    proxy_pass http://bench;
                    proxy_http_version 1.1;
                    proxy_set_header Connection "";
                    proxy_read_timeout 1h;
                    client_body_buffer_size 64k;
                }}
            }}
            """,
        )


class _Apportion(Gateway):
    """What both configurations of apportion share."""

    required = True

    def missing(self) -> str | None:
        return None if apportion_program() else "the command apportion is not installed beside this Python"

    def version(self) -> str:
        commit = _output(["git", "-C", str(REPOSITORY), "rev-parse", "--short", "HEAD"])
        return f"{importlib.metadata.version('apportion')} ({commit})"

    def command(self, directory: Path, port: int, upstream_port: int) -> Sequence[str]:
        config = directory / f"{self.name}.yaml"
        # Books of its own; and paused while others are measured, it must not be taken for dead.
        ledger = {"url": f"sqlite:///{directory / self.name}.db", "lease_s": 3600}
        ledger["journal"] = str(directory / f"{self.name}-journal")
        # JSON is YAML.
        config.write_text(json.dumps({**self.config(port, upstream_port), "ledger": ledger}, indent=2))
        return [apportion_program() or "apportion", "serve", "--config", str(config)]

    @abstractmethod
    def config(self, port: int, upstream_port: int) -> dict[str, object]:
        """The contents of `apportion.yaml`."""


@final
class ApportionFull(_Apportion):
    """Everything on: the headline.

    Authentication by key, the key's limits on requests, tokens and parallel requests, a hard dollar budget of
    the key and two budgets over all, the priced choice between two endpoints with prices and predictions,
    accounting from the usage in the answer, metrics, and a record of every decision. No limit is ever
    reached, all are checked.
    """

    name = "apportion"
    title = "apportion, everything on"

    def config(self, port: int, upstream_port: int) -> dict[str, object]:
        url = f"http://127.0.0.1:{upstream_port}/v1"
        return {
            "listen": {"host": "127.0.0.1", "port": port},
            "keys": [
                {
                    "name": "bench",
                    "secret": API_KEY,
                    "admin": True,
                    "tags": {"team": "bench"},
                    "limits": {
                        "requests_per_minute": 1_000_000_000,
                        "tokens_per_minute": 1_000_000_000_000,
                        "parallel": 100_000,
                    },
                    "budget": {"usd": 1_000_000, "window": "1d"},
                }
            ],
            "endpoints": {
                "near": {
                    "kind": "openai",
                    "base_url": url,
                    "api_key": "sk-upstream",
                    "slots": 1000,
                    "price": {"input_usd_per_mtok": 0.15, "output_usd_per_mtok": 0.6},
                    "pool": {"max_connections": 4096},
                },
                "far": {
                    "kind": "openai",
                    "base_url": url,
                    "api_key": "sk-upstream",
                    "slots": 1000,
                    "price": {"input_usd_per_mtok": 0.15, "output_usd_per_mtok": 0.6},
                    "pool": {"max_connections": 4096},
                },
            },
            "models": {
                MODEL: {
                    "endpoints": [
                        {"endpoint": "near", "quality": 0.8, "ttft_s": 0.2, "output_tokens_per_s": 80},
                        {"endpoint": "far", "quality": 0.8, "ttft_s": 0.2, "output_tokens_per_s": 80},
                    ],
                    "policy": "route/priced",
                    "worth_usd": 0.01,
                }
            },
            "prices": {"seconds": 0.0001},
            "budgets": [
                {"name": "day", "resource": "usd", "amount": 10_000_000, "window": "1d"},
                {"name": "flow", "resource": "tokens", "amount": 1e12, "refill_per_s": 1e9},
            ],
            "records": {"decisions": 5000},
        }

    def verify(self, port: int) -> None:
        """A wrong key is refused; an answer has its cost and its decision, and the decision can be read."""
        status, _ = _ask(port, "POST", "/v1/chat/completions", "sk-wrong")
        if status != 401:
            raise BenchError(f"{self.title}: a wrong key was answered {status}, not 401")
        status, headers = _ask(port, "POST", "/v1/chat/completions", API_KEY)
        mark, decision = headers.get("x-apportion-cost-mark"), headers.get("x-apportion-decision-id")
        if status != 200 or mark != "measured" or not decision:
            raise BenchError(f"{self.title}: {status}, cost {mark!r}, decision {decision!r}")
        status, _ = _ask(port, "GET", f"/apportion/decisions/{decision}", API_KEY)
        if status != 200:
            raise BenchError(f"{self.title}: the decision {decision} was answered {status}")


@final
class ApportionMinimal(_Apportion):
    """One open endpoint, without keys, limits, prices or budgets; usage, metrics and records stay on."""

    name = "apportion-minimal"
    title = "apportion, one endpoint"

    def config(self, port: int, upstream_port: int) -> dict[str, object]:
        return {
            "listen": {"host": "127.0.0.1", "port": port},
            "auth": {"required": False},
            "endpoints": {
                "only": {
                    "kind": "openai",
                    "base_url": f"http://127.0.0.1:{upstream_port}/v1",
                    "price": "free",
                    "pool": {"max_connections": 4096},
                }
            },
            "models": {MODEL: {"endpoints": [{"endpoint": "only"}]}},
        }


@final
class VllmRouter(Gateway):
    """The fastest Rust router for this API known to us, choosing among one worker: forwarding only."""

    name = "vllm-router"
    title = "vllm-router"

    def missing(self) -> str | None:
        return None if _rival(self.name) else "vllm-router is not installed (--install-rivals)"

    def version(self) -> str:
        return _rival_version(self.name, "vllm-router")

    def command(self, directory: Path, port: int, upstream_port: int) -> Sequence[str]:
        return [
            _rival(self.name) or self.name,
            *("--host", "127.0.0.1", "--port", str(port)),
            *("--worker-urls", f"http://127.0.0.1:{upstream_port}"),
            *("--policy", "round_robin", "--log-level", "error"),
            *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())),
            *("--max-concurrent-requests", "100000", "--request-timeout-secs", "3600"),
        ]


@final
class LiteLlm(Gateway):
    """The gateway most in use, one worker, with a master key and no database."""

    name = "litellm"
    title = "LiteLLM proxy"

    def missing(self) -> str | None:
        return None if _rival(self.name) else "LiteLLM is not installed (--install-rivals)"

    def version(self) -> str:
        return _rival_version(self.name, "litellm")

    def command(self, directory: Path, port: int, upstream_port: int) -> Sequence[str]:
        config = directory / "litellm.yaml"
        model = {
            "model": f"openai/{MODEL}",
            "api_base": f"http://127.0.0.1:{upstream_port}/v1",
            "api_key": "sk-upstream",
        }
        config.write_text(
            json.dumps(
                {
                    "model_list": [{"model_name": MODEL, "litellm_params": model}],
                    "litellm_settings": {"telemetry": False, "set_verbose": False},
                    "general_settings": {"master_key": API_KEY},
                }
            )
        )
        return [
            _rival(self.name) or self.name,
            *("--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"),
        ]

    def env(self) -> Mapping[str, str]:
        return {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "NO_PROXY": "127.0.0.1"}


ALL: tuple[Gateway, ...] = (Nginx(), ApportionFull(), ApportionMinimal(), VllmRouter(), LiteLlm())


def _ask(port: int, method: str, path: str, key: str) -> tuple[int, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    connection.request(method, path, request_body() if method == "POST" else None, headers)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status, {name.lower(): value for name, value in response.getheaders()}


def apportion_program() -> str | None:
    """The command of the environment this Python belongs to, so that the code beside it is measured."""
    return shutil.which("apportion", path=str(Path(sys.executable).parent))


def nginx_program() -> str | None:
    """The path of nginx, also where only the administrator's PATH has it."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


def nginx_command(directory: Path, name: str, http: str) -> list[str]:
    """Write the configuration of one nginx worker in the foreground; the command that runs it."""
    prefix = directory / f"{name}.d"
    prefix.mkdir(exist_ok=True)
    config = prefix / "nginx.conf"
    temporary = "\n".join(
        f"{kind}_temp_path {prefix};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config.write_text(
        f"""
        daemon off;
        worker_processes 1;
        worker_rlimit_nofile 16384;
        pid {prefix}/pid;
        error_log {prefix}/error.log error;
        events {{ worker_connections 8192; }}
        http {{
            access_log off;
            default_type application/json;
            tcp_nodelay on;
            keepalive_requests 1000000000;
            keepalive_timeout 1h;
            {temporary}
            {http}
        }}
        """
    )
    return [nginx_program() or "nginx", "-p", str(prefix), "-c", str(config), "-e", f"{prefix}/error.log"]


def install_rivals() -> None:
    """Make one virtual environment per rival and install it there from PyPI."""
    for name, package in RIVAL_PACKAGES.items():
        environment = RIVALS / name
        print(f"installing {package} into {environment.relative_to(REPOSITORY)} ...", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        subprocess.run([environment / "bin" / "pip", "install", "--quiet", package], check=True)


def _rival(name: str) -> str | None:
    program = RIVALS / name / "bin" / name
    return str(program) if program.exists() else shutil.which(name)


def _rival_version(name: str, package: str) -> str:
    python = RIVALS / name / "bin" / "python"
    if not python.exists():
        return "unknown"
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return _output([str(python), "-c", code])


def _output(argv: Sequence[str]) -> str:
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.stdout.strip()
