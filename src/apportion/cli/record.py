"""What commands share that read the ledger: which one is meant, and that it is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from apportion.cli.start import DEFAULT_FILE
from apportion.core.errors import ApportionError

if TYPE_CHECKING:
    from apportion.serve.ledger.database import Database

_Command = TypeVar("_Command", bound=Callable[..., object])


class NoLedgerError(ApportionError):
    """There is no ledger to read: none was made yet, or it is in the memory of the proxy."""

    code = "no_ledger"


def ledger_options(command: _Command) -> _Command:
    """``--ledger`` and ``--config``, which say where the books are."""
    for option in (
        click.option(
            "--config", "file", type=click.Path(dir_okay=False), help=f"Default: ./{DEFAULT_FILE}, if there."
        ),
        click.option(
            "--ledger",
            metavar="URL",
            help="sqlite:///FILE or postgresql://... Default: `ledger.url` of the configuration, else "
            "$APPORTION_LEDGER_URL, else the file in the state directory.",
        ),
    ):
        command = option(command)
    return command


def _where(ledger: str | None, file: str | None) -> tuple[str, float]:
    """The address of the books, which may hold a password, and after how many seconds a silent worker is dead."""
    from apportion.serve.config import reader, state
    from apportion.serve.config.schema import Ledger

    if file is None and (ledger or not Path(DEFAULT_FILE).is_file()):
        return ledger or state.default_url(create=False), Ledger().lease_s
    config = reader.load(file or DEFAULT_FILE)
    return ledger or config.ledger_url(), config.ledger.lease_s


def redis_url(file: str | None) -> str | None:
    """The Redis that lends in front of the books, as configured; None if none does."""
    from apportion.serve.config import reader

    if file is None and not Path(DEFAULT_FILE).is_file():
        return None
    redis = reader.load(file or DEFAULT_FILE).ledger.redis
    return None if redis is None else redis.reveal()


@contextmanager
def record(ledger: str | None, file: str | None) -> Iterator[Database]:
    """The database of the books, which must be there. Raises `NoLedgerError`, also for what goes wrong meanwhile."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import DBAPIError, SQLAlchemyError

    from apportion.serve.config.state import shown
    from apportion.serve.ledger.database import Database
    from apportion.serve.ledger.entries import BankError

    url, lease_s = _where(ledger, file)
    if url == "memory":
        raise NoLedgerError(
            "The books are in the memory of the proxy.",
            field="ledger.url",
            fix="Ask it: GET /apportion/spend with an admin key; or set ledger.url to a file or database.",
        )
    if url.startswith("sqlite:"):
        path = make_url(url).database
        if not path or not Path(path).is_file():
            raise NoLedgerError(
                f"There are no books at {shown(url)}.",
                field="ledger.url",
                fix="A proxy makes them when it starts. Name others with --ledger or --config.",
            )
    try:
        database = Database(url, lease_s=lease_s)
        try:
            yield database
        finally:
            database.dispose()
    except (BankError, SQLAlchemyError) as error:
        # SQLAlchemy's own words hold statements and values.
        said = str(error.orig if isinstance(error, DBAPIError) else error).strip().partition("\n")[0]
        raise NoLedgerError(
            f"The books at {shown(url)} cannot be read: {said}.",
            field="ledger.url",
            fix="See that the database runs, or name another with --ledger or --config.",
        ) from None
