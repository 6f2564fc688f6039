"""One answer made of a stream, at any moment: for a client that did not ask for a stream, and for a deadline.

An assembler is written the events that a client of its dialect is (or would be) sent. ``body`` is then the
answer that the non-streaming API would have given, and ``closing`` is what ends the stream properly as cut by
length. Both may be asked at any time and as often as wanted.

Events are collected and read a few at a time, off the way of the one that is just being passed on. Memory is
bounded by ``MAX_ANSWER_BYTES`` of stream.

Shapes: the API references of OpenAI (chat, completions, responses) and Anthropic (messages), and the habits
of compatible servers. Parts of a delta are merged as OpenAI's own SDK does it (``accumulate_delta``), except
that labels (role, type, id) which a server repeats are not glued together.
"""

from __future__ import annotations

import base64
import json
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Final, Literal, final

import msgspec

from apportion.measure.usage import Usage
from apportion.serve.http import sse
from apportion.serve.http.client import MAX_ANSWER_BYTES, TransportFailure
from apportion.serve.wire import loads, usage_of

Api = Literal["chat", "completions", "messages", "responses"]
Object = dict[str, Any]

_BATCH_BYTES: Final = 4 * 2**10
"""How much is collected before it is read: some twenty events, a fraction of a millisecond."""
_MAX_DEPTH: Final = 128
"""Events nested deeper are passed over: they would exhaust the stack when written again."""

_FIRST: Final = frozenset(["id", "call_id"])
_LAST: Final = frozenset(["role", "type", "format", "signature", "status", "encrypted_content"])


class Assembler(ABC):
    """Makes one answer of a stream; made by ``assembler``. A ``Sink`` of a relay."""

    __slots__ = ("_bytes", "_ended", "_pending", "_pending_bytes", "_splitter")

    def __init__(self) -> None:
        self._bytes = 0
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._splitter = sse.Splitter()
        self._ended = False

    @final
    def write(self, data: bytes) -> None:
        """A piece of the stream: whole events, the end mark among them.

        Raises:
            TransportFailure: "too_large", the stream is longer than ``MAX_ANSWER_BYTES``.
        """
        size = len(data)
        self._bytes += size
        if self._bytes > MAX_ANSWER_BYTES:
            self._pending.clear()
            raise TransportFailure(
                "too_large", f"The answer is longer than {MAX_ANSWER_BYTES} bytes.", sent=True
            )
        self._pending.append(data)
        self._pending_bytes += size
        if self._pending_bytes > _BATCH_BYTES:
            self._read()

    @property
    def ended(self) -> bool:
        """Whether the stream had its own end mark; then ``closing`` is empty and ``cut`` changes nothing."""
        self._read()
        return self._ended

    @final
    def body(self, usage: Usage | None, *, cut: bool) -> bytes:
        """The JSON answer of the non-streaming API.

        The usage in it is the upstream's own where the stream had one, else made of ``usage``. With ``cut``,
        what the stream left unfinished says that it was cut by length.
        """
        self._read()
        return self._body(usage, cut=cut)

    @final
    def closing(self, usage: Usage | None, *, include_usage: bool) -> bytes:
        """The events that end the stream, from where it stands, as cut by length; empty when it has ended.

        ``include_usage`` is the client's ``stream_options.include_usage``; the other dialects always say it.
        """
        self._read()
        return b"" if self._ended else b"".join(self._closing(usage, include_usage=include_usage))

    def _read(self) -> None:
        if not self._pending:
            return
        data = b"".join(self._pending)
        self._pending.clear()
        self._pending_bytes = 0
        try:
            events = self._splitter.feed(data)
        except sse.EventTooLarge:
            raise TransportFailure("too_large", "The stream holds an event without end.", sent=True) from None
        for event in events:
            payload = sse.parse(event)[1]
            if payload is None or self._ended:
                continue
            if payload.strip() == b"[DONE]":
                self._ended = True
                continue
            value = _parse(payload)
            if isinstance(value, dict):
                self._take(value, payload)

    @abstractmethod
    def _take(self, event: Object, payload: bytes) -> None:
        """One event, and the JSON it came as. Never raises."""

    @abstractmethod
    def _body(self, usage: Usage | None, *, cut: bool) -> bytes: ...

    @abstractmethod
    def _closing(self, usage: Usage | None, *, include_usage: bool) -> Iterator[bytes]: ...


