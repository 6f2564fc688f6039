"""Translation between the dialects "chat", "messages" and "responses", without any I/O of its own.

A client of one dialect is served by an upstream of another:

| client | upstream |
| --- | --- |
| chat | messages |
| messages | chat |
| responses | chat |
| responses | messages (by way of chat) |

    translation = translate(body, client="chat", upstream="messages", created_s=now)
    translation.body            # the upstream's request
    translation.dropped         # names of request fields left out or changed
    translation.response(whole) # a complete answer, for the client
    translation.stream(None)    # a translator of the stream's events
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import msgspec

from apportion.measure.usage import Usage
from apportion.serve.errors import UnsupportedError
from apportion.serve.translate.answer import chat_to_messages as messages_answer
from apportion.serve.translate.answer import chat_to_responses as responses_answer
from apportion.serve.translate.answer import messages_to_chat as chat_answer
from apportion.serve.translate.common import JSON, Chain, Dropped, ErrorLike, Stream, Traits, as_dict
from apportion.serve.translate.errors import error_body, error_event
from apportion.serve.translate.request import chat_to_messages, messages_to_chat, responses_to_chat

__all__ = [
    "ErrorLike",
    "Stream",
    "Traits",
    "Translation",
    "can_translate",
    "error_body",
    "error_event",
    "translate",
]

_ANY = Traits()


class Translation(msgspec.Struct, frozen=True, kw_only=True):
    """One request in the upstream's dialect, and how its answer comes back."""

    body: JSON
    """The request to send."""
    dropped: tuple[str, ...]
    """Request fields that were left out or changed because the upstream has no equivalent."""
    response: Callable[[JSON], JSON]
    """A complete answer of the upstream, in the client's dialect."""
    stream: Callable[[Usage | None], Stream]
    """A fresh translator of the answer's stream, given the usage known when it starts (perhaps estimated)."""


def can_translate(client: str, upstream: str) -> bool:
    """Whether requests of one dialect can be served by upstreams of the other."""
    return (client, upstream) in _PAIRS


def translate(
    body: JSON, *, client: str, upstream: str, created_s: int, traits: Traits = _ANY, model: str | None = None
) -> Translation:
    """The request ``body`` of dialect ``client`` for an upstream of dialect ``upstream``.

    ``created_s`` (Unix time) goes into answers that carry one. ``model`` replaces the client's name for the
    model by the upstream's. ``body`` is not changed.

    Raises:
        InvalidRequestError: malformed, or with a field that cannot be left out without changing the request.
        UnsupportedError: a feature, or a pair of dialects, without a translation.
    """
    if not can_translate(client, upstream):
        raise UnsupportedError(
            f"No translation from {client} to {upstream}.", fix="Use an endpoint or a client of another API."
        )
    if model is not None:
        body = {**body, "model": model}
    return _PAIRS[client, upstream](body, traits, created_s)


def _chat_on_messages(body: JSON, traits: Traits, created_s: int) -> Translation:
    dropped = Dropped()
    include_usage = as_dict(body.get("stream_options")).get("include_usage") is True
    return Translation(
        body=chat_to_messages.request(body, traits, dropped),
        dropped=tuple(dropped),
        response=partial(chat_answer.response, created_s=created_s),
        stream=lambda usage: chat_answer.Stream(created_s=created_s, include_usage=include_usage),
    )


def _messages_on_chat(body: JSON, traits: Traits, created_s: int) -> Translation:
    dropped = Dropped()
    return Translation(
        body=messages_to_chat.request(body, traits, dropped),
        dropped=tuple(dropped),
        response=messages_answer.response,
        stream=lambda usage: messages_answer.Stream(usage=usage),
    )


def _responses_on_chat(body: JSON, traits: Traits, created_s: int) -> Translation:
    dropped = Dropped()
    return Translation(
        body=responses_to_chat.request(body, traits, dropped),
        dropped=tuple(dropped),
        response=partial(responses_answer.response, asked=body, created_s=created_s),
        stream=lambda usage: responses_answer.Stream(body, created_s=created_s),
    )


def _responses_on_messages(body: JSON, traits: Traits, created_s: int) -> Translation:
    outer = _responses_on_chat(body, traits, created_s)
    inner = _chat_on_messages(outer.body, traits, created_s)
    return Translation(
        body=inner.body,
        dropped=(*outer.dropped, *inner.dropped),
        response=lambda whole: outer.response(inner.response(whole)),
        stream=lambda usage: Chain(inner.stream(usage), outer.stream(usage)),
    )


_PAIRS = {
    ("chat", "messages"): _chat_on_messages,
    ("messages", "chat"): _messages_on_chat,
    ("responses", "chat"): _responses_on_chat,
    ("responses", "messages"): _responses_on_messages,
}
