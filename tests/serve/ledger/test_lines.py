"""The database's side of lending elsewhere: one epoch at a time, no line drawn while it changes, nothing stale lost."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Barrier, Event, Thread

import pytest
from sqlalchemy import event, select

from apportion.core.budget import Budget
from apportion.serve.ledger.database import Database
from apportion.serve.ledger.entries import BankError, Batch, Move
from apportion.serve.ledger.line_tables import lines
from apportion.serve.ledger.lines import Lines, ListeningStore, Ride, entering

TOKENS = Budget("tokens", "tokens", 1000)


class Side:
    """The database as one process has it."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self.store = self.database.watch(ListeningStore)
        self.lines = Lines(self.database)

    def draw(self, holder: str, number: int, units: int) -> str | None:
        """Draw a line in the transaction of a batch; the epoch in force."""
        ride = Ride(holder, number, {"tokens@all": units}, (), (), ask=True)
        with self.store.along(ride) as heard:
            self.database.commit(Batch(holder, number, [], [Move("tokens@all", TOKENS, 0, 0, 0)]))
        return heard.epoch


@pytest.fixture
def sides(database_url: str) -> Iterator[list[Side]]:
    made = [Side(database_url) for _ in range(4)]
    yield made
    for side in made:
        side.database.dispose()


def test_a_database_has_one_name(sides: list[Side]) -> None:
    assert len({side.lines.namespace for side in sides}) == 1


def test_of_many_who_notice_one_begins_a_new_epoch(sides: list[Side]) -> None:
    begun: list[str] = []
    barrier = Barrier(len(sides))

    def begin(before: str) -> str:
        if before:
            return before
        begun.append(f"epoch{len(begun)}")
        return begun[-1]

    def notice(side: Side) -> None:
        barrier.wait()
        found.append(side.lines.rebuild(begin))

    found: list[str] = []
    threads = [Thread(target=notice, args=(side,)) for side in sides]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert begun == ["epoch0"]
    assert found == ["epoch0"] * len(sides)
    assert sides[0].lines.epoch() == "epoch0"


def test_an_epoch_that_could_not_begin_is_not_in_force(sides: list[Side]) -> None:
    def begin(before: str) -> str:
        raise OSError("killed")

    with pytest.raises(OSError, match="killed"):
        sides[0].lines.rebuild(begin)
    assert sides[1].lines.epoch() == ""


def test_no_line_is_drawn_while_an_epoch_begins(sides: list[Side]) -> None:
    one, two = sides[:2]
    one.database.open("one", "here")
    inside, drawing = Event(), Event()
    seen: list[str | None] = []

    def draw() -> None:
        inside.wait()
        drawing.set()
        seen.append(one.draw("one", 1, 50))

    thread = Thread(target=draw)
    thread.start()

    def begin(before: str) -> str:
        inside.set()
        drawing.wait()
        thread.join(0.2)
        assert not seen, "it did not wait"
        return "new"

    two.lines.rebuild(begin)
    thread.join()
    assert seen == ["new"]


def test_a_line_is_drawn_with_its_batch_or_not_at_all(
    sides: list[Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = sides[0]
    one.database.open("one", "here")

    def fail(*_: object) -> None:
        raise OSError("killed")

    monkeypatch.setattr(one.database._store, "seen", fail, raising=False)
    with pytest.raises(OSError, match="killed"):
        one.draw("one", 1, 50)
    assert one.lines.lined(["tokens@all"]) == set()
    monkeypatch.undo()
    one.draw("one", 1, 50)
    assert one.lines.lined(["tokens@all"]) == {"tokens@all"}
    assert one.lines.snapshot(["tokens@all"]).accounts["tokens@all"].lines["one"].units == 50


def test_what_changes_while_it_is_told_stays_stale(sides: list[Side]) -> None:
    one, two = sides[:2]
    one.database.open("one", "here")
    one.draw("one", 1, 50)
    assert one.lines.stale(10) == []
    one.database.close("one")
    two.lines.orphans()
    told = two.lines.stale(10)
    assert [id for id, _ in told] == ["tokens@all"]
    one.database.open("two", "here")
    one.draw("two", 1, 50)
    one.lines.leave("two")
    two.lines.refreshed(told)
    again = two.lines.stale(10)
    assert [id for id, _ in again] == ["tokens@all"]
    two.lines.refreshed(again)
    assert two.lines.stale(10) == []
    with one.database.reading.connect() as c:
        assert c.execute(select(lines)).all() == []


def enter(side: Side, holder: str) -> None:
    """As `RedisBank.open` does."""
    with side.store.along(entering(holder)):
        side.database.open(holder, "here")
    side.lines.enter(holder)


def test_many_enter_at_once(postgres_url: str) -> None:
    """One is in the midst of it and does not come to its end before another has."""
    one, two = Side(postgres_url), Side(postgres_url)
    entered: list[str] = []

    def meanwhile(*_: object) -> None:
        if not entered:
            entered.append("two")
            enter(two, "two")

    try:
        event.listen(one.database.engine, "commit", meanwhile)
        enter(one, "one")
        entered.clear()
        one.lines.enter("one")
        assert entered == ["two"]
        with one.database.reading.connect() as c:
            assert sorted(c.execute(select(lines.c.holder)).scalars()) == ["one", "two"]
    finally:
        one.database.dispose()
        two.database.dispose()


@pytest.mark.parametrize("first", ["the database", "Redis"])
def test_of_two_who_would_lend_one_is_refused(postgres_url: str, first: str) -> None:
    """The other comes while the first has not come to its end."""
    plain, side = Database(postgres_url), Side(postgres_url)
    refused: list[str] = []
    threads: list[Thread] = []

    def other() -> None:
        with pytest.raises(BankError, match="lends"):
            enter(side, "redis") if first == "the database" else plain.open("plain", "here")
        refused.append(first)

    def meanwhile(*_: object) -> None:
        if not threads:
            threads.append(Thread(target=other))
            threads[0].start()

    try:
        if first == "the database":
            event.listen(plain.engine, "commit", meanwhile)
            plain.open("plain", "here")
        else:
            event.listen(side.database.engine, "commit", meanwhile)
            enter(side, "redis")
        threads[0].join()
        assert refused == [first]
    finally:
        plain.dispose()
        side.database.dispose()
