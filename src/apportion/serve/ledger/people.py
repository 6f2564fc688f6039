"""Keys, teams and budgets that were made with the command line or the admin API: kept in the database.

What is read back is in the configuration's own words (`Key`, `Team`, `Budget`), so that the rest need not know
where somebody came from. Every change counts up a version, by which workers notice it, and leaves a line in the
audit, without secrets; by the audit a deleted name is known. Writers are serialised by the row of that version.
"""

from __future__ import annotations

import itertools
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import msgspec
from sqlalchemy import Connection, Engine, RowMapping, Select, Table, delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError

from apportion.core import budget as core
from apportion.core.errors import ApportionError
from apportion.serve.config.schema import Budget, Key, KeyBudget, KeyLimits, Secret, Team
from apportion.serve.keyring import RESERVED_NAMES, Credential, Snapshot, digest, new_secret
from apportion.serve.ledger.balances import Balance, balances, balances_of
from apportion.serve.ledger.people_tables import audit, budgets, keys, settings, teams
from apportion.serve.ledger.pepper import find_pepper, fingerprint

if TYPE_CHECKING:
    from apportion.serve.ledger.database import Database

_VERSION: Final = "people"
_ID: Final = re.compile(r"[0-9a-f]{12}")
_NAME_LENGTH: Final = 100
_ACTOR_LENGTH: Final = 200
_RENAME: Final = "Choose another name."
_LOOK: Final = "`apportion {} list` shows those that are there."
_US: Final = 1_000_000

_S = TypeVar("_S", bound=msgspec.Struct)
_T = TypeVar("_T")


class PeopleError(ApportionError):
    """A key, team or budget of the database is not there, is there already, or cannot be made so."""

    code = "people"


class MissingError(PeopleError):
    """There is no key, team or budget of this name in the database."""

    code = "not_found"


class TakenError(PeopleError):
    """A key, team or budget of this name exists, or something still needs it."""

    code = "conflict"


class UnreachableError(PeopleError):
    """The database did not answer; whether the change was made can be seen by asking again."""

    code = "database"


class StoredKey(NamedTuple):
    """A key of the database. Times are Unix seconds. ``usable``: made with the pepper that is used now."""

    id: str
    key: Key
    created_s: float
    changed_s: float
    usable: bool
    previous_until_s: float | None
    """Until when the secret before the last rotation is still accepted."""


class Change(NamedTuple):
    """A line of the audit: who did what to what, when (Unix seconds)."""

    at_s: float
    actor: str
    action: str
    object: str
    detail: dict[str, Any]


class _Definition(msgspec.Struct, frozen=True, kw_only=True):
    """What of a key needs no column of its own."""

    models: list[str] | None = None
    endpoints: list[str] | None = None
    require: list[str] = []
    routing: bool = True
    tags: dict[str, str] = {}
    limits: KeyLimits = KeyLimits()
    budget: KeyBudget | None = None


