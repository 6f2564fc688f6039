"""A chat request (OpenAI ``/v1/chat/completions``) as an Anthropic one (``/v1/messages``).

Thinking blocks travel on assistant messages as ``thinking_blocks`` (exact, with their signatures) beside the
readable ``reasoning_content``, as LiteLLM does.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from typing import Any

from apportion.serve.translate import schema
from apportion.serve.translate.common import (
    JSON,
    Dropped,
    Traits,
    as_dict,
    as_list,
    as_str,
    parse_arguments,
    parse_data_url,
    refuse,
    unsupported,
    want,
    without_index,
)

THINKING_BUDGET_TOKENS = {
    "minimal": 1024,
    "low": 2048,
    "medium": 8192,
    "high": 16384,
    "xhigh": 24576,
    "max": 24576,
}
"""``reasoning_effort`` in tokens of thinking. Kept at least 1,024 below the output limit it is part of."""

_MIN_BUDGET_TOKENS = 1024
_OLD_CLAUDE = re.compile(r"claude-(\d|instant|(opus|sonnet|haiku)-4(?![-.][6-9](\D|$))(\D|$))")
_NEW_CLAUDE = re.compile(r"claude-")
_CLAUDE_46 = re.compile(r"claude-(opus|sonnet|haiku)-4[-.]6")

_MEANINGFUL: dict[str, tuple[Callable[[Any], object], str, str]] = {
    "n": (
        lambda v: v != 1,
        "asks for several answers, and this model gives one",
        "Send one request for each.",
    ),
    "logprobs": (bool, "is not available on this model", "Leave it out."),
    "top_logprobs": (bool, "is not available on this model", "Leave it out."),
    "logit_bias": (bool, "is not available on this model", "Leave it out."),
    "audio": (bool, "is not available on this model", "Ask for text."),
    "modalities": (
        lambda v: "audio" in as_list(v),
        "asks for audio, which this model does not give",
        "Ask for text.",
    ),
    "web_search_options": (
        lambda v: True,
        "has no equivalent on this model",
        "Use a web search tool of the model's own API.",
    ),
    "moderation": (bool, "has no equivalent on this model", "Leave it out."),
    "functions": (bool, "is deprecated and not translated", "Use `tools`."),
    "function_call": (bool, "is deprecated and not translated", "Use `tool_choice`."),
}
_DROPPABLE = {
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "seed": None,
    "prediction": None,
    "store": False,
    "metadata": None,
    "prompt_cache_key": None,
    "prompt_cache_retention": None,
    "prompt_cache_options": None,
    "verbosity": None,
    "stream_options": "silent",
}


def request(body: JSON, traits: Traits, dropped: Dropped) -> JSON:
    """The Anthropic request for a chat request. Fields neither API knows pass through untouched.

    System and developer messages are hoisted to ``system``; turns of one role are merged; tool results open
    the user turn they belong to; stop sequences of white space only, which Anthropic refuses, are left out.

    Raises:
        InvalidRequestError: malformed, or a field that cannot be left out without changing what was asked.
        UnsupportedError: a feature without a translation.
    """
    rest = dict(body)
    for name, (matters, why, fix) in _MEANINGFUL.items():
        value = rest.pop(name, None)
        if value is not None and matters(value):
            raise refuse(name, why, fix)
    for name, idle in _DROPPABLE.items():
        value = rest.pop(name, None)
        if value is not None and value != idle and idle != "silent":
            dropped.add(name)
    system, turns = _turns(want(rest.pop("messages", None), list, "messages"), dropped)
    out: JSON = {"messages": turns}
    if system:
        out["system"] = _compact(system)
    limited = _limits(rest, out, traits, dropped)
    _tools(rest, out)
    _output(rest, out, limited, traits, dropped)
    user, safety = rest.pop("user", None), rest.pop("safety_identifier", None)
    if user or safety:
        out["metadata"] = {"user_id": str(user or safety)}
    tier = rest.pop("service_tier", None)
    if tier in ("auto", "default"):
        out["service_tier"] = "auto" if tier == "auto" else "standard_only"
    elif tier is not None:
        dropped.add("service_tier")
    return {**out, **rest}


def _limits(rest: JSON, out: JSON, traits: Traits, dropped: Dropped) -> bool:
    """Output limit, stop sequences, sampling. Says whether the client set the output limit."""
    most, older = rest.pop("max_completion_tokens", None), rest.pop("max_tokens", None)
    field = "max_tokens" if most is None else "max_completion_tokens"
    limit = older if most is None else most
    if limit is not None and want(limit, int, field) < 1:
        raise refuse(field, "must be at least 1", "Send a positive number.")
    out["max_tokens"] = traits.default_max_tokens if limit is None else limit
    stop = rest.pop("stop", None)
    if stop is not None:
        stops = [stop] if isinstance(stop, str) else want(stop, list, "stop")
        usable = [s for s in stops if isinstance(s, str) and s.strip()]
        if len(usable) < len(stops):
            dropped.add("stop")
        if usable:
            out["stop_sequences"] = usable
    temperature, top_p = rest.pop("temperature", None), rest.pop("top_p", None)
    model = as_str(rest.get("model"))
    if traits.sampling is not None:
        sampling = traits.sampling
    else:
        sampling = not _NEW_CLAUDE.search(model) or bool(
            _OLD_CLAUDE.search(model) or _CLAUDE_46.search(model)
        )
    if temperature is not None:
        if isinstance(temperature, bool) or not isinstance(temperature, (int, float)):
            raise refuse("temperature", "must be a number", "Send a number from 0 to 2.")
        if sampling:
            out["temperature"] = min(max(temperature, 0), 1)
        if not sampling or not 0 <= temperature <= 1:
            dropped.add("temperature")
    if top_p is not None and top_p != 1:
        if sampling:
            out["top_p"] = top_p
        else:
            dropped.add("top_p")
    return limit is not None


def _tools(rest: JSON, out: JSON) -> None:
    tools = [
        _tool(t, f"tools[{i}]") for i, t in enumerate(want(rest.pop("tools", None) or [], list, "tools"))
    ]
    choice = rest.pop("tool_choice", None)
    parallel = rest.pop("parallel_tool_calls", None)
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        allowed = want(choice.get("allowed_tools"), dict, "tool_choice.allowed_tools")
        names = [
            as_dict(t.get("function")).get("name")
            for t in as_list(allowed.get("tools"))
            if isinstance(t, dict)
        ]
        tools = [t for t in tools if t.get("name") in names]
        choice = allowed.get("mode", "auto")
    if not tools:
        used = dict.fromkeys(
            b["name"]
            for turn in out["messages"]
            for b in as_list(turn["content"])
            if b.get("type") == "tool_use"
        )
        if used:  # Anthropic refuses tool blocks in a conversation without tools
            out["tools"] = [{"name": name, "input_schema": {"type": "object"}} for name in used]
            out["tool_choice"] = {"type": "none"}
        return
    out["tools"] = tools
    chosen = _tool_choice(choice)
    if parallel is False and (chosen is None or chosen["type"] != "none"):
        chosen = {**(chosen or {"type": "auto"}), "disable_parallel_tool_use": True}
    if chosen is not None:
        out["tool_choice"] = chosen


def _tool(given: object, field: str) -> JSON:
    tool: JSON = want(given, dict, field)
    kind = tool.get("type", "function")
    if kind == "custom" and "custom" in tool:
        raise unsupported(
            f"{field}.type", "is a free-form tool, which this model does not have", "Use a function tool."
        )
    if kind != "function":
        return tool  # one of Anthropic's own
    function = want(tool.get("function"), dict, f"{field}.function")
    out: JSON = {
        "name": want(function.get("name"), str, f"{field}.function.name"),
        "input_schema": function.get("parameters") or {"type": "object", "properties": {}},
    }
    if function.get("description"):
        out["description"] = function["description"]
    if function.get("strict"):
        out["strict"] = True
    mark = tool.get("cache_control") or function.get("cache_control")
    if mark:
        out["cache_control"] = mark
    return out


def _tool_choice(choice: object) -> JSON | None:
    if choice is None:
        return None
    if isinstance(choice, str) and choice in ("none", "auto", "required"):
        return {"type": "any" if choice == "required" else choice}
    name = as_dict(as_dict(choice).get("function")).get("name")
    if isinstance(name, str):
        return {"type": "tool", "name": name}
    raise refuse(
        "tool_choice", "is not one that this model has", 'Send "none", "auto", "required" or a function.'
    )


def _output(rest: JSON, out: JSON, limited: bool, traits: Traits, dropped: Dropped) -> None:
    """Reasoning effort and response format."""
    config: JSON = {}
    effort = rest.pop("reasoning_effort", None)
    if effort is not None and effort != "none" and as_str(effort) not in THINKING_BUDGET_TOKENS:
        known = ", ".join(("none", *THINKING_BUDGET_TOKENS))
        raise refuse("reasoning_effort", f"must be one of {known}", "Send one of them.")
    if effort is not None and rest.get("thinking") is None:
        rest.pop("thinking", None)
        _think(effort, as_str(rest.get("model")), limited, out, config, traits, dropped)
    form = rest.pop("response_format", None)
    kind = as_dict(form).get("type")
    if kind == "json_schema":
        described = want(as_dict(form).get("json_schema"), dict, "response_format.json_schema")
        wanted = want(described.get("schema"), dict, "response_format.json_schema.schema")
        config["format"] = {"type": "json_schema", "schema": schema.closed(wanted)}
    elif kind == "json_object":
        dropped.add("response_format")
        asked = {"type": "text", "text": "Answer with one valid JSON object and nothing else."}
        out["system"] = _compact([*_blocks_of(out.get("system")), asked])
    elif form is not None and kind != "text":
        raise refuse("response_format.type", "is not known", 'Send "text", "json_object" or "json_schema".')
    if config:
        out["output_config"] = {**config, **as_dict(rest.pop("output_config", None))}


def _think(
    effort: str, model: str, limited: bool, out: JSON, config: JSON, traits: Traits, dropped: Dropped
) -> None:
    adaptive = bool(_NEW_CLAUDE.search(model)) and not _OLD_CLAUDE.search(model)
    how = traits.thinking or ("adaptive" if adaptive else "budget")
    if effort == "none":
        if how != "off":
            out["thinking"] = {"type": "disabled"}
        return
    forced = as_dict(out.get("tool_choice")).get("type") in ("any", "tool")
    if how == "off" or (how == "budget" and (forced or _mid_tool_turn_without_thinking(out["messages"]))):
        dropped.add("reasoning_effort")
        return
    if how == "adaptive":
        out["thinking"] = {"type": "adaptive"}
        config["effort"] = "low" if effort == "minimal" else effort
        return
    budget = THINKING_BUDGET_TOKENS[effort]
    if not limited:
        out["max_tokens"] += budget
    budget = min(budget, out["max_tokens"] - _MIN_BUDGET_TOKENS)
    if budget < _MIN_BUDGET_TOKENS:
        dropped.add("reasoning_effort")
        return
    out["thinking"] = {"type": "enabled", "budget_tokens": budget}
    for name in ("temperature", "top_p"):  # thinking by budget excludes them
        if out.pop(name, 1) != 1:
            dropped.add(name)


def _mid_tool_turn_without_thinking(turns: list[JSON]) -> bool:
    """Anthropic refuses to begin thinking between a tool call made without it and the call's result."""
    if len(turns) < 2 or not any(b.get("type") == "tool_result" for b in _blocks_of(turns[-1]["content"])):
        return False
    before = _blocks_of(turns[-2]["content"])
    return not any(b.get("type") in ("thinking", "redacted_thinking") for b in before)


