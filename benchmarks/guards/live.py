"""A small model behind the proxy: overflow prompts passed, reminded and capped; answers that are not let end."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import yaml

from apportion.measure.overflow import Lengths, Series
from apportion.policy.guard.overflow import BRIEF, Overflow
from apportion.serve.learned import Learned
from benchmarks.guards import requests
from benchmarks.guards.prompts import KINDS, ordinary, overflow

MODEL = "smollm2-135m-instruct"
CAP_TOKENS = 384
"""Stands for BenchOverflow's 5 000: what this machine can make."""
SHORT_TOKENS = CAP_TOKENS // 4
TENANT = "key:anonymous"
GUARDS: dict[str, dict[str, Any]] = {
    "brief": {"action": "brief", "limit_tokens": CAP_TOKENS},
    "cap": {"action": "cap", "limit_tokens": CAP_TOKENS, "cap_tokens": SHORT_TOKENS},
    "watched": {"action": "pass", "logprobs": True},
}
TEMPERATURES = (0.0, 1.0)
QUESTIONS = (
    ("What is the capital of France?", "Paris"),
    ("What is the capital of Italy?", "Rome"),
    ("What is the capital of Germany?", "Berlin"),
    ("What is the capital of Japan?", "Tokyo"),
    ("What is the capital of Spain?", "Madrid"),
    ("What is 2 + 2?", "4"),
    ("What is 5 + 3?", "8"),
    ("How many days has a week?", "7|seven"),
    ("Which planet is nearest to the sun?", "Mercury"),
    ("What is the chemical symbol of water?", "H2O|H₂O"),
    ("Who wrote Romeo and Juliet?", "Shakespeare"),
    ("On which continent is Egypt?", "Africa"),
)


def run(work: Path, quick: bool) -> dict[str, Any]:
    """Ask everything; answers that ``work`` holds from an earlier run are not made again."""
    work.mkdir(parents=True, exist_ok=True)
    with _proxy(work) as url:
        asker = _Asker(url, work / "answers.json")
        result = {
            "model": MODEL,
            "cap_tokens": CAP_TOKENS,
            "short_tokens": SHORT_TOKENS,
            "suppressed": _suppressed(asker, 1 if quick else 5),
            "questions": _questions(asker, QUESTIONS[: 2 if quick else None]),
            "overflow": _overflow(asker, 2 if quick else len(KINDS)),
        }
        return result | {"made_tokens": asker.made_tokens, "made_s": asker.made_s}


def _overflow(asker: _Asker, kinds: int) -> dict[str, Any]:
    """BenchOverflow: one prompt of each kind, in a wording that the guard has not seen."""
    found: dict[str, Any] = {}
    lengths = Lengths()
    for policy in ("pass", "brief", "cap"):
        stopped = 0
        for kind, prompt in overflow(kinds, 11, slice(2, 3)):
            model = "plain" if policy == "pass" else policy
            answer = asker.ask(model, prompt)
            lengths.add(answer["tokens"], model=policy, category=kind)
            stopped += answer["stopped"]
        counts = np.array(sorted(lengths.counts(Series(policy)).elements()))
        steps, shares = lengths.ecdf(Series(policy))
        wanted = [float(np.mean(counts <= step)) for step in np.unique(counts)]
        found[policy] = {
            "csr": lengths.saturation(CAP_TOKENS, Series(policy)),
            "p99_tokens": lengths.quantile(0.99, Series(policy)),
            "mean_tokens": float(counts.mean()),
            "lengths": counts.tolist(),
            "stopped": stopped,
            "ecdf_is_numpys": steps == np.unique(counts).tolist()
            and np.allclose(shares, wanted, rtol=0, atol=1e-12),
        }
    return found