def assembler(api: Api) -> Assembler:
    """An assembler for the stream of one answer in the dialect ``api``."""
    return _ASSEMBLERS[api]()


# --- merging --------------------------------------------------------------------------------------


class _Text:
    """A string that grows by pieces."""

    __slots__ = ("pieces",)

    def __init__(self, *pieces: str) -> None:
        self.pieces = list(pieces)

    def __str__(self) -> str:
        return "".join(self.pieces)


def _plain(value: object) -> object:
    if isinstance(value, _Text):
        return str(value)
    raise NotImplementedError


_encode = msgspec.json.Encoder(enc_hook=_plain).encode


def _dumps(value: object) -> bytes:
    try:
        return _encode(value)
    except (UnicodeEncodeError, OverflowError):  # half a surrogate pair, an integer beyond 64 bits
        return json.dumps(value, separators=(",", ":"), default=_plain).encode()


def _parse(data: bytes) -> Any:
    """The JSON in ``data``; None if it is none, or nested too deep to be written again."""
    try:
        value = loads(data)
    except ValueError:
        return None
    if data.count(b"{") + data.count(b"[") > _MAX_DEPTH:
        level = [value]
        for _ in range(_MAX_DEPTH):
            level = [part for whole in level for part in _parts(whole)]
            if not level:
                return value
        return None
    return value


def _parts(value: object) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _dict(value: object) -> Object:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _index(value: object, default: int = 0) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else default


def _longer(old: object, new: str) -> str | _Text:
    """``old`` with ``new`` after it."""
    if isinstance(old, _Text):
        old.pieces.append(new)
        return old
    return _Text(old, new) if isinstance(old, str) and old else new


def _merge(whole: Object, delta: Object) -> None:
    """Add ``delta`` to ``whole``: strings and lists grow, objects merge, labels stay, the rest is new."""
    for key, new in delta.items():
        old = whole.get(key)
        if new is None:
            whole.setdefault(key, None)
        elif isinstance(new, str):
            whole[key] = _merged_text(key, old, new)
        elif isinstance(new, dict):
            if not isinstance(old, dict):
                whole[key] = old = {}
            _merge(old, new)
        elif isinstance(new, list):
            if not isinstance(old, list):
                # Some servers send reasoning as a list of parts and the text after it as a plain string.
                whole[key] = old = [{"type": "text", "text": old}] if key == "content" and old else []
            _extend(old, new, calls=key == "tool_calls")
        else:
            whole[key] = new


def _merged_text(key: str, old: object, new: str) -> object:
    if key in _FIRST:
        return old or new
    if key in _LAST:
        return new or old
    if key == "name":  # repeated whole by some servers
        return new if not isinstance(old, str) or old == new else old + new
    if key == "content" and isinstance(old, list):
        _extend(old, [{"type": "text", "text": new}] if new else [], calls=False)
        return old
    return _longer(old, new)


def _extend(whole: list[Any], new: list[Any], *, calls: bool) -> None:
    """Entries with an ``index`` are merged by it, others appended; tool calls are also known by their id."""
    for entry in new:
        if not isinstance(entry, dict):
            whole.append(entry)
            continue
        place = entry.get("index")
        same: Object | None = None
        if isinstance(place, int):
            same = next((e for e in whole if isinstance(e, dict) and e.get("index") == place), None)
        elif calls and entry.get("id"):
            same = next((e for e in whole if isinstance(e, dict) and e.get("id") == entry["id"]), None)
        elif calls and whole and not _dict(entry.get("function")).get("name") and isinstance(whole[-1], dict):
            same = whole[-1]
        if same is None:
            same = {}
            whole.append(same)
        _merge(same, entry)


def _event(kind: str, **fields: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), _dumps({"type": kind, **fields}))


# --- chat and text completions --------------------------------------------------------------------


