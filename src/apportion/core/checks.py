"""The conformance checks that every policy passes; public, so that plugin authors run the same list.

    @pytest.mark.parametrize(("name", "check"), list(yield_checks(MyPolicy)))
    def test_conformance(name, check):
        check()

A check raises `AssertionError` with the policy, the parameters and what was expected. All draws are seeded.
"""

from __future__ import annotations

import copy
import dataclasses
import doctest
import gc
import inspect
import itertools
import json
import math
import pickle
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any, NoReturn
from unittest import mock

from apportion.core.catalogue import describe_class
from apportion.core.cost import Cost
from apportion.core.decision import Decision
from apportion.core.errors import ApportionError, ParameterError
from apportion.core.features import Features
from apportion.core.option import Option
from apportion.core.outcome import Outcome, Status
from apportion.core.policy import Policy
from apportion.core.state import State

Check = Callable[[], None]

_STATUSES: tuple[Status, ...] = ("ok", "failed", "timeout", "cancelled", "refused")


def yield_checks(cls: type[Policy], name: str | None = None) -> Iterator[tuple[str, Check]]:
    """Every check of ``cls`` as (name, function without arguments), for each set of parameters of `examples`.

    ``name`` is the catalogue's; it only appears in messages.
    """
    known_as = name or cls.__name__
    yield "docstring", lambda: check_docstring(cls, known_as)
    yield "doctest", lambda: check_doctest(cls)
    yield "final", lambda: check_final(cls)
    yield "wrong_parameters", lambda: check_wrong_parameters(cls)
    for parameters in ({}, *cls.examples()):
        shown = ",".join(f"{key}={value!r}" for key, value in parameters.items()) or "defaults"
        for check in _CHECKS:
            yield f"{check.__name__.removeprefix('check_')}[{shown}]", _bound(check, cls, parameters)


def _bound(
    check: Callable[[Callable[[], Policy]], None], cls: type[Policy], parameters: Mapping[str, Any]
) -> Check:
    def run() -> None:
        check(lambda: cls(**copy.deepcopy(dict(parameters))))

    return run


def check_docstring(cls: type[Policy], name: str) -> None:
    """The docstring explains every parameter, its complexity and its references; constraints cover the
    same.
    """
    info = describe_class(cls, name)
    _require(info.summary.endswith("."), cls, f"the first line is no sentence: {info.summary!r}")
    _require(
        cls.constraints.keys() == cls.signature().keys(),
        cls,
        f"constraints are declared for {sorted(cls.constraints)}, parameters are {sorted(cls.signature())}",
    )
    _require("Examples\n" in inspect.cleandoc(cls.__doc__ or ""), cls, "there is no Examples section")
    known = {"Parameters", "Attributes", "Complexity", "Notes", "See Also", "References", "Examples"}
    lines = inspect.cleandoc(cls.__doc__ or "").splitlines()
    for heading, rule in itertools.pairwise(lines):
        if rule and set(rule) == {"-"}:
            _require(heading in known, cls, f"unknown section {heading!r} in the docstring")


def check_doctest(cls: type[Policy]) -> None:
    """The examples in the docstring run and print what they say."""
    module = sys.modules[cls.__module__]
    runner = doctest.DocTestRunner(verbose=False)
    report: list[str] = []
    for test in doctest.DocTestFinder(recurse=False).find(cls, cls.__name__, module):
        _require(bool(test.examples), cls, "the docstring has no doctest")
        runner.run(test, out=report.append)
    _require(runner.summarize(verbose=False).failed == 0, cls, "".join(report))


def check_final(cls: type[Policy]) -> None:
    """The class is final, concrete, and takes its parameters by keyword only."""
    _require(bool(getattr(cls, "__final__", False)), cls, "it is not marked @final")
    _require(not inspect.isabstract(cls), cls, "it is abstract")
    kinds = [p.kind for key, p in inspect.signature(cls.__init__).parameters.items() if key != "self"]
    _require(all(kind is inspect.Parameter.KEYWORD_ONLY for kind in kinds), cls, "not keyword-only")


