"""Runs that are made up, for tests of what is made of runs."""

from __future__ import annotations

import numpy as np

from apportion.simulate.result import FAILED, OK, REFUSED, Result, empty


def lindley(arrival_s: np.ndarray, size_s: np.ndarray) -> np.ndarray:
    """When each request ends at one server, first come first served."""
    finish = np.empty_like(arrival_s)
    free = 0.0
    for i, (arrived, size) in enumerate(zip(arrival_s, size_s, strict=True)):
        free = max(free, arrived) + size
        finish[i] = free
    return finish


def run(n: int = 400, seed: int = 0, *, speed: float = 1.0, usd: float = 1e-6, lost: bool = False) -> Result:
    """One server first come first served; requests depend on nothing but ``n``; ``seed`` moves the prices a little.

    ``speed`` divides the work; ``lost`` refuses every tenth and fails every twentieth request.
    """
    generator = np.random.default_rng(7)
    arrival = np.cumsum(generator.exponential(1.0, n))
    prompt = generator.integers(10, 500, n)
    output = generator.integers(1, 60, n)
    size = (prompt * 1e-4 + output * 0.02) / speed
    columns = empty(n)
    columns["request"] = np.arange(n)
    columns["arrival_s"] = arrival
    columns["prompt_tokens"], columns["output_tokens"] = prompt.astype(np.int32), output.astype(np.int32)
    columns["tries"][:] = 1
    columns["model"][:] = 0
    columns["tenant"] = (np.arange(n) % 3).astype(np.int32) - (np.arange(n) % 30 == 0)
    columns["action"][:] = 0
    columns["priority"] = (np.arange(n) % 2).astype(np.int8)
    status = np.full(n, OK, np.int8)
    if lost:
        status[::10], status[5::20] = REFUSED, FAILED
    ok = status == OK
    finish = arrival.copy()
    finish[ok] = lindley(arrival[ok], size[ok])
    columns["status"] = status
    columns["finish_s"] = finish
    columns["queued_s"] = np.where(ok, finish - size - arrival, np.nan)
    columns["first_token_s"] = np.where(ok, finish - output * 0.02 / speed, np.nan)
    columns["server_s"] = np.where(ok, size, np.nan)
    noise = np.random.default_rng(seed).normal(1.0, 0.01, n)
    columns["usd"] = np.where(ok, usd * (prompt + 3 * output) * noise, 0.0)
    columns["joules"] = np.where(ok, size * 300.0, 0.0)
    columns["quality"] = np.where(ok, 0.8, np.nan)
    order = np.argsort(finish, kind="stable")
    names = {
        "model": ("small",),
        "tenant": ("red", "green", "blue"),
        "action": ("one",),
        "instance": ("one#0",),
    }
    busy = float(np.nansum(columns["server_s"]))
    budgets = {"all": {"resource": "usd", "amount": 1.0, "spent": 1.5, "overrun": 0.5}}
    facts = {"seed": seed, "busy_s": {"one#0": busy}, "idle_j": 10.0, "budgets": budgets}
    return Result({name: values[order] for name, values in columns.items()}, names, facts, "made")
