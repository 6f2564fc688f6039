"""The OpenAPI 3.1 document of the proxy, served at ``/openapi.json``.

Requests, constraints and the gateway's errors are read from the types that check and raise them (``call``,
``errors``), paths from the routes, so the document cannot drift from the code. ``python -m
apportion.serve.openapi > docs/openapi.json`` keeps a copy in the documentation; a test compares them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, Final

import msgspec

import apportion
from apportion.serve import call, errors, openapi_admin, openapi_deciding, openapi_spend
from apportion.serve.call import DIALECTS, ROUTES, STREAMED, Api

Json = dict[str, Any]

_REQUESTS: Final[dict[Api, tuple[str, type]]] = {
    "chat": ("ChatCompletionRequest", call._Chat),
    "completions": ("CompletionRequest", call._Completion),
    "embeddings": ("EmbeddingRequest", call._Embedding),
    "responses": ("ResponseRequest", call._Response),
    "messages": ("MessageRequest", call._Messages),
    "count_tokens": ("CountTokensRequest", call._Counted),
}
_NAMES: Final = {
    **{cls.__name__: name for name, cls in _REQUESTS.values()},
    "_Message": "Message",
    "_StreamOptions": "StreamOptions",
}

_SUMMARIES: Final[dict[Api, tuple[str, str]]] = {
    "chat": ("Chat completion", "chatCompletion"),
    "completions": ("Completion", "completion"),
    "embeddings": ("Embeddings", "embeddings"),
    "responses": ("Response", "response"),
    "messages": ("Message (Anthropic)", "message"),
    "count_tokens": ("Count the tokens of a message (Anthropic)", "countTokens"),
}

FIELDS: Final = {
    "apportion": "Constraints on this request; never sent upstream.",
    "cache": "Whether a kept answer will do: `on`, `off`, `exact` (not in other words), `refresh` (asked anew).",
    "cache_max_age_s": "The oldest kept answer that will do, in seconds.",
    "expect": "The right answer, for the check `exact`; never sent upstream.",
    "require": "Endpoint tags, for example `eu`, that must all be there.",
    "best_of": "Answers made, of which the best are returned.",
    "deadline_s": "Seconds after which the answer ends with what there is.",
    "effort": "Scales what a right answer is worth (`worth_usd`) when this request is decided.",
    "include_usage": "A last chunk with the usage of the whole answer.",
    "input": "What to read.",
    "instructions": "Instructions ahead of the input.",
    "max_completion_tokens": "Most output tokens of each choice.",
    "max_joules": "Most energy the answer may take. Refused where the energy of no endpoint is known.",
    "max_output_tokens": "Most output tokens.",
    "max_tokens": "Most output tokens.",
    "max_usd": "Most the answer may cost, in dollars. The output cap is derived from it.",
    "messages": "The conversation, oldest first.",
    "metadata": "Passed on.",
    "model": "Logical name of a configured model.",
    "n": "Number of choices; all are paid for.",
    "priority": "Larger is more urgent. Seen by the policy and recorded.",
    "prompt": "The text to continue.",
    "response_format": "Structured output.",
    "role": "Who speaks.",
    "safety_identifier": "The end user; goes before `user`; passed on.",
    "seed": "For repeatable sampling, where the endpoint has it.",
    "stop": "Where to stop.",
    "stop_sequences": "Where to stop.",
    "stream": "Answer as server-sent events.",
    "stream_options": "What a stream contains.",
    "system": "The system prompt.",
    "tags": "Labels put on the decision record.",
    "temperature": "Sampling temperature.",
    "tools": "Tools that the model may call.",
    "top_p": "Nucleus sampling.",
    "user": "The end user, whom budgets may be for; passed on.",
}
"""What each field means that the proxy checks; all others are passed on untouched."""

_CONSTRAINT_HEADERS: Final = {
    name: f"x-apportion-{name.replace('_', '-')}" for name in call.Constraints.__struct_fields__
}

_DECIDED: Final = (
    "x-apportion-calls",
    "x-apportion-queued-ms",
    "x-apportion-cache",
    "x-apportion-cache-similarity",
    "x-apportion-cache-key",
    "age",
)
HEADERS: Final[dict[str, tuple[str, Json]]] = {
    "x-request-id": ("Id of the request.", {"type": "string"}),
    "request-id": ("The same, where Anthropic's SDK looks for it.", {"type": "string"}),
    "x-apportion-decision-id": (
        "Id of the decision; `GET /apportion/decisions/{id}` explains it.",
        {"type": "string"},
    ),
    "x-apportion-model": ("The model's name at the endpoint.", {"type": "string"}),
    "x-apportion-endpoint": ("The endpoint that answered.", {"type": "string"}),
    "x-apportion-overhead-ms": (
        "Milliseconds spent in the proxy itself until the answer began.",
        {"type": "number"},
    ),
    "x-apportion-cost-usd": (
        "What the answer cost, in dollars, exact. Not sent where it is unknown, nor with a stream (which says "
        "it in its last comment).",
        {"type": "string", "pattern": r"^\d+(\.\d+)?$"},
    ),
    "x-apportion-cost-mark": (
        "How the cost is known: `measured` from the provider's usage or machine time, `estimated` from tokens "
        "counted by the proxy, `unknown`.",
        {"type": "string", "enum": ["measured", "estimated", "unknown"]},
    ),
    "x-apportion-deadline": (
        "The answer was cut at `deadline_s`; its finish reason says `length`.",
        {"type": "string", "const": "exceeded"},
    ),
    "x-apportion-max-usd": (
        "The answer was cut because `max_usd` of machine time was used up.",
        {"type": "string", "const": "exceeded"},
    ),
    "x-apportion-dropped": (
        "Fields of the request that the endpoint's API has no place for and that were left out.",
        {"type": "string"},
    ),
    "x-apportion-usage": ("The count is the proxy's own estimate.", {"type": "string", "const": "estimated"}),
    "x-apportion-guard": (
        "The guard ended the answer because it ran away or repeated itself; its finish reason says `length`.",
        {"type": "string", "const": "exceeded"},
    ),
    "x-apportion-calls": ("How many calls a strategy made for this answer.", {"type": "integer"}),
    "x-apportion-cache": (
        "The answer was kept: `hit` for the same request, `semantic` for the same question in other words, `joined` "
        "for one that was under way. `miss`, `refresh` or `failed` (another was waited for in vain): it was made now.",
        {"type": "string", "enum": ["hit", "semantic", "joined", "miss", "refresh", "failed"]},
    ),
    "x-apportion-cache-similarity": ("Cosine similarity of the two questions.", {"type": "number"}),
    "x-apportion-cache-key": (
        "The kept answer's key; `DELETE /apportion/cache/{key}` removes it.",
        {"type": "string"},
    ),
    "age": ("Seconds since the kept answer was made.", {"type": "integer"}),
    "x-apportion-queued-ms": ("Milliseconds spent in the endpoint's queue.", {"type": "number"}),
    "x-apportion-error": (
        "Code of an error of the gateway's own; an error without this header is the upstream's.",
        {"type": "string"},
    ),
    "x-should-retry": ("Whether asking again may help.", {"type": "string", "enum": ["true", "false"]}),
    "retry-after": ("Seconds to wait, rounded up.", {"type": "integer"}),
    "retry-after-ms": ("Milliseconds to wait.", {"type": "integer"}),
    "x-ratelimit-limit-requests": ("The key's `requests_per_minute`.", {"type": "integer"}),
    "x-ratelimit-remaining-requests": ("What is left of it now.", {"type": "integer"}),
    "x-ratelimit-limit-tokens": ("The key's `tokens_per_minute`.", {"type": "integer"}),
    "x-ratelimit-remaining-tokens": ("What is left of it now.", {"type": "integer"}),
    "allow": ("Methods that the path answers to.", {"type": "string"}),
    "www-authenticate": ("How to authenticate.", {"type": "string"}),
}
"""Every response header that means something, with its meaning and schema."""

_ID_HEADERS: Final = ("x-request-id", "request-id")
_ERROR_HEADERS: Final = (*_ID_HEADERS, "x-apportion-error", "x-should-retry")
_ANSWER_HEADERS: Final = (
    *_ID_HEADERS,
    "x-apportion-decision-id",
    "x-apportion-model",
    "x-apportion-endpoint",
    "x-apportion-overhead-ms",
    "x-apportion-cost-usd",
    "x-apportion-cost-mark",
    "x-apportion-dropped",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-tokens",
)

_STREAM_TEXT: Final = (
    "Server-sent events. Before the end mark a comment `: apportion {...}` carries the decision id and the cost. "
    "An answer that breaks after it began ends with an error event, never with the end mark."
)
_END_MARKS: Final[dict[Api, str]] = {
    "chat": "Events are chunks; the end mark is `data: [DONE]`.",
    "completions": "Events are chunks; the end mark is `data: [DONE]`.",
    "responses": "Events are typed; the last is `response.completed`, `response.incomplete` or `response.failed`.",
    "messages": "Events are typed; the last is `message_stop`.",
}
_UPSTREAM_ONLY: Final = 409
"""A status that only upstreams answer with."""


def document() -> Json:
    """The document, as JSON types."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "apportion",
            "version": apportion.__version__,
            "summary": "The OpenAI and Anthropic APIs, answered by the endpoint that is worth most.",
            "description": (
                "Fields that are not named here pass through untouched, in requests and in answers. Every path "
                "under `/v1` is also there without it. GET paths also answer HEAD."
            ),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "Where this document came from."}],
        "tags": [
            {"name": "models", "description": "Answers of models."},
            {"name": "apportion", "description": "Decisions explained."},
            {"name": "admin", "description": "Keys, teams and budgets of the database."},
            {"name": "operation", "description": "Health, metrics and this document; no key is needed."},
        ],
        "security": [{"bearer": []}, {"apiKey": []}, {}],
        "paths": dict(_paths()),
        "components": {
            "schemas": _schemas(),
            "responses": dict(_responses()),
            "headers": {
                name: {"description": text, "schema": schema} for name, (text, schema) in HEADERS.items()
            },
            "parameters": {name: _parameter(name) for name in _request_headers()},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "As OpenAI's SDKs send it."},
                "apiKey": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "x-api-key",
                    "description": "As Anthropic's SDKs send it. Without configured keys none is needed.",
                },
            },
        },
    }


