"""``apportion replay``: what a configuration would have cost on a trace, and how fast it would have been."""

from __future__ import annotations

from typing import Any

import click

from apportion.cli._rehearsing import asked, options
from apportion.cli.start import DEFAULT_FILE


@click.command("replay")
@click.argument("trace", metavar="TRACE", type=click.Path())
@click.option(
    "--config",
    "config",
    type=click.Path(),
    default=DEFAULT_FILE,
    show_default=True,
    help="The configuration; its endpoints have a `profile`.",
)
@click.option(
    "--seeds", type=click.IntRange(1, 1000), default=1, show_default=True, help="Runs with other luck."
)
@click.option("--no-baseline", is_flag=True, help="Leave out the run with the models' `baseline` policies.")
@options
def command(trace: str, config: str, no_baseline: bool, **given: Any) -> None:
    """Rehearse TRACE with a configuration: what it would have cost, and how fast it would have been.

    TRACE is a file of requests with their times and tokens (BurstGPT, Azure, Mooncake, ServeGen, a decision log, or any
    CSV, JSONL or Parquet with such columns). The endpoints are simulated from their profiles, the decisions are made by
    the same code that serves. Beside the configuration stand its baseline and the best that was possible.
    """
    from apportion.cli import _rehearsing

    wanted = asked(**given)
    one = _rehearsing.case(config)
    cases = (one,) if no_baseline else _rehearsing.with_baseline(one)
    _rehearsing.named_rightly(cases, wanted)
    work = _rehearsing.opened(trace, wanted)
    _rehearsing.rehearse(cases, work, wanted, f"Rehearsal of {one.name}")
