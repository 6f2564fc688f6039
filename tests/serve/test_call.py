"""What clients ask: every wrong field is named, nothing that is only forwarded is lost or changed."""

from __future__ import annotations

import json
import math
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apportion.serve import errors
from apportion.serve.call import CAP_FIELDS, FOREIGN, ROUTES, Api, Call, Constraints, encode_object, parse
from apportion.serve.http.server import Request

APIS: tuple[Api, ...] = get_args(Api)
MESSAGES = [{"role": "user", "content": "hi"}]
BODIES: dict[Api, dict[str, Any]] = {
    "chat": {"model": "m", "messages": MESSAGES},
    "completions": {"model": "m", "prompt": "hi"},
    "embeddings": {"model": "m", "input": "hi"},
    "responses": {"model": "m", "input": "hi"},
    "messages": {"model": "m", "messages": MESSAGES, "max_tokens": 5},
    "count_tokens": {"model": "m", "messages": MESSAGES},
}
JSON = {b"content-type": b"application/json"}


def ask(api: Api, body: object, headers: dict[bytes, bytes] | None = None) -> Call:
    request = Request("POST", b"/v1/x", "1.1", {**JSON, **(headers or {})}, True)
    request.body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return parse(request, api)


def refused(api: Api, body: object, headers: dict[bytes, bytes] | None = None) -> errors.GatewayError:
    with pytest.raises(errors.GatewayError) as caught:
        ask(api, body, headers)
    assert caught.value.status in (400, 415)
    for dialect in ("openai", "anthropic"):
        json.loads(errors.render(caught.value, dialect, "req_1"))
    return caught.value


@pytest.mark.parametrize("api", APIS)
def test_the_smallest_request(api: Api) -> None:
    call = ask(api, BODIES[api])
    assert (call.model, call.stream, call.include_usage, call.n, call.user) == ("m", False, False, 1, None)
    assert call.max_output_tokens == (5 if api == "messages" else None)
    assert call.constraints == Constraints()
    assert call.api_generates == bool(CAP_FIELDS[api])
    assert set(ROUTES.values()) == set(APIS)


WRONG = [
    ("model", 5),
    ("model", None),
    ("model", ""),
    ("model", "x" * 513),
    ("model", ["m"]),
    ("stream", "true"),
    ("stream", 1),
    ("user", 5),
    ("temperature", "hot"),
    ("top_p", []),
    ("tools", {}),
    ("tools", "x"),
    ("apportion", []),
    ("apportion", "x"),
]
WRONG_IN: dict[Api, list[tuple[str, Any]]] = {
    "chat": [
        ("messages", None),
        ("messages", "hi"),
        ("messages", []),
        ("messages", {}),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", 1.5),
        ("max_tokens", "5"),
        ("max_tokens", 2**31),
        ("max_completion_tokens", 0),
        ("n", 0),
        ("n", 1025),
        ("n", "2"),
        ("stop", 5),
        ("stop", [5]),
        ("response_format", "json"),
        ("seed", "x"),
        ("stream_options", []),
    ],
    "completions": [
        ("prompt", 5),
        ("prompt", {}),
        ("max_tokens", 0),
        ("n", -1),
        ("best_of", 0),
        ("stop", {}),
    ],
    "embeddings": [("input", 5), ("input", {}), ("input", None)],
    "responses": [("input", 5), ("instructions", 5), ("max_output_tokens", 0), ("max_output_tokens", "x")],
    "messages": [
        ("messages", []),
        ("max_tokens", None),
        ("max_tokens", 0),
        ("system", 5),
        ("metadata", "x"),
        ("stop_sequences", "x"),
    ],
    "count_tokens": [("messages", {}), ("system", {})],
}


@pytest.mark.parametrize(
    ("api", "field", "value"), [(api, *wrong) for api in APIS for wrong in [*WRONG, *WRONG_IN[api]]]
)
def test_a_wrong_field_is_named(api: Api, field: str, value: object) -> None:
    error = refused(api, {**BODIES[api], field: value})
    assert error.code == "invalid_request"
    assert error.field is not None
    assert error.field.split("[")[0] == field
    assert f"'{error.field}'" in str(error)