class People:
    """Reads and changes keys, teams and budgets. Blocks; may be used by many threads and processes at once.

    ``engine`` is that of a database whose tables exist, ``reading`` the one for transactions that only read (default:
    the same); ``pepper`` as `find_pepper` gives it. ``actor`` says in the audit who asked. ``clock`` gives Unix
    seconds. Raises `PeopleError`.
    """

    def __init__(
        self,
        engine: Engine,
        pepper: bytes,
        *,
        reading: Engine | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.pepper = pepper
        self._engine = engine
        self._reading = engine if reading is None else reading
        self._clock = clock
        self._fingerprint = fingerprint(pepper)
        with self._read() as connection:
            known = connection.execute(_version_row()).first()
        if known is None:
            try:
                with engine.begin() as connection:
                    connection.execute(insert(settings).values(name=_VERSION, number=0))
            except IntegrityError:
                pass  # another process was quicker

    @classmethod
    def of(
        cls, database: Database, pepper: Secret | None, *, clock: Callable[[], float] = time.time
    ) -> People:
        """Those of a database, with ``auth.pepper`` of the configuration (None: the database's own)."""
        found = find_pepper(database.engine, None if pepper is None else pepper.reveal())
        return cls(database.engine, found, reading=database.reading, clock=clock)

    # all of it

    def version(self) -> int:
        """Counts the changes."""
        with self._read() as connection:
            return int(connection.execute(_version_row()).scalar_one())

    def snapshot(self) -> Snapshot:
        """Everything, at this version or a later one."""
        with self._read() as connection:
            version = int(connection.execute(_version_row()).scalar_one())
            rows = connection.execute(select(keys).order_by(keys.c.name)).mappings().all()
            return Snapshot(
                version,
                tuple(self._key(row).key for row in rows),
                {name: _decode(text, Team) for name, text in _definitions(connection, teams)},
                tuple(_decode(text, Budget) for _, text in _definitions(connection, budgets)),
                tuple(credential for row in rows for credential in self._credentials(row)),
            )

    def audit(self, most: int = 100) -> list[Change]:
        """The latest changes, the last one first."""
        with self._read() as connection:
            found = connection.execute(select(audit).order_by(audit.c.id.desc()).limit(most)).mappings()
            return [
                Change(
                    row["at_us"] / _US,
                    row["actor"],
                    row["action"],
                    row["object"],
                    _decode(row["detail"], dict),
                )
                for row in found
            ]

    def balances(self, *, budgets: Sequence[str] | None = None) -> list[Balance]:
        """What is left of these budgets, for everybody who has asked for something; see `balances`."""
        with self._read() as connection:
            return balances(connection, self._clock(), budgets=budgets)

    def balances_of(self, wanted: Sequence[tuple[core.Budget, str]]) -> list[Balance]:
        """What is left of these budgets for these subjects; see `balances_of`."""
        with self._read() as connection:
            return balances_of(connection, self._clock(), wanted)

    # keys

    def all_keys(self) -> list[StoredKey]:
        """All keys, by name."""
        with self._read() as connection:
            found = connection.execute(select(keys).order_by(keys.c.name)).mappings()
            return [self._key(row) for row in found]

    def key(self, id: str) -> StoredKey:
        """The key of an id or a name. Raises `MissingError`."""
        with self._read() as connection:
            return self._key(_key_row(connection, id))

    def create_key(self, key: Key, actor: str, *, teams: Collection[str] = ()) -> tuple[StoredKey, str]:
        """Make a key; also the secret itself, which is known nowhere afterwards. ``teams`` are those that exist
        besides the database's. Raises `TakenError`, also for the name of a deleted key; `MissingError`.
        """
        _check_name("key", key.name)
        if key.name in RESERVED_NAMES or _ID.fullmatch(key.name):
            raise PeopleError(f"A key cannot be called {key.name!r}.", field="name", fix=_RENAME)
        with self._write() as connection:
            taken = connection.execute(select(keys.c.id).where(keys.c.name == key.name)).first()
            if taken is not None:
                raise TakenError(f"There is a key called {key.name!r}.", field="name", fix=_RENAME)
            _refuse_deleted(connection, "key", key.name)
            _check_team(connection, key.team, teams)
            self._log(connection, actor, "create", f"key:{key.name}", _told(key))
            return self._insert_key(connection, key)

    def create_first_key(self, name: str, actor: str) -> str | None:
        """An admin key, if there is no key at all; its secret, or None if there is one. A number is added to the name
        where a deleted key had it.
        """
        if self.version() and self.all_keys():
            return None
        with self._write() as connection:
            if connection.execute(select(keys.c.id).limit(1)).first() is not None:
                return None
            names = (f"{name}-{number}" if number > 1 else name for number in itertools.count(1))
            key = Key(
                name=next(each for each in names if not _is_deleted(connection, "key", each)), admin=True
            )
            self._log(connection, actor, "create", f"key:{key.name}", _told(key))
            return self._insert_key(connection, key)[1]

    def change_key(
        self, id: str, change: Callable[[Key], Key], actor: str, *, teams: Collection[str] = ()
    ) -> StoredKey:
        """Replace what is known of a key by ``change`` of it; its name stays. Raises `MissingError`."""
        with self._write() as connection:
            row = _key_row(connection, id)
            before = self._key(row).key
            after = msgspec.structs.replace(change(before), name=before.name)
            if after.team != before.team:
                _check_team(connection, after.team, teams)
            changed = {**_columns(after), "changed_us": self._now_us()}
            connection.execute(update(keys).where(keys.c.id == row["id"]).values(**changed))
            self._log(
                connection, actor, "change", f"key:{before.name}", _difference(_told(before), _told(after))
            )
            return self._key(_key_row(connection, row["id"]))

    def rotate_key(self, id: str, grace_s: float, actor: str) -> tuple[StoredKey, str]:
        """Give a key a new secret. The one it had is accepted for ``grace_s`` more; an older one no longer."""
        with self._write() as connection:
            row = _key_row(connection, id)
            secret = new_secret(row["id"])
            now_us = self._now_us()
            keeps = grace_s > 0 and row["pepper"] == self._fingerprint
            changed = {
                "digest": digest(self.pepper, secret).hex(),
                "pepper": self._fingerprint,
                "previous_digest": row["digest"] if keeps else None,
                "previous_until_us": now_us + round(grace_s * _US) if keeps else None,
                "changed_us": now_us,
            }
            connection.execute(update(keys).where(keys.c.id == row["id"]).values(**changed))
            self._log(connection, actor, "rotate", f"key:{row['name']}", {"grace_s": grace_s})
            return self._key(_key_row(connection, row["id"])), secret

    def delete_key(self, id: str, actor: str) -> StoredKey:
        """Remove a key; what it spent stays in the books under its name, which nobody gets again. Raises
        `MissingError`.
        """
        with self._write() as connection:
            row = _key_row(connection, id)
            connection.execute(delete(keys).where(keys.c.id == row["id"]))
            self._log(connection, actor, "delete", f"key:{row['name']}", {})
            return self._key(row)

    # teams

    def all_teams(self) -> dict[str, Team]:
        """All teams by name."""
        with self._read() as connection:
            return {name: _decode(text, Team) for name, text in _definitions(connection, teams)}

    def create_team(self, name: str, team: Team, actor: str) -> None:
        """Make a team. Raises `TakenError`, also for the name of a deleted team."""
        self._create(teams, "team", name, team, actor)

    def change_team(self, name: str, change: Callable[[Team], Team], actor: str) -> Team:
        """Replace a team by ``change`` of it. Raises `MissingError`."""
        return self._change(teams, "team", name, Team, change, actor)

    def delete_team(self, name: str, actor: str) -> None:
        """Remove a team that has no key any more. Raises `MissingError`, `TakenError`."""
        with self._write() as connection:
            _definition(connection, teams, "team", name)
            members = select(keys.c.name).where(keys.c.team == name).order_by(keys.c.name).limit(6)
            used = connection.execute(members).scalars().all()
            if used:
                listed = ", ".join(map(repr, used[:5])) + (" and others" if len(used) > 5 else "")
                raise TakenError(
                    f"The team {name!r} has keys: {listed}.", field="name", fix="Delete or move them first."
                )
            connection.execute(delete(teams).where(teams.c.name == name))
            self._log(connection, actor, "delete", f"team:{name}", {})

    # budgets

    def all_budgets(self) -> list[Budget]:
        """All budgets, by name."""
        with self._read() as connection:
            return [_decode(text, Budget) for _, text in _definitions(connection, budgets)]

    def create_budget(self, budget: Budget, actor: str) -> None:
        """Make a budget. Raises `TakenError`."""
        if budget.name.startswith(("key:", "team:")) or "@" in budget.name:
            raise PeopleError(
                f"A budget cannot be called {budget.name!r}.",
                field="name",
                fix="Names with '@', and those that begin with 'key:' or 'team:', are the proxy's own.",
            )
        self._create(budgets, "budget", budget.name, budget, actor)

    def change_budget(self, name: str, change: Callable[[Budget], Budget], actor: str) -> Budget:
        """Replace a budget by ``change`` of it; its name and resource stay, and so does what was spent."""

        def changed(before: Budget) -> Budget:
            return msgspec.structs.replace(change(before), name=name, resource=before.resource)

        return self._change(budgets, "budget", name, Budget, changed, actor)

    def delete_budget(self, name: str, actor: str) -> None:
        """Remove a budget. Raises `MissingError`."""
        with self._write() as connection:
            _definition(connection, budgets, "budget", name)
            connection.execute(delete(budgets).where(budgets.c.name == name))
            self._log(connection, actor, "delete", f"budget:{name}", {})

    # inside

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        try:
            with self._reading.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise _unreachable(error) from None

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        """A transaction in which nobody else changes keys, teams or budgets, as the version's row is locked."""
        try:
            with self._engine.begin() as connection:
                counted = update(settings).where(settings.c.name == _VERSION)
                connection.execute(counted.values(number=settings.c.number + 1))
                yield connection
        except SQLAlchemyError as error:
            raise _unreachable(error) from None

    def _now_us(self) -> int:
        return round(self._clock() * _US)

    def _log(self, connection: Connection, actor: str, action: str, object: str, detail: object) -> None:
        connection.execute(
            insert(audit).values(
                at_us=self._now_us(),
                actor=actor[:_ACTOR_LENGTH],
                action=action,
                object=object,
                detail=_encode(detail),
            )
        )

    def _create(self, table: Table, kind: str, name: str, made: msgspec.Struct, actor: str) -> None:
        _check_name(kind, name)
        with self._write() as connection:
            if connection.execute(select(table.c.name).where(table.c.name == name)).first() is not None:
                raise TakenError(f"There is a {kind} called {name!r}.", field="name", fix=_RENAME)
            if table is teams:
                _refuse_deleted(connection, kind, name)
            now_us = self._now_us()
            connection.execute(
                insert(table).values(
                    name=name, definition=_encode(made), created_us=now_us, changed_us=now_us
                )
            )
            self._log(connection, actor, "create", f"{kind}:{name}", made)

    def _change(
        self, table: Table, kind: str, name: str, type_: type[_S], change: Callable[[_S], _S], actor: str
    ) -> _S:
        with self._write() as connection:
            before = _decode(_definition(connection, table, kind, name), type_)
            after = change(before)
            changed = {"definition": _encode(after), "changed_us": self._now_us()}
            connection.execute(update(table).where(table.c.name == name).values(**changed))
            told = _difference(msgspec.to_builtins(before), msgspec.to_builtins(after))
            self._log(connection, actor, "change", f"{kind}:{name}", told)
            return after

    def _insert_key(self, connection: Connection, key: Key) -> tuple[StoredKey, str]:
        id = secrets.token_hex(6)
        secret = new_secret(id)
        now_us = self._now_us()
        connection.execute(
            insert(keys).values(
                id=id,
                name=key.name,
                digest=digest(self.pepper, secret).hex(),
                pepper=self._fingerprint,
                created_us=now_us,
                changed_us=now_us,
                **_columns(key),
            )
        )
        return self._key(_key_row(connection, id)), secret

    def _key(self, row: RowMapping) -> StoredKey:
        rest = _decode(row["definition"], _Definition)
        expires_us, previous_us = row["expires_us"], row["previous_until_us"]
        key = Key(
            name=row["name"],
            team=row["team"] or None,
            admin=row["admin"],
            disabled=row["disabled"],
            expires=None if expires_us is None else expires_us / _US,
            **msgspec.structs.asdict(rest),
        )
        return StoredKey(
            row["id"],
            key,
            row["created_us"] / _US,
            row["changed_us"] / _US,
            row["pepper"] == self._fingerprint,
            None if previous_us is None else previous_us / _US,
        )

    def _credentials(self, row: RowMapping) -> Iterator[Credential]:
        if row["pepper"] != self._fingerprint:
            return
        yield Credential(row["id"], row["name"], bytes.fromhex(row["digest"]))
        if row["previous_digest"] is not None:
            until_s = row["previous_until_us"] / _US
            yield Credential(row["id"], row["name"], bytes.fromhex(row["previous_digest"]), until_s)


def _version_row() -> Select[int]:
    return select(settings.c.number).where(settings.c.name == _VERSION)


def _key_row(connection: Connection, id: str) -> RowMapping:
    found = connection.execute(select(keys).where(or_(keys.c.id == id, keys.c.name == id))).mappings().first()
    if found is None:
        raise MissingError(
            f"There is no key {id[:_NAME_LENGTH]!r} in the database.", field="id", fix=_LOOK.format("keys")
        )
    return found


def _columns(key: Key) -> dict[str, Any]:
    """What a key is, by column; nothing of its secret."""
    rest = _Definition(**{name: getattr(key, name) for name in _Definition.__struct_fields__})
    return {
        "team": key.team or "",
        "admin": key.admin,
        "disabled": key.disabled,
        "expires_us": None if key.expires is None else round(key.expires * _US),
        "definition": _encode(rest),
    }


def _told(key: Key) -> dict[str, Any]:
    """A key as the audit has it."""
    found = msgspec.structs.asdict(key)
    del found["secret"], found["secret_sha256"], found["name"]
    told: dict[str, Any] = msgspec.to_builtins(found)
    return told


def _difference(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in after.items() if before.get(name) != value}


def _definitions(connection: Connection, table: Table) -> list[tuple[str, str]]:
    found = connection.execute(select(table.c.name, table.c.definition).order_by(table.c.name))
    return [(name, definition) for name, definition in found]


def _definition(connection: Connection, table: Table, kind: str, name: str) -> str:
    found = connection.execute(select(table.c.definition).where(table.c.name == name)).scalar()
    if found is None:
        raise MissingError(
            f"There is no {kind} {name[:_NAME_LENGTH]!r} in the database.",
            field="name",
            fix=_LOOK.format(f"{kind}s"),
        )
    return str(found)


def _check_name(kind: str, name: str) -> None:
    """Names stand in paths, headers, metrics and log lines."""
    if not name or len(name) > _NAME_LENGTH or not name.isprintable() or name != name.strip() or "/" in name:
        raise PeopleError(
            f"A {kind} cannot be called {name[:_NAME_LENGTH]!r}.",
            field="name",
            fix=f"Use 1 to {_NAME_LENGTH} printable characters, without '/' and without blanks around them.",
        )


def _refuse_deleted(connection: Connection, kind: str, name: str) -> None:
    """In the books a name is somebody: a newcomer under it would go on with what another has spent."""
    if _is_deleted(connection, kind, name):
        raise TakenError(
            f"A {kind} called {name!r} was deleted, and what it spent stays under its name.",
            field="name",
            fix=f"{_RENAME} `apportion {kind}s set` changes one that is to stay.",
        )


def _is_deleted(connection: Connection, kind: str, name: str) -> bool:
    gone = select(audit.c.id).where(audit.c.object == f"{kind}:{name}", audit.c.action == "delete").limit(1)
    return connection.execute(gone).first() is not None


def _check_team(connection: Connection, team: str | None, elsewhere: Collection[str]) -> None:
    if team is None or team in elsewhere:
        return
    if connection.execute(select(teams.c.name).where(teams.c.name == team)).first() is None:
        raise MissingError(
            f"There is no team {team[:_NAME_LENGTH]!r}.",
            field="team",
            fix="Make it with 'apportion teams create', or in the configuration.",
        )


def _encode(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _decode(text: str, type_: type[_T]) -> _T:
    return msgspec.json.decode(text, type=type_)


def _unreachable(error: SQLAlchemyError) -> UnreachableError:
    """Without the statement and its values: they are nobody's business."""
    cause = (
        str(error.orig).partition("\n")[0] if isinstance(error, OperationalError) else type(error).__name__
    )
    return UnreachableError(
        f"The database of keys and books does not answer: {cause[:200]}.",
        field="ledger.url",
        fix="See that it runs and that `ledger.url` is right.",
    )
