"""``apportion compare``: several configurations on one trace, side by side, with the best possible."""

from __future__ import annotations

from typing import Any

import click

from apportion.cli._rehearsing import asked, options


@click.command("compare")
@click.argument("configs", metavar="CONFIG...", nargs=-1, required=True, type=click.Path())
@click.option(
    "--trace", "trace", required=True, type=click.Path(), help="The requests, as for `apportion replay`."
)
@click.option(
    "--seeds", type=click.IntRange(1, 1000), default=3, show_default=True, help="Runs with other luck."
)
@options
def command(configs: tuple[str, ...], trace: str, **given: Any) -> None:
    """Rehearse a trace with several configurations, side by side, with the best possible in the last column.

    The first CONFIG is the baseline. All see the same requests and the same luck (paired seeds); differences are called
    significant where a test says so. A single CONFIG is compared with the `baseline` policies of its models.
    """
    from pathlib import Path

    from apportion.cli import _rehearsing

    wanted = asked(**given)
    stems = [Path(path).stem for path in configs]
    names = [stem if stems.count(stem) == 1 else path for stem, path in zip(stems, configs, strict=True)]
    cases = [_rehearsing.case(path, name) for path, name in zip(configs, names, strict=True)]
    compared = _rehearsing.with_baseline(cases[0]) if len(cases) == 1 else tuple(cases)
    _rehearsing.named_rightly(compared, wanted)
    work = _rehearsing.opened(trace, wanted)
    _rehearsing.rehearse(
        compared, work, wanted, f"Comparison of {' and '.join(case.name for case in compared)}"
    )
