"""What `up` and `serve` share: the weights are there, the address is right, then the supervisor runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from apportion.serve.config.schema import Config
    from apportion.serve.supervisor import Ready

_Command = TypeVar("_Command", bound=Callable[..., object])

DEFAULT_FILE = "apportion.yaml"


def listen_options(command: _Command) -> _Command:
    """``--host``, ``--port`` and ``--workers``, which stand above the file's `listen`; ``--no-auth``."""
    for option in (
        click.option(
            "--no-auth",
            is_flag=True,
            help="Ask nobody for a key. Only where no other machine can reach the proxy.",
        ),
        click.option("--workers", type=click.IntRange(1, 256), help="Processes that share the port."),
        click.option(
            "--port",
            type=click.IntRange(0, 65535),
            envvar="APPORTION_PORT",
            show_envvar=True,
            help="Port to listen on; 0 lets the system choose.",
        ),
        click.option("--host", envvar="APPORTION_HOST", show_envvar=True, help="Address to listen on."),
    ):
        command = option(command)
    return command


def run(
    config: Config,
    config_path: str | None,
    *,
    host: str | None,
    port: int | None,
    workers: int | None,
    no_auth: bool,
    on_ready: Callable[[Ready], None],
) -> int:
    """Fetch what is missing and serve until stopped; ``on_ready`` is told when it answers. The exit status."""
    import msgspec

    # Arrays here are small: to hand half of one to another thread takes longer than the whole, on a busy machine very
    # much longer. OpenBLAS must be told before numpy is loaded; workers inherit it.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from apportion.serve import supervisor
    from apportion.serve.config.reader import override

    if no_auth:
        config = msgspec.structs.replace(config, auth=msgspec.structs.replace(config.auth, required=False))
    config = override(config, host=host, port=port, workers=workers)
    fetch_weights(config)
    path = Path(config_path).absolute() if config_path is not None else None
    return supervisor.run(config, config_path=path, on_ready=on_ready)


def fetch_weights(config: Config) -> None:
    """The weights of every `local` endpoint, with a progress bar; quick when they are there."""
    wanted = {
        (endpoint.weights, endpoint.sha256)
        for endpoint in config.endpoints.values()
        if endpoint.kind == "local" and endpoint.weights
    }
    if not wanted:
        return
    from apportion.cli.show import bytes_progress
    from apportion.serve import store

    with bytes_progress() as progress:
        for weights, sha256 in sorted(wanted, key=str):
            store.fetch(weights, sha256=sha256, progress=progress)
