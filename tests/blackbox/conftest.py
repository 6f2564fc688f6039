"""One upstream and one proxy for the whole session; tests that need another configuration start their own."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from .proxy import SECRETS, Gateway
from .upstream import Upstream

PRICE = {"input_usd_per_mtok": 10.0, "output_usd_per_mtok": 1000.0}
"""Dear enough that dollars are seen: an output token is a tenth of a cent."""
PATIENT = {"connect_s": 20.0, "first_token_s": 20.0, "gap_s": 20.0, "total_s": 60.0}
QUICK = {"connect_s": 3.0, "first_token_s": 4.0, "gap_s": 4.0, "total_s": 10.0}
"""For those that are there to run out; what must not run out is asked of an endpoint that is patient."""
FAIL_FAST: dict[str, Any] = {"attempts": 1}
NEVER_OPEN = {"failures": 1_000_000, "open_s": 1e-6, "max_open_s": 1e-6}
"""Faults of one test must not take the endpoint away from the next; nor must a long retry-after."""

Json = dict[str, Any]


@pytest.fixture(scope="session")
def authorities() -> dict[str, trustme.CA]:
    return {"trusted": trustme.CA(), "stranger": trustme.CA()}


@pytest.fixture(scope="session")
def ca_file(authorities: dict[str, trustme.CA], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authorities["trusted"].cert_pem.write_to_path(str(path))
    return path


@pytest.fixture(scope="session")
def upstream(authorities: dict[str, trustme.CA]) -> Iterator[Upstream]:
    trusted, stranger = authorities["trusted"], authorities["stranger"]
    certificates = {
        "trusted": trusted.issue_cert("localhost", "127.0.0.1"),
        "misnamed": trusted.issue_cert("elsewhere.test"),
        "stranger": stranger.issue_cert("localhost", "127.0.0.1"),
    }
    contexts = {name: ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) for name in certificates}
    for name, certificate in certificates.items():
        certificate.configure_cert(contexts[name])
    server = Upstream(contexts).start()
    yield server
    server.stop()
    assert server.complaints == [], server.complaints[:10]


@pytest.fixture(scope="session")
def closed_port() -> Iterator[int]:
    """A port that refuses: bound, so that nobody else gets it, but not listening."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        yield int(s.getsockname()[1])


