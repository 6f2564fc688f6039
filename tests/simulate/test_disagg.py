"""Phases apart: conservation, closed forms, and what must be equal or in order."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.core import catalogue
from apportion.core.policy import Policy
from apportion.simulate.disagg.cluster import Cluster, Machine
from apportion.simulate.disagg.distserve import DistServe, Parallel, colocated
from apportion.simulate.disagg.goodput import Objectives, highest, poisson, slowdowns, worst
from apportion.simulate.disagg.link import Network, PhasesError
from apportion.simulate.disagg.semi_pd import SemiPD
from apportion.simulate.disagg.splitwise import Kind, Splitwise, mixed_batching
from apportion.simulate.engine import Batching, Engine
from apportion.simulate.profile import Profile
from apportion.simulate.result import FAILED, OK, Result
from apportion.simulate.trace import Trace

PROFILE = Profile(
    name="made-up",
    tokens=(1.0, 64.0, 2048.0),
    seconds=(0.02, 0.03, 0.27),
    prefill_attention_s=1e-9,
    decode_attention_s=2e-7,
    request_s=1e-5,
    kv_tokens=60_000,
    kv_bytes_per_token=300_000.0,
    slots=64,
    batch_tokens=2048,
)
FREE = Network(bytes_per_s=math.inf, local_bytes_per_s=math.inf)


def made(n: int, rate_per_s: float = 8.0, seed: int = 0) -> Trace:
    random = np.random.default_rng(seed)
    return Trace(
        np.cumsum(random.exponential(1.0 / rate_per_s, n)),
        random.integers(1, 1500, n).astype(np.int32),
        random.integers(1, 120, n).astype(np.int32),
    )


def clusters(network: Network) -> dict[str, Cluster]:
    prompt, token, mixed = (Machine(profile=PROFILE, phase=phase) for phase in ("prompt", "token", "mixed"))
    return {
        "colocated": Cluster(machines=[mixed] * 2),
        "prefill first": Cluster(machines=[replace(mixed, batching="prefill_first")] * 2),
        "chunked": Cluster(machines=[replace(mixed, batching="chunked")] * 2),
        "paired": Cluster(machines=[prompt, token, token], network=network, choose="paired"),
        "pipeline": Cluster(
            machines=[replace(prompt, stages=2, hop_s=1e-4), replace(token, stages=3)],
            network=network,
            choose="paired",
        ),
        "pools": Cluster(
            machines=[prompt, prompt, mixed, token], network=network, choose="pools", long_tokens=1000.0
        ),
        "halves": Cluster(machines=[Machine(profile=PROFILE, share=0.6)] * 2, choose="halves"),
    }


def in_order(result: Result, values: np.ndarray) -> np.ndarray:
    """``values`` by request rather than by end."""
    return values[np.argsort(result["request"])]


@pytest.mark.parametrize("name", clusters(Network()))
def test_every_request_ends_once_and_every_byte_is_sent_once(name: str) -> None:
    trace = made(150)
    cluster = clusters(Network(bytes_per_s=2e9, latency_s=0.001, overlap=name == "pools"))[name]
    run = cluster.start(trace)
    run.until(math.inf)
    result = run.result()
    assert run.over
    assert sorted(result["request"]) == list(range(len(trace)))
    assert (result["status"] == OK).all()
    first, finish = result["first_token_s"], result["finish_s"]
    assert (result["queued_s"] >= 0).all()
    assert (first > result["arrival_s"]).all()
    assert (finish >= first).all()
    assert ((finish == first) == (result["output_tokens"] == 1)).all()
    world = run.world
    # Nobody is left anywhere, and all memory is free again.
    assert not world.p.used.any()
    assert not world.ln.decoding.any()
    assert not world.ln.pending.any()
    assert not world.ln.committed.any()
    assert not world.ln.answers.any()
    assert (world.r.prefilled == trace.prompt_tokens).all()
    assert (world.p.peak <= world.p.capacity).all()
    # A request has moved if its phases were on two machines and there was more than one token to make.
    moved = (result["instance"] != result.facts["prompt_instance"]) & (result["output_tokens"] > 1)
    tokens = int(result["prompt_tokens"][moved].sum())
    assert result.facts["sent_bytes"] == pytest.approx(tokens * PROFILE.kv_bytes_per_token)
    if name in ("paired", "pipeline"):
        assert moved.sum() == (result["output_tokens"] > 1).sum()


@pytest.mark.parametrize("overlap", [False, True])
def test_one_request_through_the_pipeline(overlap: bool) -> None:
    """Alone, every time is known: the prompt, the transfer, and an iteration for each further token."""
    prompt, output, layers = 1000, 5, 40
    network = Network(bytes_per_s=1e9, latency_s=0.003, overlap=overlap)
    machines = [Machine(profile=PROFILE, phase=phase, layers=layers) for phase in ("prompt", "token")]
    result = Cluster(machines=machines, network=network, choose="paired").run(
        Trace(np.array([2.0]), np.array([prompt], np.int32), np.array([output], np.int32))
    )
    first_s = float(PROFILE.seconds_of(prompt, prefill_pairs=prompt**2 / 2, requests=1))
    send_s = prompt * PROFILE.kv_bytes_per_token / 1e9
    left_s = max(send_s / layers, first_s / layers + send_s - first_s) if overlap else send_s
    each_s = sum(
        float(PROFILE.seconds_of(1, decode_context=prompt + i, requests=1)) for i in range(output - 1)
    )
    assert result["first_token_s"][0] == pytest.approx(2.0 + first_s)
    assert result.facts["moved_s"][0] == pytest.approx(2.0 + first_s + left_s + 0.003)
    assert result["finish_s"][0] == pytest.approx(2.0 + first_s + left_s + 0.003 + each_s)


@pytest.mark.parametrize("kind", ["mixed", "prefill_first", "chunked"])
def test_a_colocated_machine_is_the_engine(kind: str) -> None:
    """With memory to spare, so that neither preempts nor refuses, the times are those of `Engine`."""
    roomy = replace(PROFILE, kv_tokens=10**7, batch_tokens=512 if kind == "chunked" else 2048)
    trace = made(60, rate_per_s=3.0)
    result = Cluster(machines=[Machine(profile=roomy, batching=kind)]).run(trace)  # type: ignore[arg-type]
    engine = Engine(roomy, batching=Batching(kind=kind))  # type: ignore[arg-type]
    done = []
    for i, at in enumerate(trace.arrival_s):
        engine.submit(float(at), i, int(trace.prompt_tokens[i]), int(trace.output_tokens[i]))
    while math.isfinite(engine.next_s):
        done += engine.advance(math.inf)
    done.sort(key=lambda d: d.request)
    assert in_order(result, result["first_token_s"]) == pytest.approx([d.first_token_s for d in done])
    assert in_order(result, result["finish_s"]) == pytest.approx([d.finish_s for d in done])


def test_a_free_network_leaves_two_engines_that_know_nothing_of_each_other() -> None:
    trace = made(120)
    machines = [Machine(profile=PROFILE, phase=phase) for phase in ("prompt", "token")]
    whole = Cluster(machines=machines, network=FREE, choose="paired").run(trace)
    prompts = Cluster(machines=[Machine(profile=PROFILE)]).run(
        replace(trace, output_tokens=np.ones_like(trace.output_tokens))
    )
    first = in_order(prompts, prompts["finish_s"])
    assert in_order(whole, whole["first_token_s"]) == pytest.approx(first)
    # The answers, on a machine whose prompts come computed and at those times.
    order = np.argsort(first, kind="stable")
    instant = Machine(profile=Profile(name="instant", slots=4096), phase="prompt")
    later = Trace(first[order], trace.prompt_tokens[order], trace.output_tokens[order])
    answers = Cluster(machines=[instant, machines[1]], network=FREE, choose="paired").run(later)
    finish = np.empty(len(trace))
    finish[order] = in_order(answers, answers["finish_s"])
    assert in_order(whole, whole["finish_s"]) == pytest.approx(finish)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), gigabytes=st.floats(0.05, 50.0))
def test_layer_by_layer_is_never_later(seed: int, gigabytes: float) -> None:
    """Of the same prompts, at the same times, each arrives no later when it is sent as it is computed."""
    trace = made(25, seed=seed)
    roomy = replace(PROFILE, kv_tokens=10**7)  # memory that is freed earlier could change the batches
    machines = [Machine(profile=roomy, phase=phase) for phase in ("prompt", "token")]
    moved = []
    for overlap in (False, True):
        network = Network(bytes_per_s=gigabytes * 1e9, overlap=overlap)
        result = Cluster(machines=machines, network=network, choose="paired").run(trace)
        moved.append(in_order(result, result.facts["moved_s"]))
    assert (moved[1] <= moved[0] + 1e-9).all()


def test_a_slower_network_is_never_faster_and_transfers_share_it() -> None:
    machines = [Machine(profile=PROFILE, phase="prompt"), Machine(profile=PROFILE, phase="token")]
    trace = Trace(np.zeros(2), np.array([500, 500], np.int32), np.array([2, 2], np.int32))
    network = Network(bytes_per_s=1e9, overlap=False)
    result = Cluster(machines=machines, network=network, choose="paired").run(trace)
    send_s = 500 * PROFILE.kv_bytes_per_token / 1e9
    moved = np.sort(result.facts["moved_s"]) - result["first_token_s"].min()
    assert moved == pytest.approx([send_s, 2 * send_s])  # one prompt's batch, one link, one after the other
    means = [
        Cluster(machines=machines, network=Network(bytes_per_s=rate), choose="paired")
        .run(made(80))
        .e2e_s.mean()
        for rate in (0.5e9, 2e9, 50e9)
    ]
    assert means[0] > means[1] > means[2]


def test_machines_of_a_node_use_the_faster_network() -> None:
    network = Network(bytes_per_s=1e9, local_bytes_per_s=100e9)
    trace = Trace(np.zeros(1), np.array([1000], np.int32), np.array([3], np.int32))
    moved = [
        Cluster(
            machines=[Machine(profile=PROFILE, phase=p, node=node) for p in ("prompt", "token")],
            network=network,
            choose="paired",
        )
        .run(trace)
        .facts["moved_s"][0]
        for node in (-1, 3)
    ]
    assert moved[0] - moved[1] == pytest.approx(1000 * PROFILE.kv_bytes_per_token * (1e-9 - 1e-11))


@pytest.mark.parametrize("name", ["paired", "pools", "halves"])
def test_the_same_again(name: str) -> None:
    one, two = (clusters(Network(bytes_per_s=3e9))[name].run(made(100)) for _ in range(2))
    for column, values in one.columns.items():
        assert np.array_equal(values, two[column], equal_nan=values.dtype.kind == "f"), column


def test_what_fits_into_no_memory_is_refused_at_once_and_hurts_nobody() -> None:
    trace = made(30)
    prompts = trace.prompt_tokens.copy()
    prompts[7] = 70_000
    result = clusters(Network())["paired"].run(replace(trace, prompt_tokens=prompts))
    assert list(result["request"][result["status"] == FAILED]) == [7]
    assert len(result) == 30


def test_memory_is_the_limit_of_answers_under_way() -> None:
    """Two answers of which one fits: the second prompt waits in the memory of its own machine, then it is fetched."""
    small = replace(PROFILE, kv_tokens=1200)
    machines = [Machine(profile=PROFILE, phase="prompt"), Machine(profile=small, phase="token")]
    trace = Trace(np.array([0.0, 0.0]), np.array([1000, 1000], np.int32), np.array([100, 100], np.int32))
    result = Cluster(machines=machines, network=FREE, choose="paired").run(trace)
    assert result["first_token_s"][1] < result["finish_s"][0]
    assert result.facts["moved_s"][1] == pytest.approx(result["finish_s"][0])


def test_a_pipeline_has_as_many_batches_under_way_as_stages() -> None:
    """Prompts that fill an iteration each: of two stages, the next begins when the first stage is done with it."""
    size = 2048
    whole_s = float(PROFILE.seconds_of(size, prefill_pairs=size**2 / 2, requests=1))
    trace = Trace(np.zeros(4), np.full(4, size, np.int32), np.ones(4, np.int32))
    done = Cluster(machines=[Machine(profile=PROFILE, stages=2)]).run(trace)["finish_s"]
    assert done == pytest.approx([whole_s * (1 + i / 2) for i in range(4)])


def test_splitwise_lends_machines_and_gets_them_back() -> None:
    kind = Kind(name="x", profile=PROFILE, usd_per_hour=1.0, watts=1.0)
    burst = Trace(np.linspace(0, 0.1, 40), np.full(40, 1500, np.int32), np.full(40, 10, np.int32))
    calm = Trace(np.array([60.0]), np.array([10], np.int32), np.array([2], np.int32))
    both = Trace(*(np.concatenate(pair) for pair in zip(columns(burst), columns(calm), strict=True)))
    system = Splitwise(prompt=kind, token=kind, prompts=2, tokens=2, long_tokens=4000.0)
    run = system.cluster.start(both)
    run.until(1.0)
    assert set(run.world.ln.label[2:]) == {2}, "the token machines help with the burst of prompts"
    run.until(math.inf)
    assert list(run.world.ln.label) == [0, 0, 1, 1], "and are home when the next request comes"
    alone = replace(system, long_tokens=math.inf).run(both)
    assert run.result().ttft_s.max() < alone.ttft_s.max()


def columns(trace: Trace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return trace.arrival_s, trace.prompt_tokens, trace.output_tokens


def test_the_catalogue_decides_as_the_compiled_choice() -> None:
    kind = Kind(name="x", profile=replace(PROFILE, kv_tokens=9000), usd_per_hour=1.0, watts=1.0)
    trace = made(150, rate_per_s=25.0)
    system = Splitwise(prompt=kind, token=kind, prompts=3, tokens=2, mixed=1, long_tokens=2000.0)
    policy = catalogue.build("place/splitwise", long_tokens=2000.0)
    assert isinstance(policy, Policy)
    native, asked = system.run(trace), replace(system, policy=policy).run(trace)
    assert native.facts["moves"] == asked.facts["moves"] > 0
    for name in ("instance", "first_token_s", "finish_s"):
        assert np.array_equal(native[name], asked[name])


def test_a_split_gives_each_phase_its_share() -> None:
    """Prompts take 1/x as long in what they compute; only a share that is too small slows the reading of memory."""
    plain = Profile(name="roofline", tokens=(1.0, 100.0, 1100.0), seconds=(0.01, 0.01, 0.11), kv_tokens=10**6)
    trace = Trace(np.zeros(1), np.array([1100], np.int32), np.array([11], np.int32))
    for share, token_s in ((0.5, 0.01), (0.75, 0.02)):
        machine = Machine(profile=plain, share=share, saturates=0.5)
        result = Cluster(machines=[machine], choose="halves").run(trace)
        assert result["first_token_s"][0] == pytest.approx(0.01 + 0.1 / share)
        assert result.tpot_s[0] == pytest.approx(token_s)


def test_the_controller_finds_a_split_that_is_as_good_as_the_best_fixed_one() -> None:
    profile = Profile(
        name="r", tokens=(1.0, 100.0, 2100.0), seconds=(0.02, 0.02, 0.4), decode_attention_s=1e-8
    )
    objectives = Objectives(ttft_s=1.0, tpot_s=0.04, warm_s=20.0)
    lengths = np.array([1000], np.int32), np.array([40], np.int32)
    trace = poisson(*lengths, 2.4, 60.0, seed=1)
    fixed = {
        share: objectives.attainment(
            SemiPD(profile=profile, share=share, objectives=objectives).run(trace), trace
        )
        for share in (0.3, 0.5, 0.7)
    }
    steered = SemiPD(profile=profile, share=0.3, objectives=objectives, controller="scale/phase_split").run(
        trace
    )
    assert fixed[0.3] < 0.5
    assert objectives.attainment(steered, trace) >= 0.95 * max(fixed.values())
    assert steered.facts["splits"]


def test_objectives_and_slowdowns_are_what_they_say() -> None:
    alone = Trace(np.array([0.0, 100.0]), np.array([400, 900], np.int32), np.array([10, 30], np.int32))
    kind = Kind(name="x", profile=PROFILE, usd_per_hour=1.0, watts=1.0)
    result = mixed_batching(kind, 1).run(alone)
    for values in slowdowns(result, PROFILE).values():
        assert values == pytest.approx((1.0,) * 3, rel=1e-3)
    assert worst(result, PROFILE)[0] == pytest.approx(
        0.8, rel=1e-3
    )  # of tbt and e2e at p50, 1.25 are allowed
    assert Objectives(ttft_s=1.0, tpot_s=1.0).attainment(result, alone) == 1.0
    assert Objectives(ttft_s=1.0, tpot_s=0.001).attainment(result, alone) == 0.0
    assert highest(lambda rate: rate <= 7.0, 1.0, 100.0, 0.01) == pytest.approx(7.0, rel=0.01)
    assert highest(lambda rate: False, 1.0, 100.0) == 0.0


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (lambda: Network(bytes_per_s=0.0), "bytes_per_s"),
        (lambda: Network(latency_s=-1.0), "latency_s"),
        (lambda: Machine(profile=PROFILE, stages=0), "stages"),
        (lambda: Machine(profile=PROFILE, share=1.0), "share"),
        (lambda: Cluster(machines=[]), "machines"),
        (lambda: Cluster(machines=[Machine(profile=PROFILE)], choose="paired"), "machines"),
        (lambda: Cluster(machines=[Machine(profile=PROFILE)], choose="halves"), "choose"),
        (lambda: Machine(profile=Profile(name="far", kind="hosted", tokens_per_s=9.0)), "profile"),
        (lambda: poisson(np.ones(1, np.int32), np.ones(1, np.int32), 0.0, 1.0), "rate_per_s"),
        (lambda: poisson(np.ones(1, np.int32), np.ones(2, np.int32), 1.0, 1.0), "prompt_tokens"),
        (lambda: highest(lambda rate: True, 2.0, 1.0), "low"),
    ],
)
def test_what_is_wrong_is_named(wrong: object, field: str) -> None:
    with pytest.raises(PhasesError) as error:
        wrong()  # type: ignore[operator]
    assert error.value.field == field


def test_distserve_is_pools_with_parallelism_of_their_own() -> None:
    instance = Parallel(profile=PROFILE, tensor=2, stages=1)
    system = DistServe(prefill=instance, decode=replace(instance, stages=2), prefills=2)
    assert system.devices == 2 * 2 + 4
    trace = made(60)
    assert (system.run(trace)["status"] == OK).all()
    assert (colocated(instance, 2).run(trace)["status"] == OK).all()
