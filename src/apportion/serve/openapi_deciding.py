"""The OpenAPI document's part about decisions: feedback, quality, queues, endpoints and the answer cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from apportion.serve.openapi_admin import STATUSES

Json = dict[str, Any]

_TEXT: Final[Json] = {"type": "string"}
_NUMBER: Final[Json] = {"type": "number"}
_COUNT: Final[Json] = {"type": "integer"}


def _operation(
    id: str, summary: str, description: str, schema: str, parameters: list[Json] | None = None, body: str = ""
) -> Json:
    found: Json = {
        "tags": ["apportion"],
        "summary": summary,
        "description": description,
        "operationId": id,
        "responses": {
            "200": {
                "description": "Done.",
                "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}},
                "headers": {"x-request-id": {"$ref": "#/components/headers/x-request-id"}},
            },
            **{str(status): {"$ref": f"#/components/responses/Admin{status}"} for status in STATUSES},
        },
    }
    if parameters:
        found["parameters"] = parameters
    if body:
        schema_of = {"$ref": f"#/components/schemas/{body}"}
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema_of}}}
    return found


def paths() -> Iterator[tuple[str, Json]]:
    """The paths with their operations."""
    say = (
        "Say how good an answer was",
        "By `decision_id` or `request_id` of the key's own requests (an admin key: of all). It may come late, twice or "
        "contradict what was said before; the latest word of each source counts.",
    )
    yield "/v1/feedback", {"post": _operation("feedback", *say, "FeedbackTaken", body="Feedback")}
    yield (
        "/apportion/feedback",
        {"post": _operation("feedbackHere", *say, "FeedbackTaken", body="Feedback")},
    )
    yield (
        "/apportion/quality",
        {
            "get": _operation(
                "quality",
                "How good the answers were, and whether the predictions hold",
                "For each model and endpoint: predicted against observed quality, calibration, drift. Admin keys.",
                "Quality",
            )
        },
    )
    yield (
        "/apportion/queues",
        {
            "get": _operation(
                "queues",
                "Where the key's own requests wait",
                "An admin key is also told every queue in numbers.",
                "Queues",
            )
        },
    )
    yield (
        "/apportion/endpoints",
        {
            "get": _operation(
                "endpoints",
                "How the endpoints stand",
                "Which are drained, and how many requests are under way at each. Admin keys.",
                "Endpoints",
            )
        },
    )
    name = {
        "name": "name",
        "in": "path",
        "required": True,
        "description": "Of the endpoint.",
        "schema": _TEXT,
    }
    yield (
        "/apportion/endpoints/{name}/drain",
        {
            "post": _operation(
                "drainEndpoint",
                "Take an endpoint out of rotation",
                "It gets no new requests. Streams of models with `retries: {resume: true}` go on at another endpoint; "
                "all else ends where it is. Until it is put back, its configuration changes or the proxy restarts.",
                "Endpoint",
                [name],
            ),
            "delete": _operation(
                "putBackEndpoint",
                "Put a drained endpoint back",
                "It gets requests again.",
                "Endpoint",
                [name],
            ),
        },
    )
    yield (
        "/apportion/lengths",
        {
            "get": _operation(
                "lengths",
                "How long answers are",
                "By model and tenant, in each worker: quantiles, and the share that reaches 1,000, 3,000 and 5,000 "
                "tokens. Admin keys.",
                "Lengths",
            )
        },
    )
    query: list[Json] = [
        {"name": name, "in": "query", "description": text, "schema": {"type": "string"}}
        for name, text in (
            ("id", "Cache key or decision id of one answer."),
            ("tag", "All answers to requests with this tag."),
            ("tenant", "All answers of a tenant: `team:NAME` or `key:NAME`."),
        )
    ]
    forget = "Remove answers from the cache"
    yield (
        "/apportion/cache",
        {
            "get": _operation(
                "cache", "What the answer cache holds and has saved", "Numbers, never contents.", "CacheState"
            ),
            "delete": _operation(
                "forgetAnswers", forget, "Exactly one of the parameters is given.", "Removed", query
            ),
        },
    )
    one = [
        {
            "name": "id",
            "in": "path",
            "required": True,
            "description": query[0]["description"],
            "schema": _TEXT,
        }
    ]
    yield (
        "/apportion/cache/{id}",
        {
            "delete": _operation(
                "forgetAnswer", "Remove one answer from the cache", "Admin keys.", "Removed", one
            )
        },
    )


def schemas() -> dict[str, Json]:
    """What they are asked and answer."""
    waiting: Json = {
        "type": "object",
        "properties": {
            "decision_id": _TEXT,
            "model": _TEXT,
            "endpoint": _TEXT,
            "session": {"type": ["string", "null"]},
            "waited_s": _NUMBER,
            "ahead": {**_COUNT, "description": "How many go before it, as it stands."},
            "expected_wait_s": _NUMBER,
        },
    }
    endpoint: Json = {
        "type": "object",
        "properties": {
            "name": _TEXT,
            "draining": {"type": "boolean"},
            "in_flight": {**_COUNT, "description": "Requests under way."},
            "moving": {
                **_COUNT,
                "description": "Of those under way when it was drained, those that go on elsewhere.",
            },
            "staying": {**_COUNT, "description": "Those that end where they are."},
        },
        "required": ["name", "draining", "in_flight", "moving", "staying"],
    }
    return {
        "Endpoint": endpoint,
        "Endpoints": {
            "type": "object",
            "properties": {"object": _TEXT, "data": {"type": "array", "items": endpoint}},
            "required": ["object", "data"],
        },
        "Feedback": {
            "type": "object",
            "properties": {
                "decision_id": {**_TEXT, "description": "`x-apportion-decision-id` of the answer."},
                "request_id": {**_TEXT, "description": "`x-request-id` of the answer, in its place."},
                "score": {"type": "number", "minimum": 0, "maximum": 1, "description": "How good it was."},
                "label": {**_TEXT, "description": "In place of `score`: `right`, `wrong`, `good`, `bad`."},
                "source": {**_TEXT, "description": "Who says so."},
                "comment": {**_TEXT, "description": "Kept only where `records.comments` says so."},
            },
        },
        "FeedbackTaken": {"type": "object"},
        "Quality": {"type": "object"},
        "Queues": {
            "type": "object",
            "properties": {
                "waiting": {"type": "array", "items": waiting},
                "endpoints": {
                    "type": "object",
                    "description": "For admin keys: each endpoint's queue in every worker.",
                    "additionalProperties": {"type": "array", "items": {"type": "object"}},
                },
            },
            "required": ["waiting", "endpoints"],
        },
        "Lengths": {"type": "object", "properties": {"workers": {"type": "object"}}, "required": ["workers"]},
        "CacheState": {
            "type": "object",
            "properties": {"enabled": {"type": "boolean"}},
            "required": ["enabled"],
        },
        "Removed": {"type": "object", "properties": {"removed": _COUNT}, "required": ["removed"]},
    }
