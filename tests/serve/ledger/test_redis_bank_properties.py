"""The same workers as against the database alone, lent to by Redis, which forgets everything and does not answer
whenever it likes: never more is spent than there is, and what Redis knows agrees with the record in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test
from record import Record
from sqlalchemy import delete
from teller import Teller
from test_database_properties import Checked

from apportion.serve.ledger.entries import BankError, LendingError
from apportion.serve.ledger.line_tables import lines, stale
from apportion.serve.ledger.redis_bank import RedisBank
from servers import Redis

BANKS = 3


class Weather:
    """How Redis does: it answers; it does not; it does what it was asked and the answer is lost."""

    def __init__(self) -> None:
        self.now = "fine"
        self.passed = 0
        """Calls for which it stays fine yet."""

    def over(self, run: Any) -> Any:
        def call(script: Any, *words: str | bytes) -> Any:
            if self.passed:
                self.passed -= 1
            elif self.now == "away":
                raise BankError("Redis: ConnectionError")
            elif self.now == "deaf":
                run(script, *words)
                raise BankError("Redis: TimeoutError")
            return run(script, *words)

        return call


def patient(sweep: Callable[[], None], weather: Weather) -> Callable[[], None]:
    """A sweep that fails only where it must."""

    def swept() -> None:
        try:
            sweep()
        except BankError:
            assert weather.now != "fine"

    return swept


class Replicas(Checked):
    """Workers of several processes. Time at them goes on when the record's clock is put back."""

    redis: Redis
    banks: list[RedisBank]
    weather: Weather
    steady: list[float]

    def __init__(self) -> None:
        self.weather.now, self.weather.passed = "fine", 0
        with self.record.database.engine.begin() as c:
            c.execute(delete(lines))
            c.execute(delete(stale))
        self.redis.flush()
        super().__init__()
        self.bank: Any = self.banks[0]

    @precondition(lambda self: len(self.living) < 4)
    @rule()
    def open(self) -> None:
        self.bank = self.banks[(self.banks.index(self.bank) + 1) % BANKS]
        super().open()

    def tell(self, it: Teller, wants: dict[str, tuple[int, int]], outcome: str) -> None:
        try:
            super().tell(it, wants, outcome)
        except LendingError as error:
            if outcome == "h":
                it.heard(error.receipt)

    @rule()
    def flush(self) -> None:
        self.redis.flush()

    @rule(how=st.sampled_from(["fine", "away", "deaf"]), passed=st.integers(0, 3))
    def change_the_weather(self, how: str, passed: int) -> None:
        self.weather.now, self.weather.passed = how, passed

    @rule(seconds=st.sampled_from([0.0, 0.5, 3.0, 12.0, 40.0, 400.0, 4000.0]))
    def wait(self, seconds: float) -> None:
        self.record.clock.now += seconds
        self.steady[0] += seconds

    @precondition(lambda self: len(self.living) > 1)
    @rule(index=st.integers(0, 9))
    def close(self, index: int) -> None:
        try:
            super().close(index)
        except LendingError:
            assert not self.fine

    @property
    def fine(self) -> bool:
        return self.weather.now == "fine"

    def teardown(self) -> None:
        self.weather.now, self.weather.passed = "fine", 0
        self.check_limits()
        self.record.clock.now += 7200.0  # whatever it was put back by
        while self.paused:
            self.living.append(self.paused.pop())
        for it in list(self.living):
            self.tell(it, {}, "h")
        for _ in range(
            3
        ):  # whoever was killed is found to be dead, and Redis learns all that it was not told
            self.wait(31.0)
            self.bank.sweep()
        self.bank._begin()
        for bank in self.banks:
            assert bank.check() == []
        assert self.record.rows(stale.c.account) == []
        super().teardown()


def run(record: Record, redis: Redis, examples: int, steps: int) -> None:
    weather, steady = Weather(), [1000.0]
    databases = [record.database, *(record.another() for _ in range(BANKS - 1))]
    banks = [
        RedisBank(database, redis.url, monotonic=lambda: steady[0], sleep=lambda s: None)
        for database in databases
    ]
    for bank in banks:
        hash_: Any = bank._hash
        hash_._run = weather.over(hash_._run)
        bank.sweep = patient(bank.sweep, weather)  # type: ignore[method-assign]
    Replicas.record, Replicas.redis, Replicas.banks = record, redis, banks
    Replicas.weather, Replicas.steady = weather, steady
    Replicas.names = (f"h{number}" for number in count())
    often: dict[str, Any] = {
        "deadline": None,
        "suppress_health_check": list(HealthCheck),
        "report_multiple_bugs": False,
    }
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Replicas, settings=settings(max_examples=examples, stateful_step_count=steps, **often)
    )
    for bank in banks:
        bank._hash.dispose()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Record]:
    """In memory, where there is a file system of that: nothing here depends on the disk."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as directory:
        record = Record(f"sqlite:///{directory}/ledger.db")
        yield record
        record.dispose()


def test_replicas(file: Record, redis: Redis) -> None:
    run(file, redis, 10, 40)


@pytest.mark.slow
def test_replicas_at_length(file: Record, redis: Redis) -> None:
    run(file, redis, 150, 80)


@pytest.mark.slow
def test_replicas_on_postgresql(postgres_url: str, redis: Redis) -> None:
    record = Record(postgres_url)
    run(record, redis, 15, 40)
    record.dispose()
