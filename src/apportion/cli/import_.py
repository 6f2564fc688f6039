"""``apportion import``: the configuration of another gateway as an ``apportion.yaml``."""

from __future__ import annotations

import os
import sys

import click


@click.group("import")
def command() -> None:
    """Turn the configuration of another gateway into an apportion.yaml."""


@command.command("litellm")
@click.argument("file", type=click.Path(dir_okay=False))
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False), help="File to write. Default: standard output."
)
@click.option("--force", is_flag=True, help="Replace the output file if it exists.")
@click.option("--json", "json_", is_flag=True, help="The configuration and what is missing, as JSON.")
def litellm(file: str, output: str | None, force: bool, json_: bool) -> None:
    """Turn a LiteLLM config.yaml FILE into an apportion.yaml, and list what has no equivalent."""
    from apportion.cli.litellm import ImportedFileError, convert
    from apportion.cli.show import as_json, fail, table
    from apportion.serve.config.problems import ConfigError
    from apportion.serve.config.reader import loads

    try:
        with open(file, encoding="utf-8") as stream:
            imported = convert(stream.read())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not valid UTF-8"
        raise ImportedFileError(f"{file} cannot be read: {reason}.", field="file") from None
    text = imported.text(os.path.basename(file))
    if output is not None:
        try:
            with open(output, "w" if force else "x", encoding="utf-8") as stream:
                stream.write(text)
        except FileExistsError:
            raise ImportedFileError(
                f"{output} exists.", field="output", fix="Use --force to replace it."
            ) from None
        except OSError as error:
            raise ImportedFileError(
                f"{output} cannot be written: {error.strerror}.", field="output"
            ) from None
    problems: ConfigError | None = None
    try:
        # Whether the variables are set is a matter of where the proxy will run.
        loads(text, output or "apportion.yaml", environ=imported.stand_ins())
    except ConfigError as error:
        problems = error
    if json_:
        as_json({"config": imported.config, "missing": [item._asdict() for item in imported.missing]})
    elif output is None:
        click.echo(text, nl=False)
    else:
        table("No equivalent", ("in the file", "why"), imported.missing)
        models, endpoints = len(imported.config.get("models", {})), len(imported.config.get("endpoints", {}))
        click.echo(f"Wrote {output}: {models} models, {endpoints} endpoints.")
        if variables := sorted(imported.variables()):
            click.echo(f"It needs these environment variables: {', '.join(variables)}.")
    if problems is not None:
        fail(problems)
        sys.exit(1)
