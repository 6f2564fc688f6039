"""What all evictions share: the size that is held, entries too large, replaced entries, saved state."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from apportion.core.errors import SavedStateError
from apportion.core.eviction import Eviction, Key
from apportion.core.method import Constraint, Interval
from apportion.policy.cache._saved import Part, decode, encode

CAPACITY: Mapping[str, Constraint] = {"capacity": Interval(float, 0.0, closed="neither")}
"""The parameter that every eviction has."""


class Held(Eviction):
    """Subclasses say how an entry that fits enters, how one leaves, and keep ``_size`` up to date."""

    constraints: ClassVar[Mapping[str, Constraint]] = CAPACITY
    outside: ClassVar[frozenset[str]] = frozenset()
    """Attributes that whoever uses the cache sets, no part of what is saved."""
    _size: float

    def reset(self) -> None:
        """Hold nothing."""
        self._size = 0.0

    def insert(self, key: Key, size: float, now: float, cost: float = 1.0) -> Sequence[Key]:
        """Offer an entry: what must go for it, or ``key`` itself. A held one leaves and enters anew."""
        if key in self:
            self.remove(key)
        if not 0.0 < size <= self.capacity:
            return [key]
        return self._enter(key, size, now, cost)

    @abstractmethod
    def _enter(self, key: Key, size: float, now: float, cost: float) -> list[Key]:
        """Take in an entry that is not held and fits; the keys that go for it."""

    @property
    def size(self) -> float:
        """The sizes of all that is held together."""
        return self._size if len(self) else 0.0

    def save(self) -> dict[str, Any]:
        """What is held and learned, as an object that JSON can carry."""
        learned = {name: encode(getattr(self, name)) for name in self._learned()}
        return {"method": type(self).__name__, "capacity": self.capacity, "learned": learned}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Continue from what `save` returned; raises `SavedStateError` if it was of another method or
        capacity.
        """
        cls, learned = type(self).__name__, saved.get("learned")
        if saved.get("method") != cls or not isinstance(learned, Mapping):
            raise SavedStateError(
                f"The saved state is of {saved.get('method')!r}, not of {cls!r}.", field="method"
            )
        if saved.get("capacity") != self.capacity:
            raise SavedStateError(
                f"The saved state is of capacity {saved.get('capacity')!r}, not of {self.capacity!r}.",
                field="capacity",
                fix="Start without it.",
            )
        fresh = self._learned()
        if learned.keys() != fresh:
            raise SavedStateError(
                f"The saved state of {cls} has {sorted(learned)}, expected {sorted(fresh)}.",
                field="learned",
                fix="It was written by another version; start without it.",
            )
        for name, value in learned.items():
            part = getattr(self, name)
            if isinstance(part, Part):
                part.restore(value)
            else:
                setattr(self, name, decode(value))

    def _learned(self) -> set[str]:
        """The attributes that are saved."""
        return vars(self).keys() - type(self).signature().keys() - self.outside
