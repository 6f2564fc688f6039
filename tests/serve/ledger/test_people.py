"""Keys, teams and budgets in the database: what is kept of them, what is not, and who notices a change."""

from __future__ import annotations

import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import Engine, create_engine, select, text

from apportion.serve import errors
from apportion.serve.config.schema import Budget, Config, Key, KeyBudget, KeyLimits, Secret, Team
from apportion.serve.keyring import Keyring, merged
from apportion.serve.ledger import people_tables
from apportion.serve.ledger.database import Database
from apportion.serve.ledger.people import MissingError, People, PeopleError, TakenError, UnreachableError
from apportion.serve.ledger.pepper import PepperError, find_pepper
from apportion.serve.ledger.schema import metadata

PEPPER = b"pepper of the tests"
ME = "cli:tester"
HOSTILE = "Robert'); DROP TABLE keys;--"


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    made = Database(database_url)
    yield made
    made.dispose()


@pytest.fixture
def engine(database: Database) -> Engine:
    return database.engine


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def people(database: Database, clock: Clock) -> People:
    return People(database.engine, PEPPER, reading=database.reading, clock=clock)


def keyring(people: People, clock: Clock) -> Keyring:
    snapshot = people.snapshot()
    return Keyring(merged(Config(), snapshot), snapshot.credentials, people.pepper, clock=clock)


def is_let_in(people: People, clock: Clock, secret: str) -> bool:
    try:
        keyring(people, clock).authenticate({b"x-api-key": secret.encode()})
    except errors.AuthenticationError:
        return False
    return True


FULL = Key(
    name="alice",
    team="red",
    admin=True,
    models=["chat"],
    endpoints=["a", "b"],
    require=["eu", "own"],
    routing=False,
    expires=1_800_000_000.25,
    tags={"cost_centre": "7"},
    limits=KeyLimits(requests_per_minute=60, parallel=2),
    budget=KeyBudget(usd=12.5, window="month", time_zone="Europe/Berlin"),
)


