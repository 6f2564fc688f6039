"""What an upstream sent: the few fields the proxy needs, read from each stream event or whole body.

This runs once for every event of every stream, so it decodes with typed structures that skip everything
else: one pass that also proves the JSON well-formed. Only when the types surprise does a tolerant reading
(plain dicts) take over; a surprise is never taken for damage.

Dialects: "chat", "completions", "embeddings" (OpenAI and compatible), "messages" (Anthropic),
"responses" (OpenAI).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import Any

import msgspec

from apportion.measure.usage import Usage


class Kind(IntEnum):
    """What one stream event is, for whoever passes it on."""

    CONTENT = 0
    """Carries a part of the answer: text, reasoning, refusal, tool call, audio, image."""
    META = 1
    """Carries none: role, ping, start and stop marks, finish reason."""
    USAGE = 2
    """The extra chunk of ``stream_options.include_usage``: no choices, only usage."""
    DONE = 3
    """The stream is complete."""
    ERROR = 4
    """An error inside the stream; see ``StreamReader.error``."""
    BAD = 5
    """Not JSON, or not an object."""


CONTENT, META, USAGE, DONE, ERROR, BAD = Kind

Buffer = bytes | bytearray
_NO_RAW = msgspec.Raw()


class ErrorInfo(msgspec.Struct, frozen=True, gc=False):
    """An upstream's error, whatever shape it came in. ``type`` and ``code`` are the upstream's words."""

    message: str
    type: str | None = None
    code: str | None = None
    param: str | None = None


# --- the fields that are read ---------------------------------------------------------------------


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct, gc=False):
    function: _Function | None = None


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta | None = None
    finish_reason: str | None = None
    text: str | None = None


class _PromptDetails(msgspec.Struct, gc=False):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    cache_creation_tokens: int | None = None
    audio_tokens: int | None = None


class _CompletionDetails(msgspec.Struct, gc=False):
    reasoning_tokens: int | None = None
    audio_tokens: int | None = None


class _ChatUsage(msgspec.Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    prompt_cache_hit_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _PromptDetails | None = None
    output_tokens_details: _CompletionDetails | None = None


class _Timings(msgspec.Struct, gc=False):
    cache_n: int | None = None
    prompt_n: int | None = None
    predicted_n: int | None = None


class _ChatChunk(msgspec.Struct, gc=False):
    """Only what most chunks hold. First, last and unusual chunks are read in full instead."""

    choices: list[_Choice] | None = None
    usage: _ChatUsage | None = None
    error: msgspec.Raw | None = None


class _ChatMessage(_Delta, gc=False):
    refusal: str | None = None
    function_call: _Function | None = None


class _WholeChoice(msgspec.Struct, gc=False):
    message: _ChatMessage | None = None
    finish_reason: str | None = None
    text: str | None = None


class _WholeChat(msgspec.Struct, gc=False):
    choices: list[_WholeChoice] | None = None
    usage: _ChatUsage | None = None
    timings: _Timings | None = None


class _CacheCreation(msgspec.Struct, gc=False):
    ephemeral_5m_input_tokens: int | None = None
    ephemeral_1h_input_tokens: int | None = None


class _ThinkingDetails(msgspec.Struct, gc=False):
    thinking_tokens: int | None = None


class _MessagesUsage(msgspec.Struct, gc=False):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_creation: _CacheCreation | None = None
    output_tokens_details: _ThinkingDetails | None = None


class _Block(msgspec.Struct, gc=False):
    """A content block, or a delta of one."""

    type: str | None = None
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None
    name: str | None = None
    input: msgspec.Raw = _NO_RAW
    stop_reason: str | None = None


class _Message(msgspec.Struct, gc=False):
    model: str | None = None
    usage: _MessagesUsage | None = None
    content: list[_Block] | None = None
    stop_reason: str | None = None


class _MessagesEvent(msgspec.Struct, gc=False):
    type: str | None = None
    delta: _Block | None = None
    content_block: _Block | None = None
    message: _Message | None = None
    usage: _MessagesUsage | None = None
    error: msgspec.Raw | None = None


class _Part(msgspec.Struct, gc=False):
    text: str | None = None
    refusal: str | None = None


class _Item(msgspec.Struct, gc=False):
    type: str | None = None
    content: list[_Part] | None = None
    summary: list[_Part] | None = None
    name: str | None = None
    arguments: str | None = None
    input: msgspec.Raw = _NO_RAW


class _Incomplete(msgspec.Struct, gc=False):
    reason: str | None = None


class _Response(msgspec.Struct, gc=False):
    model: str | None = None
    status: str | None = None
    incomplete_details: _Incomplete | None = None
    usage: _ChatUsage | None = None
    error: msgspec.Raw | None = None


class _WholeResponse(_Response, gc=False):
    output: list[_Item] | None = None


class _ResponsesEvent(msgspec.Struct, gc=False):
    type: str | None = None
    delta: str | None = None
    item: _Item | None = None
    response: _Response | None = None
    error: msgspec.Raw | None = None


_decode_chat = msgspec.json.Decoder(_ChatChunk).decode
_decode_whole_chat = msgspec.json.Decoder(_WholeChat).decode
_decode_messages = msgspec.json.Decoder(_MessagesEvent).decode
_decode_responses = msgspec.json.Decoder(_ResponsesEvent).decode
_decode_message = msgspec.json.Decoder(_Message).decode
_decode_response = msgspec.json.Decoder(_WholeResponse).decode
_decode_any = msgspec.json.Decoder().decode


# --- tolerant reading -----------------------------------------------------------------------------


def loads(data: Buffer) -> Any:
    """JSON as a client's own parser would read it: also NaN, Infinity and lone surrogates.

    Raises:
        ValueError: not JSON, not UTF-8, or nested too deep.
    """
    try:
        return _decode_any(data)
    except RecursionError:
        raise ValueError("JSON is nested too deep") from None
    except ValueError:
        try:
            return json.loads(bytes(data))
        except RecursionError:
            raise ValueError("JSON is nested too deep") from None


def dumps(value: object) -> bytes:
    """JSON bytes; lone surrogates and non-finite numbers that ``loads`` let in are written as they came."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


