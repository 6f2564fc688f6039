"""What a client asked for: the few fields the proxy acts on, the rest kept raw and passed through untouched.

The body is decoded once, as an object of raw values, so that what is only forwarded is neither parsed nor
re-encoded. Of a key given twice the last one counts, and only that one is forwarded, so that nobody after
the proxy can read the request differently.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal
from urllib.parse import unquote

import msgspec
from msgspec import Meta, Raw

from apportion.serve import errors
from apportion.serve.http.server import Request

Api = Literal["chat", "completions", "embeddings", "responses", "messages", "count_tokens"]
Dialect = Literal["openai", "anthropic"]

ROUTES: Final[dict[str, Api]] = {
    "/chat/completions": "chat",
    "/completions": "completions",
    "/embeddings": "embeddings",
    "/responses": "responses",
    "/messages": "messages",
    "/messages/count_tokens": "count_tokens",
}

DIALECTS: Final[dict[Api, Dialect]] = {
    "chat": "openai",
    "completions": "openai",
    "embeddings": "openai",
    "responses": "openai",
    "messages": "anthropic",
    "count_tokens": "anthropic",
}

CAP_FIELDS: Final[dict[Api, tuple[str, ...]]] = {
    "chat": ("max_completion_tokens", "max_tokens"),
    "completions": ("max_tokens",),
    "embeddings": (),
    "responses": ("max_output_tokens",),
    "messages": ("max_tokens",),
    "count_tokens": (),
}
"""Fields that cap the output, the one to write first."""


class Constraints(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client may demand of one request, in the body under ``apportion`` or as ``x-apportion-*`` headers."""

    max_usd: Annotated[float, Meta(gt=0)] | None = None
    """The most the answer may cost, in dollars."""
    deadline_s: Annotated[float, Meta(gt=0, le=86400)] | None = None
    """Seconds after which the answer ends with what there is."""
    max_joules: Annotated[float, Meta(gt=0)] | None = None
    """The most energy the answer may take."""
    effort: Annotated[float, Meta(gt=0, le=1)] | None = None
    """Scales what a right answer is worth."""
    priority: Annotated[int, Meta(ge=-100, le=100)] | None = None
    """Larger goes first."""
    tags: Annotated[list[Annotated[str, Meta(max_length=128)]], Meta(max_length=32)] | None = None
    """Labels for the books."""


NO_CONSTRAINTS: Final = Constraints()
_HEADERS: Final = {b"x-apportion-" + f.encode().replace(b"_", b"-"): f for f in Constraints.__struct_fields__}

_decode_object = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_str = msgspec.json.Decoder(str).decode
_decode_constraints = msgspec.json.Decoder(Constraints).decode
_decode_count = msgspec.json.Decoder(Annotated[int, Meta(ge=1, le=2**31 - 1)]).decode
_decode_objects = msgspec.json.Decoder(list[dict[str, Raw]]).decode
encode_object = msgspec.json.Encoder().encode

_TRUE: Final = b"true"
_SMALL_BYTES: Final = 4096


class StreamOptions(msgspec.Struct):
    """``stream_options``; what the proxy does not know is kept elsewhere, raw."""

    include_usage: bool | None = None


_decode_stream_options = msgspec.json.Decoder(StreamOptions).decode

_NUMBER: Final = (b"-", b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"8", b"9")
_FIRST_BYTES: Final[dict[str, tuple[tuple[bytes, ...], str]]] = {
    "messages": ((b"[",), "an array of messages"),
    "tools": ((b"[", b"n"), "an array"),
    "temperature": ((*_NUMBER, b"n"), "a number"),
    "top_p": ((*_NUMBER, b"n"), "a number"),
    "seed": ((*_NUMBER, b"n"), "an integer"),
    "stop": ((b'"', b"[", b"n"), "a string or an array of strings"),
    "stop_sequences": ((b"[", b"n"), "an array of strings"),
    "user": ((b'"', b"n"), "a string"),
    "metadata": ((b"{", b"n"), "an object"),
    "response_format": ((b"{", b"n"), "an object"),
    "logit_bias": ((b"{", b"n"), "an object"),
    "system": ((b'"', b"[", b"n"), "a string or an array of text blocks"),
    "input": ((b'"', b"["), "a string or an array"),
    "prompt": ((b'"', b"["), "a string or an array"),
}
"""Fields whose JSON type is checked by its first byte; what is inside is the upstream's to judge."""

