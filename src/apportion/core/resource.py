"""What can be scarce: a name with a unit, and exact whole numbers of its smallest part."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from apportion.core.errors import AmountError, ApportionError, UnknownResourceError

_EXACT = float(2**50)
"""Below this, a float times a power of ten is off by less than a quarter of a unit."""


@dataclass(frozen=True, slots=True)
class Resource:
    """A scarce thing: ``name`` (the key in costs, prices and budgets), its ``unit`` and its smallest part.

    Books are kept in whole numbers of the smallest part, ``10 ** -decimals`` units, so that sums are exact.
    """

    name: str
    unit: str
    decimals: int
    summary: str = ""

    def to_units(self, amount: float | Decimal) -> int:
        """``amount`` (in ``unit``) as a whole number of smallest parts, to the nearest, ties to even.

        Raises `AmountError` unless the amount is finite and zero or more.
        """
        if not (0 <= amount < math.inf):
            raise AmountError(
                f"An amount of {self.name} must be finite and zero or more, got {amount!r}.", field=self.name
            )
        if isinstance(amount, int):
            return int(amount) * int(10**self.decimals)
        if isinstance(amount, float):
            parts = amount * 10.0**self.decimals
            if parts < _EXACT:
                return round(parts)
            amount = Decimal(repr(amount))
        return round(Fraction(amount) * Fraction(10) ** self.decimals)

    def from_units(self, units: int) -> Decimal:
        """A whole number of smallest parts, of either sign, as an exact amount in ``unit``."""
        sign, digits, _ = Decimal(units).as_tuple()
        return Decimal((sign, digits, -self.decimals))

    def __str__(self) -> str:
        return self.name


USD = Resource("usd", "dollar", 12, "money, in United States dollars")
SECONDS = Resource("seconds", "second", 9, "time that somebody waits")
SERVER_SECONDS = Resource("server_seconds", "second", 9, "time that a machine is occupied")
TOKENS = Resource("tokens", "token", 0, "tokens read and written by a model")
JOULES = Resource("joules", "joule", 6, "electrical energy")
GCO2 = Resource("gco2", "gram", 6, "carbon dioxide equivalent emitted, in grams")
FLOPS = Resource("flops", "operation", 0, "floating-point operations")
BYTES = Resource("bytes", "byte", 0, "memory occupied")
SAMPLES = Resource("samples", "sample", 0, "answers drawn from a model")
REQUESTS = Resource("requests", "request", 0, "requests made")
PARALLEL = Resource("parallel", "request", 0, "requests under way at once")

_resources: dict[str, Resource] = {
    r.name: r
    for r in (
        *(USD, SECONDS, SERVER_SECONDS, TOKENS, JOULES, GCO2),
        *(FLOPS, BYTES, SAMPLES, REQUESTS, PARALLEL),
    )
}


def resource(name: str) -> Resource:
    """The resource called ``name``; raises `UnknownResourceError` with the nearest name."""
    try:
        return _resources[name]
    except KeyError:
        near = difflib.get_close_matches(name, _resources, n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise UnknownResourceError(
            f"There is no resource {name!r}.",
            field="resource",
            fix=f"{hint}Known: {', '.join(sorted(_resources))}; add others with add_resource().",
        ) from None


def add_resource(new: Resource) -> Resource:
    """Make ``new`` known by its name; adding the same one twice is fine, changing a known one is not."""
    if not new.name.isidentifier() or not 0 <= new.decimals <= 18:
        raise ApportionError(
            f"The resource {new!r} needs a name of letters, digits and underscores and 0 to 18 decimals.",
            field="resource",
        )
    known = _resources.setdefault(new.name, new)
    if known != new:
        raise ApportionError(
            f"The resource {new.name!r} is already known with another meaning: {known!r}.", field="resource"
        )
    return known


def resources() -> tuple[Resource, ...]:
    """All known resources, the built-in ones first."""
    return tuple(_resources.values())
