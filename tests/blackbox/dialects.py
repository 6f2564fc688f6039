"""The APIs as a client sees them: how to ask, and how to read text, finish, usage, end and error."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .wire import SSE, Response

Json = dict[str, Any]


@dataclass(frozen=True)
class Dialect:
    """One API of the proxy."""

    name: str
    path: str
    sdk: str
    """openai | anthropic: whose error shape its clients expect."""
    body: Callable[[str], Json]
    """The smallest request that says this text."""
    text: Callable[[Json], str]
    finish: Callable[[Json], str | None]
    stream_text: Callable[[list[SSE]], str]
    stream_finish: Callable[[list[SSE]], str | None]
    ended: Callable[[list[SSE]], bool]
    """The stream has its clean end."""
    error: Callable[[list[SSE]], Json | None]
    """The in-band error, with `code`, `type` and `message`."""
    stops: tuple[str, str]
    """(word for a finished answer, word for one cut at its limit)."""

    def request(self, model: str, text: str, **more: Any) -> Json:
        return {"model": model, **self.body(text), **more}


def _chunks(events: list[SSE]) -> list[Json]:
    return [e.json for e in events if e.data != "[DONE]"]


def _choices(events: list[SSE]) -> list[Json]:
    return [c for chunk in _chunks(events) for c in chunk.get("choices") or [] if c.get("index", 0) == 0]


def _openai_error(events: list[SSE]) -> Json | None:
    return next((c["error"] for c in _chunks(events) if c.get("error")), None)


def _last(values: list[str | None]) -> str | None:
    said = [v for v in values if v]
    return said[-1] if said else None


CHAT = Dialect(
    "chat",
    "/v1/chat/completions",
    "openai",
    body=lambda text: {"messages": [{"role": "user", "content": text}]},
    text=lambda j: j["choices"][0]["message"]["content"],
    finish=lambda j: j["choices"][0]["finish_reason"],
    stream_text=lambda es: "".join(c["delta"].get("content") or "" for c in _choices(es)),
    stream_finish=lambda es: _last([c.get("finish_reason") for c in _choices(es)]),
    ended=lambda es: any(e.data == "[DONE]" for e in es),
    error=_openai_error,
    stops=("stop", "length"),
)

COMPLETIONS = Dialect(
    "completions",
    "/v1/completions",
    "openai",
    body=lambda text: {"prompt": text},
    text=lambda j: j["choices"][0]["text"],
    finish=lambda j: j["choices"][0]["finish_reason"],
    stream_text=lambda es: "".join(c.get("text") or "" for c in _choices(es)),
    stream_finish=lambda es: _last([c.get("finish_reason") for c in _choices(es)]),
    ended=lambda es: any(e.data == "[DONE]" for e in es),
    error=_openai_error,
    stops=("stop", "length"),
)


def _message_text(j: Json) -> str:
    return "".join(b.get("text", "") for b in j["content"])


def _message_delta(es: list[SSE]) -> str:
    return "".join(e.json["delta"].get("text", "") for e in es if e.event == "content_block_delta")


def _message_error(es: list[SSE]) -> Json | None:
    return next((e.json["error"] for e in es if e.event == "error"), None)


MESSAGES = Dialect(
    "messages",
    "/v1/messages",
    "anthropic",
    body=lambda text: {"max_tokens": 100, "messages": [{"role": "user", "content": text}]},
    text=_message_text,
    finish=lambda j: j["stop_reason"],
    stream_text=_message_delta,
    stream_finish=lambda es: _last(
        [e.json["delta"].get("stop_reason") for e in es if e.event == "message_delta"]
    ),
    ended=lambda es: any(e.event == "message_stop" for e in es),
    error=_message_error,
    stops=("end_turn", "max_tokens"),
)


def _response_text(j: Json) -> str:
    parts = [p for item in j["output"] for p in item.get("content") or []]
    return "".join(p.get("text", "") for p in parts)


def _response_error(es: list[SSE]) -> Json | None:
    for e in es:
        if e.event == "error" or e.json.get("error"):
            return dict(e.json.get("error") or e.json)
        if e.event == "response.failed":
            return dict(e.json["response"]["error"])
    return None


RESPONSES = Dialect(
    "responses",
    "/v1/responses",
    "openai",
    body=lambda text: {"input": text},
    text=_response_text,
    finish=lambda j: j["status"],
    stream_text=lambda es: "".join(e.json["delta"] for e in es if e.event == "response.output_text.delta"),
    stream_finish=lambda es: _last(
        [e.json["response"]["status"] for e in es if e.event in ("response.completed", "response.incomplete")]
    ),
    ended=lambda es: any(e.event in ("response.completed", "response.incomplete") for e in es),
    error=_response_error,
    stops=("completed", "incomplete"),
)

EMBEDDINGS = Dialect(
    "embeddings",
    "/v1/embeddings",
    "openai",
    body=lambda text: {"input": text},
    text=lambda j: json.dumps(j["data"][0]["embedding"]),
    finish=lambda j: "stop",
    stream_text=lambda es: "",
    stream_finish=lambda es: None,
    ended=lambda es: False,
    error=lambda es: None,
    stops=("stop", "length"),
)

DIALECTS = {d.name: d for d in (CHAT, MESSAGES, COMPLETIONS, RESPONSES, EMBEDDINGS)}


def error_of(dialect: Dialect | str, response: Response) -> Json:
    """The error object of an error response; fails unless it has the shape that the SDK expects."""
    sdk = dialect if isinstance(dialect, str) else dialect.sdk
    assert response.status >= 400, response
    assert (response.header("content-type") or "").startswith("application/json"), response.headers
    body = response.json
    if sdk == "anthropic":
        assert body["type"] == "error", body
        assert isinstance(body["error"]["type"], str), body
        assert isinstance(body["error"]["message"], str), body
        assert isinstance(body["request_id"], str), body
    else:
        assert set(body["error"]) >= {"message", "type", "param", "code"}, body
        assert isinstance(body["error"]["message"], str), body
        assert isinstance(body["error"]["type"], str), body
    return dict(body["error"])


def own_error(dialect: Dialect | str, response: Response, status: int, code: str) -> Json:
    """The same for an error that must be the gateway's own: ``x-apportion-error`` says its code."""
    assert (response.status, response.header("x-apportion-error")) == (status, code), (
        f"{response.status} {response.header('x-apportion-error')} {response.body[:500]!r}"
    )
    error = error_of(dialect, response)
    assert error["code"] == code, error
    assert error["message"]
    return error