@pytest.mark.parametrize(
    ("api", "field"),
    [(api, field) for api in APIS for field in BODIES[api] if (api, field) != ("responses", "input")],
)
def test_a_missing_field_is_named(api: Api, field: str) -> None:
    body = {k: v for k, v in BODIES[api].items() if k != field}
    error = refused(api, body)
    assert (error.field, "missing" in str(error)) == (field, True)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [*MESSAGES, 5]}, "messages[1]"),
        ({"messages": [*MESSAGES, {"role": 5}]}, "messages[1].role"),
        ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
        ({"apportion": {"max_usd": "1"}}, "apportion.max_usd"),
        ({"apportion": {"tags": [5]}}, "apportion.tags[0]"),
        ({"apportion": {"max_dollars": 1}}, "apportion.max_dollars"),
    ],
)
def test_the_whole_path_of_a_wrong_field_is_named(body: dict[str, Any], field: str) -> None:
    assert refused("chat", {**BODIES["chat"], **body}).field == field


# --- constraints --------------------------------------------------------------------------------------

GOOD = [
    ("max_usd", 0.5),
    ("max_usd", 1e-12),
    ("max_usd", 3),
    ("deadline_s", 0.1),
    ("deadline_s", 86400),
    ("max_joules", 5.5),
    ("effort", 1),
    ("effort", 0.001),
    ("priority", -100),
    ("priority", 100),
    ("priority", 0),
    ("tags", ["a", "b"]),
    ("tags", []),
]
BAD = [
    ("max_usd", 0),
    ("max_usd", -1),
    ("max_usd", math.inf),
    ("max_usd", 1e300),
    ("deadline_s", 0),
    ("deadline_s", 86401),
    ("max_joules", 0),
    ("effort", 0),
    ("effort", 1.01),
    ("priority", 101),
    ("priority", -101),
    ("priority", 0.5),
    ("tags", ["x" * 129]),
    ("tags", ["x"] * 33),
]


def as_header(field: str, value: object) -> dict[bytes, bytes]:
    text = ", ".join(value) if isinstance(value, list) else repr(value)
    return {b"x-apportion-" + field.encode().replace(b"_", b"-"): text.encode()}


@pytest.mark.parametrize(("field", "value"), GOOD)
def test_constraints_by_body_and_by_header(field: str, value: object) -> None:
    by_body = ask("chat", {**BODIES["chat"], "apportion": {field: value}})
    by_header = ask("chat", BODIES["chat"], as_header(field, value))
    assert getattr(by_body.constraints, field) == value
    assert by_header.constraints == by_body.constraints
    assert "apportion" not in by_body.fields, "it stays here"


@pytest.mark.parametrize(("field", "value"), BAD)
def test_bad_constraints_by_body_and_by_header(field: str, value: object) -> None:
    by_header = refused("chat", BODIES["chat"], as_header(field, value))
    assert (by_header.field or "").startswith(f"apportion.{field}")
    by_body = refused("chat", {**BODIES["chat"], "apportion": {field: value}})
    if value != math.inf:
        assert by_body.field == by_header.field


@pytest.mark.parametrize(
    "text", [b"", b"nan", b"inf", b"-inf", b"1e999", b"0x1", b"1,2", b"one", b"\xff", b"true", b"[]"]
)
@pytest.mark.parametrize("field", ["max-usd", "deadline-s", "effort", "priority", "max-joules"])
def test_header_values_that_are_no_numbers(field: str, text: bytes) -> None:
    error = refused("chat", BODIES["chat"], {b"x-apportion-" + field.encode(): text})
    assert error.field == f"apportion.{field.replace('-', '_')}"