@cache
def document_bytes() -> bytes:
    """The document, encoded."""
    return msgspec.json.encode(document())


# paths


def _paths() -> Iterator[tuple[str, Json]]:
    for prefix in ("/v1", ""):
        for path, api in ROUTES.items():
            yield prefix + path, {"post": _call(api, prefix)}
        yield prefix + "/models", {"get": _models(prefix)}
        yield prefix + "/models/{id}", {"get": _model(prefix)}
    yield "/apportion/decisions/{id}", {"get": _decision()}
    yield "/apportion/prices", {"get": _prices()}
    yield from openapi_admin.paths()
    yield from openapi_spend.paths()
    yield from openapi_deciding.paths()
    said: Json = {"type": "object", "additionalProperties": {"type": "string"}}
    ready = _ref("schemas", "Readiness")
    yield "/", {"get": _plain("Where things are", "index", said)}
    yield "/health", {"get": _plain("Alive (the same as `/health/live`)", "health", ready)}
    yield "/health/live", {"get": _plain("Alive; touches nothing else", "healthLive", ready)}
    checked = _plain(
        "Ready: all workers have started, every model has an endpoint that is up", "healthReady", ready
    )
    busy = "Not ready, with the reason, or at its limit of connections."
    checked["responses"]["503"] = _answer(busy, {"anyOf": [ready, _ref("schemas", "OpenAIError")]})
    yield "/health/ready", {"get": checked}
    metrics = _plain("Metrics of all workers, in Prometheus' text format", "metrics", {"type": "string"})
    metrics["responses"]["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    yield "/metrics", {"get": metrics}
    yield "/openapi.json", {"get": _plain("This document", "openapi", {"type": "object"})}


def _call(api: Api, prefix: str) -> Json:
    """A path that asks a model."""
    summary, name = _SUMMARIES[api]
    extra: tuple[str, ...] = ("x-apportion-usage",) if api == "count_tokens" else ()
    if api in STREAMED:
        extra = ("x-apportion-deadline", "x-apportion-max-usd", "x-apportion-guard", *_DECIDED)
    done = _answer("The answer.", _ref("schemas", _ANSWERS[api][0]), (*_ANSWER_HEADERS, *extra))
    if api in STREAMED:
        done["content"]["text/event-stream"] = {
            "schema": {"type": "string", "description": f"{_STREAM_TEXT} {_END_MARKS[api]}"}
        }
    responses: Json = {"200": done}
    for status in (*_call_statuses(), "4XX", "5XX"):
        responses[str(status)] = _ref("responses", f"Call{status}{DIALECTS[api].title()}")
    body = _ref("schemas", _REQUESTS[api][0])
    return {
        "tags": ["models"],
        "summary": summary,
        "operationId": name if prefix else name + "Unprefixed",
        "parameters": [_ref("parameters", header) for header in _request_headers()],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": body, "example": _EXAMPLES[api]}},
        },
        "responses": responses,
    }


