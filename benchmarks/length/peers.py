"""What is compared with: S310's classifier by its authors' recipe on XGBoost, and the longest prompt first."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt

from apportion.measure.tokens import estimate_tokens

Floats = npt.NDArray[np.float64]

VERBS = [
    "what",
    "write",
    "explain",
    "summarize",
    "how",
    "list",
    "implement",
    "compare",
    "describe",
    "generate",
    "why",
    "define",
]
CODE = {
    *("code", "function", "def", "class", "script", "program"),
    *("implement", "algorithm", "debug", "refactor", "import", "variable"),
}
FORMAT = (
    "list",
    "table",
    "bullet",
    "step by step",
    "enumerate",
    "outline",
    "numbered",
    "format",
    "structure",
)
BRIEF = re.compile(
    r"\b(?:in|under)\s+\d+\s+(?:word|sentence)s?|no\s+more\s+than\s+\d+|briefly|concisely|one.liner"
)


def nineteen(prompt: str) -> list[float]:
    """The nineteen features of the paper: six counts and marks, and which of twelve verbs comes first, or none."""
    low = prompt.lower()
    words = set(re.findall(r"\w+", low))
    verb = next((verb for verb in VERBS if verb in words), None)
    clauses = sum(low.count(mark) for mark in (",", ";", " and ", " but ", " because "))
    return [
        float(estimate_tokens(prompt)),
        float(bool(words & CODE)),
        float(bool(BRIEF.search(low))),
        float(low.rstrip().endswith("?")),
        float(any(word in low for word in FORMAT)),
        float(clauses),
        *(float(verb == known) for known in VERBS),
        float(verb is None),
    ]


def xgboost(train: Floats, lengths: Floats, test: Floats, seed: int) -> Floats | None:
    """P(long) by boosted trees on three classes, cut at the quartiles; None where XGBoost is not installed."""
    try:
        import xgboost as library
    except ImportError:
        return None
    low, high = np.quantile(lengths, [0.25, 0.75])
    classes = (lengths > low).astype(int) + (lengths >= high).astype(int)
    settings: dict[str, Any] = {"n_estimators": 200, "max_depth": 6, "learning_rate": 0.1, "n_jobs": 1}
    model = library.XGBClassifier(**settings, random_state=seed, eval_metric="mlogloss")
    model.fit(train, classes)
    return np.asarray(model.predict_proba(test)[:, 2], float)
