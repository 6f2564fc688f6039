"""The results, as the page of the documentation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from benchmarks.guards import live, streams


def page(results: dict[str, Any]) -> str:
    """``docs/results/guards.md``."""
    parts = (
        [
            "# Guards: what is stopped, what is left alone",
            "",
            f"Written by `python -m benchmarks.guards` on {results['date']}, Python {results['python']}.",
            "",
        ],
        _live(results["live"]),
        _streams(results["streams"]),
        _lengths(results["lengths"]),
        _requests(results["requests"]),
        _missed(results),
    )
    return "\n".join(line for part in parts for line in part)


def _live(found: dict[str, Any]) -> list[str]:
    cap, rows, asked = found["cap_tokens"], found["suppressed"], found["questions"]
    over = found["overflow"]
    free_cut = sum(row["cut"] for row in rows)
    return [
        "## A live model",
        "",
        f"`{found['model']}` in the embedded engine, behind the proxy; {found['made_tokens']} tokens in",
        f"{found['made_s'] / 60:.0f} minutes of a busy machine, and therefore few answers, of {cap} tokens at most.",
        "",
        "### Answers that are not let end",
        "",
        f"{len(rows) // 2} ordinary questions (gsm8k, banking77, clinc150) at two temperatures, as they are and with",
        "`ignore_eos`, all watched by a `guard/overflow` that has learned nothing yet and has `logprobs: true`.",
        f"Of the {len(rows)} as they are, {free_cut} were cut.",
        "",
        "| temperature | ended by themselves | mean tokens | not let end: stopped | mean tokens | excess stopped |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
        *(_suppressed([row for row in rows if row["temperature"] == t], t, cap) for t in live.TEMPERATURES),
        "",
        f"*Excess stopped*: of the tokens from where the answer ends by itself to the {cap}. Answers that do not end",
        "by themselves within these have none, and are not counted. At temperature 0 both runs are the same up to",
        "that place; at 1 they are different draws, so that only the means compare.",
        "",
        "### Overflow prompts",
        "",
        "One prompt of each of the nine kinds after BenchOverflow, in a wording that the guard has not seen. It was",
        "taught by a simulated tenant (below, lengths brought to the scale of this cap); what it does not flag passes.",
        f"`cap` allows {found['short_tokens']} tokens.",
        "",
        f"| policy | fill the cap (CSR@{cap}) | p99 tokens | mean tokens | of these, loops that were stopped |",
        "| --- | ---: | ---: | ---: | ---: |",
        *(
            f"| {name} | {row['csr']:.0%} | {row['p99_tokens']} | {row['mean_tokens']:.0f} | "
            f"{row['stopped']} of {len(row['lengths'])} |"
            for name, row in over.items()
        ),
        "",
        "The last column is the work of the watch, not of the reminder or the cap: it ended loops shortly before the",
        "limit would have.",
        "",
        "The empirical distributions equal numpy's: "
        + _yes(row["ecdf_is_numpys"] for row in over.values())
        + ".",
        "",
        f"{asked['asked']} questions with one right answer: {asked['pass']} right; with the guard asking flagged ones",
        f"to be brief {asked['brief']}, with its cap {asked['cap']}; if *all* were asked to be brief "
        f"{asked['all reminded']}.",
        "",
        "A model of 135 million parameters shows that the parts work together and what the cap does. It does not show",
        "how well a reminder works on models that follow instructions, nor a loss of two points of accuracy: one of",
        f"{asked['asked']} questions is {100 / asked['asked']:.0f} points.",
        "",
    ]


def _suppressed(rows: list[dict[str, Any]], temperature: float, cap: int) -> str:
    ended = [row for row in rows if row["ended"]]
    natural = [row["natural_tokens"] for row in ended]
    taken = [row["stopped_tokens"] for row in ended]
    excess = sum(cap - tokens for tokens in natural)
    late = sum(max(tokens - before, 0) for tokens, before in zip(taken, natural, strict=True))
    share = f"{1 - late / excess:.0%}" if excess else "-"
    return (
        f"| {temperature:g} | {len(ended)} of {len(rows)} | {_mean(natural)} | "
        f"{sum(row['stopped'] for row in ended)} of {len(ended)} | {_mean(taken)} | {share} |"
    )


def _mean(values: list[int]) -> str:
    return f"{np.mean(values):.0f}" if values else "-"


def _yes(each: Iterable[bool]) -> str:
    return "yes" if all(each) else "**no**"


def _streams(said: dict[str, Any]) -> list[str]:
    return [
        "## Streams without log probabilities",
        "",
        f"{said['ordinary']} ordinary answers, cut from real files (documentation, code, data), and",
        f"{said['runaway']} that run away, 5% of all: after an ordinary start, a loop to",
        f"{streams.BUDGET_TOKENS} tokens, the repeated piece of 3 to 150 words. *Excess stopped* is the share",
        "of the tokens after the start that is saved.",
        "`guard/overflow` has seen the lengths of 1 000 other ordinary answers, the longest of which are nearly",
        "as long as the runaway ones: its bound on length has little effect here.",
        "",
        "| guard | ordinary cut | excess stopped: exact loop | four variants | with a counter | all |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| baseline: the client's limit | 0% | 0% | 0% | 0% | 0% |",
        *(
            f"| guard/{name} | {said[name]['cut'] / said['ordinary']:.2%} | "
            + " | ".join(f"{said[name][loop]:.1%}" for loop in (*streams.LOOPS, "all"))
            + " |"
            for name in ("repetition", "overflow")
        ),
        "| best possible | 0% | 100% | 100% | 100% | 100% |",
        "",
        f"An event of four characters costs {said['feed_us']:.1f} us of processor time. No library was found that",
        "watches a stream of text for this; engines have repetition penalties, which change every answer.",
        "",
    ]


def _lengths(found: list[dict[str, Any]]) -> list[str]:
    mean = {name: float(np.mean([row[name] for row in found])) for name in found[0]}
    return [
        "## The bound on length",
        "",
        "Tenants that ask real questions of gsm8k, answers as long as those of real models; 5% are not let end and run",
        "to 5 000 tokens. Half-way each tenant's model becomes one that says more (or much more). Only the length",
        "stops. Mean of three pairs of models and " + f"{len(found)} seeds:",
        "",
        "| | |",
        "| --- | ---: |",
        f"| ordinary answers cut, traffic as learned | {mean['cut_steady']:.2%} |",
        f"| in the 500 requests after the change | {mean['cut_soon']:.2%} |",
        f"| a quarter of the run later | {mean['cut_late']:.2%} |",
        f"| excess stopped (baseline 0%; best possible 95%, for one in twenty is let through) | {mean['saved']:.1%} |",
        "",
    ]


def _requests(asked: list[dict[str, Any]]) -> list[str]:
    flags = [run["flagged_all"] for run in asked]
    found = [run["found"] for run in asked]
    return [
        "## Requests",
        "",
        "One tenant's stream, learned as it comes, 5% of it prompts of nine kinds after BenchOverflow (generated; the",
        "wordings of the second half, which is counted, do not occur in the first). Ordinary prompts are real; lengths",
        "of their answers are real ones of gsm8k, and",
        "**that an overflow prompt fills its cap of 5 000 tokens is assumed**.",
        f"Mean of {len(asked)} seeds (least to most):",
        "",
        "| ordinary prompts | flagged |",
        "| --- | ---: |",
        *(
            f"| {name} | {np.mean([run['flagged'][name] for run in asked]):.2%} "
            f"({min(run['flagged'][name] for run in asked):.2%} to {max(run['flagged'][name] for run in asked):.2%}) |"
            for name in asked[0]["flagged"]
        ),
        f"| all (the aim: at most 1%) | {np.mean(flags):.2%} ({min(flags):.2%} to {max(flags):.2%}) |",
        "",
        f"Overflow prompts in unseen wordings found: {np.mean(found):.0%} ({min(found):.0%} to {max(found):.0%}).",
        "",
    ]


def _missed(results: dict[str, Any]) -> list[str]:
    said, over = results["streams"]["repetition"], results["live"]["overflow"]
    return [
        "## Missed, and not measured",
        "",
        "- The aim was to stop 90% of the excess. Of text alone, exact loops come near it",
        f"  ({said['exact']:.0%}; the rest is what must come before a loop is one). Loops with variants are seen late;",
        '  of those that count, only the ones with long pieces: short ones ("Step 7: ...") look like data made from a',
        "  template, which people ask for.",
        "- Live, the share of overflow prompts that fill the cap, and the p99 of their lengths, were to fall by half.",
        f"  The share fell from {over['pass']['csr']:.0%} to {over['brief']['csr']:.0%} (brief) and "
        f"{over['cap']['csr']:.0%} (cap), the p99 from",
        f"  {over['pass']['p99_tokens']} tokens to {over['brief']['p99_tokens']} and {over['cap']['p99_tokens']}: "
        "at half a per cent of false alarms not every",
        "  new wording is found, and what is not flagged passes.",
        "- An answer whose end is suppressed and that goes on to say new things, without wanting to end again, is",
        "  stopped by its length only. This small model does so at temperature 1.",
        "- What is learned of the calm of ordinary answers needs 400 of them: more than could be made here. Its share",
        "  of false alarms is tested on simulated answers only.",
        "- The latency of ordinary requests beside runaway ones has not been measured.",
        "",
    ]
