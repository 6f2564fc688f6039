"""Run everything: ``python -m benchmarks.length [--quick]``; ``--page`` only writes the page anew."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apportion.core import Features, LengthPredictor, catalogue
from apportion.predict.latency.load import Load
from apportion.predict.length._fit import fit, ranking
from apportion.predict.length.linear import Linear
from apportion.predict.length.typical import Typical
from benchmarks.length import data, peers, report

RESULTS = Path(__file__).parents[1] / "results" / "length.json"
FOLDS = 5
Floats = npt.NDArray[np.float64]


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.length", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one fold, no page")
    parser.add_argument(
        "--folds", type=int, default=2, help="how many of the five folds are held out in turn (2)"
    )
    parser.add_argument("--page", action="store_true", help="only the page, from the stored results")
    asked = parser.parse_args()
    if asked.page:
        print(report.write(json.loads(RESULTS.read_text())))
        return
    sets = [data.many_models(), data.solutions(), data.programs()]
    vectors = {answers.name: embedded(answers) for answers in sets}
    folds = 1 if asked.quick else min(asked.folds, FOLDS)
    results = {
        "command": "python -m benchmarks.length",
        "folds": folds,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "machine": f"one core, Python {platform.python_version()}, {os.cpu_count()} CPUs shared with other work",
        "ranking": [held_out(answers, vectors[answers.name], folds) for answers in sets],
        "transfer": transfer(sets[1], sets[0]),
        "cut": cut(sets[1]),
        "stream": stream(sets[0]),
        "times": times(sets[0], vectors["gsm8k_multi_model"]),
        "latency": latency(),
    }
    place = RESULTS.with_name("quick-length.json") if asked.quick else RESULTS
    place.write_text(json.dumps(results, indent=1) + "\n")
    print(place if asked.quick else report.write(results))


def embedded(answers: data.Answers) -> list[tuple[float, ...]] | None:
    """Vectors of the prompts; None without the encoder."""
    try:
        from benchmarks.routing.encode import embed

        return [tuple(row) for row in embed(answers.prompts, answers.name).tolist()]
    except Exception as error:  # no encoder, no network: said, and gone on without
        print(f"without vectors: {error}")
        return None


def lexical(prompts: list[str]) -> list[tuple[float, ...]]:
    encoder: Any = catalogue.build("text/lexical")
    return [encoder.features(prompt) for prompt in prompts]


def held_out(answers: data.Answers, vectors: list[tuple[float, ...]] | None, folds: int) -> dict[str, Any]:
    """Ranking within a model, explained variance and coverage on prompts held out, by five folds."""
    plain = [Features(counts) for counts in lexical(answers.prompts)]
    meaning = (
        None if vectors is None else [Features(f.lexical, v) for f, v in zip(plain, vectors, strict=True)]
    )
    nineteen = np.array([peers.nineteen(prompt) for prompt in answers.prompts])
    chars = np.array([len(prompt) for prompt in answers.prompts], float)
    fold = np.random.RandomState(0).randint(FOLDS, size=len(answers.prompts))
    place, models = np.array(answers.place), np.array(answers.models, object)
    logs = np.log(np.maximum(answers.tokens, 1.0))
    names = ["length of the prompt", "XGBoost on 19 features (S310)", "`length/linear`", "`length/trees`"]
    names += ["`length/trees`, vectors"] if meaning else []
    scores = {name: np.full(len(place), np.nan) for name in names}
    covered: dict[str, list[list[bool]]] = defaultdict(list)
    for k in range(folds):
        test = fold[place] == k
        train = ~test
        scores["length of the prompt"][test] = chars[place[test]]
        for name in dict.fromkeys(answers.models):
            mine = models == name
            found = peers.xgboost(
                nineteen[place[train & mine]], logs[train & mine], nineteen[place[test & mine]], k
            )
            if found is not None:
                scores["XGBoost on 19 features (S310)"][test & mine] = found
        fitted: dict[str, tuple[LengthPredictor, list[Features]]] = {}
        rows = np.flatnonzero(train)
        for name, features in (("`length/trees`", plain), ("`length/trees`, vectors", meaning)):
            if features is not None:
                predictor = fit(
                    [features[place[i]] for i in rows],
                    [answers.models[i] for i in rows],
                    [answers.tokens[i] for i in rows],
                    groups=[int(place[i]) for i in rows],
                    seed=k,
                ).predictor
                fitted[name] = (predictor, features)
        linear = Linear()
        for i in np.random.RandomState(k).permutation(rows):
            linear.learn(plain[place[i]], answers.models[i], answers.tokens[i])
        fitted["`length/linear`"] = (linear, plain)
        typical = Typical()
        for i in rows:
            typical.learn(plain[place[i]], answers.models[i], answers.tokens[i])
        for name, (predictor, features) in {**fitted, "`length/typical`": (typical, plain)}.items():
            for i in np.flatnonzero(test):
                found_ = predictor.predict(features[place[i]], answers.models[i])
                assert found_ is not None
                if name in scores:
                    scores[name][i] = found_.p50
                tokens = answers.tokens[i]
                wrong = abs(np.log(found_.p50) - logs[i])
                covered[name].append([tokens <= found_.p50, tokens <= found_.p90, wrong])
    done = fold[place] < folds
    best = others(answers, logs) if len(set(answers.models)) > 1 else None
    rows_ = []
    for name in names:
        if np.isnan(scores[name][done]).any():
            rows_.append({"name": name, "missing": True})
            continue
        rows_.append({"name": name, **_ranked(scores[name][done], logs[done], models[done])})
    if best is not None:
        rows_.append({"name": "the other models' answers", **_ranked(best[done], logs[done], models[done])})
    return {
        "data": answers.name,
        "prompts": len(answers.prompts),
        "models": len(set(answers.models)),
        "rows": rows_,
        "covered": [
            {"name": name, "p50": float(m[0]), "p90": float(m[1]), "factor": float(np.exp(m[2]))}
            for name, found in covered.items()
            for m in (np.mean(np.array(found, float), axis=0),)
        ],
    }


def _ranked(scores: Floats, logs: Floats, models: npt.NDArray[Any]) -> dict[str, float]:
    """S310's ranking accuracy (longest against shortest quarter) and that of all pairs, averaged over models."""
    quarters, pairs = [], []
    for name in dict.fromkeys(models.tolist()):
        mine = models == name
        quarter = ranking(scores[mine], logs[mine])
        if quarter is not None:
            quarters.append(quarter)
            pairs.append(concordance(scores[mine], logs[mine]))
    return {"ranking": float(np.mean(quarters)), "pairs": float(np.mean(pairs))}


