"""The base of everything in the catalogue: parameters that are stored, checked, cloned, shown and saved."""

from __future__ import annotations

import copy
import inspect
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

from apportion.core.errors import ParameterError, SavedStateError


class Constraint(ABC):
    """What a parameter may be; ``str()`` of it completes the sentence "must be ..."."""

    @abstractmethod
    def allows(self, value: object) -> bool:
        """Whether ``value`` is allowed."""

    @abstractmethod
    def wrong(self) -> object:
        """Some value that is not allowed (for the conformance checks)."""

    @abstractmethod
    def __str__(self) -> str: ...

    def __or__(self, other: Constraint) -> AnyOf:
        return AnyOf(self, other)


class Interval(Constraint):
    """A number of type ``kind`` (int or float) between ``low`` and ``high``.

    ``closed`` says which ends belong to it: "both", "left", "right" or "neither". NaN never does, nor do
    booleans.
    """

    def __init__(
        self,
        kind: type[int] | type[float],
        low: float = -math.inf,
        high: float = math.inf,
        closed: str = "both",
    ) -> None:
        self.kind, self.low, self.high, self.closed = kind, low, high, closed

    def allows(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.kind is int else (int, float)):
            return False
        above = value >= self.low if self.closed in ("both", "left") else value > self.low
        below = value <= self.high if self.closed in ("both", "right") else value < self.high
        return above and below

    def wrong(self) -> object:
        return math.nan

    def __str__(self) -> str:
        left = "[" if self.closed in ("both", "left") and self.low > -math.inf else "("
        right = "]" if self.closed in ("both", "right") and self.high < math.inf else ")"
        noun = "an integer" if self.kind is int else "a number"
        if self.low == -math.inf and self.high == math.inf:
            return noun
        return f"{noun} in {left}{self.low:g}, {self.high:g}{right}"


class OneOf(Constraint):
    """One of a few given values."""

    def __init__(self, *values: object) -> None:
        self.values = values

    def allows(self, value: object) -> bool:
        return any(type(value) is type(v) and value == v for v in self.values)

    def wrong(self) -> object:
        return "not one of them"

    def __str__(self) -> str:
        return " or ".join(repr(v) for v in self.values)


class Kind(Constraint):
    """An object of one of the given classes."""

    def __init__(self, *kinds: type) -> None:
        self.kinds = kinds

    def allows(self, value: object) -> bool:
        return isinstance(value, self.kinds) and not (isinstance(value, bool) and bool not in self.kinds)

    def wrong(self) -> object:
        return object()

    def __str__(self) -> str:
        return " or ".join(f"of type {kind.__name__}" for kind in self.kinds)


class MappingOf(Constraint):
    """A mapping from strings to values that ``values`` allows."""

    def __init__(self, values: Constraint) -> None:
        self.values = values

    def allows(self, value: object) -> bool:
        return isinstance(value, Mapping) and all(
            isinstance(key, str) and self.values.allows(item) for key, item in value.items()
        )

    def wrong(self) -> object:
        return {"some": self.values.wrong()}

    def __str__(self) -> str:
        return f"a mapping from names to values that are each {self.values}"


class AnyOf(Constraint):
    """What at least one of several constraints allows."""

    def __init__(self, *choices: Constraint) -> None:
        self.choices = choices

    def allows(self, value: object) -> bool:
        return any(choice.allows(value) for choice in self.choices)

    def wrong(self) -> object:
        return object()

    def __str__(self) -> str:
        return " or ".join(str(choice) for choice in self.choices)


def check_parameters(owner: str, constraints: Mapping[str, Constraint], values: Mapping[str, object]) -> None:
    """Raise `ParameterError` for the first of ``values`` that its constraint does not allow."""
    for name, value in values.items():
        constraint = constraints.get(name)
        if constraint is not None and not constraint.allows(value):
            raise ParameterError(
                f"The {name!r} parameter of {owner} must be {constraint}, got {value!r}.", field=name
            )


class Method(ABC):
    """A method: keyword-only constructor parameters (which are also its configuration keys) and learned
    state.

    A final subclass declares ``constraints`` for every parameter; its constructor stores each parameter
    unchanged under its own name and ends with ``self.start()``, which checks them and calls `reset`; `reset`
    sets every attribute that is learned.
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {}

    @abstractmethod
    def reset(self) -> None:
        """Forget what was learned: back to what the constructor left."""

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """A few parameter sets for the common tests, with values other than the defaults."""
        return ()

    @classmethod
    def signature(cls) -> Mapping[str, inspect.Parameter]:
        """The constructor's parameters by name, in order."""
        found = inspect.signature(cls.__init__).parameters
        return {name: p for name, p in found.items() if name != "self" and p.kind is p.KEYWORD_ONLY}

    def parameters(self) -> dict[str, Any]:
        """The value of every constructor parameter, by name."""
        return {name: getattr(self, name) for name in type(self).signature()}

    def start(self) -> None:
        """Check every parameter against ``constraints``, then `reset`; raises `ParameterError`."""
        check_parameters(type(self).__name__, self.constraints, self.parameters())
        self.reset()

    def clone(self) -> Self:
        """A new one with the same parameters and nothing learned."""
        return type(self)(**copy.deepcopy(self.parameters()))

    def save(self) -> dict[str, Any]:
        """What was learned (the state of the random generator too), as an object that JSON can carry."""
        names = type(self).signature()
        learned = {name: _encode(name, value) for name, value in vars(self).items() if name not in names}
        return {"method": type(self).__name__, "learned": learned}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Continue from what `save` returned; raises `SavedStateError` if it is another method's."""
        fresh = vars(self).keys() - type(self).signature().keys()
        learned = saved.get("learned")
        if saved.get("method") != type(self).__name__ or not isinstance(learned, Mapping):
            raise SavedStateError(
                f"The saved state is of {saved.get('method')!r}, not of {type(self).__name__!r}.",
                field="method",
            )
        if learned.keys() != fresh:
            raise SavedStateError(
                f"The saved state of {type(self).__name__} has {sorted(learned)}, expected {sorted(fresh)}.",
                field="learned",
                fix="It was written by another version; start without it.",
            )
        for name, value in learned.items():
            setattr(self, name, _decode(value))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.parameters().items())
        return f"{type(self).__name__}({shown})"


_RANDOM = "random.Random"


def _encode(name: str, value: Any) -> Any:
    if isinstance(value, random.Random):
        version, internal, gauss = value.getstate()
        return {_RANDOM: [version, list(internal), gauss]}
    if isinstance(value, Mapping):
        return {str(key): _encode(f"{name}.{key}", item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(name, item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise SavedStateError(
        f"The learned attribute {name!r} is a {type(value).__name__}, which JSON cannot carry.",
        field=name,
        fix="Override save() and load().",
    )


def _decode(value: Any) -> Any:
    if isinstance(value, Mapping):
        if value.keys() == {_RANDOM}:
            version, internal, gauss = value[_RANDOM]
            generator = random.Random()
            generator.setstate((version, tuple(internal), gauss))
            return generator
        return {key: _decode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_decode(item) for item in value]
    return value
