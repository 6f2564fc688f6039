"""An upstream's error in the words of the client's dialect, as a body or as an event inside a stream."""

from __future__ import annotations

from apportion.serve.translate.common import JSON, ErrorLike, sse
from apportion.serve.wire import ErrorInfo, dumps, read_error

_ANTHROPIC_TYPES = frozenset(
    (
        "api_error",
        "authentication_error",
        "billing_error",
        "invalid_request_error",
        "not_found_error",
        "overloaded_error",
        "permission_error",
        "rate_limit_error",
        "request_too_large",
        "timeout_error",
    )
)
_TO_ANTHROPIC = {
    "context_length_exceeded": "invalid_request_error",
    "billing_hard_limit_reached": "billing_error",
    "insufficient_quota": "billing_error",
    "invalid_api_key": "authentication_error",
    "model_not_found": "not_found_error",
    "rate_limit_exceeded": "rate_limit_error",
    "requests": "rate_limit_error",
    "server_error": "api_error",
    "server_overloaded": "overloaded_error",
    "timeout": "timeout_error",
    "tokens": "rate_limit_error",
}
_BY_STATUS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_OPENAI_CODES = {
    "authentication_error": "invalid_api_key",
    "not_found_error": "model_not_found",
    "overloaded_error": "server_overloaded",
    "rate_limit_error": "rate_limit_exceeded",
}


def info_of(error: ErrorLike) -> ErrorInfo:
    """``error`` (raw JSON, a parsed object, or already read) as an ``ErrorInfo``."""
    if isinstance(error, ErrorInfo):
        return error
    return read_error(error if isinstance(error, bytes) else dumps(error))


def error_body(error: ErrorLike, dialect: str, status: int | None = None) -> JSON:
    """The error body that clients of ``dialect`` expect; ``status`` (HTTP) helps where no type is given."""
    info = info_of(error)
    if dialect == "messages":
        known = info.type if info.type in _ANTHROPIC_TYPES else None
        kind = known or _TO_ANTHROPIC.get(info.code or "") or _TO_ANTHROPIC.get(info.type or "")
        return {
            "type": "error",
            "error": {"type": kind or _BY_STATUS.get(status or 0, "api_error"), "message": info.message},
        }
    kind = info.type or _BY_STATUS.get(status or 0, "api_error")
    code = info.code or _OPENAI_CODES.get(kind)
    return {"error": {"message": info.message, "type": kind, "param": info.param, "code": code}}


def error_event(error: ErrorLike, dialect: str, sequence_number: int = 0) -> bytes:
    """The event that ends a stream of ``dialect`` with an error, so that its SDK raises.

    The responses event holds the documented flat fields and an ``error`` object: the SDK raises on that only.
    """
    body = error_body(error, dialect)
    if dialect == "messages":
        return sse(body, "error")
    if dialect == "responses":
        inner = body["error"]
        flat = {"code": inner["code"] or inner["type"], "message": inner["message"], "param": inner["param"]}
        return sse({"type": "error", **flat, "sequence_number": sequence_number, **body}, "error")
    return sse(body)
