"""The reader: what a file may say, and that everything wrong is told at once with its line and the fix."""

from __future__ import annotations

import contextlib
import pickle
import string
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from apportion.serve.config import schema
from apportion.serve.config.default import DEFAULT, default_config
from apportion.serve.config.problems import ConfigError, Problem
from apportion.serve.config.reader import load, loads, override
from apportion.serve.config.schema import Config, Secret

GOOD = """\
endpoints:
  gpt: {kind: openai, base_url: https://api.openai.com/v1/, api_key: "${OPENAI_API_KEY}"}
models:
  gpt-4o: gpt
"""
ENV = {"OPENAI_API_KEY": "sk-secret-1234567890"}


def problems(text: str, **environ: str) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        loads(text, "a.yaml", environ=ENV | environ)
    return list(caught.value.problems)


def only(text: str, **environ: str) -> Problem:
    found = problems(text, **environ)
    assert len(found) == 1, [str(problem) for problem in found]
    return found[0]


def test_short_forms_are_written_out() -> None:
    config = loads(
        GOOD
        + """\
  many: [gpt, {endpoint: gpt, model: gpt-4o-mini, quality: 0.8, weight: 2}]
  chosen: {endpoints: [gpt], policy: {name: route/power_of_two, seed: 7}, worth_usd: 0.01}
  named: {endpoints: [gpt], policy: route/random}
""",
        environ=ENV,
    )
    assert [target.endpoint for target in config.models["gpt-4o"].endpoints] == ["gpt"]
    assert config.models["gpt-4o"].policy.name == "route/least_load"
    assert config.models["many"].endpoints[1].quality == 0.8
    assert config.models["chosen"].policy.parameters == {"seed": 7}
    assert config.models["named"].policy.name == "route/random"
    assert config.endpoints["gpt"].base_url == "https://api.openai.com/v1"
    assert config.endpoints["gpt"].api_key == Secret(ENV["OPENAI_API_KEY"])


def test_units_are_read() -> None:
    config = loads(
        GOOD
        + """\
listen: {port: "${PORT}", drain_s: 1m, workers: "${WORKERS:-2}"}
http: {body_bytes: 20MiB, header_timeout_s: 250ms, idle_timeout_s: 1e1}
budgets:
  - {name: day, amount: 10, window: 1d}
  - {name: ever, amount: 1_000, resource: tokens, window: forever}
  - {name: rate, amount: 5, refill_per_s: 1e-3}
keys: [{name: a, secret: x, budget: {usd: 1, tokens: 5, window: 1h, hard: no}}]
""",
        environ={**ENV, "PORT": "8123"},
    )
    assert (config.listen.port, config.listen.drain_s, config.listen.workers) == (8123, 60, 2)
    assert (config.http.body_bytes, config.http.header_timeout_s) == (20 * 2**20, 0.25)
    assert config.http.idle_timeout_s == 10
    assert [budget.window for budget in config.budgets] == [86400, None, None]
    assert config.budgets[2].refill_per_s == 0.001
    assert [(b.name, b.amount, b.window, b.hard) for b in config.all_budgets()[3:]] == [
        ("key:a:usd", 1, 3600, False),
        ("key:a:tokens", 5, 3600, False),
    ]


def test_anchors_merge_and_x_keys() -> None:
    config = loads(
        """\
x-common: &common
  kind: openai
  timeouts: {connect_s: 1}
endpoints:
  a: {<<: *common, base_url: "http://a:1/v1"}
  b: {<<: *common, base_url: "http://b:1/v1", timeouts: {connect_s: 2}}
models: {m: [a, b]}
"""
    )
    assert [e.timeouts.connect_s for e in config.endpoints.values()] == [1, 2]


def test_all_problems_at_once_in_order_of_lines() -> None:
    text = """\
listen: {port: 99999}
endpoints:
  gpt: {kind: opnai}
  other: {kind: openai, base_url: ftp://x}
models:
  a: [gtp, other]
  b: {endpoints: [other], policy: route/pried}
budgets:
  - {name: x, amount: -1}
colour: red
"""
    found = problems(text)
    assert [(p.line, p.path) for p in found] == [
        (1, "listen.port"),
        (3, "endpoints.gpt.kind"),
        (4, "endpoints.other.base_url"),
        (6, "models.a.endpoints[0]"),
        (7, "models.b.policy.name"),
        (9, "budgets[0].amount"),
        (10, "colour"),
    ]
    assert "expected a whole number, from 0 to 65535, found 99999" in found[0].message
    assert found[1].fix == "Did you mean `openai`?"
    assert found[3].fix == "Did you mean `gpt`?"
    assert found[4].fix == "Did you mean `route/priced`?"
    assert str(found[0]).startswith("a.yaml:1: listen.port: ")


