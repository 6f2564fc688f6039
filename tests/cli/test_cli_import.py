"""`apportion import litellm`: the equivalent passes the reader, and what is missing is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from apportion.cli.app import app
from apportion.cli.litellm import PROVIDERS, Imported, ImportedFileError, convert
from apportion.serve.config.reader import loads
from apportion.serve.config.schema import Config, Secret, TokenPrices

FULL = """\
model_list:
  - model_name: gpt-4o
    litellm_params:
      model: azure/my-deploy
      api_base: os.environ/AZURE_API_BASE
      api_key: os.environ/AZURE_KEY
      api_version: "2024-06-01"
      rpm: 6
  - model_name: gpt-4o
    litellm_params:
      model: openai/gpt-4o
      rpm: 100
      tpm: 5000
      timeout: 30
      stream_timeout: 10
      max_parallel_requests: 20
      input_cost_per_token: 0.0000025
      output_cost_per_token: 1e-05
      organization: org-1
  - model_name: claude
    litellm_params: {model: claude-sonnet-4-5, max_tokens: 100}
  - model_name: llama
    litellm_params: {model: ollama/llama3, api_base: "http://localhost:11434"}
    model_info: {id: my-llama, max_output_tokens: 512}
  - model_name: qwen
    litellm_params: {model: hosted_vllm/Qwen/Qwen3, api_base: "http://10.0.0.1:8000/v1", tags: [eu]}
  - model_name: embed
    litellm_params: {model: text-embedding-3-small, input_cost_per_token: 2e-8}
    model_info: {mode: embedding}
  - model_name: "*"
    litellm_params: {model: "openai/*"}
  - model_name: bed
    litellm_params: {model: bedrock/anthropic.claude-v2}
  - model_name: picture
    litellm_params: {model: openai/dall-e-3}
    model_info: {mode: image_generation}
router_settings:
  num_retries: 2
  retry_after: 1
  allowed_fails: 3
  cooldown_time: 30
  model_group_alias: {gpt-4: gpt-4o, lost: nowhere}
  fallbacks: [{gpt-4o: [claude]}]
