"""The engine against one that goes token by token, for every batching; and what must always hold."""

from __future__ import annotations

import copy
import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference_engine import Reference, Request, rows

from apportion.simulate.engine import Batching, Done, Engine, _kernel, group
from apportion.simulate.profile import Profile

KINDS = ("prefill_first", "chunked", "mixed", "decode_first", "static", "slots")
FAST = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def profile(**changes: Any) -> Profile:
    """Constants that binary fractions hold exactly, so that no rounding decides a tie."""
    values: dict[str, Any] = {
        "name": "exact",
        "tokens": (1.0, 9.0, 73.0),
        "seconds": (0.25, 0.5, 2.5),
        "prefill_attention_s": 2.0**-12,
        "decode_attention_s": 2.0**-10,
        "request_s": 2.0**-8,
        "mixed_s": 2.0**-5,
        "slots": 6,
        "batch_tokens": 16,
        "kv_tokens": 96,
        "block_tokens": 4,
        "prefill_w": 300.0,
        "decode_tokens": (1.0, 5.0),
        "decode_w": (100.0, 200.0),
        "idle_w": 50.0,
    }
    return Profile(**{**values, **changes})


@st.composite
def workloads(draw: st.DrawFn) -> list[Request]:
    n = draw(st.integers(1, 14))
    now, out = 0.0, []
    for number in range(n):
        now += draw(st.sampled_from([0.0, 0.0, 0.25, 0.515625, 1.0, 7.0, 40.0]))
        prompt = draw(st.integers(1, 40))
        out.append(
            Request(
                number, now, prompt, draw(st.integers(1, 40)), draw(st.integers(0, 20)), draw(st.integers(0, 2)),
            )
        )  # fmt: skip
    return out


def run(
    engine: Engine,
    requests: list[Request],
    paces: list[tuple[float, float]] | None = None,
    stops: list[float] | None = None,
    lost: list[Done] | None = None,
) -> list[Done]:
    """All of them through one engine, in the order of an event loop; it dies at ``stops``, and is there again at once.
    What did not end is added to ``lost``.
    """
    done: list[Done] = []
    lost = [] if lost is None else lost
    events: list[tuple[float, int, str, Any]] = [(r.arrival_s, r.number, "submit", r) for r in requests]
    events += [(r.cancel_s, 1000 + r.number, "cancel", r) for r in requests if r.cancel_s < float("inf")]
    events += [(at, -1, "pace", factor) for at, factor in paces or []]
    events += [(at, 2000, "stop", None) for at in stops or []]
    for at, _, what, subject in sorted(events, key=lambda event: event[:2]):
        while engine.next_s < at:
            done += engine.advance(min(engine.next_s, at))
        if what == "submit":
            r = subject
            engine.submit(at, r.number, r.prompt, r.output, r.cached, r.priority)
        elif what == "pace":
            engine.slow(at, subject)
        elif what == "stop":
            while engine.next_s <= at:
                done += engine.advance(at)
            lost += engine.stop(at)
            engine.start(at)
        elif r_is_in(engine, subject.number):
            lost.append(engine.cancel(at, subject.number))
    while engine.next_s < float("inf"):
        done += engine.advance(engine.next_s)
    return done


def r_is_in(engine: Engine, request: int) -> bool:
    return request in engine._rows


def accounted(engine: Engine, done: list[Done]) -> None:
    """Every second and joule of its iterations is some request's, or was spent on those that had been given up."""
    assert engine.waste_s >= -1e-9
    assert engine.waste_j >= -1e-6
    assert sum(d.server_s for d in done) + engine.waste_s == pytest.approx(engine.busy_s, abs=1e-9)
    assert sum(d.joules for d in done) + engine.waste_j == pytest.approx(engine.busy_j, abs=1e-6)


