"""What makes two requests the same: everything that can change the answer, and within whom it is shared.

The tenant is part of the identity, so nothing can be found across tenants: neither an exact key nor the ``frame`` in
which questions are compared by meaning is ever the same for two of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple, cast

import msgspec

from apportion.serve.wire import dumps, loads

Mode = Literal["on", "off", "exact", "refresh"]

IGNORED: Final = frozenset(
    {
        "apportion",
        "metadata",
        "model",  # the logical model is named by the caller: an alias is the same model
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "stream",
        "stream_options",
        "user",
    }
)
"""Fields of a body that do not change what is answered."""
_STATEFUL: Final = frozenset(("previous_response_id", "conversation", "background"))
"""With these the answer depends on what the provider remembers, or does not come with the reply."""
_OWN_TOOLS: Final = frozenset((None, "function", "custom"))
"""Tools that the client runs; all others look at the world for themselves."""
LONGEST_TEXT: Final = 4000
"""Characters of a question that is compared by meaning."""
_HOLE: Final = "\0the question\0"


class Question(NamedTuple):
    """A request as the cache knows it. ``key`` and ``frame`` are digests in hexadecimal, of all of it and of all but
    the last question, ``text``: None where it cannot be compared by meaning."""

    tenant: str
    api: str
    model: str
    key: str
    frame: str
    text: str | None
    mode: Mode
    max_age_s: float | None
    tags: tuple[str, ...]
    n: int
    """How many choices were asked for."""


def question(
    api: str,
    fields: Mapping[str, Any],
    *,
    tenant: str,
    model: str,
    variant: str = "",
    mode: Mode = "on",
    max_age_s: float | None = None,
    max_temperature: float | None = None,
    tags: tuple[str, ...] = (),
) -> Question | None:
    """The identity of a request with these ``fields`` (raw JSON by name); None if its answer is not to be reused.

    ``tenant`` is within whom answers are shared. ``variant`` is whatever else changes the answer.
    """
    if mode == "off":
        return None
    if not _STATEFUL.isdisjoint(fields) and any(_said(fields.get(name)) for name in _STATEFUL):
        return None
    try:
        body = {name: loads(bytes(raw)) for name, raw in fields.items() if name not in IGNORED}
    except ValueError:
        return None
    body = {name: value for name, value in body.items() if value is not None}
    if not _repeatable(body, max_temperature):
        return None
    text = _take_question(api, body)
    canonical = _canonical(body)
    head = "\0".join((tenant, api, model, variant)).encode("utf-8", "surrogatepass")
    frame = hashlib.sha256(b"%d:%b%b" % (len(head), head, canonical))
    whole = frame.copy()
    if text is not None:
        whole.update(b"\0" + text.encode("utf-8", "surrogatepass"))
        if len(text) > LONGEST_TEXT or not text.strip():
            text = None
    n = body.get("n", 1)
    return Question(
        tenant=tenant,
        api=api,
        model=model,
        key=whole.hexdigest(),
        frame=frame.hexdigest(),
        text=text,
        mode=mode,
        max_age_s=max_age_s,
        tags=tags,
        n=n if isinstance(n, int) else 1,
    )


def _said(raw: Any) -> bool:
    return raw is not None and bytes(raw) not in (b"null", b"false")


def _repeatable(body: Mapping[str, Any], max_temperature: float | None) -> bool:
    temperature = body.get("temperature", 1.0)
    if max_temperature is not None and not (
        isinstance(temperature, int | float) and temperature <= max_temperature
    ):
        return False
    if body.get("web_search_options") is not None:
        return False
    tools = body.get("tools")
    return not isinstance(tools, list) or all(
        isinstance(tool, dict) and tool.get("type") in _OWN_TOOLS for tool in tools
    )


def _canonical(body: Mapping[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(body, order="sorted")
    except (UnicodeEncodeError, OverflowError):  # half a surrogate pair, an integer beyond 64 bits
        return dumps(dict(sorted(body.items())))


_TURNS: Final = {"chat": "messages", "messages": "messages", "responses": "input"}


def _take_question(api: str, body: dict[str, Any]) -> str | None:
    """The text of the last message, replaced in ``body`` by a mark, if it is a user's and nothing but text."""
    name = _TURNS.get(api)
    turns = body.get(name) if name is not None else None
    if name is not None and isinstance(turns, str):
        body[name] = _HOLE
        return turns
    last = turns[-1] if isinstance(turns, list) and turns else None
    if (
        name is None
        or not isinstance(turns, list)
        or not isinstance(last, dict)
        or last.get("role") != "user"
    ):
        return None
    content = last.get("content")
    if isinstance(content, str):
        text, held = content, cast(Any, _HOLE)
    elif isinstance(content, list) and len(content) == 1 and _is_text(content[0]):
        text, held = content[0]["text"], [{**content[0], "text": _HOLE}]
    else:
        return None
    body[name] = [*turns[:-1], {**last, "content": held}]
    return text


def _is_text(part: object) -> bool:
    return (
        isinstance(part, dict)
        and part.get("type") in ("text", "input_text")
        and isinstance(part.get("text"), str)
    )
