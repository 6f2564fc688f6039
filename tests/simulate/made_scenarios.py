"""A small scenario and trace, and functions that workers of a pool can be sent."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from apportion.core.budget import Budget
from apportion.core.errors import ApportionError
from apportion.measure.price import TokenPrice
from apportion.simulate.profile import Profile
from apportion.simulate.result import OK, Result, empty
from apportion.simulate.scenario import Choice, Endpoint, Model, Route, Scenario
from apportion.simulate.trace import Trace, labels


def profile(name: str, factor: float = 1.0, **more: Any) -> Profile:
    seconds = tuple(factor * x for x in (0.01, 0.016, 0.07))
    return Profile(
        name=name,
        tokens=(1.0, 256.0, 2048.0),
        seconds=seconds,
        decode_attention_s=1e-7 * factor,
        slots=32,
        **more,
    )


def price(into: float, out: float) -> TokenPrice:
    return TokenPrice.of(input_usd_per_mtok=into, output_usd_per_mtok=out)


def scenario(policy: str = "route/priced", **more: Any) -> Scenario:
    return Scenario(
        name=policy,
        endpoints=(
            Endpoint(name="big", profile=profile("big", 2.0), slots=32),
            Endpoint(name="small", profile=profile("small"), slots=32),
        ),
        models=(
            Model(
                name="chat",
                routes=(
                    Route(endpoint="big", model="70b", price=price(1, 3), quality=0.9),
                    Route(endpoint="small", model="8b", price=price(0.1, 0.2), quality=0.7),
                ),
                policy=Choice(policy),
                worth_usd=0.01,
            ),
        ),
        budgets=(Budget(name="all", resource="usd", amount=5.0),),
        **more,
    )


def trace(n: int = 200, seed: int = 0, gap_s: float = 0.3) -> Trace:
    generator = np.random.default_rng(seed)
    return Trace(
        np.cumsum(generator.exponential(gap_s, n)),
        generator.integers(64, 2000, n).astype(np.int32),
        generator.integers(1, 120, n).astype(np.int32),
        model=labels(["chat"] * n),
        tenant=labels(["red" if i % 3 else "green" for i in range(n)]),
        name="made",
    )


def fake(given: Scenario, work: Trace, seed: int = 0, sink: Any = None) -> Result:
    """A run without an engine: everybody takes as long as the first endpoint's first constant says, and some luck."""
    n = len(work)
    own = given.endpoints[0].profile
    assert own is not None
    luck = np.random.default_rng(seed).gamma(4.0, 0.25, n)
    columns = empty(n)
    columns["request"] = np.arange(n)
    columns["arrival_s"] = work.arrival_s
    columns["prompt_tokens"], columns["output_tokens"] = work.prompt_tokens, work.output_tokens
    columns["status"][:] = OK
    columns["tries"][:] = 1
    columns["first_token_s"] = work.arrival_s + 10 * own.seconds[0] * luck
    columns["finish_s"] = columns["first_token_s"] + own.seconds[0] * (work.output_tokens - 1)
    columns["usd"] = work.prompt_tokens * 1e-6
    result = Result(columns, {}, {"notes": []})
    if sink is not None:
        for part in range(0, n, 64):
            sink.add({name: values[part : part + 64] for name, values in columns.items()})
        return Result(empty(0), {}, result.facts)
    return result


def square(common: int, job: int) -> int:
    return common + job * job


def failing(common: int, job: int) -> int:
    if job == 3:
        raise ApportionError("It broke.", field="there", fix="Mend it.")
    if job == 5:
        raise ZeroDivisionError("by nought")
    if job == 7:
        os._exit(1)
    return job


def slow(common: str, job: int) -> int:
    (Path(common) / str(os.getpid())).touch()
    time.sleep(60.0)
    return job


def failing_beside_slow(common: str, job: int) -> int:
    """The first one fails as soon as the other has begun."""
    if job:
        return slow(common, job)
    while not list(Path(common).iterdir()):
        time.sleep(0.01)
    raise ApportionError("It broke.")


def slow_but_the_first(common: str, job: int) -> int:
    """The first one is done as soon as the other has begun."""
    if job:
        return slow(common, job)
    while not list(Path(common).iterdir()):
        time.sleep(0.01)
    return job
