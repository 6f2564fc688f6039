"""The upstreams, and the check that what comes back through a gateway is what they sent."""

from __future__ import annotations

import http.client
import json
import time

from benchmarks.gateway.gateways import nginx_command, nginx_program
from benchmarks.gateway.payload import API_KEY, MODEL, answer_body, request_body
from benchmarks.gateway.processes import Bench, BenchError, Child, free_port, module


def start_fixed(bench: Bench) -> int:
    """An nginx that answers every request with the same chat completion; returns its port.

    `return` discards the request's body and keeps the connection: `check_drains` holds it to that.
    """
    if nginx_program() is None:
        raise BenchError(
            "nginx is needed: it is the upstream and the yardstick (Debian: apt install nginx-light)"
        )
    port = free_port()
    answer = answer_body().decode().replace("\\", "\\\\").replace("'", "\\'")
    models = json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "bench"}]})
    child = bench.start(
        "upstream",
        nginx_command(
            bench.directory,
            "upstream",
            f"""
            server {{
                listen 127.0.0.1:{port} backlog=4096;
                client_body_buffer_size 64k;
                location / {{ return 200 '{answer}'; }}
                location = /health {{ return 200 '{{}}'; }}
                location = /v1/models {{ return 200 '{models}'; }}
            }}
            """,
        ),
        gateway=False,
    )
    wait_for_answer(child, port, limit_s=10)
    check_drains(port)
    return port


def start_streams(bench: Bench) -> int:
    """The upstream of streams; returns its port."""
    port = free_port()
    child = bench.start("streams", module("stream_upstream", "--port", str(port)), gateway=False)
    _wait(child, port, "GET", "/v1/models", None, limit_s=10)
    return port


def wait_for_answer(child: Child, port: int, *, limit_s: float) -> float:
    """Ask until a chat completion is answered with 200; seconds since the program was started.

    Raises BenchError when the program ends, or gives no whole answer within `limit_s` seconds.
    """
    body = _wait(child, port, "POST", "/v1/chat/completions", request_body(), limit_s=limit_s)
    started_s = time.monotonic() - child.started_s
    answer = json.loads(body)
    if answer.get("usage", {}).get("total_tokens") != 187:
        raise BenchError(f"{child.name} changed the answer: {body[:300]!r}")
    return started_s


def wait_for_models(child: Child, port: int, *, limit_s: float) -> float:
    """Ask for the list of models until it is answered with 200; seconds since the program was started."""
    _wait(child, port, "GET", "/v1/models", None, limit_s=limit_s)
    return time.monotonic() - child.started_s


def check_drains(port: int) -> None:
    """Raise BenchError unless three requests on one connection are read whole and answered."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.connect()
    own_socket = connection.sock
    for _ in range(3):
        connection.request("POST", "/v1/chat/completions", request_body(), _headers())
        response = connection.getresponse()
        if response.status != 200 or response.read() != answer_body() or connection.sock is not own_socket:
            raise BenchError("the upstream does not read request bodies, or closes its connections")
    connection.close()


def open_streams(port: int) -> int:
    """How many streams the upstream of streams has open."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/stats")
    count = int(json.loads(connection.getresponse().read())["open_streams"])
    connection.close()
    return count


def _headers() -> dict[str, str]:
    return {"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"}


def _wait(child: Child, port: int, method: str, path: str, body: bytes | None, *, limit_s: float) -> bytes:
    deadline_s = child.started_s + limit_s
    last = "nothing answered"
    while time.monotonic() < deadline_s:
        child.check()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request(method, path, body, _headers())
            response = connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException) as error:
            last = repr(error)
        else:
            if response.status == 200:
                return data
            last = f"{response.status} {data[:300]!r}"
        finally:
            connection.close()
        time.sleep(0.01)
    raise BenchError(f"{child.name} gave no answer within {limit_s:.0f} s; last: {last} (log: {child.log})")
