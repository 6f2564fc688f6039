"""What an honest upstream answers, in every API shape: one answer, as JSON and as stream events.

Written from the providers' documents, not from the proxy's code, so that the two can disagree.
"""

from __future__ import annotations

import base64
import json
import re
import struct
from dataclasses import dataclass, field, replace
from typing import Any

CREATED = 1_790_000_000
SIGNATURE = "c2lnbmF0dXJlLWJ5dGVzLWtlcHQtZXhhY3Q="
Event = tuple[str | None, str]
"""(event name or None, data) of one server-sent event."""


@dataclass(frozen=True)
class Want:
    """What the test asks the upstream to answer with."""

    words: int = 8
    piece_bytes: int = 0
    """Pad every piece to this many bytes."""
    usage: str = "usual"
    """usual | absent | on_choice | on_content | every (so far): where the stream says its usage."""
    provider: str = ""
    """Whose words say the usage, with the bill of that name in ``providers``; "" for the plainest."""
    say: object = None
    """In place of the usage object, whatever this is; None for the right one."""


@dataclass
class Answer:
    """One answer, not yet in any shape."""

    model: str
    pieces: list[str] = field(default_factory=list)
    finish: str = "stop"
    tool: tuple[str, str] | None = None
    thinking: str | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    n: int = 1

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@dataclass
class Reply:
    """An answer in the shape of one API: the JSON body, the stream's events, which of them are content."""

    answer: Answer
    body: dict[str, Any]
    events: list[Event] = field(default_factory=list)
    content: set[int] = field(default_factory=set)
    """Indices of events that carry content."""
    end: int = 0
    """Index of the first event that says the answer is finished."""


def words(n: int, piece_bytes: int = 0) -> list[str]:
    """``n`` pieces: ``w0``, `` w1``, ...: order and loss are seen at a glance."""
    pieces = [("" if i == 0 else " ") + f"w{i}" for i in range(n)]
    return [p + "." * max(0, piece_bytes - len(p)) for p in pieces]


def count_tokens(request: dict[str, Any]) -> int:
    """The upstream's own count of input tokens: words of everything that is text, plus three a message."""
    found: list[str] = []

    def walk(value: Any, key: str = "") -> None:
        if isinstance(value, str):
            if key in ("content", "text", "input", "prompt", "system", "instructions", ""):
                found.append(value)
        elif isinstance(value, dict):
            for k, v in value.items():
                walk(v, k)
        elif isinstance(value, list):
            for v in value:
                walk(v, key)

    for key in ("messages", "input", "prompt", "system", "instructions"):
        if key in request:
            walk(request[key], key)
    messages = request.get("messages")
    return sum(len(t.split()) for t in found) + 3 * (len(messages) if isinstance(messages, list) else 1)


def from_schema(schema: dict[str, Any]) -> Any:
    """A value that satisfies a (simple) JSON schema."""
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type")
    if kind == "object" or "properties" in schema:
        return {k: from_schema(v) for k, v in schema.get("properties", {}).items()}
    if kind == "array":
        return [from_schema(schema.get("items", {}))]
    return {"string": "Paris", "integer": 3, "number": 1.5, "boolean": True}.get(str(kind))


def compose(request: dict[str, Any], want: Want) -> Answer:
    """What the model says to ``request``: a tool call when tools are offered, JSON when asked, else words."""
    answer = Answer(str(request.get("model")), tokens_in=count_tokens(request))
    answer.n = int(request.get("n") or 1)
    caps = [request.get(k) for k in ("max_completion_tokens", "max_tokens", "max_output_tokens")]
    limit = next((cap for cap in caps if cap), None)
    offered = request.get("tools")
    tools = [t for t in offered if isinstance(t, dict)] if isinstance(offered, list) else []
    said = json.dumps(request.get("messages", request.get("input", "")))
    answered = '"role": "tool"' in said or '"tool_result"' in said or '"function_call_output"' in said
    wants_tool = tools and not answered and request.get("tool_choice") not in ("none", {"type": "none"})
    schema = _schema(request)
    if wants_tool:
        tool = tools[0]
        function = tool.get("function") if isinstance(tool.get("function"), dict) else tool
        parameters = function.get("parameters") or tool.get("input_schema") or {}
        answer.tool = (str(function.get("name")), json.dumps(from_schema(parameters) or {}))
        answer.finish = "tool"
        answer.tokens_out = 5
    else:
        if schema is not None:
            answer.pieces = re.findall(r".{1,4}", json.dumps(from_schema(schema)))
        else:
            answer.pieces = words(want.words, want.piece_bytes)
        if limit is not None and limit < len(answer.pieces):
            answer.pieces = answer.pieces[:limit]
            answer.finish = "length"
        answer.tokens_out = len(answer.pieces) * answer.n
    thinking = request.get("thinking")
    if (isinstance(thinking, dict) and thinking.get("type") == "enabled") or request.get("reasoning_effort"):
        answer.thinking = "let me see"
        answer.tokens_out += 3
    return answer