def concordance(scores: Floats, y: Floats) -> float:
    """Of all pairs of different length, how many have the longer one scored higher; ties count half."""
    draw = np.random.RandomState(0).permutation(len(y))[:1500]
    s, t = scores[draw], y[draw]
    order = np.sign(t[:, None] - t[None, :])
    said = np.sign(s[:, None] - s[None, :])
    different = order > 0
    return float((0.5 + 0.5 * said[different]).mean())


def others(answers: data.Answers, logs: Floats) -> Floats:
    """Of each answer, the mean length of the other models' answers to the same prompt, relative to their own means."""
    models, place = np.array(answers.models, object), np.array(answers.place)
    relative = logs.copy()
    for name in set(answers.models):
        relative[models == name] -= logs[models == name].mean()
    total = np.bincount(place, relative, len(answers.prompts))
    count = np.bincount(place, minlength=len(answers.prompts))
    return np.asarray((total[place] - relative) / np.maximum(count[place] - 1, 1), float)


def transfer(train: data.Answers, test: data.Answers) -> dict[str, Any]:
    """Fitted to reference solutions, asked about what models answer to other questions."""
    features = [Features(counts) for counts in lexical(train.prompts)]
    fitted = fit([features[i] for i in train.place], train.models, train.tokens).predictor
    asked = [Features(counts) for counts in lexical(test.prompts)]
    scores = np.array([fitted.score(asked[i]) for i in test.place])
    logs = np.log(np.maximum(test.tokens, 1.0))
    return {"train": train.name, "test": test.name, **_ranked(scores, logs, np.array(test.models, object))}


