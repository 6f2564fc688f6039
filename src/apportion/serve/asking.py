"""What of a request predictors read: the last turn, what was said before it, and a few counts.

Content stays raw until its text is wanted: only the last messages are looked into, so that a conversation of a
megabyte costs little more than one of a page.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Raw

from apportion.serve.call import CAP_FIELDS, Api

_TURN_CHARS: Final = 8_192
_BEFORE_CHARS: Final = 2_048
_SHORT_TURN_CHARS: Final = 80
"""A shorter turn means little without what it answers."""
_EMBED_BEFORE_CHARS: Final = 600


class Asked(NamedTuple):
    """A request for predictors; the texts are cut where they are long, ``facts`` say how long they were."""

    turn: str
    before: str
    facts: dict[str, float]

    @property
    def embed(self) -> str:
        """The text whose meaning stands for the request: the turn, a short one after the end of what it answers."""
        if self.before and len(self.turn) < _SHORT_TURN_CHARS:
            return f"{self.before[-_EMBED_BEFORE_CHARS:]}\n{self.turn}"
        return self.turn


class _Message(msgspec.Struct, gc=False):
    role: str | None = None
    content: Raw = Raw()
    type: str | None = None
    output: Raw = Raw()


_messages: Final = msgspec.json.Decoder(list[_Message]).decode
_any: Final = msgspec.json.Decoder().decode
_list: Final = msgspec.json.Decoder(list[Raw]).decode
_RESULTS: Final = ("tool_result", "function_call_output", "computer_call_output")
_IMAGES: Final = ("image", "image_url", "input_image")
_FILES: Final = ("document", "file", "input_file", "input_audio", "audio")


def read(api: Api, fields: Mapping[str, Raw]) -> Asked:
    """What the request with these raw ``fields`` asks; empty where it cannot be made out.

    The last user turn is all that the user said after the model's last words; results of tools are not a turn, so
    while an agent works it stays the one that set it to work.
    """
    try:
        asked = _read(api, fields)
    except (msgspec.MsgspecError, RecursionError, LookupError, TypeError, ValueError):
        return Asked("", "", {})
    facts = asked.facts
    if "tools" in fields:
        facts["tools"] = _length(fields["tools"])
    for name in CAP_FIELDS[api]:
        cap = _value(fields.get(name))
        if isinstance(cap, int) and cap > facts.get("max_output_tokens", 0):
            facts["max_output_tokens"] = cap
    if "response_format" in fields or "text" in fields:
        wanted = _value(fields.get("response_format")) or _value(fields.get("text"))
        if isinstance(wanted, dict):
            inner = wanted.get("format")
            kind = inner.get("type") if isinstance(inner, dict) else wanted.get("type")
            facts["json"] = float(kind in ("json_object", "json_schema"))
    return asked


def _read(api: Api, fields: Mapping[str, Raw]) -> Asked:
    if api in ("chat", "messages", "count_tokens"):
        asked = _conversation(_messages(fields["messages"]))
        asked.facts["system_chars"] = asked.facts.get("system_chars", 0) + _size(fields.get("system"))
        return asked
    if api == "responses":
        given = fields.get("input", Raw(b'""'))
        items = bytes(memoryview(given)[:1]) == b"["
        asked = _conversation(_messages(given)) if items else _single(_value(given))
        asked.facts["system_chars"] = asked.facts.get("system_chars", 0) + _size(fields.get("instructions"))
        return asked
    return _single(_value(fields.get("prompt") if api == "completions" else fields.get("input")))


def _single(text: Any) -> Asked:
    if isinstance(text, list):
        text = "\n".join(part for part in text if isinstance(part, str))
    if not isinstance(text, str):
        return Asked("", "", {})
    return Asked(_cut(text), "", {"messages": 1, "turn_chars": len(text)})


def _conversation(messages: list[_Message]) -> Asked:
    turn: list[str] = []
    before: list[str] = []
    facts: dict[str, float] = {"messages": len(messages)}
    turn_chars = before_chars = system_chars = results = images = files = 0
    answered = False
    left = _BEFORE_CHARS
    for message in reversed(messages):
        content = message.content
        size = _size(content)
        if message.role in ("system", "developer"):
            system_chars += size
            continue
        if message.role == "tool" or message.type in _RESULTS:
            results += 1
            before_chars += size + _size(message.output)
            continue
        user = message.role == "user" or (message.role is None and message.type in (None, "message"))
        if answered and left <= 0:
            before_chars += size
            continue
        text, parts = _text(content)
        results += parts[0]
        images += parts[1]
        files += parts[2]
        if user and not answered:
            if text:
                turn.append(text)
                turn_chars += len(text)
            continue
        if turn:
            answered = True
        before_chars += len(text)
        if text and left > 0:
            before.append(text[-left:])
            left -= len(text)
    facts["turn_chars"] = turn_chars
    facts["before_chars"] = before_chars
    if system_chars:
        facts["system_chars"] = system_chars
    if results:
        facts["tool_results"] = results
    if images:
        facts["images"] = images
    if files:
        facts["files"] = files
    return Asked(_cut("\n".join(reversed(turn))), "\n".join(reversed(before)), facts)


def _text(content: Raw) -> tuple[str, tuple[int, int, int]]:
    """The text of a message; how many tool results, images and files it holds."""
    value = _value(content)
    if isinstance(value, str):
        return value, (0, 0, 0)
    if not isinstance(value, list):
        return "", (0, 0, 0)
    texts: list[str] = []
    results = images = files = 0
    for part in value:
        if not isinstance(part, dict):
            continue
        kind = part.get("type")
        text = part.get("text")
        if isinstance(text, str):
            texts.append(text)
        elif kind in _IMAGES:
            images += 1
        elif kind in _FILES:
            files += 1
        elif kind in _RESULTS:
            results += 1
    return "\n".join(texts), (results, images, files)


def _cut(text: str) -> str:
    if len(text) <= _TURN_CHARS:
        return text
    return f"{text[: _TURN_CHARS // 2]}\n{text[-_TURN_CHARS // 2 :]}"


def _value(raw: Raw | None) -> Any:
    return _any(raw) if raw else None


def _size(raw: Raw | None) -> int:
    """About how many characters ``raw`` holds."""
    return max(len(memoryview(raw)) - 2, 0) if raw else 0


def _length(raw: Raw) -> int:
    return len(_list(raw)) if bytes(memoryview(raw)[:1]) == b"[" else 0
