"""A small and a large classifier in a row: which score says best when the large one is worth its price."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from apportion.core import Call, Cost, Option, Reply, drive
from apportion.reason.cascade import Cascade
from benchmarks.best_of_k.data import Floats, Ints, rows

GOAL = 0.99
"""Share of the large classifier's accuracy that the cascade must keep."""
TEMPERATURES = (0.02, 0.1, 0.25, 0.5, 1.0, 2.0)
Score = Callable[[Floats], Floats]
"""From logits (n, classes) to how sure each row is, higher is surer."""


@dataclass(frozen=True)
class Pair:
    """Logits of the small classifier on held-out examples, and who was right; a small answer costs ``cheap`` of a
    large one.
    """

    small: Floats
    right_small: Floats
    right_large: Floats
    cheap: float


def log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def confidence(logits: Floats) -> Floats:
    return np.asarray(log_softmax(logits).max(axis=1))


def entropy(logits: Floats) -> Floats:
    logs = log_softmax(logits)
    return np.asarray((np.exp(logs) * logs).sum(axis=1))


def energy(temperature: float, normalised: bool) -> Score:
    """-F of the logits as in the paper, or of the log probabilities as an interface gives them
    (`apportion.reason.cascade.free_energy` for many rows).
    """

    def score(logits: Floats) -> Floats:
        read = log_softmax(logits) if normalised else logits
        top = read.max(axis=1)
        return np.asarray(top + temperature * np.log(np.exp((read - top[:, None]) / temperature).sum(axis=1)))

    return score


def family() -> dict[str, Score]:
    """The scores that calibration chooses from: temperatures below 1 of the normalised ones (at 1 all are 0)."""
    found = {f"energy of logits, T={t:g}": energy(t, False) for t in TEMPERATURES}
    return found | {f"energy of log probabilities, T={t:g}": energy(t, True) for t in TEMPERATURES if t < 1.0}


def evaluate(name: str, seeds: Sequence[int], quick: bool = False) -> dict[str, object]:
    """Area under accuracy by cost for each score, and the cost at which the goal is kept, by seed."""
    runs = [_run(SETS[name](seed, quick), seed) for seed in seeds]
    scores = runs[0]["area"].keys()  # type: ignore[attr-defined]
    return {
        "small": float(np.mean([run["small"] for run in runs])),
        "large": float(np.mean([run["large"] for run in runs])),
        "cheap": float(np.mean([run["cheap"] for run in runs])),
        "area": {s: float(np.mean([run["area"][s] for run in runs])) for s in scores},  # type: ignore[index]
        "area_by_seed": [run["area"] for run in runs],
        "best_area": float(np.mean([run["best_area"] for run in runs])),
        "kept": {
            s: {
                key: float(np.mean([run["kept"][s][key] for run in runs]))  # type: ignore[index]
                for key in ("accuracy", "cost")
            }
            for s in runs[0]["kept"]  # type: ignore[attr-defined]
        },
        "chosen": [run["chosen"] for run in runs],
    }