@pytest.mark.parametrize(
    ("text", "path", "says"),
    [
        ("listen: {wrokers: 2}", "listen.wrokers", "Did you mean `workers`?"),
        ("listen: {port: eighty}", "listen.port", "a whole number, from 0 to 65535, found the text 'eighty'"),
        ('listen: {port: "80"}', "listen.port", "found the text '80'"),
        ("listen: {workers: 1.5}", "listen.workers", "found 1.5"),
        ("listen: {workers: true}", "listen.workers", "found true"),
        ("listen: {host: no}", "listen.host", 'quote it: "no"'),
        ("listen: []", "listen", "expected a mapping, found a list"),
        ("http: {body_bytes: 20 pounds}", "http.body_bytes", "a size such as `20MiB`"),
        ("http: {body_bytes: 0}", "http.body_bytes", "1 or more, found 0"),
        ("http: {idle_timeout_s: -3}", "http.idle_timeout_s", "a duration such as `30s`, more than 0"),
        ("http: {idle_timeout_s: .inf}", "http.idle_timeout_s", "found .inf"),
        ("http: {idle_timeout_s: .nan}", "http.idle_timeout_s", "found .nan"),
        ("http: {idle_timeout_s: 5 parsecs}", "http.idle_timeout_s", "'5 parsecs'"),
        ("log: {level: loud}", "log.level", "`warning`"),
        ("otel: {enabled: maybe}", "otel.enabled", "true or false"),
        ("keys: {a: b}", "keys", "expected a list, found a mapping"),
        ("keys: [{secret: x}]", "keys[0].name", "missing"),
        ("keys: [{name: a}]", "keys[0]", "exactly one of `secret` and `secret_sha256`"),
        ("keys: [{name: a, secret: ''}]", "keys[0].secret", "expected a secret, found nothing"),
        ("keys: [{name: a, secret_sha256: abc}]", "keys[0].secret_sha256", "64 hexadecimal digits"),
        ("keys: [{name: a, secret: b}, {name: a, secret: c}]", "keys[1].name", "another key is called 'a'"),
        ("keys: [{name: a, secret: b}, {name: c, secret: b}]", "keys[1]", "have the same secret"),
        ("keys: [{name: a, secret: b, models: [gpt-4]}]", "keys[0].models[0]", "Did you mean `gpt-4o`?"),
        ("keys: [{name: a, secret: b, limits: {parallel: 0}}]", "keys[0].limits.parallel", "1 or more"),
        (
            "keys: [{name: a, secret: b, limits: {tokens_per_minute: -5}}]",
            "keys[0].limits.tokens_per_minute",
            "-5",
        ),
        ("keys: [{name: a, secret: b, budget: {window: 1d}}]", "keys[0].budget", "Give `usd` or `tokens`"),
        ("auth: {required: no}\nlisten: {host: 0.0.0.0}", "auth.required", "everybody needs a key"),
        ("prices: {usd: 2}", "prices.usd", "always worth 1"),
        ("prices: {joule: 1}", "prices.joule", "Did you mean `joules`?"),
        ("budgets: [{name: a, amount: 1}, {name: a, amount: 1}]", "budgets[1].name", "another budget"),
        (
            "budgets: [{name: a, amount: 1, scope: 'model:gpt-4'}]",
            "budgets[0].scope",
            "Did you mean `gpt-4o`?",
        ),
        ("budgets: [{name: a, amount: 1, scope: 'team:red'}]", "budgets[0].scope", "no team 'red'"),
        ("budgets: [{name: a, amount: 1, scope: 'all:b'}]", "budgets[0].scope", "unknown scope"),
        ("budgets: [{name: a, amount: 1, scope: 'user:'}]", "budgets[0].scope", "unknown scope"),
        (
            "budgets: [{name: a, amount: 1, scope: 'organisation:acme'}]",
            "budgets[0].scope",
            "This one is `default`",
        ),
        ("budgets: [{name: 'a@b', amount: 1}]", "budgets[0].name", "may not be a budget's name"),
        ("budgets: [{name: 'key:a:usd', amount: 1}]", "budgets[0].name", "the proxy's own"),
        ("budgets: [{name: parallel, amount: 1}]", "budgets[0].name", "the proxy's own"),
        ("budgets: [{name: a, amount: 1, window: fortnight}]", "budgets[0].window", "`day`, `week`, `month`"),
        ("budgets: [{name: a, amount: 1, window: 1ms, sliding: 1}]", "budgets[0].sliding", "true or false"),
        ("budgets: [{name: a, amount: 1, window: 0}]", "budgets[0].window", "a duration such as `1h`"),
        (
            "budgets: [{name: a, amount: 1, window: day, sliding: true}]",
            "budgets[0].sliding",
            "only a window with a length",
        ),
        (
            "budgets: [{name: a, amount: 1, sliding: true}]",
            "budgets[0].sliding",
            "only a window with a length",
        ),
        ("budgets: [{name: a, amount: 1, window: month, refill_per_s: 1}]", "budgets[0]", "both"),
        (
            "budgets: [{name: a, amount: 1, window: day, time_zone: Europe/Berlim}]",
            "budgets[0].time_zone",
            "Did you mean `Europe/Berlin`?",
        ),
        (
            "budgets: [{name: a, amount: 1, window: day, time_zone: ../../etc/passwd}]",
            "budgets[0].time_zone",
            "knows no time zone '../../etc/passwd'",
        ),
        (
            "budgets: [{name: a, amount: 1, window: 1d, time_zone: Europe/Berlin}]",
            "budgets[0].time_zone",
            "Use `window: day`",
        ),
        (
            "budgets: [{name: a, amount: 1, hard: false, overdraft: 1}]",
            "budgets[0].overdraft",
            "only a hard budget",
        ),
        (
            "budgets: [{name: a, amount: 5, resource: parallel, window: 1h}]",
            "budgets[0]",
            "has no window",
        ),
        (
            "budgets: [{name: a, amount: 5, resource: parallel, hard: false}]",
            "budgets[0].hard",
            "always hard",
        ),
        (
            "budgets: [{name: a, amount: 5, resource: requests, scope: request}]",
            "budgets[0].resource",
            "always one request",
        ),
        ("budgets: [{name: a, amount: 5, window: 1h, scope: request}]", "budgets[0]", "no window"),
        ("budgets: [{name: a, amount: 5, hard: false, scope: request}]", "budgets[0].hard", "always a hard"),
        ("teams: {red: {budget: {window: 1d}}}", "teams.red.budget", "names no amount"),
        ("teams: {red: {models: [gpt-4]}}", "teams.red.models[0]", "Did you mean `gpt-4o`?"),
        ("teams: {red: {endpoints: [gpu]}}", "teams.red.endpoints[0]", "no endpoint 'gpu'"),
        (
            "teams: {red: {budget: {usd: 1, window: 1d, time_zone: Asia/Tokyo}}}",
            "teams.red.budget.time_zone",
            "only a window of the calendar",
        ),
        ("keys: [{name: a, secret: b, team: red}]", "keys[0].team", "there is no team 'red'"),
        ("keys: [{name: a, secret: b, endpoints: [gtp]}]", "keys[0].endpoints[0]", "Did you mean `gpt`?"),
        ("keys: [{name: a, secret: b, expires: 2027-01-31}]", "keys[0].expires", "with its zone"),
        ("keys: [{name: a, secret: b, expires: 2027-01-31T12:00:00}]", "keys[0].expires", "with its zone"),
        ("keys: [{name: a, secret: b, expires: 1801396800}]", "keys[0].expires", "with its zone"),
        ("auth: {user_header: 'x y'}", "auth.user_header", "not a header"),
        ("auth: {session_headers: [x-a, Authorization]}", "auth.session_headers[1]", "another meaning"),
        ("ledger: {url: 'mysql://a/b'}", "ledger.url", "not an address of books"),
        ("ledger: {url: 'postgresql://a:x/b'}", "ledger.url", "not an address of books"),
        ("ledger: {url: 'sqlite://'}", "ledger.url", "not an address of books"),
        ("ledger: {redis: 'redis://a:6379/0'}", "ledger.redis", "needs PostgreSQL"),
        (
            "ledger: {url: 'postgresql://a/b', redis: 'http://a:6379'}",
            "ledger.redis",
            "not an address of Redis",
        ),
        ("ledger: {url: memory}\nlisten: {workers: 2}", "ledger.url", "there are 2 workers"),
        ("ledger: {durability: disk}", "ledger.durability", "`machine` or `process`"),
        ("ledger: {commit_s: 5s}", "ledger.commit_s", "from 0.001 to 1"),
        ("budgets: [{name: a, amount: 1, scope: everyone}]", "budgets[0].scope", "unknown scope"),
        ("budgets: [{name: a, amount: 1, window: 1d, refill_per_s: 1}]", "budgets[0]", "both"),
        (
            "budgets: [{name: a, amount: 1, resource: dollars}]",
            "budgets[0].resource",
            "no resource 'dollars'",
        ),
        (
            "budgets: [{name: a, amount: 1, resource: joules}]",
            "budgets[0].resource",
            "Give `endpoints.gpt.watts`.",
        ),
        (
            "budgets: [{name: a, amount: 1, resource: joules, hard: false}]",
            "budgets[0].resource",
            "nothing would ever be spent",
        ),
        (
            "budgets: [{name: a, amount: 1, resource: bytes}]",
            "budgets[0].resource",
            "Use `usd`, `tokens`, `requests`, `server_seconds`, `joules`, `gco2` or `parallel`",
        ),
        ("unknown_price: {input_usd_per_mtok: 1}", "unknown_price.output_usd_per_mtok", "missing"),
        ("unknown_price: zero", "unknown_price", "expected `unknown`"),
    ],
)
def test_one_mistake_beside_a_good_file(text: str, path: str, says: str) -> None:
    problem = only(GOOD + text)
    assert problem.path == path
    assert says in str(problem)
    assert problem.line == 5


