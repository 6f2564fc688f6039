"""Arrays as JSON: bytes in base64, nothing rounded, so that a loaded predictor goes on exactly."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]

_KINDS = ("<f4", "<f8", "<i2", "<i4")


def pack(array: npt.NDArray[Any]) -> dict[str, Any]:
    """``array`` as an object that JSON can carry."""
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    kind = little.dtype.str
    if kind not in _KINDS:
        raise TypeError(f"an array of {kind} cannot be packed, only {', '.join(_KINDS)}")
    return {"kind": kind, "shape": list(array.shape), "base64": base64.b64encode(little.tobytes()).decode()}


def unpack(packed: Mapping[str, Any]) -> npt.NDArray[Any]:
    """The array that `pack` was given, writable."""
    kind = str(packed["kind"])
    if kind not in _KINDS:
        raise ValueError(f"a packed array may not be of kind {kind!r}")
    data = base64.b64decode(packed["base64"], validate=True)
    return np.frombuffer(data, dtype=kind).reshape(packed["shape"]).astype(np.dtype(kind).newbyteorder("="))


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x)), without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)))


def logistic(x: float) -> float:
    """`sigmoid` of one number."""
    return 0.5 * (1.0 + math.tanh(0.5 * x))


def logit(p: Floats, margin: float = 1e-3) -> Floats:
    """The inverse of `sigmoid`, with ``p`` kept ``margin`` away from 0 and 1."""
    clipped = np.clip(p, margin, 1.0 - margin)
    return np.asarray(np.log(clipped / (1.0 - clipped)))
