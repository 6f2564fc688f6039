"""Who a request is for besides its key: the end user and the session, as the client or its front names them.

These names are chosen outside, so they are bounded, and they count within one tenant only: the key's team, or
the key itself if it has none. The same end user of two tenants is two users in the books, so that nobody can
spend or see what belongs to another tenant by naming its users.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec
from msgspec import Raw

from apportion.serve import errors
from apportion.serve.config.schema import Auth, Key

LONGEST: Final = 128
"""Characters of a name that is kept as it is."""


class Headers(NamedTuple):
    """The headers that name end user and session, in lower case; see `config.schema.Auth`."""

    user: bytes | None
    sessions: tuple[bytes, ...]
    all: frozenset[bytes]


class Who(NamedTuple):
    """Whom a request is for, as it stands in the books; "" where nobody is named. ``user`` and ``session`` are
    qualified."""

    team: str
    key: str
    user: str
    session: str
    model: str
    endpoint: str


class _Metadata(msgspec.Struct, gc=False):
    user_id: str | None = None
    session_id: str | None = None


class _ClaudeCode(msgspec.Struct, gc=False):
    """What Claude Code since 2.1.78 writes as ``metadata.user_id``."""

    session_id: str
    device_id: str = ""
    account_uuid: str = ""


_CLAUDE_CODE: Final = re.compile(r"user_([0-9a-f]{64})_account_([0-9a-f-]*)_session_([0-9a-f-]{36})")
"""The same before 2.1.78: too long to be a name, and another one for every session."""
_metadata: Final = msgspec.json.Decoder(_Metadata).decode
_claude_code: Final = msgspec.json.Decoder(_ClaudeCode).decode
_conversation: Final = msgspec.json.Decoder(str | dict[str, Raw]).decode
_text: Final = msgspec.json.Decoder(str).decode


def headers_of(auth: Auth) -> Headers:
    """The headers that a configuration names."""
    user = auth.user_header.lower().encode() if auth.user_header is not None else None
    sessions = tuple(name.lower().encode() for name in auth.session_headers)
    return Headers(user, sessions, frozenset(sessions if user is None else (user, *sessions)))


DEFAULT: Final = headers_of(Auth())


def from_headers(
    named: Headers, headers: Mapping[bytes, bytes], user: str | None, session: str | None
) -> tuple[str | None, str | None]:
    """End user and session with what the headers say in place of what the body said.

    The user header is the word of whoever runs the client's front, so it goes first. Said twice it is refused: a
    client may have put its own before the front's.
    """
    if named.user is not None and named.user in headers:
        raw = headers[named.user]
        if b"," in raw:
            name = named.user.decode()
            raise errors.InvalidRequestError(
                f"The header {name!r} is there twice, or holds a comma.", field=name, fix="Send one name."
            )
        user = short(_decoded(raw)) or user
    for header in named.sessions:
        if header in headers and (given := short(_decoded(headers[header]))):
            return user, given
    return user, session


def from_metadata(metadata: Raw) -> tuple[str | None, str | None]:
    """End user and session as ``metadata`` in a body has them; what cannot be read there says nothing."""
    try:
        found = _metadata(metadata)
    except msgspec.DecodeError:
        return None, None
    user, session = found.user_id, found.session_id
    if user is not None:
        user, inner = _parted(user)
        session = session or inner
    return short(user), short(session)


def from_conversation(conversation: Raw) -> str | None:
    """The session that ``conversation`` of the Responses API stands for: its id."""
    try:
        found = _conversation(conversation)
        return short(found if isinstance(found, str) else _text(found["id"]))
    except (msgspec.DecodeError, KeyError):
        return None


def short(name: str | None) -> str | None:
    """A name as it is kept; None if it is empty. A long or unprintable one is known by its hash, the same each
    time, so that it neither fills the books nor slips out of them.
    """
    name = name.strip() if name else None
    if not name or (len(name) <= LONGEST and name.isprintable()):
        return name or None
    return f"sha256:{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"


def tenant(key: Key) -> str:
    """Within whom a key's end users and sessions are told apart: ``team:NAME``, else ``key:NAME``."""
    own = f"team:{key.team}" if key.team else f"key:{key.name}"
    return own.replace("%", "%25").replace("/", "%2F")


def qualified(tenant: str, name: str | None) -> str:
    """The name of an end user or session in the books: ``team:red/alice``; "" for nobody."""
    return f"{tenant}/{name}" if name else ""


def plain(qualified: str) -> str:
    """The name as the client gave it."""
    return qualified.partition("/")[2]


def subject_of(scope: str, who: Who) -> str | None:
    """Whose account of a budget with this scope a request charges; None if it does not fall under it.

    ``user:alice`` is for the alice of every tenant, each with an account of her own; ``user:team:red/alice`` for
    one of them.
    """
    kind, _, name = scope.partition(":")
    if kind in ("all", "organisation"):
        return "all"
    if kind == "request":
        return None
    own: str = getattr(who, kind)
    if own and (not name or name == own or (kind in ("user", "session") and name == plain(own))):
        return f"{kind}:{own}"
    return None


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _parted(user: str) -> tuple[str, str | None]:
    """Claude Code's ``user_id`` as user and session: the account, or the device where there is none."""
    if user.startswith("{"):
        try:
            found = _claude_code(user)
        except msgspec.DecodeError:
            return user, None
        return found.account_uuid or found.device_id or user, found.session_id
    match = _CLAUDE_CODE.fullmatch(user) if user.startswith("user_") else None
    return (match[2] or match[1], match[3]) if match else (user, None)