def _count(value: object) -> int | None:
    """A token count from whatever was written there; None when it is no count."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e15:
        return None
    return int(value)


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _str(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _lenient(cls: type[Any], value: object) -> Any:
    """``value`` as the usage structure ``cls``, without the fields of a wrong type; None if no object."""
    if not isinstance(value, dict):
        return None
    out = cls()
    for name in cls.__struct_fields__:
        if name in value:
            nested = _NESTED.get((cls, name))
            setattr(out, name, _lenient(nested, value[name]) if nested else _count(value[name]))
    return out


_NESTED: dict[tuple[type[Any], str], type[Any]] = {
    (_ChatUsage, "prompt_tokens_details"): _PromptDetails,
    (_ChatUsage, "completion_tokens_details"): _CompletionDetails,
    (_ChatUsage, "input_tokens_details"): _PromptDetails,
    (_ChatUsage, "output_tokens_details"): _CompletionDetails,
    (_MessagesUsage, "cache_creation"): _CacheCreation,
    (_MessagesUsage, "output_tokens_details"): _ThinkingDetails,
}

_NOT_ANSWER = frozenset(
    [
        "role",
        "type",
        "id",
        "index",
        "signature",
        "encrypted_content",
        "status",
        "object",
        "format",
        "data",
        "url",
    ]
)


def _chars(value: object) -> int:
    """Characters of answer text anywhere inside ``value``; identifiers, marks and binary data left out."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list):
        return sum(map(_chars, value))
    if isinstance(value, dict):
        return sum(_chars(v) for k, v in value.items() if k not in _NOT_ANSWER)
    return 0


def _holds_content(value: object) -> bool:
    if isinstance(value, dict):
        return any(
            _holds_content(v) for k, v in value.items() if k not in _NOT_ANSWER or k in ("data", "url")
        )
    if isinstance(value, list):
        return any(map(_holds_content, value))
    return bool(value)


# --- usage ----------------------------------------------------------------------------------------


