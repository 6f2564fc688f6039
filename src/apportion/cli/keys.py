"""``apportion keys``: keys that are kept in the database."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from apportion.cli.people import (
    BALANCE_HEAD,
    OWNER_CLEARS,
    Opened,
    actor,
    balance_row,
    changed_fields,
    clear_option,
    form,
    given,
    new_fields,
    opened,
    owner_fields,
    owner_options,
    refuse_nothing,
    shown_limits,
    shown_names,
    shown_spending,
    tags,
)
from apportion.cli.record import ledger_options

if TYPE_CHECKING:
    from apportion.serve.config.schema import Key

_JSON = click.option("--json", "json_", is_flag=True, help="As JSON.")


@click.group("keys", invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """Make, list, change, rotate, disable and delete keys.

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
    fields = new_fields(owner_fields(**owner)) | given(team=team, expires=expires, admin=admin or None)
    key = new_key(form({"name": name, "tags": tags(tag), **fields}, KeyForm), now)
    with opened(ledger, file) as database:
        database.refuse_configured("key", name)
        database.known().check_key(key)
        teams = () if database.config is None else database.config.teams
        stored, secret = database.people.create_key(key, actor(), teams=teams)
    _tell(shown_key(stored.key, now, stored), secret, f"The key {name!r} is made.", json_)


@command.command("set")
@click.argument("key")
@click.option("--team", help="The team it belongs to.")
@owner_options
@click.option("--expires", help="From when it is refused: 2027-01-31T12:00:00Z, or in 30d.")
@click.option(
    "--tag", "tag", multiple=True, metavar="NAME=VALUE", help="A label more, or one with another value."
)
@click.option("--admin/--no-admin", default=None, help="May use the admin API, too, or no longer.")
@clear_option("team", *OWNER_CLEARS, "expires", "tags")
@ledger_options
@_JSON
def set_key(
    key: str,
    team: str | None,
    expires: str | None,
    tag: tuple[str, ...],
    admin: bool | None,
    clear: tuple[str, ...],
    ledger: str | None,
    file: str | None,
    json_: bool,
    **owner: Any,
) -> None:
    """Change KEY (its name or id). What is not named stays; a list of names is replaced as a whole."""
    from apportion.cli.show import as_json
    from apportion.serve.forms import KeyChange, changed_key
    from apportion.serve.shown import shown_key

    now = time.time()
    fields = owner_fields(**owner) | given(team=team, expires=expires, admin=admin)
    labels = tags(tag)
    refuse_nothing(fields | labels, clear)
    with opened(ledger, file) as database:
        database.refuse_configured("key", key)
        known = database.known()

        def change(before: Key) -> Key:
            wanted = changed_fields(before, fields, clear)
            if labels or "tags" in clear:
                wanted["tags"] = ({} if "tags" in clear else before.tags) | labels
            after = changed_key(before, form(wanted, KeyChange), now)
            known.check_key(after)
            return after

        teams = () if database.config is None else database.config.teams
        stored = database.people.change_key(key, change, actor(), teams=teams)
    if json_:
        as_json(shown_key(stored.key, now, stored))
    else:
        click.echo(f"The key {stored.key.name!r} is changed.")


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
    from apportion.serve.config.budgets import budgets_for
    from apportion.serve.shown import shown_balance

    with opened(ledger, file) as database:
        found = _find(database, key)
        scopes = [f"key:{found['name']}"] + ([f"team:{found['team']}"] if found["team"] else [])
        whole = database.merged
        wanted = [(budget, scope) for scope in scopes for budget in budgets_for(whole, scope)]
        left = [shown_balance(each) for each in database.people.balances_of(wanted)]
    if json_:
        as_json({**found, "budgets": left})
        return
    words = {
        **found,
        "models": shown_names(found["models"]),
        "endpoints": shown_names(found["endpoints"]),
        "require": ", ".join(found["require"]),
        "routing": "yes" if found["routing"] else "no",
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
    """Delete KEY (its name or id). What it spent stays in the books under its name, so that no other key can be
    called so again. `disable` refuses one for a while.
    """
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
