"""Which handler answers a method and a path, and who may ask. Roles belong to the route that was matched.

Neither the Host header nor the raw address is looked at: the path has been decoded once, by the server.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final, Literal, NamedTuple

import msgspec

from apportion.serve import errors
from apportion.serve.config.schema import Key
from apportion.serve.http.server import Request, Responder

Role = Literal["open", "exposed", "key", "admin"]
"""Who may ask. ``open``: everybody. ``key``: whoever has a key. ``admin``: whoever has an admin key. ``exposed``:
everybody on this machine; where others can reach the proxy, admin keys only."""

NOBODY: Final = Key(name="", models=[])
"""Who asks on a route that needs no key."""


class Visit(NamedTuple):
    """One request to a route. ``names`` are the parts of the path that the route names."""

    request: Request
    responder: Responder
    number: str
    key: Key
    names: Mapping[str, str]

    def send(self, value: object, status: int = 200) -> None:
        """Answer with ``value`` as JSON."""
        headers = f"content-type: application/json\r\nx-request-id: {self.number}\r\n".encode()
        self.responder.send(status, headers, msgspec.json.encode(value))


Handler = Callable[[Visit], Awaitable[None]]


class Route(NamedTuple):
    """``path`` has names in braces, for one part (``{id}``) or, at its end, for all that follow (``{id...}``)."""

    method: str
    path: str
    role: Role
    handler: Handler


class Routes:
    """A table of routes. A path without names goes before one with."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.table: tuple[Route, ...] = tuple(routes)
        self._exact: dict[str, dict[str, Route]] = {}
        self._named: dict[tuple[str, ...], dict[str, Route]] = {}
        for route in self.table:
            if "{" in route.path:
                self._named.setdefault(tuple(route.path.split("/")), {})[route.method] = route
            else:
                self._exact.setdefault(route.path, {})[route.method] = route

    def find(self, method: str, path: str) -> tuple[Route, Mapping[str, str]]:
        """The route of a request and the names in its path. HEAD is GET.

        Raises ``NotFoundError``, ``MethodNotAllowedError``.
        """
        methods, names = self._methods(path)
        route = methods.get("GET" if method == "HEAD" else method)
        if route is None:
            allowed = sorted(methods)
            error = errors.MethodNotAllowedError(
                f"{path[:200]} is not answered to {method[:20]}.",
                field="method",
                fix=f"Use {' or '.join(allowed)}.",
            )
            error.allow = tuple(
                name for each in allowed for name in (("GET", "HEAD") if each == "GET" else (each,))
            )
            raise error
        return route, names

    def _methods(self, path: str) -> tuple[dict[str, Route], Mapping[str, str]]:
        exact = self._exact.get(path)
        if exact is not None:
            return exact, {}
        parts = path.split("/")
        for pattern, methods in self._named.items():
            names = _match(pattern, parts)
            if names is not None:
                return methods, names
        raise errors.NotFoundError(
            f"There is nothing at {path[:200]!r}.", field="path", fix="See /openapi.json."
        )


def _match(pattern: tuple[str, ...], parts: list[str]) -> dict[str, str] | None:
    names = {}
    for index, expected in enumerate(pattern):
        if index >= len(parts):
            return None
        if expected.endswith("...}"):
            names[expected[1:-4]] = "/".join(parts[index:])
            return names if names[expected[1:-4]] else None
        if expected.startswith("{"):
            if not parts[index]:
                return None
            names[expected[1:-1]] = parts[index]
        elif parts[index] != expected:
            return None
    return names if len(parts) == len(pattern) else None
