"""Writes the log of decisions: from memory, by a thread of its own, into files that are bounded in size and age.

The event loop only encodes a line and puts it into a buffer; what does not fit into that is counted as dropped, never
waited for. A full file is compressed and a new one begun. What was not yet written when the process is killed (half
a second's worth) is lost; the books are elsewhere.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from apportion.measure.decision_log import VERSION, Entry, Header, Word, find, line

logger = logging.getLogger("apportion.decision_log")

_BUFFER_BYTES: Final = 16 * 2**20
_FLUSH_S: Final = 0.5
_PATIENCE_S: Final = 5.0
_COMPRESSION: Final = 6


class DecisionLog:
    """The log of one worker in ``directory``: ``worker-NN.jsonl``, and the full ones ``worker-NN-TIME-N.jsonl.gz``.

    Raises ``OSError`` if the directory cannot be written to. ``lines`` and ``dropped`` count since the start.
    """

    def __init__(
        self,
        directory: Path,
        worker: int,
        *,
        file_bytes: int = 64 * 2**20,
        total_bytes: int = 2 * 2**30,
        keep_s: float = 30 * 86400.0,
        buffer_bytes: int = _BUFFER_BYTES,
    ) -> None:
        self.lines = 0
        self.dropped = 0
        self._directory = directory
        self._worker = worker
        self._file_bytes, self._total_bytes, self._keep_s = file_bytes, total_bytes, keep_s
        self._most_buffered = buffer_bytes
        self._buffer: list[bytes] = []
        self._buffered = 0
        self._rotations = 0
        self._lock = threading.Lock()
        """Of the buffer; held for moments."""
        self._writing = threading.Lock()
        """Of the file."""
        self._wake = threading.Event()
        self._closing = False
        self._complained = False
        self._name = f"worker-{worker:02d}"
        self._file: BinaryIO | None = self._open()
        self._thread = threading.Thread(target=self._run, name="decision log", daemon=True)
        self._thread.start()

    def add(self, record: Entry | Word) -> None:
        """Take one record; never waits."""
        text = line(record)
        with self._lock:
            if self._closing or self._buffered + len(text) > self._most_buffered:
                self.dropped += 1
                return
            self._buffer.append(text)
            self._buffered += len(text)
            self.lines += 1

    def find(self, id: str, within_s: float) -> Entry | None:
        """An earlier decision of this worker, the newest files first. Blocks: call it in a thread."""
        until_s = time.monotonic() + within_s
        own = [path for path, _, _ in self._full()]
        return find([self._directory / f"{self._name}.jsonl", *own], id, until_s=until_s)

    def flush(self) -> None:
        """Write what waits. Blocks: for the thread, and for tests."""
        with self._writing:
            self._write()

    def close(self) -> None:
        """Write what waits and end; returns after a few seconds at the latest. Blocks: call it in a thread."""
        with self._lock:
            self._closing = True
        self._wake.set()
        self._thread.join(_PATIENCE_S)

    # the thread

    def _run(self) -> None:
        self._keep()
        while not self._closing:
            self._wake.wait(_FLUSH_S)
            self.flush()
        self.flush()
        if self._file is not None:
            self._file.close()

    def _write(self) -> None:
        with self._lock:
            lines, self._buffer = self._buffer, []
            self._buffered = 0
        if not lines:
            return
        try:
            if self._file is None:  # the directory was removed or the disk was full a moment ago
                self._file = self._open()
            self._file.write(b"".join(lines))
            self._file.flush()
            self._complained = False
            if self._file.tell() >= self._file_bytes:
                self._rotate(self._file)
        except OSError as error:
            with self._lock:
                self.dropped += len(lines)
                self.lines -= len(lines)
            if not self._complained:
                logger.warning("decisions cannot be logged to %s: %s", self._directory, error)
            self._complained = True
            with contextlib.suppress(OSError):
                if self._file is not None:
                    self._file.close()
            self._file = None

    def _open(self) -> BinaryIO:
        """Continue the file, or begin it; another proxy that writes here already keeps its own."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = (self._directory / f"{self._name}.jsonl").open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            self._name = f"worker-{self._worker:02d}-{os.getpid()}"
            file = (self._directory / f"{self._name}.jsonl").open("ab")
        if file.tell():
            file.write(b"\n")  # a killed process may have left half a line
        else:
            file.write(line(Header(VERSION, self._worker, time.time())))
        file.flush()
        return file

    def _rotate(self, file: BinaryIO) -> None:
        self._rotations += 1
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        current = self._directory / f"{self._name}.jsonl"
        full = self._directory / f"{self._name}-{stamp}-{self._rotations:04d}.jsonl"
        current.rename(full)
        file.close()
        self._file = self._open()
        packed = full.with_name(full.name + ".gz")
        part = packed.with_name(packed.name + ".part")
        with full.open("rb") as source, gzip.open(part, "wb", _COMPRESSION) as target:
            shutil.copyfileobj(source, target, 2**20)
        part.rename(packed)
        full.unlink()
        self._keep()

    def _keep(self) -> None:
        """Delete this worker's oldest full files beyond the bounds. What cannot be deleted (or is being deleted by
        somebody else, with its directory) stays; the thread lives on."""
        now, total = time.time(), 0
        with contextlib.suppress(OSError):
            for path, size, changed_s in self._full():
                total += size
                if total > self._total_bytes or now - changed_s > self._keep_s:
                    path.unlink(missing_ok=True)

    def _full(self) -> Iterator[tuple[Path, int, float]]:
        """This worker's full files, the newest first, with their sizes and times."""
        found = []
        for path in self._directory.glob(f"worker-{self._worker:02d}-*T*Z-*.jsonl*"):
            with contextlib.suppress(OSError):
                told = path.stat()
                found.append((told.st_mtime, path, told.st_size))
        for changed_s, path, size in sorted(found, reverse=True):
            yield path, size, changed_s
