"""Endpoints taken out of rotation and put back by an operator, and what is still under way at them.

A drained endpoint gets no new requests. Its streams go on elsewhere where their models ``resume``; all else ends where
it is. It holds for every worker until it is taken back, the endpoint's configuration changes or the proxy restarts.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec

from apportion.serve import errors
from apportion.serve.moving import Mover
from apportion.serve.routes import Route, Visit
from apportion.serve.runtime import Runtime

Others = Callable[[str, bytes], Awaitable[list[bytes]]]
"""Asks all other workers for a path on their control sockets; the answers of those that gave one."""


class Endpoint(msgspec.Struct):
    """How one endpoint stands: requests under way, and of a drained one's those that move and those that stay."""

    name: str
    draining: bool
    in_flight: int
    moving: int = 0
    staying: int = 0


class Order(msgspec.Struct):
    """What one worker tells another: to drain ``name``, or to put it back; nothing changes where ``on`` is None."""

    name: str | None = None
    on: bool | None = None


class Draining:
    """The handlers of one worker."""

    def __init__(self, runtime: Callable[[], Runtime], mover: Mover, others: Others) -> None:
        self._runtime = runtime
        self._mover = mover
        self._others = others

    def routes(self) -> Iterator[Route]:
        """The part of the route table that is answered here."""
        yield Route("GET", "/apportion/endpoints", "admin", self._list)
        yield Route("POST", "/apportion/endpoints/{name}/drain", "admin", self._drain)
        yield Route("DELETE", "/apportion/endpoints/{name}/drain", "admin", self._put_back)

    def obey(self, order: Order) -> list[Endpoint]:
        """Carry out an order in this worker; the endpoints that it names (all, if none)."""
        found = []
        for name, endpoint in self._runtime().endpoints.items():
            if order.name not in (None, name):
                continue
            if order.on is not None:
                endpoint.draining = order.on
            shown = Endpoint(name, endpoint.draining, endpoint.in_flight)
            if order.on:
                left = self._mover.leave(lambda other, name=name: other == name)  # type: ignore[misc]
                shown.moving, shown.staying = left["moving"], left["staying"]
            found.append(shown)
        return found

    async def _list(self, visit: Visit) -> None:
        visit.send({"object": "list", "data": await self._everywhere(Order())})

    async def _drain(self, visit: Visit) -> None:
        await self._tell(visit, on=True)

    async def _put_back(self, visit: Visit) -> None:
        await self._tell(visit, on=False)

    async def _tell(self, visit: Visit, *, on: bool) -> None:
        name = visit.names["name"]
        if name not in self._runtime().endpoints:
            raise errors.NotFoundError(
                f"There is no endpoint {name[:100]!r}.", field="name", fix="See /apportion/endpoints."
            )
        visit.send((await self._everywhere(Order(name, on)))[0])

    async def _everywhere(self, order: Order) -> list[Endpoint]:
        """Carry out an order in all workers; their endpoints, added up."""
        found = {one.name: one for one in self.obey(order)}
        for body in await self._others("/endpoints", msgspec.json.encode(order)):
            for other in msgspec.json.decode(body, type=list[Endpoint]):
                one = found.get(other.name)
                if one is not None:
                    one.in_flight += other.in_flight
                    one.moving += other.moving
                    one.staying += other.staying
        return list(found.values())


def order(body: Any) -> Order:
    """The order in the request of another worker."""
    return msgspec.json.decode(body, type=Order)