def cut(answers: data.Answers) -> list[dict[str, Any]]:
    """A limit at the median length: fitted honestly, at their word, and without the cut answers."""
    features = [Features(counts) for counts in lexical(answers.prompts)]
    limit = float(np.median(answers.tokens))
    test = np.random.RandomState(1).rand(len(answers.prompts)) < 0.3
    rows = [i for i in range(len(answers.tokens)) if not test[answers.place[i]]]
    logs = np.log(np.maximum(answers.tokens, 1.0))
    short = [i for i in rows if answers.tokens[i] <= limit]
    found = []
    for name, used, mark in (
        ("as cut (product limit, failure times)", rows, True),
        ("at their word", rows, False),
        ("left out", short, False),
    ):
        predictor = fit(
            [features[answers.place[i]] for i in used],
            [answers.models[i] for i in used],
            [min(answers.tokens[i], limit) for i in used],
            [mark and answers.tokens[i] > limit for i in used],
        ).predictor
        asked = [i for i in range(len(answers.tokens)) if test[answers.place[i]]]
        said = np.array([predictor.score(features[answers.place[i]]) for i in asked])
        median = [predictor.predict(features[answers.place[i]], answers.models[i]) for i in asked]
        factor = np.exp(
            np.mean([abs(np.log(m.p50) - logs[i]) for m, i in zip(median, asked, strict=True) if m])
        )
        below = np.mean([answers.tokens[i] <= m.p50 for m, i in zip(median, asked, strict=True) if m])
        found.append(
            {
                "name": name,
                "ranking": ranking(said, logs[asked]),
                "factor": float(factor),
                "p50": float(below),
            }
        )
    return found


