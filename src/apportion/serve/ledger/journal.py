"""What a worker has promised and the bank has not yet committed, in memory that outlives the worker.

A file of fixed slots, mapped into memory: a store into it is in the system's page cache at once, so nothing is
lost when the process is killed at any instruction (a crash of the machine is the database's affair). A
reservation is written to a free slot before it is acted on and its settlement beside it; the slot is
free again once the bank has committed both. Each slot's state is one byte that is stored last, so what was only
half written does not exist yet. The file is locked (flock) while its worker lives: whoever finds one that nobody has
locked may recover it.

    file:  header (4096 bytes), slots of 4096 bytes
    slot:  state (1) ... length (4) crc (4) reserved payload | length (4) crc (4) settled payload

The second checksum starts from the first, so that a settlement cannot be taken for that of another reservation.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import mmap
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from apportion.core.errors import ApportionError

logger = logging.getLogger("apportion.ledger")

LONGEST: Final = 2036
"""Bytes of the longest payload."""

_FREE: Final = 0
_TAKEN: Final = 1
_SETTLED: Final = 2

_SLOT: Final = 4096
_FIRST: Final = 4
_SECOND: Final = 2048
_HEADER: Final = 4096
_MAGIC: Final = b"apportion journal\n"
_VERSION: Final = 1
_head: Final = struct.Struct("<18sHII64s")
_lengths: Final = struct.Struct("<II")
_prefix: Final = _lengths.pack
_PER_CHUNK: Final = 256
"""Slots whose room on the disk is claimed together, before the first of them is used."""
_ATTEMPTS: Final = 10

Found = list[tuple[bytes, bytes | None]]


class JournalError(ApportionError):
    """A journal that cannot be opened, or was not used as it must be."""


class JournalFullError(JournalError):
    """More reservations are open than there are slots, or the disk is full."""


class Journal:
    """The journal of one worker, ``DIRECTORY/HOLDER.journal``; for one thread.

    ``slots`` bounds how many reservations are not committed at once. The file is sparse: as slots are
    reused last in, first out, it takes as much room as the busiest moment needed. Raises `JournalError`
    if the directory cannot hold it. A child that is forked would share the lock: start others anew.
    """

    def __init__(self, directory: Path, holder: str, slots: int = 16384) -> None:
        if not (holder.isascii() and holder.isalnum() and len(holder) <= 64):
            raise JournalError(
                f"A holder is named by up to 64 letters and digits, not {holder!r}.", field="holder"
            )
        self.holder = holder
        self.path = directory / f"{holder}.journal"
        self._slots = slots
        self._fd = _create(directory, self.path, _header(holder, slots), _HEADER + slots * _SLOT)
        self._map = mmap.mmap(self._fd, _HEADER + slots * _SLOT)
        self._free: list[int] = []
        self._used = 0
        """Slots from here on have never been taken."""
        self._claimed = 0
        self._crcs: list[int] = []

    @property
    def open_slots(self) -> int:
        """How many slots are taken."""
        return self._used - len(self._free)

    def take(self, reserved: bytes) -> int:
        """Write a reservation down; returns the slot that it is in.

        Raises `JournalFullError` if there is no room, `JournalError` for more than `LONGEST` bytes.
        """
        length = len(reserved)
        if length > LONGEST:
            raise _too_long(length)
        slot = self._free.pop() if self._free else self._fresh()
        at = _HEADER + slot * _SLOT
        crc = zlib.crc32(reserved, slot)
        self._crcs[slot] = crc
        memory = self._map
        memory[at + _FIRST : at + _FIRST + 8 + length] = _prefix(length, crc) + reserved
        memory[at] = _TAKEN
        return slot

    def settle(self, slot: int, settled: bytes) -> None:
        """Write down how the reservation in ``slot`` was settled."""
        length = len(settled)
        if length > LONGEST:
            raise _too_long(length)
        at = _HEADER + slot * _SLOT
        memory = self._map
        if memory[at] != _TAKEN:
            raise JournalError(f"Slot {slot} holds no open reservation: it was settled or freed before.")
        second = at + _SECOND
        memory[second : second + 8 + length] = (
            _prefix(length, zlib.crc32(settled, self._crcs[slot])) + settled
        )
        memory[at] = _SETTLED

    def free(self, slot: int) -> None:
        """The bank has committed what is in ``slot``."""
        at = _HEADER + slot * _SLOT
        if self._map[at] == _FREE:
            raise JournalError(f"Slot {slot} is free: it was freed before.")
        self._map[at] = _FREE
        self._free.append(slot)

    def found(self) -> Found:
        """Reservations that are not committed, in order of their slots, with their settlements."""
        return _scan(self._map[_HEADER : _HEADER + self._used * _SLOT], 0)[0]

    def close(self) -> None:
        """Give the journal up. The file goes if no slot is taken; else it is left to be recovered."""
        if self._map.closed:
            return
        if not self.open_slots:
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()
        self._map.close()
        os.close(self._fd)

    def _fresh(self) -> int:
        slot = self._used
        if slot >= self._slots:
            raise JournalFullError(
                f"{self._slots} reservations are not yet in the ledger's database.", fix="See why it is slow."
            )
        if slot >= self._claimed:
            # A store into a hole of a full disk would kill the process.
            count = min(_PER_CHUNK, self._slots - slot)
            try:
                _claim(self._fd, _HEADER + slot * _SLOT, count * _SLOT)
            except OSError as error:
                raise JournalFullError(
                    f"The journal {str(self.path)!r} cannot grow: {error.strerror}.",
                    fix="Make room on its disk.",
                ) from None
            self._claimed = slot + count
            self._crcs += [0] * count
        self._used = slot + 1
        return slot


class Abandoned:
    """A journal that nobody holds any more, locked for whoever recovers it.

    ``found`` are its reservations, each with its settlement or None. ``damaged`` counts slots that cannot be
    read, which a killed process never leaves. End with ``remove`` once all is in the bank, or ``release``.
    """

    def __init__(self, path: Path, fd: int, holder: str, found: Found, damaged: int) -> None:
        self.path = path
        self.holder = holder
        self.found = found
        self.damaged = damaged
        self._fd: int | None = fd

    def remove(self) -> None:
        """All of it is committed: the file goes."""
        self.path.unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        """Leave it to somebody else."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __del__(self) -> None:
        self.release()