def test_a_header_overrides_the_body() -> None:
    body = {**BODIES["chat"], "apportion": {"max_usd": 1.0, "effort": 0.5}}
    call = ask("chat", body, {b"x-apportion-max-usd": b"2"})
    assert (call.constraints.max_usd, call.constraints.effort) == (2.0, 0.5)


def test_tags_in_headers_are_unquoted() -> None:
    call = ask("chat", BODIES["chat"], {b"x-apportion-tags": b"a%2Cb, c ,,%C3%A9"})
    assert call.constraints.tags == ["a,b", "c", "\u00e9"]


# --- the fields it acts on ----------------------------------------------------------------------------


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(
    "options", [None, {}, {"include_usage": True}, {"include_usage": False}, {"include_obfuscation": False}]
)
def test_stream_options_in_any_api(api: Api, options: object) -> None:
    """Some APIs have others of that name, or none."""
    call = ask(api, {**BODIES[api], "stream": True, "stream_options": options})
    wanted = options == {"include_usage": True} and api in ("chat", "completions")
    streams = api not in ("embeddings", "count_tokens")
    assert (call.stream, call.include_usage) == (streams, wanted)
    assert "stream_options" in call.fields
    assert not ask(api, {**BODIES[api], "stream_options": options}).include_usage


@pytest.mark.parametrize(
    ("api", "fields", "cap"),
    [
        ("chat", {"max_tokens": 5}, 5),
        ("chat", {"max_completion_tokens": 6}, 6),
        ("chat", {"max_tokens": 5, "max_completion_tokens": 6}, 6),
        ("chat", {"max_tokens": None}, None),
        ("chat", {"max_output_tokens": 5}, None),
        ("completions", {"max_tokens": 7}, 7),
        ("responses", {"max_output_tokens": 8}, 8),
        ("embeddings", {"max_tokens": 5}, None),
        ("messages", {}, 5),
    ],
)
def test_the_cap(api: Api, fields: dict[str, Any], cap: int | None) -> None:
    assert ask(api, {**BODIES[api], **fields}).max_output_tokens == cap


def test_how_many_answers() -> None:
    assert ask("chat", {**BODIES["chat"], "n": 3}).n == 3
    assert ask("completions", {**BODIES["completions"], "n": 2, "best_of": 4}).n == 4
    assert ask("embeddings", {**BODIES["embeddings"], "n": 9}).n == 1


# --- bodies that are none -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"[]",
        b"5",
        b"null",
        b'"x"',
        b"{}{}",
        b'{"model":}',
        b"\xff\xfe",
        b'{"model":"\xff"}',
        b"\x00",
        b'{"model":"m","messages":[{"role":"\xed\xa0\x80"}]}',
        b"{'model':'m'}",
        b'{"model":NaN}',
        b"\xef\xbb\xbf{}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"model":"m","messages":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    ],
    ids=lambda b: repr(b[:20]),
)
def test_bodies_that_are_no_objects(body: bytes) -> None:
    for api in APIS:
        assert refused(api, body).status == 400


@pytest.mark.parametrize("depth", [100, 10_000, 100_000])
def test_deep_nesting_in_a_field_that_is_only_forwarded(depth: int) -> None:
    body = b'{"model":"m","messages":[{"role":"user"}],"x":' + b"[" * depth + b"]" * depth + b"}"
    if depth == 100:
        assert bytes(ask("chat", body).fields["x"]) == b"[" * depth + b"]" * depth
    else:
        assert "nested" in str(refused("chat", body))


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, None),
        ({b"content-type": b"application/json; charset=utf-8"}, None),
        ({b"content-type": b"APPLICATION/JSON"}, None),
        ({b"content-type": b"application/vnd.api+json"}, None),
        ({b"content-type": b"application/x-www-form-urlencoded"}, None),
        ({b"content-type": b"text/plain"}, 415),
        ({b"content-type": b"multipart/form-data; boundary=x"}, 415),
        ({b"content-type": b""}, 415),
        ({b"content-type": b"\xff"}, 415),
        ({b"content-encoding": b"identity"}, None),
        ({b"content-encoding": b"gzip"}, 415),
        ({b"content-encoding": b"\xff"}, 415),
    ],
)
def test_media_types(headers: dict[bytes, bytes], status: int | None) -> None:
    if status is None:
        ask("chat", BODIES["chat"], headers)
    else:
        error = refused("chat", BODIES["chat"], headers)
        assert (error.status, error.field) == (status, next(iter(headers)).decode())