def _chat_usage(u: _ChatUsage | None) -> Usage | None:
    """OpenAI's counts, with the departures of compatible servers put right.

    Some leave reasoning out of ``completion_tokens`` but keep it in ``total_tokens`` (xAI reports it in the
    details, Gemini nowhere); the total says what was billed. Counts that are all zero say nothing: None.
    """
    if u is None:
        return None
    into = u.prompt_tokens if u.prompt_tokens is not None else u.input_tokens
    out = u.completion_tokens if u.completion_tokens is not None else u.output_tokens
    into, out = max(into or 0, 0), max(out or 0, 0)
    if into == 0 and out == 0:
        return None
    prompt = u.prompt_tokens_details or u.input_tokens_details or _PromptDetails()
    completion = u.completion_tokens_details or u.output_tokens_details or _CompletionDetails()
    cached = prompt.cached_tokens or u.prompt_cache_hit_tokens or u.cached_tokens
    cached = cached or u.cache_read_input_tokens or 0
    written = prompt.cache_write_tokens or prompt.cache_creation_tokens or u.cache_creation_input_tokens or 0
    reasoning = completion.reasoning_tokens or u.reasoning_tokens or 0
    beyond = (u.total_tokens or 0) - into - out
    if beyond > 0 and (beyond == reasoning or (reasoning == 0 and cached == 0 and written == 0)):
        out += beyond
        reasoning = beyond
    return Usage(
        input_tokens=into,
        output_tokens=out,
        cached_input_tokens=max(cached, 0),
        cache_write_tokens=max(written, 0),
        reasoning_tokens=max(reasoning, 0),
        audio_input_tokens=max(prompt.audio_tokens or 0, 0),
        audio_output_tokens=max(completion.audio_tokens or 0, 0),
    )


def _timings_usage(t: _Timings) -> Usage | None:
    """llama.cpp's own counts: ``prompt_n`` was computed, ``cache_n`` taken from the cache."""
    cached, prompt, predicted = max(t.cache_n or 0, 0), max(t.prompt_n or 0, 0), max(t.predicted_n or 0, 0)
    if cached + prompt + predicted == 0:
        return None
    return Usage(input_tokens=cached + prompt, output_tokens=predicted, cached_input_tokens=cached)


def _merge(old: _MessagesUsage | None, new: _MessagesUsage) -> _MessagesUsage:
    """Anthropic's counts are cumulative over the stream, and each event may name only some of them."""
    if old is None:
        return new
    for name in ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"):
        a, b = getattr(old, name), getattr(new, name)
        setattr(old, name, b if a is None else a if b is None else max(a, b))
    old.cache_creation = new.cache_creation or old.cache_creation
    old.output_tokens_details = new.output_tokens_details or old.output_tokens_details
    return old


def _messages_usage(u: _MessagesUsage | None) -> Usage | None:
    """Anthropic's counts: ``input_tokens`` there leaves out what was read from and written to the cache."""
    if u is None:
        return None
    read, fresh, out = (
        max(u.cache_read_input_tokens or 0, 0),
        max(u.input_tokens or 0, 0),
        max(u.output_tokens or 0, 0),
    )
    split = u.cache_creation or _CacheCreation()
    hour = max(split.ephemeral_1h_input_tokens or 0, 0)
    written = max(u.cache_creation_input_tokens or 0, hour + max(split.ephemeral_5m_input_tokens or 0, 0))
    if fresh + read + written + out == 0:
        return None
    thinking = u.output_tokens_details.thinking_tokens if u.output_tokens_details else None
    return Usage(
        input_tokens=fresh + read + written,
        output_tokens=out,
        cached_input_tokens=read,
        cache_write_tokens=written - hour,
        cache_write_1h_tokens=hour,
        reasoning_tokens=max(thinking or 0, 0),
    )


def usage_of(dialect: str, usage: object) -> Usage | None:
    """A ``usage`` object of ``dialect``, already parsed to dicts, in apportion's terms."""
    if dialect == "messages":
        return _messages_usage(_lenient(_MessagesUsage, usage))
    return _chat_usage(_lenient(_ChatUsage, usage))