def check_wrong_parameters(cls: type[Policy]) -> None:
    """A wrong value of any parameter raises the one message template, naming parameter, class and value."""
    for key, constraint in cls.constraints.items():
        wrong = constraint.wrong()
        expected = f"The {key!r} parameter of {cls.__name__} must be {constraint}, got {wrong!r}."
        try:
            cls(**{key: wrong})
        except ParameterError as error:
            told = error.message == expected and error.field == key
            _require(told, cls, f"{error.message!r} is not {expected!r}")
        else:
            _fail(cls, f"{key}={wrong!r} was accepted")


def check_parameters(make: Callable[[], Policy]) -> None:
    """Parameters are stored unchanged under their own names, copied by clone, and shown by repr."""
    policy = make()
    given = copy.deepcopy(policy.parameters())
    play(policy, rounds=20)
    _require(policy.parameters() == given, policy, "parameters changed while it worked")
    shown = repr(policy)
    complete = all(f"{key}={value!r}" in shown for key, value in given.items())
    _require(complete, policy, f"repr hides a parameter: {shown}")
    twin = policy.clone()
    _require(type(twin) is type(policy) and twin.parameters() == given, policy, "clone lost a parameter")
    _require(play(twin) == play(make()), policy, "a clone does not behave like a new one")


def check_offers(make: Callable[[], Policy]) -> None:
    """Only what was offered is chosen: no, one, two, many options; ties; unknowns; options that come and
    go.
    """
    policy = make()
    empty = policy.decide(State(0.0, [], id="empty"))
    declined = empty.choice is None and empty.action is None and empty.id == "empty"
    _require(declined, policy, f"an empty offer gave {empty}")
    _require(empty.why == "no option was offered", policy, f"an empty offer gave as reason {empty.why!r}")
    for offer in _offers():
        for prices in ({}, {"usd": 1.0}, {"usd": 1.0, "tokens": 1e-6, "joules": 0.0}):
            state = State(1.0, offer, id="some", prices=prices)
            decision = policy.decide(state)
            _valid(policy, state, decision)
            _require(bool(decision.explain()), policy, "the decision explains nothing")


def check_inputs_unchanged(make: Callable[[], Policy]) -> None:
    """Neither decide nor learn changes what it is given, and the offer is not copied into the decision."""
    policy = make()
    generator = random.Random(3)
    for round_ in range(50):
        state = _state(generator, round_)
        before = copy.deepcopy(state)
        decision = policy.decide(state)
        _require(state == before, policy, "decide changed the state")
        _require(decision.options is state.options, policy, "the decision copied the options")
        outcome = _outcome(generator, decision, state)
        kept = copy.deepcopy(outcome)
        policy.learn(outcome)
        _require(outcome == kept and state == before, policy, "learn changed its input")


def check_reproducible(make: Callable[[], Policy]) -> None:
    """The same seed and history give the same decisions; reset goes back to the beginning."""
    policy = make()
    first = play(policy)
    _require(first == play(make()), policy, "two equal policies decided differently")
    policy.reset()
    _require(first == play(policy), policy, "after reset it is not what it was when new")


def check_order(make: Callable[[], Policy]) -> None:
    """Reordering options that do not tie changes neither the choice nor its probability."""
    generator = random.Random(5)
    for _ in range(20):
        options = _distinct(generator, 4)
        there, back = _stated(make(), options), _stated(make(), options[::-1])
        if 1.0 in there.values() or 1.0 in back.values():
            _require(there == back, make(), f"order decided between {there} and {back}")
        for action in there.keys() & back.keys():
            same = there[action] is back[action] or math.isclose(there[action] or 0.0, back[action] or 0.0)
            _require(same, make(), f"the probability of {action} depends on the order")


def check_isolated(make: Callable[[], Policy]) -> None:
    """Nothing outside is touched by decide and learn: no global random, clock, file, socket, process."""
    policy = make()
    with watched() as touched:
        play(policy, rounds=30)
    _require(not touched, policy, f"decide or learn touched {sorted(touched)}")


