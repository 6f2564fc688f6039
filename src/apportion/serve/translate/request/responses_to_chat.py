"""A responses request (OpenAI ``/v1/responses``) as a chat request. Only what needs no state on a server."""

from __future__ import annotations

from typing import Any

from apportion.serve.translate.common import (
    JSON,
    Dropped,
    Traits,
    as_dict,
    as_list,
    as_str,
    limit_field,
    refuse,
    unseal,
    unsupported,
    want,
)

_STATEFUL = {
    "previous_response_id": "refers to an answer stored on a server",
    "conversation": "refers to a conversation stored on a server",
    "prompt": "refers to a prompt stored on a server",
    "background": "asks for work that goes on without a connection",
    "context_management": "asks the server to compact the conversation",
}
_DROPPABLE = ("max_tool_calls", "store", "context")


def request(body: JSON, traits: Traits, dropped: Dropped) -> JSON:
    """The chat request for a responses request. Fields neither API knows pass through untouched.

    Raises:
        InvalidRequestError: malformed.
        UnsupportedError: needs state or tools on a server (``previous_response_id``, built-in tools, ...).
    """
    rest = dict(body)
    for name, why in _STATEFUL.items():
        if rest.pop(name, None):
            raise unsupported(name, why, "Send the whole conversation in `input`.")
    for name in _DROPPABLE:
        if rest.pop(name, None):
            dropped.add(name)
    if rest.pop("truncation", "disabled") not in ("disabled", None):
        dropped.add("truncation")
    messages: list[JSON] = []
    instructions = rest.pop("instructions", None)
    if instructions:
        messages.append({"role": "system", "content": want(instructions, str, "instructions")})
    given = rest.pop("input", None)
    if isinstance(given, str):
        messages.append({"role": "user", "content": given})
    else:
        messages += _messages(want(given, list, "input"), traits)
    out: JSON = {"messages": messages}
    limit = rest.pop("max_output_tokens", None)
    if limit is not None:
        if want(limit, int, "max_output_tokens") < 1:
            raise refuse("max_output_tokens", "must be at least 1", "Send a positive number.")
        out[limit_field(as_str(rest.get("model")), traits)] = limit
    _tools(rest, out)
    _output(rest, out, traits, dropped)
    rest.pop("stream_options", None)
    if rest.get("stream"):
        out["stream_options"] = {"include_usage": True}
    return {**out, **rest}


def _tools(rest: JSON, out: JSON) -> None:
    tools = want(rest.pop("tools", None) or [], list, "tools")
    if tools:
        out["tools"] = [_tool(want(t, dict, f"tools[{i}]"), f"tools[{i}]") for i, t in enumerate(tools)]
    choice = rest.pop("tool_choice", None)
    if isinstance(choice, dict):
        if choice.get("type") == "allowed_tools":
            allowed = [_named(as_dict(t), "tool_choice.tools") for t in as_list(choice.get("tools"))]
            mode = choice.get("mode", "auto")
            choice = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": allowed}}
        else:
            choice = _named(choice, "tool_choice")
    if choice is not None and (tools or choice != "auto"):
        out["tool_choice"] = choice
    if not tools:
        rest.pop("parallel_tool_calls", None)


def _named(tool: JSON, field: str) -> JSON:
    kind = tool.get("type")
    if kind in ("function", "custom"):
        return {"type": kind, kind: {"name": want(tool.get("name"), str, f"{field}.name")}}
    raise unsupported(f"{field}.type", "is a tool built into OpenAI's servers", "Use a function tool.")


def _tool(tool: JSON, field: str) -> JSON:
    kind = tool.get("type")
    if kind == "function":
        function: JSON = {"name": want(tool.get("name"), str, f"{field}.name")}
        for name in ("description", "parameters", "strict"):
            if tool.get(name) is not None:
                function[name] = tool[name]
        return {"type": "function", "function": function}
    if kind == "custom":
        custom: JSON = {"name": want(tool.get("name"), str, f"{field}.name")}
        if tool.get("description"):
            custom["description"] = tool["description"]
        form = as_dict(tool.get("format"))
        if form.get("type") == "grammar":
            grammar = {k: v for k, v in form.items() if k != "type"}
            custom["format"] = {"type": "grammar", "grammar": grammar}
        elif form:
            custom["format"] = form
        return {"type": "custom", "custom": custom}
    raise unsupported(f"{field}.type", "is a tool built into OpenAI's servers", "Use a function tool.")


def _output(rest: JSON, out: JSON, traits: Traits, dropped: Dropped) -> None:
    """Reasoning, text format, logprobs."""
    reasoning = as_dict(rest.pop("reasoning", None))
    effort = reasoning.get("effort")
    if effort is not None:
        if traits.reasoning:
            out["reasoning_effort"] = effort
        else:
            dropped.add("reasoning.effort")
    for name in ("context", "mode"):
        if reasoning.get(name) is not None:
            dropped.add(f"reasoning.{name}")
    text = as_dict(rest.pop("text", None))
    form = as_dict(text.get("format"))
    if form.get("type") == "json_schema":
        described = {k: v for k, v in form.items() if k != "type" and v is not None}
        out["response_format"] = {"type": "json_schema", "json_schema": described}
    elif form and form.get("type") != "text":
        out["response_format"] = form
    if text.get("verbosity") is not None:
        out["verbosity"] = text["verbosity"]
    logprobs = False
    for name in as_list(rest.pop("include", None)):
        if name == "message.output_text.logprobs":
            logprobs = True
        elif name != "reasoning.encrypted_content":
            dropped.add("include")
    most = rest.pop("top_logprobs", None)
    if logprobs:
        out["logprobs"] = True
        if most is not None:
            out["top_logprobs"] = most


