"""JSON schemas as each structured-output API wants them."""

from __future__ import annotations

from typing import Any

from apportion.serve.translate.common import JSON

_MAPS = ("properties", "$defs", "definitions", "patternProperties")
_LISTS = ("anyOf", "allOf", "oneOf", "prefixItems")
_SINGLES = ("items", "not", "additionalProperties")


def closed(schema: JSON) -> JSON:
    """``schema`` with every object closed (``additionalProperties: false``), as Anthropic demands."""
    out = _inside(schema, closed)
    if out.get("type") == "object" or "properties" in out:
        out["additionalProperties"] = False
    return out


def is_strict(schema: object) -> bool:
    """Whether OpenAI's strict mode takes ``schema``: every object closed and every property required."""
    if not isinstance(schema, dict):
        return True
    if schema.get("type") == "object" or "properties" in schema:
        names = schema.get("properties") or {}
        if schema.get("additionalProperties") is not False or set(schema.get("required") or ()) != set(names):
            return False
    return all(is_strict(s) for s in _schemas(schema))


def _schemas(schema: JSON) -> list[Any]:
    found: list[Any] = [schema[k] for k in _SINGLES if k in schema]
    for key in _MAPS:
        found += (schema.get(key) or {}).values() if isinstance(schema.get(key), dict) else []
    for key in _LISTS:
        found += schema.get(key) or [] if isinstance(schema.get(key), list) else []
    return found


def _inside(schema: JSON, change: Any) -> JSON:
    """``schema`` with ``change`` applied to each schema directly inside it."""

    def apply(value: object) -> object:
        return change(value) if isinstance(value, dict) else value

    out = dict(schema)
    for key in _SINGLES:
        if key in out:
            out[key] = apply(out[key])
    for key in _MAPS:
        if isinstance(out.get(key), dict):
            out[key] = {k: apply(v) for k, v in out[key].items()}
    for key in _LISTS:
        if isinstance(out.get(key), list):
            out[key] = [apply(v) for v in out[key]]
    return out
