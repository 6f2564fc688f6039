"""``apportion up``: the proxy with one command, and how to talk to it."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from apportion.cli.start import DEFAULT_FILE, listen_options, run

if TYPE_CHECKING:
    from apportion.serve.config.schema import Config
    from apportion.serve.supervisor import Ready


@click.command("up")
@click.option(
    "--config", "file", type=click.Path(dir_okay=False), help=f"Default: ./{DEFAULT_FILE}, if there."
)
@listen_options
def command(file: str | None, host: str | None, port: int | None, workers: int | None, no_auth: bool) -> None:
    """Start the proxy and print how to talk to it.

    Uses ./apportion.yaml if it is there. Otherwise a small real model runs on this machine's processor; its
    weights are fetched once. The first start, where nobody has a key yet, makes an admin key and prints it;
    `apportion ask` and this user's other commands need none.
    """
    from apportion.serve.config.default import default_config
    from apportion.serve.config.reader import load

    if file is None and os.path.exists(DEFAULT_FILE):
        file = DEFAULT_FILE
    config = default_config() if file is None else load(file)

    def ready(proxy: Ready) -> None:
        click.echo(greeting(proxy.config, proxy.url, proxy.first_key))
        sys.stdout.flush()

    sys.exit(run(config, file, host=host, port=port, workers=workers, no_auth=no_auth, on_ready=ready))


def greeting(config: Config, url: str, first_key: str | None = None) -> str:
    """How to talk to the proxy at ``url``, as text to copy from; ``first_key`` was made just now."""
    models = list(config.models)
    model = "default" if "default" in models else models[0]
    header, key = "", '"any"'
    if config.auth.required:
        header = ' -H "authorization: Bearer $APPORTION_API_KEY"'
        key = 'os.environ["APPORTION_API_KEY"]'
    shown = ", ".join(models[:5]) + (f" and {len(models) - 5} more" if len(models) > 5 else "")
    bold = click.style(f"apportion is ready on {url}", bold=True)
    made = ""
    if first_key is not None:
        made = (
            "\n  The admin key, shown this once (others: `apportion keys create NAME`):\n\n"
            f"  export APPORTION_API_KEY={first_key}\n"
        )
    return f"""\

{bold}    models: {shown}
{made}
  curl {url}/v1/chat/completions{header} -H 'content-type: application/json' \\
    -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'

  OpenAI SDK      OpenAI(base_url="{url}/v1", api_key={key})
  Anthropic SDK   Anthropic(base_url="{url}", api_key={key})
  apportion       {_environment(url)}apportion ask "Hello"

  {url}/v1/models  /health/ready  /metrics  /openapi.json
  Ctrl-C stops it.
"""


def _environment(url: str) -> str:
    """What must be set for `apportion ask` to find a proxy that is not on the default port."""
    port = url.rpartition(":")[2]
    return "" if port == "8080" else f"APPORTION_PORT={port} "