class _Choices(Assembler):
    """What chat and text completions share: chunks with choices, ended by ``[DONE]``."""

    __slots__ = ("_choices", "_head", "_made_up", "_usage", "_usage_sent")

    _id_prefix: ClassVar[str]
    _whole_object: ClassVar[str]
    _chunk_object: ClassVar[str]
    _growing: ClassVar[frozenset[str]]
    """Fields of a choice of which each chunk brings a piece."""

    def __init__(self) -> None:
        super().__init__()
        self._head: Object = {}
        self._made_up = {"id": f"{self._id_prefix}-{secrets.token_hex(12)}", "created": int(time.time())}
        self._choices: dict[int, Object] = {}
        self._usage: Object | None = None
        self._usage_sent = False

    def _take(self, event: Object, payload: bytes) -> None:
        if event.get("error"):
            return
        for key, value in event.items():
            if value is None or key in ("object", "obfuscation"):
                continue
            if key == "choices":
                for position, choice in enumerate(_list(value)):
                    if isinstance(choice, dict):
                        self._take_choice(choice, position)
            elif key == "usage":
                self._note_usage(value)
                self._usage_sent = self._usage_sent or not event.get("choices")
            elif key in ("id", "created", "model"):
                self._head[key] = self._head.get(key) or value
            else:
                self._head[key] = value
                self._note_usage(_dict(value).get("usage") if key == "x_groq" else None)

    def _note_usage(self, usage: object) -> None:
        if isinstance(usage, dict) and usage_of("chat", usage) is not None:
            self._usage = usage

    def _take_choice(self, choice: Object, position: int) -> None:
        held = self._choices.setdefault(_index(choice.get("index"), position), {})
        growing = {}
        for key, value in choice.items():
            if key in self._growing:
                growing[key] = value
            elif key == "finish_reason":
                held[key] = value or held.get(key)
            elif key != "index" and (value is not None or key not in held):
                held[key] = value
        _merge(held, growing)

    def _named(self, kind: str) -> Object:
        """Which answer this is: the fields with which every chunk begins."""
        head = self._head
        named = {key: head.get(key) or made_up for key, made_up in self._made_up.items()}
        return {
            "id": named["id"],
            "object": kind,
            "created": named["created"],
            "model": head.get("model", ""),
        }

    def _usage_json(self, usage: Usage | None) -> Object | None:
        return self._usage or (_chat_usage(usage) if usage is not None else None)

    def _body(self, usage: Usage | None, *, cut: bool) -> bytes:
        finish = "length" if cut and not self._ended else "stop"
        held = self._choices or {0: {}}
        choices = []
        for index in sorted(held):
            choice = {
                "index": index,
                **self._whole(held[index]),
                "finish_reason": held[index].get("finish_reason"),
            }
            choice["finish_reason"] = choice["finish_reason"] or finish
            choices.append(choice)
        body = {**self._named(self._whole_object), "choices": choices}
        body.update((key, value) for key, value in self._head.items() if key not in body)
        counted = self._usage_json(usage)
        if counted is not None:
            body["usage"] = counted
        return _dumps(body)

    def _closing(self, usage: Usage | None, *, include_usage: bool) -> Iterator[bytes]:
        chunk = self._named(self._chunk_object)
        chunk.update(
            (key, self._head[key]) for key in ("service_tier", "system_fingerprint") if key in self._head
        )
        held = self._choices or {0: {}}
        for index in sorted(held):
            if not held[index].get("finish_reason"):
                choice = {"index": index, **self._empty(), "logprobs": None, "finish_reason": "length"}
                last = {**chunk, "choices": [choice]} | ({"usage": None} if include_usage else {})
                yield b"data: %b\n\n" % _dumps(last)
        counted = self._usage_json(usage)
        if include_usage and not self._usage_sent and counted is not None:
            yield b"data: %b\n\n" % _dumps({**chunk, "choices": [], "usage": counted})
        yield b"data: [DONE]\n\n"

    @abstractmethod
    def _whole(self, held: Object) -> Object:
        """A choice of the whole answer."""

    @abstractmethod
    def _empty(self) -> Object:
        """The content of a choice that adds nothing."""


