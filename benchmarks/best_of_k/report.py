"""The page and its figures, from the stored results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs" / "results"
PARALLEL, CHECKED = "ours, k fixed beforehand", "ours, checked after each"


def write(results: Mapping[str, Any]) -> None:
    """``docs/results/best_of_k.md`` and its figures."""
    parts = [_HEAD]
    for name, section in (
        ("allocation", _allocation),
        ("voting", _voting),
        ("cascade", _cascade),
        ("routing", _routing),
        ("search", _search),
    ):
        if name in results:
            part = results[name]
            parts.append(section(part["results"]))
            if name == "routing" and "decision" in results:
                parts.append(_decision(results["decision"]["results"]))
            seeds = f"{part['seeds']} seed{'s' if part['seeds'] > 1 else ''}"
            parts.append(f"*{part['date']}, commit {part['commit']}, {seeds}.*")
    DOCS.mkdir(parents=True, exist_ok=True)
    (DOCS / "best_of_k.md").write_text("\n\n".join(parts) + "\n")
    figures(results)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _percent(value: float) -> str:
    return f"{round(100.0 * value) + 0:d}%"


def _allocation(results: Mapping[str, Any]) -> str:
    rows = []
    for name, found in results.items():
        for k, row in found["saved"].items():
            share = found["share_of_gain"].get(k)
            rows.append(
                [
                    f"{name} ({found['settings']})",
                    k,
                    f"{row['success']:.3f}",
                    _percent(row["stop at the first that passes"]["mean"]),
                    f"{_percent(row[PARALLEL]['mean'])} ± {_percent(row[PARALLEL]['se'])}",
                    _percent(row["best possible, k fixed beforehand"]["mean"]),
                    f"{_percent(row[CHECKED]['mean'])} ± {_percent(row[CHECKED]['se'])}",
                    _percent(row["best possible, checked after each"]["mean"]),
                    "" if share is None else _percent(share),
                ]
            )
    head = [
        "samples of (settings)", "k for all", "success", "stop at the first that passes",
        "ours, k fixed beforehand", "best possible, fixed", "ours, checked after each", "best possible, checked",
        "share of the best possible gain",
    ]  # fmt: skip
    return f"{_ALLOCATION}\n\n{_table(head, rows)}\n\n{_ALLOCATION_AFTER}"


def _voting(results: Mapping[str, Any]) -> str:
    parts = [_VOTING]
    for name, found in results.items():
        rows = [
            [method, f"{row['accuracy']:.4f}", f"{row['samples']:.2f}"]
            for method, row in found["methods"].items()
        ]
        head = [
            f"{name}: {found['questions']} questions, up to {found['most']} samples",
            "accuracy",
            "samples",
        ]
        parts.append(_table(head, rows))
    return "\n\n".join(parts)


def _cascade(results: Mapping[str, Any]) -> str:
    head = ["data", "small / large", "score", "area", "accuracy kept", "cost of the large"]
    rows = []
    for name, found in results.items():
        pair = f"{found['small']:.3f} / {found['large']:.3f}"
        for score, value in found["area"].items():
            kept = found["kept"].get(score)
            rows.append(
                [
                    name,
                    pair,
                    score,
                    f"{value:.4f}",
                    f"{100 * kept['accuracy']:.1f}%" if kept else "",
                    _percent(kept["cost"]) if kept else "",
                ]
            )
        rows.append([name, pair, "best possible", f"{found['best_area']:.4f}", "", ""])
    return f"{_CASCADE}\n\n{_table(head, rows)}\n\n{_CASCADE_AFTER}"


def _routing(results: Mapping[str, Any]) -> str:
    head = ["table", "method", "cost at 95%", "cost at 99%", "cost at 100%"]
    rows = []
    for name, found in results.items():
        rows.append([name, f"best single ({found['best_single']}, {found['quality']:.3f})", "", "", "1.00"])
        for method, values in found["methods"].items():
            rows.append(
                [name, method]
                + [f"{mean:.2f}" + (f" ± {sd:.2f}" if sd else "") for mean, sd in values.values()]
            )
    return f"{_ROUTING}\n\n{_table(head, rows)}\n\n{_ROUTING_AFTER}"


def _decision(results: Mapping[str, Any]) -> str:
    times = [
        f"{name}: {ms['p50']:.2f} ms at the median, {ms['p99']:.2f} ms at p99" for name, ms in results.items()
    ]
    return f"A decision with all questions in the bank, processor time: {'; '.join(times)}."


def _search(results: Mapping[str, Any]) -> str:
    head = ["table", "method", "cost", "right"]
    rows = []
    for name, found in results.items():
        points = [(method, *found[method]) for method in ("best single", "cheapest first")]
        points += [
            (f"ours, worth {worth:g} answers of the best", *point) for worth, *point in found["points"]
        ]
        points.append(("best possible", *found["best possible"]))
        rows += [[name, method, f"{cost:.3f}", f"{right:.3f}"] for method, cost, right in points]
    return f"{_SEARCH}\n\n{_table(head, rows)}"


def figures(results: Mapping[str, Any]) -> None:
    """Samples saved by k, and accuracy by samples of a vote."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "apportion", "font.size": 9})
    if "allocation" in results:
        tables = results["allocation"]["results"]
        figure, axes = plt.subplots(
            1, len(tables), figsize=(3.1 * len(tables), 3.0), sharey=True, squeeze=False
        )
        styles = {
            "stop at the first that passes": ("0.5", "--", "s"),
            PARALLEL: ("tab:blue", "-", "o"),
            CHECKED: ("tab:orange", "-", "o"),
            "best possible, k fixed beforehand": ("tab:blue", ":", None),
            "best possible, checked after each": ("tab:orange", ":", None),
        }
        for axis, (name, found) in zip(axes[0], tables.items(), strict=True):
            ks = [int(k) for k in found["saved"]]
            for method, (colour, line, marker) in styles.items():
                saved = [100.0 * row[method]["mean"] for row in found["saved"].values()]
                axis.plot(ks, saved, line, color=colour, marker=marker, markersize=4, label=method)
            axis.axhline(25.0, color="0.8", linewidth=0.8)
            axis.set_xscale("log", base=2)
            axis.set_xticks(ks, [str(k) for k in ks])
            axis.set_title(name, fontsize=9)
            axis.set_xlabel("k for every problem")
        axes[0][0].set_ylabel("samples saved, %")
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower center", ncol=3, frameon=False, fontsize=8)
        figure.tight_layout(rect=(0, 0.14, 1, 1))
        figure.savefig(DOCS / "best_of_k-saved.svg", metadata={"Date": None})
        plt.close(figure)
    if "voting" in results:
        tables = results["voting"]["results"]
        figure, axes = plt.subplots(1, len(tables), figsize=(4.4 * len(tables), 3.2), squeeze=False)
        for axis, (name, found) in zip(axes[0], tables.items(), strict=True):
            methods = found["methods"]
            for start, colour, label in (
                ("every question", "0.5", "the same number for all"),
                ("ours", "tab:blue", "reason/vote"),
            ):
                points = sorted(
                    (row["samples"], row["accuracy"])
                    for method, row in methods.items()
                    if method.startswith(start) and "reward" not in method
                )
                axis.plot(*zip(*points, strict=True), "-o", color=colour, markersize=4, label=label)
            for method, row in methods.items():
                if method.startswith(("window", "Adaptive", "every question 8, best")):
                    axis.plot(row["samples"], row["accuracy"], "x", label=method, markersize=7)
            most = found["most"]
            axis.set_xscale("log")
            axis.set_xticks(ticks := [k for k in (1, 2, 4, 8, 16, 40) if k <= most], [str(k) for k in ticks])
            axis.minorticks_off()
            axis.set_xlabel("samples a question")
            axis.set_title(name, fontsize=9)
            axis.legend(fontsize=7, frameon=False)
        axes[0][0].set_ylabel("accuracy")
        figure.tight_layout()
        figure.savefig(DOCS / "best_of_k-votes.svg", metadata={"Date": None})
        plt.close(figure)


