"""What commands print with: tables, progress, JSON, errors. Colours only on a terminal without NO_COLOR."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from apportion.core.errors import ApportionError


def console(*, stderr: bool = False) -> Console:
    """A rich console on standard output or error that neither guesses markup nor cuts text when piped."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else 200
    return Console(stderr=stderr, highlight=False, emoji=False, markup=False, width=width, soft_wrap=False)


def as_json(data: object) -> None:
    """Print ``data`` as indented JSON."""
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(data), indent=2).decode())


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; nothing if it has no rows."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return
    shown = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in head:
        shown.add_column(name, overflow="fold")
    for row in rows:
        shown.add_row(*(Text(cell) for cell in row))
    console().print(shown)


def fail(error: ApportionError) -> None:
    """Show an error on standard error: all its problems if it has several, and the fix."""
    from rich.text import Text

    target = console(stderr=True)
    problems = getattr(error, "problems", None)
    if not problems:
        target.print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
        return
    count = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
    target.print(Text.assemble(("error: ", "bold red"), f"the configuration has {count}."), soft_wrap=True)
    for problem in problems:
        where = f"{problem.file}:{problem.line}" if problem.line is not None else problem.file
        parts = Text.assemble((where, "cyan"), ": ", (f"{problem.path}: " if problem.path else "", "bold"))
        parts.append(problem.message)
        if problem.fix:
            parts.append(f" {problem.fix}", "green")
        target.print(parts, soft_wrap=True)


@contextmanager
def bytes_progress() -> Iterator[Callable[[int, int | None, str], None]]:
    """A progress bar on standard error for bytes: call it with (done, total or None, label).

    Away from a terminal each new label is one plain line.
    """
    if not sys.stderr.isatty():
        seen: set[str] = set()

        def line(done_bytes: int, total_bytes: int | None, label: str) -> None:
            if label not in seen:
                seen.add(label)
                size = f" ({total_bytes / 1e6:.0f} MB)" if total_bytes else ""
                click.echo(f"{label}{size} ...", err=True)

        yield line
        return

    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(
        *columns, TransferSpeedColumn(), TimeRemainingColumn(), console=console(stderr=True), transient=True
    ) as bars:
        tasks: dict[str, TaskID] = {}

        def bar(done_bytes: int, total_bytes: int | None, label: str) -> None:
            if label not in tasks:
                tasks[label] = bars.add_task(label, total=total_bytes)
            bars.update(tasks[label], completed=done_bytes, total=total_bytes)

        yield bar
