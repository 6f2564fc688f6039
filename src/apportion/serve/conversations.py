"""Where each conversation was answered last, and how much of it that provider may still hold in its prompt cache.

A next turn repeats the messages before it and adds to them. So a conversation is known again by the digest of the
messages it began with: none of it is kept, no client has to name it, and nothing is shared between tenants.
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b
from typing import Final, NamedTuple

import msgspec

from apportion.serve.call import Call

_LEAST_TOKENS: Final = 1024
"""Shorter beginnings are in no provider's prompt cache."""
_decode: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode


class Turn(NamedTuple):
    """The last turn of a conversation: the route that answered it, when, and its input tokens."""

    action: str
    at_s: float
    input_tokens: int


class Marks(NamedTuple):
    """What a request is known by: the digest of its session if it names one, and those of its first message, its
    first two, ... all of them."""

    session: bytes | None
    beginnings: list[bytes]


class Conversations:
    """The latest ``capacity`` conversations of one model."""

    __slots__ = ("_capacity", "_keep_s", "_turns")

    def __init__(self, keep_s: float, capacity: int = 8192) -> None:
        self._keep_s = keep_s
        self._capacity = capacity
        self._turns: OrderedDict[bytes, Turn] = OrderedDict()

    def find(self, marks: Marks, now: float) -> tuple[str, int] | None:
        """The route that answered the conversation's last turn, and the tokens that its provider may hold.

        None for a conversation that is new or was too long ago.
        """
        turns = self._turns
        for mark in reversed(marks.beginnings):
            turn = turns.get(mark)
            if turn is not None and now - turn.at_s <= self._keep_s:
                return turn.action, turn.input_tokens if turn.input_tokens >= _LEAST_TOKENS else 0
        turn = None if marks.session is None else turns.get(marks.session)
        return None if turn is None or now - turn.at_s > self._keep_s else (turn.action, 0)

    def remember(self, marks: Marks, action: str, input_tokens: int, now: float) -> None:
        """The request with these marks was answered by ``action``."""
        turns = self._turns
        for mark in (marks.session, *marks.beginnings[-1:]):
            if mark is not None:
                turns[mark] = Turn(action, now, input_tokens)
                turns.move_to_end(mark)
        while len(turns) > self._capacity:
            turns.popitem(last=False)

    def __len__(self) -> int:
        return len(self._turns)


def marks_of(tenant: str, call: Call) -> Marks:
    """What ``call`` of a tenant is known by."""
    key = blake2b(tenant.encode(), digest_size=32).digest()
    session = None
    if call.session is not None:
        session = blake2b(call.session.encode(), key=key, digest_size=16).digest()
    raw = call.fields.get("messages") or call.fields.get("input")
    if raw is None:
        return Marks(session, [])
    try:
        messages = _decode(raw)
    except msgspec.ValidationError:  # a text in place of messages
        messages = [raw]
    running = blake2b(key=key, digest_size=16)
    system = call.fields.get("system") or call.fields.get("instructions")
    if system is not None:
        running.update(system)
    beginnings = []
    for message in messages:
        running.update(message)
        beginnings.append(running.copy().digest())
    return Marks(session, beginnings)
