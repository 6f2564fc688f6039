"""The fast path: a trace through a fleet of engines behind one router, compiled from arrival to answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from apportion.core import Cost, Option, Policy, State
from apportion.core.errors import ApportionError
from apportion.simulate.engine import Batching
from apportion.simulate.engine import _kernel as k
from apportion.simulate.engine._store import Store
from apportion.simulate.profile import Profile
from apportion.simulate.result import FAILED, OK, Result, empty
from apportion.simulate.trace import Labels, Trace

Columns = dict[str, NDArray[Any]]
ROUTERS: Final[Mapping[str, int]] = {
    "round_robin": k.ROUND_ROBIN,
    "random": k.RANDOM,
    "least_requests": k.LEAST_REQUESTS,
    "least_kv": k.LEAST_KV,
    "least_work": k.LEAST_WORK,
    "power_of_two": k.POWER_OF_TWO,
    "table": k.TABLE,
}
"""In turn; at random; the fewest requests (join the shortest queue); the least share of memory taken; the least
seconds of work by the true lengths; the one with fewer requests of two drawn; as the table ``assign`` says. Ties go to
the first from a drawn one on."""


class FleetError(ApportionError):
    """A fleet was asked to run something that it cannot."""

    code = "fleet"


class Loads:
    """What a router may see of n instances, now; every array is of shape n, in the order of the profiles."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.slots = store.state.i[:, k.SLOTS].copy()
        self.kv_capacity = store.state.memory[1:, 1] * store.state.i[:, k.BLOCK]
        self.now = 0.0

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def running(self) -> NDArray[np.int64]:
        """Requests being worked on."""
        i = self._store.state.i
        return np.asarray(i[:, k.DECODING] + i[:, k.PROMPTS])

    @property
    def waiting(self) -> NDArray[np.int64]:
        """Requests not being worked on."""
        i = self._store.state.i
        return np.asarray(i[:, k.WAITING] + i[:, k.AWAITED])

    @property
    def requests(self) -> NDArray[np.int64]:
        """Running and waiting."""
        i = self._store.state.i
        return np.asarray(i[:, k.DECODING] + i[:, k.PROMPTS] + i[:, k.WAITING] + i[:, k.AWAITED])

    @property
    def queued_tokens(self) -> NDArray[np.int64]:
        """Prompt tokens not computed yet."""
        return np.asarray(self._store.state.i[:, k.QUEUED])

    @property
    def kv_share(self) -> NDArray[np.float64]:
        """Share of the memory that is taken."""
        s = self._store.state
        return np.array([k.memory_share(s, n, self.now) for n in range(len(self))])


Router = Callable[[float, Loads], int]
"""A routing policy as a plain function: of the time and the loads, the index of an instance."""


def by_policy(policy: Policy, names: Sequence[str]) -> Router:
    """A policy of the catalogue as a router: an option for each instance, its load is requests over places."""
    index = {name: n for n, name in enumerate(names)}
    nothing = Cost()

    def router(now_s: float, loads: Loads) -> int:
        shares = (loads.requests / loads.slots).tolist()
        options = [Option(name, 0.0, nothing, load=share) for name, share in zip(names, shares, strict=True)]
        action = policy.decide(State(now_s, options)).action
        return index[action] if action is not None else 0

    return router


