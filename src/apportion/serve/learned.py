"""What policies and predictors have learned, kept across restarts: a file for each of them and each worker.

A file says whose it is (the method and its parameters); one that is of something else, or broken, is set aside with
a warning and never stops a start. A worker that has none takes the newest of its siblings'.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import msgspec

from apportion.core.errors import ApportionError
from apportion.core.method import Method

logger = logging.getLogger("apportion.learned")

_VERSION: Final = 1


class _Saved(msgspec.Struct):
    version: int
    name: str
    method: str
    parameters: str
    saved_at: float
    state: dict[str, Any]


class Learned:
    """The learned states of one worker in ``directory``: ``worker-NN/NAME.json``."""

    def __init__(self, directory: Path, worker: int) -> None:
        self._directory = directory
        self._own = directory / f"worker-{worker:02d}"
        self._saving = asyncio.Lock()

    def load(self, name: str, kind: str, method: Method) -> bool:
        """Let ``method``, in the catalogue as ``kind``, continue from what was saved under ``name``.

        False if there is nothing to continue from; the method is then as it was.
        """
        file = _file(name)
        own = self._own / file
        places = [own] if own.exists() else []
        places += sorted(
            (path for path in self._directory.glob(f"worker-*/{file}") if path != own), key=_age_s
        )
        return any(self._continue(path, name, kind, method, own=path == own) for path in places)

    async def save(self, methods: Mapping[str, tuple[str, Method]]) -> None:
        """Save every method, by name with its kind in the catalogue.

        Each is read between two turns of the event loop, for what changes meanwhile must not be torn; encoding and
        writing is done in a thread. What cannot be saved is logged.
        """
        async with self._saving:
            for name, (kind, method) in methods.items():
                try:
                    saved = _Saved(_VERSION, name, kind, parameters_of(method), time.time(), method.save())
                    await asyncio.to_thread(self._write, self._own / _file(name), saved)
                except (OSError, ApportionError, TypeError, ValueError) as error:
                    logger.warning("what %s has learned could not be saved: %s", name, error)
                await asyncio.sleep(0)

    def _continue(self, path: Path, name: str, kind: str, method: Method, *, own: bool) -> bool:
        try:
            saved = msgspec.json.decode(path.read_bytes(), type=_Saved)
        except OSError as error:
            logger.warning("%s cannot be read: %s", path, error)
            return False
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return self._aside(path, f"it is broken ({error})", own)
        if saved.version != _VERSION or saved.name != name:
            return self._aside(path, "it is of another version", own)
        if saved.method != kind or saved.parameters != parameters_of(method):
            return self._aside(path, "the method or its parameters are others now", own)
        fresh = method.save()
        try:
            method.load(saved.state)
        except Exception as error:
            # A method half loaded is worse than one that begins anew.
            method.load(fresh)
            return self._aside(path, f"{type(error).__name__}: {error}", own)
        return True

    def _aside(self, path: Path, why: str, own: bool) -> bool:
        """Out of the way, not deleted; a sibling's file is its own business."""
        if own:
            target = path.with_suffix(".set-aside")
            try:
                path.replace(target)
            except OSError as error:
                logger.warning("%s could not be set aside: %s", path, error)
            logger.warning("what was learned in %s is not used, %s; it is now %s", path, why, target.name)
        return False

    @staticmethod
    def _write(path: Path, saved: _Saved) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            file.write(msgspec.json.encode(saved))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)


def parameters_of(method: Method) -> str:
    """A digest of a method's class and parameters: what was learned under others is not its own."""
    given = json.dumps([type(method).__name__, method.parameters()], sort_keys=True, default=repr)
    return hashlib.sha256(given.encode()).hexdigest()


def names(directory: Path) -> Iterator[Path]:
    """All files of learned state, of every worker."""
    yield from sorted(directory.glob("worker-*/*.json"))


def _file(name: str) -> str:
    return quote(name, safe="") + ".json"


def _age_s(path: Path) -> float:
    try:
        return -path.stat().st_mtime
    except OSError:
        return 0.0
