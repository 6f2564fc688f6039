"""The iteration law fitted to measured times: robust non-negative least squares, held-out errors, bootstrap.

With its points fixed, the law of a `Profile` is linear in its constants: T is a base and a slope of zero or more
between any two points, so that it never falls. Every measurement is a time and what it is made of: a sum of
iterations, and how many times the overheads before and after them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from apportion.simulate.profile import Profile, ProfileError

Vector = NDArray[np.float64]
CONSTANTS: Final = (
    "prefill_attention_s",
    "decode_attention_s",
    "request_s",
    "mixed_s",
    "before_s",
    "before_s_per_token",
    "after_s",
)
_HUBER: Final = 1.345
_ROUNDS: Final = 30
_NOISE: Final = 0.01
"""No time is measured better: a residual of this size is no sign of an outlier."""
_LEAST_PULL: Final = 1e-3
"""Of T to a straight line, where the measurements agree: enough where nothing else says how steep it is."""


@dataclass(frozen=True, slots=True)
class Law:
    """Which constants are fitted: T between ``points`` (increasing; before the first it is constant), and those of
    `CONSTANTS` that are named in ``free``; the others are zero.

    Where lengths of prompts were not varied alone, the attention among them cannot be told from T: with ``pair_tokens``
    a pair of tokens takes that share of what one more token takes after the last point but one.
    """

    points: tuple[float, ...]
    free: tuple[str, ...] = CONSTANTS[:3]
    pair_tokens: float = 0.0

    @property
    def size(self) -> int:
        """How many numbers are fitted."""
        return len(self.points) + len(self.free)

    def row(
        self,
        new: Sequence[float] | Vector,
        *,
        prefill_pairs: float = 0.0,
        decode_context: float = 0.0,
        requests: float = 0.0,
        mixed: float = 0.0,
        before: float = 0.0,
        before_tokens: float = 0.0,
        after: float = 0.0,
        times: float = 1.0,
    ) -> Vector:
        """What one measurement is made of, shape (size,): iterations of ``new`` tokens each, and totals over them.

        ``times`` repeats the iterations (not the overheads): a mean over tokens is the sum over them divided.
        """
        at = np.asarray(new, np.float64)
        edges = np.asarray(self.points)
        parts = [float(at.size)]
        for low, high in zip(edges, [*edges[1:-1], np.inf] if len(edges) > 1 else [], strict=False):
            parts.append(float(np.sum(np.clip(at - low, 0.0, high - low))))
        if self.pair_tokens:
            parts[-1] += self.pair_tokens * prefill_pairs
        totals = {
            "prefill_attention_s": prefill_pairs * times,
            "decode_attention_s": decode_context * times,
            "request_s": requests * times,
            "mixed_s": mixed * times,
            "before_s": before,
            "before_s_per_token": before_tokens,
            "after_s": after,
        }
        return np.array([*(part * times for part in parts), *(totals[name] for name in self.free)])

    def bends(self, theta: Vector) -> NDArray[np.float64]:
        """How much the slope of T changes at each inner point, as a share of T there (by ``theta``): rows that,
        weighted by the noise of the measurements, pull to a straight line what these leave open, shape
        (points - 2, size).
        """
        k = len(self.points)
        if k < 3:
            return np.zeros((0, self.size))
        seconds = np.maximum(self.constants(theta)["seconds"], 1e-9)
        rows = np.zeros((k - 2, self.size))
        for i in range(1, k - 1):
            reach = self.points[i] / seconds[i]
            rows[i - 1, i], rows[i - 1, i + 1] = -reach, reach
        return rows

    def constants(self, theta: Vector) -> dict[str, Any]:
        """Fields of a `Profile` from the fitted numbers."""
        k = len(self.points)
        gaps = np.diff(self.points)
        seconds = theta[0] + np.concatenate([[0.0], np.cumsum(theta[1:k] * gaps)])
        return {
            "tokens": tuple(float(p) for p in self.points),
            "seconds": tuple(_short(s) for s in seconds),
            **({"prefill_attention_s": _short(self.pair_tokens * theta[k - 1])} if self.pair_tokens else {}),
            **{name: _short(value) for name, value in zip(self.free, theta[k:], strict=True)},
        }


@dataclass(eq=False, slots=True)
class Measurements:
    """Times with what they are made of. ``quantity`` names what was measured, ``group`` what belongs together (repeats
    of one setting): groups are held out and drawn again as wholes.
    """

    law: Law
    rows: list[Vector] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    quantity: list[str] = field(default_factory=list)
    group: list[str] = field(default_factory=list)

    def add(self, quantity: str, group: str, seconds: float, row: Vector) -> None:
        """One more; a time that is not positive and finite is refused."""
        if not (np.isfinite(seconds) and seconds > 0):
            raise ProfileError(
                f"A measured {quantity} is {seconds!r} s.", field=quantity, fix="Leave it out."
            )
        self.rows.append(row)
        self.seconds.append(float(seconds))
        self.quantity.append(quantity)
        self.group.append(group)

    def __len__(self) -> int:
        return len(self.seconds)


@dataclass(frozen=True, slots=True)
class Fit:
    """Constants, their held-out mean absolute relative error by quantity, and draws of them by bootstrap."""

    constants: Mapping[str, Any]
    error: Mapping[str, float]
    draws: tuple[Mapping[str, Any], ...]
    rows: int

    def profile(self, name: str, **known: Any) -> Profile:
        """A `Profile` of the fitted constants and what is ``known`` besides."""
        error = {**self.error, **known.pop("error", {})}
        return Profile(name=name, error=error, draws=self.draws, **{**self.constants, **known})


def fit(
    measured: Measurements, *, folds: int = 5, draws: int = 20, rng: np.random.Generator | None = None
) -> Fit:
    """Fit the law to what was measured.

    Residuals are relative, so that short and long times count alike; those beyond 1.345 robust standard deviations
    count less (Huber). Quantities count alike too, whatever the number of their rows.

    Raises:
        ProfileError: with fewer rows than constants can be told from.
    """
    rng = np.random.default_rng(0) if rng is None else rng
    x, y = np.array(measured.rows), np.array(measured.seconds)
    quantities, groups = np.array(measured.quantity), np.array(measured.group)
    if len(y) < 3 or len(np.unique(groups)) < 2:
        raise ProfileError(
            f"{len(np.unique(groups))} different measurements are too few to fit a profile to.",
            field="measurements",
            fix="Measure for longer.",
        )
    weight = _even(quantities)
    theta = robust(x, y, weight, measured.law)
    # Settings that are the only ones of their kind (the shortest and longest, say) are held out like others: the error
    # is one of predicting what was not measured.
    names = np.unique(groups)
    fold_of = dict(zip(rng.permutation(names), np.arange(len(names)) % min(folds, len(names)), strict=True))
    fold = np.array([fold_of[g] for g in groups])
    predicted = np.empty_like(y)
    for k in range(min(folds, len(names))):
        kept = fold != k
        predicted[~kept] = x[~kept] @ robust(x[kept], y[kept], _even(quantities[kept]), measured.law)
    relative = np.abs(predicted - y) / y
    error = {str(q): round(float(np.mean(relative[quantities == q])), 4) for q in np.unique(quantities)}
    members = [np.flatnonzero(groups == name) for name in names]
    drawn = []
    for _ in range(draws):
        chosen = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        other = robust(x[chosen], y[chosen], _even(quantities[chosen]), measured.law)
        drawn.append({k: v for k, v in measured.law.constants(other).items() if k != "tokens"})
    return Fit(measured.law.constants(theta), error, tuple(drawn), len(y))


def robust(x: NDArray[np.float64], y: Vector, weight: Vector, law: Law | None = None) -> Vector:
    """Non-negative theta that makes ``x @ theta`` near ``y`` in relative terms, outliers counting less (IRLS); with a
    ``law`` its T bends no more than the measurements ask for: the noisier they are, the less it does (a bend of the
    size of T itself weighs as much as one residual of one standard deviation).
    """
    a = x / y[:, None]
    scale = np.max(np.abs(a), axis=0)
    used = scale > 0
    theta = np.zeros(x.shape[1])
    if not used.any():
        return theta
    a = a[:, used] / scale[used]

    def solved(w: Vector, pull: NDArray[np.float64]) -> Vector:
        root = np.sqrt(w)
        return nnls(np.vstack([a * root[:, None], pull]), np.concatenate([root, np.zeros(len(pull))]))

    pull = np.zeros((0, int(used.sum())))
    w, found = weight.copy(), solved(weight, pull)
    for _ in range(_ROUNDS):
        residual = np.abs(a @ found - 1.0)
        noise = 1.4826 * float(np.median(residual))
        w = weight * np.minimum(1.0, _HUBER * max(noise, _NOISE) / np.maximum(residual, 1e-12))
        if law is not None:
            theta[used] = found / scale[used]
            pull = max(noise, _LEAST_PULL) * law.bends(theta)[:, used] / scale[used]
        again = solved(w, pull)
        if np.allclose(again, found, rtol=1e-5, atol=1e-12):
            break
        found = again
    theta[used] = found / scale[used]
    return theta


def nnls(a: NDArray[np.float64], b: Vector) -> Vector:
    """The x of zero or more that minimises \\|a x - b\\| (Lawson and Hanson, Solving Least Squares Problems, 1974)."""
    n = a.shape[1]
    x, free = np.zeros(n), np.zeros(n, bool)
    tolerance = 1e-10 * max(1.0, float(np.max(np.abs(a.T @ b), initial=0.0)))
    for _ in range(3 * n + 10):
        gradient = a.T @ (b - a @ x)
        gradient[free] = -np.inf
        if free.all() or gradient.max() <= tolerance:
            break
        free[int(np.argmax(gradient))] = True
        while True:
            trial = np.zeros(n)
            trial[free] = np.linalg.lstsq(a[:, free], b, rcond=None)[0]
            low = free & (trial <= 0)
            if not low.any():
                x = trial
                break
            step = float(np.min(x[low] / np.maximum(x[low] - trial[low], 1e-300)))
            x = x + step * (trial - x)
            free &= x > 1e-14
            x[~free] = 0.0
            if not free.any():
                break
    return x


def _short(value: float) -> float:
    """Five digits: no measurement has more."""
    return float(f"{value:.5g}")


def _even(quantities: NDArray[Any]) -> Vector:
    """Weights with which every quantity counts alike; mean 1."""
    weight = np.empty(len(quantities))
    names, counts = np.unique(quantities, return_counts=True)
    for name, count in zip(names, counts, strict=True):
        weight[quantities == name] = len(quantities) / (len(names) * count)
    return weight
