"""The models store: weights fetched once, checked by hash, shared by every process of this machine."""

from apportion.serve.store.download import Progress
from apportion.serve.store.encoder import EncoderFiles, ensure_encoder
from apportion.serve.store.errors import (
    BusyError,
    DiskFullError,
    HashError,
    MissingError,
    ModelRefError,
    StoreError,
    UnreachableError,
)
from apportion.serve.store.files import default_directory
from apportion.serve.store.known import KNOWN, KnownModel
from apportion.serve.store.shelf import StoredModel, Verdict, fetch, listing, remove, verify

__all__ = [
    "KNOWN",
    "BusyError",
    "DiskFullError",
    "EncoderFiles",
    "HashError",
    "KnownModel",
    "MissingError",
    "ModelRefError",
    "Progress",
    "StoreError",
    "StoredModel",
    "UnreachableError",
    "Verdict",
    "default_directory",
    "ensure_encoder",
    "fetch",
    "listing",
    "remove",
    "verify",
]
