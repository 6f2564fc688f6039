"""What an answer may take under hard limits: on money, tokens and time at once, before anything is asked.

Limits are feasibility, not price: what could break one is not offered, or only so far that it cannot.
"""

from __future__ import annotations

from typing import Final, TypeVar

from apportion.measure.price import MachinePrice, TokenPrice

UNCAPPED_TOKENS: Final = 16_384
"""Output reserved in a hard dollar budget for a request that neither client nor endpoint caps."""

_MOST_TOKENS: Final = 2**31 - 1
_Number = TypeVar("_Number", int, float)


class Cap:
    """What a route may produce for a request under its limits."""

    __slots__ = ("cut_s", "less", "most_units", "output_tokens", "tokens")

    def __init__(
        self,
        output_tokens: int | None,
        cut_s: float | None,
        most_units: int | None,
        tokens: int | None = None,
        less: bool = False,
    ) -> None:
        self.output_tokens = output_tokens
        """Cap to write into the request, per choice; None leaves what the client said."""
        self.cut_s = cut_s
        """Seconds of machine time after which the budget is gone; None without such a limit."""
        self.most_units = most_units
        """The most the answer can cost, in pico-dollars; None where that is not bounded."""
        self.tokens = tokens
        """The most tokens it can take, input and output; None where that is not bounded."""
        self.less = less
        """Whether it may be less than was asked for."""


NO_CAP: Final = Cap(None, None, None)


def cap(
    units: int | None,
    tokens: int | None,
    seconds: float | None,
    *,
    price: TokenPrice | None,
    flat: tuple[int, int, int] | None,
    machine: MachinePrice | None,
    total_s: float,
    tokens_in: int | None,
    asked: int | None,
    otherwise: int | None,
    n: int,
    generates: bool,
) -> Cap | None:
    """What a route may produce with so many pico-dollars, tokens and seconds left; None where not even the least fits.

    A limit that is None does not apply. ``price`` or ``machine`` is what it costs (``flat`` the price's
    `TokenPrice.flat_rates`), ``total_s`` the longest that it may work in any case. ``tokens_in`` bounds the input, None
    where that cannot be told; ``asked`` is the client's cap on each of the ``n`` answers that it wants, ``otherwise``
    what is taken for one where it gave none (None: as much as fits). What does not ``generate`` has no output.
    """
    if units is None and tokens is None and seconds is None:
        return NO_CAP
    if seconds is None:
        whole = roomy(units, tokens, flat, tokens_in, asked, n)
        if whole is not None:
            return whole
    cut_s = None
    if machine is not None and units is not None:
        if units <= 0:
            return None
        seconds = shorter(seconds, units * 3600 / machine.hour if machine.hour else None)
    if seconds is not None and seconds < total_s:
        if seconds <= 0.0:
            return None
        cut_s = seconds
    less = cut_s is not None
    most: int | None = None
    if machine is not None:
        units, most = None, machine.units(cut_s or total_s)
    if units is None and tokens is None:
        return Cap(None, cut_s, most, None, less)
    if tokens_in is None or (units is not None and price is None):
        return None
    if not generates:
        if price is not None:
            most = price.most_units(tokens_in, 0)
        if (units is not None and (most or 0) > units) or (tokens is not None and tokens_in > tokens):
            return None
        return Cap(None, cut_s, most, tokens_in, less)
    within: int | None = None
    if units is not None and price is not None:
        within = _output_within(price, flat, units, tokens_in) // n
    if tokens is not None:
        within = shorter(within, (tokens - tokens_in) // n)
    if within is None or within < 1:
        return None
    wanted = asked or otherwise
    tokens_out = within
    if wanted is not None:
        less = less or within < wanted
        tokens_out = min(within, wanted)
    if flat is not None:
        most = flat[0] + tokens_in * flat[1] + tokens_out * n * flat[2]
    elif price is not None:
        most = price.most_units(tokens_in, tokens_out * n)
    changed = asked is None or tokens_out < asked
    return Cap(tokens_out if changed else None, cut_s, most, tokens_in + tokens_out * n, less)


def _output_within(price: TokenPrice, flat: tuple[int, int, int] | None, units: int, tokens_in: int) -> int:
    """`TokenPrice.output_tokens_within`, without finding the highest rates anew where they are ``flat``."""
    if flat is None or not flat[2]:
        return price.output_tokens_within(units, tokens_in)
    left = units - flat[0] - tokens_in * flat[1]
    return min(left // flat[2], _MOST_TOKENS) if left > 0 else 0


def roomy(
    units: int | None,
    tokens: int | None,
    flat: tuple[int, int, int] | None,
    tokens_in: int | None,
    asked: int | None,
    n: int,
) -> Cap | None:
    """`cap` for the common case, quickly: that of a request which its client capped, if no time is limited and there is
    room for all of it; else None.
    """
    if asked is None or tokens_in is None:
        return None
    out = asked * n
    most = None
    if units is not None:
        if flat is None:
            return None
        most = flat[0] + tokens_in * flat[1] + out * flat[2]
        if most > units:
            return None
    if tokens is not None and tokens_in + out > tokens:
        return None
    return Cap(None, None, most, tokens_in + out)


def seconds_within(units: int, rate: int | None) -> float | None:
    """How long a route may work for ``units`` of server time, energy or carbon, of which it takes ``rate`` in a second
    (None: not known); None: as long as it likes.
    """
    if rate is None:
        return 0.0  # what cannot be measured is not promised
    return units / rate if rate else None


def shorter(one: _Number | None, other: _Number | None) -> _Number | None:
    """The smaller of two limits; None is no limit."""
    if one is None or (other is not None and other < one):
        return other
    return one
