"""The group of all commands. Listing them imports none, so ``apportion --help`` stays light."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from gettext import gettext
from typing import Any

import click

import apportion

COMMANDS = {
    "up": "Start the proxy: apportion.yaml if there is one, else a small real model.",
    "serve": "Start the proxy with a configuration file, for production.",
    "check": "Check a configuration file and show what it means.",
    "ask": "Ask a running proxy one question.",
    "keys": "Make, list, rotate, disable and delete keys.",
    "teams": "Make, list and delete teams.",
    "budgets": "Make, list and delete budgets, and see what is left of them.",
    "spend": "Show what was spent, on what, by whom.",
    "ledger": "Check the books, see who has what of the budgets, export and delete entries.",
    "models": "List, fetch, verify and remove the weights of local models.",
    "fit": "Fit predictors of quality and length to your own data.",
    "evaluate": "Estimate from the decision log what another policy would have brought.",
    "calibrate": "Measure an endpoint: how fast, how many at once; for `replay`.",
    "profiles": "List and show the profiles that endpoints are modelled by.",
    "trace": "Read, change, fit, generate and send workloads.",
    "replay": "Rehearse a trace: what a configuration would have cost, and how fast it would have been.",
    "compare": "Rehearse a trace with several configurations, side by side, with the best possible.",
    "methods": "List the methods that decide: name, parameters, papers.",
    "import": "Turn the configuration of another gateway into an apportion.yaml.",
    "reload": "Make a running proxy read its configuration again.",
}
"""Every command with its line of help. ``name`` is the attribute ``command`` of ``apportion.cli.NAME``."""

_FILES = {"import": "import_"}


class Commands(click.Group):
    """Commands by name, imported when they run; errors on purpose become messages, not tracebacks."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order in which they are needed."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"apportion.cli.{_FILES.get(cmd_name, cmd_name)}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with the nearest name proposed for an unknown one."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"There is no command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, without importing them."""
        with formatter.section(gettext("Commands")):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; an `ApportionError` is shown with its fix and ends with status 1."""
        return explained(lambda: super(Commands, self).invoke(ctx), ctx)


def explained(run: Callable[[], Any], ctx: click.Context) -> Any:
    """What ``run`` returns, with errors on purpose shown as messages."""
    from apportion.core.errors import ApportionError

    try:
        return run()
    except ApportionError as error:
        from apportion.cli.show import fail

        fail(error)
        ctx.exit(1)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(apportion.__version__, "--version", prog_name="apportion")
def app() -> None:
    """The compute-allocation layer for AI: a proxy that decides where the next unit of compute is worth most.

    Start with `apportion up`, then `apportion ask "Hello"`.
    """