def same(done: list[Done], reference: Reference) -> None:
    expected = rows(reference.done)
    assert sorted(d.request for d in done) == sorted(expected)
    for d in done:
        want = expected[d.request]
        for name, value in want.items():
            assert getattr(d, name) == pytest.approx(value, rel=1e-9, abs=1e-9), (d.request, name)


@pytest.mark.parametrize("kind", KINDS)
@given(requests=workloads(), watermark=st.sampled_from([0.0, 0.1]), slots=st.integers(1, 6))
@FAST
def test_equal_to_token_by_token(kind: Any, requests: list[Request], watermark: float, slots: int) -> None:
    made = profile(slots=slots, kv_tokens=96 if kind != "slots" else 96 * slots)
    batching = Batching(kind, watermark=watermark)
    reference = Reference(made, batching)
    reference.run(copy.deepcopy(requests))
    engine = Engine(made, batching)
    done = run(engine, requests)
    same(done, reference)
    assert engine.iterations == reference.iterations
    assert engine.busy_s == pytest.approx(reference.busy_s, rel=1e-9)
    assert (engine.running, engine.waiting, engine.queued_tokens) == (0, 0, 0)
    assert engine.kv_tokens(1e9) == 0
    assert engine.work_s(1e9) == pytest.approx(0.0)
    assert sum(d.server_s for d in done) == pytest.approx(engine.busy_s)
    assert sum(d.joules for d in done) == pytest.approx(engine.busy_j)
    assert engine.preemptions == sum(d.preempted for d in done)


@pytest.mark.parametrize("kind", KINDS)
@given(
    requests=workloads(),
    cancels=st.lists(st.sampled_from([0.25, 1.0, 3.515625, 9.0, 31.0]), max_size=6),
    paces=st.lists(
        st.tuples(st.sampled_from([0.5, 2.0, 9.25, 20.0]), st.sampled_from([0.5, 1.0, 2.0])), max_size=3
    ),
)
@FAST
def test_equal_with_cancelling_and_pace(
    kind: Any, requests: list[Request], cancels: list[float], paces: list[tuple[float, float]]
) -> None:
    made = profile(kv_tokens=96 if kind != "slots" else 96 * 6)
    for request, after in zip(requests, cancels, strict=False):
        request.cancel_s = request.arrival_s + after
    paces = list(dict(paces).items())
    reference = Reference(made, Batching(kind), paces)
    reference.run(copy.deepcopy(requests))
    engine = Engine(made, Batching(kind))
    given_up: list[Done] = []
    done = run(engine, requests, paces, lost=given_up)
    accounted(engine, done + given_up)
    lost = {r.number for r in requests if r.cancel_s < float("inf")}
    for d in done:
        assert d.request not in lost or d.finish_s <= requests[d.request].cancel_s
    same([d for d in done if d.request not in lost], _kept(reference, lost))
    assert (engine.running, engine.waiting, engine.queued_tokens, engine.kv_tokens(1e9)) == (0, 0, 0, 0)
    assert engine.work_s(1e9) == pytest.approx(0.0)


def _kept(reference: Reference, lost: set[int]) -> Reference:
    reference.done = [r for r in reference.done if r.number not in lost]
    return reference


@given(requests=workloads(), budget=st.integers(8, 64))
@FAST
def test_a_pass_of_split_fuse_has_a_constant_size_under_load(requests: list[Request], budget: int) -> None:
    """As long as prompts are left that may begin, every pass has exactly the budget; never more; no token is lost."""
    made = profile(kv_tokens=4096, slots=8)
    engine = Engine(made, Batching("chunked", batch_tokens=budget))
    for r in requests:
        engine.submit(0.0, r.number, r.prompt, r.output, r.cached)
    tokens, prompts = dict.fromkeys(range(len(requests)), 0), dict.fromkeys(range(len(requests)), 0)
    while engine.next_s < float("inf"):
        plan = engine.planned()
        if plan is not None:
            assert plan.size <= budget
            if engine.waiting and engine.running < 8:
                assert plan.size == budget
            for request, n in plan.prompts.items():
                prompts[request] += n
            for request in plan.decoding:
                tokens[request] += len(plan.ends_s)
            for request in plan.completing:
                tokens[request] += 1
            assert plan.ends_s[-1] == pytest.approx(engine.next_s)
        engine.advance(engine.next_s)
    assert tokens == {r.number: r.output for r in requests}
    assert prompts == {r.number: r.prompt - min(r.cached, r.prompt - 1) for r in requests}


