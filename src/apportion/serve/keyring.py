"""Who is asking: the key of a request, from the configuration, the database or this machine's own user.

Keys of the configuration are found by their SHA-256, those of the database by the public id inside them and an
HMAC-SHA256 with a pepper. What is kept of a key is never accepted in its place, and digests are compared in
constant time. Whatever is wrong with a key that is not proven right, the answer is the same.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import msgspec

from apportion.serve import errors
from apportion.serve.config.schema import Budget, Config, Key, KeyBudget, Team

OPEN: Final = Key(name="anonymous", admin=True)
"""Who everybody is where no key is asked for (loopback only)."""
LOCAL: Final = Key(name="local", admin=True)
"""The user whose proxy it is, on this machine: their commands are told a key of this process alone."""
RESERVED_NAMES: Final = frozenset((OPEN.name, LOCAL.name, "self"))

PREFIX: Final = "sk-ap-"
_MADE: Final = re.compile(rb"sk-ap-([0-9a-f]{12})-[A-Za-z0-9_-]{43}")
_SEEN: Final = 4096
_FOREVER: Final = float("inf")
_NOTHING: Final = bytes(32)
_NOBODYS: Final = secrets.token_hex(32)
"""A digest whose secret nobody has."""
_HOW: Final = "Send 'Authorization: Bearer <key>' or 'x-api-key: <key>'."


class Credential(NamedTuple):
    """What proves a key of the database: a digest of it, good until ``until_s`` (Unix seconds)."""

    id: str
    name: str
    digest: bytes
    until_s: float = _FOREVER


class Snapshot(NamedTuple):
    """All that is in the database at one version."""

    version: int = 0
    keys: tuple[Key, ...] = ()
    teams: Mapping[str, Team] = {}
    budgets: tuple[Budget, ...] = ()
    credentials: tuple[Credential, ...] = ()


def merged(config: Config, snapshot: Snapshot) -> Config:
    """``config`` with what is in the database; of two of one name that of the configuration stands."""
    names = {key.name for key in config.keys}
    budgets = {budget.name for budget in config.budgets}
    return msgspec.structs.replace(
        config,
        keys=[*config.keys, *(key for key in snapshot.keys if key.name not in names), *_own(config)],
        teams={**snapshot.teams, **config.teams},
        budgets=[*config.budgets, *(budget for budget in snapshot.budgets if budget.name not in budgets)],
    )


def _own(config: Config) -> Iterator[Key]:
    """Keys of the proxy's own, so that what judges and replays cost is booked and bounded. Nobody can authenticate with
    one."""
    for name, model in config.models.items():
        judge, examples = model.feedback.judge, model.examples
        if judge is not None:
            yield _own_key("judge", name, judge.model, KeyBudget(usd=judge.usd, window=judge.window))
        replay = None if examples is None else examples.replay
        if replay is not None:
            yield _own_key("replay", name, name, KeyBudget(usd=replay.usd, window=replay.window))


def _own_key(what: str, of: str, model: str, budget: KeyBudget) -> Key:
    return Key(
        name=f"{what}:{of}",
        secret_sha256=_NOBODYS,
        models=[model],
        budget=budget,
        tags={"apportion": what},
        routing=False,
    )


class _Seen(NamedTuple):
    key: Key
    until_s: float


def new_secret(id: str) -> str:
    """A new key whose public part is ``id`` (12 hexadecimal digits): 256 random bits behind it."""
    return f"{PREFIX}{id}-{secrets.token_urlsafe(32)}"


def digest(pepper: bytes, secret: str) -> bytes:
    """What the database keeps of a key: HMAC-SHA256 (RFC 2104) under the pepper."""
    return hmac.digest(pepper, secret.encode(), "sha256")


class Keyring:
    """The keys of one configuration with those of the database. Built anew whenever either changes.

    ``config`` has all keys and teams, those of the database included; ``credentials`` prove the latter.
    ``local_sha256`` is the digest of this process's own key. ``clock`` gives Unix seconds.
    """

    def __init__(
        self,
        config: Config,
        credentials: Iterable[Credential] = (),
        pepper: bytes = b"",
        *,
        local_sha256: bytes | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.required = config.auth.required
        self._teams = frozenset(config.teams)
        self._pepper = pepper
        self._clock = clock
        self._configured: dict[bytes, Key] = {}
        by_name: dict[str, Key] = {}
        for key in config.keys:
            known = key.digest()
            if known:
                self._configured[bytes.fromhex(known)] = key
            else:
                by_name[key.name] = key
        if local_sha256 is not None:
            self._configured[local_sha256] = LOCAL
        self._made: dict[bytes, tuple[tuple[Credential, Key], ...]] = {}
        for credential in credentials:
            owner = by_name.get(credential.name)
            # A key of the configuration stands above one of the same name in the database.
            if owner is not None:
                id = credential.id.encode()
                self._made[id] = (*self._made.get(id, ()), (credential, owner))
        self._seen: OrderedDict[bytes, _Seen] = OrderedDict()

    def authenticate(self, headers: Mapping[bytes, bytes]) -> Key:
        """The key of a request: ``Authorization: Bearer`` or ``x-api-key``. Raises ``AuthenticationError``."""
        given = headers.get(b"authorization")
        if given is None and (bare := headers.get(b"x-api-key")) is not None:
            given = b"\n" + bare  # no header can begin so: one that proved right here proves nothing there
        if given is not None:
            seen = self._seen.get(given)
            if seen is not None and self._clock() < seen.until_s:
                self._seen.move_to_end(given)
                return seen.key
        try:
            return self._verify(given)
        except errors.AuthenticationError:
            if self.required:
                raise
            _same_site(headers)
            return OPEN

    def _verify(self, given: bytes | None) -> Key:
        secret = _secret(given)
        now = self._clock()
        # Both ways are gone, whatever is found on the first, so that the time tells nothing of what is there.
        by_sha256 = hashlib.sha256(secret).digest()
        configured = self._configured.get(by_sha256)
        made = _MADE.fullmatch(secret)
        by_pepper = hmac.digest(self._pepper, secret, "sha256")
        found, until_s = configured, _FOREVER
        for credential, key in self._made.get(made[1], ()) if made is not None else ():
            if hmac.compare_digest(credential.digest, by_pepper) and now < credential.until_s:
                found, until_s = key, credential.until_s
        if found is None:
            hmac.compare_digest(_NOTHING, by_pepper)
            raise errors.AuthenticationError("The API key is not known here.", field="authorization")
        until_s = min(until_s, self._check(found, now))
        self._remember(given or b"", _Seen(found, until_s))
        return found

    def _check(self, key: Key, now: float) -> float:
        """Whether a key that proved right may be used; until when. Only its owner is told what is wrong."""
        expires_s = _FOREVER if key.expires is None else key.expires
        if key.disabled:
            raise errors.AuthenticationError("The API key is disabled.", field="authorization")
        if now >= expires_s:
            raise errors.AuthenticationError(
                "The API key has expired.", field="authorization", fix="Ask the operator for a new one."
            )
        if key.team is not None and key.team not in self._teams:
            raise errors.AuthenticationError("The API key's team does not exist.", field="authorization")
        return expires_s

    def _remember(self, given: bytes, seen: _Seen) -> None:
        """Only headers that proved right are kept, whole, and looked up by a keyed hash (Python's own)."""
        while len(self._seen) >= _SEEN:
            self._seen.popitem(last=False)
        self._seen[given] = seen
        self._seen.move_to_end(given)


def _secret(given: bytes | None) -> bytes:
    if not given:
        raise errors.AuthenticationError("No API key was given.", field="authorization", fix=_HOW)
    if given.startswith(b"\n"):
        secret = given.strip()
    else:
        scheme, _, rest = given.partition(b" ")
        if scheme.lower() != b"bearer":
            raise errors.AuthenticationError(
                "The Authorization header is not a bearer token.", field="authorization", fix=_HOW
            )
        secret = rest.strip()
    if not secret:
        raise errors.AuthenticationError("No API key was given.", field="authorization", fix=_HOW)
    return secret


def _same_site(headers: Mapping[bytes, bytes]) -> None:
    """Without keys, refuse what a page of another site makes a browser send: it could spend the operator's money."""
    origin = headers.get(b"origin")
    site = headers.get(b"sec-fetch-site")
    if origin is None and site in (None, b"none"):
        return
    if origin is None and site == b"same-origin":
        # A name that was made to point here (DNS rebinding) is the same origin to the browser only.
        origin = b"http://" + headers.get(b"host", b"")
    if not _is_here(origin or b""):
        raise errors.PermissionDeniedError(
            "A page of another site may not use a gateway without keys.",
            field="origin",
            fix="Configure `keys`, and send one.",
        )


def _is_here(origin: bytes) -> bool:
    try:
        host = urlsplit(origin.decode("latin-1")).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
