"""``apportion serve``: the proxy for production; a configuration is required and only problems are said."""

from __future__ import annotations

import sys

import click

from apportion.cli.start import DEFAULT_FILE, listen_options, run


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
def command(file: str, host: str | None, port: int | None, workers: int | None) -> None:
    """Start the proxy with a configuration file.

    SIGHUP or `apportion reload` reads the file again; SIGTERM lets answers under way finish and stops.
    """
    from apportion.serve.config.reader import load

    def ready(url: str) -> None:
        click.echo(f"apportion listens on {url}", err=True)

    sys.exit(run(load(file), file, host=host, port=port, workers=workers, on_ready=ready))
