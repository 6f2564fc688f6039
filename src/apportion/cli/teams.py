"""``apportion teams``: what several keys share, kept in the database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from apportion.cli.people import (
    OWNER_CLEARS,
    actor,
    changed_fields,
    clear_option,
    form,
    new_fields,
    opened,
    owner_fields,
    owner_options,
    refuse_nothing,
    shown_limits,
    shown_names,
    shown_spending,
)
from apportion.cli.record import ledger_options

if TYPE_CHECKING:
    from apportion.serve.config.schema import Team

_JSON = click.option("--json", "json_", is_flag=True, help="As JSON.")


@click.group("teams", invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """Make, list, change and delete teams: what their keys may use and spend together."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_teams)


@command.command("create")
@click.argument("name")
@owner_options
@ledger_options
@_JSON
def create(name: str, ledger: str | None, file: str | None, json_: bool, **owner: Any) -> None:
    """Make a team called NAME. A request must fit its key and its team."""
    from apportion.cli.show import as_json
    from apportion.serve.config.schema import Team
    from apportion.serve.forms import TeamForm, changed_team
    from apportion.serve.shown import shown_team

    team = changed_team(Team(), form({"name": name, **new_fields(owner_fields(**owner))}, TeamForm))
    with opened(ledger, file) as database:
        database.refuse_configured("team", name)
        database.known().check_team(name, team)
        database.people.create_team(name, team, actor())
    if json_:
        as_json(shown_team(name, team))
    else:
        click.echo(
            f"The team {name!r} is made. Keys join it with `apportion keys create NAME --team {name}`."
        )


@command.command("set")
@click.argument("name")
@owner_options
@clear_option(*OWNER_CLEARS)
@ledger_options
@_JSON
def set_team(
    name: str, clear: tuple[str, ...], ledger: str | None, file: str | None, json_: bool, **owner: Any
) -> None:
    """Change the team NAME. What is not named stays; a list of names is replaced as a whole."""
    from apportion.cli.show import as_json
    from apportion.serve.forms import TeamChange, changed_team
    from apportion.serve.shown import shown_team

    fields = owner_fields(**owner)
    refuse_nothing(fields, clear)
    with opened(ledger, file) as database:
        database.refuse_configured("team", name)
        known = database.known()

        def change(before: Team) -> Team:
            after = changed_team(before, form(changed_fields(before, fields, clear), TeamChange))
            known.check_team(name, after)
            return after

        team = database.people.change_team(name, change, actor())
    if json_:
        as_json(shown_team(name, team))
    else:
        click.echo(f"The team {name!r} is changed.")


@command.command("list")
@ledger_options
@_JSON
def list_teams(ledger: str | None = None, file: str | None = None, json_: bool = False) -> None:
    """List all teams, with how many keys each has."""
    from apportion.cli.show import as_json, table
    from apportion.serve.shown import shown_team

    with opened(ledger, file) as database:
        configured = {} if database.config is None else database.config.teams
        whole = database.merged
    found = []
    for name, team in sorted(whole.teams.items()):
        members = [key.name for key in whole.keys if key.team == name]
        found.append({**shown_team(name, team, stored=name not in configured), "keys": members})
    if json_:
        as_json(found)
    elif not found:
        click.echo("There are no teams. Make one with `apportion teams create NAME`.")
    else:
        rows = [
            (
                team["name"],
                team["source"],
                str(len(team["keys"])),
                shown_names(team["models"]),
                shown_limits(team["limits"]),
                shown_spending(team["budget"]),
            )
            for team in found
        ]
        table("Teams", ("name", "from", "keys", "models", "limits", "budget"), rows)


@command.command("delete")
@click.argument("name")
@ledger_options
@_JSON
def delete(name: str, ledger: str | None, file: str | None, json_: bool) -> None:
    """Delete a team that has no key any more. What it spent stays in the books under its name, so that no other team
    can be called so again.
    """
    from apportion.cli.show import as_json

    with opened(ledger, file) as database:
        database.refuse_configured("team", name)
        database.people.delete_team(name, actor())
    if json_:
        as_json({"name": name, "deleted": True})
    else:
        click.echo(f"The team {name!r} is deleted.")
