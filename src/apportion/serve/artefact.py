"""Fitted predictors as files: one JSON object, with the hash of its contents so that damage is noticed."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from apportion.core import catalogue
from apportion.core.errors import ApportionError
from apportion.core.method import Method

Kind = Literal["quality", "length"]

VERSION: Final = 1
_SORTED: Final = msgspec.json.Encoder(order="sorted")


class ArtefactError(ApportionError):
    """A file of a fitted predictor is missing, damaged, of another kind or version, or fitted to another encoder."""

    code = "invalid_artefact"


def write(path: Path, document: Mapping[str, Any]) -> str:
    """Write a fitted predictor's ``document`` with its hash, all or nothing; returns the hash."""
    body = {key: value for key, value in document.items() if key != "sha256"}
    digest = _digest(body)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(msgspec.json.encode({"sha256": digest, **body}) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(draft, 0o644)
        os.replace(draft, path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
    return digest


def load(path: Path, kind: Kind, *, encoder: str | None = None) -> tuple[Method, dict[str, Any]]:
    """The predictor in ``path``, ready to predict, and the document it came from.

    ``encoder`` is the encoder in use, None for none: a predictor fitted to the vectors of another one is refused; with
    none it goes by counts alone.

    Raises:
        ArtefactError: saying what is wrong with the file and what to do.
    """
    try:
        document = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        raise ArtefactError(
            f"{path} is not there.", field="predictor", fix=f"Make it with `apportion fit {kind}`."
        ) from None
    except OSError as error:
        raise ArtefactError(f"{path} cannot be read: {error.strerror}.", field="predictor") from None
    except msgspec.DecodeError as error:
        raise ArtefactError(
            f"{path} is no fitted predictor: {error}.", field="predictor", fix=f"Run `apportion fit {kind}`."
        ) from None
    if document.get("apportion") != kind:
        raise ArtefactError(
            f"{path} is a predictor of {document.get('apportion')!r}, not of {kind!r}.", field="predictor"
        )
    if document.get("version") != VERSION:
        raise ArtefactError(
            f"{path} is of version {document.get('version')!r}; this program reads {VERSION}.",
            field="predictor",
            fix=f"Run `apportion fit {kind}` again.",
        )
    if document.get("sha256") != _digest({k: v for k, v in document.items() if k != "sha256"}):
        raise ArtefactError(
            f"{path} was changed after it was written: its hash is another.",
            field="predictor",
            fix=f"Run `apportion fit {kind}` again, or restore the file.",
        )
    fitted = document.get("encoder")
    if encoder is not None and fitted is not None and encoder != fitted:
        raise ArtefactError(
            f"{path} was fitted to the vectors of {fitted!r}; the encoder in use is {encoder!r}.",
            field="encoder",
            fix=f"Use the encoder {fitted!r}, or run `apportion fit {kind}` with the other.",
        )
    try:
        predictor = catalogue.build(document["method"], **document["parameters"])
        predictor.load(document["saved"])
    except (LookupError, TypeError, ValueError) as error:
        raise ArtefactError(
            f"{path} does not hold what {document.get('method')!r} saves: {error}.",
            field="predictor",
            fix=f"Run `apportion fit {kind}` again.",
        ) from None
    return predictor, document


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(_SORTED.encode(body)).hexdigest()
