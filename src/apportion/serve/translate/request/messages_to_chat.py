"""An Anthropic request (``/v1/messages``) as a chat request (``/v1/chat/completions``)."""

from __future__ import annotations

from typing import Any

from apportion.serve.translate import schema
from apportion.serve.translate.common import (
    JSON,
    Dropped,
    Traits,
    as_dict,
    as_list,
    as_str,
    limit_field,
    refuse,
    unsupported,
    want,
)
from apportion.serve.wire import dumps

_STATEFUL = {
    "container": "names a container on Anthropic's servers",
    "mcp_servers": "makes the model's servers call tools",
    "inference_geo": "binds the request to a region, which this upstream cannot promise",
}
_DROPPABLE = (
    "cache_control",
    "context_management",
    "diagnostics",
    "speed",
    "user_profile_id",
    "workspace_id",
)


def request(body: JSON, traits: Traits, dropped: Dropped) -> JSON:
    """The chat request for an Anthropic request. ``top_k`` and fields neither API knows pass untouched.

    A thinking budget becomes an effort: up to 4,096 tokens low, up to 12,288 medium, above high. Images
    inside tool results, for which chat has no place, follow in a user message; a failed result says so in its
    text.

    Raises:
        InvalidRequestError: malformed, or a field that cannot be left out without changing what was asked.
        UnsupportedError: a feature of Anthropic's servers.
    """
    rest = dict(body)
    for name, why in _STATEFUL.items():
        if rest.pop(name, None):
            raise unsupported(name, why, "Leave it out, or use a model served by Anthropic.")
    for name in _DROPPABLE:
        if rest.pop(name, None) is not None:
            dropped.add(name)
    messages = _system(rest.pop("system", None), "system", traits, dropped)
    for i, message in enumerate(want(rest.pop("messages", None), list, "messages")):
        messages += _message(want(message, dict, f"messages[{i}]"), f"messages[{i}]", traits, dropped)
    out: JSON = {"messages": messages}
    limit = rest.pop("max_tokens", None)
    if limit is not None:
        if want(limit, int, "max_tokens") < 1:
            raise refuse("max_tokens", "must be at least 1", "Send a positive number.")
        out[limit_field(as_str(rest.get("model")), traits)] = limit
    stops = rest.pop("stop_sequences", None)
    if stops:
        out["stop"] = want(stops, list, "stop_sequences")
    user = as_dict(rest.pop("metadata", None)).get("user_id")
    if user:
        out["user"] = user
    tier = rest.pop("service_tier", None)
    if tier in ("auto", "standard_only"):
        out["service_tier"] = "auto" if tier == "auto" else "default"
    _tools(rest, out, traits, dropped)
    _output(rest, out, traits, dropped)
    if rest.get("stream"):
        out["stream_options"] = {"include_usage": True}
    return {**out, **rest}


def _tools(rest: JSON, out: JSON, traits: Traits, dropped: Dropped) -> None:
    tools = want(rest.pop("tools", None) or [], list, "tools")
    if tools:
        out["tools"] = [
            _tool(want(t, dict, f"tools[{i}]"), f"tools[{i}]", traits, dropped) for i, t in enumerate(tools)
        ]
    choice = rest.pop("tool_choice", None)
    if choice is None:
        return
    kind = want(choice, dict, "tool_choice").get("type")
    if kind == "tool":
        name = want(choice.get("name"), str, "tool_choice.name")
        out["tool_choice"] = {"type": "function", "function": {"name": name}}
    elif kind in ("auto", "none", "any"):
        out["tool_choice"] = "required" if kind == "any" else kind
    else:
        raise refuse("tool_choice.type", "is not known", "Send auto, any, tool or none.")
    if choice.get("disable_parallel_tool_use"):
        out["parallel_tool_calls"] = False


def _tool(tool: JSON, field: str, traits: Traits, dropped: Dropped) -> JSON:
    if tool.get("type", "custom") not in ("custom", None):
        raise unsupported(
            f"{field}.type", "is a tool built into Anthropic's API", "Define it with an `input_schema`."
        )
    function: JSON = {"name": want(tool.get("name"), str, f"{field}.name")}
    if tool.get("description"):
        function["description"] = tool["description"]
    function["parameters"] = want(tool.get("input_schema"), dict, f"{field}.input_schema")
    if tool.get("strict"):
        function["strict"] = True
    return {"type": "function", "function": function, **_mark(tool, traits, dropped)}


