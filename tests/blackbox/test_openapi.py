"""The OpenAPI document is served, is the one in the documentation, and tells the truth (schemathesis)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .dialects import Json
from .proxy import SECRETS, Gateway
from .wire import ask

PATHS = {
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/models",
    "/v1/models/{id}",
    "/apportion/decisions/{id}",
    "/apportion/keys",
    "/apportion/keys/self",
    "/apportion/keys/{id}",
    "/apportion/keys/{id}/rotate",
    "/apportion/teams",
    "/apportion/budgets",
    "/apportion/audit",
    "/health/live",
    "/health/ready",
    "/metrics",
}


async def test_served_without_a_key_and_complete(gateway: Gateway) -> None:
    response = await ask(gateway.port, "GET", "/openapi.json")
    assert response.status == 200
    document = response.json
    assert document["openapi"].startswith("3.")
    named = {p.replace("{model}", "{id}").replace("{decision_id}", "{id}") for p in document["paths"]}
    assert named >= PATHS


async def test_same_as_in_the_documentation(gateway: Gateway) -> None:
    docs = Path(__file__).parents[2] / "docs"
    kept = list(docs.rglob("openapi.json"))
    assert kept, "the document is not kept in docs/"
    assert (await ask(gateway.port, "GET", "/openapi.json")).json == json.loads(kept[0].read_text())


@pytest.mark.slow
def test_schemathesis(gateway: Gateway, tmp_path: Path) -> None:
    """Generated requests, right and wrong: no server error, only documented statuses, types and bodies."""
    schemathesis(gateway, tmp_path, "KEY_ALICE")


@pytest.mark.slow
def test_schemathesis_of_the_admin_api(
    start: Callable[..., Gateway], small_config: Callable[..., Json], tmp_path: Path
) -> None:
    """The same with an admin key, where requests change keys, teams and budgets: on a proxy of its own."""
    gateway = start(small_config(ledger={"url": f"sqlite:///{tmp_path / 'ledger.db'}"}))
    schemathesis(gateway, tmp_path, "KEY_ADMIN", "--include-path-regex", "^/apportion/")


def schemathesis(gateway: Gateway, tmp_path: Path, key: str, *options: str) -> None:
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        "run",
        f"{gateway.url}/openapi.json",
        "-H",
        f"Authorization: Bearer {SECRETS[key]}",
        "--checks",
        "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
        "--max-examples",
        "15",
        "--seed",
        "1",
        "--suppress-health-check",
        "too_slow",
        "--request-timeout",
        "120",
        "--phases",
        "examples,fuzzing",
        "--workers",
        "2",
        "--no-color",
        *options,
    ]
    env = {**os.environ, "HOME": str(tmp_path), "NO_PROXY": "*"}
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=False, cwd=tmp_path, env=env
    )
    assert run.returncode == 0, (run.stdout + run.stderr)[-6000:]