_REQUIRED: Final[dict[Api, str | None]] = {
    "chat": "messages",
    "completions": "prompt",
    "embeddings": "input",
    "responses": None,
    "messages": "messages",
    "count_tokens": "messages",
}


class Call:
    """One parsed request for a model."""

    __slots__ = (
        "api",
        "body_bytes",
        "constraints",
        "dialect",
        "fields",
        "include_usage",
        "max_output_tokens",
        "model",
        "n",
        "request",
        "stream",
        "user",
    )

    def __init__(self, request: Request, api: Api) -> None:
        self.request = request
        self.api: Api = api
        self.dialect: Dialect = DIALECTS[api]
        self.body_bytes = len(request.body)
        self.fields: dict[str, Raw] = {}
        self.model = ""
        self.stream = False
        self.include_usage = False
        self.max_output_tokens: int | None = None
        self.n = 1
        self.user: str | None = None
        self.constraints = NO_CONSTRAINTS

    @property
    def api_generates(self) -> bool:
        """Whether the answer has output tokens."""
        return bool(CAP_FIELDS[self.api])


def parse(request: Request, api: Api) -> Call:
    """Read and check a request for ``api``; raises ``InvalidRequestError`` naming the field."""
    body = request.body
    _check_media(request, body)
    try:
        if not body.isascii():
            body.decode()
        fields = _decode_object(body)
    except UnicodeDecodeError as error:
        raise errors.InvalidJSONError(f"The body is not valid UTF-8 (byte {error.start}).") from None
    except msgspec.ValidationError:
        raise errors.InvalidRequestError("The body must be a JSON object.") from None
    except RecursionError:
        raise errors.InvalidJSONError("The body is nested too deeply.") from None
    except msgspec.DecodeError as error:
        raise errors.InvalidJSONError(f"The body is not valid JSON: {error}.") from None
    call = Call(request, api)
    call.fields = fields
    call.model = _model(fields)
    required = _REQUIRED[api]
    if required is not None and required not in fields:
        raise errors.InvalidRequestError(f"The field '{required}' is missing.", field=required)
    for name, raw in fields.items():
        rule = _FIRST_BYTES.get(name)
        if rule is not None and bytes(memoryview(raw)[:1]) not in rule[0]:
            raise errors.InvalidRequestError(f"'{name}' must be {rule[1]}.", field=name)
    if required == "messages":
        _check_messages(fields["messages"])
    if "stream" in fields:
        call.stream = _boolean(fields["stream"], "stream")
        if call.stream and "stream_options" in fields:
            options = _typed(_decode_stream_options, fields["stream_options"], "stream_options")
            call.include_usage = options is not None and bool(options.include_usage)
    for name in CAP_FIELDS[api]:
        if name in fields and bytes(fields[name]) != b"null":
            cap = _typed(_decode_count, fields[name], name)
            call.max_output_tokens = cap if call.max_output_tokens is None else min(cap, call.max_output_tokens)
    if api == "messages" and call.max_output_tokens is None:
        raise errors.InvalidRequestError("The field 'max_tokens' is missing.", field="max_tokens")
    for name in ("n", "best_of"):
        if name in fields and bytes(fields[name]) != b"null":
            call.n = max(call.n, _typed(_decode_count, fields[name], name))
    if "user" in fields:
        raw_user = bytes(fields["user"])
        call.user = _decode_str(raw_user)[:256] if raw_user != b"null" else None
    _constraints(call, fields, request.headers)
    return call


