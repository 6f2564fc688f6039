"""A chat completion as a responses answer (OpenAI ``/v1/responses``), whole or streamed."""

from __future__ import annotations

from typing import Any

from apportion.measure.usage import Usage
from apportion.serve.translate.common import (
    JSON,
    ErrorLike,
    arguments_text,
    as_dict,
    as_list,
    as_str,
    seal,
    sse,
)
from apportion.serve.translate.common import Stream as BaseStream
from apportion.serve.translate.errors import error_event
from apportion.serve.translate.usage import responses_usage
from apportion.serve.wire import loads, usage_in

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
_ECHOED = (
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "metadata",
    "prompt_cache_key",
    "safety_identifier",
    "service_tier",
    "store",
    "temperature",
    "top_logprobs",
    "top_p",
    "truncation",
    "user",
)


def _frame(asked: JSON, chat_id: str, model: str, created_s: int) -> JSON:
    """The response object around its output: what was asked, echoed as OpenAI does."""
    parallel = asked.get("parallel_tool_calls")
    return {
        "id": f"resp_{_stem(chat_id)}",
        "object": "response",
        "created_at": created_s,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": model,
        "output": [],
        "parallel_tool_calls": True if parallel is None else parallel,
        "previous_response_id": None,
        "tool_choice": asked.get("tool_choice") or "auto",
        "tools": asked.get("tools") or [],
        "usage": None,
        **{name: asked.get(name) for name in _ECHOED},
        "reasoning": {"effort": None, "summary": None, **as_dict(asked.get("reasoning"))},
        "text": {"format": {"type": "text"}, **as_dict(asked.get("text"))},
        "metadata": asked.get("metadata") or {},
    }


def _stem(chat_id: str) -> str:
    return chat_id.removeprefix("chatcmpl-").removeprefix("msg_")


def _close(frame: JSON, output: list[JSON], finish: str, usage: Usage | None) -> JSON:
    reason = _INCOMPLETE.get(finish)
    return {
        **frame,
        "status": "incomplete" if reason else "completed",
        "incomplete_details": {"reason": reason} if reason else None,
        "output": output,
        "usage": responses_usage(usage) if usage else None,
    }


def response(body: JSON, asked: JSON, *, created_s: int) -> JSON:
    """The response object for a chat completion (its first choice) to the responses request ``asked``."""
    choices = as_list(body.get("choices"))
    choice = as_dict(choices[0]) if choices else {}
    message = as_dict(choice.get("message"))
    stem = _stem(as_str(body.get("id")))
    output: list[JSON] = []
    finish = as_str(choice.get("finish_reason"))
    thoughts = as_str(message.get("reasoning_content")) or as_str(message.get("reasoning"))
    signed = as_list(message.get("thinking_blocks"))
    if thoughts or signed:
        item = _reasoning_item(
            f"rs_{stem}_0", [{"type": "summary_text", "text": thoughts}] if thoughts else []
        )
        output.append({**item, "encrypted_content": seal(signed)} if signed else item)
    text, refusal = message.get("content"), as_str(message.get("refusal"))
    if not isinstance(text, str):
        text = "".join(as_str(as_dict(p).get("text")) for p in as_list(text))
    if text or refusal:
        logprobs = _logprobs(as_dict(choice.get("logprobs")).get("content"))
        parts = [_text_part(text, logprobs)] if text else []
        if refusal:
            parts.append({"type": "refusal", "refusal": refusal})
        status = "incomplete" if finish in _INCOMPLETE else "completed"
        output.append(_message_item(f"msg_{stem}_{len(output)}", parts, status))
    for call in as_list(message.get("tool_calls")):
        output.append(_call_item(as_dict(call), stem, len(output)))
    frame = _frame(asked, as_str(body.get("id")), as_str(body.get("model")), created_s)
    return _close(frame, output, finish, usage_in(body))


def _reasoning_item(item_id: str, summary: list[JSON]) -> JSON:
    return {"id": item_id, "type": "reasoning", "summary": summary}


def _message_item(item_id: str, content: list[JSON], status: str) -> JSON:
    return {"id": item_id, "type": "message", "status": status, "role": "assistant", "content": content}


def _text_part(text: str, logprobs: list[JSON]) -> JSON:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _call_item(call: JSON, stem: str, index: int) -> JSON:
    """The output item of a chat tool call, complete."""
    call_id = as_str(call.get("id")) or f"call_{stem}_{index}"
    if call.get("type") == "custom":
        custom = as_dict(call.get("custom"))
        said = {"name": as_str(custom.get("name")), "input": as_str(custom.get("input"))}
        return {"id": f"ctc_{stem}_{index}", "type": "custom_tool_call", "call_id": call_id, **said}
    function = as_dict(call.get("function"))
    said = {"name": as_str(function.get("name")), "arguments": arguments_text(function.get("arguments"))}
    return {
        "id": f"fc_{stem}_{index}",
        "type": "function_call",
        "status": "completed",
        "call_id": call_id,
        **said,
    }


