"""One Redis hash whose fields are read and swapped atomically, and that notices when it has lost anything.

Every value begins with a random tag. A change names the tags it was computed from and is made only if all of them
are still there, so the arithmetic is done here, in whole numbers of any size (numbers in Redis scripts are doubles).

The field ``epoch`` ends with the id that a Redis process gives itself when it starts. A flush or an eviction takes
the epoch away with everything else; a restart, also one that loads an old snapshot, and a fail-over to a replica that
lags behind show in the id. Either way everything is refused with `EpochLostError` until a new epoch begins.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from apportion.core.errors import ParameterError
from apportion.serve.ledger.entries import BankError

_TAG: Final = 8

_INTACT: Final = """
local function process() return string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') end
local function intact()
  return redis.call('HGET', KEYS[1], 'epoch') == ARGV[1] and process() == string.match(ARGV[1], ':(%x+)$')
end
"""
_STATE: Final = _INTACT + "return {redis.call('HGET', KEYS[1], 'epoch'), process()}"
_READ: Final = (
    _INTACT
    + """
if not intact() then return -1 end
local found = {}
for i = 2, #ARGV do found[i - 1] = redis.call('HGET', KEYS[1], ARGV[i]) end
return found
"""
)
_SWAP: Final = (
    _INTACT
    + """
if not intact() then return -1 end
for i = 2, #ARGV, 3 do
  local value = redis.call('HGET', KEYS[1], ARGV[i])
  if (value and string.sub(value, 1, 8) or '') ~= ARGV[i + 1] then return 0 end
end
for i = 2, #ARGV, 3 do
  if ARGV[i + 2] == '' then redis.call('HDEL', KEYS[1], ARGV[i])
  else redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 2]) end
end
return 1
"""
)
_BEGIN: Final = (
    _INTACT
    + """
if process() ~= string.match(ARGV[1], ':(%x+)$') then return -1 end
redis.call('DEL', KEYS[1])
return redis.call('HSET', KEYS[1], 'epoch', ARGV[1])
"""
)


class EpochLostError(BankError):
    """The hash is not the one of this epoch, or not whole."""


class Cell(NamedTuple):
    """A value, and the tag that changes whenever it does. Empty, both: there is none."""

    tag: bytes = b""
    value: bytes = b""


class Change(NamedTuple):
    """What is to stand in ``field`` in place of the value with the tag ``before``; empty: nothing."""

    field: str
    before: bytes
    value: bytes


class RedisHash:
    """The hash ``key`` of the Redis or Valkey at ``url``.

    Each call is one round trip of at most ``timeout_s`` and raises `BankError` when there is no answer: it may or may
    not have been carried out then.
    """

    def __init__(self, url: str, key: str, *, timeout_s: float = 1.0) -> None:
        try:
            self._redis: Redis = Redis.from_url(
                url,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                retry=Retry(NoBackoff(), 0),
                protocol=2,
            )
        except ValueError:
            raise ParameterError(
                "The address of Redis is not one.", field="ledger.redis", fix="Write redis://HOST:6379/0."
            ) from None
        self.key = key
        register = self._redis.register_script
        self._state, self._read = register(_STATE), register(_READ)
        self._swap, self._begin = register(_SWAP), register(_BEGIN)

    def state(self) -> tuple[str, str]:
        """The epoch that is there ("": none) and the id of the Redis process."""
        epoch, process = self._run(self._state)
        return (epoch or b"").decode(), process.decode()

    def begin(self, epoch: str) -> None:
        """Forget everything and begin ``epoch``, which must end with ``:`` and the id of the process."""
        if self._run(self._begin, epoch) == -1:
            raise EpochLostError("Redis was restarted in this moment")

    def read(self, epoch: str, fields: Sequence[str]) -> list[Cell]:
        """The values of ``fields``, as of one moment."""
        found = self._run(self._read, epoch, *fields)
        if found == -1:
            raise EpochLostError("Redis has lost its state")
        return [Cell() if value is None else Cell(value[:_TAG], value[_TAG:]) for value in found]

    def swap(self, epoch: str, changes: Sequence[Change]) -> bool:
        """Make all of ``changes``, or none and False if anything named in them has changed in between."""
        words: list[str | bytes] = []
        for field, before, value in changes:
            words += (field, before, os.urandom(_TAG) + value if value else b"")
        done = self._run(self._swap, epoch, *words)
        if done == -1:
            raise EpochLostError("Redis has lost its state")
        return bool(done)

    def scan(self, cursor: int, count: int) -> tuple[int, dict[str, Cell]]:
        """Some of the fields with their values, and where to go on; 0: from the beginning."""
        try:
            scanned: Any = self._redis.hscan(self.key, cursor, count=count)
        except RedisError as error:
            raise _lost(error) from None
        following, found = scanned
        cells = {k.decode(): Cell(v[:_TAG], v[_TAG:]) for k, v in found.items() if k != b"epoch"}
        return int(following), cells

    def delete(self) -> None:
        """Remove the hash."""
        try:
            self._redis.delete(self.key)
        except RedisError as error:
            raise _lost(error) from None

    def dispose(self) -> None:
        """Close the connections."""
        self._redis.close()

    def _run(self, script: Any, *words: str | bytes) -> Any:
        try:
            return script(keys=[self.key], args=words)
        except RedisError as error:
            raise _lost(error) from None


def _lost(error: RedisError) -> BankError:
    return BankError(f"Redis: {type(error).__name__}: {error}")