# --- streams --------------------------------------------------------------------------------------


class StreamReader:
    """Reads the events of one stream; made by ``stream_reader``. Keeps counts, never the text.

    Attributes:
        finish_reason: the upstream's own word, of the last choice that ended; None while none has.
        model: the name the upstream gives.
        error: the raw JSON of the error object (or the whole event where there is no inner object).
        output_chars: characters of answer so far (text, reasoning, refusals, tool names and arguments).
        output_events: events that carried content: for most servers, one token each.
        usage_final: the usage covers the whole answer. Anthropic's ``message_start`` already gives usage,
            exact for the input but not the output; when a stream breaks there, estimate the output.
    """

    __slots__ = ("_usage", "error", "finish_reason", "model", "output_chars", "output_events", "usage_final")

    def __init__(self) -> None:
        self._usage: Any = None
        self.error: bytes | None = None
        self.finish_reason: str | None = None
        self.model: str | None = None
        self.output_chars = 0
        self.output_events = 0
        self.usage_final = False

    def event(self, data: Buffer, event_name: bytes | None = None) -> Kind:
        """Read what followed ``data: `` in one event; ``event_name`` is what followed ``event: ``."""
        raise NotImplementedError

    @property
    def usage(self) -> Usage | None:
        """The latest usage the upstream reported."""
        raise NotImplementedError

    def _fail(self, error: object) -> Kind:
        self.error = bytes(error) if isinstance(error, (msgspec.Raw, bytes, memoryview)) else dumps(error)
        return ERROR

    def _content(self, chars: int) -> Kind:
        self.output_events += 1
        self.output_chars += chars
        return CONTENT


class _ChatReader(StreamReader):
    """Chat and text completions."""

    __slots__ = ("_timings",)

    def __init__(self) -> None:
        super().__init__()
        self._timings: _Timings | None = None

    @property
    def usage(self) -> Usage | None:
        usage = _chat_usage(self._usage)
        return _timings_usage(self._timings) if usage is None and self._timings is not None else usage

    def event(self, data: Buffer, event_name: bytes | None = None) -> Kind:
        try:
            if not data.isascii():
                str(data, "utf-8")  # the decoder does not look inside strings that it skips
            chunk = _decode_chat(data)
        except (ValueError, RecursionError):
            return self._tolerant(data, event_name)
        if not chunk.choices or not self.output_events or chunk.error is not None or event_name == b"error":
            return self._tolerant(data, event_name)
        chars = 0
        for choice in chunk.choices:
            if choice.finish_reason is not None:
                return self._tolerant(data, event_name)
            delta = choice.delta
            if delta is not None:
                if delta.content:
                    chars += len(delta.content)
                if delta.reasoning_content or delta.reasoning or delta.tool_calls:
                    chars += _other_chars(delta)
            elif choice.text:
                chars += len(choice.text)
        if chars == 0:
            return self._tolerant(data, event_name)
        if chunk.usage is not None:
            self._note_usage(chunk.usage)
        self.output_events += 1
        self.output_chars += chars
        return CONTENT

    def _note_usage(self, usage: _ChatUsage | None) -> None:
        if _chat_usage(usage) is not None:
            self._usage = usage
            self.usage_final = True

    def _tolerant(self, data: Buffer, event_name: bytes | None) -> Kind:
        if bytes(data).strip() == b"[DONE]":
            return DONE
        try:
            chunk = loads(data)
        except ValueError:
            return BAD
        if not isinstance(chunk, dict):
            return BAD
        error = chunk.get("error")
        if error:
            return self._fail(error)
        if event_name == b"error" or (chunk.get("object") == "error" or chunk.get("type") == "error"):
            return self._fail(chunk)
        self.model = self.model or _str(chunk.get("model"))
        for found in (chunk.get("usage"), _dict(chunk.get("x_groq")).get("usage")):
            self._note_usage(_lenient(_ChatUsage, found))
        self._timings = _lenient(_Timings, chunk.get("timings")) or self._timings
        choices = chunk.get("choices")
        if not choices:
            return USAGE if isinstance(chunk.get("usage"), dict) else META
        content = False
        chars = 0
        for choice in choices if isinstance(choices, list) else [choices]:
            choice = _dict(choice)
            self.finish_reason = _str(choice.get("finish_reason")) or self.finish_reason
            for part in (choice.get("delta") or choice.get("message"), choice.get("text")):
                content = content or _holds_content(part)
                chars += _chars(part)
        return self._content(chars) if content else META


