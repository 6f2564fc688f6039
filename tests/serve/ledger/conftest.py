"""The durable record on both databases, made once for each file of tests and emptied for each test."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from record import Record

import servers


@pytest.fixture(scope="module")
def _urls() -> Iterator[dict[str, str]]:
    urls: dict[str, str] = {}
    yield urls
    if "postgresql" in urls:
        servers.drop_database(urls["postgresql"])


@pytest.fixture(params=["sqlite", "postgresql"])
def books(
    request: pytest.FixtureRequest, _urls: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Record]:
    """An empty record."""
    kind: str = request.param
    if kind == "postgresql":
        server = os.environ.get("APPORTION_TEST_POSTGRES_URL") or request.getfixturevalue("postgres").url()
        if kind not in _urls:
            _urls[kind] = servers.create_database(server)
    elif kind not in _urls:
        _urls[kind] = f"sqlite:///{tmp_path_factory.mktemp('record') / 'ledger.db'}"
    record = Record(_urls[kind])
    yield record
    record.dispose()
