"""Active checks: what counts as there, what counts as loaded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apportion.serve import probes as module
from apportion.serve.config.schema import Endpoint as Config
from apportion.serve.config.schema import Health
from apportion.serve.http.client import Watch
from apportion.serve.http.server import Request, Responder, Server
from apportion.serve.probes import Probes, reported_load
from apportion.serve.upstream import Endpoint

VLLM = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 2.0
vllm:num_requests_waiting{engine="0",model_name="m"} 1.0
vllm:num_requests_waiting{engine="1",model_name="m"} 0.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.75
"""
LLAMA = "llamacpp:requests_processing 2\nllamacpp:requests_deferred 3\nllamacpp:kv_cache_usage_ratio 0.5\n"
SGLANG = 'sglang:num_running_reqs{model_name="m"} 4\nsglang:num_queue_reqs{model_name="m"} 0\nsglang:token_usage 0.75\n'


@pytest.mark.parametrize(
    ("text", "slots", "load"),
    [
        (VLLM, 8, 6 / 8),
        (VLLM, None, 1.5),
        (VLLM.replace("kv_cache", "gpu_cache"), None, 1.5),
        (LLAMA, 4, 5 / 4),
        (LLAMA, None, 3.5),
        (SGLANG, 16, 0.25),
        (SGLANG, None, 0.75),
        ("vllm:num_requests_running 3\n", 4, 0.75),
        ("vllm:num_requests_running 3\n", None, None),
        ("vllm:num_requests_waiting 2\n", None, 2.0),
        ("vllm:num_requests_running 3 1700000000\n", 4, 0.75),
        ('vllm:num_requests_running{m="a} b"} 3\n', 4, None),
        ("go_goroutines 7\n", 4, None),
        ("", 4, None),
        ("vllm:num_requests_running many\n", 4, None),
        ("# vllm:num_requests_running 3\n", 4, None),
    ],
)
def test_the_load_that_engines_report(text: str, slots: int | None, load: float | None) -> None:
    assert reported_load(text, slots) == (load if load is None else pytest.approx(load))


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf", "-5"])
@pytest.mark.parametrize("name", ["vllm:num_requests_running", "vllm:kv_cache_usage_perc"])
@pytest.mark.parametrize("slots", [4, None])
def test_a_load_is_a_number_of_zero_or_more(name: str, value: str, slots: int | None) -> None:
    """Prometheus allows others; whoever compares loads could not use them."""
    assert reported_load(f"{name} {value}\n", slots) is None


@given(st.text(max_size=200), st.none() | st.integers(1, 8))
def test_any_text_at_all(text: str, slots: int | None) -> None:
    load = reported_load(text, slots)
    assert load is None or 0 <= load < float("inf")


# --- the checks themselves ----------------------------------------------------------------------------


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.005)


class Upstream:
    """Answers every path as it is told, and counts."""

    def __init__(self) -> None:
        self.status = 200
        self.metrics = LLAMA
        self.silent = False
        self.asked: list[str] = []

    async def answer(self, request: Request, responder: Responder) -> None:
        self.asked.append(request.path)
        if self.silent:
            await asyncio.sleep(60)
        responder.send(self.status, b"", self.metrics.encode() if request.path == "/metrics" else b"ok")


@pytest.fixture
async def upstream() -> AsyncIterator[tuple[Upstream, Server, str]]:
    told = Upstream()
    server = Server(told.answer)
    host, port = await server.listen("127.0.0.1", 0)
    yield told, server, f"http://{host}:{port}/v1"
    await server.drain(0.0)


class Hasty:
    """asyncio, but less patient between two checks than for the answer to one."""

    get_running_loop = staticmethod(asyncio.get_running_loop)

    @staticmethod
    async def sleep(seconds: float) -> None:
        await asyncio.sleep(seconds / 75)


@pytest.fixture
async def probes(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Probes]:
    monkeypatch.setattr(module, "asyncio", Hasty)
    watch = Watch(asyncio.get_running_loop())
    found = Probes(watch)
    yield found
    found.close()
    await asyncio.sleep(0)
    watch.close()


def endpoint(probes: Probes, url: str, **health: object) -> Endpoint:
    config = Config(kind="openai", base_url=url, slots=4, health=Health(interval_s=3.0, **health))  # type: ignore[arg-type]
    return Endpoint("e", config, probes._watch)


async def test_an_endpoint_goes_and_comes_back(
    upstream: tuple[Upstream, Server, str], probes: Probes, caplog: pytest.LogCaptureFixture
) -> None:
    told, _, url = upstream
    checked = endpoint(probes, url, probe="/health")
    probes.follow([checked])
    await until(lambda: len(told.asked) >= 2)
    assert checked.healthy
    for fault in ("status", "silence"):
        told.status, told.silent = (503, False) if fault == "status" else (200, True)
        await until(lambda: not checked.healthy)
        told.status, told.silent = 200, False
        await until(lambda: checked.healthy)
    said = [r.getMessage() for r in caplog.records if r.name == "apportion.probes"]
    assert said == ["endpoint e is not healthy", "endpoint e is healthy"] * 2, "each change is said once"
    assert set(told.asked) == {"/health"}
    checked.close()


async def test_the_load_is_read_and_forgotten(upstream: tuple[Upstream, Server, str], probes: Probes) -> None:
    told, server, url = upstream
    checked = endpoint(probes, url, load_metrics=True)
    probes.follow([checked])
    await until(lambda: checked.reported_load == 5 / 4)
    told.metrics = "nothing of interest 1\n"
    await until(lambda: checked.reported_load is None)
    told.metrics = LLAMA
    await until(lambda: checked.reported_load == 5 / 4)
    await server.drain(0.0)
    await until(lambda: checked.reported_load is None)
    assert checked.healthy, "only a probe says that it is not"
    checked.close()


async def test_only_those_that_are_followed_are_asked(
    upstream: tuple[Upstream, Server, str], probes: Probes
) -> None:
    told, _, url = upstream
    passive = endpoint(probes, url)
    checked = endpoint(probes, url, probe="/health")
    probes.follow([passive])
    assert not probes._tasks
    probes.follow([passive, checked])
    probes.follow([passive, checked])
    (task,) = probes._tasks.values()
    await until(lambda: bool(told.asked))
    probes.follow([passive])
    await until(task.cancelled)
    await asyncio.sleep(0.05)  # what was on its way arrives
    count = len(told.asked)
    await asyncio.sleep(0.15)
    assert len(told.asked) == count
    for each in (passive, checked):
        each.close()


async def test_an_endpoint_that_is_down_is_not_healthy_and_may_return(
    upstream: tuple[Upstream, Server, str], probes: Probes
) -> None:
    _, _, url = upstream
    checked = endpoint(probes, url, probe="/health")
    checked.unplug()
    probes.follow([checked])
    await until(lambda: not checked.healthy)
    checked.point_at(url)
    await until(lambda: checked.healthy)
    checked.close()
