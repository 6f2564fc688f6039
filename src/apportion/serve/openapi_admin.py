"""The admin API's part of the OpenAPI document: its paths with their forms and answers.

Forms are read from the types that check requests (``forms``), so that they cannot drift from the code.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgspec

from apportion.serve import forms
from apportion.serve.config.budgets import METERED

Json = dict[str, Any]

STATUSES: Final = (400, 401, 403, 404, 405, 408, 409, 413, 415, 431, 500, 503)
"""What any of these paths may be answered with besides success; the responses are called ``Admin400`` and so on."""

_FORMS: Final = (
    forms.KeyForm,
    forms.KeyChange,
    forms.RotateForm,
    forms.TeamForm,
    forms.TeamChange,
    forms.BudgetForm,
    forms.BudgetChange,
)
_FIELDS: Final = {
    "admin": "May use these paths. Models it may use all the same, unless `models` is empty.",
    "amount": "How much, in the resource's unit; with a refill, the most that can be saved up.",
    "budget": "What it may spend; null: no budget of its own.",
    "disabled": "True: it is refused, and stays in the books.",
    "endpoints": "Endpoints that may answer it; null: all.",
    "expires": "From then on it is refused: a date and time with its zone, or a duration from now; null: never.",
    "grace": "For how long the old secret stays valid: seconds, or a duration such as `1h`; at most 30 days.",
    "hard": "True: refuse what could exceed it. False: only raise the price of spending.",
    "limits": "Rates; null: none.",
    "models": "Logical names of the models it may use; null: all.",
    "name": "Unique; how the books call it. It cannot be changed.",
    "overdraft": "How far beyond the amount a request may go that began while something was left.",
    "parallel": "Requests under way at once.",
    "refill_per_s": "In place of `window`: refilled continuously at this rate per second.",
    "requests_per_minute": "Requests started in any minute.",
    "require": "Endpoint tags: only endpoints that have all of them may answer it; none: `[]`.",
    "resource": f"One of {', '.join(f'`{name}`' for name in METERED)}.",
    "routing": "False: left out of what is being tried. The `baseline` of a model decides for it, its answers come "
    "from no cache and a strategy makes one call.",
    "scope": "Who shares it: `all`, `team`, `key`, `user`, `session`, `model`, `endpoint`, one of them as "
    "`key:NAME`, or `request`.",
    "sliding": "The amount holds for every interval of the window's length.",
    "tags": "Labels on everything it asks.",
    "team": "Name of the team it belongs to; null: none.",
    "time_zone": "Whose days, weeks and months they are.",
    "tokens": "Tokens per window.",
    "tokens_per_minute": "Input and output tokens in any minute.",
    "usd": "Dollars per window.",
    "window": "Seconds, a duration such as `1h`, `day`, `week`, `month`; `forever` or null never starts again.",
}


class _Operation(NamedTuple):
    method: str
    path: str
    id: str
    summary: str
    answer: str
    form: str | None = None
    text: str = "For admin keys."
    status: str = "200"
    optional_body: bool = False


_ONLY_THERE: Final = "For admin keys. What is in the configuration file is changed there (409)."
_OPERATIONS: Final = (
    _Operation("get", "/apportion/keys", "listKeys", "All keys", "KeyList"),
    _Operation(
        "post",
        "/apportion/keys",
        "createKey",
        "Make a key",
        "NewKey",
        "KeyForm",
        "For admin keys. The secret is in this answer and nowhere else, ever.",
        "201",
    ),
    _Operation(
        "get",
        "/apportion/keys/self",
        "ownKey",
        "The key that asks, and what is left of its budgets",
        "OwnKey",
        text="For every key, about itself.",
    ),
    _Operation("get", "/apportion/keys/{id}", "getKey", "One key, by id or name", "Key"),
    _Operation("patch", "/apportion/keys/{id}", "changeKey", "Change a key", "Key", "KeyChange", _ONLY_THERE),
    _Operation("delete", "/apportion/keys/{id}", "deleteKey", "Delete a key", "Deleted", text=_ONLY_THERE),
    _Operation(
        "post",
        "/apportion/keys/{id}/rotate",
        "rotateKey",
        "Give a key a new secret",
        "NewKey",
        "RotateForm",
        _ONLY_THERE,
        optional_body=True,
    ),
    _Operation("get", "/apportion/teams", "listTeams", "All teams", "TeamList"),
    _Operation(
        "post", "/apportion/teams", "createTeam", "Make a team", "Team", "TeamForm", _ONLY_THERE, "201"
    ),
    _Operation("get", "/apportion/teams/{name}", "getTeam", "One team", "Team"),
    _Operation(
        "patch", "/apportion/teams/{name}", "changeTeam", "Change a team", "Team", "TeamChange", _ONLY_THERE
    ),
    _Operation(
        "delete",
        "/apportion/teams/{name}",
        "deleteTeam",
        "Delete a team without keys",
        "Deleted",
        text=_ONLY_THERE,
    ),
    _Operation("get", "/apportion/budgets", "listBudgets", "All budgets", "BudgetList"),
    _Operation(
        "post",
        "/apportion/budgets",
        "createBudget",
        "Make a budget",
        "Budget",
        "BudgetForm",
        _ONLY_THERE,
        "201",
    ),
    _Operation("get", "/apportion/budgets/{name}", "getBudget", "One budget, and what is left", "BudgetLeft"),
    _Operation(
        "patch",
        "/apportion/budgets/{name}",
        "changeBudget",
        "Change a budget; what was spent of it stays",
        "Budget",
        "BudgetChange",
        _ONLY_THERE,
    ),
    _Operation(
        "delete", "/apportion/budgets/{name}", "deleteBudget", "Delete a budget", "Deleted", text=_ONLY_THERE
    ),
    _Operation("get", "/apportion/audit", "audit", "Who changed what, the latest first", "Audit"),
)


def paths() -> Iterator[tuple[str, Json]]:
    """The paths with their operations."""
    found: dict[str, Json] = {}
    for operation in _OPERATIONS:
        found.setdefault(operation.path, {})[operation.method] = _operation(operation)
    yield from found.items()


def _operation(operation: _Operation) -> Json:
    parameters: list[Json] = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": "Its id or its name." if name == "id" else "Its name.",
            "schema": {"type": "string", "minLength": 1},
        }
        for name in ("id", "name")
        if f"{{{name}}}" in operation.path
    ]
    if operation.id == "audit":
        limit = {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}
        parameters.append({"name": "limit", "in": "query", "description": "The most lines.", "schema": limit})
    found: Json = {
        "tags": ["admin"],
        "summary": operation.summary,
        "description": operation.text,
        "operationId": operation.id,
        "responses": {
            operation.status: {
                "description": "Made." if operation.status == "201" else "Done.",
                "content": {"application/json": {"schema": _ref(operation.answer)}},
                "headers": {"x-request-id": {"$ref": "#/components/headers/x-request-id"}},
            },
            **{str(status): {"$ref": f"#/components/responses/Admin{status}"} for status in STATUSES},
        },
    }
    if parameters:
        found["parameters"] = parameters
    if operation.form is not None:
        content = {"application/json": {"schema": _ref(operation.form)}}
        found["requestBody"] = {"required": not operation.optional_body, "content": content}
    return found


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{_PUBLIC.get(name, name)}"}


_PUBLIC: Final = {"Limits": "LimitsForm", "Spending": "SpendingForm", "Key": "ManagedKey"}
"""Names in the document, where a type's own would say too little."""


