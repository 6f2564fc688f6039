"""Amounts by resource. What is missing is unknown, never silently zero."""

from __future__ import annotations

import sys
from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any, Self, TypeVar, overload

from apportion.core.errors import AmountError

T = TypeVar("T")

_MOST = sys.float_info.max


class Cost(Mapping[str, float]):
    """Amounts by resource name, each in the resource's unit: ``Cost(usd=0.1, tokens=5)``.

    A resource that is missing is *unknown*, and stays unknown in sums. Treat it as immutable. Building one
    does not look at the amounts (this is the hot path); `check` does.
    """

    __slots__ = ("_amounts",)

    def __init__(self, **amounts: float) -> None:
        self._amounts = amounts

    @classmethod
    def of(cls, amounts: dict[str, float]) -> Self:
        """A cost over ``amounts`` itself, without a copy: the caller must not change it afterwards."""
        self = cls.__new__(cls)
        self._amounts = amounts
        return self

    def at_prices(self, prices: Mapping[str, float]) -> float | None:
        """The sum of price times amount, in dollars; None if a resource with a price above 0 is unknown."""
        amounts = self._amounts
        total = 0.0
        for name, price in prices.items():
            if price:
                amount = amounts.get(name)
                if amount is None:
                    return None
                total += price * amount
        return total if total == total else None

    def within(self, limits: Mapping[str, float]) -> bool:
        """Whether every limited resource is known and does not pass its limit."""
        amounts = self._amounts
        for name, limit in limits.items():
            amount = amounts.get(name)
            if amount is None or not amount <= limit:
                return False
        return True

    def check(self) -> Self:
        """This cost, if every amount is finite and zero or more; else `AmountError` naming the resource."""
        for name, amount in self._amounts.items():
            number = type(amount) is float or isinstance(amount, (int, float))
            if not number or not 0 <= amount <= _MOST:
                raise AmountError(
                    f"The cost in {name} must be finite and zero or more, got {amount!r}.", field=name
                )
        return self

    def __add__(self, other: Cost) -> Cost:
        """The sum; a resource that is unknown on either side is unknown in it."""
        if not isinstance(other, Cost):
            return NotImplemented
        theirs = other._amounts
        return Cost.of({name: a + theirs[name] for name, a in self._amounts.items() if name in theirs})

    def __radd__(self, other: object) -> Cost:
        return self if other == 0 else NotImplemented

    def __mul__(self, factor: float) -> Cost:
        """Every amount times ``factor``."""
        return Cost.of({name: amount * factor for name, amount in self._amounts.items()})

    __rmul__ = __mul__

    def __le__(self, other: Cost) -> bool:
        """Whether both know the same resources and this one takes no more of any."""
        mine, theirs = self._amounts, other._amounts
        return mine.keys() == theirs.keys() and all(amount <= theirs[name] for name, amount in mine.items())

    def __getitem__(self, name: str) -> float:
        return self._amounts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._amounts)

    def __len__(self) -> int:
        return len(self._amounts)

    def __contains__(self, name: object) -> bool:
        return name in self._amounts

    @overload
    def get(self, name: str, default: None = None, /) -> float | None: ...
    @overload
    def get(self, name: str, default: float | T, /) -> float | T: ...
    def get(self, name: str, default: Any = None, /) -> Any:
        """The amount of ``name``, or ``default`` when it is unknown."""
        return self._amounts.get(name, default)

    def keys(self) -> KeysView[str]:
        """The known resources."""
        return self._amounts.keys()

    def values(self) -> ValuesView[float]:
        """The known amounts."""
        return self._amounts.values()

    def items(self) -> ItemsView[str, float]:
        """The known resources with their amounts."""
        return self._amounts.items()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Cost):
            return self._amounts == other._amounts
        return self._amounts == other if isinstance(other, dict) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Cost({', '.join(f'{name}={amount!r}' for name, amount in self._amounts.items())})"
