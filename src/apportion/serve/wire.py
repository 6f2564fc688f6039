"""What an upstream sent: the few fields the proxy needs, read from each stream event or whole body.

This runs once for every event of every stream, so it decodes with typed structures that skip everything
else: one pass that also proves the JSON well-formed. Only when the types surprise does a tolerant reading
(plain dicts) take over; a surprise is never taken for damage.

Dialects: "chat", "completions", "embeddings" (OpenAI and compatible), "messages" (Anthropic),
"responses" (OpenAI).
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from enum import IntEnum
from functools import partial
from typing import Any, Literal

import msgspec

from apportion.measure.tokens import estimate_output_tokens
from apportion.measure.usage import Usage
from apportion.serve.drawn import DrawnReader


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
    logprobs: msgspec.Raw = _NO_RAW


class _PromptDetails(msgspec.Struct, gc=False):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    cache_creation_tokens: int | None = None
    audio_tokens: int | None = None
    image_tokens: int | None = None


class _OutputDetails(msgspec.Struct, gc=False):
    reasoning_tokens: int | None = None
    thinking_tokens: int | None = None
    """Anthropic's word for reasoning."""
    audio_tokens: int | None = None
    image_tokens: int | None = None


class _ServerToolUse(msgspec.Struct, gc=False):
    web_search_requests: int | None = None


class _Cost(msgspec.Struct, gc=False):
    """Perplexity's."""

    total_cost: float | None = None


class _CostDetails(msgspec.Struct, gc=False):
    """OpenRouter's."""

    upstream_inference_cost: float | None = None