def _schema(request: dict[str, Any]) -> dict[str, Any] | None:
    chat = request.get("response_format")
    if isinstance(chat, dict) and chat.get("type") == "json_schema":
        return dict(chat["json_schema"]["schema"])
    for holder in ("text", "output_config"):
        form = (request.get(holder) or {}).get("format") or {}
        if form.get("type") == "json_schema":
            return dict(form["schema"])
    return None


# ---------------------------------------------------------------------------------------- chat completions


def chat_usage(a: Answer) -> dict[str, Any]:
    return {
        "prompt_tokens": a.tokens_in,
        "completion_tokens": a.tokens_out,
        "total_tokens": a.tokens_in + a.tokens_out,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 3 if a.thinking else 0},
    }


def chat(request: dict[str, Any], want: Want) -> Reply:
    """OpenAI ``/chat/completions``."""
    a = compose(request, want)
    finish = {"stop": "stop", "length": "length", "tool": "tool_calls"}[a.finish]
    said = a.text if a.tool is None else None
    message: dict[str, Any] = {"role": "assistant", "content": said, "refusal": None}
    if a.tool is not None:
        function = {"name": a.tool[0], "arguments": a.tool[1]}
        message["tool_calls"] = [{"id": "call_1", "type": "function", "function": function}]
    if a.thinking:
        message["reasoning_content"] = a.thinking
    logprobs = None
    if request.get("logprobs"):
        logprobs = {"content": [_logprob(p) for p in a.pieces], "refusal": None}
    base = {"id": "chatcmpl-1", "created": CREATED, "model": a.model, "system_fingerprint": "fp_test"}
    choice = {"message": message, "logprobs": logprobs, "finish_reason": finish}
    whole = [{"index": i, **choice} for i in range(a.n)]
    body = {**base, "object": "chat.completion", "choices": whole, "usage": chat_usage(a)}
    if want.usage == "absent":
        del body["usage"]
    events: list[Event] = []
    content: set[int] = set()
    asked = bool((request.get("stream_options") or {}).get("include_usage"))

    def add(choices: list[Any], usage: dict[str, Any] | None = None, *, is_content: bool = False) -> None:
        chunk: dict[str, Any] = {**base, "object": "chat.completion.chunk", "choices": choices}
        if is_content:
            content.add(len(events))
        if want.usage == "every":
            chunk["usage"] = chat_usage(replace(a, tokens_out=len(content)))
        elif usage is not None:
            chunk["usage"] = usage
        elif asked and want.usage == "usual":
            chunk["usage"] = None
        events.append((None, json.dumps(chunk)))

    def delta(i: int, d: dict[str, Any], finish: str | None = None, **kw: Any) -> dict[str, Any]:
        return {"index": i, "delta": d, "logprobs": None, "finish_reason": finish, **kw}

    for i in range(a.n):
        add([delta(i, {"role": "assistant", "content": "" if a.tool is None else None})])
    if a.thinking:
        for i in range(a.n):
            add([delta(i, {"reasoning_content": a.thinking})], is_content=True)
    if a.tool is not None:
        name, arguments = a.tool
        function = {"name": name, "arguments": ""}
        call: dict[str, Any] = {"index": 0, "id": "call_1", "type": "function", "function": function}
        add([delta(0, {"tool_calls": [call]})], is_content=True)
        for part in re.findall(r".{1,6}", arguments):
            add([delta(0, {"tool_calls": [{"index": 0, "function": {"arguments": part}}]})], is_content=True)
    for k, piece in enumerate(a.pieces):
        last = k == len(a.pieces) - 1
        for i in range(a.n):
            logp = {"logprobs": {"content": [_logprob(piece)], "refusal": None}} if logprobs else {}
            usage = chat_usage(a) if want.usage == "on_content" and last and i == a.n - 1 else None
            add([delta(i, {"content": piece}, **logp)], usage, is_content=True)
    end = len(events)
    for i in range(a.n):
        usage = chat_usage(a) if want.usage == "on_choice" and i == a.n - 1 else None
        add([delta(i, {}, finish)], usage)
    if asked and want.usage == "usual":
        add([], chat_usage(a))
    events.append((None, "[DONE]"))
    return Reply(a, body, events, content, end)