# --- messages -------------------------------------------------------------------------------------


def _turns(messages: list[Any], dropped: Dropped) -> tuple[list[JSON], list[JSON]]:
    system: list[JSON] = []
    turns: list[tuple[str, list[JSON]]] = []
    for i, message in enumerate(messages):
        field = f"messages[{i}]"
        message = want(message, dict, field)
        role = message.get("role")
        if message.get("name") and role != "tool":
            dropped.add("messages.name")
        if role in ("system", "developer"):
            system += _content(message, field)
            continue
        if role == "assistant":
            who, blocks = "assistant", _assistant(message, field, dropped)
        elif role == "user":
            who, blocks = "user", _content(message, field)
        elif role == "tool":
            who, blocks = "user", [_tool_result(message, field)]
        elif role == "function":
            raise refuse(f"{field}.role", "is the deprecated `function`", "Use `tools` and the role `tool`.")
        else:
            raise refuse(f"{field}.role", "is not known", "Send system, developer, user, assistant or tool.")
        if turns and turns[-1][0] == who:
            turns[-1][1].extend(blocks)
            turns[-1][1].sort(key=lambda b: b.get("type") != "tool_result" and who == "user")
        elif blocks:
            turns.append((who, blocks))
    if turns and turns[-1][0] == "assistant" and turns[-1][1][-1].get("type") == "text":
        last = turns[-1][1][-1]
        turns[-1][1][-1] = {
            **last,
            "text": last["text"].rstrip(),
        }  # Anthropic refuses a prefill ending in white space
    return system, [{"role": who, "content": _compact(blocks)} for who, blocks in turns]


