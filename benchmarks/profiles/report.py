"""The results as a page of the documentation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gateway.report import table

PAGE = Path(__file__).parents[2] / "docs" / "results" / "profiles.md"

_HEAD = """
# Profiles: how right they are

How well the laws of [profiles](../guides/calibrate.md) predict measurements that they were not fitted to.
Everything on this page is written by `python -m benchmarks.profiles`, which also writes the profiles of the
package; the data sets are read from `$APPORTION_DATA`.

## Profiles of the package

The law of an iteration is fitted with robust non-negative least squares; each setting is held out in turn
(five folds), and the error is the mean absolute relative one. `prompt_s` is the pass over prompts and
`token_s` one step of generation, by batch size and length (measurements of Splitwise); `tpot_s` the time per
output token by prompt length, answer length and requests under way (serving points of AIConfigurator);
`layers_s`, `prefill_attention_s`, `decode_attention_s` are kernels (Vidur and AIConfigurator): the layers
between the numbers of tokens that were kept, and attention of one shape by length and batch. Few settings
were measured for prompts, so that holding one out often means extrapolating; that is the larger error. Of the
fitted profiles, those are kept whose error at serving points is at most 10% and whose smallest iteration is
not shorter than reading the weights takes.
"""

_SHEETS = """
## Data sheets alone

`roofline:MACHINE/MODEL/tpN` computes a profile from the data sheet and the model's shape with seven fitted
constants. Error of the time per output token at serving points, each machine and model left out of the fit in
turn:
"""

_ENERGY = """
Against ML.ENERGY's leaderboard v3, which had no part in any fit (evaluation only), for dense models on the
chat task. The table does not give prompt lengths (150 tokens assumed) and its times contain the prompts of
others; power is that of the roofline's shares of the board power, which are not fitted:
"""


def write_page(results: Mapping[str, Any]) -> None:
    """Write the page from what was measured."""
    sheets = results["sheets"]
    parts = [
        _HEAD,
        table(
            ("profile", "held-out error", "rows", "1 token", "1024 tokens"),
            [
                (
                    f"`{p['name']}`" + ("" if p["kept"] else f" (left out: {p['why_not']})"),
                    ", ".join(f"{name} {value:.1%}" for name, value in p["error"].items()),
                    str(p["rows"] or ""),
                    f"{p['one_ms']:.1f} ms",
                    f"{p['thousand_ms']:.1f} ms",
                )
                for p in results["profiles"]
            ],
        ),
        _SHEETS,
        table(
            ("machine", "model", "points", "error"),
            [(r["machine"], r["model"], str(r["points"]), f"{r['mape']:.1%}") for r in sheets["left_out"]],
        ),
        f"Together {sheets['mape_left_out']:.1%} left out, {sheets['mape_fitted']:.1%} fitted. Constants: "
        + ", ".join(f"{name} {value:g}" for name, value in sheets["efficiency"].items())
        + ".",
        _ENERGY,
        table(
            ("machine", "quantity", "points", "error", "median ratio, ours over measured"),
            [
                (
                    r["machine"],
                    r["quantity"],
                    str(r["points"]),
                    f"{r['mape']:.1%}",
                    f"{r['median_ratio']:.2f}",
                )
                for r in results["mlenergy"]
            ],
        ),
    ]
    PAGE.write_text("\n\n".join(part.strip() for part in parts) + "\n")
