"""What a client asked for: the few fields the proxy acts on, the rest kept raw and passed through untouched.

The body is decoded once, as an object of raw values, so that what is only forwarded is neither parsed nor
re-encoded. Of a key given twice the last one counts, and only that one is forwarded, so that nobody after
the proxy can read the request differently.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal
from urllib.parse import unquote

import msgspec
from msgspec import Meta, Raw

from apportion.serve import errors, identity
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

STREAMED: Final = ("chat", "completions", "messages", "responses")
"""APIs whose answers can be streams."""

CAP_FIELDS: Final[dict[Api, tuple[str, ...]]] = {
    "chat": ("max_completion_tokens", "max_tokens"),
    "completions": ("max_tokens",),
    "embeddings": (),
    "responses": ("max_output_tokens",),
    "messages": ("max_tokens",),
    "count_tokens": (),
}
"""Fields that cap the output, the one to write first."""


_TAGS_BYTES: Final = 1024


class Constraints(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client may demand of one request, in the body under ``apportion`` or as ``x-apportion-*`` headers."""

    max_usd: Annotated[float, Meta(gt=0, le=1e9)] | None = None
    """The most the answer may cost, in dollars."""
    deadline_s: Annotated[float, Meta(gt=0, le=86400)] | None = None
    """Seconds after which the answer ends with what there is."""
    max_joules: Annotated[float, Meta(gt=0, le=1e15)] | None = None
    """The most energy the answer may take."""
    effort: Annotated[float, Meta(gt=0, le=1)] | None = None
    """Scales what a right answer is worth."""
    priority: Annotated[int, Meta(ge=-100, le=100)] | None = None
    """Larger goes first."""
    tags: Annotated[list[Annotated[str, Meta(max_length=128)]], Meta(max_length=32)] | None = None
    """Labels for the books."""
    require: Annotated[list[Annotated[str, Meta(max_length=128)]], Meta(max_length=32)] | None = None
    """Endpoint tags that must all be there."""
    cache: Literal["on", "off", "exact", "refresh"] | None = None
    """Whether an answer that is kept will do; "refresh" asks anew and keeps that."""
    cache_max_age_s: Annotated[float, Meta(ge=0, le=1e9)] | None = None
    """The oldest answer that will do, in seconds."""
    expect: Annotated[str, Meta(max_length=4096)] | None = None
    """The right answer, for the check `exact`."""

    def __post_init__(self) -> None:
        for name in ("max_usd", "deadline_s", "max_joules", "effort", "cache_max_age_s"):
            value = getattr(self, name)
            if value is not None and value != value:
                raise ValueError(f"{name} is not a number")
        if self.tags and sum(len(tag.encode()) for tag in self.tags) > _TAGS_BYTES:
            raise ValueError(f"tags have more than {_TAGS_BYTES} bytes together")


FOREIGN: Final[dict[Api, tuple[str, ...]]] = {
    "chat": (),
    "completions": (),
    "embeddings": (),
    "responses": ("n", "best_of", "max_tokens", "max_completion_tokens"),
    "messages": ("n", "best_of", "max_completion_tokens", "max_output_tokens"),
    "count_tokens": (),
}
"""Fields that multiply the cost in another API and mean nothing in this one: not passed on."""

NO_CONSTRAINTS: Final = Constraints()
_CONSTRAINT_HEADERS: Final = {
    b"x-apportion-" + name.encode().replace(b"_", b"-"): name for name in Constraints.__struct_fields__
}
_CONSTRAINT_NAMES: Final = frozenset(_CONSTRAINT_HEADERS)
_MISSING: Final = re.compile(r"Object missing required field `([^`]*)`")
_UNKNOWN: Final = re.compile(r"Object contains unknown field `([^`]*)`")

_Cap = Annotated[int, Meta(ge=1, le=2**31 - 1)] | None
_Many = Annotated[int, Meta(ge=1, le=1024)] | None


class _Message(msgspec.Struct, gc=False):
    role: str


class _StreamOptions(msgspec.Struct, gc=False):
    include_usage: bool | None = None


