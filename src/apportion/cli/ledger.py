"""``apportion ledger``: the books themselves: checked, exported, cleared up."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from apportion.cli.record import ledger_options, record, redis_url
from apportion.core.errors import ApportionError

if TYPE_CHECKING:
    from decimal import Decimal

    from apportion.serve.ledger.database import Database
    from apportion.serve.ledger.holding import Holder, Lent

_JSON = click.option("--json", "json_", is_flag=True, help="As JSON.")


class HolderError(ApportionError):
    """A holder is not there, or is alive and must not be forgotten."""

    code = "holder"


@click.group("ledger")
def command() -> None:
    """Check the books, see who has what of the budgets, export and delete entries."""


@command.command("verify")
@ledger_options
@_JSON
def verify(ledger: str | None, file: str | None, json_: bool) -> None:
    """Recompute every account from the entries. The exit status is 1 if anything does not agree.

    Sees one moment of the books, so it is right while a proxy is running, and stops nobody.
    """
    import sqlalchemy as sa

    from apportion.cli.show import as_json, table
    from apportion.serve.ledger.reading import reading
    from apportion.serve.ledger.schema import accounts, entries

    with record(ledger, file) as database:
        findings = database.verify()
        with reading(database.engine) as connection:
            counts = [
                connection.execute(sa.select(sa.func.count()).select_from(each)).scalar_one()
                for each in (entries, accounts)
            ]
    if json_:
        as_json({"entries": counts[0], "accounts": counts[1], "right": not findings, "findings": findings})
    elif findings:
        table("What does not agree", ("", "finding"), [(str(n), each) for n, each in enumerate(findings, 1)])
        click.echo(
            "Stop spending, keep the database as it is, and report this: it must not happen.", err=True
        )
    else:
        words = click.style("right", fg="green")
        click.echo(f"{counts[0]:,} entries, {counts[1]:,} accounts: {words}")
    if findings:
        sys.exit(1)


@command.command("holders")
@ledger_options
@_JSON
def list_holders(ledger: str | None, file: str | None, json_: bool) -> None:
    """List the worker processes that have something of the budgets, or had when they were last heard of."""
    from apportion.cli.show import as_json, table

    found = _holders(ledger, file)
    if json_:
        as_json([_holder_object(each) for each in found])
        return
    if not found:
        click.echo("Nobody holds anything.")
        return
    now_s = time.time()
    rows = [
        (
            each.holder,
            each.machine,
            each.state,
            _ago(now_s - each.opened_s),
            _ago(now_s - each.seen_s),
            f"{each.open:,}",
            "\n".join(map(_lent, each.lent)),
        )
        for each in found
    ]
    head = ("holder", "machine", "state", "started", "last heard", "open", "lent")
    table("Holders", head, rows)


@command.command("forget")
@click.argument("holder")
@ledger_options
@_JSON
def forget(holder: str, ledger: str | None, file: str | None, json_: bool) -> None:
    """Take back at once what HOLDER was lent: its machine and its journal are gone for good.

    What it had reserved counts as spent. Without this it comes back by itself, when its window is over or after a
    day. A worker that is alive is not forgotten: stop it.
    """
    from apportion.cli.show import as_json

    found = {each.holder: each for each in _holders(ledger, file)}
    if holder not in found:
        raise HolderError(
            f"There is no holder {holder[:60]!r}.", field="holder", fix="See `apportion ledger holders`."
        )
    if found[holder].state == "alive":
        raise HolderError(
            f"The worker {holder} on {found[holder].machine} is alive.",
            field="holder",
            fix="Stop it; it then gives back what it was lent.",
        )
    with record(ledger, file) as database:
        if found[holder].by_redis:
            _forget_in_redis(database, holder, redis_url(file))
        else:
            database.forget(holder)
    if json_:
        as_json({"forgotten": holder, "presumed": found[holder].open})
    else:
        click.echo(f"Forgot {holder}: {found[holder].open:,} open reservations count as spent.")


@command.command("prune")
@click.option(
    "--before", required=True, metavar="WHEN", help="90d (ago), 2026-01-01; at least seven days ago."
)
@click.option("--time-zone", default="UTC", show_default=True, metavar="ZONE", help="Of that time.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@ledger_options
@_JSON
def prune(before: str, time_zone: str, yes: bool, ledger: str | None, file: str | None, json_: bool) -> None:
    """Delete what was booked before a time. Export it first: reports do not show it any more.

    Balances stay, also of budgets that last forever, and can still be verified. A proxy may be running. Before, let
    every machine whose proxy has crashed start once more: what its journal knows must find its reservations.
    """
    from apportion.cli.show import as_json
    from apportion.serve.ledger import prune as pruning
    from apportion.serve.ledger.buckets import moment, zone
    from apportion.serve.ledger.reading import reading
    from apportion.serve.ledger.spend import instant

    place, now_s = zone(time_zone), time.time()
    before_us = instant(before, now_s, place, "before")
    with record(ledger, file) as database:
        if not yes:
            with reading(database.engine) as connection:
                count = pruning.countable(connection, before_us)
            when = moment(before_us, place).strftime("%Y-%m-%d %H:%M %Z")
            click.confirm(f"Delete up to {count:,} entries from before {when}?", abort=True)
        done = pruning.prune(database, before_us, int(now_s * 1e6))
    if json_:
        as_json({"entries": done.entries, "accounts": done.accounts})
    else:
        click.echo(f"Deleted {done.entries:,} entries; {done.accounts:,} accounts begin later.")


@command.command("export")
@click.option(
    "--since", metavar="WHEN", help="7d (ago), 2026-11-01 or 2026-11-01T08:00. Default: everything."
)
@click.option("--until", metavar="WHEN", help="Only what was written down before. Default: now.")
@click.option("--time-zone", default="UTC", show_default=True, metavar="ZONE", help="Of these times.")
@ledger_options
def export(
    since: str | None, until: str | None, time_zone: str, ledger: str | None, file: str | None
) -> None:
    """Write every entry to standard output, a JSON object a line, oldest first."""
    from apportion.serve.ledger.buckets import zone
    from apportion.serve.ledger.exporting import lines
    from apportion.serve.ledger.reading import reading
    from apportion.serve.ledger.spend import instant

    place, now_s = zone(time_zone), time.time()
    since_us = None if since is None else instant(since, now_s, place, "since")
    until_us = None if until is None else instant(until, now_s, place, "until")
    with record(ledger, file) as database, reading(database.engine) as connection:
        for line in lines(connection, since_us, until_us):
            sys.stdout.write(line)


def _holders(ledger: str | None, file: str | None) -> list[Holder]:
    from apportion.serve.ledger.holding import known
    from apportion.serve.ledger.reading import reading

    with record(ledger, file) as database, reading(database.engine) as connection:
        return list(known(connection, time.time(), database.lease_s))


def _holder_object(holder: Holder) -> dict[str, Any]:
    from apportion.serve.config.units import show_moment

    return {
        "holder": holder.holder,
        "machine": holder.machine,
        "state": holder.state,
        "opened": show_moment(holder.opened_s),
        "seen": show_moment(holder.seen_s),
        "dead": None if holder.dead_s is None else show_moment(holder.dead_s),
        "open": holder.open,
        "lent": [
            {
                "resource": lent.resource,
                "leases": lent.leases,
                "free": str(lent.free),
                "reserved": str(lent.reserved),
                "most": str(lent.most),
            }
            for lent in holder.lent
        ],
    }


def _forget_in_redis(database: Database, holder: str, url: str | None) -> None:
    """Where Redis lends, it must be told, too."""
    if url is None:
        raise HolderError(
            f"The worker {holder} was lent by Redis.",
            field="ledger.redis",
            fix="Name the configuration of the proxy with --config: Redis must be told.",
        )
    from apportion.serve.ledger.redis_bank import RedisBank

    RedisBank(database, url, lease_s=database.lease_s).forget(holder)


def _lent(lent: Lent) -> str:
    """What a holder has of one resource, in words."""
    if lent.most:
        return f"at most {_plain(lent.most)} {lent.resource}, by Redis"
    return f"{_plain(lent.free)} free, {_plain(lent.reserved)} reserved {lent.resource}"


def _plain(amount: Decimal) -> str:
    return f"{amount.normalize():f}"


def _ago(seconds: float) -> str:
    """About how long ago."""
    for unit, length_s in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length_s:
            return f"{int(seconds // length_s)} {unit} ago"
    return f"{max(0.0, seconds):.0f} s ago"
