"""``apportion spend``: where the money went."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from apportion.cli.record import ledger_options, record

if TYPE_CHECKING:
    from rich.table import Table

    from apportion.serve.ledger.report import Tally
    from apportion.serve.ledger.spend import Question, Row, Spent

_Command = TypeVar("_Command", bound=Callable[..., object])

_FILTERS = (
    "organisation",
    "team",
    "key",
    "user",
    "session",
    "model",
    "endpoint",
    "upstream_model",
    "api",
    "status",
    "mark",
)
_TABLE_ROWS = 50
_DIGITS = 6
"""The most decimals of a dollar that the table shows."""
_LEAST = ("gCO2", "J", "server-s", "cached", "share", "output", "input", "requests")
"""Columns that a narrow terminal does without, the first of them first."""
_BETWEEN = 3
"""What stands between two columns, in characters."""
_WIDE = 24
"""Groups wider than this are folded where there is no room."""
_SHARE = 0.001
"""Shares below this are shown as less than it."""


def _filters(command: _Command) -> _Command:
    """One option for each column that can be filtered on."""
    for name in reversed(_FILTERS):
        option = click.option(
            f"--{name.replace('_', '-')}",
            name,
            multiple=True,
            metavar="NAME",
            help="Only this one (of these).",
        )
        command = option(command)
    return command


@click.command("spend")
@click.option(
    "--by",
    default="model",
    show_default=True,
    metavar="LIST",
    help=f"Groups, separated by commas: {', '.join(_FILTERS)}, hour, day, week, month, tag:NAME.",
)
@click.option(
    "--since",
    metavar="WHEN",
    help="Only what was booked since: 7d (ago), 2026-11-01 or 2026-11-01T08:00. Default: everything.",
)
@click.option("--until", metavar="WHEN", help="Only what was booked before. Default: now.")
@click.option(
    "--time-zone",
    default="UTC",
    show_default=True,
    metavar="ZONE",
    help="Whose hours, days, weeks and months they are, for example Europe/Berlin.",
)
@_filters
@click.option("--tag", "tags", multiple=True, metavar="NAME=VALUE", help="Only what has this tag.")
@click.option(
    "--sort",
    type=click.Choice(("usd", "by")),
    default="usd",
    show_default=True,
    help="Most money first, or in the order of the groups.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    help=f"The most groups to show; the others are shown as one. Default: {_TABLE_ROWS} in the table, else all.",
)
@click.option("--csv", "form", flag_value="csv", help="As CSV, exact.")
@click.option("--json", "form", flag_value="json", help="As JSON, exact.")
@click.option(
    "--focus",
    "form",
    flag_value="focus",
    help="As CSV in the columns of FOCUS 1.4 (FinOps), a row a day; --by, --sort and --limit do not count.",
)
@ledger_options
def command(
    by: str,
    since: str | None,
    until: str | None,
    time_zone: str,
    tags: tuple[str, ...],
    sort: str,
    limit: int | None,
    form: str | None,
    ledger: str | None,
    file: str | None,
    **columns: tuple[str, ...],
) -> None:
    """Show what was spent, on what, by whom.

    Read from the books, which a proxy may be writing meanwhile. Amounts that were estimated are marked `~`. Times
    are those at which a request was settled.
    """
    from apportion.serve.ledger.buckets import zone
    from apportion.serve.ledger.reading import reading
    from apportion.serve.ledger.spend import Question, grouping, instant

    place, now_s = zone(time_zone), time.time()
    question = Question(
        by=grouping(by),
        since_us=None if since is None else instant(since, now_s, place, "since"),
        until_us=None if until is None else instant(until, now_s, place, "until"),
        place=place,
        only=_only(columns, tags),
        sort=sort,
    )
    with record(ledger, file) as database, reading(database.engine) as connection:
        _show(connection, question, form, limit)


def _only(columns: dict[str, tuple[str, ...]], tags: Iterable[str]) -> dict[str, tuple[str, ...]]:
    from apportion.serve.ledger.spend import TAG

    found = {name: values for name, values in columns.items() if values}
    for text in tags:
        name, is_, value = text.partition("=")
        if not (name and is_):
            raise click.BadParameter("a tag is given as NAME=VALUE.", param_hint="--tag")
        found[TAG + name] = (*found.get(TAG + name, ()), value)
    return found


def _show(connection: Any, question: Question, form: str | None, limit: int | None) -> None:
    from apportion.serve.ledger import focus
    from apportion.serve.ledger.report import Tally, as_csv, as_json, cell, csv_line
    from apportion.serve.ledger.spend import rows

    if form == "focus":
        _write((csv_line(focus.COLUMNS),))
        for charge in focus.charges(connection, question):
            _write((csv_line(_focus_cell(charge[name], cell) for name in focus.COLUMNS),))
        return
    found = rows(connection, question)
    if form is not None:
        _write((as_json if form == "json" else as_csv)(question, found, limit))
        return
    tally = Tally(limit or _TABLE_ROWS)
    _print(question, list(tally.first(found)), tally)


def _focus_cell(value: str | None, cell: Callable[[str], str]) -> str:
    """Null is an empty cell; numbers may be below zero and are no formulas."""
    if value is None:
        return ""
    try:
        float(value)
    except ValueError:
        return cell(value)
    return value


def _write(parts: Iterable[str]) -> None:
    for part in parts:
        sys.stdout.write(part)


# the table


def _print(question: Question, shown: Sequence[Row], tally: Tally) -> None:
    from apportion.cli.show import console

    target = console()
    if not tally.total.attempts and not shown:
        target.print("Nothing was booked.")
        return
    digits, rounded = _digits([tally.total.usd, tally.others.usd, *(row.spent.usd for row in shown)])
    groups = [tuple(value or "-" for value in row.group) for row in shown]
    spents = [row.spent for row in shown]
    blank = [""] * max(0, len(question.by) - 1)
    if tally.left_out:
        groups.append((f"{tally.left_out:,} other{'s' if tally.left_out > 1 else ''}", *blank))
        spents.append(tally.others)
    summed = len(spents) > 1
    if summed:
        groups.append(("total", *blank))
        spents.append(tally.total)
    names = [name.removeprefix("tag:") for name in question.by]
    columns, left_out, needed = _fitting(
        _amounts(spents, tally.total, digits), [names, *groups], target.width
    )
    table = _table(_title(question), names, groups, columns, summed=summed, others=bool(tally.left_out))
    # Where nothing helps, the terminal breaks the lines: half an amount must not be shown as one.
    target.print(table, width=max(target.width, needed), crop=False, no_wrap=True, overflow="ignore")
    for note in _notes(tally, rounded):
        target.print(note, style="dim", soft_wrap=True)
    if left_out:
        target.print(f"Too wide for here: {', '.join(left_out)}.", style="dim", soft_wrap=True)


def _table(
    title: str,
    names: Sequence[str],
    groups: Sequence[Sequence[str]],
    columns: Sequence[tuple[str, Sequence[str]]],
    *,
    summed: bool,
    others: bool,
) -> Table:
    """``columns`` are heads with cells; the last row is the total if ``summed``, the one before it ``others``."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name, *cells in zip(names, *groups, strict=True):
        table.add_column(name, overflow="fold", min_width=min(_WIDE, max(map(len, (name, *cells)))))
    for head, _ in columns:
        table.add_column(head, justify="right", no_wrap=True)
    last = len(groups) - 1
    for place, group in enumerate(groups):
        total = summed and place == last
        if total:
            table.add_section()
        style = "bold" if total else "dim" if others and place == last - 1 else None
        table.add_row(*map(Text, group), *(Text(cells[place]) for _, cells in columns), style=style)
    return table


