"""The best possible for a scenario and a trace: the bounds of `apportion.simulate.bounds` put to work.

It is what no policy could have done better with the same endpoints and prices, knowing the whole trace beforehand:
every request answered in full, by whichever of its model's endpoints, in any batches and any order. Budgets, rate
limits, retries, the way through the proxy and everything else that could only cost more is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from apportion.measure.price import MachinePrice, TokenPrice
from apportion.simulate import bounds
from apportion.simulate.bounds import Frontier
from apportion.simulate.metrics import SHARES, Objective
from apportion.simulate.scenario import Endpoint, Model, Route, Scenario
from apportion.simulate.trace import Trace

Array = NDArray[np.float64]
_USD: Final = 1e-12
_MOST_BLOCKS: Final = 2_000_000
"""Blocks of a trace up to which Belady's rule is followed."""


@dataclass(frozen=True, slots=True)
class Best:
    """Bounds by metric, ``how`` each was found, and what every quality costs at least (``frontier``, in total over the
    trace; None where qualities or prices are not known).
    """

    values: Mapping[str, float]
    how: Mapping[str, str]
    frontier: Frontier | None
    notes: list[str] = field(default_factory=list)
    alone: Mapping[str, Array] = field(default_factory=dict)
    """What requests take alone, by quantity (``ttft_s``, ...), at 1,000 ranks; nothing where times are drawn."""


@dataclass(slots=True)
class _Needs:
    """The least that each request needs: shape (n,)."""

    first_s: Array
    own_s: Array
    each_s: Array
    prefill_s: Array
    work_s: Array

    def least(self, rows: NDArray[np.intp], other: _Needs) -> None:
        """Take what is less of ``other``, which is about ``rows`` only."""
        for name in _Needs.__slots__:
            mine = getattr(self, name)
            mine[rows] = np.minimum(mine[rows], getattr(other, name))


def best_possible(
    scenario: Scenario,
    trace: Trace,
    objective: Objective | None = None,
    reached: Mapping[str, float] | None = None,
) -> Best:
    """The bounds. ``reached`` is what a policy has reached (a digest's total): the cost is bounded at its quality, the
    quality at its cost; without it, the cost is that of the cheapest answers.
    """
    n = len(trace)
    if not n:
        return Best({}, {}, None)
    places = {endpoint.name: endpoint for endpoint in scenario.endpoints}
    cached, free = _cacheable(scenario, trace)
    needs = _Needs(*(np.full(n, np.inf) for _ in range(5)))
    by_model = _rows_of(scenario, trace)
    for model, rows in by_model:
        for route in model.routes:
            endpoint = places[route.endpoint]
            needs.least(
                rows, _needs(endpoint, model, trace, rows, cached[rows], _fastest(scenario, endpoint))
            )
    for name in _Needs.__slots__:
        getattr(needs, name)[free] = 0.0
    servers = sum(_instances(scenario, endpoint) for endpoint in scenario.endpoints)
    arrival = trace.arrival_s - trace.arrival_s[0]
    drawn = any(_drawn(endpoint) for endpoint in scenario.endpoints)
    values: dict[str, float] = {}
    how: dict[str, str] = {}
    for name, own, work in (("ttft", needs.first_s, needs.prefill_s), ("e2e", needs.own_s, needs.work_s)):
        values[f"{name}_mean_s"] = bounds.least_mean_s(arrival, work, servers, own)
        how[f"{name}_mean_s"] = "SRPT on the fluid of all engines, each request at least as long as alone"
        if not drawn:
            for part, share in SHARES.items():
                values[f"{name}_{part}_s"] = float(np.quantile(own, share))
                how[f"{name}_{part}_s"] = "each request alone on the fastest of its engines"
    several = trace.output_tokens > 1
    if several.any():
        values["tpot_mean_s"] = float(needs.each_s[several].mean())
        how["tpot_mean_s"] = "each request alone on the fastest of its engines"
        if not drawn:
            for part, share in SHARES.items():
                values[f"tpot_{part}_s"] = float(np.quantile(needs.each_s[several], share))
                how[f"tpot_{part}_s"] = how["tpot_mean_s"]
    if objective is not None and not drawn:
        each = np.where(several, needs.each_s, np.nan)
        values["good_share"] = float(objective.met(needs.first_s, each, needs.own_s).mean())
        how["good_share"] = "those who would be in time alone on the fastest of their engines"
    values["answered_share"], how["answered_share"] = 1.0, "all"
    notes: list[str] = []
    frontier = _costs(
        scenario, trace, by_model, places, cached, free, needs.work_s, reached or {}, values, how, notes
    )
    _caches(scenario, trace, values, how)
    alone = (
        {}
        if drawn
        else {
            name: np.quantile(x, np.linspace(0.0, 1.0, 1000))
            for name, x in (
                ("ttft_s", needs.first_s),
                ("tpot_s", needs.each_s[several]),
                ("e2e_s", needs.own_s),
            )
            if len(x)
        }
    )
    return Best(values, how, frontier, notes, alone)