def schemas() -> dict[str, Json]:
    """The forms and the answers, by name."""
    _, found = msgspec.json.schema_components(_FORMS, ref_template="#/components/schemas/{name}")
    text = msgspec.json.encode(found).decode()
    for name in ("Limits", "Spending"):
        text = text.replace(f'"{name}":', f'"{_PUBLIC[name]}":').replace(
            f'schemas/{name}"', f'schemas/{_PUBLIC[name]}"'
        )
    described = msgspec.json.decode(text, type=dict[str, Json])
    for schema in described.values():
        for field, inner in schema["properties"].items():
            inner["description"] = _FIELDS[field]
        if not schema.get("required", True):
            del schema["required"]
    return {**described, **{_PUBLIC.get(name, name): schema for name, schema in _answers().items()}}


def _object(properties: Json, *optional: str) -> Json:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


def _list(name: str) -> Json:
    return _object({"object": {"const": "list"}, "data": {"type": "array", "items": _ref(name)}})


_STRING: Final[Json] = {"type": "string"}
_BOOLEAN: Final[Json] = {"type": "boolean"}
_NUMBER_OR_NULL: Final[Json] = {"type": ["number", "null"]}
_STRING_OR_NULL: Final[Json] = {"type": ["string", "null"]}
_MOMENT: Final[Json] = {"type": ["string", "null"], "format": "date-time"}
_NAMES: Final[Json] = {"type": ["array", "null"], "items": {"type": "string"}}
_TAGS: Final[Json] = {
    "type": "array",
    "items": {"type": "string"},
    "description": "Tags that endpoints must have.",
}
_SOURCE: Final[Json] = {
    "enum": ["configuration", "database"],
    "description": "Where it is kept, and changed.",
}
_DECIMAL: Final[Json] = {"type": "string", "pattern": r"^-?\d+(\.\d+)?$"}
_LIMITS: Final = _object(
    {
        name: {"type": ["integer", "null"], "description": _FIELDS[name]}
        for name in ("requests_per_minute", "tokens_per_minute", "parallel")
    }
)
_SPENDING: Final = {
    "type": ["object", "null"],
    "properties": {
        "usd": _NUMBER_OR_NULL,
        "tokens": {"type": ["integer", "null"]},
        "window": _STRING,
        "time_zone": _STRING,
        "hard": _BOOLEAN,
    },
}