@pytest.mark.parametrize(
    ("endpoint", "path", "says"),
    [
        ("{}", "kind", "missing"),
        ("", "kind", "missing"),
        ("{kind: openai}", "base_url", "missing"),
        ("{kind: openai, base_url: api.openai.com}", "base_url", "expected an address"),
        ("{kind: openai, base_url: 'https://x:99999/v1'}", "base_url", "expected an address"),
        ("{kind: openai, base_url: 'https://u:hunter2@x/v1'}", "base_url", "may not hold a user"),
        ("{kind: openai, base_url: 'https://x/v1?key=hunter2'}", "base_url", "may not hold a query"),
        ("{kind: openai, base_url: 'https://x', weights: a}", "weights", "only an endpoint of kind `local`"),
        ("{kind: openai, base_url: 'https://x', price: cheap}", "price", "`auto` or `free` or `unknown`"),
        (
            "{kind: openai, base_url: 'https://x', price: free, usd_per_hour: 1}",
            "price",
            "together with `usd_per_hour`",
        ),
        ("{kind: openai, base_url: 'https://x', apis: []}", "apis", "the list is empty"),
        ("{kind: openai, base_url: 'https://x', apis: [chats]}", "apis[0]", "Did you mean `chat`?"),
        ("{kind: openai, base_url: 'https://x', headers: {Host: y}}", "headers.Host", "the proxy's own"),
        ("{kind: openai, base_url: 'https://x', headers: {'a b': y}}", 'headers."a b"', "HTTP allows"),
        ("{kind: openai, base_url: 'https://x', tls: {ca_file: no.pem}}", "tls.ca_file", "there is no file"),
        ("{kind: openai, base_url: 'https://x', breaker: {open_s: 1h}}", "breaker.open_s", "max_open_s"),
        ("{kind: openai, base_url: 'https://x', health: {probe: up}}", "health.probe", "begins with `/`"),
        ("{kind: local}", "weights", "missing"),
        ("{kind: local, weights: smollm}", "weights", "smollm"),
        ("{kind: local, weights: 'hf:a/b#c.gguf'}", "sha256", "pinned by their SHA-256"),
        ("{kind: replay}", "file", "missing"),
        ("{kind: replay, file: nowhere.jsonl}", "file", "there is no file"),
    ],
)
def test_an_endpoint_has_what_its_kind_needs(endpoint: str, path: str, says: str) -> None:
    problem = only(f"endpoints:\n  it: {endpoint}\nmodels: {{m: it}}")
    assert problem.path == f"endpoints.it.{path}"
    assert says in str(problem)
    assert problem.line == 2
    assert "hunter2" not in str(problem)


