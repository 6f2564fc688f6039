"""Which route a method and a path have, and the names in it."""

from __future__ import annotations

import pytest

from apportion.serve import errors
from apportion.serve.routes import Route, Routes, Visit


async def nothing(visit: Visit) -> None: ...


ROUTES = Routes(
    Route(method, path, "key", nothing)
    for method, path in (
        ("GET", "/"),
        ("GET", "/a"),
        ("POST", "/a"),
        ("GET", "/a/self"),
        ("GET", "/a/{id}"),
        ("DELETE", "/a/{id}"),
        ("POST", "/a/{id}/turn"),
        ("GET", "/b/{name...}"),
    )
)


@pytest.mark.parametrize(
    ("method", "path", "found", "names"),
    [
        ("GET", "/", "/", {}),
        ("HEAD", "/a", "/a", {}),
        ("POST", "/a", "/a", {}),
        ("GET", "/a/self", "/a/self", {}),
        ("GET", "/a/x", "/a/{id}", {"id": "x"}),
        ("GET", "/a/{id}", "/a/{id}", {"id": "{id}"}),
        ("DELETE", "/a/..", "/a/{id}", {"id": ".."}),
        ("POST", "/a/x/turn", "/a/{id}/turn", {"id": "x"}),
        ("GET", "/b/x", "/b/{name...}", {"name": "x"}),
        ("GET", "/b/x/y/", "/b/{name...}", {"name": "x/y/"}),
    ],
)
def test_found(method: str, path: str, found: str, names: dict[str, str]) -> None:
    route, given = ROUTES.find(method, path)
    assert (route.path, dict(given)) == (found, names)
    assert route.method == ("GET" if method == "HEAD" else method)


@pytest.mark.parametrize(
    "path", ["", "a", "/A", "/a/", "//a", "/a//turn", "/a/x/", "/a/x/turn/", "/a/x/turn/y", "/b", "/b/", "/c"]
)
def test_not_found(path: str) -> None:
    with pytest.raises(errors.NotFoundError):
        ROUTES.find("GET", path)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/a", ("GET", "HEAD", "POST")),
        ("get", "/a", ("GET", "HEAD", "POST")),
        ("DELETE", "/a/self", ("GET", "HEAD")),
        ("HEAD", "/a/x/turn", ("POST",)),
    ],
)
def test_not_with_this_method(method: str, path: str, allow: tuple[str, ...]) -> None:
    with pytest.raises(errors.MethodNotAllowedError) as caught:
        ROUTES.find(method, path)
    assert caught.value.allow == allow