def _other_chars(delta: _Delta) -> int:
    """Characters of reasoning and tool calls."""
    chars = len(delta.reasoning_content or delta.reasoning or "")
    for call in delta.tool_calls or ():
        chars += _function_chars(call.function)
    return chars


def _function_chars(function: _Function | None) -> int:
    if function is None:
        return 0
    return len(function.name or "") + len(function.arguments or "")


class _MessagesReader(StreamReader):
    __slots__ = ()

    @property
    def usage(self) -> Usage | None:
        return _messages_usage(self._usage)

    def event(self, data: Buffer, event_name: bytes | None = None) -> Kind:
        try:
            if not data.isascii():
                str(data, "utf-8")
            event = _decode_messages(data)
        except (ValueError, RecursionError):
            return self._tolerant(data, event_name)
        kind = event.type
        if kind == "content_block_delta" and event.delta is not None:
            delta = event.delta
            text = delta.text or delta.thinking or delta.partial_json
            if text:
                self.output_events += 1
                self.output_chars += len(text)
                return CONTENT
            known = (delta.text, delta.thinking, delta.partial_json)
            return META if "" in known else self._content(0)  # else a signature or a citation
        if event.error is not None or kind == "error" or kind is None or event_name == b"error":
            return self._tolerant(data, event_name)
        return self._mark(kind, event)

    def _mark(self, kind: str, event: _MessagesEvent) -> Kind:
        if kind == "message_stop":
            return DONE
        if kind == "content_block_start" and event.content_block is not None:
            block = event.content_block
            if block.type in ("text", "thinking") and not (block.text or block.thinking):
                return META
            return self._content(len(block.text or block.thinking or block.name or ""))
        if kind == "message_start" and event.message is not None:
            self.model = event.message.model
            if event.message.usage is not None:
                self._usage = _merge(self._usage, event.message.usage)
        elif kind == "message_delta":
            if event.usage is not None:
                self._usage = _merge(self._usage, event.usage)
                self.usage_final = event.usage.output_tokens is not None
            if event.delta is not None and event.delta.stop_reason is not None:
                self.finish_reason = event.delta.stop_reason
        return META

    def _tolerant(self, data: Buffer, event_name: bytes | None) -> Kind:
        try:
            event = loads(data)
        except ValueError:
            return BAD
        if not isinstance(event, dict):
            return BAD
        kind = _str(event.get("type")) or (event_name or b"").decode("utf-8", "replace")
        error = event.get("error")
        if error or kind == "error" or event_name == b"error":
            return self._fail(error or event)
        delta, message, block = _dict(event.get("delta")), event.get("message"), event.get("content_block")
        if kind == "content_block_delta":
            return self._content(_chars(delta)) if _holds_content(delta) or "signature" in delta else META
        typed = _MessagesEvent(
            delta=_Block(stop_reason=_str(delta.get("stop_reason"))),
            usage=_lenient(_MessagesUsage, event.get("usage")),
        )
        if isinstance(message, dict):
            usage = _lenient(_MessagesUsage, message.get("usage"))
            typed.message = _Message(model=_str(message.get("model")), usage=usage)
        if isinstance(block, dict):
            typed.content_block = _Block(
                type=_str(block.get("type")),
                text=_str(block.get("text")),
                thinking=_str(block.get("thinking")),
                name=_str(block.get("name")),
            )
        return self._mark(kind, typed)


_FAILURES = frozenset(("error", "response.failed"))
_RESPONSES_ENDS = frozenset(("response.completed", "response.incomplete", "response.cancelled"))


