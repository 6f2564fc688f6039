"""The searches: against every placement of a small grid, and against every size of small pools."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from apportion.plan.placement import Search
from apportion.plan.provision import provision
from apportion.simulate.disagg.distserve import Parallel
from apportion.simulate.disagg.goodput import Objectives, highest, poisson
from apportion.simulate.disagg.link import Network, PhasesError
from apportion.simulate.disagg.splitwise import Kind, Splitwise
from apportion.simulate.profile import Profile

ONE = Profile(
    name="tp1",
    tokens=(1.0, 64.0, 2048.0),
    seconds=(0.02, 0.025, 0.6),
    kv_tokens=200_000,
    kv_bytes_per_token=2e5,
    devices=1,
)
TWO = replace(
    ONE,
    name="tp2",
    seconds=tuple(s * f for s, f in zip(ONE.seconds, (0.7, 0.7, 0.55), strict=True)),
    devices=2,
)


def search(ttft_s: float = 0.6, tpot_s: float = 0.05) -> Search:
    lengths = np.array([200, 400, 900], np.int32), np.array([20, 60, 40], np.int32)
    return Search(
        instances=[Parallel(profile=ONE, tensor=1), Parallel(profile=TWO, tensor=2)],
        workload=lambda rate: poisson(*lengths, rate, 20.0, seed=3),
        objectives=Objectives(ttft_s=ttft_s, tpot_s=tpot_s),
        network=Network(bytes_per_s=50e9),
        devices=5,
        rates=(0.2, 100.0),
        tolerance=0.05,
    )


@pytest.mark.parametrize(("ttft_s", "tpot_s"), [(0.6, 0.05), (0.35, 0.1)])
def test_the_search_by_phase_agrees_with_trying_everything(ttft_s: float, tpot_s: float) -> None:
    """Each phase by itself and then the ratio: within 10% per device of the best of all pairs and ratios."""
    looked = search(ttft_s, tpot_s)
    every = looked.exhaustive([(n, m) for n in range(1, 5) for m in range(1, 4)])
    found = looked.high_affinity()
    assert found.system.devices <= looked.devices
    assert found.per_device <= every.per_device * 1.06  # the tolerance of a bisection
    assert found.per_device >= 0.9 * every.per_device


def test_traffic_says_how_many_instances() -> None:
    looked = search()
    few, many = (looked.high_affinity(rate).system for rate in (2.0, 20.0))
    assert few.prefills < many.prefills
    assert few.decodes <= many.decodes


def test_low_affinity_stays_within_a_node() -> None:
    looked = replace(search(), node_devices=3, network=Network(bytes_per_s=1e9, local_bytes_per_s=300e9))
    found = looked.low_affinity()
    assert found.system.devices <= 3
    assert found.system.paired
    crossing = replace(found.system, paired=False)
    assert found.rate_per_s >= looked.rate(crossing.cluster)


def test_no_placement_is_said() -> None:
    with pytest.raises(PhasesError, match="No instance meets"):
        search(ttft_s=1e-3).high_affinity()
    with pytest.raises(PhasesError, match="No placement fits"):
        replace(search(), node_devices=1).low_affinity()


def test_provisioning_finds_the_best_of_all_sizes() -> None:
    """A cluster that carries the lesser of what its pools carry: the peak is where they meet."""
    kind = Kind(name="x", profile=ONE, usd_per_hour=2.0, watts=100.0)
    cheap = replace(kind, usd_per_hour=1.0)

    def carries(prompts: int, tokens: int, rate: float) -> bool:
        return rate <= min(3.0 * prompts, 1.0 * tokens)

    best, tried = provision(kind, cheap, carries, usd_per_hour=50.0, rates=(0.5, 100.0), tolerance=0.001)
    by_hand = max(range(1, 25), key=lambda p: min(3.0 * p, 50.0 - 2.0 * p))
    assert (best.prompts, best.tokens) == (by_hand, 50 - 2 * by_hand)
    assert best.rate_per_s == pytest.approx(30.0, rel=0.002)
    assert best.usd_per_hour == 50.0
    assert len(tried) < 20
    both, _ = provision(kind, cheap, carries, usd_per_hour=50.0, watts=1000.0, rates=(0.5, 100.0))
    assert both.watts <= 1000.0
    with pytest.raises(PhasesError, match="no budget"):
        provision(kind, cheap, carries)
    with pytest.raises(PhasesError, match="does not pay"):
        provision(kind, cheap, carries, usd_per_hour=2.5)


def test_provisioning_of_simulated_pools() -> None:
    kind = Kind(name="x", profile=ONE, usd_per_hour=1.0, watts=1.0)
    objectives = Objectives(ttft_s=1.0, tpot_s=0.05)
    lengths = np.array([800], np.int32), np.array([40], np.int32)

    def carries(prompts: int, tokens: int, rate: float) -> bool:
        trace = poisson(*lengths, rate, 20.0, seed=2)
        system = Splitwise(prompt=kind, token=kind, prompts=prompts, tokens=tokens)
        return objectives.met(system.run(trace), trace)

    best, _ = provision(kind, kind, carries, usd_per_hour=6.0, rates=(0.5, 60.0), tolerance=0.1)
    every = [highest(lambda rate, n=n: carries(n, 6 - n, rate), 0.5, 60.0, 0.1) for n in range(1, 6)]  # type: ignore[misc]
    assert best.rate_per_s == max(every)
