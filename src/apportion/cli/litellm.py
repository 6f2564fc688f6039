"""A LiteLLM ``config.yaml`` in the words of ``apportion.yaml``, and what of it has no equivalent.

Format: docs.litellm.ai/docs/proxy/configs. A deployment becomes an endpoint, a model group a model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NamedTuple
from urllib.parse import quote

import yaml

from apportion.core.errors import ApportionError
from apportion.serve.config.units import duration_s

HEADER = """\
# Written by `apportion import litellm` from {source}.
# `apportion check` tells what it means; `apportion serve` starts it.
"""


class ImportedFileError(ApportionError):
    """The file to import cannot be read, or is not the configuration of that gateway."""

    code = "import_failed"


class Provider(NamedTuple):
    """Where a provider's OpenAI-compatible API is (None: `api_base` tells) and the variable with its key."""

    base_url: str | None
    key: str | None
    kind: str = "openai"


PROVIDERS = {
    "openai": Provider("https://api.openai.com/v1", "OPENAI_API_KEY"),
    "text-completion-openai": Provider("https://api.openai.com/v1", "OPENAI_API_KEY"),
    "anthropic": Provider(None, "ANTHROPIC_API_KEY", "anthropic"),
    "azure": Provider(None, "AZURE_API_KEY"),
    "cerebras": Provider("https://api.cerebras.ai/v1", "CEREBRAS_API_KEY"),
    "cohere": Provider("https://api.cohere.ai/compatibility/v1", "COHERE_API_KEY"),
    "cohere_chat": Provider("https://api.cohere.ai/compatibility/v1", "COHERE_API_KEY"),
    "deepinfra": Provider("https://api.deepinfra.com/v1/openai", "DEEPINFRA_API_KEY"),
    "deepseek": Provider("https://api.deepseek.com/v1", "DEEPSEEK_API_KEY"),
    "fireworks_ai": Provider("https://api.fireworks.ai/inference/v1", "FIREWORKS_API_KEY"),
    "gemini": Provider("https://generativelanguage.googleapis.com/v1beta/openai", "GEMINI_API_KEY"),
    "groq": Provider("https://api.groq.com/openai/v1", "GROQ_API_KEY"),
    "huggingface": Provider("https://router.huggingface.co/v1", "HF_TOKEN"),
    "mistral": Provider("https://api.mistral.ai/v1", "MISTRAL_API_KEY"),
    "moonshot": Provider("https://api.moonshot.ai/v1", "MOONSHOT_API_KEY"),
    "nvidia_nim": Provider("https://integrate.api.nvidia.com/v1", "NVIDIA_NIM_API_KEY"),
    "openrouter": Provider("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
    "perplexity": Provider("https://api.perplexity.ai", "PERPLEXITYAI_API_KEY"),
    "sambanova": Provider("https://api.sambanova.ai/v1", "SAMBANOVA_API_KEY"),
    "together_ai": Provider("https://api.together.xyz/v1", "TOGETHERAI_API_KEY"),
    "xai": Provider("https://api.x.ai/v1", "XAI_API_KEY"),
    "ollama": Provider("http://localhost:11434/v1", None),
    "ollama_chat": Provider("http://localhost:11434/v1", None),
    "custom_openai": Provider(None, None),
    "hosted_vllm": Provider(None, None),
    "litellm_proxy": Provider(None, None),
    "llamafile": Provider("http://127.0.0.1:8080/v1", None),
    "lm_studio": Provider(None, None),
    "openai_like": Provider(None, None),
    "xinference": Provider(None, None),
}

_BY_NAME = (
    (re.compile(r"(gpt-|o[134](-|$)|chatgpt-|text-embedding-|davinci|babbage)"), "openai"),
    (re.compile(r"claude"), "anthropic"),
    (re.compile(r"gemini"), "gemini"),
)
"""Providers of models that are named without one."""

_STRATEGIES = {
    "least-busy": ("route/least_load", None),
    "usage-based-routing": (
        "route/least_load",
        "the load in flight decides, not the tokens of the last minute",
    ),
    "usage-based-routing-v2": (
        "route/least_load",
        "the load in flight decides, not the tokens of the last minute",
    ),
    "latency-based-routing": ("route/power_of_two", "the load in flight decides, not past latencies"),
    "cost-based-routing": ("route/priced", None),
}

_COSTS = {
    "input_cost_per_token": "input_usd_per_mtok",
    "output_cost_per_token": "output_usd_per_mtok",
    "cache_read_input_token_cost": "cached_input_usd_per_mtok",
    "cache_creation_input_token_cost": "cache_write_usd_per_mtok",
}
_DEPLOYMENT_KEYS = {
    *("model", "custom_llm_provider", "litellm_credential_name"),
    *("api_base", "base_url", "api_key", "api_version", "organization", "extra_headers", "headers"),
    *("rpm", "tpm", "weight", "timeout", "stream_timeout", "max_parallel_requests", "tags"),
    *("max_budget", "budget_duration"),
    *_COSTS,
}
_INFO_KEYS = {
    *("id", "mode", "description", "base_model", "litellm_provider"),
    *("max_output_tokens", "max_input_tokens", "max_tokens", "supports_vision", "supports_function_calling"),
    *_COSTS,
}
_MODES = {
    "chat": None,
    "completion": ["completions"],
    "embedding": ["embeddings"],
    "responses": ["responses"],
}


_CALENDAR = {"24h": "day", "1d": "day", "7d": "week", "1w": "week", "30d": "month", "1mo": "month"}
"""docs.litellm.ai/docs/proxy/budget_reset_and_tz"""


class Missing(NamedTuple):
    """One thing that has no equivalent: its path in the file, and why or what holds instead."""

    path: str
    why: str


class Imported(NamedTuple):
    """The equivalent configuration as plain data, and what is missing from it."""

    config: dict[str, Any]
    missing: list[Missing]

    def text(self, source: str) -> str:
        """The ``apportion.yaml``, with comments."""
        parts = [HEADER.format(source=source)]
        for name, comment in _COMMENTS.items():
            if self.config.get(name):
                dumped = yaml.dump(
                    {name: self.config[name]},
                    Dumper=_Plain,
                    sort_keys=False,
                    default_flow_style=None,
                    width=120,
                    allow_unicode=True,
                )
                parts.append(f"# {comment}\n{dumped}")
        if self.missing:
            lines = "".join(f"#   {item.path}: {item.why}\n" for item in self.missing)
            parts.append(f"# Not taken over:\n{lines}")
        return "\n".join(parts)

    def variables(self) -> set[str]:
        """The environment variables that the configuration needs."""
        return set(re.findall(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}", yaml.safe_dump(self.config)))

    def stand_ins(self) -> dict[str, str]:
        """A value for each of `variables` with which the configuration can be checked."""
        found = dict.fromkeys(self.variables(), "http://set-later")
        ledger = self.config.get("ledger", {})
        for name, address in (("url", "postgresql://set-later/books"), ("redis", "redis://set-later")):
            if match := re.fullmatch(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}", ledger.get(name, "")):
                found[match[1]] = address
        return found


class _Plain(yaml.SafeDumper):
    """Writes what is shared each time, instead of anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_COMMENTS = {
    "auth": "How clients show who they are.",
    "keys": "Who may use the proxy.",
    "endpoints": "Where answers come from: one for each deployment.",
    "models": "What clients ask for.",
    "budgets": "What may be spent.",
    "ledger": "Where the books are kept.",
}


def convert(text: str) -> Imported:
    """The equivalent of a LiteLLM ``config.yaml``; raises `ImportedFileError` if it is none."""
    try:
        found = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = f" on line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ImportedFileError(f"The file is not valid YAML{line}: {error.problem}.") from None
    except (yaml.YAMLError, RecursionError):
        raise ImportedFileError("The file is not valid YAML.") from None
    if not isinstance(found, dict) or not isinstance(found.get("model_list"), list):
        raise ImportedFileError(
            "The file has no `model_list`, so it is not a LiteLLM configuration.", field="model_list"
        )
    return _Import(found).run()


class _Import:
    def __init__(self, source: dict[str, Any]) -> None:
        self._source = source
        self._litellm = _mapping(source.get("litellm_settings"))
        self._router = _mapping(source.get("router_settings"))
        self._general = _mapping(source.get("general_settings"))
        self._credentials = {
            str(entry.get("credential_name")): _mapping(entry.get("credential_values"))
            for entry in map(_mapping, _list(source.get("credential_list")))
        }
        self._endpoints: dict[str, dict[str, Any]] = {}
        self._groups: dict[str, list[dict[str, Any]]] = {}
        self._budgets: list[dict[str, Any]] = []
        self._missing: list[Missing] = []

    def run(self) -> Imported:
        for index, entry in enumerate(self._source["model_list"]):
            self._deployment(f"model_list[{index}]", _mapping(entry))
        models = self._models()
        keys = self._keys()
        self._spending()
        ledger = self._ledger()
        self._leftovers()
        config = {
            "auth": self._auth(),
            "keys": keys,
            "endpoints": self._endpoints,
            "models": models,
            "budgets": self._budgets,
            "ledger": ledger,
        }
        return Imported({name: part for name, part in config.items() if part}, self._missing)

    def _lacks(self, path: str, why: str) -> None:
        self._missing.append(Missing(path, why))

    def _deployment(self, path: str, entry: dict[str, Any]) -> None:
        group = str(entry.get("model_name", ""))
        params, info = _mapping(entry.get("litellm_params")), _mapping(entry.get("model_info"))
        params = self._credentials.get(str(params.get("litellm_credential_name")), {}) | params
        model = str(params.get("model", ""))
        if "*" in group or "*" in model:
            self._lacks(path, f"wildcards ({group!r}); name each model.")
            return
        mode = info.get("mode", "chat")
        if mode not in _MODES:
            self._lacks(path, f"the API {mode!r} is not served ({group!r}).")
            return
        name, upstream = _provider(model, params)
        provider = PROVIDERS.get(name)
        if not group or provider is None:
            self._lacks(path, f"the provider {name!r} speaks no OpenAI or Anthropic API ({group!r}).")
            return
        base_url = self._base_url(name, provider, params)
        if base_url is None and provider.kind == "openai":
            self._lacks(path, f"no `api_base`, so the address is unknown ({group!r}).")
            return
        endpoint: dict[str, Any] = {"kind": provider.kind, "base_url": base_url, "model": upstream}
        key = params.get("api_key") or (f"os.environ/{provider.key}" if provider.key else None)
        if key and str(key).lower() not in ("none", "fake-key", "anything"):
            endpoint["api_key"] = _text(key)
        endpoint |= self._details(params, info, mode)
        self._unknown_keys(path, params, info)
        place = self._place(str(info.get("id") or f"{name}-{upstream}"), endpoint)
        self._limits(place, params)
        self._budget(f"{path}.litellm_params", f"{place} budget", f"endpoint:{place}", params)
        target: dict[str, Any] = {"endpoint": place}
        weight = next((params[k] for k in ("weight", "rpm", "tpm") if _number(params.get(k))), None)
        if weight is not None:
            target["weight"] = weight
        targets = self._groups.setdefault(group, [])
        if all(known["endpoint"] != place for known in targets):
            targets.append(target)

    def _base_url(self, name: str, provider: Provider, params: Mapping[str, Any]) -> str | None:
        given = params.get("api_base") or params.get("base_url")
        if given is None:
            return provider.base_url
        base_url = _text(given).rstrip("/")
        # Where LiteLLM adds the rest of the path itself.
        if name == "azure" and "/openai" not in base_url:
            return f"{base_url}/openai/v1"
        bare = not re.search(r"/v\d", base_url) and not base_url.endswith("}")
        if name in ("ollama", "ollama_chat", "anthropic") and bare:
            return f"{base_url}/v1"
        return base_url

    def _details(self, params: Mapping[str, Any], info: Mapping[str, Any], mode: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        headers = _mapping(params.get("extra_headers")) | _mapping(params.get("headers"))
        if params.get("organization"):
            headers["OpenAI-Organization"] = params["organization"]
        if headers:
            found["headers"] = {str(name): _text(value) for name, value in headers.items()}
        costs = dict(info) | dict(params)
        price = {
            ours: float(Decimal(str(costs[theirs])) * 10**6)
            for theirs, ours in _COSTS.items()
            if _number(costs.get(theirs)) is not None
        }
        if "input_usd_per_mtok" in price and (mode == "embedding" or "output_usd_per_mtok" in price):
            price.setdefault("output_usd_per_mtok", 0.0)
            found["price"] = price
        if _MODES[mode]:
            found["apis"] = _MODES[mode]
        if _number(info.get("max_output_tokens")):
            found["max_output_tokens"] = int(info["max_output_tokens"])
        if _number(params.get("max_parallel_requests")):
            found["slots"] = int(params["max_parallel_requests"])
        timeouts = {
            "first_token_s": _number(params.get("stream_timeout"))
            or _number(self._router.get("stream_timeout")),
            "total_s": _number(params.get("timeout"))
            or _number(self._router.get("timeout"))
            or _number(self._litellm.get("request_timeout")),
        }
        if any(timeouts.values()):
            found["timeouts"] = {name: value for name, value in timeouts.items() if value}
        breaker: dict[str, Any] = {}
        if (fails := _number(self._router.get("allowed_fails"))) is not None:
            breaker["failures"] = int(fails) + 1
        if cooldown := _number(self._router.get("cooldown_time")):
            breaker |= {"open_s": cooldown} | ({"max_open_s": cooldown} if cooldown > 300 else {})
        if breaker:
            found["breaker"] = breaker
        if _list(params.get("tags")):
            found["tags"] = [str(tag) for tag in params["tags"]]
        return found

    def _place(self, wanted: str, endpoint: dict[str, Any]) -> str:
        """The name of an endpoint: an equal one's if there is one, else new."""
        endpoint = {key: value for key, value in endpoint.items() if value is not None}
        base = re.sub(r"[^A-Za-z0-9._-]+", "-", wanted).strip("-.") or "endpoint"
        name, number = base, 1
        while name in self._endpoints and self._endpoints[name] != endpoint:
            number += 1
            name = f"{base}-{number}"
        self._endpoints[name] = endpoint
        return name

    def _limits(self, place: str, params: Mapping[str, Any]) -> None:
        """Limits per minute; under simple-shuffle LiteLLM takes them for weights, unless told to enforce."""
        strategy = str(self._router.get("routing_strategy", "simple-shuffle"))
        enforced = "enforce_model_rate_limits" in _list(self._router.get("optional_pre_call_checks"))
        if not enforced and not strategy.startswith("usage-based"):
            return
        for key, resource in (("rpm", "requests"), ("tpm", "tokens")):
            amount = _number(params.get(key))
            name = f"{place} {key}"
            if amount and all(budget["name"] != name for budget in self._budgets):
                scope = f"endpoint:{place}"
                self._budgets.append(
                    {"name": name, "resource": resource, "amount": amount, "window": "1m", "scope": scope}
                )

    def _unknown_keys(self, path: str, params: Mapping[str, Any], info: Mapping[str, Any]) -> None:
        for key in params:
            if key not in _DEPLOYMENT_KEYS:
                self._lacks(f"{path}.litellm_params.{key}", "clients send this themselves, or not at all.")
        if params.get("api_version"):
            self._lacks(f"{path}.litellm_params.api_version", "Azure's /openai/v1 path needs none.")
        for key in info:
            if key not in _INFO_KEYS:
                self._lacks(f"{path}.model_info.{key}", "no equivalent.")

    def _models(self) -> dict[str, Any]:
        retries = self._retries()
        models: dict[str, Any] = {}
        for group, targets in self._groups.items():
            model: dict[str, Any] = {}
            if len(targets) > 1:
                model["policy"] = self._policy(any("weight" in target for target in targets))
            weighted = model.get("policy") == "route/weighted"
            model["endpoints"] = [t if weighted and "weight" in t else t["endpoint"] for t in targets]
            if retries:
                model["retries"] = retries
            models[group] = model
        for alias, value in _mapping(self._router.get("model_group_alias")).items():
            known = value.get("model") if isinstance(value, dict) else value
            if known in models:
                models[alias] = models[known]
            else:
                self._lacks(f"router_settings.model_group_alias.{alias}", f"there is no model {known!r}.")
        if any(len(targets) > 1 for targets in self._groups.values()):
            self._strategy_note()
        return models

    def _policy(self, weighted: bool) -> str:
        strategy = str(self._router.get("routing_strategy", "simple-shuffle"))
        if strategy in _STRATEGIES:
            return _STRATEGIES[strategy][0]
        return "route/weighted" if weighted else "route/random"

    def _strategy_note(self) -> None:
        strategy = str(self._router.get("routing_strategy", "simple-shuffle"))
        why = _STRATEGIES[strategy][1] if strategy in _STRATEGIES else None
        if strategy not in _STRATEGIES and strategy != "simple-shuffle":
            why = "no such policy; requests are spread at random"
        if why:
            self._lacks(f"router_settings.routing_strategy {strategy}", f"{why}.")

    def _retries(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for settings in (self._router, self._litellm):
            count = _number(settings.get("num_retries"))
            if count is not None and "attempts" not in found:
                found["attempts"] = min(20, int(count) + 1)
        if wait := _number(self._router.get("retry_after")):
            found["backoff_s"] = wait
            if wait > 8:
                found["max_backoff_s"] = wait
        return found

    def _keys(self) -> list[dict[str, Any]]:
        master = self._general.get("master_key")
        if not master:
            return []
        return [{"name": "master", "secret": _text(master), "admin": True}]

    def _auth(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if not self._general.get("master_key"):
            found["required"] = False  # without a master key LiteLLM asks for none
        header = self._general.get("user_header_name")
        for mapping in map(_mapping, _list(self._general.get("user_header_mappings"))):
            if mapping.get("litellm_user_role") == "customer":
                header = mapping.get("header_name", header)
        if header:
            found["user_header"] = str(header).lower()
        return found

    def _spending(self) -> None:
        """Budgets and limits of the whole proxy, of each end user and of each key."""
        self._budget("litellm_settings", "max_budget", "all", self._litellm)
        each_user = _number(self._litellm.get("max_end_user_budget"))
        if each_user is not None:
            self._budgets.append({"name": "max_end_user_budget", "amount": each_user, "scope": "user"})
            self._lacks(
                "litellm_settings.max_end_user_budget",
                "end users of two teams are two, whatever their names.",
            )
        soft = _number(self._litellm.get("default_soft_budget"))
        if soft is not None:
            self._budgets.append(
                {"name": "default_soft_budget", "amount": soft, "scope": "key", "hard": False}
            )
        for name, scope in (("global_max_parallel_requests", "all"), ("max_parallel_requests", "endpoint")):
            if most := _number(self._general.get(name)):
                self._budgets.append(
                    {"name": name, "resource": "parallel", "amount": int(most), "scope": scope}
                )
        most_of_a_key = _mapping(self._litellm.get("upperbound_key_generate_params"))
        path = "litellm_settings.upperbound_key_generate_params"
        self._budget(path, "upperbound max_budget", "key", most_of_a_key)
        for name, resource in (("rpm_limit", "requests"), ("tpm_limit", "tokens")):
            if most := _number(most_of_a_key.get(name)):
                rate = {"resource": resource, "amount": int(most), "refill_per_s": most / 60, "scope": "key"}
                self._budgets.append({"name": f"upperbound {name}"} | rate)
        if most := _number(most_of_a_key.get("max_parallel_requests")):
            parallel = {"resource": "parallel", "amount": int(most), "scope": "key"}
            self._budgets.append({"name": "upperbound max_parallel_requests"} | parallel)
        known = {"max_budget", "budget_duration", "rpm_limit", "tpm_limit", "max_parallel_requests"}
        for name in most_of_a_key:
            if name not in known:
                self._lacks(f"{path}.{name}", "`apportion keys create` sets it for each key.")

    def _budget(self, path: str, name: str, scope: str, settings: Mapping[str, Any]) -> None:
        """``max_budget`` dollars in each ``budget_duration`` of ``settings``."""
        amount = _number(settings.get("max_budget"))
        if amount is None or any(budget["name"] == name for budget in self._budgets):
            return
        window = self._window(f"{path}.budget_duration", settings.get("budget_duration"))
        budget: dict[str, Any] = {"name": name, "amount": amount, "scope": scope, "window": window}
        zone = self._litellm.get("timezone")
        if zone and window in ("day", "week", "month"):
            budget["time_zone"] = str(zone)
        self._budgets.append(budget)

    def _window(self, path: str, duration: object) -> str:
        """LiteLLM's days, weeks and months follow the calendar."""
        text = str(duration or "forever")
        if text in _CALENDAR:
            return _CALENDAR[text]
        months = re.fullmatch(r"(\d+)mo", text)
        if months:
            days = f"{int(months[1]) * 30}d"
            self._lacks(path, f"{months[1]} months count as {days}.")
            return days
        if text != "forever" and not duration_s(text):
            self._lacks(path, f"{text!r} is not a duration; the budget is for ever.")
            return "forever"
        return text

    def _ledger(self) -> dict[str, Any]:
        """The database, with this proxy's own tables beside LiteLLM's, and Redis in front of it."""
        found: dict[str, Any] = {}
        url = self._general.get("database_url")
        if url:
            text = re.sub(r"^postgres://", "postgresql://", _text(url))
            found["url"], _, query = text.partition("?")
            self._lacks(
                "general_settings.database_url",
                "keys, teams and what they have spent stay in LiteLLM's tables; make them with `apportion keys`"
                + (" (its parameters after `?` are left out)." if query else "."),
            )
        redis = self._redis()
        if redis and url:
            found["redis"] = redis
        elif redis:
            self._lacks("router_settings.redis_host", "Redis only lends; give `ledger.url` a PostgreSQL.")
        if self._general.get("allow_requests_on_db_unavailable"):
            why = (
                "while the database is lost, requests go on as far as budgets were lent (`ledger.when_lost`)."
            )
            self._lacks("general_settings.allow_requests_on_db_unavailable", why)
        return found

    def _redis(self) -> str | None:
        settings = self._router
        if settings.get("redis_url"):
            return _text(settings["redis_url"])
        if not settings.get("redis_host"):
            return None
        password = settings.get("redis_password")
        user = f":{_in_address(password)}@" if password else ""
        port = _text(settings.get("redis_port") or 6379)
        return f"redis://{user}{_text(settings['redis_host'])}:{port}/{_text(settings.get('redis_db') or 0)}"

    def _leftovers(self) -> None:
        taken = {
            "litellm_settings": {
                *("num_retries", "request_timeout", "max_budget", "budget_duration", "timezone"),
                *("max_end_user_budget", "default_soft_budget", "upperbound_key_generate_params"),
            },
            "router_settings": {
                "routing_strategy",
                "model_group_alias",
                "num_retries",
                "retry_after",
                "timeout",
                "stream_timeout",
                "allowed_fails",
                "cooldown_time",
                *("redis_url", "redis_host", "redis_port", "redis_password", "redis_db"),
            },
            "general_settings": {
                *("master_key", "max_parallel_requests", "global_max_parallel_requests"),
                *("user_header_name", "user_header_mappings"),
                *("database_url", "allow_requests_on_db_unavailable"),
            },
        }
        for section, known in taken.items():
            for key, value in _mapping(self._source.get(section)).items():
                if key not in known and value not in (None, False, [], {}):
                    self._lacks(f"{section}.{key}", _WHY.get(key, "no equivalent."))
        for section in self._source:
            if section not in taken and section not in ("model_list", "credential_list"):
                self._lacks(str(section), _WHY.get(str(section), "no equivalent."))


_FAIL_OVER = "fail-over is between the endpoints of one model; add those of the other model to it."
_WHY = {
    "fallbacks": _FAIL_OVER,
    "default_fallbacks": _FAIL_OVER,
    "context_window_fallbacks": _FAIL_OVER,
    "content_policy_fallbacks": _FAIL_OVER,
    "callbacks": "use /metrics, or `otel`.",
    "success_callback": "use /metrics, or `otel`.",
    "failure_callback": "use /metrics, or `otel`.",
    "service_callbacks": "use /metrics, or `otel`.",
    "drop_params": "fields are passed on as they are.",
    "set_verbose": "use `log.level`.",
    "json_logs": "use `log.format: json`.",
    "cache": "answers are not cached.",
    "cache_params": "answers are not cached.",
    "provider_budget_config": "give each endpoint a budget with `scope: endpoint:NAME`.",
    "tag_budget_config": "tags have no budgets; give keys or teams one.",
    "default_team_settings": "name the team in `teams`, with its `budget` and `limits`.",
    "default_team_params": "name the team in `teams`, with its `budget` and `limits`.",
    "default_key_generate_params": "`apportion keys create` takes budget and limits of each key.",
    "default_internal_user_params": "internal users are teams or keys here.",
    "max_internal_user_budget": "internal users are teams or keys here; give each a `budget`.",
    "internal_user_budget_duration": "internal users are teams or keys here; give each a `budget`.",
    "max_end_user_budget_id": "write the budget itself: `scope: user`.",
    "enforce_user_param": "a request without `user` falls under no budget of scope `user`.",
    "store_model_in_db": "models are in the configuration.",
    "alerting": "use /metrics.",
    "proxy_batch_write_at": "use `ledger.commit_s`; what is not written yet is in a journal.",
    "disable_spend_logs": "the books need every entry.",
    "environment_variables": "set them in the environment.",
    "enable_pre_call_checks": "endpoints that cannot serve a request are always left out.",
    "optional_pre_call_checks": "limits are always enforced.",
    "background_health_checks": "use `health.probe` of the endpoint; no model is called.",
    "health_check_interval": "use `health.interval_s` of the endpoint.",
}


def _provider(model: str, params: Mapping[str, Any]) -> tuple[str, str]:
    """The provider of a deployment and the model's name there."""
    head, slash, rest = model.partition("/")
    own = params.get("custom_llm_provider")
    if own:
        return str(own), rest if head == own else model
    if slash and head in PROVIDERS:
        return head, rest
    if params.get("api_base") and not slash:
        return "custom_openai", model
    for pattern, name in _BY_NAME:
        if not slash and pattern.match(model):
            return name, model
    return head if slash else model, rest


def _text(value: object) -> str:
    """A value as apportion writes it: ``os.environ/NAME`` is ``${NAME}``."""
    text = str(value)
    if match := re.fullmatch(r"os\.environ/([A-Za-z_][A-Za-z0-9_]*)", text):
        return f"${{{match[1]}}}"
    return text.replace("${", "$${")


def _in_address(password: object) -> str:
    """A password inside an address; one in the environment must be percent-encoded there."""
    text = _text(password)
    return text if text.startswith("${") else quote(text.replace("$${", "${"), safe="")


def _number(value: object) -> float | int | None:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        return None
    return int(value) if float(value).is_integer() else value


def _mapping(value: object) -> dict[str, Any]:
    return {str(key): item for key, item in value.items()} if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