@pytest.mark.parametrize(
    ("model", "path", "says"),
    [
        ("{endpoints: []}", ".endpoints", "the list is empty"),
        ("", ".endpoints", "missing"),
        ("gtp", ".endpoints[0]", "Did you mean `gpt`?"),
        ("[gpt, gpt]", ".endpoints[1]", "is there twice"),
        ("[{endpoint: gpt, weight: 0}]", ".endpoints", "every weight is 0"),
        ("[{endpoint: gpt, quality: 1.5}]", ".endpoints[0].quality", "from 0 to 1, found 1.5"),
        ("{endpoints: [gpt], policy: route/best}", ".policy.name", "there is no policy 'route/best'"),
        ("{endpoints: [gpt], policy: {name: route/random, sed: 1}}", ".policy.sed", "Did you mean `seed`?"),
        ("{endpoints: [gpt], policy: {name: route/random, seed: x}}", ".policy.seed", "must be"),
        ("{endpoints: [gpt], policy: {seed: '${NOT_SET}'}}", ".policy.seed", "NOT_SET is not set"),
        ("{endpoints: [gpt], retries: {backoff_s: 1m}}", ".retries.backoff_s", "max_backoff_s"),
        ("{endpoints: [gpt], retries: {attempts: 0}}", ".retries.attempts", "from 1 to 20"),
        ("{endpoints: [gpt], worth_usd: -1}", ".worth_usd", "0 or more"),
    ],
)
def test_a_model_is_checked(model: str, path: str, says: str) -> None:
    problem = only(GOOD + f'  "m.1": {model}')
    assert problem.path == f'models."m.1"{path}'
    assert says in str(problem)
    assert problem.line == 5


