"""Per-arm linear models that are updated one observation at a time, for a bounded number of arms."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class LinearArms:
    """For each arm, ridge regression of a number on a vector of ``dimensions`` numbers, by rank-one updates.

    At most ``most`` arms are kept; a new one takes the place of the one that was learned from longest ago. An
    arm that is not kept is as the prior says: mean 0, inverse covariance ``ridge`` times the identity.
    """

    def __init__(self, dimensions: int, ridge: float, most: int) -> None:
        self.dimensions, self.ridge, self.most = dimensions, ridge, most
        self.slots: dict[str, int] = {}
        """Arm to its row, the one learned from longest ago first. Row 0 is the prior."""
        self.inverse: Array = np.empty((0, dimensions, dimensions))
        self.target: Array = np.empty((0, dimensions))
        self.theta: Array = np.empty((0, dimensions))
        self.pulls: list[float] = []
        self._grow(1)

    def estimates(self, arms: Sequence[str], x: Array) -> tuple[Array, Array]:
        """For each arm the mean at ``x`` and the variance of that mean in units of the noise, shape (n,)."""
        slots = self.slots
        rows = [slots.get(arm, 0) for arm in arms]
        return self.theta[rows] @ x, np.maximum((self.inverse[rows] @ x) @ x, 0.0)

    def learn(self, arm: str, x: Array, y: float) -> None:
        """Take in ``y`` at ``x``: Sherman and Morrison's formula, O(d^2)."""
        row = self._row(arm)
        inverse = self.inverse[row]
        ax = inverse @ x
        inverse -= np.outer(ax, ax / (1.0 + float(x @ ax)))
        self.target[row] += y * x
        self.theta[row] = inverse @ self.target[row]
        self.pulls[row] += 1.0

    def correct(self, arm: str, x: Array, difference: float) -> None:
        """Say that an observation at ``x`` that was taken in was ``difference`` too low."""
        row = self.slots.get(arm)
        if row is not None:
            self.target[row] += difference * x
            self.theta[row] = self.inverse[row] @ self.target[row]

    def pulled(self, arm: str) -> float:
        """How many observations of ``arm`` were taken in."""
        row = self.slots.get(arm)
        return 0.0 if row is None else self.pulls[row]

    def saved(self) -> dict[str, Any]:
        """What was learned, for JSON; arrays as base64 of their little-endian doubles."""
        return {
            "slots": self.slots,
            "inverse": packed(self.inverse),
            "target": packed(self.target),
            "theta": packed(self.theta),
            "pulls": self.pulls,
        }

    def restored(self, saved: dict[str, Any]) -> LinearArms:
        """Arms like these that have learned what was ``saved``."""
        d = self.dimensions
        other = LinearArms(d, self.ridge, self.most)
        other.slots = {str(arm): int(row) for arm, row in saved["slots"].items()}
        other.inverse = unpacked(saved["inverse"]).reshape(-1, d, d)
        other.target = unpacked(saved["target"]).reshape(-1, d)
        other.theta = unpacked(saved["theta"]).reshape(-1, d)
        other.pulls = list(saved["pulls"])
        return other

    def _row(self, arm: str) -> int:
        row = self.slots.pop(arm, None)
        if row is None:
            if len(self.slots) >= self.most:
                row = self.slots.pop(next(iter(self.slots)))
                self._clear(row)
            else:
                row = len(self.slots) + 1
                if row >= len(self.pulls):
                    self._grow(min(2 * len(self.pulls) + 2, self.most + 1) - len(self.pulls))
        self.slots[arm] = row
        return row

    def _clear(self, row: int) -> None:
        self.inverse[row] = np.eye(self.dimensions) / self.ridge
        self.target[row] = self.theta[row] = 0.0
        self.pulls[row] = 0.0

    def _grow(self, n: int) -> None:
        d = self.dimensions
        fresh = np.repeat((np.eye(d) / self.ridge)[None], n, axis=0)
        self.inverse = np.concatenate((self.inverse, fresh))
        self.target = np.concatenate((self.target, np.zeros((n, d))))
        self.theta = np.concatenate((self.theta, np.zeros((n, d))))
        self.pulls += [0.0] * n


def packed(array: Array) -> str:
    """The numbers of ``array`` as text."""
    return base64.b64encode(np.ascontiguousarray(array, dtype="<f8").tobytes()).decode("ascii")


def unpacked(text: str) -> Array:
    """What `packed` wrote, flat."""
    return np.frombuffer(base64.b64decode(text), dtype="<f8").copy()
