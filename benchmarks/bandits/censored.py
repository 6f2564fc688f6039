"""Arms with a limit: a run is stopped when it has used its limit, and then gains nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apportion.core import Cost, Option, Outcome, Policy, State, catalogue
from benchmarks.bandits.regret import summary

Array = NDArray[np.float64]

ARMS = 5
LIMITS = tuple(100.0 * k for k in range(1, 11))
WORTH_USD, USD_PER_TOKEN = 0.01, 4e-6
EXPLORATION = 0.5


class World:
    """Arms with log-normal length of a whole answer and a chance that it is right; prices by the token used."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.right = self.random.uniform(0.4, 0.9, ARMS)
        self.median = self.random.uniform(100.0, 700.0, ARMS)
        self.spread = self.random.uniform(0.3, 0.8, ARMS)

    def gains(self) -> Array:
        """The expected dollars left of each pair, of shape (arms, limits), from a million draws."""
        random = np.random.default_rng(99)
        z = random.normal(size=200_000)
        rows = []
        for arm in range(ARMS):
            length = self.median[arm] * np.exp(self.spread[arm] * z)
            rows.append(
                [
                    WORTH_USD * self.right[arm] * float((length <= limit).mean())
                    - USD_PER_TOKEN * float(np.minimum(length, limit).mean())
                    for limit in LIMITS
                ]
            )
        return np.array(rows)

    def run(self, arm: int) -> tuple[float, float]:
        """The length that the answer would have, and whether it is right."""
        length = float(self.median[arm] * math.exp(self.spread[arm] * self.random.normal()))
        return length, float(self.random.random() < self.right[arm])


PAIRS = [(arm, limit) for arm in range(ARMS) for limit in LIMITS]
OFFER = [
    Option(f"{arm}@{limit:g}", WORTH_USD, Cost(usd=USD_PER_TOKEN * limit, tokens=limit))
    for arm, limit in PAIRS
]


def ours(rounds: int, seed: int) -> Array:
    """The regret of `route/censored_ucb`."""
    world = World(seed)
    gains = world.gains().ravel()
    policy = catalogue.build("route/censored_ucb", exploration=EXPLORATION)
    assert isinstance(policy, Policy)
    regret = np.empty(rounds)
    for k in range(rounds):
        state = State(float(k), OFFER, id=str(k), prices={"usd": 1.0})
        choice = policy.decide(state).choice
        assert choice is not None
        arm, limit = PAIRS[choice]
        length, right = world.run(arm)
        cut = length > limit
        used = min(length, limit)
        policy.learn(
            Outcome(
                str(k),
                "ok",
                OFFER[choice].action,
                Cost(usd=USD_PER_TOKEN * used, tokens=used),
                None if cut else right,
                censored=cut,
                state=state,
            )
        )
        regret[k] = gains.max() - gains[choice]
    return np.cumsum(regret)


def flattened(rounds: int, seed: int) -> Array:
    """UCB1 over the pairs as unrelated arms, with the same width and range."""
    world = World(seed)
    gains = world.gains().ravel()
    paid = np.array([USD_PER_TOKEN * limit for _, limit in PAIRS])
    pulls, sums = np.zeros(len(PAIRS)), np.zeros(len(PAIRS))
    regret = np.empty(rounds)
    for k in range(rounds):
        with np.errstate(divide="ignore", invalid="ignore"):
            width = (WORTH_USD + paid) * np.sqrt(EXPLORATION * math.log(max(k + 1, 2)) / pulls)
            index = np.where(pulls > 0, sums / pulls + width, np.inf)
        choice = int(index.argmax())
        arm, limit = PAIRS[choice]
        length, right = world.run(arm)
        gain = WORTH_USD * right * (length <= limit) - USD_PER_TOKEN * min(length, limit)
        pulls[choice] += 1
        sums[choice] += gain
        regret[k] = gains.max() - gains[choice]
    return np.cumsum(regret)


def at_random(rounds: int, seed: int) -> Array:
    """The regret of choosing a pair at random."""
    gains = World(seed).gains().ravel()
    return np.arange(1, rounds + 1) * float(gains.max() - gains.mean())


def measure(rounds: int, seeds: int) -> dict[str, Any]:
    """Curves of the three; regret 0 is the best pair known from the beginning."""
    rows = {
        "a random pair": at_random,
        "UCB1 over flattened pairs": flattened,
        "route/censored_ucb": ours,
    }
    found = {name: summary(np.array([play(rounds, s) for s in range(seeds)])) for name, play in rows.items()}
    ratio = found["route/censored_ucb"]["final"] / found["UCB1 over flattened pairs"]["final"]
    return {"rounds": rounds, "seeds": seeds, "rows": found, "ratio": ratio}
