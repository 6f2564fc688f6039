"""What an answer says, in the form that strategies read (`core.strategy.Reply.content`)."""

from __future__ import annotations

from typing import Any

import msgspec

from apportion.serve.call import Api
from apportion.serve.transcript import answered
from apportion.serve.wire import dumps, loads


class _Top(msgspec.Struct, gc=False):
    logprob: float = -100.0


class _Token(msgspec.Struct, gc=False):
    logprob: float = -100.0
    top_logprobs: list[_Top] | None = None


class _Logprobs(msgspec.Struct, gc=False):
    content: list[_Token] | None = None


class _Choice(msgspec.Struct, gc=False):
    logprobs: _Logprobs | None = None


class _Chat(msgspec.Struct, gc=False):
    choices: list[_Choice] = []


_decode = msgspec.json.Decoder(_Chat).decode


def content(api: Api, body: bytes) -> dict[str, Any] | None:
    """Text, finish, log probabilities (where the API has them) and tool calls of a whole answer; None if it is none."""
    outputs = answered(api, body, stream=False)
    if not outputs:
        return None
    first = outputs[0]
    parts = first["parts"]
    tokens: list[_Token] = []
    if api == "chat":
        try:
            found = _decode(body).choices
        except (msgspec.DecodeError, msgspec.ValidationError):
            found = []
        if found and found[0].logprobs is not None:
            tokens = found[0].logprobs.content or []
    tops = [[top.logprob for top in token.top_logprobs or ()] for token in tokens]
    return {
        "text": "".join(part["content"] for part in parts if part["type"] == "text"),
        "finish": first["finish_reason"] or None,
        "logprobs": [token.logprob for token in tokens] or None,
        "top_logprobs": tops if any(tops) else None,
        "tool_calls": any(part["type"] == "tool_call" for part in parts),
        "vector": None,
        "body": body,
    }


def without_logprobs(api: Api, body: bytes) -> bytes:
    """A chat completion without the log probabilities that only a strategy had asked for."""
    if api != "chat" or b'"logprobs"' not in body:
        return body
    answer = loads(body)
    for choice in answer.get("choices", ()) if isinstance(answer, dict) else ():
        if isinstance(choice, dict) and choice.get("logprobs") is not None:
            choice["logprobs"] = None
    return dumps(answer)