@final
class _Chat(_Choices):
    __slots__ = ()

    _id_prefix = "chatcmpl"
    _whole_object = "chat.completion"
    _chunk_object = "chat.completion.chunk"
    _growing = frozenset(["message", "logprobs", "token_ids"])

    def _take_choice(self, choice: Object, position: int) -> None:
        delta = choice.pop("delta", None)
        if isinstance(delta, dict):
            choice["message"] = delta
        elif not isinstance(choice.get("message"), dict):
            choice.pop("message", None)
        super()._take_choice(choice, position)

    def _whole(self, held: Object) -> Object:
        message = {"role": "assistant", "content": None, "refusal": None, **held.get("message", {})}
        message["role"] = message["role"] or "assistant"
        calls = [call for call in _list(message.pop("tool_calls", None)) if isinstance(call, dict)]
        if calls:
            calls.sort(key=lambda call: _index(call.get("index"), len(calls)))
            message["tool_calls"] = [_tool_call(call) for call in calls]
            if not message["content"]:
                message["content"] = None
        if isinstance(message.get("function_call"), dict):
            message["function_call"] = {"name": "", "arguments": "", **message["function_call"]}
        audio = message.get("audio")
        if isinstance(audio, dict) and isinstance(audio.get("data"), _Text):
            message["audio"] = {**audio, "data": _base64(audio["data"].pieces)}
        return {"logprobs": None, **held, "message": message}

    def _empty(self) -> Object:
        return {"delta": {} if self._choices else {"role": "assistant", "content": ""}}


def _tool_call(call: Object) -> Object:
    call = {"id": "", "type": "function", **call}
    call.pop("index", None)
    if call["type"] in ("function", None):
        call["type"] = "function"
        call["function"] = {"name": "", "arguments": "", **_dict(call.get("function"))}
    return call


def _base64(pieces: list[str]) -> str:
    """Pieces that were each encoded for themselves, as one."""
    if not any(piece.endswith("=") for piece in pieces[:-1]):
        return "".join(pieces)
    try:
        return base64.b64encode(b"".join(map(base64.b64decode, pieces))).decode()
    except ValueError:
        return "".join(pieces)


@final
class _Completions(_Choices):
    __slots__ = ()

    _id_prefix = "cmpl"
    _whole_object = "text_completion"
    _chunk_object = "text_completion"
    _growing = frozenset(["text", "logprobs", "token_ids"])

    def _whole(self, held: Object) -> Object:
        return {"logprobs": None, **held, "text": held.get("text") or ""}

    def _empty(self) -> Object:
        return {"text": ""}


def _chat_usage(usage: Usage) -> Object:
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_input_tokens,
            "audio_tokens": usage.audio_input_tokens,
        },
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "audio_tokens": usage.audio_output_tokens,
        },
    }


# --- messages -------------------------------------------------------------------------------------