def run(
    trace: Trace | Iterable[Trace],
    profiles: Sequence[Profile],
    *,
    batching: Batching | Sequence[Batching] | None = None,
    router: str | Router = "round_robin",
    assign: NDArray[np.int64] | None = None,
    cached_tokens: NDArray[np.int64] | None = None,
    seed: int = 0,
    sink: Callable[[Columns], object] | None = None,
    rows: int = 65536,
) -> Result:
    """Let ``trace`` arrive at an instance of each of ``profiles``.

    ``trace`` may come in pieces, in order of arrival (state is carried over): with a ``sink``, which is given the rows
    of `Result.columns` some ``rows`` at a time, memory is linear in the requests in flight, and the result that comes
    back has no rows, only ``facts``. ``assign`` (router "table") and ``cached_tokens`` are by request, over all pieces.
    Requests that do not fit into the memory of their instance end as failed at once.

    Raises `FleetError` for an unknown router, a piece out of order, or a choice that is not an instance.
    """
    batchings = _batchings(batching, len(profiles))
    store = Store(profiles, batchings, rows=1024)
    code = _code(router, assign)
    n = len(profiles)
    leaves = 1 << max(0, n - 1).bit_length()
    tree = np.full(2 * leaves, -1, np.int64)
    tree[leaves : leaves + n] = np.arange(n)
    for leaf in range(n):
        k.settle(tree, store.state.due, leaf)
    most = np.array([b.most_tokens(p) for b, p in zip(batchings, profiles, strict=True)], np.int64)
    places = store.state.lane.shape[2]
    buffer = (np.zeros((rows + places, k.OUT_INTS), np.int64), np.zeros((rows + places, k.OUT_FLOATS)))
    at = np.zeros(k.CELLS, np.int64)
    usd_s = np.array([np.nan if p.usd_per_hour is None else p.usd_per_hour / 3600.0 for p in profiles])
    kept: list[Columns] = []
    give = sink or kept.append
    loads, draw = Loads(store), np.random.default_rng(seed)
    names: dict[str, tuple[str, ...]] = {"instance": tuple(p.name for p in profiles)}
    before_s, start_s = -np.inf, 0.0

    def flush() -> None:
        if at[k.ROWS]:
            give(_columns(buffer[0][: at[k.ROWS]], buffer[1][: at[k.ROWS]], usd_s))
            at[k.ROWS] = 0

    def carry(arrival_s: NDArray[np.float64], wants: NDArray[np.int64], last: bool) -> None:
        at[k.TAKEN] = 0
        while True:
            why = k.play(store.state, tree, most, arrival_s, wants, code, last, *buffer, at)
            if why == k.AT_END:
                return
            if why == k.ROWS_FULL:
                flush()
            elif why == k.POOL_FULL:
                store.grow(len(store.state.p))
            else:
                j = int(at[k.TAKEN])
                loads.now = float(arrival_s[j])
                wants[j, k.CHOICE] = _choice(router(loads.now, loads), n)  # type: ignore[operator]

    for piece in [trace] if isinstance(trace, Trace) else trace:
        if len(piece) == 0:
            continue
        if piece.arrival_s[0] < before_s or (np.diff(piece.arrival_s) < 0.0).any():
            raise FleetError(
                "The pieces of the trace are not in order of arrival.",
                field="arrival_s",
                fix="Sort by arrival; clocks of pieces must agree.",
            )
        if not at[
            k.NUMBER
        ]:  # the clock of a trace may begin at any moment: machines are there from its first request
            start_s = float(piece.arrival_s[0])
            store.state.f[:, k.T0] = store.state.f[:, k.T1] = start_s
        before_s = float(piece.arrival_s[-1])
        names |= {c: v.names for c in ("model", "tenant") if (v := getattr(piece, c)) is not None}
        number = int(at[k.NUMBER])
        wants = _wants(piece, number, code, n, assign, cached_tokens, draw)
        carry(np.ascontiguousarray(piece.arrival_s, np.float64), wants, False)
    carry(np.zeros(0), np.zeros((0, k.WANTS), np.int64), True)
    flush()
    return Result(_joined(kept), names, _facts(store, start_s, int(at[k.NUMBER]), int(at[k.MOST]), seed))


def _batchings(batching: Batching | Sequence[Batching] | None, n: int) -> list[Batching]:
    if batching is None or isinstance(batching, Batching):
        return [batching or Batching()] * n
    return list(batching)


def _code(router: str | Router, assign: NDArray[np.int64] | None) -> int:
    if callable(router):
        return k.ASK
    code = ROUTERS.get(router)
    if code is None:
        raise FleetError(
            f"No router is called '{router}'.",
            field="router",
            fix=f"One of: {', '.join(ROUTERS)}; or a function.",
        )
    if code == k.TABLE and assign is None:
        raise FleetError(
            "The router 'table' has no table.", field="assign", fix="Give an instance for each request."
        )
    return code


def _choice(index: int, n: int) -> int:
    if not 0 <= index < n:
        raise FleetError(
            f"The router chose {index} of {n} instances.", field="router", fix=f"Choose 0 to {n - 1}."
        )
    return index