def abandoned(directory: Path) -> Iterator[Abandoned]:
    """Journals in ``directory`` whose worker is gone, each locked so that only one recovers it.

    Files that are no journals, or of a version unknown here, are left alone and reported in the log.
    """
    for path in sorted(directory.glob("*.new")):
        fd = _lock(path)
        if fd is not None:  # a worker died before its journal had a name; nothing was written
            path.unlink(missing_ok=True)
            os.close(fd)
    for path in sorted(directory.glob("*.journal")):
        fd = _lock(path)
        if fd is None:
            continue
        try:
            known = _read(path, fd)
        except BaseException:
            os.close(fd)
            raise
        if known is None:
            os.close(fd)
            logger.warning("%s is no journal that this version can read; it is left as it is", path)
            continue
        holder, found, damaged = known
        if damaged:
            logger.error("%s: %d slots are damaged and lost", path, damaged)
        yield Abandoned(path, fd, holder, found, damaged)


def _write_zeros(fd: int, offset: int, size: int) -> None:
    for at in range(offset, offset + size, _SLOT):
        os.pwrite(fd, bytes(min(_SLOT, offset + size - at)), at)


_claim: Final = getattr(os, "posix_fallocate", _write_zeros)
"""Makes room on the disk for an empty part of a file; not every system has its own way."""


def _create(directory: Path, path: Path, header: bytes, size: int) -> int:
    """A locked file with a header at ``path``, which was never there without its lock; its descriptor."""
    new = path.with_suffix(".new")
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for _ in range(_ATTEMPTS):
            if path.exists():
                break
            fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.pwrite(fd, header, 0)
                os.ftruncate(fd, size)
                new.rename(path)
                return fd
            except (BlockingIOError, FileNotFoundError):
                os.close(fd)  # somebody took it for one whose worker died at birth
                new.unlink(missing_ok=True)
            except BaseException:
                os.close(fd)
                new.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise JournalError(
            f"The journal {str(path)!r} cannot be made: {error.strerror}.",
            field="ledger.journal",
            fix="Give a directory on a local disk that this process may write to.",
        ) from None
    raise JournalError(
        f"The journal {str(path)!r} cannot be made: another one has its place.",
        field="holder",
        fix="Choose another.",
    )


def _lock(path: Path) -> int | None:
    """An open, locked descriptor of ``path``; None if somebody else has locked or removed it."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), os.stat(path)):
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def _header(holder: str, slots: int) -> bytes:
    head = _head.pack(_MAGIC, _VERSION, slots, _SLOT, holder.encode())
    return (head + zlib.crc32(head).to_bytes(4, "little")).ljust(_HEADER, b"\0")


def _read(path: Path, fd: int) -> tuple[str, Found, int] | None:
    header = os.pread(fd, _HEADER, 0)
    if len(header) < _HEADER:
        return None
    magic, version, slots, slot_bytes, name = _head.unpack_from(header)
    holder = name.rstrip(b"\0").decode("ascii", "replace")
    if (magic, version, slot_bytes) != (_MAGIC, _VERSION, _SLOT) or header != _header(holder, slots):
        return None
    found: Found = []
    damaged = 0
    for first in range(0, slots, _PER_CHUNK):
        size = min(_PER_CHUNK, slots - first) * _SLOT
        more, lost = _scan(os.pread(fd, size, _HEADER + first * _SLOT), first)
        found += more
        damaged += lost
    return holder, found, damaged


def _scan(slots: bytes, first: int) -> tuple[Found, int]:
    """What is in consecutive slots, the number of the first given, and how many are unreadable."""
    found: Found = []
    damaged = 0
    for slot, state in enumerate(slots[::_SLOT], first):
        if state == _FREE:
            continue
        at = (slot - first) * _SLOT
        reserved = _payload(slots, at + _FIRST, slot)
        if reserved is None or state not in (_TAKEN, _SETTLED):
            damaged += 1
            continue
        settled = None
        if state == _SETTLED:
            settled = _payload(slots, at + _SECOND, zlib.crc32(reserved, slot))
            damaged += settled is None
        found.append((reserved, settled))
    return found, damaged


def _payload(slots: bytes, at: int, seed: int) -> bytes | None:
    if at + 8 > len(slots):
        return None
    length, crc = _lengths.unpack_from(slots, at)
    payload = slots[at + 8 : at + 8 + length]
    if length > LONGEST or len(payload) != length or zlib.crc32(payload, seed) != crc:
        return None
    return payload


def _too_long(length: int) -> JournalError:
    return JournalError(
        f"An entry of {length} bytes does not fit into the journal, which takes {LONGEST}.",
        fix="Shorten its tags and names.",
    )
