"""The command line: one file a command, each imported only when it runs."""

from __future__ import annotations


def main() -> None:
    """The program ``apportion``."""
    from apportion.cli.app import app

    app(prog_name="apportion")
