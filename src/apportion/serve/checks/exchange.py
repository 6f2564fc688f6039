"""A request and its answer as the checks and the judge read them, whatever the dialect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from apportion.serve import transcript
from apportion.serve.config.schema import Api
from apportion.serve.wire import loads

Object = dict[str, Any]


class ToolCall(NamedTuple):
    """A tool that an answer calls; ``arguments`` are text where they were no JSON."""

    name: str
    arguments: object


class Choice(NamedTuple):
    """One answer to a request."""

    text: str
    calls: tuple[ToolCall, ...]
    finish: str


class Exchange(NamedTuple):
    """What was asked, with what tools and in what form, and what was answered. ``expect`` is the right answer where
    the client told it. ``tools`` are the schemas of their arguments, by name, None where none was given.
    """

    asked: Sequence[Object]
    system: Sequence[Object]
    tools: dict[str, object]
    form: object
    expect: str | None
    choices: tuple[Choice, ...]


def read(api: Api, body: bytes, answer: bytes, *, stream: bool, expect: str | None = None) -> Exchange:
    """An exchange from the bodies of request and answer (or its stream)."""
    try:
        request = loads(body)
    except (ValueError, msgspec.DecodeError):
        request = None
    request = request if isinstance(request, dict) else {}
    system, asked = transcript.asked(api, body)
    return Exchange(
        asked,
        system,
        _tools(request),
        _form(request),
        expect,
        tuple(_choice(message) for message in transcript.answered(api, answer, stream=stream)),
    )


def text_of(message: Object) -> str:
    """The texts of a message's parts."""
    return "".join(part["content"] for part in message.get("parts", ()) if part["type"] == "text")


def _choice(message: Object) -> Choice:
    calls = tuple(
        ToolCall(part["name"], part["arguments"]) for part in message["parts"] if part["type"] == "tool_call"
    )
    return Choice(text_of(message), calls, message.get("finish_reason") or "")


def _tools(request: Object) -> dict[str, object]:
    """The tools a request offers, in the shape of any dialect. Those the provider runs itself have no schema here."""
    found: dict[str, object] = {}
    tools = request.get("tools")
    for tool in tools if isinstance(tools, list) else ():
        if not isinstance(tool, dict):
            continue
        function = tool.get("function")
        inner: Object = function if isinstance(function, dict) else tool
        name = inner.get("name")
        if isinstance(name, str):
            found[name] = inner.get("parameters", inner.get("input_schema"))
    return found


def _form(request: Object) -> object:
    """The JSON schema that a request asks its answer to have; True for any JSON; None where it asks for none."""
    text = request.get("text")
    given = request.get("response_format") or (text.get("format") if isinstance(text, dict) else None)
    if not isinstance(given, dict):
        return None
    if given.get("type") == "json_object":
        return True
    if given.get("type") != "json_schema":
        return None
    inner = given.get("json_schema")
    return (inner if isinstance(inner, dict) else given).get("schema", True)