class TestKeys:
    def test_everything_about_a_key_comes_back(self, people: People) -> None:
        team = Team(models=["chat"], endpoints=["a"], require=["eu"], routing=False)
        people.create_team("red", team, ME)
        stored, secret = people.create_key(FULL, ME)
        assert stored.key == FULL
        assert stored == people.key(stored.id) == people.key("alice")
        assert secret.startswith(f"sk-ap-{stored.id}-")
        snapshot = people.snapshot()
        assert snapshot.keys == (FULL,)
        assert dict(snapshot.teams) == {"red": team}

    def test_a_window_in_seconds_and_none_come_back(self, people: People) -> None:
        for name, window in (("a", 3600.0), ("b", None), ("c", "week")):
            people.create_key(Key(name=name, budget=KeyBudget(tokens=5, window=window)), ME)
        assert [k.budget.window for k in people.snapshot().keys if k.budget] == [3600.0, None, "week"]

    def test_the_secret_lets_in_until_it_does_not(self, people: People, clock: Clock) -> None:
        stored, secret = people.create_key(Key(name="a"), ME)
        assert is_let_in(people, clock, secret)
        people.change_key(stored.id, lambda key: msgspec.structs.replace(key, disabled=True), ME)
        assert not is_let_in(people, clock, secret)
        people.change_key("a", lambda key: msgspec.structs.replace(key, disabled=False), ME)
        assert is_let_in(people, clock, secret)
        people.delete_key("a", ME)
        assert not is_let_in(people, clock, secret)
        with pytest.raises(MissingError):
            people.key(stored.id)

    def test_rotation(self, people: People, clock: Clock) -> None:
        stored, first = people.create_key(FULL.__class__(name="a", models=["chat"]), ME)
        again, second = people.rotate_key("a", 0.0, ME)
        assert (again.id, again.key) == (stored.id, stored.key)
        assert not is_let_in(people, clock, first)
        assert is_let_in(people, clock, second)
        again, third = people.rotate_key(stored.id, 3600.0, ME)
        assert again.previous_until_s == clock.now + 3600
        assert is_let_in(people, clock, second)
        assert is_let_in(people, clock, third)
        clock.now += 3600
        assert not is_let_in(people, clock, second)
        assert is_let_in(people, clock, third)

    def test_a_name_is_taken_once(self, people: People) -> None:
        people.create_key(Key(name="a"), ME)
        with pytest.raises(TakenError):
            people.create_key(Key(name="a"), ME)
        assert len(people.all_keys()) == 1

    def test_a_deleted_name_is_not_given_again(self, people: People) -> None:
        """What somebody spent stays under a name: who comes after must not go on with it."""
        people.create_key(Key(name="a", team="red"), ME, teams={"red"})
        people.create_team("red", Team(), ME)
        people.delete_key("a", ME)
        people.delete_team("red", ME)
        version = people.version()
        with pytest.raises(TakenError, match="'a' was deleted") as raised:
            people.create_key(Key(name="a"), ME)
        assert "another name" in (raised.value.fix or "")
        with pytest.raises(TakenError, match="'red' was deleted"):
            people.create_team("red", Team(), ME)
        assert (people.version(), people.all_keys(), people.all_teams()) == (version, [], {})
        people.create_team("a", Team(), ME)
        people.create_key(Key(name="red"), ME)
        people.create_budget(Budget(name="b", amount=1.0), ME)
        people.delete_budget("b", ME)
        people.create_budget(Budget(name="b", amount=2.0), ME)  # one view of the same spending

    @pytest.mark.parametrize(
        "name", ["", " a", "a ", "a/b", "a\nb", "x" * 101, "self", "local", "anonymous", "0123456789ab"]
    )
    def test_names_that_cannot_be(self, people: People, name: str) -> None:
        with pytest.raises(PeopleError):
            people.create_key(Key(name=name), ME)
        assert people.all_keys() == []

    def test_its_name_stays(self, people: People) -> None:
        people.create_key(Key(name="a"), ME)
        changed = people.change_key("a", lambda key: Key(name="b", admin=True), ME)
        assert (changed.key.name, changed.key.admin) == ("a", True)

    def test_a_failing_change_changes_nothing(self, people: People) -> None:
        people.create_key(Key(name="a"), ME)
        version, lines = people.version(), people.audit()

        def fail(key: Key) -> Key:
            raise PeopleError("no")

        with pytest.raises(PeopleError):
            people.change_key("a", fail, ME)
        assert (people.version(), people.audit()) == (version, lines)

    def test_the_first_key_is_made_once(self, people: People, clock: Clock) -> None:
        secret = people.create_first_key("admin", "start")
        assert secret is not None
        assert is_let_in(people, clock, secret)
        assert people.key("admin").key.admin
        assert people.create_first_key("admin", "start") is None
        assert people.create_first_key("other", "start") is None
        for name in ("admin-2", "admin-3"):
            people.delete_key(people.all_keys()[0].id, ME)
            again = people.create_first_key("admin", "start")
            assert again is not None
            assert is_let_in(people, clock, again)
            assert not is_let_in(people, clock, secret)
            assert [each.key.name for each in people.all_keys()] == [name]

    def test_many_starting_at_once_make_one_first_key(self, engine: Engine) -> None:
        found: list[str | None] = []

        def start() -> None:
            found.append(People(engine, PEPPER).create_first_key("admin", "start"))

        threads = [threading.Thread(target=start) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 8
        assert sum(secret is not None for secret in found) == 1


class TestWhatIsKept:
    def everything(self, engine: Engine) -> str:
        with engine.connect() as connection:
            return "\n".join(
                str(tuple(row))
                for table in metadata.sorted_tables
                for row in connection.execute(select(table))
            )

    def test_no_secret_and_no_plain_hash_of_one(self, engine: Engine, people: People) -> None:
        import hashlib

        secrets = [people.create_key(Key(name="a"), ME)[1], people.rotate_key("a", 60.0, ME)[1]]
        kept = self.everything(engine)
        assert "sk-ap-" not in kept
        for secret in secrets:
            assert secret[-43:] not in kept
            assert hashlib.sha256(secret.encode()).hexdigest() not in kept

    def test_the_audit_says_who_did_what_and_no_secret(self, people: People, clock: Clock) -> None:
        people.create_team("red", Team(), ME)
        _, secret = people.create_key(Key(name="a", team="red"), ME)
        clock.now += 1
        people.change_key("a", lambda key: msgspec.structs.replace(key, admin=True), "key:boss")
        people.rotate_key("a", 5.0, ME)
        people.delete_key("a", ME)
        people.create_budget(Budget(name="day", amount=5.0, window="day"), ME)
        people.delete_budget("day", ME)
        found = people.audit()
        assert [(each.action, each.object) for each in found] == [
            ("delete", "budget:day"),
            ("create", "budget:day"),
            ("delete", "key:a"),
            ("rotate", "key:a"),
            ("change", "key:a"),
            ("create", "key:a"),
            ("create", "team:red"),
        ]
        assert found[4].actor == "key:boss"
        assert found[4].detail == {"admin": True}
        assert found[4].at_s == clock.now
        assert secret[-43:] not in str(found)
        assert not any(name in str(found) for name in ("digest", "secret"))
        assert len(people.audit(2)) == 2

    def test_names_are_values_not_statements(self, engine: Engine, people: People, clock: Clock) -> None:
        """CVE-2026-42208, and the same in every other place where a name goes."""
        people.create_team(HOSTILE, Team(), HOSTILE)
        stored, secret = people.create_key(Key(name=HOSTILE, team=HOSTILE, tags={HOSTILE: HOSTILE}), HOSTILE)
        people.create_budget(Budget(name=HOSTILE, amount=1.0, scope=f"key:{HOSTILE}"), HOSTILE)
        assert people.key(HOSTILE) == stored
        assert is_let_in(people, clock, secret)
        assert people.balances(budgets=[HOSTILE]) == []
        for always_true in ("' OR '1'='1", "x' OR 1=1 --", "%", "_" * 12):
            with pytest.raises(MissingError):
                people.key(always_true)
            with pytest.raises(MissingError):
                people.delete_key(always_true, ME)
            with pytest.raises(MissingError):
                people.delete_budget(always_true, ME)
        with pytest.raises(TakenError):
            people.delete_team(HOSTILE, ME)
        assert [each.object for each in people.audit()] == [
            f"budget:{HOSTILE}",
            f"key:{HOSTILE}",
            f"team:{HOSTILE}",
        ]


class TestTeamsAndBudgets:
    def test_teams(self, people: People) -> None:
        people.create_team("red", Team(), ME)
        with pytest.raises(TakenError):
            people.create_team("red", Team(), ME)
        limits = KeyLimits(tokens_per_minute=5)
        people.change_team("red", lambda team: msgspec.structs.replace(team, limits=limits), ME)
        assert people.all_teams() == {"red": Team(limits=limits)}
        with pytest.raises(MissingError):
            people.create_key(Key(name="a", team="blue"), ME)
        people.create_key(Key(name="a", team="blue"), ME, teams={"blue"})
        people.create_key(Key(name="b", team="red"), ME)
        with pytest.raises(TakenError, match="'b'"):
            people.delete_team("red", ME)
        people.change_key("b", lambda key: msgspec.structs.replace(key, team=None), ME)
        people.delete_team("red", ME)
        with pytest.raises(MissingError):
            people.delete_team("red", ME)

    def test_budgets(self, people: People) -> None:
        budget = Budget(
            name="day", amount=5.0, window="day", time_zone="Asia/Tokyo", scope="team", hard=False
        )
        people.create_budget(budget, ME)
        with pytest.raises(TakenError):
            people.create_budget(budget, ME)
        changed = people.change_budget(
            "day", lambda b: msgspec.structs.replace(b, amount=6.0, name="other", resource="tokens"), ME
        )
        assert changed == msgspec.structs.replace(budget, amount=6.0), "its name and resource stay"
        assert people.all_budgets() == [changed]
        for name in ("key:a", "team:b", "a@b"):
            with pytest.raises(PeopleError):
                people.create_budget(Budget(name=name, amount=1.0), ME)
        people.delete_budget("day", ME)
        assert people.all_budgets() == []

    def test_the_configuration_stands_above_the_database(self, people: People) -> None:
        people.create_team("red", Team(), ME)
        people.create_key(Key(name="a"), ME)
        people.create_budget(Budget(name="day", amount=5.0), ME)
        config = Config(
            keys=[Key(name="a", admin=True), Key(name="z")],
            teams={"red": Team(models=[])},
            budgets=[Budget(name="day", amount=1.0)],
        )
        found = merged(config, people.snapshot())
        assert (found.keys, found.teams, found.budgets) == (config.keys, config.teams, config.budgets)


def test_every_change_is_a_new_version_and_nothing_else_is(people: People) -> None:
    versions = [people.version()]
    for change in (
        lambda: people.create_key(Key(name="a"), ME),
        lambda: people.rotate_key("a", 0.0, ME),
        lambda: people.create_team("t", Team(), ME),
        lambda: people.create_budget(Budget(name="b", amount=1.0), ME),
        lambda: people.delete_key("a", ME),
        lambda: people.delete_team("t", ME),
        lambda: people.delete_budget("b", ME),
    ):
        change()
        versions.append(people.version())
        people.all_keys(), people.all_teams(), people.all_budgets(), people.audit()
        assert people.snapshot().version == people.version() == versions[-1]
    assert versions == sorted(set(versions))


def test_writers_at_once_lose_nothing(engine: Engine) -> None:
    count, each = 6, 5
    problems: list[Exception] = []

    def write(index: int) -> None:
        people = People(engine, PEPPER)
        try:
            for number in range(each):
                people.create_key(Key(name=f"k{index}-{number}"), ME)
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=write, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    people = People(engine, PEPPER)
    assert problems == []
    assert len(people.all_keys()) == len(people.audit()) == people.version() == count * each


def test_a_database_that_fails_is_told_without_its_statement(engine: Engine, people: People) -> None:
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE audit"))
    with pytest.raises(UnreachableError) as caught:
        people.create_key(Key(name="a", tags={"private": "word"}), ME)
    assert "INSERT" not in str(caught.value)
    assert "word" not in str(caught.value)
    assert people.all_keys() == [], "all or nothing"


class TestPepper:
    def test_beside_an_sqlite_file_for_its_user_alone(self, tmp_path: Path) -> None:
        engine = create_engine(f"sqlite:///{tmp_path / 'ledger.db'}")
        found = find_pepper(engine, None)
        file = tmp_path / "pepper"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert found == find_pepper(engine, None) == file.read_bytes()
        assert len(found) == 64
        assert [each.name for each in tmp_path.iterdir()] == ["pepper"], "and no draft of it"

    def test_many_at_once_agree(self, tmp_path: Path) -> None:
        engine = create_engine(f"sqlite:///{tmp_path / 'ledger.db'}")
        found: list[bytes] = []
        threads = [
            threading.Thread(target=lambda: found.append(find_pepper(engine, None))) for _ in range(16)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 16
        assert len(set(found)) == 1

    @pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
    def test_one_that_others_may_read_is_refused(self, tmp_path: Path, mode: int) -> None:
        engine = create_engine(f"sqlite:///{tmp_path / 'ledger.db'}")
        find_pepper(engine, None)
        (tmp_path / "pepper").chmod(mode)
        with pytest.raises(PepperError, match="chmod 600"):
            find_pepper(engine, None)

    def test_a_link_or_half_of_one_is_refused(self, tmp_path: Path) -> None:
        engine = create_engine(f"sqlite:///{tmp_path / 'ledger.db'}")
        (tmp_path / "elsewhere").write_text("x" * 64)
        (tmp_path / "pepper").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(PepperError):
            find_pepper(engine, None)
        (tmp_path / "pepper").unlink()
        (tmp_path / "pepper").write_text("short")
        (tmp_path / "pepper").chmod(0o600)
        with pytest.raises(PepperError, match="damaged"):
            find_pepper(engine, None)

    def test_in_postgresql_or_as_configured(self, engine: Engine) -> None:
        assert find_pepper(engine, "as it was configured") == b"as it was configured"
        with pytest.raises(PepperError, match="16 characters"):
            find_pepper(engine, "pepper")
        assert find_pepper(engine, None) == find_pepper(engine, None)

    def test_in_memory_it_ends_with_the_process(self) -> None:
        assert len(find_pepper(create_engine("sqlite://"), None)) == 32

    def test_keys_of_another_pepper_are_marked_and_can_be_rotated(
        self, database: Database, clock: Clock
    ) -> None:
        _, secret = People.of(database, Secret("the first pepper"), clock=clock).create_key(Key(name="a"), ME)
        people = People.of(database, Secret("the second pepper"), clock=clock)
        assert not people.key("a").usable
        assert people.snapshot().credentials == ()
        assert not is_let_in(people, clock, secret)
        _, again = people.rotate_key("a", 3600.0, ME)
        assert people.key("a").usable
        assert is_let_in(people, clock, again)
        assert not is_let_in(people, clock, secret)


def test_definitions_of_a_newer_version_are_read_as_far_as_known(engine: Engine, people: People) -> None:
    people.create_key(Key(name="a", tags={"x": "y"}), ME)
    with engine.begin() as connection:
        definition: Any = connection.execute(select(people_tables.keys.c.definition)).scalar_one()
        newer = {**msgspec.json.decode(definition), "of_the_future": 1}
        connection.execute(people_tables.keys.update().values(definition=msgspec.json.encode(newer).decode()))
    assert people.key("a").key.tags == {"x": "y"}
