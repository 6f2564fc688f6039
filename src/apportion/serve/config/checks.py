"""What must hold between the parts of a configuration: names that exist, kinds that have what they need."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from pathlib import Path as FilePath
from urllib.parse import urlsplit

from apportion.core import catalogue
from apportion.core.errors import ApportionError, ParameterError, UnknownMethodError
from apportion.core.resource import resources
from apportion.serve import artefact
from apportion.serve.cache.category import patterns_at_fault
from apportion.serve.checks.check import made
from apportion.serve.checks.schemas import CheckError
from apportion.serve.config import budgets
from apportion.serve.config.convert import nearest
from apportion.serve.config.document import Path
from apportion.serve.config.fault import Fault
from apportion.serve.config.schema import Auth, Config, Endpoint, Key, Model, PolicyChoice, Team

_KIND_ONLY = {
    "weights": "local",
    "sha256": "local",
    "threads": "local",
    "embeddings": "local",
    "file": "replay",
    "speed": "replay",
}
_HEADER = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_OWN_HEADERS = frozenset({"host", "content-length", "transfer-encoding", "connection"})
_CREDENTIALS = frozenset({"authorization", "x-api-key", "cookie"})


def faults(config: Config, names: Callable[[str], set[str]]) -> Iterator[Fault]:
    """Everything wrong between the parts of ``config``.

    ``names("endpoints")`` are the names the file mentions there, also those whose own values are wrong, so
    that one mistake is not reported again wherever its name is used.
    """
    yield from exposure(config)
    yield from books(config)
    yield from _headers(config.auth)
    for name, team in config.teams.items():
        yield from owner(("teams", name), team, names)
    yield from _tags(config)
    for index, key in enumerate(config.keys):
        yield from _key(("keys", index), key, config.keys[:index], names)
    for name, endpoint in config.endpoints.items():
        yield from _endpoint(("endpoints", name), endpoint)
    if not names("models"):
        yield Fault(("models",), "no model is configured.", "Give one: `models: {NAME: ENDPOINT}`.")
    for name, model in config.models.items():
        yield from _model(("models", name), model, names("endpoints"))
        encoder = "text/minilm" if config.text.encoder == "minilm" else None
        yield from _outcomes(("models", name), model, names("models"), encoder)
        yield from _examples(("models", name, "examples"), model, config.text.encoder)
    if config.cache.enabled:
        choice = PolicyChoice(name=config.cache.eviction, parameters={"capacity": 1})
        yield from _method(("cache", "eviction"), choice, "cache")
        for name, pattern, why in patterns_at_fault(config.cache.categories):
            yield Fault(("cache", "categories", name, "match"), f"the pattern {pattern!r} is wrong: {why}.")
    yield from _prices(config)
    yield from budgets.faults(config, names)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def exposure(config: Config) -> Iterator[Fault]:
    """An open proxy that others can reach is refused."""
    host = config.listen.host
    if not config.auth.required and not is_loopback(host):
        yield Fault(
            ("auth", "required"),
            f"{host!r} can be reached from other machines, where everybody needs a key.",
            "Remove it, or listen on 127.0.0.1.",
        )


def books(config: Config) -> Iterator[Fault]:
    """The books are at an address that is one, and all workers share them."""
    url = None if config.ledger.url is None else config.ledger.url.reveal()
    kind = "sqlite" if url is None else _kind_of_books(url)
    if kind is None:
        yield Fault(
            ("ledger", "url"),
            "not an address of books.",
            "Write `sqlite:///FILE`, `postgresql://USER:PASSWORD@HOST/DATABASE` or `memory`.",
        )
    if kind == "memory" and config.listen.workers > 1:
        yield Fault(
            ("ledger", "url"),
            f"`memory` keeps books in one process, and there are {config.listen.workers} workers.",
            "Use `sqlite:///FILE`, or one worker (`listen.workers`).",
        )
    if config.ledger.redis is None:
        return
    if not re.match(r"(rediss?|unix)://.", config.ledger.redis.reveal()):
        yield Fault(("ledger", "redis"), "not an address of Redis.", "Write `redis://HOST:6379/0`.")
    if kind not in ("postgresql", None):
        yield Fault(
            ("ledger", "redis"),
            "Redis only lends; the record needs PostgreSQL.",
            "Give `ledger.url`: `postgresql://USER:PASSWORD@HOST/DATABASE`, or remove this.",
        )


def _kind_of_books(url: str) -> str | None:
    if url == "memory":
        return url
    if re.match(r"sqlite:///[^?]", url):
        return "sqlite"
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("postgresql", "postgres") and (parts.port or 1) > 0
    except ValueError:
        return None
    return "postgresql" if known else None


def _headers(auth: Auth) -> Iterator[Fault]:
    named: list[tuple[Path, str | None]] = [(("auth", "user_header"), auth.user_header)]
    named += [(("auth", "session_headers", index), name) for index, name in enumerate(auth.session_headers)]
    for path, name in named:
        if name is not None and not _HEADER.fullmatch(name):
            yield Fault(path, "not a header that HTTP allows.")
        elif name is not None and name.lower() in _OWN_HEADERS | _CREDENTIALS:
            yield Fault(path, f"{name!r} has another meaning.", "Name one that says only this.")


def owner(path: Path, owner: Key | Team, names: Callable[[str], set[str]]) -> Iterator[Fault]:
    """What keys and teams have in common."""
    for part in ("models", "endpoints"):
        known = names(part)
        for index, name in enumerate(getattr(owner, part) or ()):
            if name not in known:
                fix = nearest(name, sorted(known))
                yield Fault((*path, part, index), f"there is no {part[:-1]} {name!r}.", fix)
    if owner.budget is not None and owner.budget.usd is None and owner.budget.tokens is None:
        yield Fault((*path, "budget"), "names no amount.", "Give `usd` or `tokens`.")


def _key(path: Path, key: Key, before: list[Key], names: Callable[[str], set[str]]) -> Iterator[Fault]:
    if (key.secret is None) == (key.secret_sha256 is None):
        yield Fault(path, f"the key {key.name!r} needs exactly one of `secret` and `secret_sha256`.")
    for other in before:
        if other.name == key.name:
            yield Fault((*path, "name"), f"another key is called {key.name!r}.", "Rename one of them.")
        elif key.digest() and other.digest() == key.digest():
            yield Fault(path, f"the keys {other.name!r} and {key.name!r} have the same secret.")
    if key.team is not None and key.team not in names("teams"):
        yield Fault(
            (*path, "team"), f"there is no team {key.team!r}.", nearest(key.team, sorted(names("teams")))
        )
    yield from owner(path, key, names)


def _endpoint(path: Path, endpoint: Endpoint) -> Iterator[Fault]:
    for name, kind in _KIND_ONLY.items():
        if endpoint.kind != kind and getattr(endpoint, name) not in (None, False):
            yield Fault((*path, name), f"only an endpoint of kind `{kind}` has this.", "Remove it.")
    if endpoint.queue is not None:
        yield from _method((*path, "queue", "policy"), endpoint.queue.policy, "schedule")
        if endpoint.slots is None and endpoint.kind != "local":
            yield Fault(
                (*path, "queue"), "how many requests it works on at once is not said.", "Give `slots`."
            )
    if endpoint.scaling is not None:
        scaling, here = endpoint.scaling, (*path, "scaling")
        yield from _method((*here, "policy"), scaling.policy, "scale")
        if not scaling.least <= endpoint.instances <= scaling.most:
            yield Fault(
                here,
                f"{endpoint.instances} `instances` are not between {scaling.least} and {scaling.most}.",
                "Give `least`, `instances` and `most` in this order.",
            )
    if endpoint.kind in ("openai", "anthropic"):
        yield from _address((*path, "base_url"), endpoint)
    else:
        for name in ("base_url", "api_key"):
            if getattr(endpoint, name) is not None:
                yield Fault(
                    (*path, name), f"an endpoint of kind `{endpoint.kind}` has no address.", "Remove it."
                )
    if endpoint.kind == "local" and not endpoint.weights:
        yield Fault(
            (*path, "weights"), "missing.", "Name the weights; `apportion models` lists what there is."
        )
    if endpoint.kind == "local" and endpoint.weights:
        yield from _weights(path, endpoint.weights, endpoint.sha256)
    if endpoint.kind == "replay" and not endpoint.file:
        yield Fault((*path, "file"), "missing.", "Name the recording (JSON lines).")
    for where, file in ((("file",), endpoint.file), (("tls", "ca_file"), endpoint.tls.ca_file)):
        if (
            file is not None
            and endpoint.kind == _KIND_ONLY.get(where[0], endpoint.kind)
            and not _is_file(file)
        ):
            yield Fault((*path, *where), f"there is no file {file!r}.", "Paths are relative to this file.")
    if endpoint.usd_per_hour is not None and endpoint.price != "auto":
        yield Fault((*path, "price"), "given together with `usd_per_hour`.", "Keep one of them.")
    if endpoint.apis is not None and not endpoint.apis:
        yield Fault((*path, "apis"), "the list is empty.", "Name at least one, or leave it out.")
    if endpoint.breaker.open_s > endpoint.breaker.max_open_s:
        yield Fault((*path, "breaker", "open_s"), "longer than `max_open_s`.")
    if endpoint.health.probe is not None and not endpoint.health.probe.startswith("/"):
        yield Fault((*path, "health", "probe"), "expected a path that begins with `/`.")
    for header, value in endpoint.headers.items():
        if not _HEADER.fullmatch(header) or not value.reveal().isascii():
            yield Fault((*path, "headers", header), "not a header that HTTP allows.")
        elif header.lower() in _OWN_HEADERS:
            yield Fault((*path, "headers", header), "this header is the proxy's own.", "Remove it.")


def _is_file(name: str) -> bool:
    try:
        return FilePath(name).is_file()
    except (OSError, ValueError):
        return False


def _weights(path: Path, weights: str, sha256: str | None) -> Iterator[Fault]:
    from apportion.serve.store.errors import ModelRefError
    from apportion.serve.store.ref import FileRef, known, parse

    try:
        ref = parse(weights)
    except ModelRefError as error:
        yield Fault((*path, "weights"), error.message, error.fix)
        return
    if sha256 is None and known(ref) is None and not isinstance(ref, FileRef):
        yield Fault((*path, "sha256"), "missing.", "Weights from elsewhere are pinned by their SHA-256.")


def _address(path: Path, endpoint: Endpoint) -> Iterator[Fault]:
    if endpoint.base_url is None:
        if endpoint.kind == "openai":
            yield Fault(path, "missing.", "Give the address, for example `https://api.openai.com/v1`.")
        return
    try:
        parts = urlsplit(endpoint.base_url)
        port_is_right = parts.port is None or parts.port > 0
    except ValueError:
        port_is_right = False
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_right:
        yield Fault(path, "expected an address such as `https://api.openai.com/v1`.")
    elif parts.username is not None or parts.password is not None:
        yield Fault(path, "an address may not hold a user or password.", "Use `api_key` or `headers`.")
    elif parts.query or parts.fragment:
        yield Fault(path, "an address may not hold a query or fragment.", "Remove what follows `?` or `#`.")


def _model(path: Path, model: Model, endpoints: set[str]) -> Iterator[Fault]:
    seen: set[tuple[str, str | None]] = set()
    for index, target in enumerate(model.endpoints):
        where = (*path, "endpoints", index)
        if target.endpoint not in endpoints:
            yield Fault(
                where,
                f"there is no endpoint {target.endpoint!r}.",
                nearest(target.endpoint, sorted(endpoints)),
            )
        if (target.endpoint, target.model) in seen:
            yield Fault(
                where, f"the endpoint {target.endpoint!r} is there twice.", "Use `weight` for a larger share."
            )
        seen.add((target.endpoint, target.model))
    if model.endpoints and all(target.weight == 0 for target in model.endpoints):
        yield Fault((*path, "endpoints"), "every weight is 0.", "Give one of them more.")
    if model.retries.backoff_s > model.retries.max_backoff_s:
        yield Fault((*path, "retries", "backoff_s"), "longer than `max_backoff_s`.")
    for name, family in METHODS.items():
        choice = getattr(model, name)
        if choice is not None:
            yield from _method((*path, name), choice, family)


def _outcomes(path: Path, model: Model, models: set[str], encoder: str | None) -> Iterator[Fault]:
    """What is predicted and what is learned from."""
    kinds: tuple[artefact.Kind, ...] = ("quality", "length")
    for kind in kinds:
        file = getattr(model.predict, kind)
        if file is not None and not FilePath(file).is_file():
            yield Fault(
                (*path, "predict", kind), f"there is no file {file}.", f"Make it with `apportion fit {kind}`."
            )
        elif file is not None:
            try:
                artefact.load(FilePath(file), kind, encoder=encoder)
            except ApportionError as error:
                yield Fault((*path, "predict", kind), error.message, error.fix)
    judge = model.feedback.judge
    if judge is not None and judge.model not in models:
        yield Fault(
            (*path, "feedback", "judge", "model"),
            f"there is no model {judge.model!r}.",
            nearest(judge.model, sorted(models)),
        )
    for index, check in enumerate(model.feedback.checks):
        try:
            made(check)
        except CheckError as error:
            yield Fault((*path, "feedback", "checks", index, error.field or ""), error.message, error.fix)


def _tags(config: Config) -> Iterator[Fault]:
    known = endpoint_tags(config)
    owners: list[tuple[Path, Key | Team]] = [(("teams", name), team) for name, team in config.teams.items()]
    owners += [(("keys", index), key) for index, key in enumerate(config.keys)]
    for path, each in owners:
        yield from demands(path, each, known)


def endpoint_tags(config: Config) -> set[str]:
    """The tags that endpoints have."""
    return {tag for endpoint in config.endpoints.values() for tag in endpoint.tags}


def demands(path: Path, owner: Key | Team, known: set[str]) -> Iterator[Fault]:
    """Tags that a key or team demands are those of some endpoint."""
    for index, tag in enumerate(owner.require):
        if tag not in known:
            fix = nearest(tag, sorted(known))
            yield Fault((*path, "require", index), f"no endpoint has the tag {tag!r}.", fix)


def _examples(path: Path, model: Model, encoder: str) -> Iterator[Fault]:
    """Who teaches and who is taught are endpoints of the model, and what is near can be told."""
    examples = model.examples
    if examples is None:
        return
    known = [target.endpoint for target in model.endpoints]
    for role in ("teacher", "student"):
        name = getattr(examples, role)
        if name not in known:
            yield Fault((*path, role), f"the model has no endpoint {name!r}.", nearest(name, known))
    if encoder == "off":
        yield Fault(path, "what is similar is told by an encoder.", "Set `text: {encoder: minilm}`.")
    if examples.replay is None:
        return
    if model.worth_usd is None:
        yield Fault((*path, "replay"), "nobody says what a right answer is worth.", "Set `worth_usd`.")
    if not model.feedback.checks and model.feedback.judge is None:
        fix = "Set `feedback.checks` or `feedback.judge`."
        yield Fault((*path, "replay"), "nobody would tell the better of two answers.", fix)


METHODS = {
    "policy": "route",
    "baseline": "route",
    "shadow": "route",
    "admit": "admit",
    "strategy": "reason",
    "guard": "guard",
}
"""Where a model names methods, and of which family they are."""


def _method(path: Path, choice: PolicyChoice, family: str) -> Iterator[Fault]:
    known = catalogue.names(family)
    if choice.name not in known:
        noun = "policy" if family == "route" else f"method of the family {family!r}"
        yield Fault((*path, "name"), f"there is no {noun} {choice.name!r}.", nearest(choice.name, known))
        return
    try:
        allowed = catalogue.find(choice.name).signature()
    except UnknownMethodError as error:
        yield Fault((*path, "name"), error.message, error.fix)
        return
    strange = [name for name in choice.parameters if name not in allowed]
    for name in strange:
        yield Fault((*path, name), f"{choice.name} has no such parameter.", nearest(name, allowed))
    if strange:
        return
    try:
        catalogue.build(choice.name, **choice.parameters)
    except ParameterError as error:
        yield Fault((*path, error.field) if error.field else path, error.message, error.fix)
    except ApportionError as error:
        yield Fault(path, error.message, error.fix)
    except TypeError:
        missing = [
            name for name, p in allowed.items() if p.default is p.empty and name not in choice.parameters
        ]
        yield Fault(path, f"{choice.name} also needs {', '.join(missing)}.", "Write it beside `name`.")


def _prices(config: Config) -> Iterator[Fault]:
    for name, price in config.prices.items():
        if name not in {known.name for known in resources()}:
            yield Fault(("prices", name), f"there is no resource {name!r}.", _nearest_resource(name))
        elif name == "usd" and price != 1:
            yield Fault(("prices", name), "a dollar is always worth 1.", "Remove it.")


def _nearest_resource(name: str) -> str:
    return nearest(name, [known.name for known in resources()])
