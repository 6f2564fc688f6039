"""`python -m benchmarks.deciding`: time in the proxy with everything on, with and without the sentence encoder.

One client, one request at a time, an upstream that answers at once, all on one machine: the figure is what the
proxy itself says in `x-apportion-overhead-ms` (from the request's last byte to the answer's first, waiting for the
upstream and its queue left out). Prompts are generated, each asked once, so that no cache has them. With `--realtime`
(root, Linux) client, upstream and proxy go before all other programs of the machine, so that the tail is the proxy's;
`--baseline CHECKOUT` measures the proxy of another version in turn with this one, part by part. Where quality is
predicted, so is one that finds no numba. These run side by side and are asked in turn, each with colder caches than
one that has the machine for itself, which is measured first.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import yaml

from apportion.core import Features
from apportion.predict.quality._fit import artefact, fit
from apportion.predict.text.lexical import Lexical
from apportion.serve.artefact import write
from apportion.serve.http.server import Request, Responder, Server, ServerLimits
from benchmarks.gateway.__main__ import RESULTS, origin

PAGE = Path(__file__).parents[2] / "docs" / "results" / "deciding.md"
AIM_MS = 0.3
NOW, MACHINE, OLD = "now", "machine", "before_alone"
TURN, ARRAYS, BEFORE = "in_turn", "arrays", "before"
BESIDE = {
    OLD: "- before",
    TURN: "- in turn with those below: the same",
    ARRAYS: "- in turn: without numba",
    BEFORE: "- in turn: before",
}
SUBJECTS = ["bees", "tax", "sorting", "Rome", "enzymes", "rain", "loans", "chess", "primes", "paint"]
VERBS = [
    "Explain",
    "Compare",
    "Summarise",
    "List",
    "Prove",
    "Translate",
    "Estimate",
    "Describe",
    "Criticise",
    "Name",
]


def prompt(rng: random.Random) -> str:
    """A question of 20 to 200 words."""
    words = [rng.choice(VERBS), *(rng.choice(SUBJECTS) for _ in range(rng.randint(20, 200)))]
    return f"{' '.join(words)} {rng.random():.12f}?"


ROWS = 1000
"""Of labelled requests."""
HARD = {"Prove": 1.8, "Estimate": 0.9, "Explain": 0.45, "Translate": -0.9, "List": -0.45}


def right(rng: random.Random, text: str, rank: int) -> float:
    """Whether model number ``rank`` answers right: by verb and length, so that neighbours, a line and trees find
    something each.
    """
    words = text.split()
    hard = HARD.get(words[0], 0.0) + 0.6 * math.sin(len(words) / 25.0)
    odds = 0.3 + 0.9 * rank - (1.2 - 0.3 * rank) * (hard - math.log(len(words) / 80.0))
    return float(rng.random() < 1.0 / (1.0 + math.exp(-odds)))


def quality_file(path: Path, encoder: Any) -> None:
    """A predictor of three models, fitted to generated labels; with vectors where there is an encoder."""
    rng = random.Random(1)
    texts = [prompt(rng) for _ in range(ROWS)]
    lexical = Lexical()
    vectors: list[tuple[float, ...] | None] = [None] * len(texts)
    if encoder is not None:
        vectors = list(encoder.encode(texts))
    rows = [Features(lexical.features(text), vector) for text, vector in zip(texts, vectors, strict=True)]
    labels = [[right(rng, text, rank) for rank in range(3)] for text in texts]
    views = ("vector", "lexical") if encoder is not None else ("lexical",)
    fitted = fit(rows, ["small", "middle", "large"], labels, views=views)
    named = "text/minilm" if encoder is not None else None
    write(path, artefact(fitted, encoder=named, lexical="text/lexical"))


def configuration(level: str, port: int, directory: Path) -> dict[str, Any]:
    """What the proxy is told at each level."""
    endpoint = {"kind": "openai", "base_url": f"http://127.0.0.1:{port}/v1", "slots": 64}
    prices = {
        name: {"input_usd_per_mtok": p, "output_usd_per_mtok": 4 * p}
        for name, p in (("small", 0.1), ("middle", 1.0), ("large", 5.0))
    }
    endpoints = {name: {**endpoint, "price": price} for name, price in prices.items()}
    model: dict[str, Any] = {"endpoints": list(endpoints), "worth_usd": 0.01, "policy": "route/priced"}
    found: dict[str, Any] = {
        "auth": {"required": False},
        "listen": {"port": 0},
        "ledger": {"url": f"sqlite:///{directory}/ledger.db"},
        "budgets": [{"name": "all", "amount": 1000, "window": "day"}],
        "endpoints": endpoints,
        "models": {"m": model},
    }
    if level == "plain":
        return found
    for each in endpoints.values():
        each["queue"] = "schedule/weighted_fair"
    model["predict"] = {"quality": str(directory.parent / "quality.json")}
    model["policy"] = {"name": "route/carrot", "mu": 0.3}
    model["feedback"] = {"retry_s": 60, "checks": [{"kind": "not_empty"}]}
    found["cache"] = {"enabled": True}
    found["records"] = {"log": {}}
    if level == "encoder":
        found["text"] = {"encoder": "minilm", "wait_s": 1.0}
        found["cache"]["semantic"] = True
    return found


async def answer(request: Request, responder: Responder) -> None:
    """The upstream: always the same, at once."""
    body = {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "Yes."}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 2, "total_tokens": 102},
    }
    responder.send(200, b"content-type: application/json\r\n", msgspec.json.encode(body))


async def measure(
    level: str, requests: int, directory: Path, sources: Mapping[str, Path | None]
) -> dict[str, dict[str, float]]:
    """Milliseconds in the proxy of each of ``sources`` (None: this checkout): mean, median, 90th and 99th percentile.

    All of them run side by side and are asked in turn, so that what else the machine does falls on all alike. With them
    comes what `fixed_work` took in this process in between: the machine's own tail.
    """
    server = Server(answer, ServerLimits())
    _, upstream = await server.listen("127.0.0.1", 0, reuse_port=False)
    rng = random.Random(7)
    times: dict[str, list[float]] = {name: [] for name in (*sources, MACHINE)}
    async with AsyncExitStack() as stack:
        stack.push_async_callback(server.drain, 0.1)
        urls = {
            name: stack.enter_context(
                serving(level, upstream, directory / name, source, numba=name != ARRAYS)
            )
            for name, source in sources.items()
        }
        async with httpx.AsyncClient(trust_env=False, timeout=30.0) as client:
            for url, process in urls.values():
                await _ready(client, url, process)
            for i in range(requests + requests // 5):
                body = {"model": "m", "messages": [{"role": "user", "content": prompt(rng)}]}
                for name, (url, _) in rng.sample(list(urls.items()), len(urls)):
                    found = await client.post(f"{url}/v1/chat/completions", json=body)
                    found.raise_for_status()
                    if i >= requests // 5:
                        times[name].append(float(found.headers["x-apportion-overhead-ms"]))
                times[MACHINE].append(fixed_work())
    return {name: figures(each) for name, each in times.items()}


@contextmanager
def serving(
    level: str, upstream: int, directory: Path, source: Path | None, *, numba: bool
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A proxy of the version in ``source``, with its address; not ``numba``: one that does not find it."""
    directory.mkdir()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    file = directory / "apportion.yaml"
    file.write_text(yaml.safe_dump(configuration(level, upstream, directory)))
    environment = {**os.environ, "XDG_STATE_HOME": str(directory / "state")}
    first = [] if source is None else [str((source / "src").absolute())]
    if not numba:
        hidden = directory / "hidden"
        hidden.mkdir()
        (hidden / "numba.py").write_text("raise ImportError\n")
        first.append(str(hidden))
    if first:
        given = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.pathsep.join(first + ([given] if given else []))
    command = [sys.executable, "-m", "apportion.cli", "serve", "--config", str(file), "--port", str(port)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.terminate()
        process.wait(30)


def fixed_work() -> float:
    """Milliseconds that the same small computation takes: some 0.2 on a quiet machine."""
    started_s = time.perf_counter()
    total = 0
    for number in range(3_000):
        total ^= number * number
    return (time.perf_counter() - started_s) * 1e3


def figures(times: list[float]) -> dict[str, float]:
    """Mean and percentiles."""
    times = sorted(times)
    at = {f"p{q}_ms": times[min(len(times) - 1, len(times) * q // 100)] for q in (50, 90, 99)}
    return {"requests": len(times), "mean_ms": sum(times) / len(times), **at}


async def _ready(client: httpx.AsyncClient, url: str, process: subprocess.Popen[bytes]) -> None:
    until_s = time.monotonic() + 120.0
    while time.monotonic() < until_s and process.poll() is None:
        try:
            if (await client.get(f"{url}/health/ready")).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        await asyncio.sleep(0.2)
    raise RuntimeError("the proxy did not start")


LEVELS = {
    "plain": "endpoint by price, one hard budget, SQLite books",
    "decided": "also: quality of 3 models predicted from the text, route/carrot, fair queue, exact cache, checks, log",
    "encoder": "also: sentence encoder (waited for) and semantic cache",
}


def page(results: dict[str, Any]) -> str:
    """The page of the documentation."""
    lines = [
        "# What deciding costs",
        "",
        "Milliseconds that a request spends in the proxy itself (`x-apportion-overhead-ms`), one request at a time, "
        f"each a question nobody asked before. Made by `{results['command']}`.",
        "",
        "| what is decided | p50 | p90 | p99 | mean | p50, times the first row |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    levels = results["levels"]
    least = levels["plain"][NOW]["p50_ms"]
    for level, rows in levels.items():
        lines.append(f"| {LEVELS[level]} | {_cells(rows[NOW])} | {rows[NOW]['p50_ms'] / least:.1f} |")
        lines.append(f"| - a fixed computation beside it | {_cells(rows[MACHINE])} | |")
        lines += [f"| {said} | {_cells(rows[name])} | |" for name, said in BESIDE.items() if name in rows]
    origin = results["origin"]
    where = f"{origin['machine']['cpus']} shared cores of {origin['machine']['cpu']}"
    first = (
        "Client, upstream and proxy went before all other programs of the machine (`--realtime`): those had to "
        "wait, but they went on using its caches and its memory."
        if results["realtime"]
        else "The proxy shared the machine with whatever else ran there, which the tail shows."
    )
    decided = levels["decided"][NOW]
    lines += [
        "",
        f"Measured {origin['measured_at']} on {where}; load average {results['load']:.0f}. {first} "
        "The fixed computation is a loop of 3,000 steps in the client, timed between the requests: its p99 over its "
        "p50 is the machine's part of every tail.",
        "",
        f"The aim was {AIM_MS} ms at the 99th percentile without the encoder: it is "
        f"{'reached' if decided['p99_ms'] <= AIM_MS else 'missed'} at {decided['p99_ms']:.2f} ms, where the "
        "price-only row (the best possible of this proxy: it decides by nothing but prices and books) has "
        f"{levels['plain'][NOW]['p99_ms']:.2f} ms.",
    ]
    gone = {
        name: " and ".join(
            f"{levels['decided'][name][p] / levels['decided'][TURN][p]:.2f} ({p[:3]})"
            for p in ("p50_ms", "p99_ms")
        )
        for name in (ARRAYS, BEFORE)
        if name in levels["decided"]
    }
    lines += [
        "",
        'Rows "in turn" ran side by side: whatever else the machine did fell on all of them, and each found the caches '
        "full of the others. There the second row took "
        + ", ".join(
            f"{said} {gone[name]} times as long"
            for name, said in ((ARRAYS, "without numba"), (BEFORE, f"before ({results['before']})"))
            if name in gone
        )
        + ".",
    ]
    if OLD in levels["decided"]:
        old = levels["decided"][OLD]
        times = " and ".join(f"{old[p] / decided[p]:.2f} ({p[:3]})" for p in ("p50_ms", "p99_ms"))
        lines.append(f"Alone it took before {times} times as long.")
    lines += [
        "",
        "Where the time of the second row goes and where its tail comes from:",
        "",
        "- Of what it takes beyond the first row a quarter is reading the text, a quarter the prediction (neighbours, "
        "a line and trees for three models), a sixth the exact cache; the rest are lengths, the policy and the queue. "
        "Between requests caches go cold, the more the more runs beside it: all of it takes two to four times what the "
        "same code takes in a loop.",
        "- The prediction is compiled where numba is installed (`pip install apportion[simulate]`; before the proxy is "
        "ready, and kept for the next start). In arrays it takes more than twice as long, and for arrays of over 500 "
        "numbers numpy lets other threads run: those of the books and the log may then keep the interpreter for half "
        "a millisecond.",
        "- Settling some requests (0.2 ms each) comes a few milliseconds after their answers; a request that arrives "
        "right behind it finds the caches full of other things, and the books' thread at work.",
        "- Once in some 500 requests the collector of the interpreter looks at what is new (milliseconds); that is "
        "beyond the 99th percentile.",
    ]
    if "encoder" in levels:
        lines += [
            "",
            "The encoder's own time (5 ms for a short question, 20 ms for 64 tokens on one core) dominates its row: "
            "`text.wait_s` bounds it, and what comes too late is there for the next.",
        ]
    return "\n".join(lines) + "\n"


def _commit(checkout: Path) -> str:
    """What of the history a checkout holds."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _cells(row: dict[str, float]) -> str:
    return " | ".join(f"{row[name]:.3f}" for name in ("p50_ms", "p90_ms", "p99_ms", "mean_ms"))


def main() -> int:
    """Measure all levels, write JSON and page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.deciding", description=__doc__)
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--only", action="append", choices=tuple(LEVELS))
    parser.add_argument("--realtime", action="store_true", help="go before other programs (root, Linux)")
    parser.add_argument("--baseline", type=Path, metavar="CHECKOUT", help="also measure the version there")
    arguments = parser.parse_args()
    beside: dict[str, Path | None] = {} if arguments.baseline is None else {BEFORE: arguments.baseline}
    levels: dict[str, Any] = {}
    for level in arguments.only or LEVELS:
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            encoder = None
            if level == "encoder":
                from apportion.core import catalogue
                from apportion.serve.store.encoder import ensure_encoder

                files = ensure_encoder()
                encoder = catalogue.build(
                    "text/minilm",
                    model_file=str(files.model_file),
                    tokenizer_file=str(files.tokenizer_file),
                )
            if level != "plain":
                quality_file(directory / "quality.json", encoder)
            requests = arguments.requests if level != "encoder" else arguments.requests // 10
            if arguments.realtime:  # the proxies inherit it; fitting needs no such haste
                os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(10))
            levels[level] = asyncio.run(measure(level, requests, directory, {NOW: None}))
            if arguments.baseline is not None:
                old = {OLD: arguments.baseline}
                levels[level][OLD] = asyncio.run(measure(level, requests, directory, old))[OLD]
            others = {**({ARRAYS: None} if level == "decided" else {}), **beside}
            if others:
                in_turn = asyncio.run(measure(level, requests, directory, {TURN: None, **others}))
                levels[level] |= {name: row for name, row in in_turn.items() if name != MACHINE}
            if arguments.realtime:
                os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
            print(level, json.dumps(levels[level]), flush=True)
    results = {
        "origin": origin(),
        "command": f"python -m benchmarks.deciding{' --realtime' if arguments.realtime else ''}",
        "realtime": arguments.realtime,
        "load": os.getloadavg()[0],
        "before": None if arguments.baseline is None else _commit(arguments.baseline),
        "levels": levels,
    }
    if arguments.only is None:
        (RESULTS / "deciding.json").write_text(json.dumps(results, indent=1) + "\n")
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        PAGE.write_text(page(results), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
