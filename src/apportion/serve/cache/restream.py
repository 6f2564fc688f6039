"""A whole answer as the stream that its client would have seen: the inverse of `assemble`.

For answers that are there at once although a stream was asked for: from the cache, or put together of several calls.
The text comes in pieces of ``PIECE_CHARS``, since some clients read no line longer than 64 KiB (Go's
``bufio.Scanner``, Python's ``asyncio.StreamReader``).

Shapes: the API references of OpenAI (chat, completions, responses) and Anthropic (messages).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from apportion.serve.assemble import Api
from apportion.serve.wire import dumps, loads

Object = dict[str, Any]

PIECE_CHARS: Final = 4096
"""So much text at once; at most 12 bytes of JSON each, a surrogate pair that had to be escaped."""
_DONE: Final = b"data: [DONE]\n\n"


def events(
    api: Api, body: bytes | Object, *, include_usage: bool = True, note: bytes = b""
) -> Iterator[bytes]:
    """The events of the answer ``body`` in the dialect ``api``, each with its closing blank line.

    ``include_usage`` is the client's ``stream_options.include_usage``; the other dialects always say it. ``note`` is
    written before the end mark as it is: a comment, say. An answer that was cut is streamed as cut.

    Raises:
        ValueError: the body is no JSON object.
    """
    whole = loads(body) if isinstance(body, bytes | bytearray) else body
    if not isinstance(whole, dict):
        raise ValueError("an answer is a JSON object")
    *said, end = _STREAMS[api](whole, include_usage)
    yield from said
    if note:
        yield note
    yield end


def _pieces(text: str) -> Iterator[str]:
    for start in range(0, len(text), PIECE_CHARS):
        yield text[start : start + PIECE_CHARS]


def _objects(value: object) -> list[Object]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


# --- chat and text completions --------------------------------------------------------------------

_ON_EVERY_CHUNK: Final = ("service_tier", "system_fingerprint")
_SAID_ONCE: Final = frozenset(["role", "name", "id", "type"])
"""Strings of a message that are labels, not text."""


def _choices(
    whole: Object, include_usage: bool, kind: str, deltas: Callable[[Object], Iterator[Object]]
) -> Iterator[bytes]:
    """What chat and text completions share: chunks with one choice each, ended by ``[DONE]``."""
    head = {key: whole.get(key) for key in ("id", "created", "model")}
    head = {"id": head["id"], "object": kind, "created": head["created"], "model": head["model"]}
    head |= {key: whole[key] for key in _ON_EVERY_CHUNK if key in whole}
    once = {k: v for k, v in whole.items() if k not in head and k not in ("choices", "usage", "object")}
    unsaid = {"usage": None} if include_usage else {}
    for place, choice in enumerate(_objects(whole.get("choices"))):
        index = choice.get("index", place)
        for delta in deltas(choice):
            said = {"index": index, **delta, "finish_reason": None}
            yield b"data: %b\n\n" % dumps({**head, **once, "choices": [said], **unsaid})
            once = {}
        rest = {k: v for k, v in choice.items() if k not in ("index", "message", "text", "logprobs")}
        last = {"index": index, **_EMPTY[kind], "logprobs": None, **rest}
        yield b"data: %b\n\n" % dumps({**head, **once, "choices": [last], **unsaid})
        once = {}
    if include_usage and whole.get("usage") is not None:
        yield b"data: %b\n\n" % dumps({**head, **once, "choices": [], "usage": whole["usage"]})
    yield _DONE


_EMPTY: Final[dict[str, Object]] = {"chat.completion.chunk": {"delta": {}}, "text_completion": {"text": ""}}


def _chat(whole: Object, include_usage: bool) -> Iterator[bytes]:
    return _choices(whole, include_usage, "chat.completion.chunk", _chat_deltas)


def _chat_deltas(choice: Object) -> Iterator[Object]:
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    labels: Object = {"role": message.get("role") or "assistant"}
    texts: dict[str, str] = {}
    for key, value in message.items():
        if key in ("role", "tool_calls", "function_call"):
            continue
        if isinstance(value, str) and value and key not in _SAID_ONCE:
            texts[key] = value
        else:
            labels[key] = value
    labels["content"] = "" if "content" in texts else labels.get("content")
    logprobs = choice.get("logprobs")
    yield {"delta": labels, "logprobs": None}
    # A model thinks before it speaks.
    for key in sorted(texts, key=lambda key: key in ("content", "refusal")):
        for piece in _pieces(texts[key]):
            with_it = logprobs if key in ("content", "refusal") else None
            yield {"delta": {key: piece}, "logprobs": with_it}
            logprobs = None if with_it is not None else logprobs
    if logprobs is not None:
        yield {"delta": {}, "logprobs": logprobs}
    for place, call in enumerate(_objects(message.get("tool_calls"))):
        for part in _call_deltas(call):
            yield {"delta": {"tool_calls": [{"index": place, **part}]}, "logprobs": None}
    function = message.get("function_call")
    if isinstance(function, dict):
        for part in _call_deltas({"function": function}):
            yield {"delta": {"function_call": part["function"]}, "logprobs": None}


_GROWS: Final = {"function": "arguments", "custom": "input"}


def _call_deltas(call: Object) -> Iterator[Object]:
    """A tool call: what it is, then what it is given."""
    begun, growing = dict(call), []
    for kind, field in _GROWS.items():
        inner = call.get(kind)
        if isinstance(inner, dict) and isinstance(inner.get(field), str):
            begun[kind] = {**inner, field: ""}
            growing.append((kind, field, inner[field]))
    yield begun
    for kind, field, text in growing:
        for piece in _pieces(text):
            yield {kind: {field: piece}}


def _completions(whole: Object, include_usage: bool) -> Iterator[bytes]:
    return _choices(whole, include_usage, "text_completion", _completion_deltas)


def _completion_deltas(choice: Object) -> Iterator[Object]:
    text, logprobs = choice.get("text"), choice.get("logprobs")
    for piece in _pieces(text if isinstance(text, str) else ""):
        yield {"text": piece, "logprobs": logprobs}
        logprobs = None
    if logprobs is not None:
        yield {"text": "", "logprobs": logprobs}


# --- messages -------------------------------------------------------------------------------------

_BLOCK_TEXTS: Final = {"text": ("text", "text_delta"), "thinking": ("thinking", "thinking_delta")}


def _event(kind: str, **fields: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), dumps({"type": kind, **fields}))


def _messages(whole: Object, include_usage: bool) -> Iterator[bytes]:
    usage = whole.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    begun = {**whole, "content": [], "stop_reason": None, "stop_sequence": None}
    yield _event(
        "message_start", message={**begun, "usage": {"input_tokens": 0, **usage, "output_tokens": 0}}
    )
    for index, block in enumerate(_objects(whole.get("content"))):
        yield from _block(index, block)
    delta = {"stop_reason": whole.get("stop_reason"), "stop_sequence": whole.get("stop_sequence")}
    yield _event("message_delta", delta=delta, usage={"output_tokens": usage.get("output_tokens", 0)})
    yield _event("message_stop")


def _block(index: int, block: Object) -> Iterator[bytes]:
    """One content block: empty first, then what it holds."""
    begun = dict(block)
    deltas: list[Object] = []
    kind = block.get("type")
    if kind in _BLOCK_TEXTS:
        field, delta = _BLOCK_TEXTS[kind]
        text = block.get(field)
        begun[field] = ""
        deltas = [{"type": delta, field: piece} for piece in _pieces(text if isinstance(text, str) else "")]
    if isinstance(block.get("input"), dict):
        begun["input"] = {}
        given = dumps(block["input"]).decode()
        deltas += [{"type": "input_json_delta", "partial_json": piece} for piece in _pieces(given)]
    citations = _objects(block.get("citations"))
    if citations:
        begun["citations"] = []
        deltas += [{"type": "citations_delta", "citation": citation} for citation in citations]
    if kind == "thinking" and block.get("signature"):
        begun["signature"] = ""
        deltas.append({"type": "signature_delta", "signature": block["signature"]})
    yield _event("content_block_start", index=index, content_block=begun)
    for delta_object in deltas:
        yield _event("content_block_delta", index=index, delta=delta_object)
    yield _event("content_block_stop", index=index)


# --- responses ------------------------------------------------------------------------------------

_PARTS: Final = {
    "output_text": ("response.output_text", "text"),
    "refusal": ("response.refusal", "refusal"),
    "reasoning_text": ("response.reasoning_text", "text"),
    "summary_text": ("response.reasoning_summary_text", "text"),
}
"""The events that bring the text of a part, and the field it stands in."""
_ITEMS: Final = {
    "function_call": ("response.function_call_arguments", "arguments"),
    "mcp_call": ("response.mcp_call_arguments", "arguments"),
    "custom_tool_call": ("response.custom_tool_call_input", "input"),
    "code_interpreter_call": ("response.code_interpreter_call_code", "code"),
}
"""The same for items."""


def _responses(whole: Object, include_usage: bool) -> Iterator[bytes]:
    begun = {**whole, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    status = whole.get("status")
    end = status if status in ("incomplete", "failed") else "completed"
    said: list[tuple[str, Object]] = [
        ("response.created", {"response": begun}),
        ("response.in_progress", {"response": begun}),
    ]
    for index, item in enumerate(_objects(whole.get("output"))):
        said += _item(index, item)
    said.append((f"response.{end}", {"response": whole}))
    for number, (kind, fields) in enumerate(said):
        yield _event(kind, sequence_number=number, **fields)


def _item(index: int, item: Object) -> Iterator[tuple[str, Object]]:
    """One output item: empty first, then its parts or its argument, then whole."""
    begun = dict(item)
    at = {"item_id": item.get("id") or "", "output_index": index}
    for name in ("content", "summary"):
        if isinstance(item.get(name), list):
            begun[name] = []
    growing = _ITEMS.get(str(item.get("type")))
    if growing is not None and isinstance(item.get(growing[1]), str):
        begun[growing[1]] = ""
    if "status" in item:
        begun["status"] = "in_progress"
    yield "response.output_item.added", {"output_index": index, "item": begun}
    for name, place in (("summary", "summary_index"), ("content", "content_index")):
        for number, part in enumerate(_objects(item.get(name))):
            yield from _part(name, {**at, place: number}, part)
    if growing is not None and isinstance(item.get(growing[1]), str):
        subject, field = growing
        for piece in _pieces(item[field]):
            yield f"{subject}.delta", {**at, "delta": piece}
        named = {"name": item.get("name", "")} if field == "arguments" else {}
        yield f"{subject}.done", {**at, field: item[field], **named}
    yield "response.output_item.done", {"output_index": index, "item": item}


def _part(name: str, at: Object, part: Object) -> Iterator[tuple[str, Object]]:
    list_name = "response.content_part" if name == "content" else "response.reasoning_summary_part"
    subject, field = _PARTS.get(str(part.get("type")), ("", ""))
    begun = {**part, field: ""} if subject else dict(part)
    for several in ("annotations", "logprobs"):
        if isinstance(part.get(several), list):
            begun[several] = []
    yield f"{list_name}.added", {**at, "part": begun}
    if subject and isinstance(part.get(field), str):
        spoken = subject == "response.output_text"
        logprobs = part.get("logprobs") or []
        for number, piece in enumerate(_pieces(part[field])):
            extra = {"logprobs": [] if number else logprobs} if spoken else {}
            yield f"{subject}.delta", {**at, "delta": piece, **extra}
        for number, annotation in enumerate(_objects(part.get("annotations"))):
            yield (
                f"{subject}.annotation.added",
                {**at, "annotation_index": number, "annotation": annotation},
            )
        yield f"{subject}.done", {**at, field: part[field], **({"logprobs": logprobs} if spoken else {})}
    yield f"{list_name}.done", {**at, "part": part}


_STREAMS: Final[dict[Api, Callable[[Object, bool], Iterator[bytes]]]] = {
    "chat": _chat,
    "completions": _completions,
    "messages": _messages,
    "responses": _responses,
}
