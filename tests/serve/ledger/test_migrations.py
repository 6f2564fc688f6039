"""Tables come with the program: made once, whoever comes first, from a wheel as from a checkout."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, inspect, make_url, select, text

from apportion.serve.config.schema import Key, KeyBudget, KeyLimits, Team
from apportion.serve.ledger import migrations
from apportion.serve.ledger.database import Database
from apportion.serve.ledger.migrations import HEAD, KNOWN, SchemaError, revision, upgrade
from apportion.serve.ledger.people import People
from apportion.serve.ledger.schema import holders, metadata

ROOT = Path(__file__).parents[3]
OPEN = """
import sys
from apportion.serve.ledger.database import Database
database = Database(sys.argv[1])
database.open(sys.argv[2], "here")
database.dispose()
"""


def config(connection: Connection | None = None) -> Config:
    found = Config(attributes={"connection": connection})
    found.set_main_option("script_location", str(Path(migrations.__file__).parent))
    found.set_main_option("path_separator", "os")
    return found


def test_the_constants_are_those_of_the_scripts() -> None:
    scripts = ScriptDirectory.from_config(config())
    assert scripts.get_heads() == [HEAD]
    assert {script.revision for script in scripts.walk_revisions()} == KNOWN


def test_migrations_make_the_tables_of_the_metadata(database_url: str) -> None:
    database = Database(database_url)
    with database.reading.connect() as c:
        assert compare_metadata(MigrationContext.configure(c), metadata) == []
        assert revision(c) == HEAD
        for table in metadata.sorted_tables:
            # What the comparison does not look at.
            key = inspect(c).get_pk_constraint(table.name)["constrained_columns"]
            assert key == [column.name for column in table.primary_key], table.name
            if c.dialect.name == "postgresql":
                options = c.execute(
                    text("SELECT reloptions FROM pg_class WHERE oid = CAST(:name AS regclass)"),
                    {"name": table.name},
                ).scalar()
                wanted = table.dialect_options["postgresql"]["with"]
                assert options == (wanted and [f"{name}={value}" for name, value in wanted.items()])
    database.dispose()


PEPPER = b"pepper of the tests"
OLD_KEY = (
    '{"models":["m"],"endpoints":null,"tags":{"a":"b"},"limits":{"requests_per_minute":60,'
    '"tokens_per_minute":null,"parallel":null},"budget":{"usd":5.0,"tokens":null,"window":"day",'
    '"time_zone":"UTC","hard":true}}'
)
"""As the program of revision 0001 wrote it."""
OLD_TEAM = '{"models":["m"],"endpoints":null,"require":[],"routing":true,"limits":{},"budget":null}'


def test_a_database_of_the_first_tables_is_upgraded_with_what_is_in_it(database_url: str) -> None:
    address = make_url(database_url)
    if address.get_backend_name() == "postgresql":
        address = address.set(drivername="postgresql+psycopg")
    engine = create_engine(address)
    with engine.begin() as c:
        command.upgrade(config(c), "0001")
        c.execute(
            text(
                "INSERT INTO keys VALUES ('0123456789ab', 'alice', 'red', :digest, 'other', NULL, NULL, :yes, :no, "
                "NULL, :definition, 1, 2)"
            ),
            {"digest": "0" * 64, "yes": True, "no": False, "definition": OLD_KEY},
        )
        c.execute(text("INSERT INTO teams VALUES ('red', :definition, 1, 2)"), {"definition": OLD_TEAM})
        c.execute(text("INSERT INTO settings VALUES ('people', NULL, 7)"))
    engine.dispose()
    database = Database(database_url)
    with database.reading.connect() as c:
        assert revision(c) == HEAD
        assert compare_metadata(MigrationContext.configure(c), metadata) == []
    people = People(database.engine, PEPPER, reading=database.reading)
    snapshot = people.snapshot()
    alice = Key(
        name="alice",
        team="red",
        admin=True,
        models=["m"],
        tags={"a": "b"},
        limits=KeyLimits(requests_per_minute=60),
        budget=KeyBudget(usd=5.0, window="day"),
    )
    assert snapshot.version == 7
    assert snapshot.keys == (alice,)
    assert dict(snapshot.teams) == {"red": Team(models=["m"])}
    demanding = msgspec.structs.replace(alice, require=["eu"], routing=False)
    people.change_key("alice", lambda key: demanding, "me")
    assert people.snapshot().keys == (demanding,)
    database.dispose()


def test_a_second_opening_does_nothing(database_url: str) -> None:
    database = Database(database_url)
    with database.engine.begin() as c:
        assert not upgrade(c)
    database.dispose()


def test_a_newer_database_is_left_alone(database_url: str) -> None:
    database = Database(database_url)
    with database.engine.begin() as c:
        c.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    database.dispose()
    with pytest.raises(SchemaError, match="9999") as raised:
        Database(database_url)
    assert raised.value.fix is not None


def test_many_processes_may_start_at_once(database_url: str) -> None:
    """Each finds the tables or makes them; nobody fails, nobody makes them twice."""
    names = [f"worker{number}" for number in range(6)]

    def start(name: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", OPEN, database_url, name]
        return subprocess.run(command, capture_output=True, text=True)

    with ThreadPoolExecutor(len(names)) as together:
        for done in together.map(start, names):
            assert done.returncode == 0, done.stderr
    database = Database(database_url)
    with database.reading.connect() as c:
        assert sorted(c.execute(select(holders.c.holder)).scalars()) == names
    database.dispose()


@pytest.mark.slow
def test_a_wheel_has_all_it_needs(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    place = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(place)
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    code = f"import sys; sys.path.insert(0, {str(place)!r})\n{OPEN}"
    code += "import apportion; assert apportion.__file__.startswith(sys.path[0]), apportion.__file__\n"
    subprocess.run([sys.executable, "-c", code, url, "a"], check=True, cwd=tmp_path)