def _amounts(spents: Sequence[Spent], whole: Spent, digits: int) -> list[tuple[str, list[str]]]:
    """The columns that say anything: each head with its cells."""
    return [
        (column.head, [column.show(spent, whole, digits) for spent in spents])
        for column in _COLUMNS
        if column.always or column.of(whole)
    ]


def _fitting(
    columns: list[tuple[str, list[str]]], groups: Sequence[Sequence[str]], width: int
) -> tuple[list[tuple[str, list[str]]], list[str], int]:
    """Those columns that fit beside the groups, the important ones first; the heads of the others; how wide all
    is then.
    """
    taken = [min(_WIDE, max(map(len, cells))) for cells in zip(*groups, strict=True)]
    heads = {head for head, _ in columns}
    left_out: list[str] = []
    for head in ("", *(head for head in _LEAST if head in heads)):
        if head:
            left_out.append(head)
            columns = [column for column in columns if column[0] != head]
        widths = [*taken, *(max(len(name), *map(len, cells)) for name, cells in columns)]
        needed = sum(widths) + _BETWEEN * len(widths) + 1
        if needed <= width:
            break
    return columns, left_out, needed


class _Column:
    """A column of amounts: ``of`` is what decides whether it is shown at all."""

    def __init__(
        self,
        head: str,
        of: Callable[[Spent], int | None],
        show: Callable[[Spent, Spent, int], str],
        *,
        always: bool = False,
    ) -> None:
        self.head, self.of, self.show, self.always = head, of, show, always