def _compact(blocks: list[JSON]) -> str | list[JSON]:
    """A single plain text block as its text."""
    if len(blocks) == 1 and blocks[0].keys() == {"type", "text"}:
        return str(blocks[0]["text"])
    return blocks


def _blocks_of(content: object) -> list[JSON]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return as_list(content)


def _content(message: JSON, field: str) -> list[JSON]:
    """The blocks of a message's ``content``; empty text, which Anthropic refuses, left out."""
    content = message.get("content")
    if content is None:
        return []
    if isinstance(content, str):
        blocks = [{"type": "text", "text": content}] if content else []
    else:
        parts = want(content, list, f"{field}.content")
        blocks = [_part(p, f"{field}.content[{j}]") for j, p in enumerate(parts)]
        blocks = [b for b in blocks if b.get("type") != "text" or b.get("text")]
    if blocks and message.get("cache_control"):
        blocks[-1] = {**blocks[-1], "cache_control": message["cache_control"]}
    return blocks


def _part(given: object, field: str) -> JSON:
    part: JSON = want(given, dict, field)
    kind = part.get("type")
    if kind in ("text", "refusal"):
        block: JSON = {"type": "text", "text": want(part.get(kind), str, f"{field}.{kind}")}
    elif kind == "image_url":
        image = part.get("image_url")
        url = image if isinstance(image, str) else as_dict(image).get("url")
        block = {
            "type": "image",
            "source": _source(want(url, str, f"{field}.image_url.url"), f"{field}.image_url.url"),
        }
    elif kind == "file":
        block = _file(want(part.get("file"), dict, f"{field}.file"), f"{field}.file")
    elif kind == "input_audio":
        raise refuse(
            f"{field}.type", "is audio, which this model does not take", "Send text, images or documents."
        )
    elif as_str(kind) in _ANTHROPIC_BLOCKS:
        return part
    else:
        raise refuse(f"{field}.type", "is not known", "Send text, image_url or file.")
    if part.get("cache_control"):
        block["cache_control"] = part["cache_control"]
    elif as_dict(part.get("prompt_cache_breakpoint")).get("mode") == "explicit":
        block["cache_control"] = {"type": "ephemeral"}
    return block


