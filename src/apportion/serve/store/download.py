"""Downloading one large file over HTTP so that an interruption costs nothing but time.

Bytes go to a partial file beside a small note of where they came from. The next attempt, in this process
or another, asks for the rest with a Range request when it is sure to get the same bytes: the hash is known,
or the server's validator (ETag, Last-Modified) is sent along as If-Range. Anything else starts from zero.
"""

from __future__ import annotations

import base64
import http.client
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from email.message import Message
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit, urlunsplit

import msgspec

from apportion import __version__
from apportion.serve.store.errors import DiskFullError, MissingError, UnreachableError
from apportion.serve.store.files import CHUNK_BYTES, disk_errors

Progress = Callable[[int, int | None, str], None]
"""``(done_bytes, total_bytes or None, label)``, called from the fetching thread; raising from it gives up."""

_PAGE_BYTES = 64 << 20
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
_IDLE_ATTEMPTS = 5
_ATTEMPTS = 50
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


def nothing(done_bytes: int, total_bytes: int | None, label: str) -> None:
    """The progress callback of those who do not want to know."""


class _Transient(Exception):
    """An attempt failed in a way that another attempt may mend."""


class _RangeRefused(Exception):
    """HTTP 416: nothing lies beyond what is already here."""

    def __init__(self, total_bytes: int | None) -> None:
        super().__init__()
        self.total_bytes = total_bytes


class _Note(msgspec.Struct):
    url: str
    sha256: str | None = None
    validator: str | None = None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects without leaving encryption or carrying credentials to another host."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if old.scheme == "https" and new.scheme != "https":
            raise UnreachableError(
                f"{old.hostname} redirects to an unencrypted address; that is not followed."
            )
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None and (old.scheme, old.netloc) != (new.scheme, new.netloc):
            following.remove_header("Authorization")
        return following


