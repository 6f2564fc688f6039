"""`apportion methods`: the catalogue, for people and for programs."""

from __future__ import annotations

import json

from click.testing import CliRunner

from apportion.cli.app import app
from apportion.core import catalogue


def test_every_method_is_listed() -> None:
    done = CliRunner().invoke(app, ["methods"])
    assert done.exit_code == 0, done.output
    assert all(name in done.output for name in catalogue.names())


def test_as_json() -> None:
    found = json.loads(CliRunner().invoke(app, ["methods", "--json", "--family", "route"]).stdout)
    assert [method["name"] for method in found] == list(catalogue.names("route"))
    for method in found:
        assert method.keys() >= {"name", "family", "summary", "parameters", "papers"}
        assert method["baseline"] or method["papers"]


def test_the_parameters_of_one() -> None:
    done = CliRunner().invoke(app, ["methods", "route/random"])
    assert "Parameters of route/random" in done.output
    assert "seed" in done.output


def test_an_unknown_one() -> None:
    done = CliRunner().invoke(app, ["methods", "route/rnadom"])
    assert done.exit_code == 1
    assert "Did you mean 'route/random'?" in done.stderr