def _wants(
    piece: Trace,
    number: int,
    code: int,
    n: int,
    assign: NDArray[np.int64] | None,
    cached_tokens: NDArray[np.int64] | None,
    draw: np.random.Generator,
) -> NDArray[np.int64]:
    """The columns that the loop reads, with what is drawn for the router."""
    count = len(piece)
    wants = np.zeros((count, k.WANTS), np.int64)
    wants[:, k.PROMPT_TOKENS] = np.maximum(piece.prompt_tokens, 1)
    wants[:, k.OUTPUT_TOKENS] = np.maximum(piece.output_tokens, 1)
    wants[:, k.URGENCY] = 0 if piece.priority is None else piece.priority
    wants[:, k.MARK] = (_codes(piece.model, count) + 1) << 32 | (_codes(piece.tenant, count) + 1)
    if cached_tokens is not None:
        wants[:, k.CACHED_TOKENS] = cached_tokens[number : number + count]
    if code == k.ASK:
        wants[:, k.CHOICE] = -1
    elif code == k.TABLE:
        assert assign is not None  # noqa: S101 - _code has seen to it
        chosen = assign[number : number + count]
        if len(chosen) < count or chosen.min() < 0 or chosen.max() >= n:
            raise FleetError(
                "The table does not name an instance for each request.",
                field="assign",
                fix=f"Give 0 to {n - 1}.",
            )
        wants[:, k.CHOICE] = chosen
    elif code != k.ROUND_ROBIN:
        # Two numbers for each request whatever the router: the draws do not depend on how the trace is cut.
        drawn = draw.random((count, 2))
        wants[:, k.CHOICE] = first = (drawn[:, 0] * n).astype(np.int64)
        other = (drawn[:, 1] * (n - 1)).astype(np.int64)
        wants[:, k.OTHER] = (other + (other >= first)) % n
    return wants


def _codes(column: Labels | None, n: int) -> NDArray[np.int64]:
    return np.full(n, -1, np.int64) if column is None else column.codes.astype(np.int64)


def _columns(out: NDArray[np.int64], out_s: NDArray[np.float64], usd_s: NDArray[np.float64]) -> Columns:
    """Rows as the columns of a result."""
    columns = empty(len(out))
    refused = out[:, k.OUT_REFUSED] == 1
    for name, ints in (
        ("request", k.OUT_REQUEST),
        ("instance", k.OUT_INSTANCE),
        ("prompt_tokens", k.OUT_PROMPT),
        ("cached_tokens", k.OUT_CACHED),
        ("output_tokens", k.OUT_TOKENS),
        ("preempted", k.OUT_PREEMPTED),
        ("priority", k.OUT_PRIORITY),
    ):
        columns[name][:] = out[:, ints]
    for name, floats in (
        ("arrival_s", k.OUT_ARRIVAL_S),
        ("first_token_s", k.OUT_FIRST_S),
        ("finish_s", k.OUT_FINISH_S),
        ("longest_gap_s", k.OUT_GAP_S),
        ("server_s", k.OUT_SERVER_S),
        ("joules", k.OUT_JOULES),
    ):
        columns[name][:] = out_s[:, floats]
    columns["model"][:] = (out[:, k.OUT_TAG] >> 32) - 1
    columns["tenant"][:] = (out[:, k.OUT_TAG] & 0xFFFFFFFF) - 1
    columns["status"][:] = np.where(refused, FAILED, OK)
    columns["tries"][:] = 1
    columns["queued_s"][:] = out_s[:, k.OUT_STARTED_S] - out_s[:, k.OUT_ARRIVAL_S]
    columns["usd"][:] = columns["server_s"] * usd_s[out[:, k.OUT_INSTANCE]]
    return columns


def _joined(pieces: Sequence[Columns]) -> Columns:
    if not pieces:
        return empty(0)
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def _facts(store: Store, start_s: float, requests: int, most: int, seed: int) -> dict[str, Any]:
    i, f = store.state.i, store.state.f
    horizon_s = float(f[:, k.T1].max())
    idle_j = f[:, k.IDLE_W] * (horizon_s - start_s - f[:, k.BUSY_S])
    return {
        "seed": seed,
        "requests": requests,
        "horizon_s": horizon_s,
        "iterations": int(i[:, k.ITERATIONS].sum()),
        "busy_s": f[:, k.BUSY_S].tolist(),
        "busy_j": f[:, k.BUSY_J].tolist(),
        "idle_j": idle_j.tolist(),
        "preemptions": int(i[:, k.PREEMPTIONS].sum()),
        "most_in_flight": most,
    }