class Http:
    """A small HTTP client for the store: system proxies, chosen certificates, resumable downloads.

    ``cafile`` is trusted in addition to the system's certificates; ``client_cert`` is a PEM file with key;
    ``proxy`` overrides the environment's. ``pause`` waits between attempts and is there for tests.
    """

    def __init__(
        self,
        *,
        cafile: str | None = None,
        client_cert: str | None = None,
        proxy: str | None = None,
        timeout_s: float = 60.0,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        try:
            context = ssl.create_default_context()
            if cafile:
                path = Path(cafile)
                context.load_verify_locations(**({"capath": cafile} if path.is_dir() else {"cafile": cafile}))
            if client_cert:
                context.load_cert_chain(client_cert)
        except OSError as error:
            raise UnreachableError(
                f"The certificates at {client_cert or cafile} cannot be read: {error}.",
                fix="Check `pip config list` and SSL_CERT_FILE.",
            ) from error
        proxies = None if proxy is None else {"http": proxy, "https": proxy}
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler(proxies), urllib.request.HTTPSHandler(context=context), _Redirects()
        )
        self._timeout_s = timeout_s
        self._pause = pause

    def page(self, url: str, accept: str) -> tuple[str, str, bytes]:
        """A small document: ``(final url, content type, body)``.

        Raises:
            MissingError: when the server says that there is none (404, 410).
            UnreachableError: when it cannot be had after several attempts.
        """
        for attempt in range(3):
            try:
                with self._open(url, {"Accept": accept}) as response:
                    body = _read(response, _PAGE_BYTES + 1, whole=True)
                    if len(body) < (_length(response.headers) or 0):
                        raise _Transient("the connection ended early")
                    if len(body) > _PAGE_BYTES:
                        raise UnreachableError(
                            f"The page {redacted(url)} is larger than {_PAGE_BYTES >> 20} MiB."
                        )
                    return response.url, response.headers.get_content_type(), body
            except (_Transient, _RangeRefused) as error:
                reason = str(error)
                self._pause(0.5 * 2**attempt)
        raise _gave_up(url, reason)

    def download(
        self,
        url: str,
        part: Path,
        *,
        label: str,
        progress: Progress = nothing,
        sha256: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> bool:
        """Bring the whole of ``url`` into ``part``, resuming what is there. True when some of it was resumed.

        The content is not checked here. Attempts go on while they bring bytes; five in a row that bring none
        end it, and the partial file stays for the next time.

        Raises:
            MissingError, UnreachableError, DiskFullError
        """
        resumed = False
        idle = 0
        for _ in range(_ATTEMPTS):
            before_bytes = _size(part)
            try:
                with disk_errors(part.parent):
                    return self._attempt(url, part, label, progress, sha256, headers or {}) or resumed
            except _Transient as error:
                reason = str(error)
            grew = _size(part) > before_bytes
            resumed = resumed or _size(part) > 0
            idle = 0 if grew else idle + 1
            if idle >= _IDLE_ATTEMPTS:
                break
            self._pause(min(10.0, 0.5 * 2**idle))
        raise _gave_up(url, reason)

    def _attempt(
        self,
        url: str,
        part: Path,
        label: str,
        progress: Progress,
        sha256: str | None,
        headers: Mapping[str, str],
    ) -> bool:
        asked = dict(headers)
        have_bytes = _size(part)
        if have_bytes:
            note = _read_note(part)
            same_url = note is not None and note.url == redacted(url)
            if note and note.validator and same_url:
                asked |= {"Range": f"bytes={have_bytes}-", "If-Range": note.validator}
            elif note and sha256 and note.sha256 == sha256:
                asked["Range"] = f"bytes={have_bytes}-"
        try:
            response = self._open(url, asked)
        except _RangeRefused as refused:
            if refused.total_bytes == have_bytes:
                return True
            discard(part)
            raise _Transient("the file at the source is shorter than what was downloaded of it") from refused
        with response:
            start_bytes, total_bytes = 0, _length(response.headers)
            if response.status == 206:
                found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
                if not found or int(found[1]) != have_bytes:
                    discard(part)
                    raise _Transient("it sent another range than was asked for")
                start_bytes, total_bytes = have_bytes, int(found[2])
            _write_note(part, _Note(redacted(url), sha256, _validator(response.headers)))
            _check_room(part.parent, None if total_bytes is None else total_bytes - start_bytes)
            done_bytes = start_bytes
            progress(done_bytes, total_bytes, label)
            with part.open("r+b" if start_bytes else "wb") as file:
                file.seek(start_bytes)
                while chunk := _read(response):
                    file.write(chunk)
                    done_bytes += len(chunk)
                    progress(done_bytes, total_bytes, label)
            if total_bytes is not None and done_bytes != total_bytes:
                raise _Transient(f"the connection ended after {done_bytes} of {total_bytes} bytes")
            return start_bytes > 0

    def _open(self, url: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        bare, authorization = _split_credentials(url)
        if urlsplit(bare).scheme not in ("http", "https"):
            raise UnreachableError(f"{redacted(url)} is not an http address.")
        request = urllib.request.Request(bare, headers={"User-Agent": f"apportion/{__version__}", **headers})
        if authorization:
            request.add_header("Authorization", authorization)
        try:
            response: http.client.HTTPResponse = self._opener.open(request, timeout=self._timeout_s)
        except urllib.error.HTTPError as error:
            with error:
                raise _refusal(url, error) from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                host, why = urlsplit(url).hostname, error.reason.verify_message
                raise UnreachableError(
                    f"The certificate of {host} is not trusted: {why}.",
                    fix="Set SSL_CERT_FILE (or PIP_CERT) to the certificates to trust.",
                ) from error
            raise _Transient(str(error.reason)) from error
        except (OSError, http.client.HTTPException) as error:
            raise _Transient(str(error) or type(error).__name__) from error
        return response


def redacted(url: str) -> str:
    """``url`` without credentials and without a query, which may hold a signature."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def discard(part: Path) -> None:
    """Remove a partial download with its note."""
    part.unlink(missing_ok=True)
    _note_path(part).unlink(missing_ok=True)


def _split_credentials(url: str) -> tuple[str, str | None]:
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, None
    token = base64.b64encode(unquote(user if ":" in user else f"{user}:").encode()).decode()
    return urlunsplit(parts._replace(netloc=host)), f"Basic {token}"


def _refusal(url: str, error: urllib.error.HTTPError) -> Exception:
    if error.code == 416:
        found = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
        return _RangeRefused(int(found[1]) if found else None)
    if error.code in _TRANSIENT:
        return _Transient(f"HTTP {error.code}")
    if error.code in (404, 410):
        return MissingError(
            f"{redacted(url)} does not exist.", field="model", fix="Check the name, the version and the file."
        )
    fix = None
    if error.code in (401, 403, 407):
        fix = "Give credentials: HF_TOKEN for a hub, the index URL or netrc for a package index."
    return UnreachableError(f"{redacted(url)} answered HTTP {error.code}.", fix=fix)


def _gave_up(url: str, reason: str) -> UnreachableError:
    return UnreachableError(
        f"{redacted(url)} cannot be reached: {reason}.",
        fix="Check the network and the proxy settings, then run it again: a partial download is resumed.",
    )


def _read(response: http.client.HTTPResponse, most_bytes: int = CHUNK_BYTES, *, whole: bool = False) -> bytes:
    """What has arrived, or the ``whole``. A failing connection is another attempt's business."""
    try:
        return response.read(most_bytes) if whole else response.read1(most_bytes)
    except (OSError, http.client.HTTPException) as error:
        raise _Transient(str(error) or type(error).__name__) from error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _length(headers: Message) -> int | None:
    text = headers.get("Content-Length", "")
    return int(text) if text.isdecimal() else None


def _validator(headers: Message) -> str | None:
    """What If-Range may carry: a strong ETag, else the date of the last change (RFC 9110, 13.1.5)."""
    etag: str | None = headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")


def _check_room(directory: Path, need_bytes: int | None) -> None:
    free_bytes = shutil.disk_usage(directory).free
    if need_bytes is not None and need_bytes > free_bytes:
        raise DiskFullError(
            f"{need_bytes / 1e6:.0f} MB are needed in {directory}, {free_bytes / 1e6:.0f} MB are free.",
            fix="Free some room or set APPORTION_HOME to a larger disk, then run it again: it resumes.",
        )


def _note_path(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_note(part: Path) -> _Note | None:
    try:
        return msgspec.json.decode(_note_path(part).read_bytes(), type=_Note)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


def _write_note(part: Path, note: _Note) -> None:
    _note_path(part).write_bytes(msgspec.json.encode(note))
