"""Several workers with one Redis; and each for itself when it is away."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from cache_doubles import answered, chat, oldest

from apportion.core.errors import ParameterError
from apportion.serve.cache.answers import AnswerCache, Hit, Turn
from apportion.serve.cache.identity import Question
from apportion.serve.cache.settings import Cache
from apportion.serve.cache.shared import RedisShared
from servers import free_port

NOW = 1_000_000.0


async def letters(text: str) -> Sequence[float] | None:
    counts = [0.01] * 26
    for letter in text.casefold():
        if "a" <= letter <= "z":
            counts[ord(letter) - 97] += 1.0
    return counts


class Worker:
    """A cache with its line to Redis."""

    def __init__(self, url: str) -> None:
        self.shared = RedisShared(
            url, timeout_s=60.0, told=lambda kept, gone: self.cache.sync(kept, gone, NOW)
        )
        self.cache = AnswerCache(
            Cache(enabled=True, semantic=True), oldest, vector=letters, shared=self.shared
        )

    def ask(self, text: str, tenant: str = "team:a", tags: tuple[str, ...] = ()) -> Question:
        found = self.cache.question("chat", chat(text), tenant=tenant, key="k", user="", model="m", tags=tags)
        assert found is not None
        return found

    async def keep(self, text: str, tenant: str = "team:a", tags: tuple[str, ...] = ()) -> None:
        turn = await self.cache.look(self.ask(text, tenant, tags), NOW)
        assert isinstance(turn, Turn)
        assert turn.keep(answered(text), now=NOW, decision_id=f"dec_{text}")
        turn.end()
        await self.written()

    async def written(self) -> None:
        await asyncio.gather(*self.shared._tasks)

    async def kind(self, text: str, tenant: str = "team:a") -> str:
        found = await self.cache.look(self.ask(text, tenant), NOW)
        if isinstance(found, Turn):
            found.end()
            return "miss"
        return found.kind


async def test_what_one_keeps_another_finds(redis_url: str) -> None:
    one, two = Worker(redis_url), Worker(redis_url)
    await one.keep("reset the password")
    assert await two.kind("reset the password") == "hit"
    assert await two.kind("reset the password", "team:b") == "miss"
    await one.cache.close()
    await two.cache.close()


async def test_by_meaning_after_the_next_sync_and_never_across_tenants(redis_url: str) -> None:
    one, two = Worker(redis_url), Worker(redis_url)
    await one.keep("reset the password")
    assert await two.kind("Reset the password!") == "miss"
    await two.shared.sync()
    assert await two.kind("Reset the password!") == "semantic"
    assert await two.kind("Reset the password!", "team:b") == "miss"
    late = Worker(redis_url)
    await late.shared.sync()
    assert await late.kind("Reset the password!") == "semantic"
    for worker in (one, two, late):
        await worker.cache.close()


async def test_what_is_removed_is_gone_everywhere_and_may_come_back(redis_url: str) -> None:
    one, two = Worker(redis_url), Worker(redis_url)
    await one.keep("red fox", tags=("t",))
    await one.keep("old owl")
    await two.shared.sync()
    two.cache.remove(tag="t", now=NOW + 1)
    await two.written()
    await one.shared.sync()
    late = Worker(redis_url)
    await late.shared.sync()
    for worker in (one, two, late):
        assert await worker.kind("red fox") == "miss"
        assert await worker.kind("old owl") == "hit"
    one.cache.remove(decision_id="dec_old owl", now=NOW + 1)
    await one.written()
    await two.shared.sync()
    assert await two.kind("old owl") == "miss"
    turn = await one.cache.look(one.ask("red fox"), NOW + 2)
    assert isinstance(turn, Turn)
    assert turn.keep(answered(), now=NOW + 2)
    turn.end()
    await one.written()
    await two.shared.sync()
    found = await two.cache.look(two.ask("red fox"), NOW + 3)
    assert isinstance(found, Hit)
    for worker in (one, two, late):
        await worker.cache.close()


async def test_entries_end_with_their_time_in_redis_too(redis_url: str) -> None:
    import redis

    one = Worker(redis_url)
    await one.keep("reset the password")
    with redis.Redis.from_url(redis_url) as client:
        keys = [key for key in client.keys("apportion:cache:*") if not key.endswith(b":log")]
        assert len(keys) == 1
        assert 0 < client.pttl(keys[0]) <= 8 * 86_400_000
    await one.cache.close()


async def test_without_redis_each_goes_on_alone() -> None:
    alone = Worker(f"redis://127.0.0.1:{free_port()}")
    alone.shared.start()
    await alone.keep("reset the password")
    assert await alone.kind("reset the password") == "hit"
    assert await alone.kind("Reset the password!") == "semantic"
    await alone.cache.close()


async def test_rubbish_in_redis_is_a_miss(redis_url: str) -> None:
    import redis

    one = Worker(redis_url)
    with redis.Redis.from_url(redis_url) as client:
        client.set(f"apportion:cache:{one.ask('hello').key}", b"rubbish")
    assert await one.kind("hello") == "miss"
    await one.cache.close()


def test_a_wrong_address_is_said() -> None:
    with pytest.raises(ParameterError, match="address of Redis"):
        RedisShared("nowhere")
