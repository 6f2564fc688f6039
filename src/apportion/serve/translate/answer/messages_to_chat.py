"""An Anthropic answer (``/v1/messages``) as a chat completion (OpenAI), whole or streamed."""

from __future__ import annotations

from apportion.serve.translate.common import JSON, ErrorLike, as_dict, as_list, as_str, sse
from apportion.serve.translate.common import Stream as BaseStream
from apportion.serve.translate.errors import error_event
from apportion.serve.translate.usage import chat_usage
from apportion.serve.wire import dumps, loads, merge_messages_usage, usage_of

FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


def response(body: JSON, *, created_s: int) -> JSON:
    """The chat completion for an Anthropic message. ``created_s`` is the Unix time to put in it."""
    text, thoughts, thinking, calls = [], [], [], []
    for block in as_list(body.get("content")):
        block = as_dict(block)
        kind = block.get("type")
        if kind == "text":
            text.append(as_str(block.get("text")))
        elif kind == "thinking":
            thoughts.append(as_str(block.get("thinking")))
            thinking.append(block)
        elif kind == "redacted_thinking":
            thinking.append(block)
        elif kind == "tool_use":
            calls.append(
                {
                    "id": block.get("id"),
                    "type": "function",
                    "function": {
                        "name": block.get("name"),
                        "arguments": dumps(block.get("input") or {}).decode(),
                    },
                }
            )
    message: JSON = {"role": "assistant", "content": "".join(text) if text else None, "refusal": None}
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    if thinking:
        message["thinking_blocks"] = thinking
    if calls:
        message["tool_calls"] = calls
    elif not text:
        message["content"] = ""
    stop = as_str(body.get("stop_reason"))
    if stop == "refusal" and not text:
        message["refusal"] = as_dict(body.get("stop_details")).get("explanation")
    out: JSON = {
        "id": as_str(body.get("id")),
        "object": "chat.completion",
        "created": created_s,
        "model": as_str(body.get("model")),
        "choices": [
            {
                "index": 0,
                "message": message,
                "logprobs": None,
                "finish_reason": FINISH_REASONS.get(stop, "stop"),
            }
        ],
    }
    usage = usage_of("messages", body.get("usage"))
    if usage is not None:
        out["usage"] = chat_usage(usage)
    return out


class Stream(BaseStream):
    """Anthropic events into chat chunks.

    Text, reasoning and tool arguments pass on at once. A thinking block, whole and with its signature,
    follows in ``thinking_blocks`` when it closes. The usage chunk comes only if the client asked
    (``include_usage``).
    """

    def __init__(self, *, created_s: int, include_usage: bool) -> None:
        super().__init__()
        self._head: JSON = {"id": "", "object": "chat.completion.chunk", "created": created_s, "model": ""}
        self._include_usage = include_usage
        self._usage: JSON = {}
        self._blocks: dict[int, JSON] = {}
        self._calls = -1
        self._thoughts = -1
        self._thought: list[str] = []  # of the open thinking block
        self._begun = False
        self._finished = False

    def feed(self, event_name: bytes | None, data: bytes) -> bytes:
        if self.ended:
            return b""
        event = loads(data)
        if not isinstance(event, dict):
            raise ValueError("a stream event must be a JSON object")
        kind = as_str(event.get("type")) or (event_name or b"").decode("utf-8", "replace")
        if kind == "content_block_delta":
            return self._delta(self._blocks.get(_index(event), {}), as_dict(event.get("delta")))
        if kind == "content_block_start":
            return self._start(_index(event), as_dict(event.get("content_block")))
        if kind == "content_block_stop":
            return self._stop(self._blocks.pop(_index(event), {}))
        if kind == "message_start":
            message = as_dict(event.get("message"))
            self._head.update(id=as_str(message.get("id")), model=as_str(message.get("model")))
            self._count(message.get("usage"))
            return self._begin()
        if kind == "message_delta":
            self._count(event.get("usage"))
            stop = as_dict(event.get("delta")).get("stop_reason")
            return self._finish(as_str(stop)) if stop else b""
        if kind == "message_stop":
            return self.finish()
        if kind == "error":
            return self.error(event)
        return b": ping\n\n" if kind == "ping" else b""

    def finish(self) -> bytes:
        if self.ended:
            return b""
        out = b"" if self._finished else self._finish("end_turn")
        self.ended = True
        usage = usage_of("messages", self._usage) if self._include_usage else None
        if usage is not None:  # an unknown one is not said to be nothing; whoever counts it says it
            out += sse({**self._head, "choices": [], "usage": chat_usage(usage)})
        return out + b"data: [DONE]\n\n"

    def error(self, error: ErrorLike) -> bytes:
        if self.ended:
            return b""
        self.ended = True
        return error_event(error, "chat")

    def _chunk(self, delta: JSON, finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        usage: JSON = {"usage": None} if self._include_usage else {}
        out = sse({**self._head, "choices": [choice], **usage})
        return out if self._begun else self._begin() + out

    def _begin(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        return self._chunk({"role": "assistant", "content": "", "refusal": None})

    def _finish(self, stop_reason: str) -> bytes:
        if self._finished:
            return b""
        self._finished = True
        return self._chunk({}, FINISH_REASONS.get(stop_reason, "stop"))

    def _count(self, usage: object) -> None:
        """Anthropic's counts are cumulative; an event names only those that changed."""
        self._usage = merge_messages_usage(self._usage, usage)

    def _start(self, index: int, block: JSON) -> bytes:
        kind = block.get("type")
        block = dict(block)
        self._blocks[index] = block
        self._thought = []
        if kind == "text" and as_str(block.get("text")):
            return self._chunk({"content": block["text"]})
        if kind == "thinking" and as_str(block.get("thinking")):
            return self._chunk({"reasoning_content": block["thinking"]})
        if kind == "tool_use":
            self._calls += 1
            block["_call"] = self._calls
            function = {"name": block.get("name"), "arguments": ""}
            call = {"index": self._calls, "id": block.get("id"), "type": "function", "function": function}
            return self._chunk({"tool_calls": [call]})
        return b""

    def _delta(self, block: JSON, delta: JSON) -> bytes:
        kind = delta.get("type")
        if kind == "text_delta" and as_str(delta.get("text")):
            return self._chunk({"content": delta["text"]})
        if kind == "input_json_delta" and as_str(delta.get("partial_json")) and "_call" in block:
            block["_streamed"] = True
            return self._arguments(block, delta["partial_json"])
        if kind == "thinking_delta" and as_str(delta.get("thinking")):
            self._thought.append(delta["thinking"])
            return self._chunk({"reasoning_content": delta["thinking"]})
        if kind == "signature_delta":
            block["signature"] = as_str(block.get("signature")) + as_str(delta.get("signature"))
        return b""

    def _stop(self, block: JSON) -> bytes:
        kind = block.get("type")
        if kind == "tool_use" and not block.get("_streamed"):
            return self._arguments(block, dumps(block.get("input") or {}).decode())
        if kind == "thinking" and block.get("signature"):
            block["thinking"] = as_str(block.get("thinking")) + "".join(self._thought)
        elif kind != "redacted_thinking":
            return b""
        self._thoughts += 1  # openai's accumulator demands an index in every list
        return self._chunk({"thinking_blocks": [{"index": self._thoughts, **block}]})

    def _arguments(self, block: JSON, arguments: str) -> bytes:
        return self._chunk({"tool_calls": [{"index": block["_call"], "function": {"arguments": arguments}}]})


def _index(event: JSON) -> int:
    index = event.get("index")
    return index if isinstance(index, int) else 0
