"""Chains of translation: a client's dialect to an endpoint's and back, by the names of the dialects.

The translations themselves are pure and live in ``translate``, one file a pair; they are imported when first
needed.
"""

from __future__ import annotations

import importlib
import time
from types import ModuleType
from typing import Any, Final

import msgspec

from apportion.serve import errors
from apportion.serve.call import Api, Call
from apportion.serve.relay import Translator
from apportion.serve.runtime import Route
from apportion.serve.wire import dumps, loads

_decode_raw = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

Chain = tuple[Api, ...]


def _module(client: Api, upstream: Api) -> ModuleType:
    return importlib.import_module(f"apportion.serve.translate.{client}_to_{upstream}")


def _pairs(chain: Chain) -> list[ModuleType]:
    return [_module(a, b) for a, b in zip(chain, chain[1:], strict=False)]


def request(chain: Chain, fields: dict[str, msgspec.Raw], route: Route, streamed: bool) -> tuple[bytes, tuple[str, ...]]:
    """The request in the last dialect of ``chain``, and the names of fields that have no place in it.

    Raises ``InvalidRequestError`` or ``UnsupportedError`` naming a field that cannot be left out.
    """
    from apportion.serve.translate.common import Dropped, Traits

    body: dict[str, Any] = {name: loads(bytes(raw)) for name, raw in fields.items()}
    body["model"] = route.model
    hosted = "openai.com" in (route.endpoint.config.base_url or "")
    traits = Traits(
        default_max_tokens=route.endpoint.config.max_output_tokens or 8192,
        max_tokens_field="max_completion_tokens" if hosted else None,
    )
    dropped = Dropped()
    for module in _pairs(chain):
        body = module.request(body, traits, dropped)
    if streamed:
        body["stream"] = True
        if chain[-1] == "chat" and route.endpoint.config.stream_usage:
            body["stream_options"] = {"include_usage": True}
    return dumps(body), tuple(dropped)


def response(chain: Chain, content: bytes, model: str) -> bytes:
    """A complete answer in the first dialect of ``chain``."""
    body = loads(content)
    for module in reversed(_pairs(chain)):
        body = module.response(body, created_s=int(time.time()))
    return dumps(body)


class _Chained:
    """Two or more stream translations, the upstream's first."""

    def __init__(self, stages: list[Any]) -> None:
        self._stages = stages

    def feed(self, event_name: bytes | None, data: bytes) -> bytes:
        return self._through(self._stages[0].feed(event_name, data), 1)

    def finish(self) -> bytes:
        out = b""
        for index, stage in enumerate(self._stages):
            out += self._through(stage.finish(), index + 1)
        return out

    def error(self, error: Any) -> bytes:
        return bytes(self._stages[-1].error(error))

    def _through(self, events: bytes, index: int) -> bytes:
        from apportion.serve.http import sse

        if index == len(self._stages):
            return events
        out = b""
        for event in sse.Splitter().feed(events):
            name, data = sse.parse(event)
            if data is not None:
                out += self._through(self._stages[index].feed(name, data), index + 1)
        return out


def stream(chain: Chain, call: Call) -> Translator:
    """A translator of the events of the last dialect of ``chain`` into those of the first."""
    created_s = int(time.time())
    stages = []
    for position, module in reversed(list(enumerate(_pairs(chain)))):
        # An inner translation always says its usage: the outer one, or the books, want it.
        include_usage = call.include_usage if position == 0 else True
        stages.append(module.Stream(created_s=created_s, include_usage=include_usage))
    return stages[0] if len(stages) == 1 else _Chained(stages)


def error_event(error: errors.GatewayError, api: Api, request_id: str) -> bytes:
    """The gateway's own error as an in-band event of ``api``'s stream."""
    if api == "messages":
        return b"event: error\ndata: %b\n\n" % errors.render(error, "anthropic", request_id)
    if api == "responses":
        said = {"type": "error", "code": error.code, "message": str(error), "param": error.field, "sequence_number": 0}
        return b"event: error\ndata: %b\n\n" % msgspec.json.encode(said)
    return b"data: %b\n\n" % errors.render(error, "openai", request_id)


def error_body(content: bytes, spoken: Api, api: Api, status: int, request_id: str) -> bytes:
    """An upstream's error answer for a client of ``api``: untouched if it is JSON of the client's own dialect."""
    from apportion.serve.translate.errors import error_body as translated

    same = (spoken == "messages") == (api in ("messages", "count_tokens"))
    if same:
        try:
            if "error" in _decode_raw(content):
                return content
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            pass
    return dumps(translated(content, api, status))


def count_tokens(content: bytes) -> int:
    """Input tokens of a messages request, estimated from its text."""
    from apportion.measure.tokens import estimate_tokens

    return max(1, estimate_tokens(content.decode("utf-8", "replace")))
