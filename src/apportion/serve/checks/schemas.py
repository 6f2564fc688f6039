"""JSON schemas of anybody's making, checked without danger: linear-time patterns, nothing fetched, nothing executed."""

from __future__ import annotations

import functools
from typing import Any, Protocol

import msgspec

from apportion.core.errors import ApportionError


class CheckError(ApportionError):
    """A configured check cannot be made: its schema or pattern is wrong, or the extra `checks` is not installed."""

    code = "invalid_check"


class Validator(Protocol):
    """What checks a value."""

    def is_valid(self, instance: Any) -> bool:
        """Whether it is as the schema says."""
        ...


class BadSchemaError(ValueError):
    """It is no schema, or refers to another place."""


def require() -> None:
    """Raise `CheckError` unless schemas and patterns can be checked."""
    try:
        import jsonschema_rs  # noqa: F401
    except ImportError:
        raise CheckError(
            "Checks of schemas, patterns and tool calls need a package that is not installed.",
            field="checks",
            fix="pip install 'apportion[checks]'",
        ) from None


def validator(schema: object) -> Validator:
    """A validator of ``schema``. Raises `BadSchemaError`."""
    try:
        encoded = msgspec.json.encode(schema)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadSchemaError(str(error)) from None
    return _validator(encoded)


@functools.lru_cache(maxsize=256)
def _validator(encoded: bytes) -> Validator:
    import jsonschema_rs

    try:
        made: Validator = jsonschema_rs.validator_for(
            msgspec.json.decode(encoded),
            # Clients send schemas: a pattern must not take exponential time, a reference must not be followed.
            pattern_options=jsonschema_rs.RegexOptions(),
            offline=True,
        )
    except (ValueError, TypeError, RecursionError) as error:
        raise BadSchemaError(str(error).partition("\n")[0]) from None
    return made