def _run(pair: Pair, seed: int) -> dict[str, object]:
    n = len(pair.small)
    order = np.random.default_rng(seed).permutation(n)
    known, test = order[: n // 2], order[n // 2 :]
    plain: dict[str, Score] = {
        "softmax confidence": confidence,
        "entropy": entropy,
        "energy as in the paper": energy(1.0, False),
    }
    areas = {name: area(score(pair.small[known]), pair, known) for name, score in family().items()}
    chosen = max(areas, key=areas.__getitem__)
    scores = {name: score(pair.small) for name, score in plain.items()} | {
        "ours": family()[chosen](pair.small)
    }
    large = float(pair.right_large[test].mean())
    return {
        "small": float(pair.right_small[test].mean()),
        "large": large,
        "cheap": pair.cheap,
        "chosen": chosen,
        "area": {name: area(score[test], pair, test) for name, score in scores.items()}
        | {"ours, by gain": area(-gains(scores["ours"], pair, known, test), pair, test)},
        "best_area": area(pair.right_small[test] - pair.right_large[test], pair, test),
        "kept": {
            name: _kept(score, pair, known, test, large, name == "ours") for name, score in scores.items()
        },
    }


def gains(score: Floats, pair: Pair, known: Ints, test: Ints) -> Floats:
    """What the large one is expected to add to each test example: the difference of the strategy's learned curves."""
    strategy = Cascade(window=100_000)
    strategy.calibrate("small", zip(score[known].tolist(), pair.right_small[known].tolist(), strict=True))
    strategy.calibrate(
        "small", zip(score[known].tolist(), pair.right_large[known].tolist(), strict=True), large="large"
    )
    return np.array([strategy.gain("small", "large", float(s)) - 1e-9 * s for s in score[test]])


def area(score: Floats, pair: Pair, rows_: Ints) -> float:
    """Mean accuracy over all shares passed on, lowest scores first."""
    small, large = pair.right_small[rows_], pair.right_large[rows_]
    order = np.argsort(score, kind="stable")
    gain = np.concatenate([[0.0], np.cumsum((large - small)[order])])
    accuracy = (small.sum() + gain) / len(rows_)
    return float(np.trapezoid(accuracy, dx=1.0 / len(rows_)))


def _kept(
    score: Floats, pair: Pair, known: Ints, test: Ints, large: float, drive_it: bool
) -> dict[str, float]:
    """Accuracy as a share of the large one's, and cost as a share of its, at the threshold that calibration data
    ask for; the strategy itself is driven for ours.
    """
    threshold = _threshold(score, pair, known)
    up = np.array([_drive(threshold, float(s)) for s in score[test]]) if drive_it else score[test] < threshold
    accuracy = np.where(up, pair.right_large[test], pair.right_small[test]).mean()
    return {"accuracy": float(accuracy) / large, "cost": pair.cheap + float(up.mean())}


def _threshold(score: Floats, pair: Pair, known: Ints) -> float:
    """The lowest threshold at which the cascade keeps the goal on the calibration data by a standard error."""
    small, large = pair.right_small[known], pair.right_large[known]
    for threshold in np.quantile(score[known], np.linspace(0.0, 1.0, 201)):
        over = np.where(score[known] < threshold, large, small) - GOAL * large
        if over.mean() >= over.std() / np.sqrt(len(over)):
            return float(threshold)
    return float("inf")


def _drive(threshold: float, score: float) -> bool:
    """Whether the strategy passes on an answer with this score (given as one token's log probability)."""
    offer = [Option("small", 0.0, Cost(usd=0.1)), Option("large", 0.0, Cost(usd=1.0))]

    def call(one: Call) -> Reply:
        return Reply("ok", {"text": one.action, "logprobs": [score]}, Cost(usd=0.1))

    answer = drive(Cascade(threshold=threshold).run({"options": offer, "prices": {"usd": 1.0}}, 0.0), call)
    return answer.details["action"] == "large"


def digits(seed: int, quick: bool = False) -> Pair:
    """scikit-learn's digits: a linear model on 4 x 4 pixels before a support-vector machine on 8 x 8."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import SVC

    x, y = load_digits(return_X_y=True)
    coarse = x.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(len(x), -1) / 16.0
    train, test = _split(len(y), 0.4, seed)
    small = LogisticRegression(C=10.0, max_iter=2000).fit(coarse[train], y[train])
    large = SVC(C=10.0).fit(x[train], y[train])
    cheap = 160.0 / (64.0 * float(large.n_support_.sum()))
    return _pair(
        small.decision_function(coarse[test]), small.classes_, large.predict(x[test]), y[test], cheap
    )


def _texts(name: str, label: str) -> Callable[[int, bool], Pair]:
    def build(seed: int, quick: bool = False) -> Pair:
        """Intents: a linear model on the 250 most frequent words before one on all words and pieces of words."""
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression, SGDClassifier
        from sklearn.pipeline import make_union

        table = [row for row in rows(name) if row[label] not in ("oos", "")]
        table = table[:: max(1, len(table) // (1500 if quick else 9000))]
        texts, y = (
            np.array([row["text"] for row in table], dtype=object),
            np.array([row[label] for row in table]),
        )
        train, test = _split(len(y), 0.4, seed)
        few = TfidfVectorizer(max_features=250)
        every = make_union(
            TfidfVectorizer(ngram_range=(1, 2)), TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5))
        )
        narrow, wide = few.fit_transform(texts[train]), every.fit_transform(texts[train])
        small = LogisticRegression(C=10.0, max_iter=200).fit(narrow, y[train])
        large = SGDClassifier(alpha=1e-5, max_iter=15, tol=None, random_state=seed).fit(wide, y[train])
        cheap = narrow.nnz / wide.nnz
        logits = small.decision_function(few.transform(texts[test]))
        return _pair(logits, small.classes_, large.predict(every.transform(texts[test])), y[test], cheap)

    return build


def _split(n: int, share: float, seed: int) -> tuple[Ints, Ints]:
    order = np.random.default_rng(1000 + seed).permutation(n)
    return order[: int(share * n)], order[int(share * n) :]


def _pair(logits: Floats, classes: object, large: object, y: object, cheap: float) -> Pair:
    small = np.asarray(classes)[logits.argmax(axis=1)]
    return Pair(logits, (small == y).astype(float), (np.asarray(large) == y).astype(float), cheap)


SETS: dict[str, Callable[[int, bool], Pair]] = {
    "digits": digits,
    "banking77": _texts("banking77/queries", "category"),
    "clinc150": _texts("clinc150/queries", "intent"),
}
"""Name to a builder from seed and whether to be quick."""
