"""`python -m benchmarks.routing`: predict, route, count; write the JSON, the page and the figures."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.routing.cascade import CASCADES, measure_cascade
from benchmarks.routing.curve import LEVELS, Sweep, area, bootstrap, cost_at, costs, hull, points, sweep
from benchmarks.routing.data import NAMES, Absent, Data, features, load
from benchmarks.routing.encode import embed
from benchmarks.routing.online import measure_online
from benchmarks.routing.predicting import METHODS, HeldOut, brier, hold_out, sharp
from benchmarks.routing.report import write

RESULTS = Path(__file__).parents[1] / "results"
QUICK_ROWS = 1000


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.routing", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help=f"two seeds, {QUICK_ROWS} requests of each data set"
    )
    parser.add_argument("--only", action="append", choices=NAMES, help="measure only this; may be repeated")
    parser.add_argument("--seeds", type=int, help="repetitions of the cross-validation (5; quick: 2)")
    parser.add_argument("--processes", type=int, default=2, help="processes at once (2)")
    parser.add_argument("--json", type=Path, help="write the results there (results/routing.json)")
    parser.add_argument("--no-online", action="store_true", help="leave out the online part")
    parser.add_argument("--online", action="store_true", help="the online part alone")
    parser.add_argument("--report", action="store_true", help="measure nothing: write the page from the JSON")
    return parser.parse_args()


def prepare(name: str, quick: bool) -> tuple[Data, list[Any]]:
    """A data set and what is known of its requests."""
    data = load(name)
    if quick and len(data.quality) > QUICK_ROWS:
        data = data.take(np.sort(np.random.default_rng(0).permutation(len(data.quality))[:QUICK_ROWS]))
    vectors = None if data.texts is None else embed(data.texts, name)
    return data, features(data, vectors)


def one(task: tuple[str, int, bool]) -> tuple[str, int, dict[str, Any]]:
    """One repetition of one data set: everything but the comparison between repetitions."""
    name, seed, quick = task
    started = time.perf_counter()
    data, known = prepare(name, quick)
    held = hold_out(data, known, seed, METHODS if seed == 0 else ("mixture",))
    lexical = None
    if data.texts is not None and seed == 0:
        marks = [one._replace(vector=None) for one in known]
        lexical = hold_out(data, marks, seed, ("mixture",)).quality["mixture"]
    found: dict[str, Any] = {"held": held, "lexical": lexical, "seconds": time.perf_counter() - started}
    if name in CASCADES:
        found["cascade"] = measure_cascade(data, held, seed)
    return name, seed, found


def sweeps(data: Data, held: HeldOut) -> dict[str, Sweep]:
    """The curve of every router, of the oracle and of the single models."""
    best, quality, cost = data.best, data.quality, data.cost

    def by(predicted: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> Sweep:
        return sweep(predicted, expected, quality, cost, best)

    return {
        "floor, as measured before": by(held.quality["floor"], held.mean_cost),
        "floor": by(held.quality["floor"], held.expected_cost),
        "ridge": by(held.quality["ridge"], held.expected_cost),
        **{name: by(held.quality[name], held.expected_cost) for name in METHODS if name in held.quality},
        "oracle": by(quality, cost),
    }


def summary(name: str, runs: list[dict[str, Any]], quick: bool) -> dict[str, Any]:
    """The figures of one data set over all repetitions."""
    data, _ = prepare(name, quick)
    curves = [sweeps(data, run["held"]) for run in runs]
    rows: dict[str, Any] = {}
    ceiling = np.mean([area(*points(one["oracle"])) for one in curves])
    single_cost, single_quality = data.cost.mean(0), data.quality.mean(0)
    unit, top = single_cost[data.best], single_quality[data.best]
    bottom = area(single_cost / unit, single_quality, top)
    for router in max(curves, key=len):
        mine = [one[router] for one in curves if router in one]
        at = np.array([costs(one) for one in mine])
        covered = np.array([area(*points(one)) for one in mine])
        rows[router] = {
            "cost": at.mean(0).tolist(),
            "cost_sd": (at.std(0, ddof=1) if len(at) > 1 else np.zeros(len(LEVELS))).tolist(),
            "by_seed": at.tolist(),
            "area_of_oracle": float(covered.mean() / ceiling),
            "way_to_oracle": float((covered.mean() - bottom) / max(ceiling - bottom, 1e-9)),
            "most_quality": float(np.mean([points(one)[1].max() for one in mine]) / top),
        }
    for predictor in ("floor", "ridge", *METHODS):
        if predictor not in rows:
            continue
        said = [run["held"].quality[predictor] for run in runs if predictor in run["held"].quality]
        rows[predictor] |= {
            "brier": float(np.mean([brier(p, data.quality) for p in said])),
            "ece": float(np.mean([_ece(p, data.quality) for p in said])),
            "ece_models": float(
                np.max([[_ece(p[:, [m]], data.quality[:, [m]]) for m in range(p.shape[1])] for p in said])
            ),
        }
    elected = [run["held"].quality["classifier"].astype(bool) for run in runs]
    found = {
        "rows": len(data.quality),
        "models": data.models,
        "best": data.models[data.best],
        "best_quality": float(top),
        "costs": data.costs,
        "routers": rows,
        "classifier": {
            "cost": float(np.mean([data.cost[mask].mean() / unit for mask in elected])),
            "quality": float(np.mean([data.quality[mask].mean() / top for mask in elected])),
        },
        "against_floor": bootstrap([c["mixture"] for c in curves], [c["floor"] for c in curves]),
        "against_blind_floor": bootstrap(
            [c["mixture"] for c in curves], [c["floor, as measured before"] for c in curves]
        ),
        "weights": _mean([weights for run in runs for weights in run["held"].weights]),
        "sharpness": sharp(runs[0]["held"].quality["mixture"], runs[0]["held"].sd, data.quality),
        "seconds": float(np.mean([run["seconds"] for run in runs])),
        "curves": {
            router: [axis.round(4).tolist() for axis in _drawn(curves[0][router])]
            for router in ("floor, as measured before", "floor", "mixture", "oracle")
        },
        "singles": [
            [float(c / unit), float(q / top)] for c, q in zip(single_cost, single_quality, strict=True)
        ],
    }
    if len(data.models) == 2:
        found["two"] = _two(data, [run["held"].quality for run in runs])
    if runs[0]["lexical"] is not None:
        p = runs[0]["lexical"]
        held = runs[0]["held"]
        marks = sweep(p, held.expected_cost, data.quality, data.cost, data.best)
        found["lexical"] = {
            "cost": costs(marks),
            "brier": brier(p, data.quality),
            "ece": _ece(p, data.quality),
        }
    if "cascade" in runs[0]:
        found["cascade"] = _cascades([run["cascade"] for run in runs], curves)
    return found


def _ece(p: np.ndarray[Any, Any], quality: np.ndarray[Any, Any]) -> float:
    from apportion.predict.quality._calibration import calibration_error

    return calibration_error(np.clip(p, 0.0, 1.0), quality)


def _drawn(found: Sweep) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    cost, quality, top = points(found)
    order = np.argsort(cost)
    return hull(cost[order], quality[order] / top)


def _mean(weights: list[dict[str, float]]) -> dict[str, float]:
    names = sorted({name for one in weights for name in one})
    return {name: float(np.mean([one.get(name, 0.0) for one in weights])) for name in names}


def _two(data: Data, said: list[dict[str, np.ndarray[Any, Any]]]) -> dict[str, dict[str, float]]:
    """RouteLLM's figures: the share of calls of the strong model that recovers 50% and 80% of the gap between the
    two, and the average share of the gap recovered over all shares of calls (APGR).
    """
    strong = data.best
    gain = data.quality[:, strong] - data.quality[:, 1 - strong]
    found = {}
    for router in ("floor", "mixture"):
        recovered = []
        for p in said:
            order = np.argsort(-(p[router][:, strong] - p[router][:, 1 - strong]), kind="stable")
            recovered.append(np.append(0.0, np.cumsum(gain[order])) / gain.sum())
        share = np.linspace(0.0, 1.0, len(gain) + 1)
        found[router] = {
            "cpt50": float(np.mean([cost_at(share, one, 0.5) for one in recovered])),
            "cpt80": float(np.mean([cost_at(share, one, 0.8) for one in recovered])),
            "apgr": float(np.mean([one.mean() for one in recovered])),
        }
    return found


def _cascades(runs: list[dict[str, Sweep]], curves: list[dict[str, Sweep]]) -> dict[str, Any]:
    found = {}
    for name in runs[0]:
        at = np.array([costs(run[name]) for run in runs])
        found[name] = {
            "cost": at.mean(0).tolist(),
            "against_floor": bootstrap([run[name] for run in runs], [one["floor"] for one in curves]),
            "curve": [axis.round(4).tolist() for axis in _drawn(runs[0][name])],
        }
    return found


def main() -> int:
    arguments = parse()
    quick = arguments.quick
    path = arguments.json or RESULTS / ("quick-routing.json" if quick else "routing.json")
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if not arguments.report:
        seeds = arguments.seeds or (2 if quick else 5)
        tasks = []
        order = (
            []
            if arguments.online
            else sorted(arguments.only or NAMES, key=lambda name: name == "routellm_mmlu")
        )
        for name in order:
            try:
                prepare(name, quick)  # encodes once, before the processes part
            except Absent as absent:
                print(f"{name}: left out, {absent}")
                continue
            tasks += [(name, seed, quick) for seed in (*range(1, seeds), 0)]  # seed 0 does more
        runs: dict[str, dict[int, dict[str, Any]]] = {}
        with multiprocessing.get_context("fork").Pool(arguments.processes) as pool:
            for name, seed, found in pool.imap_unordered(one, tasks):
                runs.setdefault(name, {})[seed] = found
                print(f"{name}, seed {seed}: {found['seconds']:.0f} s", flush=True)
                results[name] = summary(name, [run for _, run in sorted(runs[name].items())], quick)
                results[name] |= {"seeds": len(runs[name]), "date": date.today().isoformat()}
                path.write_text(json.dumps(results, indent=1))
        if not arguments.no_online:
            results["online"] = measure_online(prepare, quick)
            path.write_text(json.dumps(results, indent=1))
    if not quick and not arguments.json:
        write(results)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