def check_learns_anything(make: Callable[[], Policy]) -> None:
    """Outcomes may be failures, late, doubled, out of order, unknown, or of decisions it never made."""
    policy = make()
    generator = random.Random(7)
    states = [_state(generator, round_) for round_ in range(40)]
    decisions = [policy.decide(state) for state in states]
    outcomes = [_outcome(generator, *both) for both in zip(decisions, states, strict=True)]
    outcomes += [copy.deepcopy(outcome) for outcome in outcomes[::3]]
    outcomes += [Outcome("never-decided", status, "nobody", Cost()) for status in _STATUSES]
    outcomes += [Outcome("", "ok", None, Cost(usd=0.0), quality=None, latency_s=None, censored=True)]
    generator.shuffle(outcomes)
    for outcome in outcomes:
        policy.learn(outcome)
    state = _state(generator, 1000)
    _valid(policy, state, policy.decide(state))


def check_saved(make: Callable[[], Policy]) -> None:
    """State survives JSON and pickle in mid-course and continues identically."""
    policy = make()
    play(policy, rounds=30, seed=1)
    restored = make()
    restored.load(json.loads(json.dumps(policy.save(), allow_nan=False)))
    thawed = pickle.loads(pickle.dumps(policy))
    expected = play(policy, rounds=30, seed=2)
    _require(play(restored, rounds=30, seed=2) == expected, policy, "after save and load it differs")
    _require(play(thawed, rounds=30, seed=2) == expected, policy, "after pickling it differs")
    try:
        policy.load({"method": "Another", "learned": {}})
    except ApportionError:
        return
    _fail(policy, "it loaded the saved state of another method")


def check_bounded(make: Callable[[], Policy]) -> None:
    """Memory stays bounded over a long run in which actions and ids never repeat."""
    policy = make()
    sizes = []
    for stop in (10_000, 20_000):
        for round_ in range(stop - 10_000, stop):
            offer = [Option(f"{round_}-{k}", 0.01 * k, Cost(usd=0.001 * k), load=0.1 * k) for k in range(2)]
            state = State(float(round_), offer, id=str(round_), prices={"usd": 1.0})
            decision = policy.decide(state)
            if round_ % 2:
                policy.learn(Outcome(decision.id, "ok", decision.action, Cost(usd=0.001), 0.5, state=state))
        sizes.append(len(pickle.dumps(policy)))
    _require(sizes[1] <= 1.1 * sizes[0] + 1000, policy, f"state grew from {sizes[0]} to {sizes[1]} bytes")


def check_probabilities(make: Callable[[], Policy]) -> None:
    """Probabilities are in (0, 1] and are the frequencies that are observed over a seeded run."""
    policy = make()
    rounds = 4000
    offer = _distinct(random.Random(11), 4)
    state = State(0.0, offer, prices={"usd": 1.0})
    seen: Counter[int] = Counter()
    stated: dict[int, float] = {}
    for _ in range(rounds):
        decision = policy.decide(state)
        if decision.probability is None or decision.choice is None:
            return
        seen[decision.choice] += 1
        if stated.setdefault(decision.choice, decision.probability) != decision.probability:
            return
    if len(seen) > 1 and all(probability == 1.0 for probability in stated.values()):
        return
    for choice, probability in stated.items():
        spread = math.sqrt(probability * (1 - probability) / rounds)
        _require(
            abs(seen[choice] / rounds - probability) <= 5 * spread + 1e-12,
            policy,
            f"option {choice} has probability {probability:.4f} but frequency {seen[choice] / rounds:.4f}",
        )


_CHECKS: tuple[Callable[[Callable[[], Policy]], None], ...] = (
    check_parameters,
    check_offers,
    check_inputs_unchanged,
    check_reproducible,
    check_order,
    check_isolated,
    check_learns_anything,
    check_saved,
    check_bounded,
    check_probabilities,
)