def test_no_model_is_a_problem() -> None:
    assert only("").path == "models"
    assert only("endpoints: {gpt: {kind: openai, base_url: 'http://x'}}").path == "models"


def test_an_entry_that_cannot_be_read_still_counts() -> None:
    found = problems("keys:\n- {nam: a}\n- {name: b, secret: x, models: [no-such]}\n" + GOOD)
    assert [(p.line, p.path) for p in found] == [
        (2, "keys[0].nam"),
        (2, "keys[0].name"),
        (3, "keys[1].models[0]"),
    ]


def test_environment_variables() -> None:
    problem = only(GOOD.replace("OPENAI_API_KEY", "MISSING_KEY"))
    assert problem.path == "endpoints.gpt.api_key"
    assert "the environment variable MISSING_KEY is not set" in problem.message
    assert problem.line == 2
    config = loads(
        GOOD + "log: {level: '${LEVEL:-warning}'}\nkeys: [{name: 'a $${x}', secret: 'p-${A}-${B:-}'}]",
        environ=ENV | {"A": "q", "LEVEL": ""},
    )
    assert config.log.level == "warning"
    assert config.keys[0].name == "a ${x}"
    assert config.keys[0].secret == Secret("p-q-")
    assert "unfinished `${`" in only(GOOD + "log: {level: '${oh no}'}").message
    filled = only(GOOD + "listen: {port: '${P}'}", P="hunter2")
    assert "hunter2" not in str(filled)
    assert "${P}" in str(filled)