@final
class _Messages(Assembler):
    __slots__ = ("_blocks", "_inputs", "_message", "_open", "_usage", "_usage_final")

    def __init__(self) -> None:
        super().__init__()
        self._message: Object = {}
        self._blocks: dict[int, Object] = {}
        self._inputs: dict[int, _Text] = {}
        """The JSON of a tool's input so far."""
        self._open: set[int] = set()
        self._usage: Object = {}
        self._usage_final = False

    def _take(self, event: Object, payload: bytes) -> None:
        kind = event.get("type")
        index = _index(event.get("index"))
        if kind == "content_block_delta":
            self._take_delta(index, _dict(event.get("delta")))
        elif kind == "content_block_start":
            self._blocks[index] = _dict(event.get("content_block"))
            self._open.add(index)
        elif kind == "content_block_stop":
            self._open.discard(index)
        elif kind == "message_start":
            self._message = _dict(event.get("message"))
            self._note_usage(self._message.pop("usage", None))
        elif kind == "message_delta":
            usage = _dict(event.get("usage"))
            self._note_usage(usage)
            self._usage_final = self._usage_final or usage.get("output_tokens") is not None
            said = {**event, **_dict(event.get("delta"))}
            for key, value in said.items():
                if key not in ("type", "delta", "usage") and (value is not None or key not in self._message):
                    self._message[key] = value
        elif kind == "message_stop":
            self._ended = True

    def _take_delta(self, index: int, delta: Object) -> None:
        block = self._blocks.get(index)
        if block is None:
            return
        partial = delta.pop("partial_json", None)
        if isinstance(partial, str):
            self._inputs.setdefault(index, _Text()).pieces.append(partial)
        citation = delta.pop("citation", None)
        if citation is not None:
            block["citations"] = [*_list(block.get("citations")), citation]
        delta.pop("type", None)
        _merge(block, delta)

    def _note_usage(self, usage: object) -> None:
        """The last count said holds (the first may be an estimate); a zero after it says nothing."""
        for key, value in _dict(usage).items():
            old = self._usage.get(key)
            if isinstance(value, int) and isinstance(old, int):
                self._usage[key] = value or old
            elif value is not None or key not in self._usage:
                self._usage[key] = value

    def _content(self, *, cut: bool) -> list[Object]:
        content = []
        for index in sorted(self._blocks):
            block = self._blocks[index]
            text = str(self._inputs.get(index, ""))
            if text.strip():
                given = _parse(text.encode("utf-8", "surrogatepass"))
                if not isinstance(given, dict):
                    if cut:
                        continue  # half a tool call must not look whole
                    given = {"INVALID_JSON": text}  # as Anthropic's documentation wraps it
                block = {**block, "input": given}
            elif cut and index in self._open and block.get("input") == {}:
                continue
            if block.get("type") == "thinking":
                block = {"signature": "", **block}
            content.append(block)
        return content

    def _whole(self, usage: Usage | None, *, content: list[Object], stop_reason: str | None) -> Object:
        message = {
            "id": "",
            "type": "message",
            "role": "assistant",
            "model": "",
            **self._message,
            "content": content,
            "stop_reason": stop_reason,
        }
        message["id"] = message["id"] or f"msg_{secrets.token_hex(12)}"
        message.setdefault("stop_sequence", None)
        message["usage"] = self._usage_json(usage)
        return message

    def _usage_json(self, usage: Usage | None) -> Object:
        counted = {"input_tokens": 0, "output_tokens": 0, **self._usage}
        if usage is None:
            return counted
        if usage_of("messages", self._usage) is None:
            counted |= _messages_usage(usage)
        elif not self._usage_final:
            counted["output_tokens"] = max(_index(counted["output_tokens"]), usage.output_tokens)
        return counted

    def _body(self, usage: Usage | None, *, cut: bool) -> bytes:
        stop_reason = self._message.get("stop_reason")
        cut = cut and not self._ended
        content = self._content(cut=cut or stop_reason == "max_tokens")
        stop_reason = stop_reason or ("max_tokens" if cut else "end_turn")
        return _dumps(self._whole(usage, content=content, stop_reason=stop_reason))

    def _closing(self, usage: Usage | None, *, include_usage: bool) -> Iterator[bytes]:
        if not self._message:
            yield _event("message_start", message=self._whole(usage, content=[], stop_reason=None))
        for index in sorted(self._open):
            yield _event("content_block_stop", index=index)
        if not self._message.get("stop_reason"):
            delta = {"stop_reason": "max_tokens", "stop_sequence": None}
            counted = {"output_tokens": self._usage_json(usage)["output_tokens"]}
            yield _event("message_delta", delta=delta, usage=counted)
        yield _event("message_stop")


def _messages_usage(usage: Usage) -> Object:
    written = usage.cache_write_tokens + usage.cache_write_1h_tokens
    return {
        "input_tokens": max(usage.input_tokens - usage.cached_input_tokens - written, 0),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": usage.cached_input_tokens,
        "output_tokens": usage.output_tokens,
    }


# --- responses ------------------------------------------------------------------------------------

_GROWING: Final = {
    "response.output_text": ("content", "text"),
    "response.refusal": ("content", "refusal"),
    "response.reasoning_text": ("content", "text"),
    "response.reasoning_summary_text": ("summary", "text"),
    "response.function_call_arguments": (None, "arguments"),
    "response.mcp_call_arguments": (None, "arguments"),
    "response.custom_tool_call_input": (None, "input"),
    "response.code_interpreter_call_code": (None, "code"),
}
"""What a ``.delta`` event adds to and ``.done`` sets: a field of a part in that list (None: of the item)."""
_PART_LISTS: Final = {"response.content_part": "content", "response.reasoning_summary_part": "summary"}
_EMPTY_PARTS: Final[dict[str, Object]] = {
    "response.output_text": {"type": "output_text", "text": "", "annotations": []},
    "response.refusal": {"type": "refusal", "refusal": ""},
    "response.reasoning_text": {"type": "reasoning_text", "text": ""},
    "response.reasoning_summary_text": {"type": "summary_text", "text": ""},
}
_CUT_STATUS: Final = {
    "web_search_call": "failed",
    "image_generation_call": "failed",
    "apply_patch_call": "in_progress",
}
"""The status of an item that was cut, where the API has no "incomplete" for it."""
_Place = tuple[str, int]