def _mark(block: JSON, traits: Traits, dropped: Dropped) -> JSON:
    mark = block.get("cache_control")
    if not mark:
        return {}
    if traits.cache_control:
        return {"cache_control": mark}
    dropped.add("cache_control")
    return {}


def _output(rest: JSON, out: JSON, traits: Traits, dropped: Dropped) -> None:
    """Thinking and output format."""
    thinking, config = as_dict(rest.pop("thinking", None)), as_dict(rest.pop("output_config", None))
    kind = thinking.get("type", "adaptive" if config.get("effort") else "disabled")
    effort = None
    if kind == "enabled":
        budget = want(thinking.get("budget_tokens"), int, "thinking.budget_tokens")
        effort = "low" if budget <= 4096 else "medium" if budget <= 12288 else "high"
    elif kind != "disabled":
        effort = config.get("effort")
    if effort is not None and traits.reasoning:
        out["reasoning_effort"] = effort
    elif effort is not None:
        dropped.add("thinking" if thinking else "output_config.effort")
    form = config.get("format") or rest.pop("output_format", None)
    if form:
        wanted = want(as_dict(form).get("schema"), dict, "output_config.format.schema")
        described = {"name": "output", "schema": wanted}
        if schema.is_strict(wanted):
            described["strict"] = True
        out["response_format"] = {"type": "json_schema", "json_schema": described}


# --- messages -------------------------------------------------------------------------------------


def _system(system: object, field: str, traits: Traits, dropped: Dropped) -> list[JSON]:
    """The system prompt as one system message: a string wherever nothing is lost, as small servers want."""
    if not system:
        return []
    if isinstance(system, str):
        return [{"role": "system", "content": system}]
    blocks = want(system, list, field)
    parts = [
        {
            "type": "text",
            "text": want(want(b, dict, f"{field}[{j}]").get("text"), str, f"{field}[{j}].text"),
            **_mark(b, traits, dropped),
        }
        for j, b in enumerate(blocks)
    ]
    if any("cache_control" in p for p in parts):
        return [{"role": "system", "content": parts}]
    return [{"role": "system", "content": "\n\n".join(p["text"] for p in parts)}]


def _message(message: JSON, field: str, traits: Traits, dropped: Dropped) -> list[JSON]:
    role, content = message.get("role"), message.get("content")
    if role == "system":
        return _system(content, f"{field}.content", traits, dropped)
    if role not in ("user", "assistant"):
        raise refuse(f"{field}.role", "is not known", "Send user or assistant.")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    blocks = [
        (want(b, dict, f"{field}.content[{j}]"), f"{field}.content[{j}]")
        for j, b in enumerate(want(content, list, f"{field}.content"))
    ]
    if role == "assistant":
        return [_assistant(blocks, traits, dropped)]
    results: list[JSON] = []
    parts: list[JSON] = []
    for block, where in blocks:
        if block.get("type") == "tool_result":
            result, shown = _tool_result(block, where, traits, dropped)
            results.append(result)
            parts += shown
        else:
            parts += _parts(block, where, traits, dropped)
    return results + ([{"role": "user", "content": _compact(parts)}] if parts else [])


def _compact(parts: list[JSON]) -> str | list[JSON]:
    """A single plain text part as its text."""
    if len(parts) == 1 and parts[0].keys() == {"type", "text"}:
        return str(parts[0]["text"])
    return parts


def _parts(block: JSON, field: str, traits: Traits, dropped: Dropped) -> list[JSON]:
    """The content parts of a block that is no tool result."""
    kind = block.get("type")
    if kind == "text":
        parts = [{"type": "text", "text": want(block.get("text"), str, f"{field}.text")}]
    elif kind == "image":
        url = _url(want(block.get("source"), dict, f"{field}.source"), f"{field}.source")
        parts = [{"type": "image_url", "image_url": {"url": url}}]
    elif kind == "document":
        parts = _document(block, field, traits, dropped)
    elif kind == "search_result":
        texts = [as_str(as_dict(b).get("text")) for b in as_list(block.get("content"))]
        head = f"{as_str(block.get('title'))} ({as_str(block.get('source'))})"
        parts = [{"type": "text", "text": "\n".join([head, *texts])}]
    else:
        raise unsupported(
            f"{field}.type", "has no equivalent on this model", "Send text, images or documents."
        )
    if parts:
        parts[-1].update(_mark(block, traits, dropped))
    return parts