class _Head(msgspec.Struct, gc=False, kw_only=True):
    """The fields that the proxy checks or acts on. What is not named is skipped, its syntax checked."""

    model: Annotated[str, Meta(min_length=1, max_length=512)]
    stream: bool | None = None
    user: str | None = None
    safety_identifier: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: list[Raw] | None = None
    apportion: Constraints | None = None


class _Chat(_Head, gc=False, kw_only=True):
    messages: Annotated[list[_Message], Meta(min_length=1)]
    stream_options: _StreamOptions | None = None
    max_completion_tokens: _Cap = None
    max_tokens: _Cap = None
    n: _Many = None
    best_of: _Many = None
    stop: str | list[str] | None = None
    response_format: dict[str, Raw] | None = None
    seed: int | None = None


class _Completion(_Head, gc=False, kw_only=True):
    prompt: str | list[Raw]
    stream_options: _StreamOptions | None = None
    max_tokens: _Cap = None
    n: _Many = None
    best_of: _Many = None
    stop: str | list[str] | None = None


class _Embedding(_Head, gc=False, kw_only=True):
    input: str | list[Raw]


class _Response(_Head, gc=False, kw_only=True):
    input: str | list[Raw] | None = None
    instructions: str | list[Raw] | None = None
    max_output_tokens: _Cap = None


class _Messages(_Head, gc=False, kw_only=True):
    messages: Annotated[list[_Message], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)]
    system: str | list[Raw] | None = None
    metadata: dict[str, Raw] | None = None
    stop_sequences: list[str] | None = None


class _Counted(_Head, gc=False, kw_only=True):
    messages: Annotated[list[_Message], Meta(min_length=1)]
    system: str | list[Raw] | None = None


_HEAD_DECODERS: Final[dict[Api, msgspec.json.Decoder[Any]]] = {
    "chat": msgspec.json.Decoder(_Chat),
    "completions": msgspec.json.Decoder(_Completion),
    "embeddings": msgspec.json.Decoder(_Embedding),
    "responses": msgspec.json.Decoder(_Response),
    "messages": msgspec.json.Decoder(_Messages),
    "count_tokens": msgspec.json.Decoder(_Counted),
}
_decode_object = msgspec.json.Decoder(dict[str, Raw]).decode
encode_object = msgspec.json.Encoder().encode


