"""A chat completion (OpenAI and compatible) as an Anthropic answer (``/v1/messages``), whole or streamed."""

from __future__ import annotations

import re
from typing import Any

from apportion.measure.usage import Usage
from apportion.serve.translate.common import (
    JSON,
    ErrorLike,
    arguments_text,
    as_dict,
    as_list,
    as_str,
    parse_arguments,
    sse,
    without_index,
)
from apportion.serve.translate.common import Stream as BaseStream
from apportion.serve.translate.errors import error_event
from apportion.serve.translate.usage import messages_usage
from apportion.serve.wire import loads, usage_in

STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}


def _stop(finish: str, matched: object, calls: bool) -> tuple[str, str | None]:
    """Stop reason, sequence. Some servers say "stop" after tool calls; vLLM and SGLang name what matched."""
    if finish == "stop" and calls:
        return "tool_use", None
    if finish == "stop" and isinstance(matched, str):
        return "stop_sequence", matched
    return STOP_REASONS.get(finish, "end_turn"), None


def _matched(choice: JSON) -> object:
    return choice.get("stop_reason") or choice.get("matched_stop")


def response(body: JSON) -> JSON:
    """The Anthropic message for a chat completion (its first choice)."""
    choices = as_list(body.get("choices"))
    choice = as_dict(choices[0]) if choices else {}
    message = as_dict(choice.get("message"))
    blocks: list[JSON] = []
    signed = without_index(message.get("thinking_blocks"))
    thoughts = as_str(message.get("reasoning_content")) or as_str(message.get("reasoning"))
    if signed:
        blocks += signed
    elif thoughts:
        blocks.append({"type": "thinking", "thinking": thoughts, "signature": ""})
    content = message.get("content")
    texts = (
        [content] if isinstance(content, str) else [as_str(as_dict(p).get("text")) for p in as_list(content)]
    )
    texts.append(as_str(message.get("refusal")))
    blocks += [{"type": "text", "text": t} for t in texts if t]
    calls = [as_dict(c) for c in as_list(message.get("tool_calls"))]
    if message.get("function_call"):
        calls.append({"function": message["function_call"]})
    for i, call in enumerate(calls):
        function = as_dict(call.get("function"))
        blocks.append(
            {
                "type": "tool_use",
                "id": as_str(call.get("id")) or _call_id(as_str(body.get("id")), i),
                "name": as_str(function.get("name")),
                "input": parse_arguments(function.get("arguments")),
            }
        )
    reason, sequence = _stop(as_str(choice.get("finish_reason")), _matched(choice), bool(calls))
    if message.get("refusal"):
        reason = "refusal"
    usage = usage_in(body)
    return {
        "id": as_str(body.get("id")),
        "type": "message",
        "role": "assistant",
        "model": as_str(body.get("model")),
        "content": blocks,
        "stop_reason": reason,
        "stop_sequence": sequence,
        "usage": messages_usage(usage or Usage()),
    }


def _call_id(answer_id: str, index: int) -> str:
    """An id for a tool call whose server gave none."""
    return f"toolu_{re.sub('[^A-Za-z0-9]', '', answer_id)}{index}"


