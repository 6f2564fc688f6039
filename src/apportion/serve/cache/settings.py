"""What an ``apportion.yaml`` may say of the answer cache."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from apportion.serve.config.secret import Secret

_Seconds = Annotated[float, Meta(extra={"unit": "duration"})]
_Bytes = Annotated[int, Meta(extra={"unit": "size"})]
_Share = Annotated[float, Meta(ge=0, le=1)]
_Pattern = Annotated[str, Meta(min_length=1, max_length=1000)]


class Category(Struct, frozen=True, kw_only=True):
    """How answers to one kind of question are kept. What is left out is as in the built-in category of this name, or
    as in `chat`."""

    threshold: Annotated[
        _Share | None, Meta(description="Least cosine similarity of two questions that share an answer.")
    ] = None
    novelty: Annotated[
        _Share | None,
        Meta(
            description="The largest share of words that only one of two questions may have; 0: the same words, "
            "function words and synonyms aside."
        ),
    ] = None
    disorder: Annotated[
        _Share | None,
        Meta(description="The largest share of the common words' pairs that may be in another order."),
    ] = None
    ttl_s: Annotated[
        Annotated[_Seconds, Meta(ge=0)] | None, Meta(description="How long an answer is served; 0 for never.")
    ] = None
    quota: Annotated[
        _Share | None,
        Meta(description="A part of the cache for this category alone. Left out: it shares what is left."),
    ] = None
    relaxes: Annotated[
        bool | None, Meta(description="Whether threshold and time to live give way when the model is loaded.")
    ] = None
    match: Annotated[
        list[_Pattern],
        Meta(description="Regular expressions; where one is found, the question belongs here."),
    ] = field(default_factory=list)
    models: Annotated[list[str], Meta(description="Logical models all of whose questions belong here.")] = (
        field(default_factory=list)
    )
    tags: Annotated[list[str], Meta(description="Tags of requests that belong here.")] = field(
        default_factory=list
    )


class Cache(Struct, frozen=True, kw_only=True):
    """Answers that are kept for the next who asks the same."""

    enabled: Annotated[bool, Meta(description="Keep answers and serve them.")] = False
    semantic: Annotated[
        bool,
        Meta(
            description="Also where the last question is the same in other words. Needs `apportion[text,semantic]`."
        ),
    ] = False
    bytes: Annotated[Annotated[_Bytes, Meta(ge=1)], Meta(description="Memory for it, in each worker.")] = (
        256 * 2**20
    )
    answer_bytes: Annotated[
        Annotated[_Bytes, Meta(ge=1)], Meta(description="The longest answer that is kept.")
    ] = 2**20
    ttl_s: Annotated[
        Annotated[_Seconds, Meta(gt=0)], Meta(description="The longest time for which an answer is served.")
    ] = 7 * 86400.0
    share: Annotated[
        Literal["team", "key", "user"],
        Meta(
            description="Who may get an answer that another got: the keys of one team (a key without a team: itself), "
            "one key, or one end user of it. Nothing ever crosses teams."
        ),
    ] = "team"
    eviction: Annotated[
        str, Meta(description="Method that decides what stays when it is full; see `apportion methods`.")
    ] = "cache/gdsf"
    max_temperature: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        Meta(description="Requests with a higher temperature always get a new answer. Left out: no limit."),
    ] = None
    wait_s: Annotated[
        Annotated[_Seconds, Meta(ge=0)],
        Meta(description="How long a request waits for an equal one under way; 0: not at all."),
    ] = 30.0
    relax_above: Annotated[
        _Share,
        Meta(description="Load of a model above which thresholds and times to live give way; 1: never."),
    ] = 0.8
    relax_threshold: Annotated[_Share, Meta(description="How far thresholds fall at full load.")] = 0.05
    relax_ttl: Annotated[
        Annotated[float, Meta(ge=0)],
        Meta(description="How much longer answers are served at full load; 3: four times as long."),
    ] = 3.0
    second_usd: Annotated[
        Annotated[float, Meta(ge=0)],
        Meta(
            description="What a second of looking costs, in dollars: below break-even a category is not looked up."
        ),
    ] = 0.0001
    redis: Annotated[
        Secret | None, Meta(description="Redis or Valkey through which workers and replicas share answers.")
    ] = None
    sync_s: Annotated[
        Annotated[_Seconds, Meta(gt=0)],
        Meta(description="How often a worker asks Redis what others have kept."),
    ] = 1.0
    categories: Annotated[
        dict[str, Category],
        Meta(
            description="Kinds of questions, by name; the first whose rules fit. Built in: volatile, problem, code, "
            "factual, chat."
        ),
    ] = field(default_factory=dict)