def _models(prefix: str) -> Json:
    operation = _plain(
        "Models that the key may use", "models", _ref("schemas", "ModelList"), (errors.AuthenticationError,)
    )
    return _of_models(operation, prefix)


def _model(prefix: str) -> Json:
    needed = (errors.AuthenticationError, errors.ModelNotFoundError, errors.NotFoundError)
    operation = _plain("One model", "model", _ref("schemas", "Model"), needed)
    operation["parameters"] = [_in_path("Logical name of the model.", {"type": "string", "minLength": 1})]
    return _of_models(operation, prefix)


def _of_models(operation: Json, prefix: str) -> Json:
    operation["tags"] = ["models"]
    operation["description"] = "With the header `anthropic-version`, in Anthropic's shape."
    operation["parameters"] = [
        *operation.get("parameters", ()),
        _ref("parameters", "anthropic-version"),
    ]
    operation.pop("security")
    if not prefix:
        operation["operationId"] += "Unprefixed"
    return operation


def _decision() -> Json:
    needed = (errors.AuthenticationError, errors.NotFoundError)
    operation = _plain("Why a request went where it went", "decision", _ref("schemas", "Decision"), needed)
    operation["tags"] = ["apportion"]
    operation["description"] = (
        "Kept for the latest requests only (`records.decisions`). A key reads its own decisions, an admin key all."
    )
    schema = {"type": "string", "pattern": "^dec_[0-9a-f]{18}$"}
    operation["parameters"] = [_in_path("From the header `x-apportion-decision-id`.", schema)]
    operation.pop("security")
    return operation


