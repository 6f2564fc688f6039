"""The page of results, from the JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_TITLES = {"banking77": "A bank's customers", "clinc150": "An assistant"}


def write(found: dict[str, Any], folder: Path) -> None:
    """Write ``incontext.md``."""
    streams = found["streams"]
    parts = [_HEAD.format(**found, wrong=f"{found['error']:.0%}")]
    parts += [_quality(row) for row in streams]
    parts += [_SPEED.format(of=f"{found['load']:.0%}", **found["rates"]), _speed(streams, found["hardware"])]
    parts += [_BARS, _bars(streams), _READ]
    folder.joinpath("incontext.md").write_text("\n".join(parts).rstrip() + "\n")


def _quality(stream: dict[str, Any]) -> str:
    large, small, bare, best = (stream[name] for name in ("large", "small", "bare", "best"))
    rows: list[tuple[str, dict[str, Any]]] = [
        ("always large", large),
        (f"always small, no examples (of {bare['of']})", bare),
        ("always small, nearest examples", small),
    ]
    for ours in stream["settings"]:
        mark = ", **chosen on the other stream**" if ours["chosen"] else ""
        rows.append((f"router, price {ours['large_usd']:g}{mark}", ours))
        share = ours["offload"]
        by_lot = share * small["quality"] + (1.0 - share) * large["quality"]
        rows.append(
            ("by lot, as many", {"offload": share, "quality": by_lot, "apart": by_lot - large["quality"]})
        )
    rows.append(("best possible", best | {"apart": best["quality"] - large["quality"]}))
    lines = [
        f"## {_TITLES[stream['name']]} (`{stream['name']}`)\n",
        f"{stream['n']} requests that count; {stream['similar']:.0%} had one like them before (cosine 0.7).\n",
        "| who answers | offload | right | against always large, points (95%, paired) |",
        "| --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {name} | {row['offload']:.0%} | {row['quality']:.1%} | {_apart(row)} |" for name, row in rows
    ]
    return "\n".join(lines) + "\n"


def _apart(row: dict[str, Any]) -> str:
    if not row.get("apart"):
        return "-"
    between = f" ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})" if "low" in row else ""
    return f"{100 * row['apart']:+.1f}{between}"


def _speed(streams: list[dict[str, Any]], hardware: list[str]) -> str:
    lines = [
        "| hardware | stream | price | offload | mean latency, always large | router | throughput |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for place, name in enumerate(hardware):
        for stream in streams:
            for ours in stream["settings"]:
                told = ours["speeds"][place]
                before, after = told["latency_s"]["large"], told["latency_s"]["ours"]
                lines.append(
                    f"| {name} | `{stream['name']}` | {ours['large_usd']:g} | {ours['offload']:.0%} | {before:.3g} s | "
                    f"{after:.3g} s ({after / before - 1:+.0%}) | {told['faster']:.2f}x |"
                )
    return "\n".join(lines) + "\n"


def _bars(streams: list[dict[str, Any]]) -> str:
    lines = [
        "| | target | " + " | ".join(f"`{stream['name']}`" for stream in streams) + " |",
        "| --- | ---: |" + " ---: |" * len(streams),
    ]
    rows: dict[tuple[str, str], list[str]] = {}
    for stream in streams:
        ours = next(each for each in stream["settings"] if each["chosen"])
        told = ours["speeds"][0]
        slower = told["latency_s"]["ours"] / told["latency_s"]["large"] - 1.0
        for name, target, shown, met in (
            (
                "requests with one like them before",
                "70%",
                f"{stream['similar']:.0%}",
                stream["similar"] >= 0.7,
            ),
            ("points against always large", "-1", f"{100 * ours['apart']:+.1f}", ours["apart"] >= -0.01),
            ("offload", "50%", f"{ours['offload']:.0%}", ours["offload"] >= 0.5),
            ("throughput", "1.4x", f"{told['faster']:.2f}x", told["faster"] >= 1.4),
            ("mean latency", "-28%", f"{slower:+.0%}", slower <= -0.28),
        ):
            rows.setdefault((name, target), []).append(f"{shown} ({'met' if met else 'missed'})")
    lines += [f"| {name} | {target} | {' | '.join(cells)} |" for (name, target), cells in rows.items()]
    return "\n".join(lines) + "\n"


_HEAD = """# Examples for a small model

What it brings to show a small model how a large one answered similar questions (`models.NAME.examples`, IC-Cache),
against asking the large one always. Measured {date} by `python -m benchmarks.incontext`.

- **The requests** are real: messages of a bank's customers (77 intents) and of an assistant's users (40 of its 150), to
  be sorted by intent. {warm} have been answered by the large model when a stream begins.
- **The small model** is real: SmolLM2-135M (4 bits) on this machine, asked as the proxy asks it, with up to {k}
  examples as turns before the question. An answer is right if it names the intent.
- **The large model** is recorded: the right intent, or, in {wrong} of the answers, the intent nearest to it. It has to
  be, for no larger model comes as a package that is good at this; its mistakes become examples, as they would.
- **What decides** are the proxy's own parts: `Examples` chooses and learns, `route/priced` routes, `latency/load`
  predicts the wait. {learning} requests of each stream come before those that count; all of their answers are graded,
  and {graded:.0%} of those afterwards. `curiosity` is 1, for nothing is known at first of a model that is useless
  without examples. "Price" is what an answer of the large model costs of what a right one is worth; the small one's
  costs a tenth. Of three prices the one is chosen that offloads most on the *other* stream and loses at most a point.
- "By lot" gives the small model as many requests as the router did (expected value). "Best possible" knows before who
  would be right, and gives the small model all that it does not lose by.
"""

_SPEED = """## Latency and throughput

In virtual time, on equal hardware. The large model alone has four replicas, which see {of} of what they can answer; the
router has three and the small model in place of the fourth. Throughput is that with all requests there at once, who
answers which unchanged. On the graphics cards both models have shipped profiles (the small one that of 8B, which is
sixty times SmolLM2: a bound from above). On the cores the small one takes as long as was measured,
{prompt_tokens_per_s:.0f} prompt and {output_tokens_per_s:.0f} output tokens a second ({answers} answers, on a core that
much other work was using too), and the large one, of 1.7 billion parameters, in proportion.
"""

_BARS = """## Against the targets

On the graphics cards:
"""

_READ = """## What it says

**The targets for quality and offload are not met together on either stream**, and it is the small model that they fail
by. Without examples it is right in none of the answers; with them, in two of three. Where all three examples agree,
which is where they help most, it is right in 86% (bank, half of the requests) and 83% (assistant, two thirds) against
90% and 95% of the large model, although the nearest example has the right intent in 91% and 99% of those. It does not
always repeat what it is shown: it says "call phone" for "find phone", or answers the question. So half of the requests
cannot be moved to it within a point by what is known before; the best possible router can, for it knows which answers
are wrong. The paper's small models have billions of parameters, and follow examples.

What the mechanism itself does: it beats drawing by lot at every price; it learns from the graded answers how far this
small model can be trusted, and where the price is small and the large model good it stays with that. Latency and
throughput follow the offload. A split of the hardware that is fixed beforehand is lost where the router then offloads
little: three large replicas of four answer less than four.

Not measured here: asking again for poor examples (`replay`; a recorded model says the same twice), eviction (32 MiB
hold all of these), conversations, and long answers, where the small model saves more time and is harder to grade.
"""