def play(policy: Policy, rounds: int = 100, seed: int = 0) -> list[tuple[object, ...]]:
    """Let ``policy`` decide and learn over a seeded course of varied offers; what it decided."""
    generator = random.Random(seed)
    course: list[tuple[object, ...]] = []
    for round_ in range(rounds):
        state = _state(generator, round_)
        decision = policy.decide(state)
        _valid(policy, state, decision)
        course.append((decision.choice, decision.action, decision.probability, decision.worths))
        if generator.random() < 0.8:
            policy.learn(_outcome(generator, decision, state))
    return course


@contextmanager
def watched() -> Iterator[set[str]]:
    """Collects the names of what is called inside that reaches out: clocks, files, sockets, global
    randomness.

    Watches by the interpreter's profile hook, so that it also sees functions that a module imported by name.
    """
    touched: set[str] = set()

    def watch(frame: FrameType, event: str, called: Any) -> None:
        if event == "c_call":
            owner = getattr(called, "__self__", None)
            module = getattr(called, "__module__", None)
            if (
                owner is _GLOBAL_RANDOM
                or module in _OUTSIDE
                or (isinstance(owner, type) and called.__name__ in ("now", "utcnow", "today"))
            ):
                touched.add(getattr(called, "__qualname__", repr(called)))
        elif event == "call" and frame.f_globals.get("__name__", "").partition(".")[0] in _OUTSIDE:
            touched.add(f"{frame.f_globals['__name__']}.{frame.f_code.co_qualname}")

    before = sys.getprofile()
    numpy_random = sys.modules.get("numpy.random")
    with ExitStack() as stack:
        for name in ("random", "rand", "randn", "randint", "choice", "normal", "uniform", "shuffle", "seed"):
            if hasattr(numpy_random, name):
                spy = _spy(getattr(numpy_random, name), f"numpy.random.{name}", touched)
                stack.enter_context(mock.patch.object(numpy_random, name, spy))
        collecting = gc.isenabled()
        gc.disable()  # callbacks of the collector (hypothesis has one) are not the policy's doing
        sys.setprofile(watch)
        try:
            yield touched
        finally:
            sys.setprofile(before)
            if collecting:
                gc.enable()


_GLOBAL_RANDOM = random.random.__self__  # type: ignore[attr-defined]
_OUTSIDE = frozenset(
    {
        "time",
        "posix",
        "nt",
        "io",
        "_io",
        "socket",
        "_socket",
        "ssl",
        "subprocess",
        "_posixsubprocess",
        "asyncio",
    }
)


def _spy(original: Callable[..., Any], name: str, touched: set[str]) -> Callable[..., Any]:
    def spy(*positional: Any, **named: Any) -> Any:
        touched.add(name)
        return original(*positional, **named)

    return spy


def _valid(policy: Policy, state: State, decision: Decision) -> None:
    """Everything that must hold of any decision on any state."""
    options = state.options
    _require(decision.id == state.id, policy, f"the decision's id is {decision.id!r}, not {state.id!r}")
    kept = decision.options is options and decision.prices is state.prices
    _require(kept, policy, "options or prices were copied")
    worths = decision.worths
    _require(len(worths) == len(options), policy, f"{len(worths)} worths for {len(options)} options")
    _require(
        all(worth is None or math.isfinite(worth) for worth in decision.worths),
        policy,
        f"worths {decision.worths}",
    )
    _require(bool(decision.why), policy, "it does not say why")
    if decision.choice is None:
        _require(decision.action is None, policy, f"it chose nothing but the action is {decision.action!r}")
        return
    _require(0 <= decision.choice < len(options), policy, f"{decision.choice} was not offered")
    chosen = options[decision.choice]
    _require(decision.action == chosen.action, policy, f"choice {decision.choice} is not {decision.action!r}")
    chance = decision.probability
    _require(chance is None or 0.0 < chance <= 1.0, policy, f"the probability is {chance!r}")


def _stated(policy: Policy, options: list[Option]) -> dict[str, float | None]:
    """The actions that ``policy`` chooses of one offer over some rounds, with their stated probabilities."""
    state = State(0.0, options, prices={"usd": 1.0})
    decisions = [policy.decide(state) for _ in range(40)]
    return {decision.action: decision.probability for decision in decisions if decision.action is not None}


