"""``apportion keys``: keys that are kept in the database."""

from __future__ import annotations

import time
from typing import Any

import click

from apportion.cli.people import (
    BALANCE_HEAD,
    Opened,
    actor,
    balance_row,
    form,
    given,
    opened,
    owner_fields,
    owner_options,
    shown_limits,
    shown_names,
    shown_spending,
    tags,
)
from apportion.cli.record import ledger_options

_JSON = click.option("--json", "json_", is_flag=True, help="As JSON.")


@click.group("keys", invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """Make, list, rotate, disable and delete keys.

    They are kept in the database of the books, as keyed hashes: a key is shown once, when it is made. A running
    proxy notices a change within a second. Keys of the configuration file are listed, and changed there.
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_keys)


@command.command("create")
@click.argument("name")
@click.option("--team", help="The team it belongs to.")
@owner_options
@click.option("--expires", help="From when it is refused: 2027-01-31T12:00:00Z, or in 30d.")
@click.option("--tag", "tag", multiple=True, metavar="NAME=VALUE", help="A label on everything it asks.")
@click.option("--admin", is_flag=True, help="May use the admin API, too.")
@ledger_options
@_JSON
def create(
    name: str,
    team: str | None,
    expires: str | None,
    tag: tuple[str, ...],
    admin: bool,
    ledger: str | None,
    file: str | None,
    json_: bool,
    **owner: Any,
) -> None:
    """Make a key called NAME. The key alone goes to standard output."""
    from apportion.serve.forms import KeyForm, new_key
    from apportion.serve.shown import shown_key

    now = time.time()
    fields = owner_fields(**owner) | given(team=team, expires=expires, admin=admin or None)
    key = new_key(form({"name": name, "tags": tags(tag), **fields}, KeyForm), now)
    with opened(ledger, file) as database:
        database.refuse_configured("key", name)
        database.known().check_key(key)
        teams = () if database.config is None else database.config.teams
        stored, secret = database.people.create_key(key, actor(), teams=teams)
    _tell(shown_key(stored.key, now, stored), secret, f"The key {name!r} is made.", json_)


@command.command("list")
@ledger_options
@_JSON
def list_keys(ledger: str | None = None, file: str | None = None, json_: bool = False) -> None:
    """List all keys: those of the database, and those of the configuration."""
    from apportion.cli.show import as_json, table
    from apportion.serve.shown import shown_key

    now = time.time()
    with opened(ledger, file) as database:
        found = [] if database.config is None else [shown_key(key, now) for key in database.config.keys]
        found += [shown_key(stored.key, now, stored) for stored in database.people.all_keys()]
    if json_:
        as_json(found)
    elif not found:
        click.echo("There are no keys. Make one with `apportion keys create NAME`.")
    else:
        head = ("name", "id", "state", "role", "team", "models", "limits", "budget", "expires")
        table("Keys", head, [_row(key) for key in found])


@command.command("show")
@click.argument("key")
@ledger_options
@_JSON
def show(key: str, ledger: str | None, file: str | None, json_: bool) -> None:
    """Show KEY (its name or id) and what is left of its budgets. Nobody can show the key itself."""
    from apportion.cli.show import as_json, table
    from apportion.serve.shown import shown_balance

    with opened(ledger, file) as database:
        found = _find(database, key)
        scopes = [f"key:{found['name']}"] + ([f"team:{found['team']}"] if found["team"] else [])
        left = [shown_balance(each) for each in database.people.balances(subjects=scopes)]
    if json_:
        as_json({**found, "budgets": left})
        return
    words = {
        **found,
        "models": shown_names(found["models"]),
        "endpoints": shown_names(found["endpoints"]),
        "tags": ", ".join(f"{name}={value}" for name, value in found["tags"].items()),
        "limits": shown_limits(found["limits"]),
        "budget": shown_spending(found["budget"]),
        "admin": "yes" if found["admin"] else "no",
    }
    table(
        "Key", ("", ""), [(name, str(value)) for name, value in words.items() if value and name != "object"]
    )
    table("What is left", BALANCE_HEAD, [balance_row(each) for each in left])


@command.command("rotate")
@click.argument("key")
@click.option(
    "--grace", default="0s", show_default=True, help="For how long the old key stays valid: 1h, 7d."
)
@ledger_options
@_JSON
def rotate(key: str, grace: str, ledger: str | None, file: str | None, json_: bool) -> None:
    """Give KEY (its name or id) a new secret. The new key alone goes to standard output."""
    from apportion.serve.forms import RotateForm, grace_s
    from apportion.serve.shown import shown_key

    seconds = grace_s(form({"grace": grace}, RotateForm))
    with opened(ledger, file) as database:
        database.refuse_configured("key", key)
        stored, secret = database.people.rotate_key(key, seconds, actor())
    kept = f"The old one is valid for {grace} more." if seconds else "The old one is no longer valid."
    _tell(shown_key(stored.key, time.time(), stored), secret, f"The key {key!r} is rotated. {kept}", json_)


@command.command("disable")
@click.argument("key")
@ledger_options
@_JSON
def disable(key: str, ledger: str | None, file: str | None, json_: bool) -> None:
    """Refuse KEY (its name or id) until it is enabled again."""
    _switch(key, ledger, file, json_, disabled=True)


@command.command("enable")
@click.argument("key")
@ledger_options
@_JSON
def enable(key: str, ledger: str | None, file: str | None, json_: bool) -> None:
    """Accept KEY (its name or id) again."""
    _switch(key, ledger, file, json_, disabled=False)


@command.command("delete")
@click.argument("key")
@ledger_options
@_JSON
def delete(key: str, ledger: str | None, file: str | None, json_: bool) -> None:
    """Delete KEY (its name or id). What it spent stays in the books under its name."""
    from apportion.cli.show import as_json

    with opened(ledger, file) as database:
        database.refuse_configured("key", key)
        stored = database.people.delete_key(key, actor())
    if json_:
        as_json({"id": stored.id, "name": stored.key.name, "deleted": True})
    else:
        click.echo(f"The key {stored.key.name!r} is deleted.")


def _switch(key: str, ledger: str | None, file: str | None, json_: bool, *, disabled: bool) -> None:
    import msgspec

    from apportion.cli.show import as_json
    from apportion.serve.shown import shown_key

    with opened(ledger, file) as database:
        database.refuse_configured("key", key)
        stored = database.people.change_key(
            key, lambda before: msgspec.structs.replace(before, disabled=disabled), actor()
        )
    if json_:
        as_json(shown_key(stored.key, time.time(), stored))
    else:
        click.echo(f"The key {stored.key.name!r} is {'disabled' if disabled else 'enabled'}.")


def _tell(shown: dict[str, Any], secret: str, said: str, json_: bool) -> None:
    """The secret alone on standard output, so that it can be captured; the rest beside it."""
    from apportion.cli.show import as_json

    if json_:
        as_json({**shown, "key": secret})
        return
    click.echo(f"{said} It is shown this once:", err=True)
    click.echo(secret)


def _find(database: Opened, name: str) -> dict[str, Any]:
    from apportion.serve.shown import shown_key

    now = time.time()
    for key in () if database.config is None else database.config.keys:
        if key.name == name:
            return shown_key(key, now)
    stored = database.people.key(name)
    return shown_key(stored.key, now, stored)


def _row(key: dict[str, Any]) -> tuple[str, ...]:
    return (
        key["name"],
        key["id"] or "(configuration)",
        key["state"],
        "admin" if key["admin"] else "user",
        key["team"] or "",
        shown_names(key["models"]),
        shown_limits(key["limits"]),
        shown_spending(key["budget"]),
        key["expires"] or "",
    )