def _count(name: str) -> Callable[[Spent, Spent, int], str]:
    return lambda spent, _total, _digits: f"{getattr(spent, name):,}"


def _rounded(name: str) -> Callable[[Spent, Spent, int], str]:
    """To a tenth of the unit; nothing where it is not known."""

    def show(spent: Spent, _total: Spent, _digits: int) -> str:
        from decimal import Decimal

        from apportion.serve.ledger.spend import exact

        units = getattr(spent, name)
        if units is None:
            return ""
        amount = Decimal(exact(name, units))
        return f"{amount:,.1f}" if amount == 0 or abs(amount) >= Decimal("0.05") else "<0.1"

    return show


def _money(spent: Spent, _total: Spent, digits: int) -> str:
    if spent.unpriced and spent.unpriced == spent.attempts:
        return "unknown?"
    mark = "~" if spent.usd_estimated or spent.usd_presumed else ""
    unknown = "?" if spent.unpriced else " "
    return f"{mark}{_dollars(spent.usd, digits)}{unknown}"


def _dollars(units: int, digits: int) -> str:
    from apportion.core.resource import USD

    if units and abs(units) * 2 < 10 ** (USD.decimals - digits):
        return f"{'-' if units < 0 else ''}<{10**-digits:.{digits}f}"
    return f"{USD.from_units(units):,.{digits}f}"


def _share(spent: Spent, total: Spent, _digits: int) -> str:
    return _percent(spent.usd, total.usd)


def _percent(part: int, whole: int) -> str:
    if not whole:
        return ""
    share = part / whole
    return f"<{_SHARE:.1%}" if 0 < share < _SHARE else f"{share:.1%}"


_COLUMNS = (
    _Column("requests", lambda spent: spent.requests, _count("requests"), always=True),
    _Column("input", lambda spent: spent.input_tokens, _count("input_tokens"), always=True),
    _Column("cached", lambda spent: spent.cached_tokens, _count("cached_tokens")),
    _Column("output", lambda spent: spent.output_tokens, _count("output_tokens"), always=True),
    _Column("USD", lambda spent: spent.usd, _money, always=True),
    _Column("share", lambda spent: spent.usd, _share),
    _Column("server-s", lambda spent: spent.server_seconds, _rounded("server_seconds")),
    _Column("J", lambda spent: spent.joules, _rounded("joules")),
    _Column("gCO2", lambda spent: spent.gco2, _rounded("gco2")),
)


def _digits(amounts: Sequence[int]) -> tuple[int, bool]:
    """How many decimals of a dollar the table needs, and whether they are fewer than there are."""
    from apportion.core.resource import USD

    needed = 2
    smallest = min((abs(units) for units in amounts if units), default=0)
    while needed < _DIGITS and smallest and smallest < 10 ** (USD.decimals - needed + 2):
        needed += 1
    return needed, any(units % 10 ** (USD.decimals - needed) for units in amounts)


def _title(question: Question) -> str:
    from apportion.serve.ledger.buckets import moment

    def at(at_us: int) -> str:
        return moment(at_us, question.place).strftime("%Y-%m-%d %H:%M")

    since = "" if question.since_us is None else f" since {at(question.since_us)}"
    until = "" if question.until_us is None else f" until {at(question.until_us)}"
    zone = (
        f" ({question.place.key})"
        if since or until or {"hour", "day", "week", "month"} & {*question.by}
        else ""
    )
    return f"Spent{since}{until or ('' if since else ', all time')}{zone}"


def _notes(tally: Tally, rounded: bool) -> Iterator[str]:
    total = tally.total
    digits = _digits([total.usd_estimated, total.usd_presumed])[0]

    def part(units: int) -> str:
        share = _percent(units, total.usd)
        return f"{_dollars(units, digits)} USD{f' ({share})' if share else ''}"

    if total.usd_estimated:
        yield f"~ {part(total.usd_estimated)} estimated: the provider reported no usage, tokens were counted."
    if total.usd_presumed:
        yield f"~ {part(total.usd_presumed)} presumed: the most that requests of a crashed worker may have cost."
    if total.unpriced:
        yield (
            f"? {total.unpriced:,} attempts with {total.unpriced_tokens:,} tokens have no known price and are in "
            "no dollar amount."
        )
    if rounded:
        yield "Dollars are rounded here; --json and --csv are exact."