def _messages(items: list[Any], traits: Traits) -> list[JSON]:
    out: list[JSON] = []
    thoughts: JSON = {}  # of the assistant message to come

    def assistant() -> JSON:
        """The assistant message that calls and text of one turn gather in."""
        if not out or out[-1]["role"] != "assistant" or thoughts:
            out.append({"role": "assistant", "content": None, **thoughts})
            thoughts.clear()
        return out[-1]

    for i, item in enumerate(items):
        field = f"input[{i}]"
        item = want(item, dict, field)
        kind = item.get("type", "message" if "role" in item else None)
        if kind == "message":
            role = item.get("role")
            content = _content(item.get("content"), f"{field}.content")
            if role == "assistant":
                message = assistant()
                if message["content"] is not None or "tool_calls" in message:
                    out.append({"role": "assistant", "content": None})
                out[-1]["content"] = content
            elif role in ("user", "system", "developer"):
                out.append({"role": "system" if role == "developer" else role, "content": content})
            else:
                raise refuse(f"{field}.role", "is not known", "Send user, assistant, system or developer.")
        elif kind in ("function_call", "custom_tool_call"):
            name, call = (
                want(item.get("name"), str, f"{field}.name"),
                want(item.get("call_id"), str, f"{field}.call_id"),
            )
            if kind == "function_call":
                called = {
                    "type": "function",
                    "function": {"name": name, "arguments": item.get("arguments") or "{}"},
                }
            else:
                called = {"type": "custom", "custom": {"name": name, "input": as_str(item.get("input"))}}
            assistant().setdefault("tool_calls", []).append({"id": call, **called})
        elif kind in ("function_call_output", "custom_tool_call_output"):
            out += _tool_output(item, field)
        elif kind == "reasoning":
            thoughts = _thoughts(item) if traits.reasoning else {}
        else:
            why = "is an item kept or made by OpenAI's servers" if kind else "is missing"
            raise unsupported(f"{field}.type", why, "Send messages, function calls and their outputs.")
    return _in_call_order(out)


def _in_call_order(messages: list[JSON]) -> list[JSON]:
    """Tool messages directly after their calls; what images they showed goes behind the last of them."""
    out: list[JSON] = []
    held: list[JSON] = []
    for message in messages:
        if message.pop("_shown", False):
            held.append(message)
            continue
        if message["role"] != "tool":
            out += held
            held = []
        out.append(message)
    return out + held


def _thoughts(item: JSON) -> JSON:
    """The fields of an assistant message that bring its reasoning back, signed blocks included."""
    blocks = unseal(item.get("encrypted_content"))
    if blocks is not None:
        text = "".join(as_str(as_dict(b).get("thinking")) for b in blocks)
        return {"reasoning_content": text, "thinking_blocks": blocks}
    parts = as_list(item.get("content")) or as_list(item.get("summary"))
    text = "\n\n".join(as_str(as_dict(p).get("text")) for p in parts)
    return {"reasoning_content": text} if text else {}


def _content(content: object, field: str) -> str | list[JSON]:
    if isinstance(content, str):
        return content
    parts = [
        _part(want(p, dict, f"{field}[{j}]"), f"{field}[{j}]")
        for j, p in enumerate(want(content, list, field))
    ]
    if len(parts) == 1 and parts[0].keys() == {"type", "text"}:
        return str(parts[0]["text"])
    return parts


def _part(part: JSON, field: str) -> JSON:
    kind = part.get("type")
    if kind in ("input_text", "output_text", "text"):
        out: JSON = {"type": "text", "text": want(part.get("text"), str, f"{field}.text")}
    elif kind == "refusal":
        out = {"type": "refusal", "refusal": want(part.get("refusal"), str, f"{field}.refusal")}
    elif kind == "input_image":
        if part.get("image_url") is None:
            raise unsupported(f"{field}.file_id", "is a file on OpenAI's servers", "Send `image_url`.")
        image = {"url": want(part["image_url"], str, f"{field}.image_url")}
        if part.get("detail") in ("low", "high", "auto"):
            image["detail"] = part["detail"]
        out = {"type": "image_url", "image_url": image}
    elif kind == "input_file":
        if part.get("file_url"):
            raise unsupported(f"{field}.file_url", "cannot be fetched here", "Send `file_data`.")
        out = {
            "type": "file",
            "file": {k: part[k] for k in ("file_data", "file_id", "filename") if part.get(k)},
        }
    elif kind == "input_audio":
        out = {"type": "input_audio", "input_audio": part.get("input_audio")}
    else:
        raise refuse(f"{field}.type", "is not known", "Send input_text, input_image or input_file.")
    if part.get("prompt_cache_breakpoint"):
        out["prompt_cache_breakpoint"] = part["prompt_cache_breakpoint"]
    return out


def _tool_output(item: JSON, field: str) -> list[JSON]:
    """The tool message, and a user message for what it shows besides text."""
    call, output = want(item.get("call_id"), str, f"{field}.call_id"), item.get("output")
    content = _content(output, f"{field}.output")
    if isinstance(content, str):
        return [{"role": "tool", "tool_call_id": call, "content": content}]
    texts = [p["text"] for p in content if p["type"] == "text"]
    shown = [p for p in content if p["type"] != "text"]
    out: list[JSON] = [{"role": "tool", "tool_call_id": call, "content": "\n".join(texts)}]
    if shown:
        lead = {"type": "text", "text": f"Result of tool call {call}, continued:"}
        out.append({"role": "user", "content": [lead, *shown], "_shown": True})
    return out
