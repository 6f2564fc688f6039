"""A cluster whose machines may be given different phases, and a run of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from apportion.core.cost import Cost
from apportion.core.option import Option
from apportion.core.policy import Policy
from apportion.core.state import State
from apportion.simulate.disagg import _kernel as kernel
from apportion.simulate.disagg.link import Network, PhasesError
from apportion.simulate.profile import Profile
from apportion.simulate.result import FAILED, OK, Result, empty
from apportion.simulate.trace import Trace

KINDS: Final = {"mixed": kernel.MIXED, "prefill_first": kernel.PREFILL_FIRST, "chunked": kernel.CHUNKED}
PHASES: Final = {"prompt": kernel.PROMPT, "token": kernel.TOKEN, "mixed": kernel.BOTH}
MODES: Final = {
    "least_pending": kernel.LEAST_PENDING,
    "paired": kernel.PAIRED,
    "pools": kernel.POOLS,
    "halves": kernel.HALVES,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One machine, or a group of them that works as one.

    ``phase`` is what it is for (or the pool that it begins in); ``batching`` what goes into an iteration: "mixed"
    (whole prompts together with decoding requests), "prefill_first" (whole prompts, and nothing else while there are
    any), "chunked" (pieces of prompts up to the token budget). A pipeline of ``stages`` has that many batches under
    way, each of which takes as long as ``profile`` says. ``share`` splits the processors: prompts get that part,
    answers the rest, both at once over one memory (semi-PD).
    """

    profile: Profile
    phase: Literal["prompt", "token", "mixed"] = "mixed"
    batching: Literal["mixed", "prefill_first", "chunked"] = "mixed"
    stages: int = 1
    node: int = -1
    """Machines of one node have the faster network; -1: a node of its own."""
    share: float | None = None
    saturates: float = 0.5
    """The part of the processors that is enough for the whole bandwidth of the memory."""
    hop_s: float = 0.0
    """From one stage of a pipeline to the next."""
    layers: int = 80

    def __post_init__(self) -> None:
        if self.profile.kind != "batch":
            raise PhasesError(
                f"The profile {self.profile.name!r} is of somebody else's machine: its phases cannot be placed.",
                field="profile",
            )
        for name, least in (("stages", 1), ("layers", 1)):
            if getattr(self, name) < least:
                raise PhasesError(
                    f"'{name}' is {getattr(self, name)!r}.", field=name, fix=f"At least {least}."
                )
        if self.share is not None and not 0.0 < self.share < 1.0:
            raise PhasesError(f"'share' is {self.share!r}.", field="share", fix="Between 0 and 1.")
        if not 0.0 < self.saturates <= 1.0:
            raise PhasesError(f"'saturates' is {self.saturates!r}.", field="saturates", fix="In (0, 1].")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Machines, the network between them, and how a request is given its machines when it arrives.

    ``choose``: "least_pending" (one machine for both phases, the one with the fewest tokens to do), "paired"
    (the least loaded machine of each phase), "pools" (Splitwise: three pools, machines move between them),
    "halves" (semi-PD: the least loaded device, all of which have a ``share``).
    """

    machines: Sequence[Machine]
    network: Network = field(default_factory=Network)
    choose: Literal["least_pending", "paired", "pools", "halves"] = "least_pending"
    long_tokens: float = 8192.0
    """A queue of prompts longer than this overflows into another pool (pools)."""
    name: str = ""

    def __post_init__(self) -> None:
        if not self.machines:
            raise PhasesError("There is no machine.", field="machines", fix="Name at least one.")
        if self.choose == "paired":
            for phase in ("prompt", "token"):
                if not any(m.phase == phase for m in self.machines):
                    raise PhasesError(f"No machine is for the phase {phase!r}.", field="machines")
        if (self.choose == "halves") != all(m.share is not None for m in self.machines):
            raise PhasesError(
                "'halves' is for machines that all have a 'share', and for no others.", field="choose"
            )

    def start(self, trace: Trace) -> Run:
        """A run over ``trace`` that has not begun."""
        return Run(self, trace)

    def run(self, trace: Trace, policy: Policy | None = None) -> Result:
        """Serve the whole trace. ``policy`` (family ``place``) chooses machines instead of ``choose``."""
        run = self.start(trace)
        if policy is None:
            run.until(math.inf)
        else:
            run.decided(policy)
        return run.result()

    @property
    def devices(self) -> int:
        """Processors of all machines."""
        return sum(m.profile.devices * m.stages for m in self.machines)


class Run:
    """A cluster at work: advance it with `until`, look at it, turn its splits, and take the `result`."""

    def __init__(self, cluster: Cluster, trace: Trace) -> None:
        self.cluster, self.trace = cluster, trace
        # Prompt machines come first, so that the phases are two ranges of lanes.
        order = sorted(range(len(cluster.machines)), key=lambda i: (cluster.machines[i].phase == "token", i))
        self.machines = [cluster.machines[i] for i in order]
        self._given = order
        self.world, self._prompt_lanes, self._machine = _world(self.machines, cluster, trace)
        self._next = 0
        self.after_s = max(m.profile.after_s for m in self.machines)

    def until(self, until_s: float) -> None:
        """Let requests arrive and be served until ``until_s``."""
        mode = MODES[self.cluster.choose]
        self._next = kernel.drive(self.world, mode, self._next, until_s, self._prompt_lanes)
        kernel.advance(self.world, until_s)

    @property
    def over(self) -> bool:
        """Whether everything has arrived and ended."""
        return self._next == len(self.trace) and not np.isnan(self.world.r.finish_s).any()

    def split(self, machine: int, share: float) -> None:
        """From its next iterations on, ``machine`` gives ``share`` of its processors to prompts."""
        lane = int(self.world.p.first_lane[machine])
        self.world.ln.share[lane] = share
        self.world.ln.share[lane + 1] = 1.0 - share

    def decided(self, policy: Policy) -> None:
        """Serve the whole trace, asking ``policy`` for each request's machine for the prompt, then for the answer.

        The options are all machines, named by their number (in five digits). A machine of another pool that
        is chosen becomes mixed, as in "pools".
        """
        world, ln = self.world, self.world.ln
        for i in range(self._next, len(self.trace)):
            if not math.isnan(world.r.finish_s[i]):
                continue
            now = float(world.r.arrival_s[i])
            kernel.advance(world, now)
            kernel.home_again(ln)
            prompt_lane = self._ask(policy, i, now, "prompt", kernel.NOBODY)
            kernel.become_mixed(ln, prompt_lane, kernel.PROMPT)
            token_lane = self._ask(policy, i, now, "token", prompt_lane)
            kernel.become_mixed(ln, token_lane, kernel.TOKEN)
            kernel.arrive(world, i, prompt_lane, token_lane)
        self._next = len(self.trace)
        kernel.advance(world, math.inf)

    def _ask(self, policy: Policy, request: int, now: float, phase: str, prompt_lane: int) -> int:
        world, ln, p = self.world, self.world.ln, self.world.p
        options = [
            Option(
                f"{lane:05d}",
                0.0,
                Cost(),
                load=float(ln.committed[lane]) / float(p.capacity[ln.pool[lane]]),
                facts={
                    "pool": _LABELS[ln.label[lane]],
                    "pending_tokens": int(ln.pending[lane]),
                    "committed_tokens": int(ln.committed[lane]),
                    "kv_tokens": int(p.capacity[ln.pool[lane]]),
                    "prompt_here": lane == prompt_lane,
                },
            )
            for lane in range(len(ln.end_s))
        ]
        tokens = {
            "prompt_tokens": int(world.r.prompt[request]),
            "output_tokens": int(world.r.output[request]),
        }
        decision = policy.decide(State(now, options, str(request), {"phase": phase, **tokens}))
        return 0 if decision.choice is None else decision.choice

    def result(self) -> Result:
        """What the run has brought so far, a row for each request that has ended."""
        r, ln, p = self.world.r, self.world.ln, self.world.p
        ended = np.flatnonzero(~np.isnan(r.finish_s))
        ended = ended[np.argsort(r.finish_s[ended], kind="stable")]
        served = ~np.isnan(r.first_s[ended])
        columns = empty(len(ended))
        columns["request"] = ended
        columns["arrival_s"] = self.trace.arrival_s[ended]
        given = np.asarray(self._given)
        lane_machine = given[self._machine]
        columns["instance"] = lane_machine[np.maximum(r.token_lane[ended], 0)].astype(np.int32)
        columns["status"] = np.where(served, OK, FAILED).astype(np.int8)
        columns["tries"] = np.ones(len(ended), np.int16)
        columns["prompt_tokens"] = r.prompt[ended].astype(np.int32)
        columns["cached_tokens"] = np.zeros(len(ended), np.int32)
        columns["output_tokens"] = np.where(served, r.output[ended], 0).astype(np.int32)
        columns["queued_s"] = r.started_s[ended] - self.trace.arrival_s[ended]
        columns["first_token_s"] = r.first_s[ended] + self.after_s
        columns["finish_s"] = r.finish_s[ended] + self.after_s
        return Result(
            columns,
            name=self.cluster.name,
            facts={
                "horizon_s": float(np.max(r.finish_s[ended], initial=0.0)),
                "iterations": int(ln.iterations.sum()),
                "busy_s": _by_machine(ln.busy_s / ln.stages, self._machine, given),
                "prompt_instance": lane_machine[np.maximum(r.prompt_lane[ended], 0)],
                "moved_s": r.moved_s[ended],
                "sent_bytes": float(p.sent_bytes.sum()),
                "peak_kv_tokens": [int(p.peak[i]) for i in np.argsort(given)],
                "moves": int(ln.moves.sum()),
            },
        )


_LABELS: Final = {code: name for name, code in PHASES.items()}


def _by_machine(
    values: NDArray[np.float64], machine: NDArray[np.int64], given: NDArray[np.int64]
) -> list[float]:
    total = np.zeros(len(given))
    np.add.at(total, given[machine], values)
    return [float(value) for value in total]


def _world(
    machines: Sequence[Machine], cluster: Cluster, trace: Trace
) -> tuple[kernel.World, int, NDArray[np.int64]]:
    """The arrays of a run, how many lanes take prompts, and the machine of each lane."""
    kinds: list[tuple[int, Machine]] = []
    first = []
    for i, machine in enumerate(machines):
        first.append(len(kinds))
        kinds += [(i, machine)] * (2 if machine.share is not None else machine.stages)
    lanes, pools = len(kinds), len(machines)
    laws: dict[int, int] = {}
    for machine in machines:
        laws.setdefault(id(machine.profile), len(laws))
    slots = max(m.profile.slots for m in machines)

    def whole(value: int = 0) -> NDArray[np.int64]:
        return np.full(lanes, value, np.int64)

    label = np.array([PHASES[m.phase] for _, m in kinds], np.int64)
    ln = kernel.Lanes(
        kind=np.array([KINDS[m.batching] for _, m in kinds], np.int64),
        pool=np.array([i for i, _ in kinds], np.int64),
        gate=np.array([i for i, _ in kinds], np.int64),
        stages=np.array([m.stages for _, m in kinds], np.int64),
        law=np.array([laws[id(m.profile)] for _, m in kinds], np.int64),
        slots=np.array([m.profile.slots for _, m in kinds], np.int64),
        budget=np.array([m.profile.batch_tokens for _, m in kinds], np.int64),
        share=np.ones(lanes),
        end_s=np.full(lanes, np.inf),
        began_s=np.zeros(lanes),
        steps=whole(),
        decoding=whole(),
        context=np.zeros(lanes),
        decodes_now=whole(),
        demand=np.zeros(lanes),
        queue=whole(kernel.NOBODY),
        queue_tail=whole(kernel.NOBODY),
        ready=whole(kernel.NOBODY),
        ready_tail=whole(kernel.NOBODY),
        batch=whole(kernel.NOBODY),
        pending=whole(),
        committed=whole(),
        answers=whole(),
        busy_s=np.zeros(lanes),
        iterations=whole(),
        label=label,
        home=label.copy(),
        moves=whole(),
        heap_at=np.zeros((lanes, slots + 1), np.int64),
        heap_of=np.zeros((lanes, slots + 1), np.int64),
    )
    for i, machine in enumerate(machines):
        if machine.share is not None:
            ln.share[first[i]], ln.share[first[i] + 1] = machine.share, 1.0 - machine.share
    p = kernel.Pools(
        capacity=np.array([m.profile.kv_tokens for m in machines], np.int64),
        used=np.zeros(pools, np.int64),
        peak=np.zeros(pools, np.int64),
        waiting=np.full(pools, kernel.NOBODY, np.int64),
        waiting_tail=np.full(pools, kernel.NOBODY, np.int64),
        first_lane=np.array(first, np.int64),
        last_lane=np.array([*first[1:], lanes], np.int64),
        node=np.array([m.node if m.node >= 0 else -1 - i for i, m in enumerate(machines)], np.int64),
        link=np.full(pools, cluster.network.bytes_per_s),
        out_free_s=np.zeros(pools),
        in_free_s=np.zeros(pools),
        sent_bytes=np.zeros(pools),
        gate_free_s=np.zeros(pools),
        gate_stage_s=np.zeros(pools),
    )
    network = cluster.network
    world = kernel.World(
        r=_requests(trace, max(m.profile.before_s for m in machines), p.capacity),
        ln=ln,
        p=p,
        w=_laws(machines, laws),
        moving_at=np.zeros(len(trace) + 1),
        moving=np.zeros(len(trace) + 1, np.int64),
        counts=np.zeros(1, np.int64),
        numbers=np.array(
            [
                network.local_bytes_per_s,
                network.latency_s,
                float(network.serial_tokens),
                cluster.long_tokens,
                float(network.overlap),
            ]
        ),
    )
    prompt_lanes = sum(1 for _, m in kinds if m.phase != "token")
    return world, prompt_lanes, np.array([i for i, _ in kinds], np.int64)


def _requests(trace: Trace, before_s: float, capacity: NDArray[np.int64]) -> kernel.Requests:
    n = len(trace)
    prompt = np.maximum(trace.prompt_tokens.astype(np.int64), 1)
    output = np.maximum(trace.output_tokens.astype(np.int64), 1)
    arrival = trace.arrival_s + before_s
    nothing = np.full(n, np.nan)
    return kernel.Requests(
        arrival_s=arrival,
        prompt=prompt,
        output=output,
        prompt_lane=np.full(n, kernel.NOBODY, np.int64),
        token_lane=np.full(n, kernel.NOBODY, np.int64),
        prefilled=np.zeros(n, np.int64),
        chunk=np.zeros(n, np.int64),
        started_s=nothing.copy(),
        first_s=nothing.copy(),
        moved_s=nothing.copy(),
        # What fits into the smallest machine's memory fits wherever it is sent; the rest is refused at once.
        finish_s=np.where(prompt + output > capacity.min(), arrival, np.nan),
        after=np.full(n, kernel.NOBODY, np.int64),
    )


def _laws(machines: Sequence[Machine], laws: Mapping[int, int]) -> kernel.Laws:
    by_law = {laws[id(m.profile)]: m for m in reversed(machines)}
    chosen = [by_law[i] for i in range(len(by_law))]
    most = max(len(m.profile.tokens) for m in chosen)

    def column(name: str) -> NDArray[np.float64]:
        return np.array([getattr(m.profile, name) for m in chosen], np.float64)

    def points(name: str) -> NDArray[np.float64]:
        rows: list[Any] = [getattr(m.profile, name) for m in chosen]
        return np.array([(*row, *(0.0,) * (most - len(row))) for row in rows], np.float64)

    return kernel.Laws(
        points=np.array([len(m.profile.tokens) for m in chosen], np.int64),
        tokens=points("tokens"),
        seconds=points("seconds"),
        prefill_attention=column("prefill_attention_s"),
        decode_attention=column("decode_attention_s"),
        request=column("request_s"),
        mixed=column("mixed_s"),
        floor_s=np.array([m.profile.seconds[0] for m in chosen]),
        saturates=np.array([m.saturates for m in chosen]),
        hop_s=np.array([m.hop_s for m in chosen]),
        kv_bytes=column("kv_bytes_per_token"),
        layers=np.array([m.layers for m in chosen], np.int64),
    )