def _questions(asker: _Asker, questions: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """Questions with one right answer: passed, under the guard, and if the guard took all of them for overflow."""
    found: dict[str, Any] = {"asked": len(questions)}
    for policy in ("pass", "brief", "cap", "all reminded"):
        right = 0
        for question, answers in questions:
            model = "plain" if policy in ("pass", "all reminded") else policy
            note = BRIEF if policy == "all reminded" else None
            prompt = f"{question} Answer in one sentence."
            said = asker.ask(model, prompt, system=note)["text"].lower()
            right += any(answer.lower() in said for answer in answers.split("|"))
        found[policy] = right
    return found


def _suppressed(asker: _Asker, n: int) -> list[dict[str, Any]]:
    """Ordinary questions, as they are and with the end of the text forbidden, both under the eyes of the guard."""
    generator, rows = random.Random(3), list[dict[str, Any]]()
    sources = ordinary()
    for place in range(n):
        source = ("gsm8k", "banking77", "clinc150", "gsm8k")[place % 4]
        prompt = generator.choice(sources[source])
        for temperature in TEMPERATURES:
            free = asker.ask("watched", prompt, temperature=temperature)
            bound = asker.ask("watched", prompt, temperature=temperature, ignore_eos=True)
            rows.append(
                {
                    "source": source,
                    "temperature": temperature,
                    "ended": free["finish"] == "stop",
                    "cut": free["stopped"],
                    "natural_tokens": free["tokens"],
                    "stopped": bound["stopped"],
                    "stopped_tokens": bound["tokens"],
                }
            )
    return rows


class _Asker:
    """Asks the proxy, one question at a time, and keeps the answers."""

    def __init__(self, url: str, file: Path) -> None:
        self._client = httpx.Client(base_url=url, trust_env=False, timeout=900.0)
        self._file = file
        self._kept: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        self.made_tokens = 0
        self.made_s = 0.0

    def ask(self, model: str, prompt: str, *, system: str | None = None, **settings: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": prompt}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        body = {"model": model, "messages": messages, "max_tokens": CAP_TOKENS, "temperature": 0.0, "seed": 7}
        body |= settings
        key = hashlib.sha256(json.dumps([body, GUARDS.get(model)], sort_keys=True).encode()).hexdigest()
        if key not in self._kept:
            began_s = time.perf_counter()
            self._kept[key] = self._streamed(body) | {"took_s": time.perf_counter() - began_s}
            self._file.write_text(json.dumps(self._kept))
        found: dict[str, Any] = self._kept[key]
        self.made_tokens += found["tokens"]
        self.made_s += found["took_s"]
        return found

    def _streamed(self, body: dict[str, Any]) -> dict[str, Any]:
        """The answer as it comes: the engine counts its tokens, or, where it was stopped, its events do."""
        pieces: list[str] = []
        finish, tokens, stopped = None, None, False
        asked = body | {"stream": True, "stream_options": {"include_usage": True}}
        with self._client.stream("POST", "/v1/chat/completions", json=asked) as answer:
            answer.raise_for_status()
            for line in answer.iter_lines():
                stopped = stopped or (line.startswith(": apportion") and '"guard"' in line)
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line[6:])
                tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
                for choice in chunk["choices"]:
                    finish = choice["finish_reason"] or finish
                    pieces += [piece] if (piece := choice["delta"].get("content")) else []
        counted = len(pieces) if stopped or tokens is None else tokens
        return {"text": "".join(pieces), "finish": finish, "tokens": counted, "stopped": stopped}


@contextmanager
def _proxy(work: Path) -> Iterator[str]:
    """A proxy before the embedded model, whose guards have been taught by a simulated tenant."""
    state = work / "state"
    _teach(state / "apportion" / "learned")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    models: dict[str, Any] = {"plain": {"endpoints": ["local"]}}
    for name, parameters in GUARDS.items():
        models[name] = {"endpoints": ["local"], "guard": {"name": "guard/overflow", **parameters}}
    config = {
        "auth": {"required": False},
        "ledger": {"url": f"sqlite:///{work}/ledger.db"},
        "endpoints": {"local": {"kind": "local", "weights": MODEL, "slots": 1, "context_tokens": 2048}},
        "models": models,
    }
    file = work / "apportion.yaml"
    file.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "apportion.cli", "serve", "--config", str(file), "--port", str(port)]
    with (work / "proxy.log").open("wb") as log:
        process = subprocess.Popen(
            command, env={**os.environ, "XDG_STATE_HOME": str(state)}, stdout=log, stderr=log
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(url, process)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    until_s = time.monotonic() + 300.0
    with httpx.Client(trust_env=False, timeout=5.0) as client:
        while time.monotonic() < until_s and process.poll() is None:
            try:
                if client.get(f"{url}/health/ready").status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
    raise RuntimeError("The proxy did not start; see proxy.log in the work directory.")


def _teach(directory: Path) -> None:
    """Ordinary lengths are those of gsm8k, brought to the scale of the cap; of each kind two wordings are seen."""
    learned = Learned(directory, 0)
    for name in ("brief", "cap"):
        guard = Overflow(**GUARDS[name])
        requests.run(0, 4000, guard=guard, tenant=TENANT, model=name, cap_tokens=CAP_TOKENS, unseen=False)
        asyncio.run(learned.save({f"model/{name}/guard": ("Overflow", guard)}))
