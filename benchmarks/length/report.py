"""The page of results, from the stored numbers."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "results" / "length.md"


def write(results: dict[str, Any]) -> Path:
    """Write the page; returns its path."""
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    draw(results, PAGE.with_name("length-ranking.svg"))
    PAGE.write_text("\n".join(page(results)) + "\n", encoding="utf-8")
    return PAGE


def draw(results: dict[str, Any], path: Path) -> None:
    """Ranking of held-out answers by each score, one group of bars for a data set."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "length"
    from matplotlib import pyplot

    sets = results["ranking"]
    names = [row["name"] for row in max((found["rows"] for found in sets), key=len)]
    colours = dict(
        zip(names, ("#b0b0b0", "#7a9cc6", "#e3b23c", "#d1603d", "#8c3b5e", "#4a7c59"), strict=False)
    )
    figure, axes = pyplot.subplots(figsize=(8.0, 3.4))
    for place, found in enumerate(sets):
        told = [row for row in found["rows"] if not row.get("missing")]
        for n, row in enumerate(told):
            label = row["name"].replace("`", "") if place == 0 else None
            axes.bar(place + (n - 2.5) * 0.14, row["ranking"], 0.13, color=colours[row["name"]], label=label)
    axes.axhline(0.62, color="black", linewidth=0.8, linestyle=":")
    axes.text(len(sets) - 0.55, 0.625, "bar 0.62", fontsize=8, ha="right")
    axes.set_xticks(range(len(sets)), [found["data"] for found in sets])
    axes.set_ylim(0.5, 1.0)
    axes.set_ylabel("longest quarter above shortest")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="lower center", ncol=3, fontsize=8, frameon=False, bbox_to_anchor=(0.5, -0.16))
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)


