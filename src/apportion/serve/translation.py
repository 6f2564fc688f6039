"""What crosses between a client's dialect and an endpoint's: requests, answers, streams, errors.

The translations themselves are pure and live in ``translate``; they are imported when first needed.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from apportion.serve import errors
from apportion.serve.call import Api
from apportion.serve.runtime import Route
from apportion.serve.wire import dumps, loads

if TYPE_CHECKING:
    from apportion.serve.translate import Translation

_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def translate(fields: dict[str, msgspec.Raw], route: Route, api: Api, spoken: Api) -> Translation:
    """A client's request for an endpoint of another dialect.

    Raises ``InvalidRequestError`` or ``UnsupportedError`` naming a field that has no place there.
    """
    from apportion.serve.translate import Traits, translate

    config = route.endpoint.config
    hosted = "openai.com" in (config.base_url or "")
    return translate(
        {name: loads(bytes(raw)) for name, raw in fields.items()},
        client=api,
        upstream=spoken,
        created_s=int(time.time()),
        model=route.model,
        traits=Traits(
            default_max_tokens=config.max_output_tokens or 8192,
            max_tokens_field="max_completion_tokens" if hosted else None,
        ),
    )


def request(translation: Translation, spoken: Api, *, streamed: bool, ask_usage: bool) -> bytes:
    """The translated request, encoded."""
    body = translation.body
    if streamed:
        body = {**body, "stream": True}
        if spoken == "chat" and ask_usage:
            body["stream_options"] = {"include_usage": True}
    return dumps(body)


def response(translation: Translation, content: bytes) -> bytes:
    """A complete answer, translated back."""
    return dumps(translation.response(loads(content)))


def error_event(error: errors.GatewayError, api: Api, request_id: str) -> bytes:
    """The gateway's own error as an in-band event of ``api``'s stream."""
    if api == "messages":
        return b"event: error\ndata: %b\n\n" % errors.render(error, "anthropic", request_id)
    body = errors.body(error, "openai", request_id)
    if api == "responses":
        flat: dict[str, Any] = {
            "type": "error",
            "code": error.code,
            "message": str(error),
            "param": error.field,
        }
        return b"event: error\ndata: %b\n\n" % msgspec.json.encode({**flat, "sequence_number": 0, **body})
    return b"data: %b\n\n" % msgspec.json.encode(body)


def error_body(content: bytes, spoken: Api, api: Api, status: int, request_id: str) -> bytes:
    """An upstream's error answer for a client of ``api``: untouched if it is JSON of the client's own dialect."""
    from apportion.serve.translate import error_body as translated

    if (spoken in ("messages", "count_tokens")) == (api in ("messages", "count_tokens")):
        try:
            if "error" in _decode_object(content):
                return content
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            pass
    if api in ("messages", "count_tokens"):
        return dumps({**translated(content, "messages", status), "request_id": request_id})
    return dumps(translated(content, api, status))


def error_in(content: bytes) -> str | None:
    """What an answer with status 200 says went wrong, if it is an error and no answer."""
    if b'"error"' not in content:
        return None
    try:
        found = _decode_object(content)
    except (msgspec.DecodeError, RecursionError):
        return None
    error = found.get("error")
    if error is None or bytes(error) == b"null" or {"choices", "content", "output", "data"} & found.keys():
        return None
    from apportion.serve.wire import read_error

    return read_error(content).message


def count_tokens(content: bytes) -> int:
    """Input tokens of a messages request, estimated from its text."""
    from apportion.measure.tokens import estimate_request_tokens

    return max(1, estimate_request_tokens(loads(content)))
