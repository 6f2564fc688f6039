"""`apportion ask` against a scripted proxy on loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from click.testing import CliRunner

from apportion.cli.app import app
from apportion.serve import control

DECISION = {
    "id": "dec_1",
    "explanation": "Chose fast: it was cheapest.",
    "outcome": {"cost_usd": "0.00012", "cost_mark": "measured", "duration_ms": 81.4},
}


class Scripted(ThreadingHTTPServer):
    """Answers with ``events`` (stream), ``answer`` (no stream) or ``status``; remembers what it was sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.events: list[str] = []
        self.models = ["other", "default"]
        self.status = 200
        self.sent: list[tuple[dict[str, Any], dict[str, str]]] = []

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class Handler(BaseHTTPRequestHandler):
    server: Scripted

    def log_message(self, format: str, *args: object) -> None:
        pass

    def reply(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.send_header("x-apportion-decision-id", "dec_1")
        self.send_header("x-apportion-model", "default")
        self.send_header("x-apportion-endpoint", "fast")
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            body: object = {"object": "list", "data": [{"id": name} for name in self.server.models]}
        else:
            body = DECISION
        self.reply(200, "application/json", json.dumps(body).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.sent.append((body, {k.lower(): v for k, v in self.headers.items()}))
        if self.server.status != 200:
            error = {"error": {"message": "The key is unknown.", "code": "invalid_api_key"}}
            self.reply(self.server.status, "application/json", json.dumps(error).encode())
        elif body["stream"]:
            self.reply(
                200, "text/event-stream", "".join(f"data: {e}\n\n" for e in self.server.events).encode()
            )
        else:
            message = {"message": {"content": "Hello there."}, "finish_reason": "length"}
            usage = {"prompt_tokens": 3, "completion_tokens": 2}
            self.reply(200, "application/json", json.dumps({"choices": [message], "usage": usage}).encode())


@pytest.fixture
def proxy() -> Iterator[Scripted]:
    server = Scripted()
    server.events = [
        json.dumps({"choices": [{"delta": {"role": "assistant", "content": ""}}]}),
        json.dumps({"choices": [{"delta": {"content": "Hel"}}]}),
        json.dumps({"choices": [{"delta": {"content": "lo"}, "finish_reason": "stop"}], "usage": None}),
        json.dumps({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2}}),
        "[DONE]",
    ]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def ask(proxy: Scripted, *arguments: str, **options: Any) -> Any:
    return CliRunner().invoke(
        app, ["ask", "--host", "127.0.0.1", "--port", str(proxy.port), *arguments], **options
    )


def test_a_streamed_answer_with_its_cost_and_reason(proxy: Scripted) -> None:
    done = ask(proxy, "Hi", "--max-tokens", "5", "--max-usd", "0.01", "--system", "Be brief.", "--key", "k")
    assert done.exit_code == 0, done.output
    assert done.stdout == "Hello\n"
    assert done.stderr == (
        "default at fast · 9 in + 2 out tokens · $0.00012 · 81 ms\nChose fast: it was cheapest.\n"
    )
    body, headers = proxy.sent[0]
    assert body["model"] == "default"
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert (body["max_tokens"], body["apportion"]) == (5, {"max_usd": 0.01})
    assert headers["authorization"] == "Bearer k"


def test_a_whole_answer(proxy: Scripted) -> None:
    proxy.models = ["first"]
    done = ask(proxy, "-", "--no-stream", input="from a pipe")
    assert done.stdout == "Hello there.\n"
    assert "ended by length" in done.stderr
    assert proxy.sent[0][0]["model"] == "first"
    assert proxy.sent[0][0]["messages"][0]["content"] == "from a pipe"


def test_as_json(proxy: Scripted) -> None:
    found = json.loads(ask(proxy, "Hi", "--json", "--model", "m").stdout)
    assert (found["model"], found["answer"], found["finish_reason"]) == ("m", "Hello", "stop")
    assert found["decision"]["id"] == "dec_1"
    assert found["usage"]["completion_tokens"] == 2


def test_a_broken_stream_is_an_error(proxy: Scripted) -> None:
    proxy.events = [proxy.events[1], json.dumps({"error": {"message": "The upstream stalled."}})]
    done = ask(proxy, "Hi")
    assert done.exit_code == 1
    assert done.stdout == "Hel\n"
    assert "The stream broke: The upstream stalled." in done.stderr
    proxy.events = [proxy.events[0]]
    done = ask(proxy, "Hi")
    assert done.exit_code == 1
    assert "ended before the answer did" in done.stderr
    proxy.events = ["{not json"]
    done = ask(proxy, "Hi")
    assert done.exit_code == 1
    assert "The stream broke" in done.stderr


def test_a_refusal_is_shown_with_the_fix(proxy: Scripted) -> None:
    proxy.status = 401
    done = ask(proxy, "Hi")
    assert done.exit_code == 1
    assert "The proxy answered 401: The key is unknown." in done.stderr
    assert "APPORTION_API_KEY" in done.stderr


def test_nothing_is_running() -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]  # bound, so that it is nobody else's, but not listening
        done = CliRunner().invoke(app, ["ask", "Hi", "--port", str(port), "--host", "0.0.0.0"])
    assert done.exit_code == 1
    assert f"No proxy answers on 127.0.0.1:{port}" in done.stderr
    assert "apportion up" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [((), "Bearer told"), (("--key", "k"), "Bearer k"), (("--host", "localhost"), "Bearer told")],
)
def test_a_proxy_of_ones_own_needs_no_key(
    proxy: Scripted, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], sent: str
) -> None:
    monkeypatch.setattr(control, "local_key", lambda port: "told" if port == proxy.port else None)
    assert ask(proxy, "Hi", *arguments).exit_code == 0
    assert proxy.sent[0][1]["authorization"] == sent


def test_the_key_of_ones_own_proxy_is_sent_to_no_other_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(control, "local_key", asked.append)
    CliRunner().invoke(app, ["ask", "Hi", "--host", "no-such-host.invalid", "--port", "8080"])
    assert asked == []