class Stream(BaseStream):
    """Chat chunks into Anthropic events.

    Deltas pass on at once. ``message_delta`` and ``message_stop`` wait for the end of the upstream's stream,
    as its usage comes after its finish reason. ``usage`` is what is known when the stream starts (the input,
    perhaps only counted by the proxy).
    """

    def __init__(self, *, usage: Usage | None = None) -> None:
        super().__init__()
        self._usage = usage or Usage()
        self._begun = False
        self._id = ""
        self._block = -1
        self._open: str | None = None  # the kind of the open block
        self._calls: dict[int, int] = {}  # the call's index at the upstream -> its block
        self._reason: tuple[str, str | None] | None = None
        self._refused = False

    def feed(self, event_name: bytes | None, data: bytes) -> bytes:
        if self.ended:
            return b""
        if data.strip() == b"[DONE]":
            return self.finish()
        chunk = loads(data)
        if not isinstance(chunk, dict):
            raise ValueError("a stream event must be a JSON object")
        if chunk.get("error") or event_name == b"error" or chunk.get("object") == "error":
            return self.error(chunk)
        usage = usage_in(chunk)
        if usage is not None:
            self._usage = usage
        out = [self._begin(chunk)]
        for choice in as_list(chunk.get("choices")):
            if isinstance(choice, dict) and choice.get("index", 0) == 0:
                self._choice(choice, out)
        return b"".join(out)

    def finish(self) -> bytes:
        if self.ended:
            return b""
        out = [self._begin({})]
        self._close(out)
        self.ended = True
        reason, sequence = self._reason or _stop("stop", None, bool(self._calls))
        if self._refused:
            reason = "refusal"
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        usage = messages_usage(self._usage)
        usage.pop("cache_creation", None)
        out.append(_event("message_delta", delta=delta, usage=usage))
        out.append(_event("message_stop"))
        return b"".join(out)

    def error(self, error: ErrorLike) -> bytes:
        if self.ended:
            return b""
        self.ended = True
        return error_event(error, "messages")

    def _begin(self, chunk: JSON) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        self._id = as_str(chunk.get("id"))
        message: JSON = {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": as_str(chunk.get("model")),
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": messages_usage(self._usage),
        }
        return _event("message_start", message=message)

    def _choice(self, choice: JSON, out: list[bytes]) -> None:
        delta = as_dict(choice.get("delta"))
        thought = delta.get("reasoning_content") or delta.get("reasoning")
        if thought and isinstance(thought, str):
            self._ensure("thinking", {"thinking": "", "signature": ""}, out)
            self._delta("thinking_delta", "thinking", thought, out)
        for block in as_list(delta.get("thinking_blocks")):
            self._thinking_block(as_dict(block), out)
        text = delta.get("content")
        texts = [text] if isinstance(text, str) else [as_str(as_dict(p).get("text")) for p in as_list(text)]
        if delta.get("refusal"):
            self._refused = True
            texts.append(as_str(delta["refusal"]))
        for text in filter(None, texts):
            self._ensure("text", {"text": ""}, out)
            self._delta("text_delta", "text", text, out)
        calls = as_list(delta.get("tool_calls"))
        if delta.get("function_call"):
            calls = [{"index": 0, "function": delta["function_call"]}]
        for call in calls:
            self._call(as_dict(call), out)
        finish = choice.get("finish_reason")
        if finish:
            self._reason = _stop(as_str(finish), _matched(choice), bool(self._calls))
            self._close(out)

    def _thinking_block(self, block: JSON, out: list[bytes]) -> None:
        """The signature that closes the thinking already streamed, or a block that is sent whole."""
        if block.get("type") == "redacted_thinking":
            self._close(out)
            self._ensure("redacted_thinking", {"data": as_str(block.get("data"))}, out)
            self._close(out)
        elif block.get("signature"):
            if self._open != "thinking":
                self._ensure("thinking", {"thinking": "", "signature": ""}, out)
                if block.get("thinking"):
                    self._delta("thinking_delta", "thinking", as_str(block["thinking"]), out)
            self._delta("signature_delta", "signature", as_str(block["signature"]), out)
            self._close(out)

    def _call(self, call: JSON, out: list[bytes]) -> None:
        function = as_dict(call.get("function"))
        index = call.get("index")
        if not isinstance(index, int):  # some servers number nothing and send each call whole
            index = len(self._calls) if call.get("id") or function.get("name") else len(self._calls) - 1
        if index not in self._calls:
            self._close(out)
            block = {
                "id": as_str(call.get("id")) or _call_id(self._id, index),
                "name": as_str(function.get("name")),
                "input": {},
            }
            self._ensure("tool_use", block, out)
            self._calls[index] = self._block
        arguments = arguments_text(function.get("arguments"))
        if arguments:
            delta = {"type": "input_json_delta", "partial_json": arguments}
            out.append(_event("content_block_delta", index=self._calls[index], delta=delta))

    def _ensure(self, kind: str, block: JSON, out: list[bytes]) -> None:
        """Have a block of ``kind`` open."""
        if self._open == kind:
            return
        self._close(out)
        self._block += 1
        self._open = kind
        out.append(_event("content_block_start", index=self._block, content_block={"type": kind, **block}))

    def _delta(self, kind: str, name: str, value: str, out: list[bytes]) -> None:
        out.append(_event("content_block_delta", index=self._block, delta={"type": kind, name: value}))

    def _close(self, out: list[bytes]) -> None:
        if self._open is not None:
            self._open = None
            out.append(_event("content_block_stop", index=self._block))


def _event(kind: str, **fields: Any) -> bytes:
    return sse({"type": kind, **fields}, kind)
