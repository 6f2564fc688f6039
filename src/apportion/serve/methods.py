"""The methods that a model's configuration names, built or taken over from the configuration before.

`serve` knows no method: it finds each by name in the catalogue and holds it to its family's contract.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, TypeVar

from apportion.core import catalogue
from apportion.core.guard import Guard
from apportion.core.method import Method
from apportion.core.policy import Policy
from apportion.core.predictor import LatencyPredictor, LengthPredictor, QualityPredictor
from apportion.core.strategy import Strategy
from apportion.serve import artefact
from apportion.serve.config.schema import Model, PolicyChoice

M = TypeVar("M", bound=Method)

_LATENCY: Final = "latency/load"
_LENGTH: Final = "length/linear"


class Methods:
    """Everything that decides or predicts for one model. ``kept`` are those of the configuration before."""

    __slots__ = (
        "_built",
        "_encoder",
        "admit",
        "baseline",
        "encodes",
        "guard",
        "latency",
        "length",
        "policy",
        "quality",
        "reads",
        "shadow",
        "strategy",
    )

    def __init__(
        self,
        model: Model,
        kept: Methods | None = None,
        *,
        waiting_counts: bool = False,
        encoder: str | None = None,
        queued: bool = False,
        logged: bool = False,
    ) -> None:
        self._built: dict[str, tuple[str, Method]] = {}
        self._encoder = encoder
        before = kept._built if kept is not None else {}
        self.policy: Policy = self._method("policy", model.policy, Policy, before)
        self.baseline: Policy = self._method("baseline", model.baseline, Policy, before)
        self.shadow = self._optional("shadow", model.shadow, Policy, before)
        self.admit = self._optional("admit", model.admit, Policy, before)
        self.strategy = self._optional("strategy", model.strategy, Strategy, before)
        self.guard = self._optional("guard", model.guard, Guard, before)
        predict = model.predict
        self.quality = self._fitted("quality", predict.quality, QualityPredictor, before)
        self.length = self._fitted("length", predict.length, LengthPredictor, before)
        if self.length is None and queued:  # who is short is learned as answers come
            self.length = self._method("length", PolicyChoice(name=_LENGTH), LengthPredictor, before)
        # Waiting is predicted where it has a price, or where somebody is waited for.
        self.latency = None
        if waiting_counts:
            self.latency = self._method("latency", PolicyChoice(name=_LATENCY), LatencyPredictor, before)
        deciding = (self.policy, self.shadow, self.admit)
        seeing = any(policy is not None and policy.wants_features for policy in deciding)
        reading = (self.quality, self.length, self.strategy, self.guard)
        retried = model.feedback.retry_s > 0.0 or logged
        shows = model.examples is not None
        self.reads = seeing or retried or shows or any(method is not None for method in reading)
        """Whether somebody looks at what a request says."""
        self.encodes = shows or seeing or self.quality is not None or self.strategy is not None
        """Whether its meaning is looked at too."""

    def by_role(self) -> Mapping[str, Method]:
        """Everything here, by its role."""
        return {role: method for role, (_, method) in self._built.items()}

    def _optional(
        self,
        role: str,
        choice: PolicyChoice | None,
        contract: type[M],
        before: Mapping[str, tuple[str, Method]],
    ) -> M | None:
        return None if choice is None else self._method(role, choice, contract, before)

    def _method(
        self, role: str, choice: PolicyChoice, contract: type[M], before: Mapping[str, tuple[str, Method]]
    ) -> M:
        key = json.dumps([choice.name, choice.parameters], sort_keys=True, default=repr)
        old_key, old = before.get(role, ("", None))
        found = (
            old if old_key == key and old is not None else catalogue.build(choice.name, **choice.parameters)
        )
        return self._keep(role, key, found, contract)

    def _fitted(
        self,
        role: Literal["quality", "length"],
        file: str | None,
        contract: type[M],
        before: Mapping[str, tuple[str, Method]],
    ) -> M | None:
        """The predictor that is in a file of `apportion fit`; what it has learned since is kept while the file is."""
        if file is None:
            return None
        path = Path(file)
        stamp = path.stat().st_mtime_ns if path.exists() else 0
        key = f"{file}@{stamp}"
        old_key, old = before.get(role, ("", None))
        found = (
            old if old_key == key and old is not None else artefact.load(path, role, encoder=self._encoder)[0]
        )
        return self._keep(role, key, found, contract)

    def _keep(self, role: str, key: str, found: Method, contract: type[M]) -> M:
        if not isinstance(found, contract):
            raise TypeError(f"{type(found).__name__} is no {contract.__name__}")
        self._built[role] = (key, found)
        return found


def models_of(file: Method) -> frozenset[str]:
    """The model names that a fitted predictor knows, as far as it says."""
    return frozenset(getattr(file, "models", ()))
