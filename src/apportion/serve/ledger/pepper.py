"""The pepper: a secret beside the database, without which what it keeps of keys can be neither used nor guessed.

It is ``auth.pepper`` of the configuration; else, for SQLite, a file beside the database that only this user may
read. A PostgreSQL without ``auth.pepper`` keeps it in the table ``settings``: weaker, as whoever reads the table of
keys can read that one, too; the keys themselves, of 256 random bits, cannot be guessed even so.
"""

from __future__ import annotations

import hmac
import os
import secrets
import stat
from pathlib import Path
from typing import Final

from sqlalchemy import Engine, insert, select
from sqlalchemy.exc import IntegrityError

from apportion.core.errors import ApportionError
from apportion.serve.ledger.people_tables import settings

FILE: Final = "pepper"
_BYTES: Final = 32
_LEAST: Final = 16


class PepperError(ApportionError):
    """The pepper of the keys cannot be read, or is not safe where it is."""

    code = "pepper"


def fingerprint(pepper: bytes) -> str:
    """Tells two peppers apart and nothing else about them: 16 hexadecimal digits."""
    return hmac.digest(pepper, b"apportion: fingerprint of a pepper", "sha256").hex()[:16]


def find_pepper(engine: Engine, configured: str | None) -> bytes:
    """The pepper of the database behind ``engine``; made if there is none yet. Raises `PepperError`."""
    if configured is not None:
        if len(configured) < _LEAST:
            raise PepperError(
                f"The pepper has fewer than {_LEAST} characters.",
                field="auth.pepper",
                fix="Make one with: openssl rand -hex 32.",
            )
        return configured.encode()
    if engine.dialect.name == "sqlite":
        file = engine.url.database
        if not file or file == ":memory:" or file.startswith("file:"):
            return secrets.token_bytes(_BYTES)  # the keys end with the process, too
        return _of_file(Path(file).absolute().with_name(FILE))
    return _of_settings(engine)


def _of_file(path: Path) -> bytes:
    try:
        if not os.path.lexists(path):
            _make(path)
        found = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(found, "rb") as file:
            status = os.fstat(found)
            if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077:
                raise PepperError(
                    f"Others may read {path}.", field="auth.pepper", fix=f"Run: chmod 600 '{path}'."
                )
            text = file.read(1024).strip()
    except OSError as error:
        raise PepperError(
            f"{path} cannot be read or made: {error.strerror}.",
            field="auth.pepper",
            fix="Mend its permissions, or set auth.pepper in the configuration.",
        ) from None
    if len(text) < 2 * _BYTES:
        raise PepperError(
            f"{path} is damaged.",
            field="auth.pepper",
            fix="Restore it; without it the keys of the database must be rotated.",
        )
    return text


def _make(path: Path) -> None:
    """Appears whole or not at all, and only once, however many processes start at the same time."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f"{FILE}.{os.getpid()}.{secrets.token_hex(4)}")
    made = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(made, "wb") as file:
            file.write(secrets.token_hex(_BYTES).encode())
            file.flush()
            os.fsync(made)
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
    finally:
        os.unlink(draft)


def _of_settings(engine: Engine) -> bytes:
    wanted = select(settings.c.value).where(settings.c.name == FILE)
    with engine.connect() as connection:
        found = connection.execute(wanted).scalar()
    if found is None:
        try:
            with engine.begin() as connection:
                connection.execute(insert(settings).values(name=FILE, value=secrets.token_hex(_BYTES)))
        except IntegrityError:
            pass  # another process was quicker
        with engine.connect() as connection:
            found = connection.execute(wanted).scalar_one()
    return str(found).encode()
