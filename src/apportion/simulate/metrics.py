"""What a run was worth: latency, goodput, money, energy, quality and use, in total and by tenant, model and action.

A run is digested chunk by chunk into sums and sketches (`Digester`), so that it need not be kept; of a run that is
kept the quantiles are exact. The same sums are kept by block of the trace, which is what comparisons resample
(`apportion.simulate.paired`), and by time, which is what is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from apportion.core.errors import ApportionError
from apportion.simulate import sketch
from apportion.simulate.result import CUT, FAILED, OK, REFUSED, TIMEOUT, Result

Array = NDArray[np.float64]
Columns = Mapping[str, NDArray[Any]]

BLOCKS: Final = 40
"""Parts of equal length (in requests) that a trace is cut into."""
BINS: Final = 120
"""Points in time of a drawn series, at most: there are some 50 requests to each."""
GROUPS: Final = 64
"""Most tenants (models, actions) told apart; the others are one group, "others"."""
QUANTITIES: Final = ("ttft_s", "tpot_s", "e2e_s", "queued_s")
"""What has quantiles."""
SHARES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
BY: Final = ("tenant", "model", "action", "priority")
_SUMS: Final = (
    "requests", "answered", "good", "refused", "failed", "timeout", "cut", "retries", "preempted",
    "prompt_tokens", "cached_tokens", "output_tokens", "server_s", "usd", "usd_known", "usd_unknown",
    "joules", "joules_known", "joules_unknown", "gco2", "gco2_known", "gco2_unknown", "quality", "quality_known",
    *(f"{name}{part}" for name in QUANTITIES for part in ("", "_n")),
)  # fmt: skip
_PLACE: Final = {name: index for index, name in enumerate(_SUMS)}
_UNITS: Final = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


class ObjectiveError(ApportionError):
    """An objective for the latency is not understood."""

    code = "objective"


@dataclass(frozen=True, slots=True)
class Objective:
    """What makes an answer a good one: it came within these times (None: whatever it took)."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None

    @classmethod
    def parse(cls, text: str) -> Objective:
        """From ``ttft=1s,tpot=50ms,e2e=30s``; raises `ObjectiveError`."""
        found: dict[str, float] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, is_, value = (word.strip() for word in part.partition("="))
            if name not in ("ttft", "tpot", "e2e") or not is_:
                raise ObjectiveError(
                    f"{part!r} is no objective.",
                    field="--objective",
                    fix="Write for example ttft=1s,tpot=50ms,e2e=30s.",
                )
            found[f"{name}_s"] = seconds(value, "--objective")
        return cls(**found)

    def met(self, ttft_s: Array, tpot_s: Array, e2e_s: Array) -> NDArray[np.bool_]:
        """Which requests were in time. One without a time per token (a single token) had none to miss."""
        good = np.isfinite(e2e_s)
        for limit, taken in ((self.ttft_s, ttft_s), (self.e2e_s, e2e_s)):
            if limit is not None:
                good &= taken <= limit
        if self.tpot_s is not None:
            good &= ~(tpot_s > self.tpot_s)
        return good

    def __str__(self) -> str:
        parts = (("TTFT", self.ttft_s), ("TPOT", self.tpot_s), ("end to end", self.e2e_s))
        return ", ".join(f"{name} ≤ {limit:g} s" for name, limit in parts if limit is not None) or "answered"


class Metric(NamedTuple):
    """How a number is shown: ``better`` is -1 where less is better, 1 where more is, 0 where neither."""

    title: str
    unit: str
    better: int


METRICS: Final[Mapping[str, Metric]] = {
    "requests": Metric("requests", "", 0),
    "answered_share": Metric("answered", "share", 1),
    "refused": Metric("refused", "", -1),
    "failed": Metric("failed", "", -1),
    "timeout": Metric("timed out", "", -1),
    "cut": Metric("cut off", "", -1),
    "retries": Metric("retries", "", -1),
    "preempted": Metric("preemptions", "", -1),
    **{
        f"{name}_{part}_s": Metric(f"{title} {part}", "s", -1)
        for name, title in (("ttft", "TTFT"), ("tpot", "TPOT"), ("e2e", "end to end"), ("queued", "queueing"))
        for part in ("mean", *SHARES)
    },
    "rate_per_s": Metric("answers a second", "1/s", 0),
    "output_tokens_per_s": Metric("output tokens a second", "1/s", 1),
    "goodput_per_s": Metric("goodput", "1/s", 1),
    "good_share": Metric("within the objective", "share", 1),
    "usd": Metric("cost", "$", -1),
    "usd_per_1k": Metric("cost per 1,000 requests", "$", -1),
    "usd_per_good": Metric("cost per good answer", "$", -1),
    "joules": Metric("energy", "J", -1),
    "joules_per_token": Metric("energy per output token", "J", -1),
    "gco2": Metric("carbon", "gCO2", -1),
    "quality": Metric("expected quality", "", 1),
    "hit_share": Metric("answers from the cache", "share", 1),
    "cached_share": Metric("prompt tokens from cache", "share", 1),
    "utilisation": Metric("utilisation", "share", 0),
    "instances": Metric("instances", "", 0),
    "rented_usd": Metric("price of the machines", "$", -1),
}
"""Every number of a digest's total, in the order in which they are shown."""