def _prices() -> Json:
    needed = (errors.AuthenticationError, errors.NotFoundError)
    operation = _plain("What a unit of each resource costs now", "prices", _ref("schemas", "Prices"), needed)
    operation["tags"] = ["apportion"]
    operation["description"] = "Admin keys see the prices of all scopes, other keys those that they pay."
    operation.pop("security")
    return operation


def _plain(summary: str, name: str, schema: Json, needed: tuple[type[errors.GatewayError], ...] = ()) -> Json:
    """A GET; ``needed`` are its errors besides those of reading a request."""
    responses: Json = {"200": _answer("Found.", schema, ("x-request-id",))}
    found = _by_status((*_READING, errors.MethodNotAllowedError, errors.InternalError, *needed))
    for status in sorted(found):
        responses[str(status)] = _ref("responses", f"{'Keyed' if needed else 'Open'}{status}")
    return {
        "tags": ["operation"],
        "summary": summary,
        "operationId": name,
        "security": [],
        "responses": responses,
    }


def _in_path(text: str, schema: Json) -> Json:
    return {"name": "id", "in": "path", "required": True, "description": text, "schema": schema}


# answers and errors

_READING: Final = (
    errors.InvalidRequestError,
    errors.RequestTimeoutError,
    errors.BodyTooLargeError,
    errors.HeadersTooLargeError,
    errors.OverloadedError,
)
"""Errors of reading a request, before its path is known: always in OpenAI's shape."""


_MANAGING: Final = (
    errors.InvalidJSONError,
    errors.UnsupportedMediaTypeError,
    errors.AuthenticationError,
    errors.PermissionDeniedError,
    errors.NotFoundError,
    errors.ConflictError,
    errors.LedgerUnavailableError,
)
"""Errors of the admin API besides those of reading a request."""


def _call_errors() -> Iterator[type[errors.GatewayError]]:
    """Every error that a call of a model can be answered with."""

    def below(cls: type[errors.GatewayError]) -> Iterator[type[errors.GatewayError]]:
        for child in cls.__subclasses__():
            yield child
            yield from below(child)

    return (
        cls for cls in below(errors.GatewayError) if cls not in (errors.NotFoundError, errors.ConflictError)
    )


def _call_statuses() -> dict[int, list[type[errors.GatewayError]]]:
    found = _by_status(_call_errors())
    for status in (_UPSTREAM_ONLY, errors.PermissionDeniedError.status):
        found.setdefault(status, [])
    return dict(sorted(found.items()))


