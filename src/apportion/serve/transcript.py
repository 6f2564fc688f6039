"""What was said in a request and its answer, in OpenTelemetry's form of messages.

Shapes: ``gen-ai-input-messages.json`` and ``gen-ai-output-messages.json`` of the OpenTelemetry GenAI semantic
conventions. Text, reasoning, tool calls and their results are taken over; of images, audio and files only the
kind is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from apportion.serve.assemble import assembler
from apportion.serve.config.schema import Api
from apportion.serve.http.client import TransportFailure
from apportion.serve.wire import dumps, loads

Object = dict[str, Any]

MAX_BYTES: Final = 64 * 2**10
"""Most that one attribute holds."""
_MAX_TEXT: Final = 4096
"""Where an attribute would be longer than that, each text is cut to so many characters."""
_CUT: Final = "…"
_TEXTS: Final = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "summary_text": "text",
}
_CALLS: Final = ("tool_use", "server_tool_use", "function_call")
_RESULTS: Final = ("tool_result", "function_call_output")


def asked(api: Api, body: bytes) -> tuple[list[Object], list[Object]]:
    """The separate system instructions (as parts) and the messages of a request."""
    request = _object(body)
    if api == "chat":
        return [], [_message(m) for m in _objects(request.get("messages"))]
    if api in ("messages", "count_tokens"):
        return _parts(request.get("system")), [_message(m) for m in _objects(request.get("messages"))]
    if api == "responses":
        given = request.get("input")
        items = [{"role": "user", "content": given}] if isinstance(given, str) else _objects(given)
        return _parts(request.get("instructions")), [_message(item) for item in items]
    if api == "completions":
        return [], [{"role": "user", "parts": _parts(request.get("prompt"))}]
    return [], []


def answered(api: Api, body: bytes, *, stream: bool) -> list[Object]:
    """The messages of an answer; of a stream that was cut, what there was of it."""
    if stream and api in ("chat", "completions", "messages", "responses"):
        made = assembler(api)
        try:
            made.write(body)
            body = made.body(None, cut=False)
        except TransportFailure:
            return []
    answer = _object(body)
    if api == "chat":
        return [
            _output(_message(_dict(choice.get("message")), "assistant")["parts"], choice.get("finish_reason"))
            for choice in _objects(answer.get("choices"))
        ]
    if api == "completions":
        return [
            _output(_parts(choice.get("text")), choice.get("finish_reason"))
            for choice in _objects(answer.get("choices"))
        ]
    if api == "messages":
        return [_output(_parts(answer["content"]), answer.get("stop_reason"))] if "content" in answer else []
    if api == "responses":
        parts = [part for item in _objects(answer.get("output")) for part in _message(item)["parts"]]
        why = _dict(answer.get("incomplete_details")).get("reason") or answer.get("status")
        return [_output(parts, why)] if parts else []
    return []


def attribute(messages: Sequence[Object]) -> tuple[str, bool]:
    """Messages as the JSON text of an attribute of at most ``MAX_BYTES``, and whether something was left out.

    Long texts are cut first, then the oldest messages go.
    """
    text = dumps(messages)
    if len(text) <= MAX_BYTES:
        return text.decode(), False
    kept = [_shorter(message) for message in messages]
    sizes = [len(dumps(message)) + 1 for message in kept]
    total = sum(sizes) + 2
    first = 0
    while total > MAX_BYTES and first < len(kept):
        total -= sizes[first]
        first += 1
    return dumps(kept[first:]).decode(), True


def _message(message: Object, role: str = "user") -> Object:
    """A message, or an item of the responses API, as role and parts."""
    kind = message.get("type")
    if kind in _CALLS or kind in _RESULTS or kind == "reasoning":
        return {"role": "tool" if kind in _RESULTS else "assistant", "parts": [_part(message)]}
    role = _text(message.get("role")) or role
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    parts = [{"type": "reasoning", "content": reasoning}] if isinstance(reasoning, str) else []
    if role == "tool":
        id = message.get("tool_call_id")
        return {"role": role, "parts": [_result(id, message.get("content"))]}
    parts += _parts(message.get("content"))
    parts += _parts(message.get("refusal"))
    for call in _objects(message.get("tool_calls")):
        function = _dict(call.get("function"))
        parts.append(_call(call.get("id"), function.get("name"), function.get("arguments")))
    return {"role": role, "parts": parts}


def _output(parts: list[Object], finish_reason: object) -> Object:
    return {"role": "assistant", "parts": parts, "finish_reason": _text(finish_reason)}


def _parts(content: object) -> list[Object]:
    if isinstance(content, str):
        return [{"type": "text", "content": content}] if content else []
    if isinstance(content, list):
        return [_part(part) for part in content]
    return []


def _part(part: object) -> Object:
    if isinstance(part, str):
        return {"type": "text", "content": part}
    if not isinstance(part, dict):
        return {"type": "unknown"}
    kind = _text(part.get("type")) or "unknown"
    if kind in _TEXTS:
        return {"type": "text", "content": _text(part.get(_TEXTS[kind]))}
    if kind == "thinking":
        return {"type": "reasoning", "content": _text(part.get("thinking"))}
    if kind == "reasoning":
        said = [*_objects(part.get("summary")), *_objects(part.get("content"))]
        return {"type": "reasoning", "content": "\n".join(_text(s.get("text")) for s in said)}
    if kind in _CALLS:
        arguments = part["input"] if "input" in part else part.get("arguments")
        return _call(part.get("call_id") or part.get("id"), part.get("name"), arguments)
    if kind in _RESULTS:
        content = part["output"] if "output" in part else part.get("content")
        return _result(part.get("call_id") or part.get("tool_use_id"), content)
    return {"type": kind}


def _call(id: object, name: object, arguments: object) -> Object:
    if isinstance(arguments, str):
        try:
            arguments = loads(arguments.encode())
        except ValueError:
            pass
    return {"type": "tool_call", "id": id, "name": _text(name), "arguments": arguments}


def _result(id: object, content: object) -> Object:
    parts = _parts(content)
    plain = all(part["type"] == "text" for part in parts)
    response = "\n".join(part["content"] for part in parts) if plain else parts
    return {"type": "tool_call_response", "id": id, "response": response}


def _shorter(message: Object) -> Object:
    return (
        {**message, "parts": [_shorter_part(part) for part in message["parts"]]}
        if "parts" in message
        else (_shorter_part(message))
    )


def _shorter_part(part: Object) -> Object:
    found = {}
    for name, value in part.items():
        if not isinstance(value, str) and name in ("arguments", "response"):
            value = dumps(value).decode()
            if len(value) <= _MAX_TEXT:
                value = part[name]
        if isinstance(value, str) and len(value) > _MAX_TEXT:
            value = value[:_MAX_TEXT] + _CUT
        found[name] = value
    return found


def _object(body: bytes) -> Object:
    try:
        return _dict(loads(body))
    except (ValueError, msgspec.DecodeError):
        return {}


def _objects(value: object) -> list[Object]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _dict(value: object) -> Object:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
