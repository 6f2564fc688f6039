"""How a request's features become one row of numbers: the same for fitting, predicting and learning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from apportion.core.features import Features
from apportion.predict.quality._arrays import Floats, pack, unpack
from apportion.predict.quality._kernels import Kernels

LIMIT = 4.0
"""Standardised marks are cut at so many standard deviations: one odd text must not decide alone."""
COLD = 0.25
"""Centre and scale of a mark before anything is known: the lexical encoder's lie between 0 and about 1."""


class View:
    """Lexical marks on a common scale, then (when ``axes`` are given) the sentence vector in a few directions.

    ``centre`` and ``scale`` have one number for each lexical mark, after `squash`; ``middle`` is the mean
    vector and ``axes`` has one row for each direction kept.
    """

    def __init__(
        self, centre: Floats, scale: Floats, middle: Floats | None = None, axes: Floats | None = None
    ) -> None:
        self.centre, self.scale, self.middle = centre, scale, middle
        # One layout in memory, or a loaded view would round sums otherwise than the one that was saved.
        self.axes = None if axes is None else np.ascontiguousarray(axes)
        self.width = len(centre) + (0 if axes is None else len(axes))

    def row(self, features: Features, kernels: Kernels | None = None) -> Floats | None:
        """One row; None when the features are not of the lengths that were fitted."""
        if len(features.lexical) != len(self.centre):
            return None
        marks = np.array(features.lexical, float)
        if kernels is None:
            np.arcsinh(marks, out=marks)  # `squash`, in place as all that follows: this is the hot path
            np.subtract(marks, self.centre, out=marks)
            np.divide(marks, self.scale, out=marks)
            np.minimum(marks, LIMIT, out=marks)
            np.maximum(marks, -LIMIT, out=marks)
        else:
            kernels.marks(LIMIT, self.centre, self.scale, marks)
        if self.axes is None or self.middle is None:
            return marks
        if features.vector is None or len(features.vector) != len(self.middle):
            return None
        return np.concatenate((marks, self.axes @ (np.array(features.vector) - self.middle)))

    def rows(self, lexical: Floats, vectors: Floats | None) -> Floats:
        """Many rows at once."""
        marks = np.clip((squash(lexical) - self.centre) / self.scale, -LIMIT, LIMIT)
        if self.axes is None or self.middle is None or vectors is None:
            return np.asarray(marks)
        return np.hstack((marks, (vectors - self.middle) @ self.axes.T))

    @classmethod
    def fitted(cls, lexical: Floats, vectors: Floats | None, dims: int) -> View:
        """Mean and spread of the marks; of the vectors the ``dims`` directions in which they differ most."""
        marks = squash(lexical)
        spread = marks.std(0)
        centre, scale = marks.mean(0), np.where(spread > 1e-9, spread, 1.0)
        if vectors is None:
            return cls(centre, scale)
        middle = vectors.mean(0)
        away = vectors - middle
        values, directions = np.linalg.eigh(away.T @ away / len(away))
        keep = min(dims, len(away) - 1, len(values))
        axes = directions[:, ::-1][:, :keep].T
        axes = axes * np.sign(axes[np.arange(keep), np.abs(axes).argmax(1)])[:, None]
        size = np.sqrt(np.maximum(values[::-1][:keep], 0.0)).mean()
        return cls(centre, scale, middle, axes / max(size, 1e-9))

    @classmethod
    def cold(cls, features: Features, dims: int, seed: int) -> View:
        """Before anything is known: marks on a usual scale, the vector in random directions."""
        marks = len(features.lexical)
        centre, scale = np.full(marks, COLD), np.full(marks, COLD)
        if features.vector is None:
            return cls(centre, scale)
        length = len(features.vector)
        random = np.random.default_rng(seed).standard_normal((length, min(dims, length)))
        axes, _ = np.linalg.qr(random)
        return cls(centre, scale, np.zeros(length), axes.T * np.sqrt(length))

    def save(self) -> dict[str, Any]:
        """As an object that JSON can carry."""
        parts = {"centre": self.centre, "scale": self.scale, "middle": self.middle, "axes": self.axes}
        return {name: None if part is None else pack(part) for name, part in parts.items()}

    @classmethod
    def load(cls, saved: Mapping[str, Any]) -> View:
        """What `save` returned."""
        parts = [saved[name] for name in ("centre", "scale", "middle", "axes")]
        centre, scale, middle, axes = (None if part is None else unpack(part) for part in parts)
        if centre is None or scale is None or centre.shape != scale.shape or centre.ndim != 1:
            raise ValueError("the saved view has no centre or scale")
        return cls(centre.astype(float, copy=False), scale.astype(float, copy=False), middle, axes)


def squash(marks: Floats) -> Floats:
    """Counts grow over magnitudes and what they mean grows with their logarithm; signs and small numbers
    stay.
    """
    return np.asarray(np.arcsinh(marks))
