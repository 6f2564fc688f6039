"""The ledger of a configuration, opened: the database, what lends in front of it, the people in it."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from apportion.core.errors import ApportionError
from apportion.serve.config.schema import Config
from apportion.serve.config.state import shown
from apportion.serve.ledger.bank import Bank
from apportion.serve.ledger.database import Database
from apportion.serve.ledger.entries import BankError
from apportion.serve.ledger.ledger import Ledger, Settings
from apportion.serve.ledger.people import People

logger = logging.getLogger("apportion.ledger")

_PATIENCE_S: Final = 20.0
"""How long a starting proxy waits for its database, which may be starting, too."""
_PAUSE_S: Final = 0.5

FIRST_KEY: Final = "admin"
"""Name of the key that the first start makes."""

_T = TypeVar("_T")


class LedgerError(ApportionError):
    """The ledger cannot be opened."""

    code = "ledger"


class Opened(NamedTuple):
    """What a worker needs of the books."""

    ledger: Ledger
    bank: Bank
    database: Database
    people: People
    prices: dict[str, str]
    """Prices as they were saved last, by scope."""


async def open_ledger(config: Config, rng: random.Random) -> Opened:
    """Open the database (making or migrating its tables), recover what died, register. Raises `LedgerError`."""
    url = config.ledger_url()
    settings = Settings(
        None if url == "memory" else _journal(config, url),
        config.ledger.lease_s,
        config.ledger.commit_s,
        config.ledger.when_lost,
    )
    database = await _patiently(url, lambda: Database(url, lease_s=config.ledger.lease_s, clock=time.time))
    bank: Bank = database
    if config.ledger.redis is not None:
        from apportion.serve.ledger.redis_bank import RedisBank

        redis_url = config.ledger.redis.reveal()
        bank = await _patiently(redis_url, lambda: RedisBank(database, redis_url))
    try:
        people = await asyncio.to_thread(lambda: People.of(database, config.auth.pepper, clock=time.time))
        ledger = await Ledger.open(bank, settings, rng=rng)
        prices = await ledger.run(bank.prices)
    except BankError as error:
        bank.dispose()
        raise _failed(url, error) from None
    return Opened(ledger, bank, database, people, prices)


async def make_first_key(config: Config) -> str | None:
    """The admin key that is made where a key is needed and there is none; None if there is one."""
    if not config.auth.required or config.keys:
        return None
    url = config.ledger_url()
    database = await _patiently(url, lambda: Database(url, lease_s=config.ledger.lease_s))
    try:
        people = await asyncio.to_thread(People.of, database, config.auth.pepper)
        return await asyncio.to_thread(people.create_first_key, FIRST_KEY, "first start")
    finally:
        database.dispose()


def _journal(config: Config, url: str) -> Path:
    """Journals of one database lie together: those of another are not this one's to recover."""
    directory = config.journal_directory() / hashlib.sha256(shown(url).encode()).hexdigest()[:16]
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory


async def _patiently(url: str, open_: Callable[[], _T]) -> _T:
    loop = asyncio.get_running_loop()
    # A file is there or is not; a server may be starting.
    until_s = loop.time() + (0.0 if url.startswith("sqlite") else _PATIENCE_S)
    said = False
    while True:
        try:
            return await asyncio.to_thread(open_)
        except BankError as error:
            if loop.time() >= until_s:
                raise _failed(url, error) from None
            if not said:
                logger.warning("%s does not answer yet: %s", shown(url), error)
                said = True
            await asyncio.sleep(_PAUSE_S)


def _failed(url: str, error: Exception) -> LedgerError:
    return LedgerError(
        f"The ledger at {shown(url)} cannot be opened: {error}.",
        field="ledger.url",
        fix="Name another file, or put a backup in its place."
        if url.startswith("sqlite")
        else "Start it or correct its address.",
    )