class Call:
    """One parsed request for a model."""

    __slots__ = (
        "api",
        "body_bytes",
        "constraints",
        "dialect",
        "fields",
        "has_tools",
        "include_usage",
        "max_output_tokens",
        "model",
        "n",
        "request",
        "session",
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
        self.has_tools = False
        self.user: str | None = None
        """The end user as the client names it; see `identity`."""
        self.session: str | None = None
        self.constraints = NO_CONSTRAINTS

    @property
    def api_generates(self) -> bool:
        """Whether the answer has output tokens."""
        return bool(CAP_FIELDS[self.api])


def parse(request: Request, api: Api, named: identity.Headers = identity.DEFAULT) -> Call:
    """Read and check a request for ``api``; raises ``InvalidRequestError`` naming the field.

    ``named`` are the headers that say for whom it is.
    """
    body, headers = request.body, request.headers
    kind = headers.get(b"content-type")
    if kind != b"application/json" or b"content-encoding" in headers:
        _check_media(headers, body)
    try:
        if not body.isascii():
            body.decode()
        fields = _decode_object(body)
        head = _HEAD_DECODERS[api].decode(body)
    except UnicodeDecodeError as error:
        raise errors.InvalidJSONError(f"The body is not valid UTF-8 (byte {error.start}).") from None
    except msgspec.ValidationError as error:
        raise _wrong(str(error)) from None
    except RecursionError:
        raise errors.InvalidJSONError("The body is nested too deeply.") from None
    except msgspec.DecodeError as error:
        raise errors.InvalidJSONError(f"The body is not valid JSON: {error}.") from None
    call = Call(request, api)
    call.fields = fields
    call.model = head.model
    if head.stream and api in STREAMED:
        call.stream = True
        if "stream_options" in fields:
            options = getattr(head, "stream_options", None)
            call.include_usage = options is not None and bool(options.include_usage)
    for name in CAP_FIELDS[api]:
        cap = getattr(head, name)
        # Of two caps nobody knows which the endpoint obeys; the larger bounds what it can cost.
        if cap is not None and (call.max_output_tokens is None or cap > call.max_output_tokens):
            call.max_output_tokens = cap
    call.has_tools = bool(head.tools)
    for name in FOREIGN[api]:
        fields.pop(name, None)
    if "n" in fields or "best_of" in fields:
        call.n = max(getattr(head, "n", None) or 1, getattr(head, "best_of", None) or 1)
    if head.safety_identifier is not None or head.user is not None:
        call.user = identity.short(head.safety_identifier or head.user)
    if "metadata" in fields:
        user, call.session = identity.from_metadata(fields["metadata"])
        call.user = call.user or user
    if api == "responses" and "conversation" in fields:
        call.session = call.session or identity.from_conversation(fields["conversation"])
    if not named.all.isdisjoint(headers):
        call.user, call.session = identity.from_headers(named, headers, call.user, call.session)
    if head.apportion is not None:
        call.constraints = head.apportion
    if "apportion" in fields:
        del fields["apportion"]
    if not _CONSTRAINT_NAMES.isdisjoint(headers):
        call.constraints = _with_headers(call.constraints, headers)
    return call


def _check_media(headers: Mapping[bytes, bytes], body: bytes) -> None:
    media = headers.get(b"content-type", b"application/json").partition(b";")[0].strip().lower()
    # curl -d without a header says it sends a form; so do many first attempts, and the body tells.
    form = media == b"application/x-www-form-urlencoded" and body.lstrip()[:1] == b"{"
    if media != b"application/json" and not media.endswith(b"+json") and not form:
        raise errors.UnsupportedMediaTypeError(
            f"The content type {media.decode('latin-1')[:100]!r} is not read.",
            field="content-type",
            fix="Send application/json.",
        )
    coding = headers.get(b"content-encoding", b"identity").lower()
    if coding != b"identity":
        raise errors.UnsupportedMediaTypeError(
            f"The content encoding {coding.decode('latin-1')[:100]!r} is not read.",
            field="content-encoding",
            fix="Send the body unencoded.",
        )


def _with_headers(constraints: Constraints, headers: Mapping[bytes, bytes]) -> Constraints:
    """Constraints given as ``x-apportion-*`` headers override those in the body."""
    values = {name: getattr(constraints, name) for name in Constraints.__struct_fields__}
    for header, field in _CONSTRAINT_HEADERS.items():
        if header in headers:
            text = headers[header].decode("latin-1").strip()
            listed = [unquote(t.strip()) for t in text.split(",") if t.strip()]
            values[field] = listed if field in ("tags", "require") else text
    try:
        return msgspec.convert(values, Constraints, strict=False)
    except msgspec.ValidationError as error:
        raise _wrong(str(error).replace("`$", "`$.apportion")) from None


def _wrong(message: str) -> errors.InvalidRequestError:
    """A type or range error of msgspec, as one that names the field: ``... - at `$.messages[0].role```."""
    said, _, path = message.partition(" - at `")
    field = path.rstrip("`").removeprefix("$").lstrip(".")
    missing = _MISSING.fullmatch(said)
    if missing is not None:
        field = f"{field}.{missing[1]}" if field else missing[1]
        return errors.InvalidRequestError(f"The field '{field}' is missing.", field=field)
    if not field:
        return errors.InvalidRequestError("The body must be a JSON object.")
    unknown = _UNKNOWN.fullmatch(said)
    if unknown is not None:
        field = f"{field}.{unknown[1]}"
        return errors.InvalidRequestError(
            f"There is no constraint '{field}'.",
            field=field,
            fix=f"Known constraints: {', '.join(Constraints.__struct_fields__)}.",
        )
    return errors.InvalidRequestError(f"'{field}' is wrong: {said[0].lower()}{said[1:]}.", field=field)