def _distinct(generator: random.Random, n: int) -> list[Option]:
    """``n`` options that differ in worth, load and weight."""
    worths, loads = generator.sample(range(1, 100), n), generator.sample(range(100), n)
    return [
        Option(f"option-{k}", 0.01 * worths[k], Cost(usd=0.001), load=0.01 * loads[k], weight=1.0 + k)
        for k in range(n)
    ]


def _offers() -> Iterator[list[Option]]:
    """Offers at the edges: one, equal, unloaded, unknown, extreme, many, one action twice."""
    plain = Option("plain", 0.01, Cost(usd=0.001, tokens=100.0), load=0.0)
    yield [plain]
    yield [dataclasses.replace(plain, action=f"equal-{k}") for k in range(3)]
    yield [plain, plain]
    yield [dataclasses.replace(plain, action=f"unknown-{k}", cost=Cost(), load=None) for k in range(2)]
    yield [dataclasses.replace(plain, action="unknown", cost=Cost(), load=None), plain]
    yield [dataclasses.replace(plain, action=f"drained-{k}", weight=0.0) for k in range(2)]
    yield [dataclasses.replace(plain, action=f"full-{k}", load=math.inf, weight=1e300) for k in range(2)]
    yield [dataclasses.replace(plain, action="dear", cost=Cost(usd=1e12, tokens=1e18)), plain]
    yield [dataclasses.replace(plain, action="worthless", value=-5.0)]
    yield [dataclasses.replace(plain, action=f"many-{k}", value=0.01 * k, load=0.01 * k) for k in range(200)]


def _state(generator: random.Random, round_: int) -> State:
    """A varied state: options that appear and vanish, ties, unknown costs and loads, changing prices."""
    present = [k for k in range(6) if generator.random() < 0.6]
    options = [
        Option(
            f"option-{k}",
            generator.choice((0.0, 0.01, 0.01 * k, generator.random())),
            generator.choice((Cost(usd=0.001 * k, tokens=100.0 * k), Cost(usd=generator.random()), Cost())),
            load=generator.choice((None, 0.0, 0.5, generator.random() * 2.0)),
            weight=generator.choice((0.0, 1.0, 1.0, generator.random() * 10.0)),
        )
        for k in present
    ]
    prices = generator.choice(({}, {"usd": 1.0}, {"usd": 1.0 + generator.random(), "tokens": 1e-6}))
    for option in options:
        option.quality = generator.choice((None, generator.random()))
        option.quality_sd = None if option.quality is None else generator.choice((None, 0.1))
    return State(
        10.0 * round_,
        options,
        id=f"decision-{round_}",
        request={"tokens": round_},
        prices=prices,
        features=_features(generator),
    )


def _features(generator: random.Random) -> Features | None:
    """None, counts alone, or counts and an embedding (of 5 and 8 dimensions)."""
    lexical = tuple(generator.random() for _ in range(5))
    vector = [generator.gauss(0.0, 1.0) for _ in range(8)]
    length = math.sqrt(sum(x * x for x in vector))
    return generator.choice((None, Features(lexical), Features(lexical, tuple(x / length for x in vector))))


def _outcome(generator: random.Random, decision: Decision, state: State | None = None) -> Outcome:
    return Outcome(
        decision.id,
        generator.choice(_STATUSES),
        decision.action,
        generator.choice((Cost(usd=generator.random()), Cost())),
        quality=generator.choice((None, 0.0, 1.0, generator.random())),
        latency_s=generator.choice((None, generator.random())),
        censored=generator.random() < 0.2,
        state=state if generator.random() < 0.8 else None,
        revised=generator.random() < 0.1,
    )


def _require(holds: bool, subject: Policy | type[Policy], otherwise: str) -> None:
    if not holds:
        _fail(subject, otherwise)


def _fail(subject: Policy | type[Policy], message: str) -> NoReturn:
    raise AssertionError(f"{subject if isinstance(subject, Policy) else subject.__name__}: {message}")