def _logprobs(content: object) -> list[JSON]:
    """Chat logprobs in responses form, where ``bytes`` is never null."""

    def one(entry: JSON) -> JSON:
        raw = entry.get("bytes")
        token = as_str(entry.get("token"))
        given = raw if isinstance(raw, list) else list(token.encode("utf-8", "replace"))
        return {"token": token, "bytes": given, "logprob": entry.get("logprob", 0.0)}

    return [
        {
            **one(as_dict(e)),
            "top_logprobs": [one(as_dict(t)) for t in as_list(as_dict(e).get("top_logprobs"))],
        }
        for e in as_list(content)
    ]


class Stream(BaseStream):
    """Chat chunks into the typed events of the responses API, numbered without gaps.

    Deltas pass on at once. ``response.completed`` (or ``incomplete``) waits for the end of the upstream's
    stream, as usage comes after the finish reason.
    """

    def __init__(self, asked: JSON, *, created_s: int) -> None:
        super().__init__()
        self._asked = asked
        self._created_s = created_s
        self._frame: JSON | None = None
        self._stem = ""
        self._sequence = -1
        self._output: list[JSON] = []
        self._open: JSON | None = None  # the reasoning or message item being written
        self._calls: dict[int, JSON] = {}  # the call's index at the upstream -> its open item
        self._places: dict[str, int] = {}  # item id -> output index
        self._closed: set[str] = set()
        self._pieces: dict[str, list[str]] = {}  # item id -> what its open part holds so far
        self._finish = ""
        self._usage: Usage | None = None

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
        self._usage = usage or self._usage
        out: list[bytes] = []
        self._begin(chunk, out)
        for choice in as_list(chunk.get("choices")):
            if isinstance(choice, dict) and choice.get("index", 0) == 0:
                self._choice(choice, out)
        return b"".join(out)

    def finish(self) -> bytes:
        if self.ended:
            return b""
        out: list[bytes] = []
        frame = self._begin({}, out)
        self._close_all(out)
        self.ended = True
        whole = _close(frame, self._output, self._finish, self._usage)
        self._emit(f"response.{whole['status']}", out, response=whole)
        return b"".join(out)

    def error(self, error: ErrorLike) -> bytes:
        if self.ended:
            return b""
        self.ended = True
        self._sequence += 1
        return error_event(error, "responses", self._sequence)

    def _emit(self, kind: str, out: list[bytes], **fields: Any) -> None:
        self._sequence += 1
        out.append(sse({"type": kind, "sequence_number": self._sequence, **fields}, kind))

    def _begin(self, chunk: JSON, out: list[bytes]) -> JSON:
        if self._frame is None:
            chat_id = as_str(chunk.get("id"))
            self._stem = _stem(chat_id)
            self._frame = _frame(self._asked, chat_id, as_str(chunk.get("model")), self._created_s)
            self._emit("response.created", out, response=self._frame)
            self._emit("response.in_progress", out, response=self._frame)
        return self._frame

    def _choice(self, choice: JSON, out: list[bytes]) -> None:
        delta = as_dict(choice.get("delta"))
        thought = delta.get("reasoning_content") or delta.get("reasoning")
        if thought and isinstance(thought, str):
            self._think(thought, out)
        signed = [
            b
            for b in as_list(delta.get("thinking_blocks"))
            if as_dict(b).get("signature") or as_dict(b).get("data")
        ]
        if signed:
            self._sign(signed, out)
        text = delta.get("content")
        texts = [text] if isinstance(text, str) else [as_str(as_dict(p).get("text")) for p in as_list(text)]
        for text in filter(None, texts):
            self._say("output_text", text, _logprobs(as_dict(choice.get("logprobs")).get("content")), out)
        if delta.get("refusal"):
            self._say("refusal", as_str(delta["refusal"]), [], out)
        for call in as_list(delta.get("tool_calls")):
            self._call(as_dict(call), out)
        finish = choice.get("finish_reason")
        if finish:
            self._finish = as_str(finish)
            self._close_all(out)

    # reasoning

    def _think(self, text: str, out: list[bytes]) -> None:
        item = self._ensure("reasoning", out)
        where = self._where(item)
        if not item["summary"]:
            item["summary"].append({"type": "summary_text", "text": ""})
            part = {"type": "summary_text", "text": ""}
            self._emit("response.reasoning_summary_part.added", out, **where, summary_index=0, part=part)
        self._pieces.setdefault(item["id"], []).append(text)
        self._emit("response.reasoning_summary_text.delta", out, **where, summary_index=0, delta=text)

    def _sign(self, blocks: list[Any], out: list[bytes]) -> None:
        item = self._ensure("reasoning", out)
        item["_signed"] = item.get("_signed", []) + blocks

    # text and refusals

    def _say(self, kind: str, text: str, logprobs: list[JSON], out: list[bytes]) -> None:
        item = self._ensure("message", out)
        if not item["content"] or item["content"][-1]["type"] != kind:
            self._close_part(item, out)
            part = _text_part("", []) if kind == "output_text" else {"type": "refusal", "refusal": ""}
            item["content"].append(part)
            where = self._where(item)
            self._emit(
                "response.content_part.added", out, **where, content_index=len(item["content"]) - 1, part=part
            )
        part = item["content"][-1]
        self._pieces.setdefault(item["id"], []).append(text)
        where = {**self._where(item), "content_index": len(item["content"]) - 1}
        if kind == "output_text":
            part["logprobs"] += logprobs
            self._emit("response.output_text.delta", out, **where, delta=text, logprobs=logprobs)
        else:
            self._emit("response.refusal.delta", out, **where, delta=text)

    def _close_part(self, item: JSON, out: list[bytes]) -> None:
        if not item["content"]:
            return
        part = item["content"][-1]
        part["text" if part["type"] == "output_text" else "refusal"] = self._written(item)
        where = {**self._where(item), "content_index": len(item["content"]) - 1}
        if part["type"] == "output_text":
            done = {"text": part["text"], "logprobs": part["logprobs"]}
            self._emit("response.output_text.done", out, **where, **done)
        else:
            self._emit("response.refusal.done", out, **where, refusal=part["refusal"])
        self._emit("response.content_part.done", out, **where, part=part)

    # tool calls

    def _call(self, call: JSON, out: list[bytes]) -> None:
        custom = call.get("type") == "custom" or "custom" in call
        said = as_dict(call.get("custom" if custom else "function"))
        index = call.get("index")
        if not isinstance(index, int):  # some servers number nothing and send each call whole
            index = len(self._calls) if call.get("id") or said.get("name") else len(self._calls) - 1
        if index not in self._calls:
            self._close_open(out)
            key = "input" if custom else "arguments"
            begun = {**call, ("custom" if custom else "function"): {"name": said.get("name"), key: ""}}
            item = _call_item(begun, self._stem, len(self._output))
            if not custom:
                item["status"] = "in_progress"
            self._calls[index] = item
            self._add(item, out)
        item = self._calls[index]
        more = arguments_text(said.get("input" if item["type"] == "custom_tool_call" else "arguments"))
        if not more or item["id"] in self._closed:
            return
        self._pieces.setdefault(item["id"], []).append(more)
        if item["type"] == "custom_tool_call":
            self._emit("response.custom_tool_call_input.delta", out, **self._where(item), delta=more)
        else:
            self._emit("response.function_call_arguments.delta", out, **self._where(item), delta=more)

    # items

    def _written(self, item: JSON) -> str:
        """All that was written to the open part of ``item``, which thereby closes."""
        return "".join(self._pieces.pop(item["id"], ()))

    def _where(self, item: JSON) -> JSON:
        return {"item_id": item["id"], "output_index": self._places[item["id"]]}

    def _add(self, item: JSON, out: list[bytes]) -> None:
        self._places[item["id"]] = len(self._output)
        self._output.append(item)
        self._emit("response.output_item.added", out, output_index=len(self._output) - 1, item=item)

    def _ensure(self, kind: str, out: list[bytes]) -> JSON:
        """The open item, which is of ``kind``."""
        if self._open is not None and self._open["type"] == kind:
            return self._open
        self._close_open(out)
        place = len(self._output)
        if kind == "reasoning":
            item = _reasoning_item(f"rs_{self._stem}_{place}", [])
        else:
            item = _message_item(f"msg_{self._stem}_{place}", [], "in_progress")
        self._open = item
        self._add(item, out)
        return item

    def _close_open(self, out: list[bytes]) -> None:
        item = self._open
        if item is None:
            return
        self._open = None
        where = self._where(item)
        if item["type"] == "message":
            self._close_part(item, out)
            item["status"] = "incomplete" if self._finish in _INCOMPLETE else "completed"
        else:
            signed = item.pop("_signed", None)
            if signed:
                item["encrypted_content"] = seal(signed)
            if item["summary"]:
                part = item["summary"][0]
                part["text"] = self._written(item)
                text = {"summary_index": 0, "text": part["text"]}
                self._emit("response.reasoning_summary_text.done", out, **where, **text)
                self._emit("response.reasoning_summary_part.done", out, **where, summary_index=0, part=part)
        self._emit("response.output_item.done", out, output_index=where["output_index"], item=item)

    def _close_all(self, out: list[bytes]) -> None:
        self._close_open(out)
        for item in self._calls.values():
            if item["id"] in self._closed:
                continue
            self._closed.add(item["id"])
            where = self._where(item)
            item["input" if item["type"] == "custom_tool_call" else "arguments"] = self._written(item)
            if item["type"] == "custom_tool_call":
                self._emit("response.custom_tool_call_input.done", out, **where, input=item["input"])
            else:
                item["status"] = "incomplete" if self._finish in _INCOMPLETE else "completed"
                done = {"name": item["name"], "arguments": item["arguments"]}
                self._emit("response.function_call_arguments.done", out, **where, **done)
            self._emit("response.output_item.done", out, output_index=where["output_index"], item=item)