def _check_media(request: Request, body: bytes) -> None:
    headers = request.headers
    kind = headers.get(b"content-type")
    if kind is not None and not kind.startswith(b"application/json"):
        media = kind.partition(b";")[0].strip().lower()
        # curl -d without a header says it sends a form; so do many first attempts, and the body tells.
        form = media == b"application/x-www-form-urlencoded" and body[:1] == b"{"
        if media != b"application/json" and not media.endswith(b"+json") and not form:
            raise errors.UnsupportedMediaTypeError(
                f"The content type {media.decode('latin-1')!r} is not read.",
                field="content-type",
                fix="Send application/json.",
            )
    coding = headers.get(b"content-encoding")
    if coding is not None and coding.lower() != b"identity":
        raise errors.UnsupportedMediaTypeError(
            f"The content encoding {coding.decode('latin-1')!r} is not read.",
            field="content-encoding",
            fix="Send the body unencoded.",
        )


def _model(fields: dict[str, Raw]) -> str:
    raw = fields.get("model")
    if raw is None:
        raise errors.InvalidRequestError("The field 'model' is missing.", field="model")
    try:
        model = _decode_str(raw)
    except msgspec.DecodeError:
        raise errors.InvalidRequestError("'model' must be a string.", field="model") from None
    if not model or len(model) > 512:
        raise errors.InvalidRequestError("'model' must have 1 to 512 characters.", field="model")
    return model


def _check_messages(raw: Raw) -> None:
    """Messages are objects with a role. Long conversations are checked at their ends only: what is wrong
    inside is the upstream's to say."""
    view = memoryview(raw)
    if len(view) > _SMALL_BYTES:
        return
    try:
        messages = _decode_objects(raw)
    except RecursionError:
        raise errors.InvalidJSONError("'messages' is nested too deeply.", field="messages") from None
    except msgspec.DecodeError:
        raise errors.InvalidRequestError("'messages' must be an array of objects.", field="messages") from None
    if not messages:
        raise errors.InvalidRequestError("'messages' must hold at least one message.", field="messages")
    for index, message in enumerate(messages):
        if "role" not in message:
            raise errors.InvalidRequestError(
                f"messages[{index}] has no 'role'.", field=f"messages[{index}].role"
            )


def _boolean(raw: Raw, name: str) -> bool:
    value = bytes(raw)
    if value == _TRUE:
        return True
    if value in (b"false", b"null"):
        return False
    raise errors.InvalidRequestError(f"'{name}' must be true or false.", field=name)


def _typed(decode: Any, raw: Raw, name: str) -> Any:
    if bytes(raw) == b"null":
        return None
    try:
        return decode(raw)
    except msgspec.DecodeError as error:
        raise errors.InvalidRequestError(f"'{name}' is wrong: {error}.", field=name) from None


def _constraints(call: Call, fields: dict[str, Raw], headers: Mapping[bytes, bytes]) -> None:
    raw = fields.pop("apportion", None)
    if raw is not None and bytes(raw) != b"null":
        try:
            call.constraints = _decode_constraints(raw)
        except msgspec.DecodeError as error:
            raise _bad_constraint(str(error)) from None
    given = [name for name in headers if name.startswith(b"x-apportion-")]
    if not given:
        return
    values: dict[str, object] = {f: getattr(call.constraints, f) for f in Constraints.__struct_fields__}
    for header in given:
        field = _HEADERS.get(header)
        if field is None:
            continue  # the proxy's own, or nothing: stripped at the edge
        text = headers[header].decode("latin-1").strip()
        values[field] = [unquote(t.strip()) for t in text.split(",") if t.strip()] if field == "tags" else text
    try:
        call.constraints = msgspec.convert(values, Constraints, strict=False)
    except msgspec.ValidationError as error:
        raise _bad_constraint(str(error)) from None


def _bad_constraint(message: str) -> errors.InvalidRequestError:
    said, _, path = message.partition(" - at `$")
    name = path.strip("`.").partition("[")[0]
    field = f"apportion.{name}" if name else "apportion"
    return errors.InvalidRequestError(
        f"The constraint '{field}' is wrong: {said}.",
        field=field,
        fix=f"Known constraints: {', '.join(Constraints.__struct_fields__)}.",
    )