def _rows_of(scenario: Scenario, trace: Trace) -> list[tuple[Model, NDArray[np.intp]]]:
    """Which requests each model answers; what names no model of the scenario goes to the first."""
    codes = np.zeros(len(trace), np.int64)
    if trace.model is not None:
        known = {model.name: place for place, model in enumerate(scenario.models)}
        to = np.array([*(known.get(name, 0) for name in trace.model.names), 0])
        codes = to[trace.model.codes]
    found = [(model, np.flatnonzero(codes == place)) for place, model in enumerate(scenario.models)]
    return [(model, rows) for model, rows in found if len(rows)]


def _needs(
    endpoint: Endpoint,
    model: Model,
    trace: Trace,
    rows: NDArray[np.intp],
    cached: NDArray[np.int64],
    factor: float,
) -> _Needs:
    """What the requests of ``rows`` need of one endpoint."""
    profile = endpoint.profile
    assert profile is not None  # noqa: S101 - a scenario has checked it
    batching = endpoint.batching
    if batching is not None:
        profile = replace(
            profile,
            batch_tokens=max(profile.batch_tokens, batching.batch_tokens or 0),
            slots=max(profile.slots, batching.slots or 0),
        )
    prompt, output = trace.prompt_tokens[rows].astype(np.int64), _outputs(endpoint, model, trace, rows)
    found = bounds.service(profile, prompt, output, cached if endpoint.prefix_tokens else 0)
    around = profile.before_s + profile.before_s_per_token * prompt + profile.after_s
    first = (found.first_s - around) * factor + around + endpoint.delay_s
    more = (found.own_s - found.first_s) * factor
    each = more / np.maximum(output - 1, 1)
    return _Needs(first, first + more, each, found.prefill_s * factor, found.work_s * factor)


def _outputs(endpoint: Endpoint, model: Model, trace: Trace, rows: NDArray[np.intp]) -> NDArray[np.int64]:
    """The tokens of each answer, as far as anybody lets it go on."""
    output = trace.output_tokens[rows].astype(np.int64)
    caps = getattr(trace, "cap_tokens", None)
    if caps is not None:
        output = np.where(caps[rows] > 0, np.minimum(output, caps[rows]), output)
    for cap in (model.max_output_tokens, endpoint.max_output_tokens):
        if cap is not None:
            output = np.minimum(output, cap)
    return np.asarray(np.maximum(output, 1))


def _fastest(scenario: Scenario, endpoint: Endpoint) -> float:
    """The least factor that is ever on the durations of an endpoint."""
    slow = [
        event.value for event in scenario.events if event.endpoint == endpoint.name and event.kind == "slow"
    ]
    return min([1.0, *slow])


def _drawn(endpoint: Endpoint) -> bool:
    """Whether its times are drawn at random: then the mean is bounded, and nothing else."""
    profile = endpoint.profile
    return profile is not None and profile.kind == "hosted" and bool(profile.ttft_sigma or profile.rate_sigma)


def _instances(scenario: Scenario, endpoint: Endpoint) -> int:
    """The most machines that it ever has."""
    added = sum(event.endpoint == endpoint.name and event.kind == "add" for event in scenario.events)
    return (endpoint.instances if endpoint.scaling is None else endpoint.scaling.most) + added