def _responses() -> Iterator[tuple[str, Json]]:
    """Every error response, by name: of calls in both dialects, of paths with and without a key."""
    for dialect in ("openai", "anthropic"):
        for status, classes in _call_statuses().items():
            yield f"Call{status}{dialect.title()}", _error(status, classes, dialect, upstream=True)
        for family in ("4XX", "5XX"):
            text = "Another error of the upstream, passed on."
            yield f"Call{family}{dialect.title()}", _answer(text, _upstream(dialect), _ERROR_HEADERS)
    plain = (*_READING, errors.MethodNotAllowedError, errors.InternalError)
    needed = (errors.AuthenticationError, errors.ModelNotFoundError, errors.NotFoundError)
    for status, classes in _by_status(plain).items():
        yield f"Open{status}", _error(status, classes, "openai")
    for status, classes in _by_status((*plain, *needed)).items():
        yield f"Keyed{status}", _error(status, classes, "either")
    known = _by_status((*plain, *_MANAGING))
    for status in openapi_admin.STATUSES:
        yield f"Admin{status}", _error(status, known[status], "either")


def _by_status(classes: Iterable[type[errors.GatewayError]]) -> dict[int, list[type[errors.GatewayError]]]:
    found: dict[int, list[type[errors.GatewayError]]] = {}
    for cls in classes:
        known = found.setdefault(cls.status, [])
        if cls not in known:
            known.append(cls)
    return found


def _error(
    status: int, classes: list[type[errors.GatewayError]], dialect: str, *, upstream: bool = False
) -> Json:
    """The response of one status: the gateway's own codes, each with its meaning."""
    codes = [f"`{cls.code}`: {_meaning(cls)}" for cls in sorted(classes, key=lambda cls: cls.code)]
    if upstream and not codes:
        codes = ["The upstream's own error, passed on."]
    early = any(cls in _READING for cls in classes)
    shapes = {"openai": ["OpenAIError"], "anthropic": ["AnthropicError"]}.get(
        dialect, ["OpenAIError", "AnthropicError"]
    )
    if early and dialect == "anthropic":
        shapes = ["AnthropicError", "OpenAIError"]
    options = [_ref("schemas", shape) for shape in shapes]
    if upstream:
        options.append(_upstream(dialect))
    headers: tuple[str, ...] = _ERROR_HEADERS
    if upstream:
        headers = (*headers, *(name for name in _ANSWER_HEADERS if name.startswith("x-apportion-")))
    if status in (408, 429, 503) or upstream:
        headers = (*headers, "retry-after", "retry-after-ms")
    if status == 401:
        headers = (*headers, "www-authenticate")
    if status == 405:
        headers = (*headers, "allow")
    return _answer("\n\n".join(codes), options[0] if len(options) == 1 else {"anyOf": options}, headers)


def _meaning(cls: type) -> str:
    return " ".join((cls.__doc__ or "").split("\n\n")[0].split())


def _answer(text: str, schema: Json, headers: tuple[str, ...] = ()) -> Json:
    found: Json = {"description": text, "content": {"application/json": {"schema": schema}}}
    if headers:
        found["headers"] = {name: _ref("headers", name) for name in dict.fromkeys(headers)}
    return found


def _upstream(dialect: str) -> Json:
    return _ref("schemas", "UpstreamAnthropicError" if dialect == "anthropic" else "UpstreamOpenAIError")


def _ref(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}


# request headers


def _request_headers() -> tuple[str, ...]:
    return (*_CONSTRAINT_HEADERS.values(), *_PASSED)


_PASSED: Final = {
    "anthropic-version": "Of Anthropic's API; chooses the shape of answers that both SDKs ask for.",
    "anthropic-beta": "Passed on.",
    "openai-beta": "Passed on.",
    "idempotency-key": "Passed on.",
    "traceparent": "Passed on.",
    "tracestate": "Passed on.",
}


def _parameter(header: str) -> Json:
    """A request header: a constraint, stronger than the body's, or one that is passed on."""
    found: Json = {"name": header, "in": "header"}
    for name, constraint in _CONSTRAINT_HEADERS.items():
        if header == constraint:
            schema = _constraints()["properties"][name]
            (kind,) = (option for option in schema["anyOf"] if option.get("type") != "null")
            if name == "tags":
                # Percent-encoded, so that a comma or a character outside ASCII can be inside a tag.
                kind = {"type": "string", "pattern": "^[!-~]*$"}
            return {
                **found,
                "description": f"{FIELDS[name]} Stands above `apportion.{name}` in the body."
                + (" Separated by commas, each percent-encoded." if name == "tags" else ""),
                "schema": kind,
            }
    return {**found, "description": _PASSED[header], "schema": {"type": "string", "pattern": "^[!-~]*$"}}