litellm_settings: {max_budget: 100, budget_duration: 2mo, callbacks: [langfuse], drop_params: true, cache: no}
general_settings: {master_key: os.environ/MASTER_KEY, database_url: "postgres://x", max_parallel_requests: 7}
"""


def read(imported: Imported) -> Config:
    """The imported configuration through the reader, with every variable set to an address."""
    return loads(imported.text("config.yaml"), environ=imported.stand_ins())


def one(params: dict[str, Any], **more: Any) -> Imported:
    return convert(json.dumps({"model_list": [{"model_name": "m", "litellm_params": params}], **more}))


def test_a_full_configuration() -> None:
    imported = convert(FULL)
    config = read(imported)
    assert imported.variables() == {
        "AZURE_API_BASE",
        "AZURE_KEY",
        "OPENAI_API_KEY",
        "ANTHROPIC_API_KEY",
        "MASTER_KEY",
    }
    assert set(config.models) == {"gpt-4o", "claude", "llama", "qwen", "embed", "gpt-4"}
    gpt = config.models["gpt-4o"]
    assert gpt.policy.name == "route/weighted"
    assert [(t.endpoint, t.weight) for t in gpt.endpoints] == [("azure-my-deploy", 6), ("openai-gpt-4o", 100)]
    assert (gpt.retries.attempts, gpt.retries.backoff_s) == (3, 1)
    assert config.models["gpt-4"] == gpt
    azure, openai = config.endpoints["azure-my-deploy"], config.endpoints["openai-gpt-4o"]
    assert azure.base_url == "http://set-later/openai/v1"
    assert openai.price == TokenPrices(input_usd_per_mtok=2.5, output_usd_per_mtok=10.0)
    assert (openai.timeouts.total_s, openai.timeouts.first_token_s, openai.slots) == (30, 10, 20)
    assert openai.headers == {"OpenAI-Organization": Secret("org-1")}
    assert (openai.breaker.failures, openai.breaker.open_s) == (4, 30)
    assert config.endpoints["anthropic-claude-sonnet-4-5"].kind == "anthropic"
    assert config.endpoints["my-llama"].base_url == "http://localhost:11434/v1"
    assert config.endpoints["my-llama"].max_output_tokens == 512
    assert config.endpoints["hosted_vllm-Qwen-Qwen3"].model == "Qwen/Qwen3"
    assert config.endpoints["hosted_vllm-Qwen-Qwen3"].tags == ["eu"]
    embed = config.endpoints["openai-text-embedding-3-small"]
    assert embed.apis == ["embeddings"]
    assert embed.price == TokenPrices(input_usd_per_mtok=0.02, output_usd_per_mtok=0.0)
    assert config.keys[0].admin
    assert config.auth.required
    assert (config.budgets[0].amount, config.budgets[0].window) == (100, 60 * 86400)
    parallel = config.budgets[1]
    assert (parallel.resource, parallel.amount, parallel.scope) == ("parallel", 7, "endpoint")
    assert config.ledger.url == Secret("postgresql://x")
    missing = {item.path for item in imported.missing}
    assert missing == {
        "model_list[0].litellm_params.api_version",
        "model_list[2].litellm_params.max_tokens",
        "model_list[6]",
        "model_list[7]",
        "model_list[8]",
        "router_settings.model_group_alias.lost",
        "router_settings.fallbacks",
        "litellm_settings.budget_duration",
        "litellm_settings.callbacks",
        "litellm_settings.drop_params",
        "general_settings.database_url",
    }
    for item in imported.missing:
        assert f"#   {item.path}: " in imported.text("x")


@pytest.mark.parametrize("name", PROVIDERS)
def test_every_provider_passes_the_reader(name: str) -> None:
    imported = one({"model": f"{name}/some-model", "api_base": "http://10.0.0.1:9000"})
    assert imported.missing == []
    endpoint = next(iter(read(imported).endpoints.values()))
    assert endpoint.model == "some-model"
    assert endpoint.kind == PROVIDERS[name].kind
    if PROVIDERS[name].base_url is not None:
        known = next(iter(read(one({"model": f"{name}/some-model"})).endpoints.values()))
        assert known.base_url == PROVIDERS[name].base_url


@pytest.mark.parametrize(
    ("strategy", "policy", "noted"),
    [
        (None, "route/random", False),
        ("simple-shuffle", "route/random", False),
        ("least-busy", "route/least_load", False),
        ("usage-based-routing-v2", "route/least_load", True),
        ("latency-based-routing", "route/power_of_two", True),
        ("cost-based-routing", "route/priced", False),
        ("something-new", "route/random", True),
    ],
)
def test_strategies(strategy: str | None, policy: str, noted: bool) -> None:
    entries = [{"model_name": "m", "litellm_params": {"model": f"openai/{name}"}} for name in "ab"]
    settings = {"routing_strategy": strategy} if strategy else {}
    imported = convert(json.dumps({"model_list": entries, "router_settings": settings}))
    assert read(imported).models["m"].policy.name == policy
    assert bool(imported.missing) == noted


def test_limits_are_enforced_only_where_litellm_would() -> None:
    params = {"model": "openai/a", "rpm": 5, "tpm": 100}
    assert read(one(params)).budgets == []
    for settings in (
        {"routing_strategy": "usage-based-routing"},
        {"optional_pre_call_checks": ["enforce_model_rate_limits"]},
    ):
        budgets = read(one(params, router_settings=settings)).budgets
        assert [(b.resource, b.amount, b.window, b.scope) for b in budgets] == [
            ("requests", 5, 60, "endpoint:openai-a"),
            ("tokens", 100, 60, "endpoint:openai-a"),
        ]


def spending(**sections: Any) -> tuple[Config, dict[str, str]]:
    imported = one({"model": "openai/a"}, **sections)
    return read(imported), dict(imported.missing)


@pytest.mark.parametrize(
    ("duration", "window"),
    [
        ("1d", "day"),
        ("24h", "day"),
        ("7d", "week"),
        ("30d", "month"),
        ("1mo", "month"),
        ("10d", 10 * 86_400),
        ("30m", 1800),
        (None, None),
        ("often", None),
    ],
)
def test_durations_follow_the_calendar_as_theirs(duration: str | None, window: str | float | None) -> None:
    settings = {"max_budget": 5, "budget_duration": duration, "timezone": "US/Eastern"}
    config, missing = spending(litellm_settings=settings)
    budget = config.budgets[0]
    assert (budget.scope, budget.resource, budget.amount, budget.window) == ("all", "usd", 5, window)
    assert budget.time_zone == ("US/Eastern" if isinstance(window, str) else "UTC")
    assert ("litellm_settings.budget_duration" in missing) == (duration == "often")


def test_budgets_of_users_keys_and_deployments() -> None:
    most = {"max_budget": 10, "budget_duration": "30d", "rpm_limit": 30, "tpm_limit": 6000, "duration": "1y"}
    imported = convert(
        json.dumps(
            {
                "model_list": [
                    {"model_name": n, "litellm_params": {"model": "openai/a", "max_budget": 3}} for n in "mn"
                ],
                "litellm_settings": {
                    "max_end_user_budget": 0.5,
                    "default_soft_budget": 7,
                    "upperbound_key_generate_params": {**most, "max_parallel_requests": 4},
                },
                "general_settings": {"master_key": "sk-1", "global_max_parallel_requests": 64},
            }
        )
    )
    found = [
        (b.scope, b.resource, b.amount, b.window, b.refill_per_s, b.hard) for b in read(imported).budgets
    ]
    assert found == [
        ("endpoint:openai-a", "usd", 3, None, None, True),
        ("user", "usd", 0.5, None, None, True),
        ("key", "usd", 7, None, None, False),
        ("all", "parallel", 64, None, None, True),
        ("key", "usd", 10, "month", None, True),
        ("key", "requests", 30, None, 0.5, True),
        ("key", "tokens", 6000, None, 100.0, True),
        ("key", "parallel", 4, None, None, True),
    ]
    assert {item.path for item in imported.missing} == {
        "litellm_settings.max_end_user_budget",
        "litellm_settings.upperbound_key_generate_params.duration",
    }


def test_the_books_are_in_their_database_and_redis_lends() -> None:
    config, missing = spending(
        general_settings={
            "database_url": "os.environ/DATABASE_URL",
            "allow_requests_on_db_unavailable": True,
        },
        router_settings={"redis_host": "cache", "redis_port": 6380, "redis_password": "p/w@1"},
    )
    assert config.ledger.url == Secret("postgresql://set-later/books")
    assert config.ledger.redis == Secret("redis://:p%2Fw%401@cache:6380/0")
    assert "`ledger.when_lost`" in missing["general_settings.allow_requests_on_db_unavailable"]
    config, missing = spending(
        general_settings={"database_url": "postgresql://a:b@h/l?connection_limit=5"},
        router_settings={"redis_url": "os.environ/REDIS_URL"},
    )
    assert config.ledger.url == Secret("postgresql://a:b@h/l")
    assert config.ledger.redis == Secret("redis://set-later")
    assert "after `?`" in missing["general_settings.database_url"]


def test_redis_alone_keeps_no_books() -> None:
    config, missing = spending(router_settings={"redis_host": "cache"})
    assert config.ledger.redis is None
    assert "PostgreSQL" in missing["router_settings.redis_host"]


def test_who_clients_are() -> None:
    config, _ = spending()
    assert not config.auth.required
    config, _ = spending(general_settings={"master_key": "sk-1", "user_header_name": "X-OpenWebUI-User-Id"})
    assert (config.auth.required, config.auth.user_header) == (True, "x-openwebui-user-id")
    roles = [("X-Staff", "internal_user"), ("X-Customer", "customer")]
    mappings = [{"header_name": name, "litellm_user_role": role} for name, role in roles]
    config, _ = spending(general_settings={"user_header_mappings": mappings})
    assert config.auth.user_header == "x-customer"


def test_the_same_deployment_twice_is_one_endpoint_and_others_are_told_apart() -> None:
    entries = [
        {"model_name": "m", "litellm_params": {"model": "openai/a", "api_key": key}}
        for key in ("k1", "k1", "k2")
    ]
    config = read(convert(json.dumps({"model_list": entries})))
    assert list(config.endpoints) == ["openai-a", "openai-a-2"]
    assert len(config.models["m"].endpoints) == 2


def test_credentials_and_texts_with_dollars() -> None:
    imported = one(
        {"model": "openai/a", "litellm_credential_name": "c"},
        credential_list=[
            {"credential_name": "c", "credential_values": {"api_key": "x${y}", "api_base": "http://h/v1"}}
        ],
    )
    endpoint = read(imported).endpoints["openai-a"]
    assert endpoint.api_key == Secret("x${y}")
    assert endpoint.base_url == "http://h/v1"


@pytest.mark.parametrize("text", ["a: [", "- 1", "model_list: 3", "", "[" * 5000])
def test_what_is_no_litellm_configuration(text: str) -> None:
    with pytest.raises(ImportedFileError):
        convert(text)


def test_the_command(tmp_path: Path) -> None:
    source, target = tmp_path / "config.yaml", tmp_path / "apportion.yaml"
    source.write_text(FULL)
    done = CliRunner().invoke(app, ["import", "litellm", str(source), "-o", str(target)])
    assert done.exit_code == 0, done.output
    assert "No equivalent" in done.stdout
    assert "6 models, 6 endpoints" in done.stdout
    assert "AZURE_KEY" in done.stdout
    assert target.read_text().startswith("# Written by `apportion import litellm` from config.yaml.")
    again = CliRunner().invoke(app, ["import", "litellm", str(source), "-o", str(target)])
    assert again.exit_code == 1
    assert "--force" in again.stderr
    shown = CliRunner().invoke(app, ["import", "litellm", str(source)])
    assert shown.stdout == target.read_text()
    as_json = json.loads(CliRunner().invoke(app, ["import", "litellm", str(source), "--json"]).stdout)
    assert as_json["config"]["models"]["llama"]["endpoints"] == ["my-llama"]
    assert {"path", "why"} == as_json["missing"][0].keys()


def test_a_file_with_nothing_to_take_over(tmp_path: Path) -> None:
    source = tmp_path / "config.yaml"
    source.write_text("model_list: [{model_name: a, litellm_params: {model: bedrock/x}}]")
    done = CliRunner().invoke(app, ["import", "litellm", str(source)])
    assert done.exit_code == 1
    assert "no model is configured" in done.stderr
    done = CliRunner().invoke(app, ["import", "litellm", str(tmp_path / "nowhere.yaml")])
    assert done.exit_code == 1
    assert "cannot be read" in done.stderr
