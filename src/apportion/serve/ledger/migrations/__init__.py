"""Brings a database to the tables of this version, when it is opened. Alembic, loaded only where there is work."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sqlalchemy import Connection, inspect, text

from apportion.core.errors import ApportionError

HEAD: Final = "0002"
"""The revision of this version's tables."""
KNOWN: Final = frozenset(("0001", "0002"))
"""All revisions that this version can start from."""
_HERE: Final = Path(__file__).parent


class SchemaError(ApportionError):
    """The database has tables that this version does not know."""

    code = "ledger_schema"


def revision(connection: Connection) -> str | None:
    """The revision that the database has; None for an empty one."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def upgrade(connection: Connection) -> bool:
    """Make or change tables as this version needs them, in the caller's transaction, which must be the only one
    that does. True if anything was done. Raises `SchemaError` for the database of a newer version.
    """
    found = revision(connection)
    if found == HEAD:
        return False
    if found is not None and found not in KNOWN:
        raise SchemaError(
            f"The database's tables are of a newer version of apportion (revision {found}).",
            field="ledger.url",
            fix="Install that version, or name another database.",
        )
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(_HERE).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    command.upgrade(config, "head")
    return True