_HEAD = """# Many calls, one answer: results

What the strategies of `reason/` save on recorded samples, answers and outcomes. Written by

```
python -m benchmarks.best_of_k            # everything, some twenty minutes; --only PART for one part
python -m benchmarks.best_of_k --quick    # one seed, less data
```

from the shared data (`$APPORTION_DATA`). Everything is held out: what is learned is learned on other problems
than those it is tested on (five folds, drawn anew with each seed), and parameters are chosen within the
training folds. The guide to the strategies is [here](../guides/strategies.md)."""

_ALLOCATION = """## Samples that a check accepts: `reason/best_of_k`

Recorded counts of samples that passed the tests of a problem. The baseline gives every problem k samples. The
predicted quality of a problem is a ridge regression on how often *other* models or settings passed it: what a
team knows that ran them before. `cruxeval` has one model and its other task as the only history. Nothing of the
tested setting on the tested problem is known beforehand; *fixed beforehand* chooses k from the prediction
alone, as the paper does, *checked after each* also stops at the first sample that passes and gives up when the
next is no longer worth its price. Success and samples are exact expectations over the recorded samples. The
best possible knows each problem's true rate. No library that one can install allocates samples by problem
(`its-hub` and `bestofn` draw the same number for all: the baseline); stopping at the first that passes is the
strongest simple rule.

Samples saved at the success of k samples for every problem (mean over settings ± its standard error):

![samples saved](best_of_k-saved.svg)"""

