"""``apportion budgets``: what may be spent, and what is left of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from apportion.cli.people import (
    BALANCE_HEAD,
    actor,
    balance_row,
    clear_option,
    form,
    given,
    hard_option,
    opened,
    refuse_nothing,
)
from apportion.cli.record import ledger_options

if TYPE_CHECKING:
    from apportion.serve.config.schema import Budget

_Command = TypeVar("_Command", bound=Callable[..., object])

_JSON = click.option("--json", "json_", is_flag=True, help="As JSON.")


def _shape_options(command: _Command) -> _Command:
    """How a budget is counted, for one to be made as for one to be changed."""
    for option in (
        click.option(
            "--overdraft", type=click.FloatRange(0), help="How far a request that has begun may go beyond."
        ),
        hard_option("It is kept, or only raises prices and refuses nothing.  [default: hard]"),
        click.option(
            "--refill-per-s", type=click.FloatRange(0, min_open=True), help="In place of a window: a bucket."
        ),
        click.option(
            "--sliding/--fixed",
            default=None,
            help="The amount holds for every interval of the window's length, or for windows that follow each other.",
        ),
        click.option("--time-zone", metavar="ZONE", help="Whose days, weeks and months they are."),
        click.option(
            "--window", help="day, week, month, forever or a duration such as 1h.  [default: forever]"
        ),
    ):
        command = option(command)
    return command


@click.group("budgets", invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """Make, list, change and delete budgets, and see what is left of them."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_budgets)


@command.command("create")
@click.argument("name")
@click.option("--amount", type=click.FloatRange(0), required=True, help="How much, in the resource's unit.")
@click.option(
    "--resource", default="usd", show_default=True, help="usd, tokens, requests, server_seconds, ..."
)
@_shape_options
@click.option(
    "--scope",
    default="all",
    show_default=True,
    help="Who shares it: all, team, key, user, session, model or endpoint (one account for each), key:NAME and so "
    "on (for that one only), or request.",
)
@ledger_options
@_JSON
def create(
    name: str,
    amount: float,
    resource: str,
    scope: str,
    ledger: str | None,
    file: str | None,
    json_: bool,
    **shape: Any,
) -> None:
    """Make a budget called NAME. A request must fit all the budgets that it falls under."""
    from apportion.cli.show import as_json
    from apportion.serve.forms import BudgetForm, new_budget
    from apportion.serve.shown import shown_budget

    wanted = {"name": name, "amount": amount, "resource": resource, "scope": scope, **given(**shape)}
    budget = new_budget(form(wanted, BudgetForm))
    with opened(ledger, file) as database:
        database.refuse_configured("budget", name)
        database.known().check_budget(budget)
        database.people.create_budget(budget, actor())
    if json_:
        as_json(shown_budget(budget))
    else:
        click.echo(f"The budget {name!r} is made.")


@command.command("set")
@click.argument("name")
@click.option("--amount", type=click.FloatRange(0), help="How much, in the resource's unit.")
@_shape_options
@clear_option("window", "refill-per-s")
@ledger_options
@_JSON
def set_budget(
    name: str,
    amount: float | None,
    clear: tuple[str, ...],
    ledger: str | None,
    file: str | None,
    json_: bool,
    **shape: Any,
) -> None:
    """Change the budget NAME. What is not named stays, and so does what was spent; its resource and scope cannot
    be changed.
    """
    from apportion.cli.show import as_json
    from apportion.serve.forms import BudgetChange, changed_budget
    from apportion.serve.shown import shown_budget

    fields = given(amount=amount, **shape)
    refuse_nothing(fields, clear)
    wanted = form({option.replace("-", "_"): None for option in clear} | fields, BudgetChange)
    with opened(ledger, file) as database:
        database.refuse_configured("budget", name)
        known = database.known()

        def change(before: Budget) -> Budget:
            after = changed_budget(before, wanted)
            known.check_budget(after)
            return after

        budget = database.people.change_budget(name, change, actor())
    if json_:
        as_json(shown_budget(budget))
    else:
        click.echo(f"The budget {name!r} is changed.")


@command.command("list")
@ledger_options
@_JSON
def list_budgets(ledger: str | None = None, file: str | None = None, json_: bool = False) -> None:
    """List all budgets with what was spent of them, what is left and when they begin again."""
    from apportion.cli.show import as_json, table

    found = _found(ledger, file)
    if json_:
        as_json(found)
        return
    if not found:
        click.echo("There are no budgets. Make one with `apportion budgets create NAME --amount ...`.")
        return
    rows = [row for budget in found for row in _rows(budget)]
    table("Budgets", BALANCE_HEAD, rows)


@command.command("show")
@click.argument("name")
@ledger_options
@_JSON
def show(name: str, ledger: str | None, file: str | None, json_: bool) -> None:
    """Show the budget NAME and what is left of each of its accounts."""
    from apportion.cli.show import as_json, table
    from apportion.serve.ledger.people import MissingError

    found = next((budget for budget in _found(ledger, file) if budget["name"] == name), None)
    if found is None:
        raise MissingError(f"There is no budget {name!r}.", field="name")
    if json_:
        as_json(found)
        return
    skipped = ("object", "accounts")
    words = [
        (field, str(value)) for field, value in found.items() if field not in skipped and value is not None
    ]
    table("Budget", ("", ""), words)
    table("What is left", BALANCE_HEAD, _rows(found))


@command.command("delete")
@click.argument("name")
@ledger_options
@_JSON
def delete(name: str, ledger: str | None, file: str | None, json_: bool) -> None:
    """Delete the budget NAME. What was spent stays in the books."""
    from apportion.cli.show import as_json

    with opened(ledger, file) as database:
        database.refuse_configured("budget", name)
        database.people.delete_budget(name, actor())
    if json_:
        as_json({"name": name, "deleted": True})
    else:
        click.echo(f"The budget {name!r} is deleted.")


def _found(ledger: str | None, file: str | None) -> list[dict[str, Any]]:
    """All budgets, those of keys, teams and the configuration included, each with its accounts."""
    from apportion.serve.config.schema import Config
    from apportion.serve.keyring import Snapshot, merged
    from apportion.serve.shown import shown_balance, shown_budget

    with opened(ledger, file) as database:
        configured = merged(database.config or Config(), Snapshot())
        budgets = database.merged.all_budgets()
        names = {budget.name for budget in configured.all_budgets()}
        left = database.people.balances(budgets=[budget.name for budget in budgets])
    return [
        {
            **shown_budget(budget, stored=budget.name not in names),
            "accounts": [shown_balance(each) for each in left if each.budget == budget.name],
        }
        for budget in budgets
    ]


def _rows(budget: dict[str, Any]) -> list[tuple[str, ...]]:
    if budget["accounts"]:
        return [balance_row(each) for each in budget["accounts"]]
    amount = (
        f"${budget['amount']:g}"
        if budget["resource"] == "usd"
        else f"{budget['amount']:g} {budget['resource']}"
    )
    return [(budget["name"], budget["scope"], "nothing", "", amount, amount, "")]
