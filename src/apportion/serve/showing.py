"""Past answers of a large model shown to a small one (IC-Cache): when, how, and what is learned of it.

The small endpoint with examples is one more option of the router: its input is longer, its predicted quality higher.
Only requests of a single turn teach and are shown, for what a later turn means depends on what came before.
"""

from __future__ import annotations

import copy
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

import msgspec

from apportion.core.cost import Cost
from apportion.core.option import Option
from apportion.serve.cache.incontext import Chosen, Examples
from apportion.serve.call import ROUTES, Call, encode_object
from apportion.serve.config.schema import Examples as Settings
from apportion.serve.identity import tenant
from apportion.serve.runtime import Route
from apportion.serve.transcript import answered

if TYPE_CHECKING:
    from apportion.serve.job import Job
    from apportion.serve.verdicts import Verdict

MARK: Final = "+examples"
"""What an action ends with when examples are shown."""
APIS: Final = ("chat", "messages", "responses")
NONE: Final = Chosen((), (), 0.0, ())
_CHARS_PER_TOKEN: Final = 4.0
_PERSONAL: Final = frozenset(
    ("stream", "stream_options", "user", "safety_identifier", "metadata", "seed", "store", "apportion")
)
"""What is left out when a request is asked again: whose it was, and how it was to be sent."""
_PATHS: Final = {api: f"/v1{path}" for path, api in ROUTES.items()}
CUT: Final = ("length", "max_tokens", "incomplete")
"""Finish reasons of an answer that a limit ended."""
_COLD: Final = (b"0", b"0.0")
_UNTOLD: Final = 0.75
"""Quality of a teacher's answer that nobody has predicted."""


class Class:
    """The examples of one model, with who teaches and who is taught."""

    __slots__ = ("examples", "settings")

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.examples = Examples(
            settings.bytes,
            similarity=settings.similarity,
            least=settings.quality,
            curiosity=settings.curiosity,
        )

    def choose(self, tenant: str, vector: tuple[float, ...] | None, now: float) -> Chosen | None:
        """What could be shown for a request; None if nothing is near."""
        if vector is None:
            return None
        chosen = self.examples.choose(tenant, vector, self.settings.k, now)
        return chosen if chosen.ids else None

    def student(self, routes: list[Route]) -> int | None:
        """The place of who is taught; None where it is not offered."""
        name = self.settings.student
        return next((i for i, route in enumerate(routes) if route.endpoint.name == name), None)

    def add(self, job: Job, vector: tuple[float, ...], answer: str, option: Option) -> None:
        """The teacher has answered."""
        self.examples.add(
            owner(job),
            job.question,
            vector,
            answer,
            quality=_UNTOLD if option.quality is None else option.quality,
            usd=option.cost.get("usd") or 0.0,
            now=job.now,
            decision_id=job.id,
            asked=b"" if self.settings.replay is None else again(job.call),
        )

    def heard(self, verdict: Verdict, chosen: Chosen | None) -> None:
        """How good an answer of one of the two was; ``chosen`` are the examples that were shown with it."""
        if verdict.endpoint == self.settings.teacher:
            self.examples.judged(verdict.decision_id, verdict.quality)
        elif verdict.endpoint == self.settings.student:
            if chosen is None and verdict.action.endswith(MARK):
                return  # it is no longer known which they were
            options = () if verdict.state is None else verdict.state.options
            action = verdict.action.removesuffix(MARK)
            plain = next((option.quality for option in options if option.action == action), None)
            self.examples.learn(chosen or NONE, verdict.quality, plain)


def owner(job: Job) -> str:
    """Whose examples a request sees and adds to: shared as answers are (`cache.share`), per instructions."""
    share = job.runtime.config.cache.share
    found = tenant(job.key)
    if share != "team":
        found += f"/{job.key.name}"
    if share == "user":
        found += f"/{job.user}"
    fields = job.call.fields
    given = fields.get("messages") or fields.get("input") or b"[]"
    try:
        before = [bytes(one) for one in msgspec.json.decode(given, type=list[msgspec.Raw])[:-1]]
    except msgspec.ValidationError:
        before = []
    said = b"\n".join([*before, bytes(fields.get("system", b"")), bytes(fields.get("instructions", b""))])
    return f"{found}/{blake2b(said, digest_size=8).hexdigest()}"


def again(call: Call) -> bytes:
    """``call`` as it can be asked once more, nobody's: its path, a line break, its body; empty if the answer would be
    the same."""
    if bytes(call.fields.get("temperature", b"")) in _COLD:
        return b""
    kept = {name: value for name, value in call.fields.items() if name not in _PERSONAL}
    kept["apportion"] = msgspec.Raw(b'{"cache":"off"}')
    return _PATHS[call.api].encode() + b"\n" + encode_object(kept)


def text_of(path: str, body: bytes) -> str:
    """What the answer to such a request says; empty unless it is whole and nothing but text."""
    return told(answered(ROUTES[path.removeprefix("/v1")], body, stream=False))


def told(outputs: list[dict[str, Any]]) -> str:
    """The text of the first of an answer's messages; empty if it was cut or holds anything else."""
    if not outputs or outputs[0].get("finish_reason") in CUT:
        return ""
    parts = outputs[0]["parts"]
    if any(part["type"] != "text" for part in parts):
        return ""
    return "".join(part["content"] for part in parts)


def option(plain: Option, chosen: Chosen, route: Route) -> Option:
    """``plain`` with the examples before the question."""
    tokens = sum(len(question) + len(answer) for question, answer in chosen.pairs) / _CHARS_PER_TOKEN
    cost = dict(plain.cost)
    cost["tokens"] = cost.get("tokens", 0.0) + tokens
    if "usd" in cost:
        cost["usd"] += route.usd_in * tokens
    quality = None if plain.quality is None else min(1.0, plain.quality + max(0.0, chosen.utility))
    value = plain.value
    if plain.quality and quality is not None:
        value *= quality / plain.quality
    return Option(
        plain.action + MARK,
        value,
        Cost.of(cost),
        load=plain.load,
        weight=plain.weight,
        quality=quality,
        quality_sd=plain.quality_sd,
        facts=plain.facts,
    )


def shown_messages(messages: list[Any], chosen: Chosen) -> list[Any]:
    """``messages`` with the examples before the last one."""
    pairs: list[dict[str, str]] = []
    for question, answer in chosen.pairs:
        pairs += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return [*messages[:-1], *pairs, *messages[-1:]]


def shown(call: Call, chosen: Chosen) -> Call:
    """The request with the examples before the last message."""
    found = copy.copy(call)
    fields = found.fields = dict(call.fields)
    name = "input" if call.api == "responses" else "messages"
    given: Any = msgspec.json.decode(fields[name])
    messages = [{"role": "user", "content": given}] if isinstance(given, str) else given
    fields[name] = msgspec.Raw(msgspec.json.encode(shown_messages(messages, chosen)))
    request = found.request = copy.copy(call.request)
    request.body = encode_object(fields)
    found.body_bytes = len(request.body)
    return found
