"""The gateway's own errors: one class an error, with its status, its stable code and its fix.

Whoever answers a client renders them in the shape the client's SDK expects (``render``), and always
with ``x-apportion-error: <code>`` so that they are never mistaken for the upstream's.
"""

from __future__ import annotations

import msgspec

from apportion.core.errors import ApportionError


class GatewayError(ApportionError):
    """Base of all errors that the gateway itself answers with."""

    status: int = 500
    code: str = "gateway_error"
    openai_type: str = "api_error"
    anthropic_type: str = "api_error"
    retryable: bool | None = None
    """What ``x-should-retry`` says; None leaves the client's own rule."""

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        fix: str | None = None,
        retry_after_s: float | None = None,
        details: dict[str, object] | None = None,
    ) -> None:
        super().__init__(message, field=field, fix=fix)
        self.retry_after_s = retry_after_s
        self.details = details


class InvalidRequestError(GatewayError):
    """The request is malformed: bad JSON, a wrong type, a missing or impossible field."""

    status = 400
    code = "invalid_request"
    openai_type = "invalid_request_error"
    anthropic_type = "invalid_request_error"
    retryable = False


class InvalidJSONError(InvalidRequestError):
    """The body is not a JSON object in valid UTF-8."""

    code = "invalid_json"


class UnsupportedMediaTypeError(InvalidRequestError):
    """The content type or content encoding of the body is not one the gateway reads."""

    status = 415
    code = "unsupported_media_type"


class BodyTooLargeError(InvalidRequestError):
    """The body is larger than `http.body_bytes`."""

    status = 413
    code = "body_too_large"
    anthropic_type = "request_too_large"


class HeadersTooLargeError(InvalidRequestError):
    """The request's headers are more or larger than the gateway reads."""

    status = 431
    code = "headers_too_large"


class RequestTimeoutError(InvalidRequestError):
    """The client took too long to send its request."""

    status = 408
    code = "request_timeout"


class NotFoundError(GatewayError):
    """No such path, decision or object."""

    status = 404
    code = "not_found"
    openai_type = "invalid_request_error"
    anthropic_type = "not_found_error"
    retryable = False


class MethodNotAllowedError(NotFoundError):
    """The path exists but not with this HTTP method."""

    status = 405
    code = "method_not_allowed"
    anthropic_type = "invalid_request_error"
    allow: tuple[str, ...] = ("GET", "HEAD")
    """Methods that the path answers to."""


class ConflictError(GatewayError):
    """What is to be made exists already, or what is to be removed is still needed."""

    status = 409
    code = "conflict"
    openai_type = "invalid_request_error"
    anthropic_type = "invalid_request_error"
    retryable = False


class ModelNotFoundError(NotFoundError):
    """The model is not configured, or the key may not use it; the message lists those it may use."""

    code = "model_not_found"


class AuthenticationError(GatewayError):
    """The key is missing or unknown."""

    status = 401
    code = "invalid_api_key"
    openai_type = "authentication_error"
    anthropic_type = "authentication_error"
    retryable = False


class LedgerUnavailableError(GatewayError):
    """The ledger's database does not answer, and without it nothing that falls under a hard budget is promised."""

    status = 503
    code = "ledger_unavailable"
    anthropic_type = "overloaded_error"
    retryable = True


class PermissionDeniedError(GatewayError):
    """The key is known but may not do this."""

    status = 403
    code = "permission_denied"
    openai_type = "permission_error"
    anthropic_type = "permission_error"
    retryable = False


class UnsupportedError(GatewayError):
    """No endpoint behind this model speaks this API, and no translation exists."""

    status = 400
    code = "unsupported_by_endpoint"
    openai_type = "invalid_request_error"
    anthropic_type = "invalid_request_error"
    retryable = False


class ConstraintError(GatewayError):
    """A constraint of the request (`max_usd`, `deadline_s`, ...) cannot be met; the best possible is named."""

    status = 422
    code = "constraint_unmet"
    openai_type = "invalid_request_error"
    anthropic_type = "invalid_request_error"
    retryable = False


class UnknownPriceError(ConstraintError):
    """A hard dollar limit applies and an endpoint's price is unknown."""

    code = "price_unknown"


class BudgetExceededError(GatewayError):
    """A hard budget has not enough left for the most this request may cost."""

    status = 402
    code = "budget_exceeded"
    openai_type = "budget_exceeded"
    anthropic_type = "rate_limit_error"
    retryable = False


class RateLimitedError(GatewayError):
    """The key's own limit in the gateway (requests, tokens, parallel requests) is used up for now."""

    status = 429
    code = "gateway_rate_limited"
    openai_type = "rate_limit_error"
    anthropic_type = "rate_limit_error"


class OverloadedError(GatewayError):
    """The gateway is at its limit of concurrent work, or is draining."""

    status = 503
    code = "gateway_overloaded"
    openai_type = "overloaded_error"
    anthropic_type = "overloaded_error"


class QueueFull(OverloadedError):
    """As many requests as `max_waiting` allows wait for the endpoint already."""

    code = "queue_full"


class WaitedTooLong(OverloadedError):
    """The request waited `max_wait_s` for its turn at the endpoint."""

    code = "waited_too_long"


class DeadlineMissed(WaitedTooLong):
    """The request's deadline passed while it waited for its turn."""

    status = 504
    code = "deadline_exceeded"
    openai_type = "timeout_error"
    anthropic_type = "timeout_error"
    retryable = False


class NoEndpointError(GatewayError):
    """Every endpoint of the model is out of rotation (circuit open)."""

    status = 503
    code = "no_endpoint_available"
    openai_type = "api_error"
    anthropic_type = "overloaded_error"


class UpstreamError(GatewayError):
    """The upstream failed before any content: refused, reset, bad answer. All endpoints were tried."""

    status = 502
    code = "upstream_error"
    retryable = False


class UpstreamTimeoutError(UpstreamError):
    """The upstream did not answer in time (connect, first token, gap or total)."""

    status = 504
    code = "upstream_timeout"


class DeadlineError(GatewayError):
    """`deadline_s` passed before anything was produced."""

    status = 504
    code = "deadline_exceeded"
    openai_type = "timeout_error"
    anthropic_type = "timeout_error"
    retryable = False


class StreamBrokenError(UpstreamError):
    """The upstream's stream was cut, stalled, malformed or carried an error after content had been sent."""

    code = "stream_broken"


class InternalError(GatewayError):
    """A fault of the gateway itself. It is logged with the request id."""

    code = "internal_error"


def body(error: GatewayError, dialect: str, request_id: str) -> dict[str, object]:
    """The error as the JSON object that the SDK of ``dialect`` ("openai" or "anthropic") expects."""
    if dialect == "anthropic":
        inner: dict[str, object] = {"type": error.anthropic_type, "message": str(error), "code": error.code}
        if error.field is not None:
            inner["param"] = error.field
        if error.details:
            inner["details"] = error.details
        return {"type": "error", "error": inner, "request_id": request_id}
    inner = {"message": str(error), "type": error.openai_type, "param": error.field, "code": error.code}
    if error.details:
        inner["details"] = error.details
    return {"error": inner}


def render(error: GatewayError, dialect: str, request_id: str) -> bytes:
    """``body`` encoded as JSON."""
    return msgspec.json.encode(body(error, dialect, request_id))