class _ResponsesReader(StreamReader):
    __slots__ = ()

    @property
    def usage(self) -> Usage | None:
        return _chat_usage(self._usage)

    def event(self, data: Buffer, event_name: bytes | None = None) -> Kind:
        try:
            if not data.isascii():
                str(data, "utf-8")
            event = _decode_responses(data)
        except (ValueError, RecursionError):
            return self._tolerant(data, event_name)
        kind = event.type
        if event.delta is not None and kind is not None and kind.endswith(".delta"):
            if not event.delta:
                return META
            self.output_events += 1
            self.output_chars += len(event.delta)
            return CONTENT
        if (
            kind is None
            or kind in ("error", "response.failed")
            or event.error is not None
            or event_name == b"error"
        ):
            return self._tolerant(data, event_name)
        return self._mark(kind, event)

    def _mark(self, kind: str, event: _ResponsesEvent) -> Kind:
        response = event.response
        if response is not None:
            self.model = self.model or response.model
            if response.usage is not None:
                self._usage = response.usage
        if kind in _RESPONSES_ENDS:
            self.usage_final = self.usage is not None
            self.finish_reason = kind.removeprefix("response.")
            if response is not None and response.incomplete_details is not None:
                self.finish_reason = response.incomplete_details.reason or self.finish_reason
            return DONE
        if kind == "response.output_item.added" and event.item is not None and event.item.name:
            return self._content(len(event.item.name))
        return CONTENT if kind.endswith((".delta", ".partial_image")) else META

    def _tolerant(self, data: Buffer, event_name: bytes | None) -> Kind:
        if bytes(data).strip() == b"[DONE]":
            return DONE
        try:
            event = loads(data)
        except ValueError:
            return BAD
        if not isinstance(event, dict):
            return BAD
        kind = _str(event.get("type")) or (event_name or b"").decode("utf-8", "replace")
        response, delta, item = event.get("response"), event.get("delta"), _dict(event.get("item"))
        typed = _ResponsesEvent(item=_Item(name=_str(item.get("name"))))
        if isinstance(response, dict):
            reason = _str(_dict(response.get("incomplete_details")).get("reason"))
            typed.response = _Response(
                model=_str(response.get("model")),
                usage=_lenient(_ChatUsage, response.get("usage")),
                incomplete_details=_Incomplete(reason),
            )
        if kind == "response.failed":
            self._mark(kind, typed)
            self.usage_final = self.usage is not None
            self.finish_reason = "failed"
            return self._fail(_dict(response).get("error") or event)
        error = event.get("error")
        if error or kind == "error" or event_name == b"error":
            return self._fail(error or event)
        if kind.endswith(".delta"):
            return self._content(_chars(delta)) if _holds_content(delta) else META
        return self._mark(kind, typed)


_READERS: Mapping[str, type[StreamReader]] = {
    "chat": _ChatReader,
    "completions": _ChatReader,
    "messages": _MessagesReader,
    "responses": _ResponsesReader,
}


def stream_reader(dialect: str) -> StreamReader:
    """A fresh reader for one stream of ``dialect``: "chat", "completions", "messages" or "responses"."""
    return _READERS[dialect]()


# --- whole bodies ---------------------------------------------------------------------------------


