"""The page docs/results/routing.md and its figures, from the JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "results"
Results = dict[str, Any]
MEASURED_BEFORE = {
    "routellm_mmlu": "0.62 / 0.93; oracle 0.05 / 0.08",
    "llmrouter_9_models": "0.20 / 0.39; oracle 0.11 / 0.11",
    "gsm8k_multi_model": "0.80 / 0.99; oracle 0.04 / 0.05",
}
TITLES = {
    "floor, as measured before": "k-nearest neighbours (scikit-learn, k = 40, MiniLM), mean costs",
    "floor": "the same, costs of the request where known",
    "ridge": "ridge regression (scikit-learn, MiniLM)",
    "knn": "`quality/knn`",
    "linear": "`quality/linear`",
    "boosted": "`quality/boosted`",
    "mixture": "**`quality/mixture`**",
    "oracle": "oracle (best possible)",
}
SEEN = {
    "lengths": "the answer's length",
    "agreement": "whether answers agree (two wrong ones do with chance 0.6)",
    "agreement, 0.2": "the same, two wrong ones agree with chance 0.2",
    "agreement, code tested": "agreement; unit tests of code",
    "every answer checked": "a check that is never wrong (bound)",
}


MISSED = """## What was missed, and why

- `gsm8k_multi_model` at 100%, `routerarena_2_models`, `wildbench_scores`: hardly anything is gained by prediction. One
  model is best on nearly every question of the first (and never lets a cheap one take its place for sure); in the
  second the better model is the cheaper one, so that no router can save; the third has no text, only the size of the
  request.
- Lengths of cheap answers say too little: a cascade that sees nothing else is no better than choosing beforehand, and
  pays for the wasted calls. With agreement it depends on how often wrong answers agree, which these data do not hold.
  With a check it covers most of the way to the oracle.
- Conventions. The floors measured beforehand come out here when a request costs its characters times the model's
  price (`routellm_mmlu`: Mixtral at 1%; `gsm8k_multi_model`: sizes as prices): 0.59 for 0.62, 0.80 for 0.80, and 0.39
  for 0.39 with `llmrouter_9_models` at 100%, there with costs of the request. The oracles agree to 0.01."""


def write(results: Results) -> None:
    """The page and one figure for each data set."""
    PAGE.mkdir(parents=True, exist_ok=True)
    sets = {name: one for name, one in results.items() if name != "online"}
    parts = [_head(sets)]
    for name, one in sets.items():
        parts.append(_section(name, one))
        _figure(name, one)
    parts.append(MISSED)
    if results.get("online"):
        parts.append(_online(results["online"]))
    (PAGE / "routing.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, numbers to the right."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _share(value: float) -> str:
    return f"{value:.2f}"


def _head(sets: Results) -> str:
    rows = []
    for name, one in sets.items():
        routers = one["routers"]
        ours, floor, blind = (
            routers[key]["cost"] for key in ("mixture", "floor", "floor, as measured before")
        )
        oracle = routers["oracle"]["cost"]
        against = one["against_floor"]
        rows.append(
            [
                f"`{name}`",
                f"{blind[0]:.2f} / {blind[2]:.2f}",
                f"{floor[0]:.2f} / {floor[2]:.2f}",
                f"**{ours[0]:.2f} / {ours[2]:.2f}**",
                f"{oracle[0]:.2f} / {oracle[2]:.2f}",
                f"{ours[0] / blind[0] - 1:+.0%} / {ours[2] / blind[2] - 1:+.0%}",
                f"{ours[0] / floor[0] - 1:+.0%} / {ours[2] / floor[2] - 1:+.0%}",
                f"{against[0]['p']:.3f} / {against[2]['p']:.3f}",
                f"{routers['mixture']['ece']:.3f}",
            ]
        )
    head = [
        "data", "floor", "floor, priced by request", "`quality/mixture`", "oracle", "against floor",
        "against priced floor", "p", "ECE",
    ]  # fmt: skip
    return f"""# Routing: results

