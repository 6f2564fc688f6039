"""Doubles and builders for the tests of the answer cache."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, final

import msgspec

from apportion.core.eviction import Eviction, Key


@final
class Oldest(Eviction):
    """Drops what was not used the longest."""

    def __init__(self, *, capacity: float) -> None:
        self.capacity = capacity
        self.start()

    def reset(self) -> None:
        self._sizes: OrderedDict[Key, float] = OrderedDict()

    def hit(self, key: Key, now: float) -> None:
        if key in self._sizes:
            self._sizes.move_to_end(key)

    def insert(self, key: Key, size: float, now: float, cost: float = 1.0) -> Sequence[Key]:
        if size > self.capacity:
            return [key]
        self._sizes[key] = size
        self._sizes.move_to_end(key)
        gone = []
        while self.size > self.capacity:
            gone.append(self._sizes.popitem(last=False)[0])
        return gone

    def remove(self, key: Key) -> None:
        self._sizes.pop(key, None)

    def __contains__(self, key: object) -> bool:
        return key in self._sizes

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def size(self) -> float:
        return sum(self._sizes.values())


def oldest(capacity: float) -> Eviction:
    return Oldest(capacity=capacity)


def fields(**body: Any) -> dict[str, msgspec.Raw]:
    """A request's fields as `call.parse` leaves them."""
    return msgspec.json.decode(json.dumps(body).encode(), type=dict[str, msgspec.Raw])


def chat(text: str = "hello", **more: Any) -> dict[str, msgspec.Raw]:
    return fields(**{"model": "m", "messages": [{"role": "user", "content": text}], **more})


def answered(text: str = "hi", finish: str = "stop", n: int = 1, **more: Any) -> bytes:
    """A whole chat answer."""
    message = {"role": "assistant", "content": text, "refusal": None}
    choices = [{"index": i, "message": message, "logprobs": None, "finish_reason": finish} for i in range(n)]
    return json.dumps({"id": "c", "object": "chat.completion", "choices": choices, **more}).encode()