class _PlainUsage(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class _PlainChoice(msgspec.Struct, gc=False):
    finish_reason: str


class _PlainChat(msgspec.Struct, gc=False):
    """The most common answer: one whose usage holds nothing unusual. Everything else is read in full."""

    usage: _PlainUsage
    choices: list[_PlainChoice]


_decode_plain_chat = msgspec.json.Decoder(_PlainChat).decode


def read_usage(dialect: str, body: Buffer) -> tuple[Usage | None, str | None, int]:
    """Usage, the upstream's finish reason, and the characters of answer, of a complete response body.

    Raises:
        ValueError: the body is not a JSON object.
    """
    if dialect == "messages":
        return _read_message(body)
    if dialect == "responses":
        return _read_response(body)
    try:
        plain = _decode_plain_chat(body if body.isascii() else str(body, "utf-8"))
        told = plain.usage
        if plain.choices and 0 < told.prompt_tokens + told.completion_tokens == told.total_tokens:
            # What was produced is counted only where usage is missing.
            return Usage(told.prompt_tokens, told.completion_tokens), plain.choices[-1].finish_reason, 0
    except (ValueError, RecursionError):
        pass
    try:
        chat = _decode_whole_chat(str(body, "utf-8"))
    except (ValueError, RecursionError):
        return _read_tolerant(dialect, body)
    finish, chars = None, 0
    for choice in chat.choices or ():
        finish = choice.finish_reason or finish
        chars += len(choice.text or "")
        message = choice.message
        if message is not None:
            chars += len(message.content or "") + len(message.refusal or "")
            chars += _other_chars(message) + _function_chars(message.function_call)
    usage = _chat_usage(chat.usage)
    if usage is None and chat.timings is not None:
        usage = _timings_usage(chat.timings)
    return usage, finish, chars


def _read_message(body: Buffer) -> tuple[Usage | None, str | None, int]:
    try:
        message = _decode_message(str(body, "utf-8"))
    except (ValueError, RecursionError):
        return _read_tolerant("messages", body)
    chars = sum(
        len(b.text or b.thinking or b.name or "") + len(bytes(b.input)) for b in message.content or ()
    )
    return _messages_usage(message.usage), message.stop_reason, chars


def _read_response(body: Buffer) -> tuple[Usage | None, str | None, int]:
    try:
        response = _decode_response(str(body, "utf-8"))
    except (ValueError, RecursionError):
        return _read_tolerant("responses", body)
    chars = sum(
        _parts_chars(i.content) + _parts_chars(i.summary) + len(i.name or "") + len(i.arguments or "")
        for i in response.output or ()
    )
    reason = response.incomplete_details.reason if response.incomplete_details else None
    return _chat_usage(response.usage), reason or response.status, chars


def _parts_chars(parts: Iterable[_Part] | None) -> int:
    return sum(len(p.text or p.refusal or "") for p in parts or ())


def _read_tolerant(dialect: str, body: Buffer) -> tuple[Usage | None, str | None, int]:
    value = loads(body)
    if not isinstance(value, dict):
        raise ValueError("the body is not a JSON object")
    usage = usage_of(dialect, value.get("usage"))
    if dialect == "messages":
        return usage, _str(value.get("stop_reason")), _chars(value.get("content"))
    if dialect == "responses":
        reason = _str(_dict(value.get("incomplete_details")).get("reason"))
        return usage, reason or _str(value.get("status")), _chars(value.get("output"))
    if usage is None:
        timings = _lenient(_Timings, value.get("timings"))
        usage = _timings_usage(timings) if timings else None
    finish, chars = None, 0
    choices = value.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        choice = _dict(choice)
        finish = _str(choice.get("finish_reason")) or finish
        chars += _chars(choice.get("message")) + _chars(choice.get("text"))
    return usage, finish, chars


def read_error(body: Buffer) -> ErrorInfo:
    """The error in ``body``: a whole error body or the inner object of one, of any dialect, or plain text.

    Never raises. What is no JSON (an HTML page) becomes the message, cut to 500 characters.
    """
    try:
        value = loads(body)
    except ValueError:
        return ErrorInfo(bytes(body)[:2000].decode("utf-8", "replace").strip()[:500] or "empty error body")
    if isinstance(value, dict):
        response = _dict(value.get("response"))
        inner = value.get("error") or response.get("error")
        if isinstance(inner, str):
            value = {**value, "message": value.get("message") or inner}
        elif isinstance(inner, dict):
            value = inner
        message = value.get("message") or value.get("detail") or value.get("code")
        if not isinstance(message, str):
            message = dumps(message if message else value).decode()
        code = value.get("code")
        kind = _str(value.get("type"))
        return ErrorInfo(
            message=message,
            type=kind if kind != "error" else None,
            code=str(code) if isinstance(code, (str, int)) and code != "" else None,
            param=_str(value.get("param")),
        )
    return ErrorInfo(value if isinstance(value, str) and value else dumps(value).decode())