class _ChatUsage(msgspec.Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _OutputDetails | None = None
    prompt_cache_hit_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _PromptDetails | None = None
    output_tokens_details: _OutputDetails | None = None
    citation_tokens: int | None = None
    num_search_queries: int | None = None
    server_tool_use: _ServerToolUse | None = None
    cost: float | _Cost | None = None
    cost_details: _CostDetails | None = None
    is_byok: bool | None = None
    cost_in_usd_ticks: int | None = None


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
    service_tier: str | None = None


class _CacheCreation(msgspec.Struct, gc=False):
    ephemeral_5m_input_tokens: int | None = None
    ephemeral_1h_input_tokens: int | None = None


class _Iteration(msgspec.Struct, gc=False):
    """One sampling of several that made one Anthropic answer."""

    type: str | None = None
    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_creation: _CacheCreation | None = None


class _MessagesUsage(msgspec.Struct, gc=False):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_creation: _CacheCreation | None = None
    output_tokens_details: _OutputDetails | None = None
    server_tool_use: _ServerToolUse | None = None
    iterations: list[_Iteration] | None = None
    service_tier: str | None = None
    speed: str | None = None


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


class _Action(msgspec.Struct, gc=False):
    type: str | None = None


class _Item(msgspec.Struct, gc=False):
    type: str | None = None
    action: _Action | None = None
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
    service_tier: str | None = None


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


_ABSURD = 10**15
"""Stands for any number beyond it, infinity included."""


def _count(value: object) -> int | None:
    """A token count from whatever was written there; None when it is no count."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        return None
    return int(min(max(value, -_ABSURD), _ABSURD))


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
            setattr(out, name, _READ.get(name, _count)(value[name]))
    return out


def _amount(value: object) -> float | None:
    """Dollars from whatever was written there; None when it is no amount."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if 0 <= value < _MOST_USD else None


def _cost(value: object) -> float | _Cost | None:
    return _lenient(_Cost, value) if isinstance(value, dict) else _amount(value)


def _flag(value: object) -> bool:
    return value is True


def _iterations(value: object) -> list[_Iteration]:
    return [_lenient(_Iteration, v) for v in value if isinstance(v, dict)] if isinstance(value, list) else []


_READ: dict[str, Callable[[object], Any]] = {
    "prompt_tokens_details": partial(_lenient, _PromptDetails),
    "input_tokens_details": partial(_lenient, _PromptDetails),
    "completion_tokens_details": partial(_lenient, _OutputDetails),
    "output_tokens_details": partial(_lenient, _OutputDetails),
    "cache_creation": partial(_lenient, _CacheCreation),
    "server_tool_use": partial(_lenient, _ServerToolUse),
    "cost_details": partial(_lenient, _CostDetails),
    "cost": _cost,
    "total_cost": _amount,
    "upstream_inference_cost": _amount,
    "is_byok": _flag,
    "iterations": _iterations,
    "type": _str,
    "model": _str,
    "service_tier": _str,
    "speed": _str,
}
"""How the fields are read that are no counts."""

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


def _size(text: str | None) -> int:
    """UTF-8 bytes of ``text``."""
    if not text:
        return 0
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _sizes(value: object) -> int:
    """Bytes of answer text anywhere inside ``value``; identifiers, marks and binary data left out."""
    if isinstance(value, str):
        return _size(value)
    if isinstance(value, list):
        return sum(map(_sizes, value))
    if isinstance(value, dict):
        return sum(_sizes(v) for k, v in value.items() if k not in _NOT_ANSWER)
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


_MOST_TOKENS = 10**8
"""More than any model reads or writes at once: counts beyond it are no counts."""
_MOST_USD = 10**6
_USUAL_SERVICES = frozenset(("", "auto", "default", "standard", "on_demand"))


def _service(*words: object) -> str:
    """The class of service, from the first word that names an unusual one."""
    return next((w[:32] for w in words if isinstance(w, str) and w not in _USUAL_SERVICES), "")


def _sane(*counts: int | None) -> bool:
    return all(count is None or 0 <= count <= _MOST_TOKENS for count in counts)


def _chat_usage(u: _ChatUsage | None) -> Usage | None:
    """OpenAI's counts, with the departures of compatible servers put right.

    Some leave reasoning out of ``completion_tokens``, or the cached tokens out of ``prompt_tokens``, but keep them
    in ``total_tokens`` (xAI reports its reasoning in the details, Gemini nowhere): the total says what was billed.
    Parts that exceed their whole cannot be inside it. Counts that are below zero, absurd or all zero say
    nothing: None.
    """
    if u is None:
        return None
    into = u.prompt_tokens if u.prompt_tokens is not None else u.input_tokens
    out = u.completion_tokens if u.completion_tokens is not None else u.output_tokens
    into, out = into or 0, out or 0
    if (into == 0 and out == 0) or not _sane(into, out):
        return None
    prompt = u.prompt_tokens_details or u.input_tokens_details or _PromptDetails()
    completion = u.completion_tokens_details or u.output_tokens_details or _OutputDetails()
    cached = prompt.cached_tokens or u.prompt_cache_hit_tokens or u.cached_tokens
    cached = cached or u.cache_read_input_tokens or 0
    written = prompt.cache_write_tokens or prompt.cache_creation_tokens or u.cache_creation_input_tokens or 0
    reasoning = completion.reasoning_tokens or completion.thinking_tokens or u.reasoning_tokens or 0
    if not _sane(cached, written, reasoning, u.total_tokens):
        return None
    citations = u.citation_tokens or 0
    beyond = (u.total_tokens or 0) - into - out
    cache = cached + written
    if cache > into or (cache and beyond in (cache, cache + reasoning)):
        into += cache
        beyond -= cache
    if reasoning > out or (reasoning and beyond == reasoning):
        out += reasoning
    elif beyond > 0 and reasoning == 0:
        out += beyond
        reasoning = beyond
    searches = (
        u.server_tool_use.web_search_requests if u.server_tool_use is not None else u.num_search_queries
    )
    return Usage(
        input_tokens=into,
        output_tokens=out + (citations if _sane(citations) else 0),
        cached_input_tokens=cached,
        cache_write_tokens=written,
        reasoning_tokens=reasoning,
        audio_input_tokens=_within(prompt.audio_tokens, into),
        audio_output_tokens=_within(completion.audio_tokens, out),
        image_input_tokens=_within(prompt.image_tokens, into),
        image_output_tokens=_within(completion.image_tokens, out),
        web_searches=_within(searches, _MOST_TOKENS),
        billed_units=_billed(u),
    )


def _within(count: int | None, whole: int) -> int:
    return count if count is not None and 0 <= count <= whole else 0


def _billed(u: _ChatUsage) -> int | None:
    """Pico-dollars that the provider says it charged: xAI's ticks, Perplexity's total, OpenRouter's cost.

    With a key of the customer's own OpenRouter charges its fee, and the provider the rest.
    """
    ticks = u.cost_in_usd_ticks
    if ticks is not None:
        return ticks * 100 if 0 <= ticks < _MOST_USD * 10**10 else None
    cost = u.cost.total_cost if isinstance(u.cost, _Cost) else u.cost
    if cost is None or not 0 <= cost < _MOST_USD:
        return None
    total = Decimal(str(cost))
    if u.is_byok and u.cost_details is not None:
        passed_on = u.cost_details.upstream_inference_cost
        total += Decimal(str(passed_on)) if passed_on is not None and 0 <= passed_on < _MOST_USD else 0
    return round(total * 10**12)


def _timings_usage(t: _Timings) -> Usage | None:
    """llama.cpp's own counts: ``prompt_n`` was computed, ``cache_n`` taken from the cache."""
    cached, prompt, predicted = t.cache_n or 0, t.prompt_n or 0, t.predicted_n or 0
    if cached + prompt + predicted == 0 or not _sane(cached, prompt, predicted):
        return None
    return Usage(input_tokens=cached + prompt, output_tokens=predicted, cached_input_tokens=cached)


_INPUTS = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


def _merge(old: _MessagesUsage | None, new: _MessagesUsage) -> _MessagesUsage:
    """Anthropic's counts are cumulative over the stream, and each event may name only some of them.

    The last word counts; but compatible servers repeat input counts as zeros at the end, which is none.
    """
    if old is None:
        return new
    told = [(name, count) for name in _INPUTS if (count := getattr(new, name)) is not None]
    if any(count for _, count in told):
        for name, count in told:
            setattr(old, name, count)
    if new.output_tokens is not None:
        old.output_tokens = max(old.output_tokens or 0, new.output_tokens)
    for name in (
        "cache_creation",
        "output_tokens_details",
        "server_tool_use",
        "iterations",
        "service_tier",
        "speed",
    ):
        setattr(old, name, getattr(new, name) or getattr(old, name))
    return old


def _messages_usage(u: _MessagesUsage | None) -> Usage | None:
    """Anthropic's counts: ``input_tokens`` there leaves out what was read from and written to the cache.

    Its totals also leave out what ``iterations`` tells of compactions (billed like the rest) and of advisors:
    those are another model, whose price is not known here, so the whole is marked as estimated.
    """
    if u is None or not _sane(u.input_tokens, u.output_tokens, *_cache_counts(u)):
        return None
    read, written, hour = _cache_counts(u)
    usage = Usage(
        input_tokens=(u.input_tokens or 0) + read + written,
        output_tokens=u.output_tokens or 0,
        cached_input_tokens=read,
        cache_write_tokens=written - hour,
        cache_write_1h_tokens=hour,
        service=_service(u.service_tier, u.speed),
    )
    for one in u.iterations or ():
        if one.type in ("compaction", "advisor_message") and _sane(
            one.input_tokens, one.output_tokens, *_cache_counts(one)
        ):
            read, written, hour = _cache_counts(one)
            usage.input_tokens += (one.input_tokens or 0) + read + written
            usage.output_tokens += one.output_tokens or 0
            usage.cached_input_tokens += read
            usage.cache_write_tokens += written - hour
            usage.cache_write_1h_tokens += hour
            usage.estimated = usage.estimated or one.type == "advisor_message"
    if usage.input_tokens + usage.output_tokens == 0:
        return None
    details = u.output_tokens_details
    if details is not None:
        usage.reasoning_tokens = _within(details.thinking_tokens, usage.output_tokens)
    if u.server_tool_use is not None:
        usage.web_searches = _within(u.server_tool_use.web_search_requests, _MOST_TOKENS)
    return usage


def _cache_counts(u: _MessagesUsage | _Iteration) -> tuple[int, int, int]:
    """Tokens read from the cache, written to it, and of these written for an hour.

    The split by duration may come once, at the start of a stream in which server tools go on to write more: what
    it does not cover is for an hour if all that it covers is.
    """
    split = u.cache_creation or _CacheCreation()
    hour, short = split.ephemeral_1h_input_tokens or 0, split.ephemeral_5m_input_tokens or 0
    written = max(u.cache_creation_input_tokens or 0, hour + short)
    return u.cache_read_input_tokens or 0, written, written if hour > 0 == short else hour


def usage_of(dialect: str, usage: object) -> Usage | None:
    """A ``usage`` object of ``dialect``, already parsed to dicts, in apportion's terms."""
    if dialect == "messages":
        return _messages_usage(_lenient(_MessagesUsage, usage))
    return _chat_usage(_lenient(_ChatUsage, usage))


def usage_in(chunk: Mapping[str, Any]) -> Usage | None:
    """The usage of a chat completion or chunk, wherever its server puts it."""
    usage = usage_of("chat", chunk.get("usage")) or usage_of("chat", _dict(chunk.get("x_groq")).get("usage"))
    if usage is None and "timings" in chunk:
        timings = _lenient(_Timings, chunk["timings"])
        usage = _timings_usage(timings) if timings is not None else None
    return usage


def merge_messages_usage(old: Mapping[str, Any], new: object) -> dict[str, Any]:
    """The raw ``usage`` of a messages stream after an event that says ``new``; the rule of ``StreamReader.usage``."""
    told = {k: v for k, v in _dict(new).items() if v is not None}
    if not any(_count(told.get(name)) for name in _INPUTS):
        told = {k: v for k, v in told.items() if k not in _INPUTS or k not in old}
    if "output_tokens" in old and (_count(told.get("output_tokens")) or 0) < (
        _count(old["output_tokens"]) or 0
    ):
        told.pop("output_tokens", None)
    return {**old, **told}


# --- streams --------------------------------------------------------------------------------------


class StreamReader(ABC):
    """Reads the events of one stream; made by ``stream_reader``. Keeps counts, never the text.

    Attributes:
        finish_reason: the upstream's own word, of the last choice that ended; None while none has.
        model: the name the upstream gives.
        error: the raw JSON of the error object (or the whole event where there is no inner object).
        output_bytes: UTF-8 bytes of answer so far (text, reasoning, refusals, tool names and arguments): nearer to
            tokens than characters are.
        output_events: events that carried text of the answer: for most servers, one token each.
        usage_final: the usage covers all that has come. Anthropic's ``message_start`` already gives usage,
            exact for the input but not the output, and so do others in a first chunk; when a stream breaks there,
            estimate the output.
    """

    __slots__ = (
        "_usage",
        "drawn",
        "error",
        "finish_reason",
        "heard",
        "model",
        "output_bytes",
        "output_events",
        "usage_final",
    )

    def __init__(self) -> None:
        self._usage: Any = None
        self.heard: list[str] | None = None
        """Where the pieces of the answer's text go, if somebody listens; else nobody keeps them."""
        self.drawn: DrawnReader | None = None
        """Where the log probabilities of its tokens go, likewise; only chat completions carry them."""
        self.error: bytes | None = None
        self.finish_reason: str | None = None
        self.model: str | None = None
        self.output_bytes = 0
        self.output_events = 0
        self.usage_final = False

    @abstractmethod
    def event(self, data: Buffer, event_name: bytes | None = None) -> Kind:
        """Read what followed ``data: `` in one event; ``event_name`` is what followed ``event: ``."""

    @property
    @abstractmethod
    def usage(self) -> Usage | None:
        """The latest usage the upstream reported."""

    def _fail(self, error: object) -> Kind:
        self.error = bytes(error) if isinstance(error, (msgspec.Raw, bytes, memoryview)) else dumps(error)
        return ERROR

    def _says_output(self, tokens: int | None) -> bool:
        """Whether a report of so many output tokens covers what has come: nothing for something covers nothing."""
        return tokens is not None and (tokens > 0 or self.output_bytes == 0)

    def _hear(self, *texts: object) -> None:
        if self.heard is not None:
            self.heard += [text for text in texts if text and isinstance(text, str)]

    def _content(self, size: int) -> Kind:
        if size:
            self.output_events += 1
            self.output_bytes += size
        return CONTENT


class _ChatReader(StreamReader):
    """Chat and text completions."""

    __slots__ = ("_service", "_timings")

    def __init__(self) -> None:
        super().__init__()
        self._timings: _Timings | None = None
        self._service = ""

    @property
    def usage(self) -> Usage | None:
        usage = _chat_usage(self._usage)
        if usage is None and self._timings is not None:
            usage = _timings_usage(self._timings)
        if usage is not None:
            usage.service = self._service
        return usage

    def event(self, data: Buffer, event_name: bytes | None = None) -> Kind:
        try:
            if not data.isascii():
                str(data, "utf-8")  # the decoder does not look inside strings that it skips
            chunk = _decode_chat(data)
        except (ValueError, RecursionError):
            return self._tolerant(data, event_name)
        if not chunk.choices or not self.output_events or chunk.error is not None or event_name == b"error":
            return self._tolerant(data, event_name)
        size = 0
        for choice in chunk.choices:
            if choice.finish_reason is not None:
                return self._tolerant(data, event_name)
            delta = choice.delta
            if delta is not None:
                if delta.content:
                    size += _size(delta.content)
                if self.heard is not None:
                    self._hear(delta.content, delta.reasoning_content, delta.reasoning)
                    if self.drawn is not None and (said := bytes(choice.logprobs)):
                        self.drawn.read(said)
                if delta.reasoning_content or delta.reasoning or delta.tool_calls:
                    size += _other_bytes(delta)
            elif choice.text:
                size += _size(choice.text)
                self._hear(choice.text)
        if size == 0:
            return self._tolerant(data, event_name)
        self.output_events += 1
        self.output_bytes += size
        self.usage_final = chunk.usage is not None and self._note_usage(chunk.usage)
        return CONTENT

    def _note_usage(self, usage: _ChatUsage | None) -> bool:
        """Take in a report; whether it says how much was produced."""
        read = _chat_usage(usage)
        if read is None:
            return False
        self._usage = usage
        return read.output_tokens > 0

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
        self._service = _service(chunk.get("service_tier")) or self._service
        told = False
        for found in (_dict(chunk.get("x_groq")).get("usage"), chunk.get("usage")):
            told = self._note_usage(_lenient(_ChatUsage, found)) or told
        timings = _lenient(_Timings, chunk.get("timings"))
        if timings is not None:
            self._timings = timings
            told = told or self._usage is None
        choices = chunk.get("choices")
        if not choices:
            self.usage_final = self.usage_final or told
            return USAGE if isinstance(chunk.get("usage"), dict) else META
        content = False
        size = 0
        for choice in choices if isinstance(choices, list) else [choices]:
            choice = _dict(choice)
            self.finish_reason = _str(choice.get("finish_reason")) or self.finish_reason
            if self.drawn is not None and choice.get("logprobs"):
                self.drawn.read(dumps(choice["logprobs"]))
            for part in (choice.get("delta") or choice.get("message"), choice.get("text")):
                content = content or _holds_content(part)
                size += _sizes(part)
                if isinstance(part, dict):
                    self._hear(part.get("content"), part.get("reasoning_content"), part.get("reasoning"))
                else:
                    self._hear(part)
        if not content:
            self.usage_final = self.usage_final or told
            return META
        self.usage_final = told
        return self._content(size)


def _other_bytes(delta: _Delta) -> int:
    """Bytes of reasoning and tool calls."""
    size = _size(delta.reasoning_content or delta.reasoning)
    for call in delta.tool_calls or ():
        size += _function_bytes(call.function)
    return size


def _function_bytes(function: _Function | None) -> int:
    if function is None:
        return 0
    return _size(function.name) + _size(function.arguments)


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
                self.output_bytes += _size(text)
                self._hear(text)
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
            return self._content(_size(block.text or block.thinking or block.name))
        if kind == "message_start" and event.message is not None:
            self.model = event.message.model
            if event.message.usage is not None:
                self._usage = _merge(self._usage, event.message.usage)
        elif kind == "message_delta":
            if event.usage is not None:
                self._usage = _merge(self._usage, event.usage)
                self.usage_final = self._says_output(event.usage.output_tokens)
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
            return self._content(_sizes(delta)) if _holds_content(delta) or "signature" in delta else META
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


def _item(value: dict[str, Any]) -> _Item:
    action = value.get("action")
    return _Item(
        type=_str(value.get("type")),
        name=_str(value.get("name")),
        action=_Action(_str(action.get("type"))) if isinstance(action, dict) else None,
    )


def _count_search(item: _Item, searches: list[int]) -> None:
    """Count a finished item of an answer that is a search of the web, or of files. (Opening a page is free.)"""
    if item.type == "web_search_call":
        searches[0] += item.action is None or item.action.type in (None, "search")
    elif item.type == "file_search_call":
        searches[1] += 1


def _response_usage(raw: _ChatUsage | None, searches: list[int], service: str) -> Usage | None:
    usage = _chat_usage(raw)
    if usage is not None:
        usage.web_searches, usage.file_searches = max(usage.web_searches, searches[0]), searches[1]
        usage.service = service
    return usage


class _ResponsesReader(StreamReader):
    __slots__ = ("_searches", "_service")

    def __init__(self) -> None:
        super().__init__()
        self._searches = [0, 0]
        self._service = ""

    @property
    def usage(self) -> Usage | None:
        return _response_usage(self._usage, self._searches, self._service)

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
            self.output_bytes += _size(event.delta)
            self._hear(event.delta)
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
            self._service = _service(response.service_tier) or self._service
            if response.usage is not None:
                self._usage = response.usage
        if kind == "response.output_item.done" and event.item is not None:
            _count_search(event.item, self._searches)
        if kind in _RESPONSES_ENDS:
            usage = self.usage
            self.usage_final = usage is not None and self._says_output(usage.output_tokens)
            self.finish_reason = kind.removeprefix("response.")
            if response is not None and response.incomplete_details is not None:
                self.finish_reason = response.incomplete_details.reason or self.finish_reason
            return DONE
        if kind == "response.output_item.added" and event.item is not None and event.item.name:
            return self._content(_size(event.item.name))
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
        typed = _ResponsesEvent(item=_item(item))
        if isinstance(response, dict):
            reason = _str(_dict(response.get("incomplete_details")).get("reason"))
            typed.response = _Response(
                model=_str(response.get("model")),
                usage=_lenient(_ChatUsage, response.get("usage")),
                incomplete_details=_Incomplete(reason),
                service_tier=_str(response.get("service_tier")),
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
            return self._content(_sizes(delta)) if _holds_content(delta) else META
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
    service_tier: Literal["default", "auto"] | None = None


_decode_plain_chat = msgspec.json.Decoder(_PlainChat).decode


def read_usage(dialect: str, body: Buffer) -> tuple[Usage | None, str | None, int]:
    """Usage, the upstream's finish reason, and the UTF-8 bytes of answer, of a complete response body.

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
        if (
            plain.choices
            and 0 < told.completion_tokens < told.total_tokens <= _MOST_TOKENS
            and told.prompt_tokens + told.completion_tokens == told.total_tokens
        ):
            # What was produced is counted only where usage is missing.
            return Usage(told.prompt_tokens, told.completion_tokens), plain.choices[-1].finish_reason, 0
    except (ValueError, RecursionError):
        pass
    try:
        chat = _decode_whole_chat(str(body, "utf-8"))
    except (ValueError, RecursionError):
        return _read_tolerant(dialect, body)
    finish, size = None, 0
    for choice in chat.choices or ():
        finish = choice.finish_reason or finish
        size += _size(choice.text)
        message = choice.message
        if message is not None:
            size += _size(message.content) + _size(message.refusal)
            size += _other_bytes(message) + _function_bytes(message.function_call)
    usage = _chat_usage(chat.usage)
    if usage is None and chat.timings is not None:
        usage = _timings_usage(chat.timings)
    if usage is not None:
        usage.service = _service(chat.service_tier)
    return _with_output(usage, size), finish, size


def _with_output(usage: Usage | None, size: int) -> Usage | None:
    """A usage that says nothing of an answer that is there gets its output counted."""
    if usage is not None and usage.output_tokens == 0 and size:
        usage.output_tokens = estimate_output_tokens(size)
        usage.estimated = True
    return usage


def _read_message(body: Buffer) -> tuple[Usage | None, str | None, int]:
    try:
        message = _decode_message(str(body, "utf-8"))
    except (ValueError, RecursionError):
        return _read_tolerant("messages", body)
    size = sum(_size(b.text or b.thinking or b.name) + len(bytes(b.input)) for b in message.content or ())
    return _with_output(_messages_usage(message.usage), size), message.stop_reason, size


def _read_response(body: Buffer) -> tuple[Usage | None, str | None, int]:
    try:
        response = _decode_response(str(body, "utf-8"))
    except (ValueError, RecursionError):
        return _read_tolerant("responses", body)
    size = sum(
        _parts_bytes(i.content) + _parts_bytes(i.summary) + _size(i.name) + _size(i.arguments)
        for i in response.output or ()
    )
    reason = response.incomplete_details.reason if response.incomplete_details else None
    searches = [0, 0]
    for item in response.output or ():
        _count_search(item, searches)
    usage = _response_usage(response.usage, searches, _service(response.service_tier))
    return _with_output(usage, size), reason or response.status, size


def _parts_bytes(parts: Iterable[_Part] | None) -> int:
    return sum(_size(p.text or p.refusal) for p in parts or ())


def _read_tolerant(dialect: str, body: Buffer) -> tuple[Usage | None, str | None, int]:
    value = loads(body)
    if not isinstance(value, dict):
        raise ValueError("the body is not a JSON object")
    told, service = value.get("usage"), _service(value.get("service_tier"))
    if dialect == "messages":
        size = _sizes(value.get("content"))
        return _with_output(usage_of(dialect, told), size), _str(value.get("stop_reason")), size
    if dialect == "responses":
        output = value.get("output")
        searches = [0, 0]
        for item in output if isinstance(output, list) else ():
            _count_search(_item(_dict(item)), searches)
        usage = _response_usage(_lenient(_ChatUsage, told), searches, service)
        reason = _str(_dict(value.get("incomplete_details")).get("reason"))
        size = _sizes(output)
        return _with_output(usage, size), reason or _str(value.get("status")), size
    usage = _chat_usage(_lenient(_ChatUsage, told))
    if usage is None:
        timings = _lenient(_Timings, value.get("timings"))
        usage = _timings_usage(timings) if timings else None
    if usage is not None:
        usage.service = service
    finish, size = None, 0
    choices = value.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        choice = _dict(choice)
        finish = _str(choice.get("finish_reason")) or finish
        size += _sizes(choice.get("message")) + _sizes(choice.get("text"))
    return _with_output(usage, size), finish, size


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