# schemas


def _components() -> dict[str, Json]:
    """The request types as JSON schemas under their public names."""
    types = [cls for _, cls in _REQUESTS.values()]
    _, found = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    text = msgspec.json.encode(found).decode()
    for private, public in _NAMES.items():
        text = text.replace(f'"{private}"', f'"{public}"').replace(
            f'schemas/{private}"', f'schemas/{public}"'
        )
    return msgspec.json.decode(text, type=dict[str, Json])


def _constraints() -> Json:
    return _components()["Constraints"]


def _schemas() -> dict[str, Json]:
    found = _components()
    for name, schema in found.items():
        for field, inner in schema["properties"].items():
            inner["description"] = FIELDS[field]
            if inner.get("default", 0) is None:
                del inner["default"]
        if name in {public for public, _ in _REQUESTS.values()}:
            schema["description"] = "The fields that the proxy checks; all others are passed on untouched."
        if not schema.get("required", True):
            del schema["required"]
    found["Constraints"]["description"] = (
        "What a client may demand of one request, in the body or as `x-apportion-*` headers. It is obeyed, or the "
        "request is refused with an error that names the best possible."
    )
    return dict(
        sorted(
            {
                **found,
                **_ERROR_SHAPES,
                **_answer_schemas(),
                **_OWN,
                **openapi_admin.schemas(),
                **openapi_spend.schemas(),
                **openapi_deciding.schemas(),
            }.items()
        )
    )


def _object(properties: Json, *required: str, text: str = "") -> Json:
    schema: Json = {"type": "object", "properties": properties}
    if required:
        schema["required"] = list(required)
    return {"description": text, **schema} if text else schema


_STRING: Final[Json] = {"type": "string"}
_COUNT: Final[Json] = {"type": "integer", "minimum": 0}
_NUMBER_OR_NULL: Final[Json] = {"type": ["number", "null"]}
_STRING_OR_NULL: Final[Json] = {"type": ["string", "null"]}
_LIST: Final[Json] = {"type": "array"}
_ANY_OBJECT: Final[Json] = {"type": "object"}

_DETAILS: Final[Json] = {
    "type": "object",
    "description": "Numbers to act on: the budget or constraint, what was wanted, what is left, the best possible.",
}
_ERROR_SHAPES: Final[dict[str, Json]] = {
    "OpenAIError": _object(
        {
            "error": _object(
                {
                    "message": _STRING,
                    "type": _STRING,
                    "param": _STRING_OR_NULL,
                    "code": _STRING,
                    "details": _DETAILS,
                },
                "message",
                "type",
                "param",
                "code",
            )
        },
        "error",
        text="An error of the gateway's own in the shape that OpenAI's SDKs expect.",
    ),
    "AnthropicError": _object(
        {
            "type": {"const": "error"},
            "error": _object(
                {
                    "type": _STRING,
                    "message": _STRING,
                    "code": _STRING,
                    "param": _STRING,
                    "details": _DETAILS,
                },
                "type",
                "message",
                "code",
            ),
            "request_id": _STRING,
        },
        "type",
        "error",
        "request_id",
        text="An error of the gateway's own in the shape that Anthropic's SDKs expect.",
    ),
    "UpstreamOpenAIError": _object({"error": {}}, "error", text="An upstream's error, in its own words."),
    "UpstreamAnthropicError": _object({"error": {}}, "error", text="An upstream's error, in its own words."),
}

_ANSWERS: Final[dict[Api, tuple[str, Json]]] = {
    "chat": (
        "ChatCompletion",
        _object(
            {
                "id": _STRING,
                "object": _STRING,
                "created": {"type": "integer"},
                "model": _STRING,
                "choices": {"type": "array", "items": _ANY_OBJECT},
                "usage": {"type": ["object", "null"]},
            },
            "choices",
        ),
    ),
    "completions": (
        "Completion",
        _object(
            {
                "id": _STRING,
                "object": _STRING,
                "created": {"type": "integer"},
                "model": _STRING,
                "choices": {"type": "array", "items": _ANY_OBJECT},
                "usage": {"type": ["object", "null"]},
            },
            "choices",
        ),
    ),
    "embeddings": (
        "Embeddings",
        _object(
            {
                "object": _STRING,
                "model": _STRING,
                "data": {"type": "array", "items": _ANY_OBJECT},
                "usage": {"type": ["object", "null"]},
            },
            "data",
        ),
    ),
    "responses": (
        "Response",
        _object(
            {
                "id": _STRING,
                "object": _STRING,
                "model": _STRING,
                "status": _STRING,
                "output": {"type": "array", "items": _ANY_OBJECT},
                "usage": {"type": ["object", "null"]},
            },
            "output",
        ),
    ),
    "messages": (
        "AnthropicMessage",
        _object(
            {
                "id": _STRING,
                "type": _STRING,
                "role": _STRING,
                "model": _STRING,
                "content": {"type": "array", "items": _ANY_OBJECT},
                "stop_reason": _STRING_OR_NULL,
                "stop_sequence": _STRING_OR_NULL,
                "usage": {"type": ["object", "null"]},
            },
            "content",
        ),
    ),
    "count_tokens": ("TokenCount", _object({"input_tokens": _COUNT}, "input_tokens")),
}


