"""The hash: swapped as a whole or not at all, and nothing that was lost goes unnoticed."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Thread

import pytest
from redis import Redis as Client

from apportion.core.errors import ParameterError
from apportion.serve.ledger.entries import BankError
from apportion.serve.ledger.redis_hash import Cell, Change, EpochLostError, RedisHash
from servers import Redis, free_port

KEY = "apportion:{test}"


def begun(hash_: RedisHash, name: str = "first") -> str:
    epoch = f"{name}:{hash_.state()[1]}"
    hash_.begin(epoch)
    return epoch


@pytest.fixture
def hash_(redis: Redis) -> Iterator[RedisHash]:
    made = RedisHash(redis.url, KEY)
    yield made
    made.dispose()


def test_what_is_written_is_read(hash_: RedisHash) -> None:
    epoch = begun(hash_)
    assert hash_.read(epoch, ["a", "b"]) == [Cell(), Cell()]
    assert hash_.swap(epoch, [Change("b", b"", b"\x00two")])
    none, two = hash_.read(epoch, ["a", "b"])
    assert none == Cell()
    assert two.value == b"\x00two"
    assert hash_.swap(epoch, [Change("b", two.tag, b"")])
    assert hash_.read(epoch, ["b"]) == [Cell()]
    assert hash_.state()[0] == epoch


def test_a_swap_is_made_as_a_whole_or_not_at_all(hash_: RedisHash) -> None:
    epoch = begun(hash_)
    assert hash_.swap(epoch, [Change("a", b"", b"1"), Change("b", b"", b"1")])
    a, b = hash_.read(epoch, ["a", "b"])
    assert hash_.swap(epoch, [Change("b", b.tag, b"2")])
    assert not hash_.swap(epoch, [Change("a", a.tag, b"9"), Change("b", b.tag, b"9"), Change("c", b"", b"9")])
    assert [cell.value for cell in hash_.read(epoch, ["a", "b", "c"])] == [b"1", b"2", b""]


def test_the_same_value_written_again_is_another(hash_: RedisHash) -> None:
    epoch = begun(hash_)
    hash_.swap(epoch, [Change("a", b"", b"1")])
    (first,) = hash_.read(epoch, ["a"])
    assert hash_.swap(epoch, [Change("a", first.tag, b"")])
    assert hash_.swap(epoch, [Change("a", b"", b"1")])
    assert not hash_.swap(epoch, [Change("a", first.tag, b"2")])


@pytest.mark.parametrize("command", ["FLUSHALL", "FLUSHDB", f"DEL {KEY}", f"HDEL {KEY} epoch"])
def test_whatever_takes_something_away_is_noticed(hash_: RedisHash, redis: Redis, command: str) -> None:
    epoch = begun(hash_)
    redis.ask(command)
    with pytest.raises(EpochLostError):
        hash_.read(epoch, ["a"])
    with pytest.raises(EpochLostError):
        hash_.swap(epoch, [Change("a", b"", b"1")])
    assert hash_.state()[0] == ""


def test_another_epoch_is_noticed_and_empty(hash_: RedisHash) -> None:
    first = begun(hash_)
    hash_.swap(first, [Change("a", b"", b"1")])
    second = begun(hash_, "second")
    with pytest.raises(EpochLostError):
        hash_.read(first, ["a"])
    assert hash_.read(second, ["a"]) == [Cell()]


def test_a_restart_that_loads_an_old_snapshot_is_noticed(hash_: RedisHash, redis: Redis) -> None:
    epoch = begun(hash_)
    hash_.swap(epoch, [Change("a", b"", b"old")])
    assert redis.ask("SAVE") == b"+OK"
    redis.kill()
    redis.start()
    with Client.from_url(redis.url) as client:
        assert client.hget(KEY, "epoch") == epoch.encode(), "the snapshot was not loaded: this shows nothing"
    with pytest.raises(EpochLostError):
        hash_.read(epoch, ["a"])
    (redis.directory / "dump.rdb").unlink()


def test_no_answer_is_a_bank_error_in_time(redis: Redis, hash_: RedisHash) -> None:
    hasty = RedisHash(redis.url, KEY, timeout_s=0.2)
    epoch = begun(hash_)
    redis.pause()
    try:
        with pytest.raises(BankError, match="Timeout"):
            hasty.read(epoch, ["a"])
    finally:
        redis.resume()
    for tries in range(300):  # a loaded machine, too, may take longer than it waits
        try:
            assert hasty.read(epoch, ["a"]) == [Cell()]
            break
        except BankError:
            assert tries < 299
    hasty.dispose()


def test_nobody_there_is_a_bank_error() -> None:
    with pytest.raises(BankError, match="Connection"):
        RedisHash(f"redis://:geheim@127.0.0.1:{free_port()}", KEY).state()


def test_an_address_that_is_none_is_refused_without_repeating_it() -> None:
    with pytest.raises(ParameterError) as caught:
        RedisHash("http://user:geheim@host", KEY)
    assert caught.value.field == "ledger.redis"
    assert "geheim" not in str(caught.value)


def test_counting_together_loses_nothing(redis: Redis) -> None:
    first = RedisHash(redis.url, KEY)
    epoch = begun(first)

    def count() -> None:
        mine = RedisHash(redis.url, KEY)
        for _ in range(50):
            while True:
                (cell,) = mine.read(epoch, ["n"])
                if mine.swap(epoch, [Change("n", cell.tag, str(int(cell.value or b"0") + 2**70).encode())]):
                    break
        mine.dispose()

    threads = [Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert int(first.read(epoch, ["n"])[0].value) == 200 * 2**70
    assert first.scan(0, 10)[1].keys() == {"n"}
    first.dispose()
