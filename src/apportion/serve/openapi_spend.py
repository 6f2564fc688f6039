"""The OpenAPI document's part about reports of spending: one path and what it answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from apportion.serve.openapi_admin import STATUSES

Json = dict[str, Any]

_COUNT: Final[Json] = {"type": "integer"}
_AMOUNT: Final[Json] = {"type": "string", "pattern": r"^-?\d+(\.\d+)?$"}
_KNOWN: Final[Json] = {**_AMOUNT, "type": ["string", "null"]}
_SPENT: Final[Json] = {
    "requests": {**_COUNT, "description": "Requests."},
    "attempts": {**_COUNT, "description": "Attempts at endpoints; a request may take several."},
    "tokens": {**_COUNT, "description": "Tokens read and written."},
    "input_tokens": {**_COUNT, "description": "Of these, read."},
    "cached_tokens": {**_COUNT, "description": "Of those read, from a cache."},
    "cache_write_tokens": {**_COUNT, "description": "Of those read, written to a cache."},
    "output_tokens": {**_COUNT, "description": "Written."},
    "reasoning_tokens": {**_COUNT, "description": "Of those written, to think."},
    "usd": {**_AMOUNT, "description": "Dollars, exact."},
    "usd_estimated": {**_AMOUNT, "description": "Of these, by tokens that were counted and not reported."},
    "usd_presumed": {**_AMOUNT, "description": "Of these, the most that requests of a crashed worker cost."},
    "unpriced": {**_COUNT, "description": "Attempts without a known price: in no dollar amount."},
    "unpriced_tokens": {**_COUNT, "description": "Their tokens."},
    "server_seconds": {**_AMOUNT, "description": "Time that endpoints were occupied."},
    "joules": {**_KNOWN, "description": "Energy; null: of no attempt known."},
    "gco2": {**_KNOWN, "description": "Grams of CO2; null: of no attempt known."},
}
_AMOUNTS: Final[Json] = {"type": "object", "properties": _SPENT, "required": list(_SPENT)}
_MOMENT: Final[Json] = {"type": ["string", "null"], "format": "date-time"}


def _parameters() -> Iterator[Json]:
    def parameter(name: str, description: str, **schema: Any) -> Json:
        return {
            "name": name,
            "in": "query",
            "description": description,
            "schema": {"type": "string", **schema},
        }

    when = "`7d` (ago), `2026-11-01` or `2026-11-01T08:00`"
    yield parameter(
        "by",
        "Groups, separated by commas: `organisation`, `team`, `key`, `user`, `session`, `model`, `endpoint`, "
        "`upstream_model`, `api`, `status`, `mark`, `hour`, `day`, `week`, `month`, `tag:NAME`.",
        default="",
    )
    yield parameter("since", f"Only what was booked since: {when}.")
    yield parameter("until", f"Only what was booked before: {when}.")
    yield parameter("time_zone", "Whose hours, days, weeks and months they are.", default="UTC")
    yield parameter(
        "sort", "Most money first, or in the order of the groups.", enum=["usd", "by"], default="usd"
    )
    limit = {"type": "integer", "minimum": 1, "maximum": 10_000, "default": 1000}
    yield parameter("limit", "The most groups; the rest is in `others`.", **limit)
    for name in (
        "organisation",
        "team",
        "key",
        "user",
        "session",
        "model",
        "endpoint",
        "upstream_model",
        "api",
    ):
        many = {"type": "array", "items": {"type": "string"}}
        yield parameter(name, "Only this one, or these.", **many)


def paths() -> Iterator[tuple[str, Json]]:
    """The path with its operation."""
    yield (
        "/apportion/spend",
        {
            "get": {
                "tags": ["apportion"],
                "summary": "What was spent, grouped as you like",
                "description": "Admin keys see everything, other keys what they spent themselves. Filters besides "
                "those listed: `status`, `mark`, `tag:NAME`. What one `limit` leaves out is still in `total`.",
                "operationId": "spend",
                "parameters": list(_parameters()),
                "responses": {
                    "200": {
                        "description": "Done.",
                        "content": {
                            "application/json": {"schema": {"$ref": "#/components/schemas/SpendReport"}}
                        },
                        "headers": {"x-request-id": {"$ref": "#/components/headers/x-request-id"}},
                    },
                    **{str(status): {"$ref": f"#/components/responses/Admin{status}"} for status in STATUSES},
                },
            }
        },
    )


def schemas() -> dict[str, Json]:
    """What it answers."""
    row = {**_AMOUNTS, "description": "One group: its values under the names of `by`, then the amounts."}
    others = {
        **_AMOUNTS,
        "type": ["object", "null"],
        "description": "All other groups; null: there are none.",
    }
    properties: Json = {
        "since": _MOMENT,
        "until": _MOMENT,
        "time_zone": {"type": "string"},
        "by": {"type": "array", "items": {"type": "string"}},
        "only": {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "string"}}},
        "rows": {"type": "array", "items": row},
        "others": others,
        "total": {**_AMOUNTS, "description": "Everything that was asked for."},
    }
    return {"SpendReport": {"type": "object", "properties": properties, "required": list(properties)}}