def stream(answers: data.Answers) -> list[dict[str, Any]]:
    """Cold, one answer after another: pinball loss of the 50th and 90th percentile, by tenths of the stream."""
    features = [Features(counts) for counts in lexical(answers.prompts)]
    order = np.random.RandomState(2).permutation(len(answers.tokens))
    found = []
    for name, predictor in (("`length/typical`", Typical()), ("`length/linear`", Linear())):
        losses, covered = [], []
        for i in order:
            f, model, tokens = features[answers.place[i]], answers.models[i], answers.tokens[i]
            said = predictor.predict(f, model)
            if said is not None:
                y = float(np.log(max(tokens, 1.0)))
                losses.append(
                    sum(
                        max(share * (y - q), (share - 1) * (y - q))
                        for share, q in ((0.5, np.log(said.p50)), (0.9, np.log(said.p90)))
                    )
                )
                covered.append([tokens <= said.p50, tokens <= said.p90])
            predictor.learn(f, model, tokens)
        tenths = [float(np.mean(part)) for part in np.array_split(np.array(losses), 10)]
        inside = np.mean(covered[len(covered) // 10 :], axis=0)
        found.append({"name": name, "tenths": tenths, "p50": float(inside[0]), "p90": float(inside[1])})
    return found


def times(answers: data.Answers, vectors: list[tuple[float, ...]] | None) -> list[dict[str, Any]]:
    """Processor microseconds of each step on the way of a request, p50 and p99."""
    encoder: Any = catalogue.build("text/lexical")
    prompts = answers.prompts[:300]
    features = [Features(encoder.features(prompt)) for prompt in prompts]
    rows = [i for i, at in enumerate(answers.place) if at < 150]
    whole = [
        Features(c, v) for c, v in zip(lexical(answers.prompts[:150]), vectors or [None] * 150, strict=False)
    ]
    fitted = fit(
        [whole[answers.place[i]] for i in rows],
        [answers.models[i] for i in rows],
        [answers.tokens[i] for i in rows],
        groups=[answers.place[i] for i in rows],
    ).predictor
    linear, latency_ = Linear(), Load()
    for i in rows:
        linear.learn(whole[answers.place[i]], answers.models[i], answers.tokens[i])
        latency_.learn(
            "e", 0.5, 500, answers.tokens[i], first_token_s=0.2, total_s=0.2 + 0.01 * answers.tokens[i]
        )
    model, long = answers.models[0], " ".join(answers.prompts[:20])[:2048]
    asked: list[tuple[str, Any]] = [
        ("lexical features, a question", lambda n: encoder.features(prompts[n % 300])),
        ("lexical features, 2 KB", lambda n: encoder.features(long)),
        ("`length/trees`", lambda n: fitted.predict(features[n % 300], model)),
        ("`length/linear`", lambda n: linear.predict(features[n % 300], model)),
        ("`latency/load`", lambda n: latency_.predict("e", 0.5, 500, 100 + n % 300)),
    ]
    if vectors is not None:
        asked.insert(3, ("`length/trees`, vectors", lambda n: fitted.predict(whole[n % 150], model)))
    found = []
    for name, step in asked:
        taken = []
        for n in range(3000):
            began = time.thread_time()
            step(n)
            taken.append(time.thread_time() - began)
        p50, p99 = np.quantile(taken[300:], [0.5, 0.99]) * 1e6
        found.append({"name": name, "p50_us": float(p50), "p99_us": float(p99)})
    return found


def latency() -> list[dict[str, Any]]:
    """Two thirds of an endpoint's settings (batch, prompt, answer) are learned, the rest predicted; five shuffles."""
    by: dict[str, list[data.Served]] = defaultdict(list)
    for row in data.served():
        by[row.endpoint].append(row)
    found = []
    for endpoint, rows in sorted(by.items()):
        errors: dict[str, list[float]] = defaultdict(list)
        inside = []
        for seed in range(5):
            generator = np.random.RandomState(seed)
            settings = sorted({row[1:4] for row in rows})
            learned = {settings[i] for i in generator.permutation(len(settings))[: 2 * len(settings) // 3]}
            train = [rows[i] for i in generator.permutation(len(rows)) if rows[i][1:4] in learned]
            test = [row for row in rows if row[1:4] not in learned]
            ours = Load()
            for row in train:
                ours.learn(
                    "e",
                    row.load,
                    row.input_tokens,
                    row.output_tokens,
                    first_token_s=row.first_s,
                    total_s=row.total_s,
                )
            mean_s = float(np.exp(np.mean([np.log(row.total_s) for row in train])))
            forest = boosted(train)
            for row in test:
                said = ours.predict("e", row.load, row.input_tokens, row.output_tokens)
                assert said is not None
                errors["mean"].append(abs(mean_s / row.total_s - 1))
                errors["boosted"].append(abs(forest(row) / row.total_s - 1))
                errors["ours"].append(abs(said[1].p50 / row.total_s - 1))
                errors["first"].append(abs(said[0].p50 / row.first_s - 1))
                inside.append([row.total_s <= said[1].p50, row.total_s <= said[1].p90])
        repeated = defaultdict(list)
        for row in rows:
            repeated[row[1:4]].append(row.total_s)
        noise = [
            abs(t / np.median(group) - 1) for group in repeated.values() if len(group) > 1 for t in group
        ]
        found.append(
            {
                "endpoint": endpoint,
                "rows": len(rows),
                **{name: float(np.median(values)) for name, values in errors.items()},
                "noise": float(np.median(noise)) if noise else None,
                "p50": float(np.mean(inside, axis=0)[0]),
                "p90": float(np.mean(inside, axis=0)[1]),
            }
        )
    return found


def boosted(train: list[data.Served]) -> Any:
    """Scikit-learn's boosted trees on the same numbers, fitted to logarithms."""
    from sklearn.ensemble import GradientBoostingRegressor

    def row_of(row: data.Served) -> list[float]:
        return [row.load, row.input_tokens, row.output_tokens]

    model = GradientBoostingRegressor(random_state=0).fit(
        [row_of(r) for r in train], [np.log(r.total_s) for r in train]
    )
    return lambda row: float(np.exp(model.predict([row_of(row)])[0]))


if __name__ == "__main__":
    main()
