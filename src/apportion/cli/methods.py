"""``apportion methods``: everything in the catalogue of methods."""

from __future__ import annotations

import click


@click.command("methods")
@click.argument("names", nargs=-1)
@click.option("--family", help="Only this family, for example `route`.")
@click.option("--json", "json_", is_flag=True, help="As JSON.")
def command(names: tuple[str, ...], family: str | None, json_: bool) -> None:
    """List the methods that decide, or show the parameters of those NAMED.

    A method's name goes under `policy` in apportion.yaml, its parameters beside it.
    """
    from dataclasses import asdict

    from apportion.cli.show import as_json, table
    from apportion.core import catalogue

    found = [catalogue.describe(name) for name in (names or catalogue.names(family))]
    if json_:
        as_json([asdict(method) for method in found])
        return
    rows = [
        (method.name, method.summary, ", ".join(_paper(paper) for paper in method.papers)) for method in found
    ]
    table("Methods", ("name", "what it does", "papers"), rows)
    if names:
        for method in found:
            parameters = [(p.name, p.default, p.allowed, p.meaning) for p in method.parameters]
            table(f"Parameters of {method.name}", ("name", "default", "must be", "meaning"), parameters)


def _paper(paper: object) -> str:
    for name, prefix in (("arxiv", "arXiv:"), ("doi", "doi:"), ("url", "")):
        if value := getattr(paper, name):
            return f"{prefix}{value}"
    return str(getattr(paper, "title"))  # noqa: B009 - a plain object here