_ANTHROPIC_BLOCKS = frozenset(("image", "document", "search_result", "tool_result", "container_upload"))


def _source(url: str, field: str) -> JSON:
    if url.startswith("data:"):
        media_type, data = parse_data_url(url, field)
        return {"type": "base64", "media_type": media_type, "data": data}
    if url.startswith(("https://", "http://")):
        return {"type": "url", "url": url}
    raise refuse(field, "is neither a data URL nor an http(s) URL", "Send one of these.")


def _file(file: JSON, field: str) -> JSON:
    data, file_id = file.get("file_data"), file.get("file_id")
    if isinstance(data, str):
        if data.startswith("data:"):
            media_type, data = parse_data_url(data, f"{field}.file_data")
        else:
            media_type = "application/pdf"
        if media_type.startswith("image/"):
            return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}
        if media_type == "application/pdf":
            source: JSON = {"type": "base64", "media_type": media_type, "data": data}
        elif media_type.startswith("text/"):
            source = {
                "type": "text",
                "media_type": "text/plain",
                "data": _decode_text(data, f"{field}.file_data"),
            }
        else:
            raise refuse(f"{field}.file_data", f"is of type {media_type}", "Send a PDF, text or an image.")
    elif isinstance(file_id, str):
        source = {"type": "file", "file_id": file_id}
    else:
        raise refuse(field, "has neither `file_data` nor `file_id`", "Send one of them.")
    title = {"title": file["filename"]} if file.get("filename") else {}
    return {"type": "document", "source": source, **title}