def page(results: dict[str, Any]) -> list[str]:
    """Its lines."""
    moved = results["transfer"]
    return [
        "# How long it will be: results",
        "",
        *said(
            f"""What [the predictors](../guides/predictors.md) of length and latency know. Everything on this page is
            written by `{results["command"]}` ({results["date"]}; {results["machine"]}); the data sets are read from
            `$APPORTION_DATA`. All numbers are of prompts (or settings) held out; how many trees are grown is decided
            inside the training part."""
        ),
        "## Which of two answers is longer",
        "",
        *said(
            f"""The measure of S310 (Clairvoyant; bar 0.62 on held-out prompts, its authors report 0.62 to 0.96 within
            one distribution): of an answer among a model's longest quarter and one among its shortest, how often the
            longer one has the higher score; and the same over all pairs. Mean over models; {results["folds"]} of five
            folds by prompt. Lengths are characters over 4.25."""
        ),
        *(line for found in results["ranking"] for line in ranked(found)),
        "![Ranking of held-out answers by score and data set](length-ranking.svg)",
        "",
        *said(
            f"""Across distributions: fitted to `{moved["train"]}` (reference solutions) and asked about
            `{moved["test"]}` (answers of 16 models to other questions): {moved["ranking"]:.3f}, all pairs
            {moved["pairs"]:.3f}."""
        ),
        *said(
            """The peer is the recipe of S310's authors (nineteen features, three classes, 200 trees of XGBoost), a
            classifier for each model; ours is one forest for all models. Two of the models (`tora_*`) repeat the
            question in their answer, which makes the length of the prompt a good score for them. "Best possible" is
            what the other fifteen models' answers to the same question tell, which no predictor sees."""
        ),
        "## Is it as long as said",
        "",
        *said(
            """Share of held-out answers below the predicted median and 90th percentile (0.5 and 0.9 are right), and the
            typical factor between predicted median and truth."""
        ),
        *table(
            ("data", "predictor", "below p50", "below p90", "off by a factor of"),
            [
                [found["data"], row["name"], f"{row['p50']:.3f}", f"{row['p90']:.3f}", f"{row['factor']:.2f}"]
                for found in results["ranking"]
                for row in sorted(found["covered"], key=lambda row: -row["factor"])
            ],
        ),
        "",
        "## Answers that a limit cut",
        "",
        *said(
            """`gsm8k_train_questions` with every answer above the median cut there: what a fit makes of the cut half,
            judged on uncut answers."""
        ),
        *table(
            ("cut answers are taken", "ranking", "below p50", "off by a factor of"),
            [
                [r["name"], f"{r['ranking']:.3f}", f"{r['p50']:.3f}", f"{r['factor']:.2f}"]
                for r in results["cut"]
            ],
        ),
        "",
        "## From nothing",
        "",
        *said(
            """A stream of `gsm8k_multi_model` answers in random order, each predicted before it is learned: pinball
            loss of p50 and p90 of the log length (less is better)."""
        ),
        *table(
            ("predictor", "first tenth", "second", "fifth", "last", "below p50", "below p90"),
            [
                [
                    r["name"],
                    *(f"{r['tenths'][n]:.3f}" for n in (0, 1, 4, 9)),
                    f"{r['p50']:.3f}",
                    f"{r['p90']:.3f}",
                ]
                for r in results["stream"]
            ],
        ),
        "",
        "## How long it takes to say so",
        "",
        *table(
            ("step", "p50, microseconds", "p99"),
            [[row["name"], f"{row['p50_us']:.0f}", f"{row['p99_us']:.0f}"] for row in results["times"]],
        ),
        "",
        *said("Processor time, measured while other work kept the same cores busy."),
        "## Latency",
        "",
        *said(
            """`splitwise_perf_model`: prompt and token times of llama2-70b and bloom-176b. Two thirds of an endpoint's
            settings (batch, prompt, answer; 8 to 13 of them, measured five times each) are learned one by one, the
            others predicted; median relative error of the total time over five shuffles."""
        ),
        *table(
            (
                "endpoint",
                "geometric mean (baseline)",
                "scikit-learn boosted trees (peer)",
                "`latency/load`",
                "repeated measurement (best possible)",
                "first token",
                "below p50",
                "below p90",
            ),
            [
                [
                    row["endpoint"],
                    *(f"{row[name]:.1%}" for name in ("mean", "boosted", "ours")),
                    "" if row["noise"] is None else f"{row['noise']:.1%}",
                    f"{row['first']:.1%}",
                    f"{row['p50']:.2f}",
                    f"{row['p90']:.2f}",
                ]
                for row in results["latency"]
            ],
        ),
        "",
        *said(
            """What was missed: the time to the first token under load is not quite linear in the batch, and the line is
            off by a tenth or two there. Settings that were never seen are further off than those that were, so the
            90th percentile of new ones is too low on some endpoints. Among the data sets there is no table with prompts
            of many kinds *and* the lengths of answers to them, so the ranking is within school mathematics and within
            programming; HumanEval has few prompts, and how far its numbers move from seed to seed was not measured."""
        ),
    ]


def ranked(found: dict[str, Any]) -> list[str]:
    """The table of one data set."""
    roles = {0: " (baseline)", 1: " (strongest peer)"}
    rows = []
    for n, row in enumerate(found["rows"]):
        best = row["name"].startswith("the other")
        name = row["name"] + (" (best possible from the prompt, about)" if best else roles.get(n, ""))
        told = (
            ["not installed", ""] if row.get("missing") else [f"{row['ranking']:.3f}", f"{row['pairs']:.3f}"]
        )
        rows.append([name, *told])
    return [
        f"`{found['data']}`, {found['prompts']} prompts, {found['models']} model(s):",
        "",
        *table(("score", "longest against shortest quarter", "all pairs"), rows),
        "",
    ]


def said(text: str) -> list[str]:
    """A paragraph, wrapped, with the empty line after it."""
    return [*textwrap.wrap(" ".join(text.split()), 110, break_on_hyphens=False, break_long_words=False), ""]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table with numbers to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *rest = zip(cells, widths, strict=True)
        return (
            "| " + " | ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]) + " |"
        )

    ruler = "| " + " | ".join(["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]) + " |"
    return [line(head), ruler, *map(line, rows)]
