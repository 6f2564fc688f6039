"""``apportion serve``: the proxy for production; a configuration is required and only problems are said."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from apportion.cli.start import DEFAULT_FILE, listen_options, run

if TYPE_CHECKING:
    from apportion.serve.supervisor import Ready


@click.command("serve")
@click.option(
    "--config",
    "file",
    type=click.Path(dir_okay=False),
    default=DEFAULT_FILE,
    envvar="APPORTION_CONFIG",
    show_default=True,
    show_envvar=True,
    help="The configuration.",
)
@listen_options
def command(file: str, host: str | None, port: int | None, workers: int | None, no_auth: bool) -> None:
    """Start the proxy with a configuration file.

    The first start, where nobody has a key yet, makes an admin key and prints it.

    SIGHUP or `apportion reload` reads the file again; SIGTERM lets answers under way finish and stops.
    """
    from apportion.serve.config.reader import load

    def ready(proxy: Ready) -> None:
        if proxy.first_key is not None:
            click.echo("No key existed. This admin key is shown this once:", err=True)
            click.echo(proxy.first_key)
            sys.stdout.flush()
        click.echo(f"apportion listens on {proxy.url}", err=True)

    sys.exit(run(load(file), file, host=host, port=port, workers=workers, no_auth=no_auth, on_ready=ready))