def _decode_text(data: str, field: str) -> str:
    try:
        return base64.b64decode(data, validate=True).decode()
    except ValueError:
        raise refuse(field, "is not base64 of UTF-8 text", "Encode it so.") from None


def _assistant(message: JSON, field: str, dropped: Dropped) -> list[JSON]:
    blocks = without_index(message.get("thinking_blocks"))
    if not blocks and message.get("reasoning_content"):
        dropped.add("messages.reasoning_content")  # without its signature it is not accepted back
    blocks = blocks + _content(message, field)
    if message.get("refusal"):
        blocks.append({"type": "text", "text": str(message["refusal"])})
    if message.get("function_call"):
        raise refuse(f"{field}.function_call", "is deprecated and not translated", "Use `tool_calls`.")
    if message.get("audio"):
        dropped.add("messages.audio")
    for j, call in enumerate(want(message.get("tool_calls") or [], list, f"{field}.tool_calls")):
        blocks.append(_tool_use(want(call, dict, f"{field}.tool_calls[{j}]"), f"{field}.tool_calls[{j}]"))
    return blocks


def _tool_use(call: JSON, field: str) -> JSON:
    if call.get("type", "function") != "function":
        raise unsupported(
            f"{field}.type", "is a free-form tool call, which this model does not have", "Use functions."
        )
    function = want(call.get("function"), dict, f"{field}.function")
    block = {
        "type": "tool_use",
        "id": want(call.get("id"), str, f"{field}.id"),
        "name": want(function.get("name"), str, f"{field}.function.name"),
        "input": parse_arguments(function.get("arguments")),
    }
    if call.get("cache_control"):
        block["cache_control"] = call["cache_control"]
    return block


def _tool_result(message: JSON, field: str) -> JSON:
    out: JSON = {
        "type": "tool_result",
        "tool_use_id": want(message.get("tool_call_id"), str, f"{field}.tool_call_id"),
    }
    mark = message.get("cache_control")
    blocks = _content({"content": message.get("content")}, field)
    if blocks:
        out["content"] = _compact(blocks)
    if message.get("is_error"):
        out["is_error"] = True
    if mark:
        out["cache_control"] = mark
    return out
