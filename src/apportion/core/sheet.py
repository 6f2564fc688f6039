"""What one kind of request pays: prices in, spendings out, both in small batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, Protocol

from apportion.core.cost import Cost
from apportion.core.pricer import Pricer

FRESH_S: Final = 0.02
"""Prices move at most this often; what is spent in between moves them together (a mini-batch of the dual step)."""


class Crowd(Protocol):
    """Who knows how many spend from the same budgets."""

    holders: int


class Sheet:
    """What one kind of request (a key asking for a model) pays and reports. ``outside`` are prices in dollars per unit,
    ``pricers`` those of the budgets that apply. Times are in seconds of one clock that never goes back.

    Each of a ``crowd`` sees its own requests only, and takes the others to have spent as much. Sheets with the same
    ``pending`` tell what they know together, so that a shared price rises for all when one has spent and asks no more.
    """

    __slots__ = (
        "_at",
        "_count",
        "_crowd",
        "_gco2",
        "_joules",
        "_outside",
        "_pending",
        "_prices",
        "_server_s",
        "_tokens",
        "_usd",
        "_value",
        "pricers",
    )

    def __init__(
        self,
        outside: Mapping[str, float],
        pricers: tuple[Pricer, ...],
        crowd: Crowd | None = None,
        pending: list[Sheet] | None = None,
    ) -> None:
        self._outside = outside
        self.pricers = pricers
        """Those of the budgets that apply."""
        self._crowd = crowd
        self._pending: list[Sheet] = [] if pending is None else pending
        self._prices: Mapping[str, float] = outside
        self._at = -1e15
        self._count = 0
        self._usd = self._tokens = self._server_s = self._value = self._joules = self._gco2 = 0.0

    def prices(self, now: float) -> Mapping[str, float]:
        """Dollars per unit of each resource: outside prices and the shadow prices of the budgets that apply."""
        if not self.pricers or 0.0 <= now - self._at < FRESH_S:
            return self._prices
        self._at = now
        self.flush(now)
        total = dict(self._outside)
        for pricer in self.pricers:
            for name, price in pricer.prices(now).items():
                total[name] = total.get(name, 0.0) + price
        self._prices = total
        return total

    def flush(self, now: float) -> None:
        """Tell the pricers what was spent since they were told last, on this sheet and those that are told with it."""
        tell_all(self._pending, now)

    def tell(self, now: float) -> None:
        """What was spent on this sheet, without forgetting that it was told: for whoever puts the pricers back."""
        if self._count:
            n = self._everybody
            cost = Cost(
                usd=self._usd * n,
                tokens=self._tokens * n,
                server_seconds=self._server_s * n,
                joules=self._joules * n,
                gco2=self._gco2 * n,
                requests=self._count * n,
            )
            for pricer in self.pricers:
                pricer.spend(cost, now, self._value * n)

    def told(self) -> None:
        """Begin anew."""
        self._count = 0
        self._usd = self._tokens = self._server_s = self._value = self._joules = self._gco2 = 0.0

    @property
    def _everybody(self) -> float:
        return 1.0 if self._crowd is None else float(self._crowd.holders)

    def pays(self, outside: Mapping[str, float], pricers: tuple[Pricer, ...]) -> bool:
        """Whether these are the prices it is made of."""
        return self._outside == outside and self.pricers == pricers

    def spent(
        self,
        usd: float | None,
        tokens: int,
        server_s: float,
        value_usd: float,
        now: float,
        joules: float = 0.0,
        gco2: float = 0.0,
    ) -> None:
        """Take in what an answer cost and what it bought. Dollars that are unknown move no price."""
        if not self.pricers:
            return
        if usd is None:
            n = self._everybody
            cost = Cost(
                tokens=tokens * n, server_seconds=server_s * n, joules=joules * n, gco2=gco2 * n, requests=n
            )
            for pricer in self.pricers:
                pricer.spend(cost, now, value_usd * n)
            return
        if not self._count:
            self._pending.append(self)
        self._count += 1
        self._usd += usd
        self._tokens += tokens
        self._server_s += server_s
        self._joules += joules
        self._gco2 += gco2
        self._value += value_usd


def tell_all(pending: list[Sheet], now: float) -> None:
    """Tell the pricers what was spent on these sheets, which then have nothing more to tell."""
    for sheet in pending:
        sheet.tell(now)
        sheet.told()
    pending.clear()


def payers(team: str, key: str, model: str) -> Iterator[tuple[str, str, str]]:
    """Whose budgets make the prices of a request, the widest first: subject, kind of scope, name.

    Budgets of single users, sessions and endpoints only limit.
    """
    yield "all", "all", ""
    for kind, name in (("team", team), ("key", key), ("model", model)):
        if name:
            yield f"{kind}:{name}", kind, name