def test_a_secret_is_never_shown() -> None:
    secret = "sk-proj-Zx81qwertyuiopasdfghjkl"
    texts = [
        GOOD + f"keys: {secret}",
        GOOD + f"keys: [{secret}]",
        GOOD + f"keys: [{{name: a, secret: [{secret}]}}]",
        GOOD + f"keys: [{{name: a, secret_sha256: {secret}}}]",
        GOOD + f"listen: {{port: {secret}}}",
        GOOD + f"log: {{level: {secret}}}",
        GOOD + f"keys: [{{name: a, secret: {secret}: b}}]",
        GOOD + f"keys:\n  - name: a\n    secret: '{secret}\n",
        GOOD + f"keys:\n\t- secret: {secret}\n",
        GOOD.replace("https://", f"https://{secret}@"),
    ]
    for text in texts:
        with pytest.raises(ConfigError) as caught:
            loads(text, environ=ENV)
        assert secret not in str(caught.value)
        assert secret not in repr(caught.value)
        assert caught.value.__cause__ is None
    config = loads(GOOD, environ=ENV)
    assert ENV["OPENAI_API_KEY"] not in repr(config)
    key = schema.Key(name="a", secret=Secret(secret))
    assert secret not in repr(key) + str(key.secret) + f"{key.secret}"
    assert key.digest() == schema.Key(name="a", secret_sha256=key.digest().upper()).digest()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [", "not valid YAML"),
        ("a: {b: ${X}}", "Quote it"),
        ("a: b: c", "not valid YAML"),
        ("\tlisten: {}", "not valid YAML"),
        ("a: \x07", "U+0007 is not allowed"),
        ("--- {}\n--- {}", "not valid YAML"),
        ("a: !!python/object/apply:os.system [ls]", "not allowed"),
        ("a: !!binary aGk=", "tag"),
        ("? [1, 2]\n: 3", "a key must be text"),
        ("*nowhere : 1", "not valid YAML"),
        ("a: &a [*a]", "nested too deep"),
        ("[" * 5000, "nested too deep"),
        ("- a", "expected a mapping, found a list"),
        ("just text", "expected a mapping"),
    ],
)
def test_bad_yaml_is_one_clear_problem(text: str, says: str) -> None:
    assert says in str(only(text))


def test_aliases_cannot_explode() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert "expand to too much" in str(only("\n".join(lines)))


def test_a_key_twice_is_refused() -> None:
    problem = only(GOOD + "models:\n  x: gpt\n")
    assert problem.line == 5
    assert "the key 'models' is there twice (first on line 3)" in problem.message


def test_files(tmp_path: Path) -> None:
    (tmp_path / "trace.jsonl").write_text("")
    file = tmp_path / "apportion.yaml"
    file.write_bytes(b"\xef\xbb\xbfendpoints: {r: {kind: replay, file: trace.jsonl}}\nmodels: {m: r}\n")
    assert load(file).endpoints["r"].file == str(tmp_path / "trace.jsonl")
    file.write_bytes(b"endpoints: {}\nmodels: \xff\n")
    with pytest.raises(ConfigError, match=r"apportion\.yaml:2: not valid UTF-8"):
        load(file)
    with pytest.raises(ConfigError, match="cannot be read: no such file"):
        load(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path)


def test_override_is_checked_too() -> None:
    config = loads(GOOD, environ=ENV)
    assert override(config, port=0, host=None).listen.port == 0
    assert override(config, host="0.0.0.0").listen.host == "0.0.0.0"
    assert override(config, workers=64).listen.workers == 64
    with pytest.raises(ConfigError, match=r"command line: ledger.url: `memory` keeps books in one process"):
        override(loads(GOOD + "ledger: {url: memory}", environ=ENV), workers=2)
    assert config.auth.required
    open_ = override(config, required=False)
    assert open_ == loads(GOOD + "auth: {required: false}", environ=ENV)
    assert override(open_, port=0).auth.required is False
    with pytest.raises(ConfigError, match=r"command line: auth\.required: '0\.0\.0\.0' can be reached"):
        override(open_, host="0.0.0.0")
    for host in ("localhost", "127.0.0.2", "::1"):
        assert override(open_, host=host).listen.host == host


def test_the_default_is_valid() -> None:
    config = default_config({})
    assert "default" in config.models
    assert config.endpoints["smollm2"].kind == "local"
    assert config.keys == []
    locked = default_config({"APPORTION_API_KEY": "k"})
    assert locked.keys[0].secret == Secret("k")
    assert loads(DEFAULT, environ={}) == config


def test_a_configuration_travels_between_processes() -> None:
    config = loads(GOOD + "keys: [{name: a, secret: b, budget: {usd: 1}}]", environ=ENV)
    assert pickle.loads(pickle.dumps(config)) == config


@given(st.text(alphabet=string.printable, max_size=200))
@example("{")
@example("a: 0x_")
@example("a: 1:30")
@example("<<: 1")
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert isinstance(loads(text, environ={}), Config)


WORDS = st.sampled_from(
    ["listen", "keys", "endpoints", "models", "kind", "openai", "name", "secret", "policy", "price", "auto"]
)
TREES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 99999) | st.floats() | WORDS | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(TREES)
def test_any_shape_is_read_or_refused(tree: object) -> None:
    with contextlib.suppress(ConfigError):
        assert isinstance(loads(yaml.safe_dump(tree), environ={}), Config)