def _cacheable(scenario: Scenario, trace: Trace) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Of each prompt the tokens that another one has, too; and whether an answer could be in the cache of answers."""
    n = len(trace)
    cached, free = np.zeros(n, np.int64), np.zeros(n, np.bool_)
    blocks = trace.blocks
    prefixes = any(endpoint.prefix_tokens for endpoint in scenario.endpoints)
    if blocks is None or not len(blocks.ids) or not (prefixes or scenario.cache is not None):
        return cached, free
    _, inverse, counts = np.unique(blocks.ids, return_inverse=True, return_counts=True)
    shared = counts[inverse] > 1
    summed = np.concatenate([[0], np.cumsum(shared)])
    sizes = np.diff(blocks.offsets)
    if prefixes:
        tokens = (summed[blocks.offsets[1:]] - summed[blocks.offsets[:-1]]) * blocks.block_tokens
        cached = np.maximum(np.minimum(tokens, trace.prompt_tokens.astype(np.int64) - 1), 0)
    if scenario.cache is not None:
        some = sizes > 0
        free[some] = shared[blocks.offsets[:-1][some]]
    return cached, free


def _caches(scenario: Scenario, trace: Trace, values: dict[str, float], how: dict[str, str]) -> None:
    """Bounds of what is found in caches: of beginnings of prompts, and of answers."""
    blocks = trace.blocks
    if blocks is None or not len(blocks.ids):
        return
    room = sum(
        _instances(scenario, endpoint) * (endpoint.prefix_tokens // blocks.block_tokens)
        for endpoint in scenario.endpoints
    )
    if room:
        distinct = len(np.unique(blocks.ids))
        misses, reason = distinct, "every block of tokens is computed once"
        if room < distinct and len(blocks.ids) <= _MOST_BLOCKS:
            misses, _ = bounds.belady(blocks.ids.tolist(), room, bypass=True)
            reason = "Belady with the room of all machines together, requests in order of arrival"
        found = (len(blocks.ids) - misses) * blocks.block_tokens
        values["cached_share"] = min(found / max(int(trace.prompt_tokens.sum()), 1), 1.0)
        how["cached_share"] = reason
    if scenario.cache is not None and not scenario.cache.similar:
        prompts = trace.prompt_tokens.tolist()
        asked = {(blocks.of(row).tobytes(), prompts[row]) for row in range(len(trace)) if len(blocks.of(row))}
        empty = int((np.diff(blocks.offsets) == 0).sum())
        values["hit_share"] = 1.0 - (len(asked) + empty) / len(trace)
        how["hit_share"] = "every question is asked once, whoever asks it"


def _costs(
    scenario: Scenario,
    trace: Trace,
    by_model: list[tuple[Model, NDArray[np.intp]]],
    places: Mapping[str, Endpoint],
    cached: NDArray[np.int64],
    free: NDArray[np.bool_],
    work_s: Array,
    reached: Mapping[str, float],
    values: dict[str, float],
    how: dict[str, str],
    notes: list[str],
) -> Frontier | None:
    """Bounds of cost and quality, and the frontier of both."""
    actions = list(dict.fromkeys(route.action for model, _ in by_model for route in model.routes))
    usd = np.full((len(trace), len(actions)), np.nan)
    quality = np.full((len(trace), len(actions)), np.nan)
    for model, rows in by_model:
        for route in model.routes:
            place, endpoint = actions.index(route.action), places[route.endpoint]
            found = _usd(
                route,
                endpoint,
                model,
                trace,
                rows,
                cached[rows],
                work_s[rows] / _instances(scenario, endpoint),
            )
            if found is not None:
                usd[rows, place] = np.where(free[rows], 0.0, found)
            quality[rows, place] = _quality(route, model, trace, rows)
    n = len(trace)
    with np.errstate(invalid="ignore"):
        cheapest = np.where(
            np.isnan(usd).all(axis=1), np.nan, np.nanmin(np.where(np.isnan(usd), np.inf, usd), axis=1)
        )
    if np.isnan(cheapest).any():
        notes.append("Some prices are not known: there is no bound of the cost.")
        return None
    least, reason = float(cheapest.sum()), "everybody's cheapest answer"
    frontier = bounds.frontier(usd, quality)
    wanted = reached.get("quality", np.nan)
    if frontier.requests < n:
        notes.append("Some qualities are not known: the cost is bounded without regard to them.")
        frontier_known = None
    else:
        frontier_known = frontier
        at_quality = frontier.usd_for(wanted * n) if np.isfinite(wanted) else np.nan
        if np.isfinite(at_quality):
            least, reason = at_quality, "linear program: the cheapest answers of the baseline's quality"
        spent = reached.get("usd", np.nan)
        if np.isfinite(spent):
            most = frontier.quality_for(max(spent, float(frontier.usd[0])))
            values["quality"], how["quality"] = (
                most / n,
                "linear program: the best answers for the baseline's cost",
            )
    values["usd"], how["usd"] = least, reason
    values["usd_per_1k"], how["usd_per_1k"] = 1000.0 * least / n, reason
    return frontier_known


def _usd(
    route: Route,
    endpoint: Endpoint,
    model: Model,
    trace: Trace,
    rows: NDArray[np.intp],
    cached: NDArray[np.int64],
    work_s: Array,
) -> Array | None:
    """The least that each request costs at one route; a machine's seconds are shared by those that are on it."""
    price = route.price
    if price is None:
        return None
    if isinstance(price, MachinePrice):
        return work_s * price.usd_per_s
    prompt, output = trace.prompt_tokens[rows].astype(np.int64), _outputs(endpoint, model, trace, rows)
    found = _tokens_usd(price, prompt, output, cached)
    for above, dearer in reversed(price.tiers):
        found = np.where(prompt > above, _tokens_usd(dearer, prompt, output, cached), found)
    return found


def _tokens_usd(
    price: TokenPrice, prompt: NDArray[np.int64], output: NDArray[np.int64], cached: NDArray[np.int64]
) -> Array:
    whole = price.input
    units = price.request + prompt * float(whole) + output * float(price.output)
    return np.asarray(units - cached * float(max(whole - price.cached_input, 0))) * _USD


def _quality(route: Route, model: Model, trace: Trace, rows: NDArray[np.intp]) -> Array | float:
    """How good the answers of one route are: as recorded, else as configured where no predictor says otherwise."""
    if trace.quality is not None and route.action in trace.actions:
        return np.asarray(trace.quality[rows, trace.actions.index(route.action)])
    if route.quality is None or model.quality is not None:
        return np.nan
    return route.quality