def test_a_form_is_no_object() -> None:
    refused("chat", b"model=m&messages=x", {b"content-type": b"application/x-www-form-urlencoded"})


# --- forwarding ---------------------------------------------------------------------------------------

keys = st.text(max_size=8)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)
known = set().union(
    *(BODIES[api] for api in APIS), (f for f, _ in WRONG), *({f for f, _ in w} for w in WRONG_IN.values())
)


@given(
    st.sampled_from(APIS),
    st.dictionaries(keys.filter(lambda k: k not in known), json_values, max_size=6),
    st.data(),
)
def test_what_is_only_forwarded_is_kept_in_order_and_to_the_byte(
    api: Api, extra: dict[str, Any], data: st.DataObject
) -> None:
    body = {**BODIES[api], **extra}
    body = {k: body[k] for k in data.draw(st.permutations(list(body)))}
    call = ask(api, body)
    assert list(call.fields) == list(body)
    for name, value in body.items():
        assert bytes(call.fields[name]) == json.dumps(value).encode()
    assert json.loads(encode_object(call.fields)) == body


@pytest.mark.parametrize(
    "text", ["1.0", "1e2", "-0", "123456789012345678901234567890", "0.1000", '"\\u00e9"', '"\\/"', "[1 ,2]"]
)
def test_numbers_and_escapes_are_not_rewritten(text: str) -> None:
    call = ask("chat", f'{{"model":"m","messages":[{{"role":"user"}}],"x":{text}}}'.encode())
    assert bytes(call.fields["x"]) == text.encode()
    assert f'"x":{text}'.encode() in encode_object(call.fields)


def test_of_a_key_given_twice_the_last_counts_and_is_forwarded_alone() -> None:
    call = ask(
        "chat", b'{"model":"a","messages":[{"role":"user"}],"model":"b","max_tokens":9,"max_tokens":3}'
    )
    assert (call.model, call.max_output_tokens) == ("b", 3)
    assert encode_object(call.fields).count(b'"model"') == 1
    hidden = ask("chat", b'{"model":"a","messages":[{"role":"user"}],"mod\\u0065l":"b"}')
    assert hidden.model == "b"
    assert encode_object(hidden.fields).count(b"model") == 1


@given(
    st.sampled_from(APIS),
    st.binary(max_size=60) | json_values.map(lambda v: json.dumps(v).encode()),
    st.dictionaries(
        st.sampled_from(
            [
                b"content-type",
                b"content-encoding",
                b"x-apportion-max-usd",
                b"x-apportion-tags",
                b"x-apportion-priority",
            ]
        ),
        st.binary(max_size=12),
    ),
)
def test_anything_at_all_is_a_call_or_a_gateway_error(
    api: Api, body: bytes, headers: dict[bytes, bytes]
) -> None:
    try:
        ask(api, body, headers)
    except errors.GatewayError as error:
        json.loads(errors.render(error, "openai", ""))


@given(st.sampled_from(APIS), st.data())
def test_any_value_in_any_field_is_a_call_or_a_gateway_error(api: Api, data: st.DataObject) -> None:
    names = st.sampled_from(sorted(known)) | keys
    body = {**BODIES[api], **data.draw(st.dictionaries(names, json_values, max_size=4))}
    try:
        call = ask(api, body)
    except errors.GatewayError as error:
        named = error.field or error.code == "invalid_json"
    else:
        named = True
        assert call.model == body["model"]
        assert {k: json.loads(bytes(v)) for k, v in call.fields.items()} == {
            k: v for k, v in body.items() if k != "apportion" and k not in FOREIGN[api]
        }
    assert named
