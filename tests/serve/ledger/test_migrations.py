"""Tables come with the program: made once, whoever comes first, from a wheel as from a checkout."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import select, text

from apportion.serve.ledger import migrations
from apportion.serve.ledger.database import Database
from apportion.serve.ledger.migrations import HEAD, KNOWN, SchemaError, revision, upgrade
from apportion.serve.ledger.schema import holders, metadata

ROOT = Path(__file__).parents[3]
OPEN = """
import sys
from apportion.serve.ledger.database import Database
database = Database(sys.argv[1])
database.open(sys.argv[2], "here")
database.dispose()
"""


def test_the_constants_are_those_of_the_scripts() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.set_main_option("path_separator", "os")
    scripts = ScriptDirectory.from_config(config)
    assert scripts.get_heads() == [HEAD]
    assert {script.revision for script in scripts.walk_revisions()} == KNOWN


def test_migrations_make_the_tables_of_the_metadata(database_url: str) -> None:
    database = Database(database_url)
    with database.reading.connect() as c:
        assert compare_metadata(MigrationContext.configure(c), metadata) == []
        assert revision(c) == HEAD
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
