"""For whom a request is: where it says so, what goes before what, and that tenants never share a name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apportion.serve import errors, identity
from apportion.serve.call import Api, Call, parse
from apportion.serve.config.schema import Auth, Key
from apportion.serve.http.server import Request
from apportion.serve.identity import Who, headers_of, qualified, subject_of, tenant

MESSAGES = [{"role": "user", "content": "hi"}]
SESSION = "57a121ec-f78c-48c3-a745-e3036a3ecc33"
ACCOUNT = "0c5d9f3e-1111-4222-8333-444455556666"
DEVICE = "ab" * 32


def ask(
    extra: dict[str, Any],
    headers: dict[bytes, bytes] | None = None,
    api: Api = "chat",
    auth: Auth | None = None,
) -> Call:
    given = {b"content-type": b"application/json", **(headers or {})}
    request = Request("POST", b"/v1/x", "1.1", given, True)
    what = {"input": "hi"} if api == "responses" else {"messages": MESSAGES, "max_tokens": 5}
    request.body = json.dumps({"model": "m", **what, **extra}).encode()
    return parse(request, api, headers_of(auth or Auth()))


def who(*asked: Any, **named: Any) -> tuple[str | None, str | None]:
    call = ask(*asked, **named)
    return call.user, call.session


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_end_user_of_openai(api: Api) -> None:
    assert who({}, api=api) == (None, None)
    assert who({"user": "alice"}, api=api) == ("alice", None)
    assert who({"user": "alice", "safety_identifier": "a1"}, api=api) == ("a1", None)
    assert who({"user": "alice", "safety_identifier": ""}, api=api) == ("alice", None)
    assert who({"user": "  "}, api=api) == (None, None)
    assert who({"user": "alice", "metadata": {"user_id": "bob", "session_id": "s"}}, api=api) == (
        "alice",
        "s",
    )
    assert who({"prompt_cache_key": "k"}, api=api) == (None, None)


def test_conversations_are_sessions() -> None:
    assert who({"conversation": "conv_1"}, api="responses") == (None, "conv_1")
    assert who({"conversation": {"id": "conv_2"}}, api="responses") == (None, "conv_2")
    assert who({"conversation": {"id": 5}}, api="responses") == (None, None)
    assert who({"conversation": {}}, api="responses") == (None, None)
    assert who({"conversation": "conv_1"}, api="chat") == (None, None)


def test_end_user_of_anthropic() -> None:
    assert who({"metadata": {"user_id": "alice"}}, api="messages") == ("alice", None)
    assert who({"metadata": {}}, api="messages") == (None, None)
    assert who({"metadata": {"user_id": None}}, api="messages") == (None, None)


@pytest.mark.parametrize("user_id", [5, ["a"], {"a": 1}, True])
def test_a_user_id_that_is_none_says_nothing(user_id: object) -> None:
    assert who({"metadata": {"user_id": user_id}}, api="messages") == (None, None)


def test_claude_code_is_one_user_in_all_its_sessions() -> None:
    old = {"metadata": {"user_id": f"user_{DEVICE}_account_{ACCOUNT}_session_{SESSION}"}}
    assert who(old, api="messages") == (ACCOUNT, SESSION)
    no_account = {"metadata": {"user_id": f"user_{DEVICE}_account__session_{SESSION}"}}
    assert who(no_account, api="messages") == (DEVICE, SESSION)
    new = json.dumps({"device_id": DEVICE, "account_uuid": ACCOUNT, "session_id": SESSION})
    assert who({"metadata": {"user_id": new}}, api="messages") == (ACCOUNT, SESSION)
    no_account_new = json.dumps({"device_id": DEVICE, "account_uuid": "", "session_id": SESSION})
    assert who({"metadata": {"user_id": no_account_new}}, api="messages") == (DEVICE, SESSION)
    for other in ('{"session_id": 5}', "{", "user_x_account_y_session_z"):
        assert who({"metadata": {"user_id": other}}, api="messages") == (other, None)


def test_the_user_header_goes_before_the_body() -> None:
    assert who({"user": "mallory"}, {b"x-end-user-id": b"alice"}) == ("alice", None)
    assert who({"user": "alice"}, {b"x-end-user-id": b" "}) == ("alice", None)
    own = Auth(user_header="X-OpenWebUI-User-Id")
    assert who({}, {b"x-openwebui-user-id": b"j\xc3\xbcrgen"}, auth=own) == ("j\u00fcrgen", None)
    assert who({}, {b"x-openwebui-user-id": b"j\xfcrgen"}, auth=own) == ("j\u00fcrgen", None)
    assert who({}, {b"x-end-user-id": b"alice"}, auth=own) == (None, None)
    assert who({"user": "bob"}, {b"x-end-user-id": b"alice"}, auth=Auth(user_header=None)) == ("bob", None)


def test_a_user_header_said_twice_is_refused() -> None:
    with pytest.raises(errors.InvalidRequestError, match="'x-end-user-id' is there twice") as caught:
        ask({}, {b"x-end-user-id": b"mallory, alice"})
    assert caught.value.field == "x-end-user-id"


def test_the_first_session_header_goes_before_the_rest() -> None:
    assert who({}, {b"x-conversation-id": b"c", b"x-session-id": b"s"}) == (None, "s")
    assert who({}, {b"x-conversation-id": b"c", b"x-session-id": b""}) == (None, "c")
    for header in (b"x-claude-code-session-id", b"session-id", b"session_id"):
        assert who({"metadata": {"session_id": "m"}}, {header: b"s"}) == (None, "s")
    assert who({}, {b"x-session-id": b"s"}, auth=Auth(session_headers=[])) == (None, None)


@given(st.text(max_size=300))
def test_names_are_bounded_printable_and_stable(name: str) -> None:
    short = identity.short(name)
    assert short == identity.short(name)
    if short is None:
        assert not name.strip()
        return
    assert 0 < len(short) <= identity.LONGEST
    assert short.isprintable()
    assert short == name.strip() or short.startswith("sha256:")


def test_long_names_do_not_become_one() -> None:
    assert identity.short("a" * 128) == "a" * 128
    first, second = identity.short("a" * 129), identity.short("a" * 129 + "b")
    assert first != second
    assert identity.short("a\nb") != identity.short("a\tb") != identity.short("a b")
    assert identity.short("\ud800") != identity.short("\udfff")


@given(
    st.lists(st.tuples(st.booleans(), st.text("ab/%:", min_size=1), st.text("ab/%:", min_size=1)), min_size=2)
)
def test_no_two_tenants_share_a_name(tenants: list[tuple[bool, str, str]]) -> None:
    names: dict[str, tuple[bool, str, str]] = {}
    for has_team, owner, user in tenants:
        key = Key(name="k" if has_team else owner, team=owner if has_team else None)
        name = qualified(tenant(key), user)
        assert names.setdefault(name, (has_team, owner, user)) == (has_team, owner, user)
        assert identity.plain(name) == user


def test_the_keys_of_a_team_share_its_users() -> None:
    one, two, other = Key(name="one", team="red"), Key(name="two", team="red"), Key(name="three")
    assert tenant(one) == tenant(two) == "team:red"
    assert tenant(other) == "key:three"
    assert qualified(tenant(one), "alice") == "team:red/alice"
    assert qualified(tenant(one), None) == ""


def test_subjects() -> None:
    alice = Who("red", "mobile", "team:red/alice", "", "gpt", "azure")
    assert subject_of("all", alice) == subject_of("organisation", alice) == "all"
    assert subject_of("team", alice) == subject_of("team:red", alice) == "team:red"
    assert subject_of("team:blue", alice) is None
    assert subject_of("key:mobile", alice) == "key:mobile"
    assert subject_of("model:gpt", alice) == "model:gpt"
    assert subject_of("endpoint:other", alice) is None
    assert subject_of("request", alice) is None
    for scope in ("user", "user:alice", "user:team:red/alice"):
        assert subject_of(scope, alice) == "user:team:red/alice"
    for scope in ("user:bob", "user:team:blue/alice", "session", "session:alice"):
        assert subject_of(scope, alice) is None
    assert subject_of("team", alice._replace(team="")) is None