def _answers() -> dict[str, Json]:
    key: Json = {
        "id": {**_STRING_OR_NULL, "description": "The public part of the key; null: of the configuration."},
        "object": {"const": "apportion.key"},
        "name": _STRING,
        "source": _SOURCE,
        "state": {
            "enum": ["active", "disabled", "expired", "unusable"],
            "description": "`unusable`: made with another pepper than is used now; rotate it.",
        },
        "admin": _BOOLEAN,
        "team": _STRING_OR_NULL,
        "models": _NAMES,
        "endpoints": _NAMES,
        "require": _TAGS,
        "routing": _BOOLEAN,
        "expires": _MOMENT,
        "tags": {"type": "object", "additionalProperties": _STRING},
        "limits": _LIMITS,
        "budget": _SPENDING,
        "previous_until": {**_MOMENT, "description": "Until when the secret before the last is valid."},
        "created": _MOMENT,
        "changed": _MOMENT,
    }
    budget: Json = {
        "object": {"const": "apportion.budget"},
        "name": _STRING,
        "source": _SOURCE,
        "resource": _STRING,
        "amount": {"type": "number"},
        "window": _STRING_OR_NULL,
        "time_zone": _STRING,
        "sliding": _BOOLEAN,
        "refill_per_s": _NUMBER_OR_NULL,
        "scope": _STRING,
        "hard": _BOOLEAN,
        "overdraft": {"type": "number"},
    }
    balances: Json = {"type": "array", "items": _ref("Balance")}
    return {
        "Key": _object(key),
        "KeyList": _list("Key"),
        "NewKey": _object({**key, "key": {**_STRING, "description": "The key itself, shown this once."}}),
        "OwnKey": _object({**key, "usable_models": {"type": "array", "items": _STRING}, "budgets": balances}),
        "Team": _object(
            {
                "object": {"const": "apportion.team"},
                "name": _STRING,
                "source": _SOURCE,
                "models": _NAMES,
                "endpoints": _NAMES,
                "require": _TAGS,
                "routing": _BOOLEAN,
                "limits": _LIMITS,
                "budget": _SPENDING,
            }
        ),
        "TeamList": _list("Team"),
        "Budget": _object(budget),
        "BudgetList": _list("Budget"),
        "BudgetLeft": _object({**budget, "accounts": balances}),
        "Balance": _object(
            {
                "budget": _STRING,
                "subject": {**_STRING, "description": "Whose account: `all`, `key:NAME`, `team:NAME`, ..."},
                "resource": _STRING,
                "amount": _DECIMAL,
                "spent": {**_DECIMAL, "description": "In the present window."},
                "held": {**_DECIMAL, "description": "What requests under way may take at most."},
                "left": {**_DECIMAL, "description": "Neither spent nor held; below zero: passed (soft)."},
                "hard": _BOOLEAN,
                "begins_again": {**_MOMENT, "description": "When the next window begins; null without one."},
            }
        ),
        "Deleted": _object(
            {"object": _STRING, "id": _STRING, "name": _STRING, "deleted": {"const": True}}, "id"
        ),
        "Audit": _object(
            {
                "object": {"const": "list"},
                "data": {
                    "type": "array",
                    "items": _object(
                        {
                            "at": {"type": "string", "format": "date-time"},
                            "actor": _STRING,
                            "action": {"enum": ["create", "change", "rotate", "delete"]},
                            "object": _STRING,
                            "detail": {"type": "object"},
                        }
                    ),
                },
            }
        ),
    }
