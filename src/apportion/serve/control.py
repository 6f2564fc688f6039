"""The control sockets: how the command line talks to a running proxy, and its workers to each other.

Unix sockets in a directory that only this user may enter; no network, no key. HTTP/1.1 with JSON.

Whoever may enter there needs no key of the configuration to ask the proxy either: it tells its user's commands a key
that is made anew at every start, and whose digest its workers find in their own private directory.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import secrets
import socket
import stat
import tempfile
from pathlib import Path
from typing import Any, Final

import msgspec

from apportion.core.errors import ApportionError

_LOCAL_KEY: Final = "local-key.sha256"


class ControlError(ApportionError):
    """No running proxy answers on the control socket."""

    code = "not_running"


def run_directory(port: int, *, make: bool = True) -> Path:
    """Where the proxy on ``port`` keeps its sockets; made, and made private, if it is not there and ``make``."""
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    root = Path(base) / f"apportion-{os.getuid()}"
    path = root / str(port)
    if make:
        root.mkdir(mode=0o700, exist_ok=True)
    elif not os.path.lexists(root):
        return path
    found = root.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ControlError(
            f"{root} is not a private directory of this user.",
            field="XDG_RUNTIME_DIR",
            fix="Remove it, or set XDG_RUNTIME_DIR to a private directory.",
        )
    if make:
        path.mkdir(mode=0o700, exist_ok=True)
    return path


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path
        self._timeout_s = timeout_s

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self._timeout_s)
        self.sock.connect(str(self._path))


def request(path: str, payload: object = None, *, port: int, timeout_s: float = 600.0) -> dict[str, Any]:
    """POST ``payload`` to the proxy on ``port``; its JSON answer. Raises ``ControlError`` if none is running."""
    connection = _UnixConnection(run_directory(port, make=False) / "control.sock", timeout_s)
    try:
        connection.request("POST", path, body=msgspec.json.encode(payload), headers={"host": "localhost"})
        return msgspec.json.decode(connection.getresponse().read(), type=dict[str, Any])
    except (OSError, http.client.HTTPException) as error:
        raise ControlError(
            f"No apportion proxy of this user answers for port {port}: {error}.",
            field="port",
            fix="Start it with 'apportion up', or name its port with --port.",
        ) from None
    finally:
        connection.close()


def make_local_key(directory: Path) -> str:
    """A key that only the control socket tells; its SHA-256 is left for the workers in their ``directory``."""
    secret = secrets.token_urlsafe(32)
    (directory / _LOCAL_KEY).write_text(hashlib.sha256(secret.encode()).hexdigest())
    return secret


def local_sha256(directory: Path) -> bytes | None:
    """The digest of that key; None if there is none."""
    try:
        return bytes.fromhex((directory / _LOCAL_KEY).read_text())
    except FileNotFoundError:
        return None


def local_key(port: int) -> str | None:
    """The key that the proxy on ``port`` tells its own user; None if none of this user is running there."""
    try:
        key = request("/key", port=port, timeout_s=5.0).get("key")
    except (ControlError, msgspec.DecodeError):
        return None
    return key if isinstance(key, str) else None