What [routing by predicted quality](../guides/routing.md) saves on real answers. Written by
`python -m benchmarks.routing` (`--quick` for a small run); the data sets are read from `$APPORTION_DATA`.
A run may be made in parts (`--only DATA`); the parts are put together here, and each says when it was made.

Each pair is the **cost at 95% / at 100% of the best single model's quality**, as a share of what that model costs.
Everything is held out: five outer folds, hyper-parameters, weights and calibration from folds inside the other
four; the outer folds are drawn anew for each repetition (their number stands with each data set). The rule is the same
for all: the model with the most quality left after paying, the rate between the two swept; always taking the best
single model is allowed too, so no cost is above 1. The floor is scikit-learn's `KNeighborsRegressor` with k = 40 on
MiniLM vectors (for data without text, on the same columns that ours sees). "Priced by request" also uses what a
request is known to cost before the call, as ours does; what it gains over the plain floor is gained by pricing, not by
better prediction. p is the share of bootstrap resamples of the questions, the same for both, in which ours is not
below the priced floor at that level.

{table(head, rows)}"""


def _section(name: str, one: Results) -> str:
    routers = one["routers"]
    rows = []
    for key, title in TITLES.items():
        if key not in routers:
            continue
        found = routers[key]
        cost, sd = found["cost"], found["cost_sd"]
        rows.append(
            [
                title,
                *[f"{c:.3f} ± {s:.3f}" if any(sd) else f"{c:.3f}" for c, s in zip(cost, sd, strict=True)],
                f"{found['area_of_oracle']:.1%}",
                f"{found['way_to_oracle']:.0%}",
                f"{found['most_quality']:.3f}",
                f"{found['brier']:.4f}" if "brier" in found else "",
                f"{found['ece']:.3f}" if "ece" in found else "",
            ]
        )
    head = ["router", "at 95%", "at 99%", "at 100%", "area, of oracle's", "way from single models to oracle",
            "most quality", "Brier", "ECE"]  # fmt: skip
    notes = [
        f"{one['rows']} requests, {len(one['models'])} models, {one['seeds']} repetitions, {one['date']}. The best "
        f"single model is {one['best']} ({one['best_quality']:.3f}). Cost: {one['costs']}."
    ]
    if name in MEASURED_BEFORE:
        notes[0] += f" Measured beforehand elsewhere (95% / 100%): {MEASURED_BEFORE[name]}."
    peer = one["classifier"]
    notes.append(
        f"`llmrouter-lib`'s `knnrouter` (neighbours vote which model is best; its rule run with scikit-learn, since "
        f"the package needs torch and a model hub) has one point and no price: quality {peer['quality']:.3f} of the "
        f"best model's at {peer['cost']:.2f} of its cost."
    )
    against = one["against_floor"]
    notes.append(
        "Ours less the priced floor, 95% interval: "
        + "; ".join(
            f"{level} {found['mean']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})"
            for level, found in zip(("at 95%", "at 99%", "at 100%"), against, strict=True)
        )
        + ". Weights of the mixture: "
        + ", ".join(f"{member} {share:.2f}" for member, share in one["weights"].items())
        + "."
    )
    if "lexical" in one:
        marks = one["lexical"]
        notes.append(
            f"Without the sentence encoder (lexical marks alone, the model inside the same artefact): "
            f"{marks['cost'][0]:.2f} / {marks['cost'][2]:.2f}, Brier {marks['brier']:.4f}, ECE {marks['ece']:.3f}."
        )
    if "two" in one:
        ours, floor = one["two"]["mixture"], one["two"]["floor"]
        notes.append(
            f"In RouteLLM's figures: calls of the strong model for 50% / 80% of the gap (CPT) {ours['cpt50']:.1%} / "
            f"{ours['cpt80']:.1%} (floor {floor['cpt50']:.1%} / {floor['cpt80']:.1%}), APGR {ours['apgr']:.3f} "
            f"({floor['apgr']:.3f}). The `routellm` package needs torch, and its routers weights from a hub: "
            f"it was not run."
        )
    fifths = one["sharpness"]
    notes.append(
        "Stated standard deviation and real squared error, by fifths of the former: "
        + "; ".join(f"{part['sd']:.3f}: {part['error']:.3f}" for part in fifths)
        + "."
    )
    text = f"## {name}\n\n{notes[0]}\n\n{table(head, rows)}\n\n" + "\n\n".join(notes[1:])
    if one.get("cascade"):
        text += "\n\n" + _cascade(one)
    return f"{text}\n\n![Quality by cost on {name}](routing-{name}.svg)"


def _cascade(one: Results) -> str:
    floor, oracle = one["routers"]["floor"]["cost"], one["routers"]["oracle"]["cost"]
    rows = []
    for key, found in one["cascade"].items():
        cost = found["cost"]
        covered = [(f - c) / max(f - o, 1e-9) for f, c, o in zip(floor, cost, oracle, strict=True)]
        rows.append(
            [SEEN.get(key, key), *map(_share, cost), f"{covered[0]:.0%} / {covered[2]:.0%}",
             f"{found['against_floor'][0]['p']:.3f} / {found['against_floor'][2]['p']:.3f}"]
        )  # fmt: skip
    head = [
        "a cascade that sees",
        "at 95%",
        "at 99%",
        "at 100%",
        "of the way from floor to oracle (95% / 100%)",
        "p",
    ]
    return (
        "Cheap models are asked first and all calls are paid for; order and stopping are learned on training folds. "
        "The data hold no answers, so agreement is emulated: two wrong answers agree with the stated chance (0.59 was "
        "measured between samples of one model on mathematics).\n\n" + table(head, rows)
    )


def _online(online: Results) -> str:
    parts = ["## Started cold"]
    for name, one in online.items():
        head = [
            "on the stream, " + f"`{name}`",
            "value a request, of the best fixed model's",
            "regret a request, last quarter",
        ]
        rows = [
            [title, f"{row['value']:.3f}", f"{row['late_regret']:+.4f}"] for title, row in one["rows"].items()
        ]
        parts.append(f"{one['told']}\n\n{table(head, rows)}")
    return "\n\n".join(parts)


def _figure(name: str, one: Results) -> None:
    """Quality by cost."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "apportion"
    figure, axes = plt.subplots(figsize=(6.4, 4.0))
    colours = {
        "floor, as measured before": "#999999",
        "floor": "#e08214",
        "mixture": "#2166ac",
        "oracle": "#1b7837",
    }
    labels = {
        "floor, as measured before": "neighbours (floor)",
        "floor": "neighbours, priced by request",
        "mixture": "quality/mixture",
        "oracle": "oracle",
    }
    for key, (cost, quality) in one["curves"].items():
        axes.plot(
            [*cost, max(1.0, cost[-1])],
            [*quality, max(quality)],
            color=colours[key],
            label=labels[key],
            linewidth=1.8,
        )
    for key, found in one.get("cascade", {}).items():
        if key in ("agreement", "every answer checked"):
            cost, quality = found["curve"]
            axes.plot(cost, quality, "--", linewidth=1.2, label=f"cascade: {key}")
    shown = [point for point in one["singles"] if point[0] <= 1.05]
    axes.plot(*zip(*shown, strict=True), "k.", markersize=7, label="single models")
    axes.axhline(1.0, color="#cccccc", linewidth=0.8, zorder=0)
    axes.set_xlim(0.0, 1.05)
    axes.set_ylim(0.75, max(1.02, max(one["curves"]["oracle"][1]) + 0.02))
    axes.set_xlabel("cost, share of the best single model's")
    axes.set_ylabel("quality, share of the best single model's")
    axes.set_title(name)
    axes.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(PAGE / f"routing-{name}.svg", metadata={"Date": None})
    plt.close(figure)