class Little(NamedTuple):
    """Little's law on one run: requests in the system, on average over time (``in_system``), and rate times mean time
    in the system. ``counted`` says whether the first was counted by the simulation as it ran; otherwise both come from
    the columns, and only tell whether these are in order.
    """

    in_system: float
    rate_per_s: float
    mean_s: float
    counted: bool

    @property
    def error(self) -> float:
        """Relative difference; 0 is exact."""
        expected = self.rate_per_s * self.mean_s
        return (
            abs(self.in_system - expected) / max(self.in_system, expected)
            if expected
            else abs(self.in_system)
        )


@dataclass(eq=False, slots=True)
class Tally:
    """Sums and sketches of groups of requests: ``sums`` (groups x sums), ``counts`` (groups x quantities x buckets)."""

    sums: Array
    counts: NDArray[np.int32]

    @classmethod
    def of(cls, groups: int) -> Tally:
        """Nothing yet."""
        return cls(
            np.zeros((groups, len(_SUMS))), np.zeros((groups, len(QUANTITIES), sketch.BUCKETS), np.int32)
        )

    def add(
        self, codes: NDArray[np.int64], sums: Mapping[str, Array], places: Mapping[str, NDArray[np.int64]]
    ) -> None:
        """Count requests of the groups ``codes``; ``places`` has the buckets (-1: not a number)."""
        n = len(self.sums)
        for name, values in sums.items():
            self.sums[:, _PLACE[name]] += np.bincount(codes, values, n)
        flat = self.counts.reshape(-1)
        for index, name in enumerate(QUANTITIES):
            known = places[name] >= 0
            at = (codes[known] * len(QUANTITIES) + index) * sketch.BUCKETS + places[name][known]
            np.add.at(flat, at, np.int32(1))

    def figures(
        self, span_s: float, weights: Array | None = None, *, wanted: frozenset[str] | None = None
    ) -> dict[str, Array]:
        """The metrics of each group (arrays of shape (groups,)), or with ``weights`` (m x groups) those of m mixtures
        of the groups (shape (m,)); ``wanted`` leaves others out.
        """
        return figures(self, span_s, np.eye(len(self.sums)) if weights is None else weights, wanted)


