"""Whether an answer is whole, so that it may be given to somebody else: nothing cut, refused, filtered or failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from apportion.serve.wire import loads

_CHAT: Final = frozenset(("stop", "tool_calls", "function_call"))
_COMPLETIONS: Final = frozenset(("stop",))
_MESSAGES: Final = frozenset(("end_turn", "tool_use", "stop_sequence"))


def complete(api: str, body: bytes, n: int = 1) -> bool:
    """Whether ``body``, the 200 answer of ``api``, holds ``n`` whole choices."""
    judge = _JUDGES.get(api)
    if judge is None:
        return False
    try:
        whole = loads(body)
    except ValueError:
        return False
    return isinstance(whole, dict) and not whole.get("error") and judge(whole, n)


def _chat(whole: dict[str, Any], n: int) -> bool:
    return _choices(whole, n, _CHAT) and all(_spoken(choice.get("message")) for choice in whole["choices"])


def _spoken(message: object) -> bool:
    if not isinstance(message, dict) or message.get("refusal"):
        return False
    return any(message.get(name) for name in ("content", "tool_calls", "function_call", "audio"))


def _completions(whole: dict[str, Any], n: int) -> bool:
    return _choices(whole, n, _COMPLETIONS) and all(choice.get("text") for choice in whole["choices"])


def _choices(whole: dict[str, Any], n: int, finished: frozenset[str]) -> bool:
    choices = whole.get("choices")
    return (
        isinstance(choices, list)
        and len(choices) == n
        and all(isinstance(c, dict) and c.get("finish_reason") in finished for c in choices)
    )


def _messages(whole: dict[str, Any], n: int) -> bool:
    return bool(whole.get("content")) and whole.get("stop_reason") in _MESSAGES


def _responses(whole: dict[str, Any], n: int) -> bool:
    output = whole.get("output")
    return whole.get("status") == "completed" and isinstance(output, list) and any(map(_said, output))


def _said(item: object) -> bool:
    if not isinstance(item, dict):
        return False
    if item.get("type") != "message":
        return item.get("type") in ("function_call", "custom_tool_call")
    content = item.get("content")
    return (
        isinstance(content, list)
        and bool(content)
        and all(isinstance(part, dict) and part.get("type") != "refusal" for part in content)
    )


def _embeddings(whole: dict[str, Any], n: int) -> bool:
    data = whole.get("data")
    return (
        isinstance(data, list)
        and bool(data)
        and all(isinstance(one, dict) and one.get("embedding") for one in data)
    )


_JUDGES: Final[dict[str, Callable[[dict[str, Any], int], bool]]] = {
    "chat": _chat,
    "completions": _completions,
    "messages": _messages,
    "responses": _responses,
    "embeddings": _embeddings,
}