def _url(source: JSON, field: str) -> str:
    kind = source.get("type")
    if kind == "base64":
        media_type = want(source.get("media_type"), str, f"{field}.media_type")
        return f"data:{media_type};base64,{want(source.get('data'), str, f'{field}.data')}"
    if kind == "url":
        return str(want(source.get("url"), str, f"{field}.url"))
    raise unsupported(f"{field}.type", "is a file on Anthropic's servers", "Send base64 data or a URL.")


def _document(block: JSON, field: str, traits: Traits, dropped: Dropped) -> list[JSON]:
    source = want(block.get("source"), dict, f"{field}.source")
    kind, title = source.get("type"), as_str(block.get("title"))
    lead = [{"type": "text", "text": "\n".join(filter(None, (title, as_str(block.get("context")))))}]
    lead = lead if lead[0]["text"] else []
    if kind == "text":
        return [*lead, {"type": "text", "text": want(source.get("data"), str, f"{field}.source.data")}]
    if kind == "content":
        inner = source.get("content")
        blocks = [{"type": "text", "text": inner}] if isinstance(inner, str) else as_list(inner)
        where = f"{field}.source.content"
        return lead + [
            p for j, b in enumerate(blocks) for p in _parts(as_dict(b), f"{where}[{j}]", traits, dropped)
        ]
    if kind == "base64":
        data = _url(source, f"{field}.source")
        return [{"type": "file", "file": {"filename": title or "document.pdf", "file_data": data}}]
    raise unsupported(f"{field}.source.type", "cannot be sent to this model", "Send base64 data or text.")


def _tool_result(block: JSON, field: str, traits: Traits, dropped: Dropped) -> tuple[JSON, list[JSON]]:
    """The tool message, and the parts of it that must follow in a user message."""
    call = want(block.get("tool_use_id"), str, f"{field}.tool_use_id")
    content = block.get("content")
    blocks: list[Any] = [{"type": "text", "text": content}] if isinstance(content, str) else as_list(content)
    texts: list[str] = []
    shown: list[JSON] = []
    for j, inner in enumerate(blocks):
        where = f"{field}.content[{j}]"
        for part in _parts(want(inner, dict, where), where, traits, dropped):
            if part["type"] == "text":
                texts.append(part["text"])
            else:
                shown.append(part)
    if shown:
        texts.append("(continued in the next user message)")
        shown.insert(0, {"type": "text", "text": f"Result of tool call {call}, continued:"})
    text = "\n".join(texts)
    if block.get("is_error"):
        text = f"Error: {text}"
    return {"role": "tool", "tool_call_id": call, "content": text, **_mark(block, traits, dropped)}, shown


def _assistant(blocks: list[tuple[JSON, str]], traits: Traits, dropped: Dropped) -> JSON:
    text: list[JSON] = []
    thinking: list[JSON] = []
    calls: list[JSON] = []
    for block, field in blocks:
        kind = block.get("type")
        if kind in ("thinking", "redacted_thinking"):
            thinking.append(block)
        elif kind == "tool_use":
            function = {
                "name": want(block.get("name"), str, f"{field}.name"),
                "arguments": dumps(want(block.get("input"), dict, f"{field}.input")).decode(),
            }
            call = {"id": want(block.get("id"), str, f"{field}.id"), "type": "function", "function": function}
            calls.append({**call, **_mark(block, traits, dropped)})
        elif kind == "text":
            text += _parts(block, field, traits, dropped)
        else:
            raise unsupported(
                f"{field}.type", "has no equivalent on this model", "Send text, thinking or tool use."
            )
    out: JSON = {"role": "assistant", "content": None}
    if any("cache_control" in p for p in text):
        out["content"] = text
    elif text or not calls:
        out["content"] = "".join(p["text"] for p in text)
    if thinking and not traits.reasoning:
        dropped.add("thinking blocks")
    elif thinking:
        thoughts = "".join(as_str(b.get("thinking")) for b in thinking)
        if thoughts:
            out["reasoning_content"] = thoughts
        if any(b.get("signature") or b.get("data") for b in thinking):
            out["thinking_blocks"] = thinking
    if calls:
        out["tool_calls"] = calls
    return out