def figures(
    tally: Tally, span_s: float, weights: Array, wanted: frozenset[str] | None = None
) -> dict[str, Array]:
    """As `Tally.figures`."""
    s = dict(zip(_SUMS, (weights @ tally.sums).T, strict=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        found = {
            name: s[name]
            for name in ("requests", "refused", "failed", "timeout", "cut", "retries", "preempted")
        }
        found["answered_share"] = s["answered"] / s["requests"]
        for index, name in enumerate(QUANTITIES):
            short = name.removesuffix("_s")
            found[f"{short}_mean_s"] = s[name] / s[f"{name}_n"]
            asked = {
                part: share
                for part, share in SHARES.items()
                if wanted is None or f"{short}_{part}_s" in wanted
            }
            if asked:
                used = np.flatnonzero(tally.counts[:, index].any(axis=0))
                mixed = weights @ tally.counts[:, index, used].astype(np.float64)
                for part, share in asked.items():
                    found[f"{short}_{part}_s"] = sketch.quantile(mixed, share, used)
        found["rate_per_s"] = s["answered"] / span_s
        found["output_tokens_per_s"] = s["output_tokens"] / span_s
        found["goodput_per_s"] = s["good"] / span_s
        found["good_share"] = s["good"] / s["requests"]
        for name in ("usd", "joules", "gco2"):
            told = (s[f"{name}_known"] > 0.0) & (s[f"{name}_unknown"] == 0.0)
            found[name] = np.where(told, s[name], np.nan)
        found["usd_per_1k"] = 1000.0 * found["usd"] / s["requests"]
        found["usd_per_good"] = np.where(s["good"] > 0, found["usd"] / s["good"], np.nan)
        tokens = s["output_tokens"]
        found["joules_per_token"] = np.where(tokens > 0, found["joules"] / tokens, np.nan)
        found["quality"] = s["quality"] / s["quality_known"]
        found["cached_share"] = s["cached_tokens"] / s["prompt_tokens"]
    return found if wanted is None else {name: value for name, value in found.items() if name in wanted}


@dataclass(eq=False, slots=True)
class Digest:
    """A run in two megabytes, however long it was.

    ``total`` has the numbers of `METRICS` (nan where nothing is known); ``by`` the same by tenant, model, action and
    priority; ``instances`` by machine; ``series`` arrays over time (``t_s`` are their times, ``usd of NAME`` is what a
    tenant has paid by then); ``blocks`` what comparisons resample; ``facts`` what the run said of budgets, caches and
    events.
    """

    name: str
    objective: Objective
    span_s: float
    total: dict[str, float]
    by: dict[str, dict[str, dict[str, float]]]
    instances: list[dict[str, Any]]
    little: Little
    blocks: Tally
    series: dict[str, Array]
    exact: bool
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def budgets(self) -> Mapping[str, Mapping[str, Any]]:
        """What was spent of each budget, and by how much it was overrun."""
        found: Mapping[str, Mapping[str, Any]] = self.facts.get("budgets") or {}
        return found

    def violations(self) -> list[str]:
        """The budgets that were overrun."""
        return [name for name, budget in self.budgets.items() if (budget.get("overrun") or 0.0) > 0.0]

    def share_below(self, quantity: str) -> tuple[Array, Array]:
        """The distribution of one of `QUANTITIES`: values and the share of answers at or below each."""
        counts = self.blocks.counts[:, QUANTITIES.index(quantity)].sum(axis=0)
        used = np.flatnonzero(counts)
        return sketch.edges()[used], np.cumsum(counts[used]) / max(counts.sum(), 1)


class Digester:
    """Takes the rows of a run as they come. ``requests`` is how many the trace has, from ``start_s`` to ``end_s``.

    Memory: sums and sketches of `BLOCKS` blocks and of the groups that turn up; nothing grows with the rows.
    """

    def __init__(
        self, requests: int, start_s: float, end_s: float, objective: Objective | None = None
    ) -> None:
        self.objective = objective or Objective()
        self.requests = max(requests, 1)
        self.start_s = start_s
        self._n_bins = min(max(requests // 50, 12), BINS)
        self._width = max(end_s - start_s, 1e-9) / self._n_bins
        self._blocks = Tally.of(BLOCKS)
        self._bins = Tally.of(self._n_bins)
        self._by: dict[str, dict[int, int]] = {column: {} for column in BY}
        self._groups: dict[str, Tally] = {column: Tally.of(0) for column in BY}
        self._flow: dict[str, Array] = {
            name: np.zeros((self._n_bins + 1, 2)) for name in ("arrived", "begun", "ended")
        }
        self._spent: dict[str, Array] = {
            name: np.zeros(self._n_bins + 1) for name in ("usd", "joules", "output_tokens")
        }
        self._paid: dict[int, Array] = {}
        self._used: dict[int, Array] = {}
        self._time = 0.0
        self._in_system = 0.0
        self._rows = 0
        self._first, self._last = math.inf, -math.inf

    def add(self, columns: Columns) -> None:
        """Take a chunk of rows."""
        if not len(columns["request"]):
            return
        sums, times = _measured(columns, self.objective)
        places = {
            name: np.where(np.isnan(x), -1, sketch.bucket(np.nan_to_num(x))) for name, x in times.items()
        }
        block = np.clip(columns["request"].astype(np.int64) * BLOCKS // self.requests, 0, BLOCKS - 1)
        self._blocks.add(block, sums, places)
        self._bins.add(np.minimum(self._bin(columns["arrival_s"]), self._n_bins - 1), sums, places)
        for column in BY:
            self._add_by(column, columns[column].astype(np.int64), sums, places)
        self._add_flow(columns)
        self._add_used(columns)

    def _bin(self, at_s: Array) -> NDArray[np.int64]:
        return np.clip((at_s - self.start_s) / self._width, 0, self._n_bins).astype(np.int64)

    def _add_by(
        self,
        column: str,
        codes: NDArray[np.int64],
        sums: Mapping[str, Array],
        places: Mapping[str, NDArray[np.int64]],
    ) -> None:
        known = self._by[column]
        for code in np.unique(codes).tolist():
            known.setdefault(code, min(len(known), GROUPS))
        rows = min(max(known.values(), default=-1) + 1, GROUPS + 1)
        tally = self._groups[column]
        if rows > len(tally.sums):
            grown = Tally.of(rows)
            grown.sums[: len(tally.sums)], grown.counts[: len(tally.sums)] = tally.sums, tally.counts
            self._groups[column] = tally = grown
        seen, inverse = np.unique(codes, return_inverse=True)
        tally.add(np.array([known[code] for code in seen.tolist()], np.int64)[inverse], sums, places)

    def _add_flow(self, columns: Columns) -> None:
        """Counts and sums of the times of arrivals, beginnings and ends: from them comes what was there on average."""
        arrived, ended = columns["arrival_s"], columns["finish_s"]
        there = np.isfinite(ended)
        begun = np.where(np.isnan(columns["queued_s"]), ended, arrived + np.nan_to_num(columns["queued_s"]))
        for name, at_s in (("arrived", arrived), ("begun", np.minimum(begun, ended)), ("ended", ended)):
            times = np.where(there, at_s, 0.0)[there]
            bins = self._bin(times)
            self._flow[name][:, 0] += np.bincount(bins, minlength=self._n_bins + 1)
            self._flow[name][:, 1] += np.bincount(bins, times, self._n_bins + 1)
        bins = self._bin(np.where(there, ended, arrived))
        for name in self._spent:
            self._spent[name] += np.bincount(
                bins, np.nan_to_num(columns[name].astype(np.float64)), self._n_bins + 1
            )
        usd = np.nan_to_num(columns["usd"])
        for code in np.unique(columns["tenant"]).tolist():
            if code in self._paid or len(self._paid) < GROUPS:
                of = columns["tenant"] == code
                paid = np.bincount(bins[of], usd[of], self._n_bins + 1)
                self._paid[code] = self._paid.get(code, np.zeros(self._n_bins + 1)) + paid
        self._time += float((ended - arrived)[there].sum())
        self._rows += int(there.sum())
        self._first = min(self._first, float(arrived.min()))
        self._last = max(self._last, float(ended[there].max(initial=-math.inf)))

    def _add_used(self, columns: Columns) -> None:
        served = np.isin(columns["status"], (OK, CUT)) & (columns["instance"] >= 0)
        instance = columns["instance"][served].astype(np.int64)
        if not len(instance):
            return
        n = int(instance.max()) + 1
        found = np.stack(
            [
                np.bincount(instance, np.nan_to_num(values[served].astype(np.float64)), n)
                for values in (np.ones(len(served)), columns["output_tokens"], columns["server_s"])
            ],
            axis=1,
        )
        for index in np.flatnonzero(found[:, 0]).tolist():
            self._used[index] = self._used.get(index, np.zeros(3)) + found[index]

    def finish(
        self,
        *,
        name: str = "",
        names: Mapping[str, tuple[str, ...]] | None = None,
        facts: Mapping[str, Any] | None = None,
        columns: Columns | None = None,
    ) -> Digest:
        """The digest; ``columns`` are all the rows, where they were kept: then the quantiles are exact."""
        names, facts = names or {}, facts or {}
        last = self._last if math.isfinite(self._last) else self.start_s
        first = self._first if math.isfinite(self._first) else self.start_s
        span_s = max(last - first, 1e-9)
        idle_j = float(np.sum(facts.get("idle_j") or 0.0))
        # Of no request: each block has its part, so that what is told is tested. nan: nobody knows, nor of the whole.
        self._blocks.sums[:, _PLACE["joules"]] += idle_j / BLOCKS
        total = {
            key: float(value[0]) for key, value in self._blocks.figures(span_s, np.ones((1, BLOCKS))).items()
        }
        by = {column: self._finish_by(column, names.get(column), span_s) for column in BY}
        if columns is not None:
            total |= _exact(columns, slice(None))
            for column in BY:
                for code, label in self._labels(column, names.get(column)).items():
                    if label != _OTHERS:
                        by[column][label] |= _exact(columns, columns[column] == code)
        instances = self._instances(names, facts, span_s)
        known = [
            (each["utilisation"], span_s if each["there_s"] is None else each["there_s"])
            for each in instances
            if each["utilisation"] is not None
        ]
        weights = sum(seconds for _, seconds in known)
        total["utilisation"] = (
            sum(share * seconds for share, seconds in known) / weights if weights else math.nan
        )
        there_s = [each["there_s"] for each in instances if each["there_s"] is not None]
        total["instances"] = sum(there_s) / span_s if there_s else math.nan
        total["rented_usd"] = float(facts.get("rented_usd", math.nan))
        hits, misses = ((facts.get("cache") or {}).get(name, 0) for name in ("hits", "misses"))
        total["hit_share"] = hits / (hits + misses) if hits + misses else math.nan
        counted = facts.get("in_system_s")
        in_system = self._time if counted is None else float(counted)
        mean_s = self._time / self._rows if self._rows else 0.0
        return Digest(
            name,
            self.objective,
            span_s,
            {key: total[key] for key in METRICS},
            by,
            instances,
            Little(in_system / span_s, self._rows / span_s, mean_s, counted is not None),
            self._blocks,
            self._series() | self._paid_by(names.get("tenant")),
            columns is not None,
            {key: value for key, value in facts.items() if key not in ("busy_s", "there_s")},
        )

    def _labels(self, column: str, names: tuple[str, ...] | None) -> dict[int, str]:
        """Code to label of every group."""
        found = {}
        for code, place in self._by[column].items():
            if place == GROUPS:
                found[code] = _OTHERS
            elif names is not None and 0 <= code < len(names):
                found[code] = names[code]
            else:
                found[code] = "none" if code < 0 and column != "priority" else str(code)
        return found

    def _finish_by(
        self, column: str, names: tuple[str, ...] | None, span_s: float
    ) -> dict[str, dict[str, float]]:
        labels = self._labels(column, names)
        found = self._groups[column].figures(span_s)
        shown: dict[str, dict[str, float]] = {}
        for code, place in self._by[column].items():
            shown.setdefault(labels[code], {key: float(value[place]) for key, value in found.items()})
        return shown

    def _instances(
        self, names: Mapping[str, tuple[str, ...]], facts: Mapping[str, Any], span_s: float
    ) -> list[dict[str, Any]]:
        labels = names.get("instance", ())
        busy = facts.get("busy_s")
        if not isinstance(busy, Mapping):
            labels = labels or tuple(str(i) for i in range(len(busy or ())))
            busy = dict(zip(labels, busy or (), strict=False))
        there = dict(zip(labels, facts.get("there_s") or (), strict=False))
        known = [*labels] or [str(index) for index in range(max(self._used, default=-1) + 1)]
        found = []
        for index, label in enumerate(known):
            requests, tokens, server_s = self._used.get(index, np.zeros(3)).tolist()
            seconds, there_s = busy.get(label), there.get(label)
            known_s = span_s if there_s is None else there_s
            found.append(
                {
                    "instance": label,
                    "requests": int(requests),
                    "output_tokens": int(tokens),
                    "server_s": server_s,
                    "busy_s": seconds,
                    "there_s": there_s,
                    "utilisation": None if seconds is None or not known_s else float(seconds) / known_s,
                }
            )
        return found

    def _series(self) -> dict[str, Array]:
        """What is drawn over time: by the time of arrival the latencies, at each time the load and what was spent."""
        found: dict[str, Array] = {"t_s": self.start_s + self._width * np.arange(0.5, self._n_bins)}
        wanted = frozenset({"ttft_p50_s", "ttft_p90_s", "e2e_p50_s", "e2e_p90_s", "requests"})
        found |= self._bins.figures(self._width, wanted=wanted)
        found["arrivals_per_s"] = found.pop("requests") / self._width
        area = {name: self._area(flow) for name, flow in self._flow.items()}
        found["in_system"] = (area["arrived"] - area["ended"]) / self._width
        found["waiting"] = (area["arrived"] - area["begun"]) / self._width
        for name, spent in self._spent.items():
            found[name] = np.cumsum(spent[: self._n_bins])
        return found

    def _paid_by(self, names: tuple[str, ...] | None) -> dict[str, Array]:
        """What each tenant has paid by then."""
        labels = self._labels("tenant", names)
        return {
            f"usd of {labels[code]}": np.cumsum(paid[: self._n_bins]) for code, paid in self._paid.items()
        }

    def _area(self, flow: Array) -> Array:
        """In each bin the integral of the number of events so far."""
        edges = self.start_s + self._width * np.arange(self._n_bins + 1)
        before = np.concatenate([np.zeros((1, 2)), np.cumsum(flow[: self._n_bins], axis=0)])
        return np.diff(edges * before[:, 0] - before[:, 1])


_OTHERS: Final = "others"


def digest(
    result: Result,
    *,
    objective: Objective | None = None,
    requests: int | None = None,
    until_s: float | None = None,
) -> Digest:
    """The digest of a run that was kept. ``requests`` is how long its trace is (as many as there are rows)."""
    arrivals = result["arrival_s"]
    start = float(arrivals.min()) if len(result) else 0.0
    ends = (
        [float(arrivals.max()), float(np.nanmax(np.append(result["finish_s"], start)))]
        if len(result)
        else [0.0]
    )
    highest = int(result["request"].max()) + 1 if len(result) else 0
    made = Digester(requests or highest, start, until_s or max(ends), objective)
    made.add(result.columns)
    return made.finish(name=result.name, names=result.names, facts=result.facts, columns=result.columns)


def seconds(text: str, field: str) -> float:
    """A duration such as ``50ms``, ``1s``, ``2m``, ``1h`` or plain seconds; raises `ObjectiveError`."""
    unit = text.lstrip("0123456789.eE+-").strip()
    number = text[: len(text) - len(unit)] if unit else text
    try:
        found = float(number) * _UNITS[unit or "s"]
    except (KeyError, ValueError):
        found = math.nan
    if not 0.0 <= found < math.inf:
        raise ObjectiveError(
            f"{text!r} is no duration.", field=field, fix="Write for example 50ms, 1.5s, 2m or 1h."
        )
    return found


def _times(columns: Columns) -> tuple[NDArray[np.bool_], dict[str, Array]]:
    """Which rows were answered, and the times that have quantiles (nan where there was no answer)."""
    status, tokens = columns["status"], columns["output_tokens"].astype(np.float64)
    answered = (status == OK) | (status == CUT)
    first, finish, arrival = columns["first_token_s"], columns["finish_s"], columns["arrival_s"]
    with np.errstate(divide="ignore", invalid="ignore"):
        tpot = np.where(tokens > 1, (finish - first) / (tokens - 1.0), np.nan)
    times = {
        "ttft_s": first - arrival,
        "tpot_s": tpot,
        "e2e_s": finish - arrival,
        "queued_s": columns["queued_s"],
    }
    return answered, {name: np.where(answered, values, np.nan) for name, values in times.items()}


def _measured(columns: Columns, objective: Objective) -> tuple[dict[str, Array], dict[str, Array]]:
    """Of each row what is added up, and its times."""
    status = columns["status"]
    answered, times = _times(columns)
    good = (status == OK) & objective.met(times["ttft_s"], times["tpot_s"], times["e2e_s"])
    sums: dict[str, Array] = {
        "requests": np.ones(len(status)),
        "answered": answered.astype(np.float64),
        "good": good.astype(np.float64),
        "retries": np.maximum(columns["tries"].astype(np.float64) - 1.0, 0.0),
        "output_tokens": np.where(answered, columns["output_tokens"], 0.0),
        "server_s": np.nan_to_num(columns["server_s"]),
    }
    for name, code in (("refused", REFUSED), ("failed", FAILED), ("timeout", TIMEOUT), ("cut", CUT)):
        sums[name] = (status == code).astype(np.float64)
    for name in ("preempted", "prompt_tokens", "cached_tokens"):
        sums[name] = columns[name].astype(np.float64)
    for name in ("usd", "joules", "gco2", "quality"):
        known = np.isfinite(columns[name])
        sums[f"{name}_known"] = known.astype(np.float64)
        if name != "quality":
            sums[f"{name}_unknown"] = (answered & ~known).astype(np.float64)
        sums[name] = np.nan_to_num(columns[name])
    for name, values in times.items():
        sums[f"{name}_n"] = np.isfinite(values).astype(np.float64)
        sums[name] = np.nan_to_num(values)
    return sums, times


def _exact(columns: Columns, rows: Any) -> dict[str, float]:
    """The quantiles of some rows as they are, not as sketched: numpy's, between two neighbours."""
    chosen = {
        name: columns[name][rows] for name in ("status", "arrival_s", "first_token_s", "finish_s", "queued_s")
    }
    chosen["output_tokens"] = columns["output_tokens"][rows]
    _, times = _times(chosen)
    found: dict[str, float] = {}
    for name, values in times.items():
        known = values[~np.isnan(values)]
        cut = np.quantile(known, list(SHARES.values())) if len(known) else np.full(len(SHARES), np.nan)
        found |= {
            f"{name.removesuffix('_s')}_{part}_s": float(x) for part, x in zip(SHARES, cut, strict=True)
        }
    return found