def _logprob(token: str) -> dict[str, Any]:
    return {"token": token, "logprob": -0.25, "bytes": list(token.encode()), "top_logprobs": []}


# --------------------------------------------------------------------------------------- plain completions


def completions(request: dict[str, Any], want: Want) -> Reply:
    """OpenAI ``/completions``."""
    a = compose(request, want)
    base = {"id": "cmpl-1", "object": "text_completion", "created": CREATED, "model": a.model}
    usage = chat_usage(a)
    choices = [{"index": i, "text": a.text, "logprobs": None, "finish_reason": a.finish} for i in range(a.n)]
    events: list[Event] = []
    for piece in a.pieces:
        for i in range(a.n):
            choice = {"index": i, "text": piece, "logprobs": None, "finish_reason": None}
            events.append((None, json.dumps({**base, "choices": [choice]})))
    content = set(range(len(events)))
    end = len(events)
    for i in range(a.n):
        choice = {"index": i, "text": "", "logprobs": None, "finish_reason": a.finish}
        events.append((None, json.dumps({**base, "choices": [choice]})))
    if (request.get("stream_options") or {}).get("include_usage") and want.usage != "absent":
        events.append((None, json.dumps({**base, "choices": [], "usage": usage})))
    events.append((None, "[DONE]"))
    return Reply(a, {**base, "choices": choices, "usage": usage}, events, content, end)


# ---------------------------------------------------------------------------------------------- embeddings


def embeddings(request: dict[str, Any], want: Want) -> Reply:
    """OpenAI ``/embeddings``: a vector of four numbers for each input, base64 when asked."""
    given = request.get("input")
    inputs = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
    a = Answer(str(request.get("model")), tokens_in=max(1, count_tokens(request)))
    vector = [0.5, -0.5, 0.25, 1.0]
    coded: Any = vector
    if request.get("encoding_format") == "base64":
        coded = base64.b64encode(struct.pack("<4f", *vector)).decode()
    data = [{"object": "embedding", "index": i, "embedding": coded} for i in range(len(inputs))]
    usage = {"prompt_tokens": a.tokens_in, "total_tokens": a.tokens_in}
    return Reply(a, {"object": "list", "data": data, "model": a.model, "usage": usage})


# ----------------------------------------------------------------------------------------------- responses


def responses(request: dict[str, Any], want: Want) -> Reply:
    """OpenAI ``/responses``: typed events, no ``[DONE]``."""
    a = compose(request, want)
    usage = {
        "input_tokens": a.tokens_in,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": a.tokens_out,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": a.tokens_in + a.tokens_out,
    }
    shell: dict[str, Any] = {
        "id": "resp_1",
        "object": "response",
        "created_at": CREATED,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": request.get("instructions"),
        "metadata": {},
        "model": a.model,
        "output": [],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": request.get("tool_choice", "auto"),
        "tools": request.get("tools", []),
        "top_p": 1.0,
        "usage": None,
    }
    if a.tool is not None:
        item: dict[str, Any] = {
            "type": "function_call",
            "id": "fc_1",
            "call_id": "call_1",
            "name": a.tool[0],
            "arguments": a.tool[1],
            "status": "completed",
        }
    else:
        part = {"type": "output_text", "text": a.text, "annotations": []}
        item = {"type": "message", "id": "msg_1", "role": "assistant", "content": [part]}
        item["status"] = "completed"
    done = {**shell, "status": "completed", "output": [item], "usage": usage}
    if a.finish == "length":
        done["status"] = "incomplete"
        done["incomplete_details"] = {"reason": "max_output_tokens"}
    events: list[Event] = []
    content: set[int] = set()

    def add(kind: str, *, is_content: bool = False, **fields: Any) -> None:
        if is_content:
            content.add(len(events))
        events.append((kind, json.dumps({"type": kind, "sequence_number": len(events), **fields})))

    add("response.created", response=shell)
    add("response.in_progress", response=shell)
    where = {"output_index": 0, "item_id": item["id"]}
    if a.tool is not None:
        begun = {**item, "arguments": "", "status": "in_progress"}
        add("response.output_item.added", output_index=0, item=begun)
        for piece in re.findall(r".{1,6}", a.tool[1]):
            add("response.function_call_arguments.delta", is_content=True, delta=piece, **where)
        add("response.function_call_arguments.done", arguments=a.tool[1], name=a.tool[0], **where)
    else:
        empty = {"type": "output_text", "text": "", "annotations": []}
        begun = {**item, "content": [], "status": "in_progress"}
        add("response.output_item.added", output_index=0, item=begun)
        add("response.content_part.added", content_index=0, part=empty, **where)
        for piece in a.pieces:
            add(
                "response.output_text.delta",
                is_content=True,
                content_index=0,
                delta=piece,
                logprobs=[],
                **where,
            )
        add("response.output_text.done", content_index=0, text=a.text, logprobs=[], **where)
        add("response.content_part.done", content_index=0, part={**empty, "text": a.text}, **where)
    add("response.output_item.done", output_index=0, item=item)
    end = len(events)
    add("response.incomplete" if a.finish == "length" else "response.completed", response=done)
    return Reply(a, done, events, content, end)


