"""A guard's verdict carried out: a request is capped, asked to be brief, re-priced or refused, its answer watched."""

from __future__ import annotations

import copy
from typing import Any, Final

import msgspec

from apportion.core.features import Features
from apportion.core.guard import Guard, StreamWatch
from apportion.serve import errors, identity
from apportion.serve.call import STREAMED, Call, encode_object
from apportion.serve.job import Job

_NOTHING = Features(())
_FORMS: Final = (
    "response_format",
    "grammar",
    "json_schema",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "structured_outputs",
    "tools",
    "functions",
)
"""Fields of a request that may forbid the end of the text where the model would like it, unless they are..."""
_FREE: Final = (b"null", b"[]", b'{"type":"text"}')


def inspect(job: Job, guard: Guard) -> None:
    """Ask the guard about a request and do as it says. Raises ``ConstraintError`` where it refuses."""
    call = job.call
    if not call.api_generates:
        return
    features = job.features or _NOTHING
    verdict = job.verdict = guard.inspect(
        features, identity.tenant(job.key), job.group.name, call.max_output_tokens
    )
    job.guarded = call.api in STREAMED and call.n == 1
    if verdict.action == "refuse":
        raise errors.ConstraintError(
            f"The guard of model {job.group.name!r} refuses this: {verdict.why}.",
            fix="Ask for less in one request, or cap its output.",
        )
    tokens = verdict.max_tokens
    if tokens is not None and call.max_output_tokens is not None and call.max_output_tokens <= tokens:
        tokens = None
    if tokens is not None or verdict.note is not None:
        job.ask_instead(_changed(call, tokens, verdict.note))
        job.guarded_cap = tokens is not None


def watch(job: Job) -> StreamWatch | None:
    """A watcher for one answer of ``job``."""
    guard, route = job.group.methods.guard, job.route
    if guard is None or route is None:
        return None
    tenant, expected = identity.tenant(job.key), job.tokens_out((route,))[0]
    return guard.watch(tenant, job.group.name, expected, job.features)


def temperature(call: Call) -> float | None:
    """At which an answer is drawn, 1 where it is not said; None above, and where its end may be forbidden."""
    fields = call.fields
    if any(bytes(fields.get(name, b"null")) not in _FREE for name in _FORMS):
        return None
    try:
        said = msgspec.json.decode(fields.get("temperature", b"null"), type=float | None)
        bias = msgspec.json.decode(fields.get("logit_bias", b"null"), type=dict[str, float] | None)
    except ValueError:
        return None
    if (said is not None and not 0.0 <= said <= 1.0) or any(value > 0.0 for value in (bias or {}).values()):
        return None
    return 1.0 if said is None else said


def asks_logprobs(job: Job, spoken: str) -> bool:
    """Whether log probabilities are asked for, and kept from the client, who did not ask."""
    guard, call = job.group.methods.guard, job.call
    if not job.guarded or guard is None or not guard.logprobs or not spoken == call.api == "chat":
        return False
    return bytes(call.fields.get("logprobs", b"null")) in (b"null", b"false")


def _changed(call: Call, max_tokens: int | None, note: str | None) -> Call:
    """The request with a cap and a remark to the model."""
    found = copy.copy(call)
    fields = found.fields = dict(call.fields)
    if max_tokens is not None:
        found.max_output_tokens = max_tokens
    if note is not None:
        _remark(call, fields, note)
        request = found.request = copy.copy(call.request)
        request.body = encode_object(fields)
        found.body_bytes = len(request.body)
    return found


def _remark(call: Call, fields: dict[str, msgspec.Raw], note: str) -> None:
    if call.api == "chat":
        messages: list[Any] = msgspec.json.decode(fields["messages"])
        first = messages[0]
        if first.get("role") in ("system", "developer") and isinstance(first.get("content"), str):
            messages[0] = {**first, "content": f"{first['content']}\n\n{note}"}
        else:
            messages.insert(0, {"role": "system", "content": note})
        fields["messages"] = _raw(messages)
    elif call.api in ("messages", "responses"):
        name = "system" if call.api == "messages" else "instructions"
        before = msgspec.json.decode(fields[name]) if name in fields else None
        if isinstance(before, list):
            fields[name] = _raw([*before, {"type": "text", "text": note}])
        else:
            fields[name] = _raw(f"{before}\n\n{note}" if before else note)


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))
