"""The store on disk: where it is, who may write, what was recorded about each file."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import msgspec

from apportion.serve.store.errors import BusyError, DiskFullError, StoreError

CHUNK_BYTES = 1 << 20


def default_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """`$APPORTION_HOME/models`, else `apportion/models` in the user's cache directory."""
    if home := environ.get("APPORTION_HOME"):
        return Path(home).expanduser().absolute() / "models"
    if cache := environ.get("XDG_CACHE_HOME") or environ.get("LOCALAPPDATA"):
        return Path(cache).absolute() / "apportion" / "models"
    return Path.home() / ".cache" / "apportion" / "models"


def sha256_of(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """The SHA-256 of a file; ``on_bytes`` is told how many bytes were read so far."""
    digest = hashlib.sha256()
    done_bytes = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            done_bytes += len(chunk)
            if on_bytes:
                on_bytes(done_bytes)
    return digest.hexdigest()


@contextlib.contextmanager
def disk_errors(directory: Path) -> Iterator[None]:
    """Turns the operating system's refusals inside ``directory`` into errors that say what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            raise DiskFullError(
                f"The disk of {directory} is full.",
                fix="Free some room or set APPORTION_HOME to a larger disk, then run it again: it resumes.",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise StoreError(
                f"The models store {directory} cannot be used: {error.strerror}.",
                fix="Set APPORTION_HOME to a directory that you may write.",
            ) from error
        raise


class FileLock:
    """An exclusive lock between processes (and threads), released by the system when its holder dies."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    def try_acquire(self) -> bool:
        """Take the lock now, or say that somebody else has it."""
        file = self._path.open("a+b")
        try:
            _lock(file)
        except OSError as error:
            file.close()
            if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
                return False
            raise
        self._file = file
        return True

    def release(self) -> None:
        """Give it back. The file stays: removing it would let two processes lock two different files."""
        if self._file is not None:
            self._file.close()
            self._file = None


@contextlib.contextmanager
def locked(
    path: Path, *, waiting: Callable[[], None] | None = None, wait_s: float | None = None, poll_s: float = 0.2
) -> Iterator[None]:
    """Hold the lock at ``path``.

    While somebody else holds it, ``waiting`` is called every ``poll_s`` seconds; it may raise to give up.
    With ``wait_s`` the wait is bounded.

    Raises:
        BusyError: when it was not to be had within ``wait_s``.
    """
    lock = FileLock(path)
    until = None if wait_s is None else time.monotonic() + wait_s
    while not lock.try_acquire():
        if until is not None and time.monotonic() >= until:
            raise BusyError(
                "Another process is working on these weights.",
                fix="Wait until it has finished, then try again.",
            )
        if waiting:
            waiting()
        time.sleep(poll_s)
    try:
        yield
    finally:
        lock.release()


class Record(msgspec.Struct, frozen=True):
    """What is known about one stored file. Size and modification time say whether it must be hashed again."""

    file: str
    sha256: str
    size_bytes: int
    mtime_ns: int


class _Book(msgspec.Struct):
    version: int = 1
    models: dict[str, Record] = {}


class Book:
    """`models.lock`: the hash each reference had when it was first used here, to be checked ever after."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "models.lock"
        self._guard = directory / ".models.lock.guard"

    def read(self) -> dict[str, Record]:
        """All records, by canonical reference.

        Raises:
            StoreError: when the file is damaged; it is never silently ignored, for it holds the pins.
        """
        try:
            with disk_errors(self.path.parent):
                raw = self.path.read_bytes()
        except FileNotFoundError:
            return {}
        try:
            book = msgspec.json.decode(raw, type=_Book)
        except msgspec.MsgspecError as error:
            raise StoreError(
                f"{self.path} is damaged ({error}).",
                fix="Restore it, or delete it to record the hashes of the present files anew.",
            ) from error
        if book.version != 1:
            raise StoreError(
                f"{self.path} was written by a newer apportion (version {book.version}).",
                fix="Upgrade apportion.",
            )
        return book.models

    def write(self, ref: str, record: Record | None) -> None:
        """Set the record of ``ref``, or forget it."""
        with locked(self._guard):
            models = self.read()
            if record is None:
                models.pop(ref, None)
            else:
                models[ref] = record
            pretty = msgspec.json.format(
                msgspec.json.encode(_Book(models=dict(sorted(models.items())))), indent=2
            )
            draft = self.path.with_name(f".models.lock.{os.getpid()}.draft")
            draft.write_bytes(pretty + b"\n")
            os.replace(draft, self.path)


if sys.platform == "win32":
    import msvcrt

    def _lock(file: BinaryIO) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(file: BinaryIO) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
