"""What every translation shares: the traits of the upstream, the checks on a request, server-sent events."""

from __future__ import annotations

import base64
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from apportion.serve.errors import InvalidRequestError, UnsupportedError
from apportion.serve.wire import ErrorInfo, dumps, loads

JSON = dict[str, Any]
ErrorLike = bytes | Mapping[str, Any] | ErrorInfo


class Traits(msgspec.Struct, frozen=True, kw_only=True):
    """What the model behind an endpoint takes. Where None, its name decides."""

    default_max_tokens: int = 8192
    """Anthropic demands an output limit; this one is sent when the client named none."""
    thinking: Literal["budget", "adaptive", "off"] | None = None
    """How an Anthropic upstream is told to reason: by a token budget (Claude up to 4.5, and models of other
    makers behind that API) or by an effort (Claude from 4.6). "off" leaves reasoning out."""
    sampling: bool | None = None
    """Whether an Anthropic upstream takes ``temperature`` and ``top_p`` (Claude from 4.7 refuses them)."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] | None = None
    """Which one a chat upstream obeys: OpenAI's reasoning models the second, many servers only the first."""
    reasoning: bool = True
    """Whether a chat upstream takes ``reasoning_effort`` and past reasoning on assistant messages."""
    cache_control: bool = False
    """Whether a chat upstream takes Anthropic's ``cache_control`` marks (OpenRouter does, OpenAI refuses)."""


class Dropped:
    """The request fields that a translation left out or changed, in order, each once."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}

    def add(self, name: str) -> None:
        self._names[name] = None

    def __iter__(self) -> Any:
        return iter(self._names)


class Stream(ABC):
    """Translates one stream, event by event. Nothing ready is held back, and nothing follows the end.

    An upstream's error event comes out as the client dialect's error event; so does what ``error`` is given.
    """

    def __init__(self) -> None:
        self.ended = False

    @abstractmethod
    def feed(self, event_name: bytes | None, data: bytes) -> bytes:
        """The client's events for one upstream event (its name, if any, and its payload); often empty.

        Raises:
            ValueError: ``data`` is no JSON object.
        """

    @abstractmethod
    def finish(self) -> bytes:
        """The closing events. ``feed`` does this at the upstream's end mark; a second time gives nothing."""

    @abstractmethod
    def error(self, error: ErrorLike) -> bytes:
        """The error event that ends the client's stream."""


class Chain(Stream):
    """Two translators, one after the other; the first writes chat chunks."""

    def __init__(self, first: Stream, second: Stream) -> None:
        super().__init__()
        self._first = first
        self._second = second

    def feed(self, event_name: bytes | None, data: bytes) -> bytes:
        return self._through(self._first.feed(event_name, data))

    def finish(self) -> bytes:
        return self._through(self._first.finish()) + self._second.finish()

    def error(self, error: ErrorLike) -> bytes:
        self._first.ended = self.ended = True
        return self._second.error(error)

    def _through(self, events: bytes) -> bytes:
        out = []
        for event in events.split(b"\n\n"):
            if event.startswith(b"data: "):
                out.append(self._second.feed(None, event[6:]))
            elif event:
                out.append(event + b"\n\n")
        self.ended = self._second.ended
        return b"".join(out)


def sse(value: object, event: str | None = None) -> bytes:
    """One server-sent event holding ``value`` as JSON."""
    head = b"event: " + event.encode() + b"\n" if event else b""
    return head + b"data: " + dumps(value) + b"\n\n"


# --- reading a request, with errors that name the field ----------------------------------------------

_NAMES = {dict: "an object", list: "an array", str: "a string", int: "an integer", bool: "true or false"}


def want(value: object, kind: type, field: str) -> Any:
    """``value`` if it is a ``kind``.

    Raises:
        InvalidRequestError: it is not; the message names ``field``.
    """
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        got = "null" if value is None else type(value).__name__
        raise InvalidRequestError(
            f"`{field}` must be {_NAMES[kind]}, got {got}.", field=field, fix=f"Send {_NAMES[kind]}."
        )
    return value


def refuse(field: str, why: str, fix: str) -> InvalidRequestError:
    """The error for a field that cannot be left out without changing what was asked."""
    return InvalidRequestError(f"`{field}` {why}.", field=field, fix=fix)


def unsupported(field: str, why: str, fix: str) -> UnsupportedError:
    """The error for a feature that no translation gives."""
    return UnsupportedError(f"`{field}` {why}.", field=field, fix=fix)


def parse_data_url(url: str, field: str) -> tuple[str, str]:
    """Media type and base64 text of a ``data:`` URL.

    Raises:
        InvalidRequestError: it is not base64-encoded.
    """
    head, comma, data = url[5:].partition(",")
    media_type, *parameters = head.split(";")
    if not comma or "base64" not in parameters:
        raise refuse(field, "is a data URL that is not base64", "Send `data:<type>;base64,<data>`.")
    return media_type.strip().lower(), data


def arguments_text(value: object) -> str:
    """Tool arguments as JSON text: some servers send the object itself."""
    return dumps(value).decode() if isinstance(value, dict) else as_str(value)


def as_dict(value: object) -> JSON:
    """``value`` if it is an object, else an empty one: for reading what upstreams send."""
    return value if isinstance(value, dict) else {}


def as_list(value: object) -> list[Any]:
    """``value`` if it is an array, else an empty one."""
    return value if isinstance(value, list) else []


def as_str(value: object) -> str:
    """``value`` if it is a string, else an empty one."""
    return value if isinstance(value, str) else ""


# --- conventions that several translations share ----------------------------------------------------


def parse_arguments(arguments: object) -> JSON:
    """Tool arguments as the object Anthropic wants; what is no JSON object is kept under ``invalid_json``."""
    if not arguments:
        return {}
    if isinstance(arguments, dict):
        return arguments
    try:
        value = loads(as_str(arguments).encode("utf-8", "surrogatepass"))
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {"invalid_json": arguments}


_REASONING_MODEL = re.compile(r"(^|/)(o\d|gpt-([5-9]|\d\d)|codex)")


def limit_field(model: str, traits: Traits) -> str:
    """The name of the output limit that the chat upstream obeys."""
    by_name = "max_completion_tokens" if _REASONING_MODEL.search(model) else "max_tokens"
    return traits.max_tokens_field or by_name


def without_index(thinking_blocks: object) -> list[JSON]:
    """Thinking blocks as the model signed them: streams number them for the accumulators of clients."""
    return [
        {k: v for k, v in b.items() if k != "index"} for b in as_list(thinking_blocks) if isinstance(b, dict)
    ]


_SEAL = "apportion:"


def seal(thinking_blocks: list[Any]) -> str:
    """Signed thinking blocks as a reasoning item's ``encrypted_content``, for the client to bring back."""
    return _SEAL + base64.b64encode(dumps(without_index(thinking_blocks))).decode()


def unseal(encrypted_content: object) -> list[Any] | None:
    """The blocks that ``seal`` packed; None for anything else."""
    sealed = as_str(encrypted_content)
    if not sealed.startswith(_SEAL):
        return None
    try:
        blocks = loads(base64.b64decode(sealed[len(_SEAL) :], validate=True))
    except ValueError:
        return None
    return blocks if isinstance(blocks, list) else None
