"""``apportion reload``: a running proxy reads its configuration again."""

from __future__ import annotations

import sys

import click


@click.command("reload")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=8080,
    envvar="APPORTION_PORT",
    show_default=True,
    show_envvar=True,
    help="The port that the proxy listens on.",
)
@click.option("--json", "json_", is_flag=True, help="As JSON.")
def command(port: int, json_: bool) -> None:
    """Make a running proxy read its configuration again.

    A file that is not valid changes nothing; what is wrong with it is shown. Open streams go on.
    """
    from apportion.cli.show import as_json
    from apportion.serve import control

    answer = control.request("/reload", port=port)
    problems, changes = answer.get("problems") or [], answer.get("changes") or []
    if json_:
        as_json(answer)
    elif problems:
        for problem in problems:
            click.echo(f"{click.style('error:', fg='red', bold=True)} {problem}", err=True)
        click.echo("The proxy goes on with the configuration it has.", err=True)
    else:
        click.echo("Reloaded." if changes else "Reloaded; nothing has changed.")
        for change in changes:
            click.echo(f"  {change}")
    if problems:
        sys.exit(1)