_ALLOCATION_AFTER = """\
The last column is the gain in success at the same number of samples, k fixed beforehand, as a share of the best
possible gain.

The bar is 25% fewer samples at equal success. With a check after each sample it is passed everywhere but on
`cruxeval` at k = 2. Beforehand, as in the paper, it is passed on `bigcodebench` and `swebench_lite_agentless` at
every k and on `evalperf` from k = 8, and missed on `evalperf` below and on `cruxeval`, whose one other task says
nothing of how hard a problem is. On `evalperf` most problems are passed by every sample, and the few that are not are
different ones for different models: for single models the prediction costs more samples than it saves, and the
plain rule of stopping at the first sample that passes already gets nearly all; ours gets no more. On `bigcodebench`
at large k half of the best possible gain is out of reach: it comes from problems passed by a few samples in a
hundred, which other settings' counts do not tell from hopeless ones."""

_VOTING = """## Answers that can be compared: `reason/vote`

Recorded answers in random order (a new one with each seed) are played to the strategy itself. *Window of 5* is
early-stopping self-consistency, *Adaptive-Consistency* the library of its authors at its default level of 0.95.
*Ours* has learned on the other folds how often a leading answer is right, and buys votes while they are worth
their price; the rows sweep what a right answer is worth in samples. The best possible knows the right answer and
stops at it.

![votes](best_of_k-votes.svg)

On last letters the accuracy of 40 samples for all is reached with 6.5, that of 8 samples for all with 2.6; the
library needs 7.2 and ends a little lower, the window 10. On MATH the accuracy of 8 samples is reached with 2.3, by
the library with 4.5. A reward model that judges all 8 answers is better there than any vote (0.94): where there is
one, make it the check of `reason/best_of_k`."""

_CASCADE = """## A small model first: `reason/cascade`

Two classifiers in a row. `digits`: logistic regression on 4 x 4 pixels before a support-vector machine on 8 x
8. `banking77`, `clinc150`: logistic regression on the 250 most frequent words before a linear model on all
words and pieces of words. What a small answer costs is its share of the large one's multiplications. *Area*:
mean accuracy over all shares that are passed on, lowest score first. *Accuracy kept* and *cost*: shares of the
large model's, at the threshold chosen on half of the held-out examples so that 99% should be kept, measured on
the other half. *Ours*: the temperature, and whether the logits are normalised first as they are at an
interface, chosen on the first half by area; the strategy is driven with the scores. *Ours, by gain* orders by
the learned gain of passing on in place of the score."""

_CASCADE_AFTER = """\
The bar, 99% of the large one's accuracy at half its cost or less, is passed on `digits` and `clinc150`; on
`banking77` the threshold keeps 99.0% only when rounded (98.95%), at 46% of the cost.

The paper's energy of raw logits is worse than the softmax confidence on these classifiers; the energy of
normalised log probabilities at a low temperature, which calibration chose each time and which is near the
strategy's default, tends to the softmax confidence and ties with it (areas differ by less than 0.0001). Both are
better than entropy. So the bar *at least softmax confidence* is met by equality, not by a gain, and that the energy
of raw logits is the better score is not reproduced. Ordering by the learned gain is no better than by the score. Two
models on llama.cpp were not compared: the time went into the above."""

_ROUTING = """## Routing by neighbours: `reason/jisi`

Tables of outcomes without the text of the answers. So of JiSi only the part that looks at requests can be
reproduced: the similarity of answers, the choice of an aggregator and the combination of answers cannot, and
are proven by tests only. The bank holds the training questions (MiniLM vectors); neighbours, bandwidth and
shrinkage are chosen within them. Costs are shares of the best single model's at shares of its quality; the peer
is plain k-nearest neighbours (k = 40) on the same vectors."""

_ROUTING_AFTER = """\
The bar, the best single model's accuracy at half its cost or less, is passed on `llmrouter_9_models`, and missed on
`gsm8k_multi_model`, where all questions look alike and one model is right on 92%: a question's text does not tell
which smaller model would be, as the measured floors (0.80 and 0.99) said beforehand. There evidence is needed: see
the next section. Against plain neighbours ours is better on `llmrouter_9_models` by less than the spread between
seeds, and worse on `gsm8k_multi_model` at 95%."""

_SEARCH = """## Several models and a check: `reason/best_of_k` as a cascade

The same table of GSM8K; now a check says whether an answer is right (a unit test, a known answer), and each model
answers once. The strategy asks in the order of chance for price, with the neighbours' scores as predictions, and
stops where the next is not worth its price. *Cheapest first* goes up by price. Cost is a share of the best single
model's. More right answers than the best model gives cost a fifth of it; everything that any model knows costs a
third, a fifth less than cheapest first. The best possible, which asks only a model that is right, is far below both:
which small model knows is not in the question's text."""