@pytest.fixture(scope="session")
def deaf_port() -> Iterator[int]:
    """A port whose queue is full: connecting to it never ends."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen(0)
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(s.getsockname())
            fillers.append(filler)
        yield int(s.getsockname()[1])
        for filler in fillers:
            filler.close()


def endpoint(kind: str, base: str, name: str, **more: Any) -> Json:
    """One endpoint whose requests the upstream sees under ``name``."""
    return {
        "kind": kind,
        "base_url": f"{base}/{name}/v1",
        "api_key": "${UPSTREAM_KEY}",
        "headers": {"x-from-config": "${UPSTREAM_HEADER}"},
        "model": f"{kind}-model",
        "price": PRICE,
        "timeouts": PATIENT,
        "breaker": NEVER_OPEN,
        **more,
    }


def model(*endpoints: str, **more: Any) -> Json:
    return {"endpoints": list(endpoints), "policy": "route/round_robin", "retries": FAIL_FAST, **more}


KEYS = [
    {"name": "alice", "secret": "${KEY_ALICE}", "tags": {"team": "red"}},
    {"name": "bob", "secret": "${KEY_BOB}", "models": ["openai-one"]},
    {"name": "admin", "secret": "${KEY_ADMIN}", "admin": True},
]


@pytest.fixture(scope="session")
def base_config(upstream: Upstream, ca_file: Path, closed_port: int, deaf_port: int) -> Json:
    """Healthy groups of one and of two for each kind, and for each fault that an address can have."""
    plain, local = f"http://127.0.0.1:{upstream.port}", "https://localhost"
    endpoints: Json = {}
    models: Json = {}
    bad: dict[str, Json] = {
        "refused": {"base_url": f"http://127.0.0.1:{closed_port}/v1"},
        "deaf": {"base_url": f"http://127.0.0.1:{deaf_port}/v1"},
        "dns": {"base_url": "http://no-such-host.invalid/v1"},
        "stranger": {
            "base_url": f"{local}:{upstream.tls_ports['stranger']}/x/v1",
            "tls": {"ca_file": str(ca_file)},
        },
        "wrong_name": {
            "base_url": f"{local}:{upstream.tls_ports['misnamed']}/x/v1",
            "tls": {"ca_file": str(ca_file)},
        },
        "tls_to_plain": {"base_url": f"https://127.0.0.1:{upstream.port}/x/v1"},
        "plain_to_tls": {"base_url": f"http://127.0.0.1:{upstream.tls_ports['trusted']}/x/v1"},
    }
    two = {"attempts": 2, "backoff_s": 0.01}
    for name in ("deaf", "dns", "tls_to_plain"):  # the others are said, not waited for
        bad[name]["timeouts"] = QUICK
    for kind in ("openai", "anthropic"):
        for letter in "ab":
            endpoints[f"{kind}-{letter}"] = endpoint(kind, plain, f"{kind}-{letter}")
            quick = f"{kind}-quick-{letter}"
            endpoints[quick] = endpoint(kind, plain, quick, timeouts=QUICK)
        for name in (kind, f"{kind}-quick"):
            models[f"{name}-one"] = model(f"{name}-a")
            models[f"{name}-two"] = model(f"{name}-a", f"{name}-b", retries=two)
        models[f"{kind}-retry"] = model(f"{kind}-a", retries={"attempts": 3, "backoff_s": 0.01})
        for name, fields in bad.items():
            endpoints[f"{kind}-{name}"] = endpoint(kind, plain, name, **fields)
            models[f"{kind}-{name}-one"] = model(f"{kind}-{name}")
            models[f"{kind}-{name}-two"] = model(f"{kind}-{name}", f"{kind}-b", retries=two)
        if kind == "openai":
            endpoints["openai-chatonly"] = endpoint(kind, plain, "openai-chatonly", apis=["chat"])
            models["openai-chatonly"] = model("openai-chatonly")
        tls = {"base_url": f"{local}:{upstream.tls_ports['trusted']}/{kind}-tls/v1"}
        endpoints[f"{kind}-tls"] = endpoint(kind, plain, "", **tls, tls={"ca_file": str(ca_file)})
        models[f"{kind}-tls"] = model(f"{kind}-tls")
        endpoints[f"{kind}-unpriced"] = endpoint(kind, plain, f"{kind}-unpriced", price="unknown")
        models[f"{kind}-unpriced"] = model(f"{kind}-unpriced")
        # for tests in which the upstream is slow on purpose
        endpoints[f"{kind}-slow"] = endpoint(kind, plain, f"{kind}-slow")
        models[f"{kind}-slow"] = model(f"{kind}-slow")
        endpoints[f"{kind}-slow-b"] = endpoint(kind, plain, f"{kind}-slow-b")
        models[f"{kind}-slow-two"] = model(f"{kind}-slow", f"{kind}-slow-b", retries=two)
    return {
        "listen": {"drain_s": 5},
        "http": {"header_timeout_s": 4, "body_timeout_s": 4, "idle_timeout_s": 30},
        "keys": KEYS,
        "endpoints": endpoints,
        "models": models,
    }


@pytest.fixture(scope="session")
def gateway(base_config: Json, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The proxy that most tests share."""
    running = Gateway(tmp_path_factory.mktemp("gateway"), base_config).start()
    yield running
    running.stop()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Gateway]]:
    """Start a proxy of one's own; stopped and searched at the end unless the test did so."""
    running: list[Gateway] = []

    def begin(config: Json, *args: str, **more: Any) -> Gateway:
        directory = tmp_path / f"gateway-{len(running)}"
        directory.mkdir()
        running.append(Gateway(directory, config, *args, **more))
        return running[-1].start()

    yield begin
    for one in running:
        if one.process is not None and one.process.poll() is None:
            one.stop()
        else:
            one.kill()


@pytest.fixture
def small_config(upstream: Upstream) -> Callable[..., Json]:
    """A configuration of one openai endpoint ``solo``; keyword arguments replace top-level keys."""

    def build(**more: Any) -> Json:
        plain = f"http://127.0.0.1:{upstream.port}"
        return {
            "keys": [k for k in KEYS if k["name"] != "bob"],
            "endpoints": {"solo": endpoint("openai", plain, "solo")},
            "models": {"m": model("solo")},
            **more,
        }

    return build


__all__ = ["SECRETS", "endpoint", "model"]
