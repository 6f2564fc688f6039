"""One stream made of two: what can go on elsewhere, how the rest is asked for, how the client sees no seam.

The rest of an answer is asked for by giving the model its own words so far as the beginning of its answer: a last
message of the assistant that is to be continued (llama.cpp does so by itself; vLLM and SGLang with
``continue_final_message``), or a longer prompt. Only plain text can be handed over so. Whatever else shapes an answer
while it grows (tools, grammars, log probabilities, several choices, reasoning) is not in the text, and such a stream
stays where it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, Final, NamedTuple, cast

import msgspec
from msgspec import Raw

from apportion.measure.usage import Usage
from apportion.serve.assemble import Assembler
from apportion.serve.call import CAP_FIELDS, Call, encode_object
from apportion.serve.http import sse
from apportion.serve.http.server import Responder
from apportion.serve.records import Attempt, usd
from apportion.serve.records import cost as spent
from apportion.serve.relay import Relay, Sink
from apportion.serve.runtime import Route
from apportion.serve.wire import dumps, loads, usage_in

_APIS: Final = ("chat", "completions")
_SHAPES: Final = (
    *("tools", "functions", "tool_choice", "response_format", "logprobs", "top_logprobs", "min_tokens"),
    *("presence_penalty", "frequency_penalty", "dry_multiplier", "echo", "suffix", "modalities", "audio"),
    *("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs", "grammar"),
    *("json_schema", "regex", "ebnf", "return_tokens", "return_token_ids", "return_tokens_as_token_ids"),
)
"""Fields that bind an answer to what came before in it, or tell of its tokens: none of it survives as text."""
_NOTHING: Final = (b"null", b"false", b"0", b"0.0", b"[]", b'""', b"{}", b'"none"', b'{"type":"text"}')
_TRUE: Final = Raw(b"true")
_FALSE: Final = Raw(b"false")
_PICO: Final = 10**12
_any = msgspec.json.Decoder().decode
_raws = msgspec.json.Decoder(list[Raw]).decode


class Begun(NamedTuple):
    """What a client has of an answer: its text, and the names that every event of the stream carries.

    ``usage`` is the upstream's count of it, where it says one with every event.
    """

    text: str
    names: dict[str, Any]
    usage: Usage | None


class Live:
    """A stream on its way to its client that can go on elsewhere."""

    __slots__ = ("assemble", "moving", "relay", "route", "target")

    def __init__(self, relay: Relay, assemble: Assembler, route: Route) -> None:
        self.relay = relay
        self.assemble = assemble
        self.route = route
        self.moving = False
        self.target: Route | None = None
        """Who has read it already, if it was moved on purpose."""

    def usage(self, call: Call) -> Usage | None:
        """What the upstream itself counts of it until now, if it does."""
        found = self.begun(call)
        return None if found is None else found.usage

    def at_a_seam(self, call: Call) -> bool:
        """Whether the rest can begin here. Behind white space it cannot: read again, that is other tokens."""
        found = self.begun(call)
        return found is not None and not found.text[-1:].isspace()

    def begun(self, call: Call) -> Begun | None:
        """What there is of the answer; None if it is not plain text or has ended."""
        return begun(call, self.assemble.body(None, cut=False))


def can_continue(call: Call) -> bool:
    """Whether the answer to ``call`` can be continued from its text."""
    if not call.stream or call.api not in _APIS or call.n != 1 or call.has_tools:
        return False
    fields = call.fields
    if any(name in fields and bytes(fields[name]).replace(b" ", b"") not in _NOTHING for name in _SHAPES):
        return False
    if call.api == "completions":
        return bytes(fields["prompt"])[:1] == b'"'
    last = loads(bytes(_raws(fields["messages"])[-1]))
    if last.get("role") != "assistant":
        return True
    return fields.get("continue_final_message") == _TRUE and isinstance(last.get("content"), str)


def equals(routes: Sequence[Route], route: Route, call: Call) -> tuple[Route, ...]:
    """The other routes that run the model of ``route`` and can continue its answers, as the configuration says."""
    model = _identity(route)
    return tuple(
        other
        for other in routes
        if other.endpoint.name != route.endpoint.name
        and other.endpoint.continues
        and other.spoken_for(call.api) == call.api
        and _identity(other) == model
    )


def _identity(route: Route) -> tuple[str | None, ...]:
    """Which model it is: of a local engine the weights, elsewhere the name that is sent upstream."""
    config = route.endpoint.config
    return ("local", config.weights, config.sha256) if config.kind == "local" else (route.model,)


def begun(call: Call, body: bytes) -> Begun | None:
    """Read an unfinished answer, assembled as ``body``. None if it is not plain text, empty or finished."""
    try:
        answer = loads(body)
        choice = answer["choices"][0]
    except (ValueError, LookupError):
        return None
    said = choice.get("message", {}) if call.api == "chat" else {"content": choice.get("text")}
    text = said.get("content")
    more = any(value for name, value in said.items() if name not in ("role", "content"))
    if more or not isinstance(text, str) or not text:
        return None
    names = {name: answer[name] for name in ("id", "created", "model") if name in answer}
    return Begun(text, names, usage_in(answer))


def rest(call: Call, text: str, made_tokens: int) -> Call | None:
    """The request for what follows ``text``; None if ``made_tokens`` have used up what it may be long."""
    found = _after(call, text)
    fields = found.fields
    for name in CAP_FIELDS[call.api]:
        cap = _any(fields[name]) if name in fields else None
        if cap is not None:
            if cap <= made_tokens:
                return None
            fields[name] = Raw(b"%d" % (cap - made_tokens))
    if call.max_output_tokens is not None:
        found.max_output_tokens = call.max_output_tokens - made_tokens
    return _encoded(found)


def reading(call: Call, text: str) -> Call:
    """The request that makes an endpoint read all of ``text``, and say one token that nobody needs."""
    found = _after(call, text)
    fields = found.fields
    for name in ("stream", "stream_options", *CAP_FIELDS[call.api]):
        fields.pop(name, None)
    fields["max_tokens"] = Raw(b"1")
    found.max_output_tokens = 1
    found.stream = found.include_usage = False
    return _encoded(found)


def _after(call: Call, text: str) -> Call:
    found = copy.copy(call)
    fields = found.fields = dict(call.fields)
    if call.api == "completions":
        fields["prompt"] = Raw(dumps(_any(fields["prompt"]) + text))
        return found
    messages = _messages(fields)
    last = messages[-1]
    if last.get("role") == "assistant":
        messages[-1] = {**last, "content": last["content"] + text}
    else:
        messages.append({"role": "assistant", "content": text})
    fields["messages"] = Raw(dumps(messages))
    fields["continue_final_message"] = _TRUE
    fields["add_generation_prompt"] = _FALSE
    return found


def _encoded(call: Call) -> Call:
    request = call.request = copy.copy(call.request)
    request.body = encode_object(call.fields)
    call.body_bytes = len(request.body)
    return call


def _messages(fields: dict[str, Raw]) -> list[dict[str, Any]]:
    return cast(list[dict[str, Any]], loads(bytes(fields["messages"])))


class Seam(Responder):
    """Where the rest of an answer is written: the events go on to ``sink`` as if they came from where it began.

    Names are the first part's, the role is not told again. Usage is that of the whole answer: what was given to read
    as the beginning of the answer counts as output, once. ``before`` are the attempts that are paid already.
    """

    __slots__ = ("_before", "_client", "_decision_id", "_made", "_names", "_said", "_sink", "_splitter")

    def __init__(
        self,
        client: Responder,
        sink: Sink,
        begun: Begun,
        made_tokens: int,
        decision_id: str,
        before: list[Attempt],
    ) -> None:
        self._client = client
        self._sink = sink
        self._names = begun.names
        self._made = made_tokens
        self._decision_id = decision_id
        self._before = spent(before)
        self._said: dict[str, Any] = {}
        self._splitter = sse.Splitter()
        self.started = False

    def send(self, status: int, headers: bytes, body: bytes) -> None:
        self.start(status, headers, body)

    def start(self, status: int, headers: bytes, first: bytes = b"") -> None:
        self.started = True  # the client has had its headers
        self.write(first)

    def write(self, data: bytes) -> None:
        events = b"".join(map(self._event, self._splitter.feed(data))) if data else b""
        if events:
            self._sink.write(events)

    def finish(self, data: bytes = b"") -> None:
        self.write(data)

    def abort(self) -> None:
        self._client.abort()

    @property
    def gone(self) -> bool:
        return self._client.gone

    @property
    def paused(self) -> bool:
        return self._client.paused

    @property
    def on_gone(self) -> Callable[[], None] | None:
        """The client's."""
        return self._client.on_gone

    @on_gone.setter
    def on_gone(self, call: Callable[[], None] | None) -> None:
        self._client.on_gone = call

    @property
    def on_pause(self) -> Callable[[], None] | None:
        """The client's."""
        return self._client.on_pause

    @on_pause.setter
    def on_pause(self, call: Callable[[], None] | None) -> None:
        self._client.on_pause = call

    @property
    def on_drain(self) -> Callable[[], None] | None:
        """The client's."""
        return self._client.on_drain

    @on_drain.setter
    def on_drain(self, call: Callable[[], None] | None) -> None:
        self._client.on_drain = call

    def _event(self, event: bytes) -> bytes:
        """The client's event for one of the rest."""
        _, data = sse.parse(event)
        if data is None:
            return self._comment(event)
        if data.strip() == b"[DONE]":
            return b": apportion %b\n\n%b" % (self._remark(), event)
        try:
            chunk = loads(data)
        except ValueError:
            return event
        if not isinstance(chunk, dict) or chunk.get("error"):
            return event
        chunk.update((name, value) for name, value in self._names.items() if name in chunk)
        chunk.pop("timings", None)  # of a part of the answer
        choices = chunk.get("choices")
        if choices and not _tells(choices[0]):
            return b""
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            chunk["usage"] = self._whole(usage)
        if "apportion" in chunk:
            self._said = chunk["apportion"]
            chunk["apportion"] = _any(self._remark())
        return b"data: %b\n\n" % dumps(chunk)

    def _comment(self, event: bytes) -> bytes:
        """What the rest says about itself is said of the whole, at its end; a limit that ended it, at once."""
        head, _, said = event.rstrip().partition(b": apportion ")
        if head or not said:
            return b""
        found = loads(said)
        if "cost_mark" in found:
            self._said = found
            return b""
        return b": apportion %b\n\n" % dumps({**found, "decision_id": self._decision_id})

    def _whole(self, usage: dict[str, Any]) -> dict[str, Any]:
        """The usage of both parts: ``usage`` is that of the rest, whose prompt holds what was made before."""
        made = min(self._made, usage.get("prompt_tokens") or 0)
        found = {**usage, "prompt_tokens": usage.get("prompt_tokens", 0) - made}
        found["completion_tokens"] = usage.get("completion_tokens", 0) + made
        details = usage.get("prompt_tokens_details")
        if isinstance(details, dict) and isinstance(details.get("cached_tokens"), int):
            cached = min(details["cached_tokens"], found["prompt_tokens"])
            found["prompt_tokens_details"] = {**details, "cached_tokens": cached}
        return found

    def _remark(self) -> bytes:
        """What the whole has cost."""
        units, mark = self._before
        said = self._said.get("cost_usd")
        marks = {mark, self._said.get("cost_mark", "unknown")}
        found: dict[str, str] = {"decision_id": self._decision_id}
        if units is not None and said is not None:
            found["cost_usd"] = usd(units + int(Decimal(said) * _PICO))
            mark = "estimated" if "estimated" in marks else "measured"
        else:
            mark = "unknown"
        return dumps({**found, "cost_mark": mark})


def _tells(choice: object) -> bool:
    """Whether a choice of the rest tells the client anything new; takes the role from it."""
    if not isinstance(choice, dict):
        return True
    delta = choice.get("delta")
    if isinstance(delta, dict):
        delta.pop("role", None)
        said = any(delta.values())
    else:
        said = bool(choice.get("text"))
    return said or choice.get("finish_reason") is not None
