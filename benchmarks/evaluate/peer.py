"""The Open Bandit Pipeline (``obp``), where it is installed: its estimators with its own regression model.

Install it aside: ``pip install --target DIR --no-deps --ignore-requires-python obp==0.5.7`` (it asks for Python below
3.11 and runs on later ones), then ``--peers DIR``. Only its estimators are loaded: its package imports plotting, data
frames and PyTorch, which they do not use.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from typing import Any

import numpy as np

from apportion.measure.off_policy import Array, Indices, Interval

_UNUSED = ("torch", "seaborn", "pandas", "matplotlib", "matplotlib.pyplot")


class PeerAbsent(Exception):
    """``obp`` is not installed, or does not run here."""


class Peer:
    """Estimates by ``obp``. Raises `PeerAbsent`."""

    def __init__(self, directory: str | None) -> None:
        if directory is not None:
            sys.path.append(directory)
        found = importlib.util.find_spec("obp")
        if found is None or found.submodule_search_locations is None:
            raise PeerAbsent("obp is not installed: see benchmarks/evaluate/peer.py.")
        put_in = {name: types.ModuleType(name) for name in _UNUSED if name not in sys.modules}
        for module in put_in.values():
            module.DataFrame = module.Tensor = module.tensor = object  # type: ignore[attr-defined]
        package = types.ModuleType("obp")
        package.__path__ = list(found.submodule_search_locations)
        sys.modules.update({**put_in, "obp": package})
        try:
            self._ope: Any = importlib.import_module("obp.ope")
        except Exception as error:
            raise PeerAbsent(f"obp does not run here: {type(error).__name__}: {error}.") from None
        finally:
            for name in put_in:  # others look for them, too
                del sys.modules[name]

    def estimates(
        self,
        context: Array,
        rewards: Array,
        chosen: Indices,
        propensities: Array,
        target: Array,
        *,
        intervals: bool,
        seed: int,
    ) -> dict[str, tuple[float, Interval | None]]:
        """Each estimator's estimate, with its bootstrapped 95% interval if ``intervals``."""
        from sklearn.linear_model import Ridge

        ope, n, k = self._ope, len(rewards), target.shape[1]
        scaled = (context - context.mean(axis=0)) / np.where(
            context.std(axis=0) > 0, context.std(axis=0), 1.0
        )
        model = ope.RegressionModel(n_actions=k, len_list=1, base_model=Ridge(alpha=1.0))
        predicted = model.fit_predict(
            context=scaled, action=chosen, reward=rewards, pscore=propensities, n_folds=5, random_state=seed
        )
        given = {
            "reward": rewards,
            "action": chosen,
            "pscore": propensities,
            "action_dist": target[:, :, None],
            "estimated_rewards_by_reg_model": predicted,
            "position": np.zeros(n, dtype=int),
        }
        found: dict[str, tuple[float, Interval | None]] = {}
        for name, estimator in (
            ("inverse propensity", ope.InverseProbabilityWeighting()),
            ("self-normalised", ope.SelfNormalizedInverseProbabilityWeighting()),
            ("direct", ope.DirectMethod()),
            ("doubly robust", ope.DoublyRobust()),
            ("doubly robust, self-normalised", ope.SelfNormalizedDoublyRobust()),
            ("doubly robust, switching at weight 10", ope.SwitchDoublyRobust(lambda_=10.0)),
        ):
            interval = None
            if intervals:
                said = estimator.estimate_interval(**given, n_bootstrap_samples=100, random_state=seed)
                low, high = (value for key, value in said.items() if "CI" in key)
                interval = Interval(float(low), float(high))
            found[name] = (float(estimator.estimate_policy_value(**given)), interval)
        return found
