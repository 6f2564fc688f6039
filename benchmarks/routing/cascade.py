"""What evidence from cheaper answers adds: ask cheap models first, stop as soon as it is likely enough to be right.

The data have no answers, only whether they were right and how long they were, so agreement is emulated. Two right
answers agree; a right and a wrong one do not; two wrong ones agree with the probability that was measured for the
same kind of answer (`Data.agreement`): each wrong model falls for the question's popular mistake or makes its own.
Every call is paid for.

The cascade asks a few cheap models in a fixed order and may go on to the strongest; it may also begin with any single
model as plain routing does. Before each call it compares what it has (the probability that the answer with most votes
is right, by logistic regression on predictions, votes and lengths) with what going on is worth after paying (by
regression of what became of it, from the last stage backwards [Longstaff and Schwartz 2001]). All of it, the order
too, is learned on the training folds; at the first level the predictions are held out.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from apportion.predict.quality._arrays import logit, sigmoid
from apportion.predict.quality._fit import logistic
from benchmarks.routing.curve import RATES, Sweep, folds
from benchmarks.routing.data import Array, Data
from benchmarks.routing.predicting import HeldOut

CASCADES = ("gsm8k_multi_model", "llmrouter_9_models", "wildbench_scores")
SWEPT = RATES[::3]
CHEAP = 0.3
"""Models of a committee cost at most this share of the best single model."""
CANDIDATES = 4
TRIED_RATES = (1.0, 3.0, 10.0, 30.0)
"""Exchange rates at which orders are compared on the training folds."""


class Stage(NamedTuple):
    """After some calls: evidence for each request (n, width), whether the answer held is right (n), what was paid."""

    evidence: Array
    right: Array
    paid: Array


def answers(data: Data, seed: int) -> Array:
    """An answer's identity (n, m): 0 right, 1 the popular mistake, 2 and more a mistake of its own; where answers
    cannot be compared all differ.
    """
    random = np.random.default_rng(seed)
    n, m = data.quality.shape
    alone = np.broadcast_to(np.arange(2, m + 2), (n, m))
    if data.agreement is None:
        return alone.astype(float)
    popular = random.random((n, m)) < np.sqrt(np.nan_to_num(data.agreement))[:, None]
    found = np.where(data.quality >= 1.0, 0, np.where(popular, 1, alone))
    return np.where(np.isnan(data.agreement)[:, None], alone, found).astype(float)


def stages(
    data: Data, order: tuple[int, ...], said: Array, p: Array, surprise: Array | None, tested: Array
) -> list[Stage]:
    """What is known after each call of ``order``. The answer held is that with most votes, of several the latest;
    where answers are ``tested`` (n) it is the best so far.
    """
    n = len(data.quality)
    base = np.column_stack((logit(p[:, list(order)]), logit(p[:, [data.best]])))
    found = []
    paid = np.zeros(n)
    for count in range(1, len(order) + 1):
        called = list(order[:count])
        votes = (said[:, called][:, :, None] == said[:, called][:, None, :]).sum(2)
        # With equal votes the later one, which costs more and on the average knows more.
        held = count - 1 - votes[:, ::-1].argmax(1)
        held = np.where(tested, data.quality[:, called].argmax(1), held)
        most = votes.max(1)
        paid = paid + data.cost[:, order[count - 1]]
        columns = [base, *[(most == k).astype(float)[:, None] for k in range(2, count + 1)]]
        columns.append(np.take_along_axis(base, held[:, None], 1))
        if surprise is not None:
            columns.append(surprise[:, called])
        right = np.take_along_axis(data.quality[:, called], held[:, None], 1)[:, 0]
        if tested.any():
            columns.append(np.column_stack((tested, tested * right)))
        found.append(Stage(np.hstack(columns), right, paid.copy()))
    return found


class _Line:
    """A ridge or logistic regression on standardised columns."""

    def __init__(self, x: Array, y: Array, logistic_: bool) -> None:
        self.middle, spread = x.mean(0), x.std(0)
        self.scale = np.where(spread > 1e-9, spread, 1.0)
        full = self._rows(x)
        self.logistic = logistic_
        if logistic_:
            self.weights = logistic(full, y[:, None], np.zeros((1, full.shape[1])), 3.0)[0]
        else:
            penalty = 3.0 * np.eye(full.shape[1])
            penalty[0, 0] = 1e-6
            self.weights = np.linalg.solve(full.T @ full + penalty, full.T @ y)

    def _rows(self, x: Array) -> Array:
        return np.hstack((np.ones((len(x), 1)), (x - self.middle) / self.scale))

    def __call__(self, x: Array) -> Array:
        found = self._rows(x) @ self.weights
        return sigmoid(found) if self.logistic else np.asarray(found)


class Rule:
    """The cascade of one order at one exchange rate, learned from ``train`` rows."""

    def __init__(
        self, every: list[Stage], best: Array, best_cost: Array, train: Array, right: list[Any]
    ) -> None:
        self.every, self.best, self.best_cost, self.train, self.right = every, best, best_cost, train, right

    def outcome(self, rate: float) -> tuple[Array, Array]:
        """What became of each request if it was begun: quality and all that was paid."""
        train, last = self.train, len(self.every) - 1
        strong = rate * self.best - self.best_cost
        value, quality, cost = strong, self.best, self.every[last].paid + self.best_cost
        for stage in range(last, -1, -1):
            here = self.every[stage]
            on = _Line(here.evidence[train], value[train], logistic_=False)(here.evidence)
            stop = rate * self.right[stage](here.evidence) >= on
            value = np.where(stop, rate * here.right, value)
            quality = np.where(stop, here.right, quality)
            cost = np.where(stop, here.paid, cost)
            if stage:
                value = value - (here.paid - self.every[stage - 1].paid)
        return quality, cost


def measure_cascade(data: Data, held: HeldOut, seed: int) -> dict[str, Sweep]:
    """Curves of cascades by what they see of an answer, as far as the data have it. The last is a bound: a check that
    is never wrong, for every request.
    """
    n, m = data.quality.shape
    alone = np.broadcast_to(np.arange(m), (n, m)).astype(float)
    never, always = np.zeros(n, bool), np.ones(n, bool)
    found = {}
    if data.length is not None:
        found["lengths"] = _cascade(data, held, alone, never, seed)
    if data.agreement is not None:
        found["agreement"] = _cascade(data, held, answers(data, seed), never, seed)
    if data.agreement is not None and data.length is not None:
        loose = replace(data, agreement=np.where(np.isnan(data.agreement), np.nan, 0.2))
        found["agreement, 0.2"] = _cascade(data, held, answers(loose, seed), never, seed)
    if data.testable is not None:
        found["agreement, code tested"] = _cascade(
            data, held, answers(data, seed), data.testable.astype(bool), seed
        )
    found["every answer checked"] = _cascade(data, held, alone, always, seed)
    return found


def _cascade(data: Data, held: HeldOut, said: Array, tested: Array, seed: int) -> Sweep:
    n = len(data.quality)
    place = folds(n, seed)
    p = held.quality["mixture"]
    unit = data.cost[:, data.best].mean()
    surprise = None
    if data.length is not None:
        surprise = np.log(np.maximum(data.cost, 1e-12)) - np.log(np.maximum(held.expected_cost, 1e-12))
    priced = replace(data, cost=data.cost / unit)
    expected = held.expected_cost / unit
    quality = np.empty((len(SWEPT), n))
    cost = np.empty_like(quality)
    for fold in np.unique(place):
        train, test = np.flatnonzero(place != fold), np.flatnonzero(place == fold)
        rule = _best_order(priced, said, p, surprise, tested, train)
        first = np.column_stack((logit(p), expected))
        for number, rate in enumerate(SWEPT):
            ended, paid = rule.outcome(rate)
            worth = rate * ended - paid
            begin = _Line(first[train], worth[train], logistic_=False)(first[test])
            net = rate * p[test] - expected[test]
            single = net.argmax(1)
            direct = net.max(1) > begin
            quality[number, test] = np.where(direct, data.quality[test, single], ended[test])
            cost[number, test] = np.where(direct, priced.cost[test, single], paid[test])
    return Sweep(quality, cost, data.quality[:, data.best], priced.cost[:, data.best])


def _best_order(data: Data, said: Array, p: Array, surprise: Array | None, tested: Array, train: Any) -> Rule:
    """Of the orders of one to three of the cheap models, cheapest first, that worth most on the training rows."""
    mean_cost, mean_quality = data.cost[train].mean(0), data.quality[train].mean(0)
    cheap = [m for m in range(len(mean_cost)) if mean_cost[m] <= CHEAP and m != data.best]
    promising = sorted(cheap, key=lambda m: -mean_quality[m] + 0.5 * mean_cost[m])[:CANDIDATES]
    promising.sort(key=lambda m: mean_cost[m])
    best, found = -np.inf, None
    for size in (1, 2, 3):
        for order in itertools.combinations(promising, size):
            every = stages(data, order, said, p, surprise, tested)
            right = [_Line(one.evidence[train], one.right[train], logistic_=True) for one in every]
            strong = data.quality[:, data.best]
            rule = Rule(every, strong, data.cost[:, data.best], train, right)
            worth = 0.0
            for rate in TRIED_RATES:
                ended, paid = rule.outcome(rate)
                worth += float((rate * ended - paid)[train].mean()) / rate
            if worth > best:
                best, found = worth, rule
    if found is None:
        raise ValueError(f"{data.name}: no model costs less than {CHEAP:.0%} of the best")
    return found
