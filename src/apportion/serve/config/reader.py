"""Reads an ``apportion.yaml``: everything wrong with it is told at once, with its line and the fix."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path as FilePath

import msgspec

from apportion.serve.config import checks, document, state
from apportion.serve.config.convert import INVALID, Converter
from apportion.serve.config.document import Fields, Items, Node, Path, Scalar
from apportion.serve.config.problems import ConfigError, Problem
from apportion.serve.config.schema import Config, Endpoint, Ledger, Model
from apportion.serve.config.secret import Secret

MAX_FILE_BYTES = 8 * 2**20
_SQLITE = "sqlite:///"


def load(path: str | os.PathLike[str], *, environ: Mapping[str, str] | None = None) -> Config:
    """The configuration in a file; raises `ConfigError` with everything that is wrong."""
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        fix = "Write one, or name another with --config." if isinstance(error, FileNotFoundError) else None
        raise ConfigError([_whole_file(name, f"cannot be read: {reason}.", fix)]) from None
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError([_whole_file(name, f"larger than {MAX_FILE_BYTES // 2**20} MiB.", None)])
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        problem = Problem(file=name, line=line, path="", message="not valid UTF-8.", fix="Save it as UTF-8.")
        raise ConfigError([problem]) from None
    return loads(text, name, environ=environ, folder=FilePath(name).resolve().parent)


def loads(
    text: str,
    name: str = "apportion.yaml",
    *,
    environ: Mapping[str, str] | None = None,
    folder: FilePath | None = None,
) -> Config:
    """The configuration in a text; ``name`` stands for the file in messages.

    ``environ`` (default: the process's) fills ``${NAME}``; relative paths are taken from ``folder`` (default:
    the current one). Raises `ConfigError`.
    """
    tree, problems = document.parse(text, name)
    environ = os.environ if environ is None else environ
    converter = Converter(name, environ)
    config: Config | None = None
    if tree is not None:
        found = converter.struct(Config, tree, ())
        config = None if found is INVALID else found
    if config is not None and tree is not None:
        config = _resolve_paths(config, folder or FilePath.cwd(), environ)
        _check(config, tree, converter)
    problems += converter.problems
    if problems or config is None:
        raise ConfigError(sorted(problems, key=lambda problem: problem.line or 0))
    return config


def override(config: Config, *, required: bool | None = None, **listen: str | int | None) -> Config:
    """``config`` with `auth.required` and keys of `listen` replaced by those given (None: kept).

    Raises `ConfigError`.
    """
    replace = msgspec.structs.replace
    given = {name: value for name, value in listen.items() if value is not None}
    auth = config.auth if required is None else replace(config.auth, required=required)
    changed = replace(config, auth=auth, listen=replace(config.listen, **given))
    wrong = [
        Problem(
            file="command line",
            line=None,
            path=document.show_path(fault.path),
            message=fault.message,
            fix=fault.fix,
        )
        for fault in (*checks.exposure(changed), *checks.books(changed))
    ]
    if wrong:
        raise ConfigError(wrong)
    return changed


def _check(config: Config, tree: Node, converter: Converter) -> None:
    wrong = {problem.path for problem in converter.problems}
    for fault in checks.faults(config, lambda part: _names(tree, part)):
        path = converter.as_written(fault.path)
        shown = document.show_path(path)
        # What could not be read was reported already; the default in its place is no second mistake.
        if not any(other == shown or other.startswith((f"{shown}.", f"{shown}[")) for other in wrong):
            converter.refuse(path, _line(path, converter.lines), fault.message, fault.fix)


def _names(tree: Node, part: str) -> set[str]:
    """The names that the file mentions under ``part``, those included whose own values are wrong."""
    entry = tree.fields.get(part) if isinstance(tree, Fields) else None
    if entry is None:
        return set()
    node = entry[1]
    if isinstance(node, Fields):
        return set(node.fields)
    names = set()
    for item in node.items if isinstance(node, Items) else ():
        name = item.fields.get("name") if isinstance(item, Fields) else None
        names.add(name[1].text if name is not None and isinstance(name[1], Scalar) else "?")
    return names


def _line(path: Path, lines: Mapping[Path, int]) -> int | None:
    """The line of ``path``, or of the nearest thing around it that is in the file."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path)


def _resolve_paths(config: Config, folder: FilePath, environ: Mapping[str, str]) -> Config:
    endpoints = {name: _resolve_endpoint(endpoint, folder) for name, endpoint in config.endpoints.items()}
    models = {name: _resolve_model(model, folder) for name, model in config.models.items()}
    ledger = _resolve_ledger(config.ledger, folder, environ)
    records = config.records
    if records.log is not None and records.log.directory:
        directory = str(folder / FilePath(records.log.directory).expanduser())
        log = msgspec.structs.replace(records.log, directory=directory)
        records = msgspec.structs.replace(records, log=log)
    return msgspec.structs.replace(config, endpoints=endpoints, models=models, ledger=ledger, records=records)


def _resolve_model(model: Model, folder: FilePath) -> Model:
    """The files of its predictors, made absolute."""
    given = {"quality": model.predict.quality, "length": model.predict.length}
    found = {kind: str(folder / FilePath(file).expanduser()) for kind, file in given.items() if file}
    return msgspec.structs.replace(model, predict=msgspec.structs.replace(model.predict, **found))


def _resolve_ledger(ledger: Ledger, folder: FilePath, environ: Mapping[str, str]) -> Ledger:
    """With `url` from the environment if the file names none, and paths made absolute."""
    url = ledger.url
    if url is None:
        given = environ.get(state.LEDGER_URL, "").strip()
        url = Secret(given) if given else None
    elif url.reveal().startswith(_SQLITE):
        file, mark, query = url.reveal().removeprefix(_SQLITE).partition("?")
        url = Secret(f"{_SQLITE}{folder / FilePath(file).expanduser()}{mark}{query}") if file else url
    journal = ledger.journal
    if journal:
        journal = str(folder / FilePath(journal).expanduser())
    return msgspec.structs.replace(ledger, url=url, journal=journal)


def _resolve_endpoint(endpoint: Endpoint, folder: FilePath) -> Endpoint:
    def absolute(file: str | None) -> str | None:
        return file if not file else str(folder / FilePath(file).expanduser())

    weights = endpoint.weights
    if weights is not None and (
        weights.startswith("file:") or (":" not in weights and ("/" in weights or weights.endswith(".gguf")))
    ):
        weights = f"file:{absolute(weights.removeprefix('file:'))}"
    return msgspec.structs.replace(
        endpoint,
        base_url=endpoint.base_url.rstrip("/") if endpoint.base_url else None,
        file=absolute(endpoint.file),
        weights=weights,
        tls=msgspec.structs.replace(endpoint.tls, ca_file=absolute(endpoint.tls.ca_file)),
    )


def _whole_file(name: str, message: str, fix: str | None) -> Problem:
    return Problem(file=name, line=None, path="", message=message, fix=fix)