def _answer_schemas() -> dict[str, Json]:
    text = "Further fields are the upstream's, untouched."
    return {name: {"description": text, **schema} for name, schema in _ANSWERS.values()}


_MODEL_OPENAI: Final = _object(
    {"id": _STRING, "object": {"const": "model"}, "created": {"type": "integer"}, "owned_by": _STRING},
    "id",
    "object",
    "created",
    "owned_by",
)
_MODEL_ANTHROPIC: Final = _object(
    {
        "id": _STRING,
        "type": {"const": "model"},
        "display_name": _STRING,
        "created_at": {"type": "string", "format": "date-time"},
    },
    "id",
    "type",
    "display_name",
    "created_at",
)
_OPTION: Final = _object(
    {
        "endpoint": {**_STRING, "description": "The endpoint, with `/MODEL` where one serves several."},
        "value_usd": {"type": "number", "description": "`worth_usd` times `effort` times `quality`."},
        "cost": {
            "type": "object",
            "additionalProperties": {"type": "number"},
            "description": "Predicted, by resource; one that is not here is unknown.",
        },
        "worth_usd": {**_NUMBER_OR_NULL, "description": "Value less cost at the prices; null: not known."},
        "quality": {
            **_NUMBER_OR_NULL,
            "description": "Predicted probability of a right answer; null: nobody predicts.",
        },
        "load": {**_NUMBER_OR_NULL, "description": "Work in flight over capacity; null: capacity not known."},
        "weight": {"type": "number"},
        "chosen": {"type": "boolean"},
    },
    "endpoint",
    "value_usd",
    "cost",
    "worth_usd",
    "load",
    "weight",
    "chosen",
)
_ATTEMPT: Final = _object(
    {
        "endpoint": _STRING,
        "status": {"type": "integer", "description": "The upstream's HTTP status; 200 where there was none."},
        "failure": {**_STRING_OR_NULL, "description": "How it failed; null: it did not."},
        "duration_ms": {"type": "number"},
        "probability": {**_NUMBER_OR_NULL, "description": "Of this choice, where it was drawn at random."},
        "by": {**_STRING, "description": "What decided: a policy, `conversation` or `strategy`."},
        "why": {**_STRING, "description": "The rule that decided."},
        "waited_ms": {**_NUMBER_OR_NULL, "description": "Time in the endpoint's queue."},
        "shadow": {
            "type": ["object", "null"],
            "properties": {"endpoint": _STRING_OR_NULL, "why": _STRING},
            "description": "What the policy on trial would have done; null: there is none.",
        },
        "prices": {
            "type": "object",
            "additionalProperties": {"type": "number"},
            "description": "Dollars per unit of each resource at that moment, shadow prices included.",
        },
        "options": {"type": "array", "items": _OPTION},
    },
    "endpoint",
    "status",
    "failure",
    "duration_ms",
    "probability",
    "why",
    "prices",
    "options",
)
_OUTCOME: Final = _object(
    {
        "status": {"enum": ["running", "ok", "failed", "timeout", "cancelled", "refused"]},
        "finish_reason": _STRING_OR_NULL,
        "input_tokens": {"type": ["integer", "null"]},
        "output_tokens": {"type": ["integer", "null"]},
        "cost_usd": {**_STRING_OR_NULL, "description": "Exact decimal; null: unknown."},
        "cost_mark": {"enum": ["measured", "estimated", "unknown"]},
        "server_seconds": _NUMBER_OR_NULL,
        "duration_ms": _NUMBER_OR_NULL,
        "overhead_ms": _NUMBER_OR_NULL,
    },
    "status",
    "finish_reason",
    "input_tokens",
    "output_tokens",
    "cost_usd",
    "cost_mark",
    "server_seconds",
    "duration_ms",
    "overhead_ms",
)
_OWN: Final[dict[str, Json]] = {
    "Model": {"anyOf": [_MODEL_OPENAI, _MODEL_ANTHROPIC]},
    "ModelList": {
        "anyOf": [
            _object(
                {"object": {"const": "list"}, "data": {"type": "array", "items": _MODEL_OPENAI}},
                "object",
                "data",
            ),
            _object(
                {
                    "data": {"type": "array", "items": _MODEL_ANTHROPIC},
                    "has_more": {"const": False},
                    "first_id": _STRING_OR_NULL,
                    "last_id": _STRING_OR_NULL,
                },
                "data",
                "has_more",
                "first_id",
                "last_id",
            ),
        ]
    },
    "Prices": _object(
        {
            "object": {"const": "apportion.prices"},
            "now": {"type": "number", "description": "Unix time, seconds."},
            "outside": {
                "type": "object",
                "additionalProperties": {"type": "number"},
                "description": "What a unit costs outside, in dollars, by resource.",
            },
            "scopes": {
                "type": "object",
                "additionalProperties": _object(
                    {
                        "prices": {"type": "object", "additionalProperties": {"type": "number"}},
                        "why": {
                            "type": "array",
                            "items": _STRING,
                            "description": "How spending stands; of scopes that are shared, for admin keys only.",
                        },
                        "budgets": {"type": "array", "items": _STRING},
                    },
                    "prices",
                    "budgets",
                ),
                "description": "What the budgets of each scope add to that.",
            },
        },
        "object",
        "now",
        "outside",
        "scopes",
    ),
    "Readiness": _object({"status": {"enum": ["ok", "not ready"]}, "why": _STRING}, "status"),
    "Decision": _object(
        {
            "id": _STRING,
            "object": {"const": "apportion.decision"},
            "request_id": _STRING,
            "created": {"type": "number", "description": "Unix time, seconds."},
            "key": {**_STRING, "description": "Name of the key that asked."},
            "api": {"enum": list(ROUTES.values())},
            "model": {**_STRING, "description": "The logical name that was asked for."},
            "stream": {"type": "boolean"},
            "effort": _NUMBER_OR_NULL,
            "priority": {"type": ["integer", "null"]},
            "tags": {"type": "array", "items": _STRING},
            "key_tags": {"type": "object", "additionalProperties": _STRING},
            "explanation": {**_STRING, "description": "All of it in words."},
            "chosen": {**_STRING_OR_NULL, "description": "The endpoint that was asked last."},
            "upstream_model": _STRING_OR_NULL,
            "attempts": {"type": "array", "items": _ATTEMPT},
            "parent": {**_STRING_OR_NULL, "description": "The decision whose strategy made this call."},
            "strategy": {
                "type": ["object", "null"],
                "description": "How a strategy came to its answer: its name, calls, confidence and reason.",
            },
            "cache": {
                "type": ["object", "null"],
                "description": "What the answer cache had; null: not asked.",
            },
            "guard": {
                "type": ["object", "null"],
                "description": "The guard's verdict; null: there is no guard.",
            },
            "examples": {"type": "integer", "description": "How many past answers were shown with it."},
            "outcome": _OUTCOME,
        },
        "id",
        "object",
        "request_id",
        "created",
        "key",
        "api",
        "model",
        "stream",
        "effort",
        "priority",
        "tags",
        "key_tags",
        "explanation",
        "chosen",
        "upstream_model",
        "attempts",
        "outcome",
    ),
}

_HELLO: Final = [{"role": "user", "content": "Hello"}]
_EXAMPLES: Final[dict[Api, Json]] = {
    "chat": {"model": "default", "messages": _HELLO, "apportion": {"max_usd": 0.01, "deadline_s": 30}},
    "completions": {"model": "default", "prompt": "Once upon a time", "max_tokens": 32},
    "embeddings": {"model": "default", "input": "Hello"},
    "responses": {"model": "default", "input": "Hello"},
    "messages": {"model": "default", "max_tokens": 64, "messages": _HELLO},
    "count_tokens": {"model": "default", "messages": _HELLO},
}


def main() -> int:
    """Write the document, indented, to standard output."""
    sys.stdout.write(msgspec.json.format(document_bytes(), indent=2).decode() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
