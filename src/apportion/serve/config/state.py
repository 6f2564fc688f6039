"""Where state is kept that outlives the process: the XDG rules, and addresses of books without passwords."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from apportion.core.errors import ApportionError

LEDGER_URL = "APPORTION_LEDGER_URL"
LEDGER_FILE = "ledger.db"


class StateDirectoryError(ApportionError):
    """The directory for the books or journals cannot be made, or is not the proxy's own."""

    code = "state_directory"


def location(environ: Mapping[str, str] | None = None) -> Path:
    """Where the state directory is or would be: ``apportion`` in ``$XDG_STATE_HOME``, by default ``~/.local/state``.

    As the XDG specification asks, a relative ``$XDG_STATE_HOME`` does not count.
    """
    environ = os.environ if environ is None else environ
    base = environ.get("XDG_STATE_HOME") or environ.get("LOCALAPPDATA") or ""
    if os.path.isabs(base):
        return Path(base) / "apportion"
    home = environ.get("HOME")
    return (Path(home) if home else Path.home()) / ".local" / "state" / "apportion"


def directory(environ: Mapping[str, str] | None = None) -> Path:
    """The state directory, made for this user alone (0700) if it is not there."""
    return private(location(environ), "XDG_STATE_HOME")


def private(path: Path, field: str) -> Path:
    """``path`` as a directory, made 0700 if it is not there; raises `StateDirectoryError` naming ``field``."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        writable = os.access(path, os.W_OK | os.X_OK)
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise _unusable(path, f"cannot be made: {reason}", field) from None
    if not writable:
        raise _unusable(path, "cannot be written to", field)
    return path


def default_url(environ: Mapping[str, str] | None = None, *, create: bool = True) -> str:
    """The books' address where the configuration names none: ``$APPORTION_LEDGER_URL``, or a file of SQLite."""
    values = os.environ if environ is None else environ
    given = values.get(LEDGER_URL, "").strip()
    if given:
        return given
    folder = directory(environ) if create else location(environ)
    return f"sqlite:///{folder / LEDGER_FILE}"


def shown(url: str) -> str:
    """``url`` for people: without password, and without its query, which may hold one."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(not an address)"
    host = parts.netloc.rpartition("@")[2]
    user = f"{parts.username}@" if parts.username and "@" in parts.netloc else ""
    return (
        url.partition("?")[0]
        if not parts.netloc
        else urlunsplit((parts.scheme, user + host, parts.path, "", ""))
    )


def _unusable(path: Path, why: str, field: str) -> StateDirectoryError:
    return StateDirectoryError(
        f"The directory {str(path)!r} {why}.",
        field=field,
        fix="Set `ledger.url` and `ledger.journal`, or XDG_STATE_HOME to a directory that the proxy may write to.",
    )