class _Item:
    """One output item on its way."""

    __slots__ = ("growing", "is_open", "parts", "parts_open", "value")

    def __init__(self, value: Object) -> None:
        self.value = value
        self.is_open = True
        self.parts: dict[_Place, Object] = {}
        self.parts_open: set[_Place] = set()
        self.growing: dict[_Place, str] = {}
        """Texts without their ``.done``, with the kind of event that adds to them."""
        for name in ("content", "summary"):
            for index, part in enumerate(_list(value.get(name))):
                self.parts[name, index] = _dict(part)

    def whole(self) -> Object:
        """The item as it stands; one that is open says that it is incomplete."""
        if not self.is_open:
            return self.value
        value = dict(self.value)
        for name in ("content", "summary"):
            places = sorted(place for place in self.parts if place[0] == name)
            if places:
                value[name] = [self.parts[place] for place in places]
        kind = value.get("type")
        if "status" in value or kind in ("message", "function_call", "reasoning"):
            value["status"] = _CUT_STATUS.get(str(kind), "incomplete")
        return value


@final
class _Responses(Assembler):
    __slots__ = ("_begun", "_final", "_items", "_next_number", "_response")

    def __init__(self) -> None:
        super().__init__()
        self._begun = False
        self._response: Object = {}
        self._items: dict[int, _Item] = {}
        self._next_number = 0
        self._final: bytes | None = None

    def _take(self, event: Object, payload: bytes) -> None:
        kind = event.get("type")
        if not isinstance(kind, str):
            return
        self._next_number = (
            max(self._next_number, _index(event.get("sequence_number"), self._next_number)) + 1
        )
        subject, _, verb = kind.rpartition(".")
        if subject in _GROWING:
            self._take_text(subject, verb, event)
        elif subject in _PART_LISTS:
            self._take_part(_PART_LISTS[subject], verb, event)
        elif subject == "response.output_item":
            value = event.get("item")
            if isinstance(value, dict) and verb in ("added", "done"):
                index = _index(event.get("output_index"), max(len(self._items) - (verb == "done"), 0))
                self._items[index] = item = _Item(value)
                item.is_open = verb == "added"
        elif kind == "response.output_text.annotation.added":
            place = "content", _index(event.get("content_index"))
            part = self._part(event, "response.output_text", place)
            if part is not None:
                part["annotations"] = [*_list(part.get("annotations")), event.get("annotation")]
        elif isinstance(event.get("response"), dict):
            self._begun, self._response = True, event["response"]
            if verb in ("completed", "incomplete", "failed"):
                self._final = bytes(_decode_final(payload).response)
                self._ended = True

    def _item(self, event: Object, subject: str) -> _Item | None:
        """The item that ``event`` is about; one that was never announced is made where its kind is clear."""
        index = _index(event.get("output_index"))
        item = self._items.get(index)
        if item is None and subject in _EMPTY_PARTS:
            name = event.get("item_id") or f"item_{index}"
            if "reasoning" in subject:
                item = _Item({"type": "reasoning", "id": name, "summary": []})
            else:
                item = _Item({"type": "message", "id": name, "role": "assistant", "content": []})
            self._items[index] = item
        return item if item is not None and item.is_open else None

    def _part(self, event: Object, subject: str, place: _Place) -> Object | None:
        item = self._item(event, subject)
        return None if item is None else item.parts.setdefault(place, dict(_EMPTY_PARTS[subject]))

    def _take_text(self, subject: str, verb: str, event: Object) -> None:
        parts, field = _GROWING[subject]
        item = self._item(event, subject)
        if item is None:
            return
        holder: Object | None = item.value
        if parts is not None:
            place = parts, _index(event.get("content_index" if parts == "content" else "summary_index"))
            holder = self._part(event, subject, place)
            if verb == "done":
                item.growing.pop(place, None)
            else:
                item.growing[place] = subject
        piece = event.get("delta") if verb == "delta" else event.get(field)
        if holder is None or not isinstance(piece, str):
            return
        holder[field] = _longer(holder.get(field), piece) if verb == "delta" else piece
        if verb == "delta" and _list(event.get("logprobs")):
            _merge(holder, {"logprobs": event["logprobs"]})

    def _take_part(self, name: str, verb: str, event: Object) -> None:
        part = event.get("part")
        subject = "response.reasoning_summary_text" if name == "summary" else "response.output_text"
        item = self._item(event, subject)
        if item is None or not isinstance(part, dict):
            return
        place = name, _index(event.get("content_index" if name == "content" else "summary_index"))
        item.parts[place] = part
        if verb == "added":
            item.parts_open.add(place)
        else:
            item.parts_open.discard(place)
            item.growing.pop(place, None)

    def _whole(self, usage: Usage | None, **fields: object) -> Object:
        response = {
            "id": "",
            "object": "response",
            "created_at": int(time.time()),
            "error": None,
            "instructions": None,
            "metadata": {},
            "model": "",
            "parallel_tool_calls": True,
            "temperature": None,
            "tool_choice": "auto",
            "tools": [],
            "top_p": None,
            **self._response,
            "output": [self._items[index].whole() for index in sorted(self._items)],
            **fields,
        }
        if not response["id"]:
            response["id"] = f"resp_{secrets.token_hex(12)}"
        if usage is not None and not response.get("usage"):
            response["usage"] = _responses_usage(usage)
        return response

    def _body(self, usage: Usage | None, *, cut: bool) -> bytes:
        if self._final is not None:
            if usage is None or self._response.get("usage"):
                return self._final
            return _dumps({**self._response, "usage": _responses_usage(usage)})
        if cut and not self._ended:
            return _dumps(self._cut(usage))
        return _dumps(self._whole(usage, status="completed", incomplete_details=None))

    def _cut(self, usage: Usage | None) -> Object:
        return self._whole(usage, status="incomplete", incomplete_details={"reason": "max_output_tokens"})

    def _numbered(self, kind: str, **fields: object) -> bytes:
        number, self._next_number = self._next_number, self._next_number + 1
        return _event(kind, sequence_number=number, **fields)

    def _closing(self, usage: Usage | None, *, include_usage: bool) -> Iterator[bytes]:
        number = self._next_number
        if not self._begun:
            self._response = self._whole(None, status="in_progress", incomplete_details=None, output=[])
            yield self._numbered("response.created", response=self._response)
        for index in sorted(self._items):
            item = self._items[index]
            if item.is_open:
                yield from self._close_item(index, item)
        yield self._numbered("response.incomplete", response=self._cut(usage))
        self._next_number = number

    def _close_item(self, output_index: int, item: _Item) -> Iterator[bytes]:
        """Texts and parts are done as far as they go; arguments of a half tool call are never said so."""
        whole = item.whole()
        where = {"item_id": whole.get("id") or "", "output_index": output_index}
        for place in sorted(item.parts):
            name, index = place
            part = item.parts[place]
            at = {**where, "content_index" if name == "content" else "summary_index": index}
            subject = item.growing.get(place)
            if subject is not None:
                field = _GROWING[subject][1]
                logprobs = {"logprobs": part.get("logprobs", [])} if subject == "response.output_text" else {}
                yield self._numbered(f"{subject}.done", **at, **{field: part.get(field, "")}, **logprobs)
            if place in item.parts_open:
                if name == "content":
                    yield self._numbered("response.content_part.done", **at, part=part)
                else:
                    kind = "response.reasoning_summary_part.done"
                    yield self._numbered(kind, **at, part=part, status="incomplete")
        yield self._numbered("response.output_item.done", output_index=output_index, item=whole)


class _Final(msgspec.Struct):
    response: msgspec.Raw


def _decode_final(payload: bytes) -> _Final:
    try:
        return _final_decoder.decode(payload)
    except ValueError:  # what only the tolerant reader takes: NaN, half a surrogate pair
        return _Final(msgspec.Raw(_dumps(loads(payload)["response"])))


_final_decoder = msgspec.json.Decoder(_Final)


def _responses_usage(usage: Usage) -> Object:
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_input_tokens,
            "cache_write_tokens": usage.cache_write_tokens + usage.cache_write_1h_tokens,
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


_ASSEMBLERS: Final[dict[Api, type[Assembler]]] = {
    "chat": _Chat,
    "completions": _Completions,
    "messages": _Messages,
    "responses": _Responses,
}
