"""Answers that several workers and replicas have in common, in Redis or Valkey.

Each answer is one value under its key, and ends by itself with its time. A stream (`XADD`) tells what was kept and
dropped; every worker reads it now and then, so that what is near in meaning is found in its own memory, too. What does
not fit Redis's memory it drops by its own rule (`maxmemory-policy`). Nothing here is needed: without an answer from
Redis each worker goes on with what it has, and asks again after a pause.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, Protocol

import msgspec

from apportion.core.errors import ParameterError
from apportion.serve.cache.store import Entry

logger = logging.getLogger("apportion.cache")

_PAUSE_S: Final = 5.0
"""How long Redis is left alone after it failed."""
_NEWS: Final = 500
_REMEMBERED: Final = 20_000
"""Lines of the stream that are read at once, and kept."""
_REMOVALS: Final = 1000
_AT_ONCE: Final = 64
"""Writes under way at most; more are left out."""


class Removal(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was dropped: what fits all that is given, of what was kept until ``before_s``."""

    before_s: float
    key: str | None = None
    decision_id: str | None = None
    tag: str | None = None
    tenant: str | None = None

    def fits(self, entry: Entry) -> bool:
        """Whether ``entry`` is dropped."""
        given = [
            (self.key, (entry.key,)),
            (self.decision_id, (entry.decision_id,)),
            (self.tag, entry.tags),
            (self.tenant, (entry.tenant,)),
        ]
        asked = [names for name, names in given if name is not None and name not in names]
        return entry.created_s <= self.before_s and not asked and any(name is not None for name, _ in given)


class Shared(Protocol):
    """What `AnswerCache` needs of it. Nothing raises."""

    async def get(self, key: str) -> Entry | None:
        """The entry that somebody has kept."""

    def put(self, entry: Entry, ttl_s: float) -> None:
        """Let the others have an entry, some time soon."""

    def remove(self, removal: Removal) -> None:
        """Drop what fits, with everybody."""

    async def close(self) -> None:
        """Finish."""


class RedisShared:
    """Answers in the Redis at ``url``, under names that begin with ``prefix``.

    ``told`` is given what others have kept and dropped, every ``sync_s`` seconds once `start` was called.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "apportion:cache",
        timeout_s: float = 0.1,
        sync_s: float = 1.0,
        told: Callable[[Sequence[Entry], Sequence[Removal]], None] | None = None,
    ) -> None:
        from redis.asyncio import Redis

        try:
            self._redis: Any = Redis.from_url(
                url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, protocol=2
            )
        except ValueError:
            raise ParameterError(
                "The address of Redis is not one.", field="cache.redis", fix="Write redis://HOST:6379/0."
            ) from None
        self._prefix = prefix
        self._log = f"{prefix}:log"
        self._sync_s = sync_s
        self._told = told
        self._seen = "0-0"
        self._rests_until_s = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._syncing: asyncio.Task[None] | None = None
        self._removals: deque[Removal] = deque(maxlen=_REMOVALS)
        """What may still be in Redis although it was dropped."""

    def start(self) -> None:
        """Listen to the others; what they have kept so far comes first."""
        self._syncing = asyncio.get_running_loop().create_task(self._sync())

    async def get(self, key: str) -> Entry | None:
        """The entry under a key; None also where Redis does not say."""
        return self._there(await self._asked(self._redis.get, self._name(key)))

    def put(self, entry: Entry, ttl_s: float) -> None:
        """Write an entry behind the scenes."""
        self._later(self._put(entry, ttl_s))

    def remove(self, removal: Removal) -> None:
        """Drop what fits behind the scenes; the others hear of it."""
        self._removals.append(removal)
        self._later(self._remove(removal))

    async def close(self) -> None:
        """Finish what is under way and close the connections."""
        if self._syncing is not None:
            self._syncing.cancel()
            await asyncio.gather(self._syncing, return_exceptions=True)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(Exception):
            await self._redis.aclose()

    async def sync(self) -> None:
        """Hear once what is new."""
        while True:
            said = await self._asked(self._redis.xread, {self._log: self._seen}, count=_NEWS)
            lines = said[0][1] if said else []
            if not lines:
                return
            kept = [line[b"kept"].decode() for _, line in lines if b"kept" in line]
            values = await self._asked(self._redis.mget, [self._name(key) for key in kept]) if kept else []
            if values is None:
                return
            self._seen = lines[-1][0].decode()
            removed = [
                msgspec.json.decode(line[b"gone"], type=Removal) for _, line in lines if b"gone" in line
            ]
            self._removals.extend(removed)
            entries = [entry for value in values if (entry := self._there(value)) is not None]
            if self._told is not None:
                self._told(entries, removed)

    def _there(self, value: bytes | None) -> Entry | None:
        """An entry as Redis has it, unless it was dropped since."""
        if value is None:
            return None
        try:
            entry = msgspec.msgpack.decode(value, type=Entry)
        except msgspec.DecodeError:
            return None
        return None if any(removal.fits(entry) for removal in self._removals) else entry

    async def _sync(self) -> None:
        while True:
            try:
                await self.sync()
            except asyncio.CancelledError:
                raise
            except Exception:
                logger.exception("What others have cached could not be read.")
            await asyncio.sleep(self._sync_s)

    async def _put(self, entry: Entry, ttl_s: float) -> None:
        value = msgspec.msgpack.encode(entry)
        done = await self._asked(self._redis.set, self._name(entry.key), value, px=max(1, int(ttl_s * 1000)))
        if done and entry.vector:
            line = {"kept": entry.key}
            await self._asked(self._redis.xadd, self._log, line, maxlen=_REMEMBERED, approximate=True)

    async def _remove(self, removal: Removal) -> None:
        if removal.key is not None:
            await self._asked(self._redis.delete, self._name(removal.key))
        line = {"gone": msgspec.json.encode(removal)}
        await self._asked(self._redis.xadd, self._log, line, maxlen=_REMEMBERED, approximate=True)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        if len(self._tasks) >= _AT_ONCE or time.monotonic() < self._rests_until_s:
            work.close()
            return
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _asked(self, ask: Callable[..., Any], *words: Any, **how: Any) -> Any:
        """What Redis says; None if it does not."""
        if time.monotonic() < self._rests_until_s:
            return None
        from redis.exceptions import RedisError

        try:
            return await ask(*words, **how)
        except (RedisError, OSError, TimeoutError) as error:
            self._rests_until_s = time.monotonic() + _PAUSE_S
            logger.warning(
                "Redis does not share answers (%s); each worker has its own.", type(error).__name__
            )
            return None

    def _name(self, key: str) -> str:
        return f"{self._prefix}:{key}"