@pytest.mark.parametrize("kind", KINDS)
@given(requests=workloads())
@FAST
def test_memory_and_budget_are_kept(kind: Any, requests: list[Request]) -> None:
    """Looked at after every event: never more memory than there is, never more requests than places."""
    made = profile(kv_tokens=96 if kind != "slots" else 96 * 6)
    engine = Engine(made, Batching(kind))
    for r in requests:
        engine.submit(r.arrival_s, r.number, r.prompt, r.output, r.cached, r.priority)
        assert engine.kv_tokens(r.arrival_s) <= engine.kv_capacity
        assert engine.running <= 6
    ended: list[int] = []
    while engine.next_s < float("inf"):
        now = engine.next_s
        ended += [d.request for d in engine.advance(now)]
        assert engine.kv_tokens(now) <= engine.kv_capacity
        assert engine.running <= 6
    assert sorted(ended) == [r.number for r in requests]


def plain_kernel() -> ModuleType:
    """The kernel loaded a second time, where numba cannot be imported."""
    names = ("apportion.simulate.engine._compiled", "apportion.simulate.engine._kernel")
    kept = {name: sys.modules.pop(name) for name in names}
    numba = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "numba"}
    try:
        for name in numba:
            sys.modules[name] = None  # type: ignore[assignment]
        sys.modules.setdefault("numba", None)  # type: ignore[arg-type]
        spec = importlib.util.find_spec("apportion.simulate.engine._kernel")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.modules.pop("numba", None)
        sys.modules.update(numba)
        sys.modules.update(kept)


PLAIN = plain_kernel()


@pytest.mark.parametrize("kind", KINDS)
@given(requests=workloads())
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_compiled_and_plain_python_agree(kind: Any, requests: list[Request]) -> None:
    assert not hasattr(PLAIN.step, "py_func")
    made = profile(kv_tokens=96 if kind != "slots" else 96 * 6)
    results = [
        run(group([made], [Batching(kind)], kernel=kernel)[0], requests) for kernel in (_kernel, PLAIN)
    ]
    assert results[0] == results[1]


@pytest.mark.parametrize("kind", KINDS)
@given(
    requests=workloads(),
    cancels=st.lists(st.floats(0.0, 30.0), max_size=8),
    stops=st.lists(st.floats(0.1, 40.0), max_size=3),
    paces=st.lists(st.tuples(st.floats(0.5, 20.0), st.sampled_from([0.5, 2.0])), max_size=2),
)
@FAST
def test_every_joule_is_accounted_for(
    kind: Any,
    requests: list[Request],
    cancels: list[float],
    stops: list[float],
    paces: list[tuple[float, float]],
) -> None:
    made = profile(kv_tokens=96 if kind != "slots" else 96 * 6)
    for request, after in zip(requests, cancels, strict=False):
        request.cancel_s = request.arrival_s + after
    engine, lost = Engine(made, Batching(kind)), list[Done]()
    done = run(engine, requests, paces, stops, lost)
    assert sorted(d.request for d in done + lost) == sorted(r.number for r in requests)
    accounted(engine, done + lost)
    assert len(engine._rows) == 0
    places = engine._store.state.p[:, _kernel.PHASE]
    assert (places == _kernel.FREE).all()
    end_s = 1e4
    assert engine.idle_j(end_s) == pytest.approx(made.idle_w * (end_s - engine.busy_s))