# ------------------------------------------------------------------------------------------------ messages


def messages(request: dict[str, Any], want: Want) -> Reply:
    """Anthropic ``/v1/messages``."""
    a = compose(request, want)
    stop = {"stop": "end_turn", "length": "max_tokens", "tool": "tool_use"}[a.finish]
    usage = {
        "input_tokens": a.tokens_in,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": a.tokens_out,
    }
    blocks: list[dict[str, Any]] = []
    if a.thinking:
        blocks.append({"type": "thinking", "thinking": a.thinking, "signature": SIGNATURE})
    if a.tool is not None:
        name, arguments = a.tool
        blocks.append({"type": "tool_use", "id": "toolu_1", "name": name, "input": json.loads(arguments)})
    else:
        blocks.append({"type": "text", "text": a.text})
    base: dict[str, Any] = {"id": "msg_1", "type": "message", "role": "assistant", "model": a.model}
    body = {**base, "content": blocks, "stop_reason": stop, "stop_sequence": None, "usage": usage}
    events: list[Event] = []
    content: set[int] = set()

    def add(kind: str, *, is_content: bool = False, **fields: Any) -> None:
        if is_content:
            content.add(len(events))
        events.append((kind, json.dumps({"type": kind, **fields})))

    start: dict[str, Any] = {**base, "content": [], "stop_reason": None, "stop_sequence": None}
    if want.usage != "absent":
        start["usage"] = {**usage, "output_tokens": 1}
    add("message_start", message=start)
    add("ping")
    for index, block in enumerate(blocks):
        kind = block["type"]
        if kind == "thinking":
            opening: dict[str, Any] = {"type": "thinking", "thinking": "", "signature": ""}
            deltas = [
                {"type": "thinking_delta", "thinking": a.thinking},
                {"type": "signature_delta", "signature": SIGNATURE},
            ]
        elif kind == "tool_use":
            opening = {**block, "input": {}}
            parts = re.findall(r".{1,6}", a.tool[1] if a.tool else "")
            deltas = [{"type": "input_json_delta", "partial_json": p} for p in ["", *parts]]
        else:
            opening = {"type": "text", "text": ""}
            deltas = [{"type": "text_delta", "text": p} for p in a.pieces]
        add("content_block_start", index=index, content_block=opening)
        for d in deltas:
            add("content_block_delta", is_content=True, index=index, delta=d)
        add("content_block_stop", index=index)
    end = len(events)
    last = {"delta": {"stop_reason": stop, "stop_sequence": None}}
    if want.usage == "absent":
        del body["usage"]
        add("message_delta", **last)
    else:
        add("message_delta", **last, usage={"output_tokens": a.tokens_out})
    add("message_stop")
    return Reply(a, body, events, content, end)


def saying(reply: Reply, usage: object) -> Reply:
    """``reply`` with ``usage`` in place of every usage object in it."""

    def put(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: usage if k == "usage" and v is not None else put(v) for k, v in value.items()}
        return [put(v) for v in value] if isinstance(value, list) else value

    events = [(n, d if d == "[DONE]" else json.dumps(put(json.loads(d)))) for n, d in reply.events]
    return replace(reply, body=put(reply.body), events=events)


def encode(event: Event, eol: str = "\n") -> bytes:
    """One server-sent event on the wire."""
    name, data = event
    head = f"event: {name}{eol}" if name else ""
    return f"{head}data: {data}{eol}{eol}".encode()


BY_PATH = {
    "/chat/completions": chat,
    "/completions": completions,
    "/embeddings": embeddings,
    "/responses": responses,
    "/messages": messages,
}
"""The longest suffix that matches the request's path names the shape."""
