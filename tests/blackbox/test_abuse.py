"""Bad input and abuse: each has a stated answer, and none changes what other requests see."""

from __future__ import annotations

import asyncio
import json
import resource
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from .conftest import Json
from .dialects import CHAT, DIALECTS, MESSAGES, Dialect, error_of, own_error
from .proxy import Gateway
from .upstream import Upstream, new_marker
from .wire import Broken, Response, Wire, ask, request_bytes

BOTH = pytest.mark.parametrize("dialect", [CHAT, MESSAGES], ids=lambda d: d.name)
POSTS = pytest.mark.parametrize("dialect", DIALECTS.values(), ids=lambda d: d.name)
MIB = 2**20


@pytest.fixture(autouse=True)
async def others_are_served(gateway: Gateway) -> AsyncIterator[None]:
    """After every abuse an ordinary request is answered."""
    yield
    response = await gateway.post(CHAT, CHAT.request("openai-one", new_marker()))
    assert response.status == 200
    assert CHAT.text(response.json) == "w0 w1 w2 w3 w4 w5 w6 w7"


class TestBodies:
    @POSTS
    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b" ",
            b"{",
            b'{"model": ',
            b'{"model": "openai-one",}',
            b"nonsense",
            b"[]",
            b'"text"',
            b"null",
            b"12",
            b"{'model': 'openai-one'}",
            b'{"model": "openai-one"} {}',
            b'{"model": NaN}',
            b"\x00",
            b"\xef\xbb\xbf",
        ],
        ids=repr,
    )
    async def test_malformed_json(self, gateway: Gateway, dialect: Dialect, body: bytes) -> None:
        response = await gateway.post(dialect, body, {"content-length": str(len(body))})
        assert response.status == 400, response.body
        error = error_of(dialect, response)
        not_object = body in (b"[]", b'"text"', b"null", b"12")
        assert error["code"] == ("invalid_request" if not_object else "invalid_json")
        assert response.header("x-should-retry") == "false"

    @BOTH
    @pytest.mark.parametrize(
        "text",
        [b"\xff\xfe", b"\xc3\x28", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"caf\xe9"],
        ids=repr,
    )
    async def test_invalid_utf8(
        self, gateway: Gateway, upstream: Upstream, dialect: Dialect, text: bytes
    ) -> None:
        marker = new_marker()
        raw = json.dumps(dialect.request("openai-one", f"{marker} HERE")).encode().replace(b"HERE", text)
        response = await gateway.post(dialect, raw)
        own_error(dialect, response, 400, "invalid_json")
        assert upstream.of(marker) == []

    async def test_any_unicode_passes_unchanged(self, gateway: Gateway, upstream: Upstream) -> None:
        text = "é 漢字 🦜 \u2028 \x7f \u0000 \\u0041 \ud83e\udd9c end"
        marker = new_marker()
        for kind in ("openai", "anthropic"):
            raw = json.dumps(CHAT.request(f"{kind}-one", f"{marker} {text}")).encode()
            assert (await gateway.post(CHAT, raw)).status == 200
            raw = json.dumps(CHAT.request(f"{kind}-one", f"{marker} é漢🦜"), ensure_ascii=False).encode()
            assert (await gateway.post(CHAT, raw)).status == 200
        for seen in upstream.of(marker):
            content = seen.json["messages"][0]["content"]
            said = content if isinstance(content, str) else content[0]["text"]
            assert said in (json.loads(json.dumps(f"{marker} {text}")), f"{marker} é漢🦜")

    @BOTH
    async def test_lone_surrogates_are_refused_or_kept(self, gateway: Gateway, dialect: Dialect) -> None:
        """`\\ud800` alone is JSON but not Unicode: a 400 or an honest pass, never a 500."""
        raw = json.dumps(dialect.request("openai-one", "HERE")).encode().replace(b"HERE", b"\\ud800 x")
        response = await gateway.post(dialect, raw)
        assert response.status in (200, 400)

    @POSTS
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("model", None),
            ("model", 5),
            ("model", ["openai-one"]),
            ("model", ""),
            ("stream", "yes"),
            ("stream", 1),
        ],
        ids=str,
    )
    async def test_wrong_types_everywhere(
        self, gateway: Gateway, upstream: Upstream, dialect: Dialect, field: str, value: Any
    ) -> None:
        if dialect.name == "embeddings" and field == "stream":
            pytest.skip("embeddings have no streams")
        marker = new_marker()
        response = await gateway.post(dialect, {**dialect.request("openai-one", marker), field: value})
        assert response.status in ((400, 404) if value == "" else (400,))
        assert field in json.dumps(error_of(dialect, response))
        assert upstream.of(marker) == []

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("messages", "hello"),
            ("messages", 5),
            ("messages", {"role": "user"}),
            ("messages", ["hello"]),
            ("messages", [5]),
            ("max_tokens", 0),
            ("max_tokens", -1),
            ("max_tokens", "many"),
            ("max_tokens", 1.5),
            ("max_tokens", True),
            ("max_completion_tokens", 0),
            ("max_completion_tokens", -5),
            ("max_completion_tokens", [1]),
            ("n", 0),
            ("n", -2),
            ("n", "two"),
            ("n", 1.5),
            ("stream_options", "usage"),
            ("stream_options", [1]),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("kind", ["openai", "anthropic"])
    async def test_wrong_values_in_chat(
        self, gateway: Gateway, upstream: Upstream, kind: str, field: str, value: Any
    ) -> None:
        """Types, zero and negative limits: 400, the field named, and nothing reaches the upstream."""
        marker = new_marker()
        body = {**CHAT.request(f"{kind}-one", marker, user=marker), field: value}
        response = await gateway.post(CHAT, body)
        own_error(CHAT, response, 400, "invalid_request")
        assert field in json.dumps(response.json)
        assert upstream.of(marker) == []

    @pytest.mark.parametrize("missing", ["model", "messages"])
    @BOTH
    async def test_missing_fields(self, gateway: Gateway, dialect: Dialect, missing: str) -> None:
        body = dialect.request("openai-one", "hello")
        del body[missing]
        error = own_error(dialect, await gateway.post(dialect, body), 400, "invalid_request")
        assert missing in error["message"] + str(error.get("param"))

    @pytest.mark.parametrize("kind", ["openai", "anthropic"])
    @pytest.mark.parametrize("value", [0, -1, "many", None])
    async def test_max_tokens_of_messages(self, gateway: Gateway, kind: str, value: Any) -> None:
        body = {**MESSAGES.request(f"{kind}-one", "hello"), "max_tokens": value}
        error = own_error(MESSAGES, await gateway.post(MESSAGES, body), 400, "invalid_request")
        assert "max_tokens" in error["message"] + str(error.get("param"))

    @pytest.mark.parametrize("kind", ["openai", "anthropic"])
    async def test_translation_of_strange_content(self, gateway: Gateway, kind: str) -> None:
        """What cannot be translated is a 400 that says so, never a 500."""
        strange: list[Any] = [
            {"role": "user"},
            {"role": "user", "content": None},
            {"role": "user", "content": 5},
            {"role": "user", "content": [5]},
            {"role": "user", "content": [{"type": "nothing"}]},
            {"role": "user", "content": [{"type": "image_url"}]},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]},
            {"role": "user", "content": [{"type": "text"}]},
            {"role": "nobody", "content": "x"},
            {"role": ["user"], "content": "x"},
            {"content": "x"},
            {"role": "assistant", "tool_calls": "x"},
            {"role": "assistant", "tool_calls": [{"id": 1}]},
            {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{"}}]},
            {"role": "tool", "content": "x"},
            {"role": "user", "content": [{"type": "tool_result"}]},
            {"role": "assistant", "content": [{"type": "tool_use"}]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": 1, "name": [], "input": "x"}]},
        ]
        for dialect in (CHAT, MESSAGES):
            for message in strange:
                for more in ({}, {"stream": True}):
                    body = {**dialect.request(f"{kind}-one", "x"), "messages": [message], **more}
                    response = await gateway.post(dialect, body)
                    assert response.status in (200, 400, 422), (dialect.name, message, response.body)
            for more in (
                {"tools": "x"},
                {"tools": [5]},
                {"tools": [{}]},
                {"tools": [{"type": "function"}]},
                {"tools": [{"type": "function", "function": 5}]},
                {"tool_choice": 5},
                {"tool_choice": {"type": "x"}},
                {"stop": 5},
                {"response_format": 5},
                {"system": 5},
                {"thinking": 5},
            ):
                response = await gateway.post(dialect, {**dialect.request(f"{kind}-one", "x"), **more})
                assert response.status in (200, 400, 422), (dialect.name, more, response.body)

    @POSTS
    async def test_deep_nesting(self, gateway: Gateway, dialect: Dialect) -> None:
        """A hundred thousand brackets: refused, without a crash."""
        for deep in (b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 100_000 + b"1" + b"}" * 100_000):
            start = json.dumps(dialect.request("openai-one", "x")).encode()[:-1]
            response = await gateway.post(dialect, start + b', "metadata": ' + deep + b"}")
            assert response.status == 400, response.body
            error_of(dialect, response)
        response = await gateway.post(dialect, b"[" * 100_000)
        assert response.status == 400, response.body
        error_of(dialect, response)

    async def test_duplicate_keys(self, gateway: Gateway, upstream: Upstream) -> None:
        """The last one wins, here and upstream: two readers can never see two different requests."""
        marker = new_marker()
        message = json.dumps([{"role": "user", "content": marker}])
        for kind in ("openai", "anthropic"):
            raw = (
                f'{{"model": "nothing", "messages": [{{"role": "user", "content": "first"}}], '
                f'"max_tokens": 1, "model": "{kind}-one", '
                f'"max_tokens": 3, "messages": {message}, "user": "first", "user": "second"}}'
            )
            response = await gateway.post(CHAT, raw.encode())
            assert response.status == 200, response.body
            assert response.header("x-apportion-model") == f"{kind}-model"
        for seen in upstream.of(marker):
            pairs = json.loads(seen.body, object_pairs_hook=list)
            names = [k for k, _ in pairs]
            assert len(names) == len(set(names)), names
            assert seen.json["max_tokens"] == 3
            assert b"first" not in seen.body

    async def test_duplicate_apportion(self, gateway: Gateway, upstream: Upstream) -> None:
        marker = new_marker()
        message = json.dumps([{"role": "user", "content": marker}])
        raw = (
            '{"model": "openai-one", "apportion": {"max_usd": 1}, "apportion": {"max_usd": 0.0000001}, '
            f'"messages": {message}}}'
        )
        own_error(CHAT, await gateway.post(CHAT, raw.encode()), 422, "constraint_unmet")
        assert upstream.of(marker) == []

    async def test_unknown_fields_pass_untouched(self, gateway: Gateway, upstream: Upstream) -> None:
        marker = new_marker()
        extra = {
            "metadata": {"a": [1, 2.5, None, True]},
            "x_vendor": {"deep": {"er": "é"}},
            "seed": 2**53 + 1,
            "logit_bias": {"50256": -100},
            "big": 123456789012345678901234567890,
            "small": 1e-7,
        }
        await gateway.post(CHAT, CHAT.request("openai-one", marker, **extra))
        sent = upstream.of(marker)[0].json
        assert {k: sent[k] for k in extra} == extra

    @BOTH
    async def test_unknown_model_lists_the_known(
        self, gateway: Gateway, base_config: Json, dialect: Dialect
    ) -> None:
        response = await gateway.post(dialect, dialect.request("no-such-model", "x"))
        error = own_error(dialect, response, 404, "model_not_found")
        assert "no-such-model" in error["message"]
        assert "openai-one" in error["message"]

    @pytest.mark.parametrize(
        "name", ["../openai-one", "openai-one\x00", "openai-one ", "OPENAI-ONE", "x" * 500]
    )
    async def test_strange_model_names(self, gateway: Gateway, name: str) -> None:
        response = await gateway.post(CHAT, CHAT.request(name, "x"))
        own_error(CHAT, response, 404, "model_not_found")

    async def test_endless_model_name(self, gateway: Gateway) -> None:
        """It is not echoed."""
        response = await gateway.post(CHAT, CHAT.request("x" * 100_000, "x"))
        error = own_error(CHAT, response, 400, "invalid_request")
        assert len(error["message"]) < 1000

    @BOTH
    @pytest.mark.parametrize("kind", ["text/plain", "application/xml", "multipart/form-data; boundary=x"])
    async def test_wrong_content_type(self, gateway: Gateway, dialect: Dialect, kind: str) -> None:
        response = await gateway.post(dialect, dialect.request("openai-one", "x"), {"content-type": kind})
        own_error(dialect, response, 415, "unsupported_media_type")

    async def test_a_form(self, gateway: Gateway) -> None:
        """`curl -d '{...}'` calls JSON a form and is understood; a real form is not."""
        form = {"content-type": "application/x-www-form-urlencoded"}
        response = await gateway.post(CHAT, CHAT.request("openai-one", "x"), form)
        assert response.status == 200
        own_error(CHAT, await gateway.post(CHAT, b"model=openai-one", form), 415, "unsupported_media_type")

    @pytest.mark.parametrize(
        "kind", ["application/json; charset=utf-8", "APPLICATION/JSON", "application/json;charset=UTF-8"]
    )
    async def test_right_content_types(self, gateway: Gateway, kind: str) -> None:
        response = await gateway.post(CHAT, CHAT.request("openai-one", "x"), {"content-type": kind})
        assert response.status == 200

    async def test_compressed_body(self, gateway: Gateway) -> None:
        response = await gateway.post(CHAT, b"\x1f\x8b\x08\x00rest", {"content-encoding": "gzip"})
        own_error(CHAT, response, 415, "unsupported_media_type")


class TestSize:
    async def test_just_below_the_limit(self, gateway: Gateway, upstream: Upstream) -> None:
        marker = new_marker()
        body = CHAT.request("openai-slow", marker, padding="x" * (19 * MIB))
        response = await gateway.post(CHAT, body)
        assert response.status == 200, response.body[:300]
        assert len(upstream.of(marker)[0].json["padding"]) == 19 * MIB

    @BOTH
    async def test_length_too_large_is_refused_before_the_body(
        self, gateway: Gateway, dialect: Dialect
    ) -> None:
        headers = {**gateway.headers(dialect), "content-length": str(20 * MIB + 1)}
        async with await Wire.open(gateway.port) as wire:
            await wire.send(request_bytes("POST", dialect.path, headers))
            own_error(dialect, await wire.read(), 413, "body_too_large")

    async def test_length_too_large_with_the_body(self, gateway: Gateway) -> None:
        """The client sees the answer although it was still sending."""
        raw = b'{"model": "openai-one", "padding": "' + b"x" * (24 * MIB) + b'"}'
        async with await Wire.open(gateway.port) as wire:
            wire.writer.write(request_bytes("POST", CHAT.path, gateway.headers(), raw))
            own_error(CHAT, await wire.read(), 413, "body_too_large")

    async def test_chunked_too_large(self, gateway: Gateway) -> None:
        headers = {**gateway.headers(), "transfer-encoding": "chunked"}
        async with await Wire.open(gateway.port) as wire:
            await wire.send(request_bytes("POST", CHAT.path, headers))
            part = b"%x\r\n%s\r\n" % (MIB, b"x" * MIB)
            try:
                for _ in range(24):
                    await wire.send(part)
                await wire.send(b"0\r\n\r\n")
            except OSError:
                pass
            own_error(CHAT, await wire.read(), 413, "body_too_large")

    async def test_absurd_lengths(self, gateway: Gateway) -> None:
        for value in ("99999999999999999999", "18446744073709551616", str(2**63)):
            async with await Wire.open(gateway.port) as wire:
                await wire.send(
                    request_bytes("POST", CHAT.path, {**gateway.headers(), "content-length": value})
                )
                assert (await wire.read()).status in (400, 413)

    @pytest.mark.parametrize(
        "headers",
        [
            [(f"x-flood-{i}", "1") for i in range(5000)],
            [("x-flood", "1")] * 5000,
            [("x-long", "y" * MIB)],
            [("x" * 100_000, "1")],
            [("cookie", "a=" + "b" * 70_000)],
        ],
        ids=["many", "repeated", "long", "long name", "cookie"],
    )
    async def test_header_floods(self, gateway: Gateway, headers: list[tuple[str, str]]) -> None:
        async with await Wire.open(gateway.port) as wire:
            raw = request_bytes("POST", CHAT.path, [*gateway.headers().items(), *headers], b"{}")
            wire.writer.write(raw)
            response = await wire.read()
            own_error(CHAT, response, 431, "headers_too_large")

    async def test_endless_header_stream(self, gateway: Gateway) -> None:
        """A client that never ends its headers is cut, and costs no memory."""
        before = gateway.rss_bytes()
        async with await Wire.open(gateway.port) as wire:
            await wire.send(b"GET /v1/models HTTP/1.1\r\n")
            try:
                for i in range(8000):
                    await wire.send(b"x-%d: %s\r\n" % (i, b"y" * 8000))
            except OSError:
                pass
            own_error("openai", await wire.read(), 431, "headers_too_large")
            assert await wire.closed_by_peer(20)
        assert gateway.rss_bytes() - before < 32 * MIB

    @pytest.mark.parametrize("size", [10_000, 100_000, 2_000_000])
    async def test_giant_targets(self, gateway: Gateway, size: int) -> None:
        for target in ("/v1/models?q=" + "x" * size, "/" + "x" * size):
            async with await Wire.open(gateway.port) as wire:
                wire.writer.write(request_bytes("GET", target, gateway.headers()))
                response = await wire.read()
                assert response.status in ((200, 404) if size == 10_000 else (404, 414, 431))


class TestFraming:
    """Requests that two servers could read differently are refused, and the connection with them."""

    @pytest.mark.parametrize(
        "headers",
        [
            [("content-length", "5"), ("content-length", "6")],
            [("content-length", "5, 6")],
            [("content-length", "+5")],
            [("content-length", "-5")],
            [("content-length", "0x5")],
            [("content-length", "5 5")],
            [("content-length", "five")],
            [("content-length", "")],
            [("content-length", "5"), ("transfer-encoding", "chunked")],
            [("transfer-encoding", "chunked"), ("content-length", "5")],
            [("transfer-encoding", "chunked"), ("transfer-encoding", "identity")],
            [("transfer-encoding", "chunked, identity")],
            [("transfer-encoding", "xchunked")],
            [("transfer-encoding", "gzip, chunked")],
            [("transfer-encoding", "identity")],
            [("transfer-encoding ", "chunked")],
            [("content-length ", "5")],
            [("x y", "1"), ("content-length", "0")],
            [("x-bad", "a\x00b"), ("content-length", "0")],
            [("x-bad", "a\nb: c"), ("content-length", "0")],
            [("x-bad", "a\rb"), ("content-length", "0")],
        ],
        ids=repr,
    )
    async def test_ambiguous(
        self, gateway: Gateway, upstream: Upstream, headers: list[tuple[str, str]]
    ) -> None:
        """The second request, smuggled in the body, is never answered."""
        marker = new_marker()
        inner = gateway.bytes_of(CHAT, CHAT.request("openai-one", marker))
        raw = request_bytes("POST", CHAT.path, [*gateway.headers().items(), *headers], b"0\r\n\r\n" + inner)
        async with await Wire.open(gateway.port) as wire:
            await wire.send(raw)
            response = await wire.read()
            assert response.status in (400, 411, 415, 501), response.body
            assert await wire.closed_by_peer(20), "the connection stays open after an ambiguous request"
        await asyncio.sleep(0.05)
        assert upstream.of(marker) == []

    @pytest.mark.parametrize("extra", [b"\n", b"\r", b" "])
    async def test_bare_line_ends(self, gateway: Gateway, extra: bytes) -> None:
        """A lone LF as a line end, a folded header: refused, or read as one header; never as two requests."""
        raw = b"GET /health/live HTTP/1.1\r\nhost: x\r\nx-a: 1" + extra + b" GET /v1/models HTTP/1.1\r\n\r\n"
        async with await Wire.open(gateway.port) as wire:
            await wire.send(raw)
            assert (await wire.read()).status in (200, 400)

    @pytest.mark.parametrize(
        "chunks",
        [
            b"zz\r\n{}\r\n0\r\n\r\n",
            b"-2\r\n{}\r\n0\r\n\r\n",
            b"\r\n{}\r\n0\r\n\r\n",
            b"2\r\n{}XX\r\n0\r\n\r\n",
            b"0x2\r\n{}\r\n0\r\n\r\n",
            b"2 \n{}\r\n0\r\n\r\n",
            b"ffffffffffffffffff\r\n{}\r\n",
        ],
        ids=lambda c: repr(c[:12]),
    )
    async def test_bad_chunks(self, gateway: Gateway, chunks: bytes) -> None:
        headers = {**gateway.headers(), "transfer-encoding": "chunked"}
        async with await Wire.open(gateway.port) as wire:
            wire.writer.write(request_bytes("POST", CHAT.path, headers) + chunks)
            assert (await wire.read()).status in (400, 413, 431)
            assert await wire.closed_by_peer(20)

    async def test_endless_chunk_extension(self, gateway: Gateway) -> None:
        """What is thrown away is bounded, too: 40 MB of nothing are refused."""
        headers = {**gateway.headers(), "transfer-encoding": "chunked"}
        async with await Wire.open(gateway.port) as wire:
            await wire.send(request_bytes("POST", CHAT.path, headers) + b"2;")
            try:
                for _ in range(40):
                    await wire.send(b"x" * MIB)
            except OSError:
                pass
            assert (await wire.read()).status in (400, 408, 413, 431)
            assert await wire.closed_by_peer(20)

    async def test_endless_trailers(self, gateway: Gateway) -> None:
        headers = {**gateway.headers(), "transfer-encoding": "chunked"}
        before = gateway.rss_bytes()
        async with await Wire.open(gateway.port) as wire:
            await wire.send(request_bytes("POST", CHAT.path, headers) + b"2\r\n{}\r\n0\r\n")
            reading = asyncio.ensure_future(wire.read())  # a failed write would throw away what has come
            try:
                for i in range(5000):
                    await wire.send(b"x-%d: %s\r\n" % (i, b"y" * 8000))
                    if reading.done():
                        break
            except OSError:
                pass
            assert (await reading).status in (400, 408, 413, 431)
            assert await wire.closed_by_peer(20)
        assert gateway.rss_bytes() - before < 32 * MIB

    async def test_good_chunks(self, gateway: Gateway, upstream: Upstream) -> None:
        marker = new_marker()
        raw = json.dumps(CHAT.request("openai-one", marker)).encode()
        body = b"".join(b"1\r\n%c\r\n" % c for c in raw) + b"0\r\nx-trailer: 1\r\n\r\n"
        headers = {**gateway.headers(), "transfer-encoding": "chunked"}
        async with await Wire.open(gateway.port) as wire:
            await wire.send(request_bytes("POST", CHAT.path, headers) + body)
            assert (await wire.read()).status == 200
            await wire.send(gateway.bytes_of(CHAT, CHAT.request("openai-one", marker)))
            assert (await wire.read()).status == 200
        assert len(upstream.of(marker)) == 2

    async def test_expect_100_continue(self, gateway: Gateway) -> None:
        raw = json.dumps(CHAT.request("openai-one", "x")).encode()
        headers = {**gateway.headers(), "expect": "100-continue", "content-length": str(len(raw))}
        async with await Wire.open(gateway.port) as wire:
            await wire.send(request_bytes("POST", CHAT.path, headers))
            line = await asyncio.wait_for(wire.reader.readline(), 30)
            assert line.startswith(b"HTTP/1.1 100 ")
            assert await asyncio.wait_for(wire.reader.readline(), 30) == b"\r\n"
            await wire.send(raw)
            assert (await wire.read()).status == 200

    async def test_expect_100_continue_is_no_way_past_the_limits(self, gateway: Gateway) -> None:
        headers = {**gateway.headers(), "expect": "100-continue", "content-length": str(30 * MIB)}
        async with await Wire.open(gateway.port) as wire:
            await wire.send(request_bytes("POST", CHAT.path, headers))
            line = await asyncio.wait_for(wire.reader.readline(), 30)
            assert b" 413 " in line

    @pytest.mark.parametrize(
        "raw",
        [
            b"nonsense\r\n\r\n",
            b"GET\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET / HTTP/2.0\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64 + b"\r\n\r\n",
            b"\x00" * 64 + b"\r\n\r\n",
            b"GET /\x00 HTTP/1.1\r\nhost: x\r\n\r\n",
            b"GET / v1/models HTTP/1.1\r\nhost: x\r\n\r\n",
            b" GET / HTTP/1.1\r\nhost: x\r\n\r\n",
            b"BREW /v1/models HTTP/1.1\r\nhost: x\r\n\r\n",
            b"GET /v1/models HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        ],
        ids=repr,
    )
    async def test_not_http(self, gateway: Gateway, raw: bytes) -> None:
        """A 4xx (or silence and a close), never a hang and never a 5xx that would look like our fault."""
        async with await Wire.open(gateway.port) as wire:
            await wire.send(raw)
            try:
                response = await wire.read()
            except Broken:
                return
            assert response.status in (400, 401, 404, 405, 501, 505), response.body

    async def test_http_1_0(self, gateway: Gateway) -> None:
        """Plain bodies with a length, streams until close; the connection closes."""
        for stream in (False, True):
            raw = gateway.bytes_of(CHAT, CHAT.request("openai-one", "x", stream=stream))
            async with await Wire.open(gateway.port) as wire:
                await wire.send(raw.replace(b"HTTP/1.1\r\n", b"HTTP/1.0\r\n", 1))
                response = await wire.read()
                assert response.status == 200
                assert response.framing != "chunked", "HTTP/1.0 has no chunks"
                text = CHAT.stream_text(response.events) if stream else CHAT.text(response.json)
                assert text == "w0 w1 w2 w3 w4 w5 w6 w7"
                assert await wire.closed_by_peer(20)

    async def test_pipelining(self, gateway: Gateway, upstream: Upstream) -> None:
        """Ten requests in one packet: ten answers, in order, streamed and not."""
        markers = [new_marker() for _ in range(10)]
        raw = b"".join(
            gateway.bytes_of(CHAT, CHAT.request("openai-one", m, stream=bool(i % 2), max_tokens=i % 3 + 1))
            for i, m in enumerate(markers)
        )
        async with await Wire.open(gateway.port) as wire:
            await wire.send(raw)
            for i, marker in enumerate(markers):
                response = await wire.read()
                assert response.status == 200
                text = CHAT.stream_text(response.events) if i % 2 else CHAT.text(response.json)
                assert text == " ".join(f"w{k}" for k in range(i % 3 + 1))
                assert len(upstream.of(marker)) == 1

    async def test_pipelining_a_flood(self, gateway: Gateway) -> None:
        """A thousand pipelined requests are answered in order or the connection is held back, not dropped."""
        one = request_bytes("GET", "/health/live", {})
        async with await Wire.open(gateway.port) as wire:
            wire.writer.write(one * 1000)
            for _ in range(1000):
                assert (await wire.read()).status == 200

    async def test_keep_alive_after_errors(self, gateway: Gateway) -> None:
        """A refused request with sound framing leaves the connection usable."""
        async with await Wire.open(gateway.port) as wire:
            for body, status in [
                (b"{", 400),
                (b'{"model": "none", "messages": [{"role": "user"}]}', 404),
                (b"[]", 400),
            ] * 3:
                await wire.send(gateway.bytes_of(CHAT, body))
                assert (await wire.read()).status == status
            await wire.send(gateway.bytes_of(CHAT, CHAT.request("openai-one", "x")))
            assert (await wire.read()).status == 200

    async def test_connection_close_is_obeyed(self, gateway: Gateway) -> None:
        async with await Wire.open(gateway.port) as wire:
            await wire.send(gateway.bytes_of(CHAT, CHAT.request("openai-one", "x"), {"connection": "close"}))
            response = await wire.read()
            assert response.status == 200
            assert await wire.closed_by_peer(20)


class TestPaths:
    @pytest.mark.parametrize(
        "path", ["/v1/chat/completions", "/v1/messages", "/v1/models", "/metrics", "/health/live"]
    )
    @pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE"])
    async def test_wrong_method(self, gateway: Gateway, path: str, method: str) -> None:
        response = await ask(gateway.port, method, path, gateway.headers())
        assert response.status == 405
        assert response.header("allow")
        sdk = "anthropic" if path == "/v1/messages" else "openai"
        own_error(sdk, response, 405, "method_not_allowed")

    async def test_get_on_post_and_post_on_get(self, gateway: Gateway) -> None:
        assert (await gateway.get("/v1/chat/completions")).status == 405
        assert (await ask(gateway.port, "POST", "/v1/models", gateway.headers(), b"{}")).status == 405

    async def test_head(self, gateway: Gateway) -> None:
        """As GET, without the body: the next answer on the connection is whole."""
        async with await Wire.open(gateway.port) as wire:
            for path in ("/health/live", "/v1/models"):
                await wire.send(request_bytes("HEAD", path, gateway.headers()))
                response = await wire.read(head_only=True)
                assert response.status == 200
                await wire.send(request_bytes("GET", path, gateway.headers()))
                assert (await wire.read()).status == 200
            await wire.send(request_bytes("HEAD", "/v1/chat/completions", gateway.headers()))
            assert (await wire.read(head_only=True)).status == 405

    async def test_options(self, gateway: Gateway) -> None:
        for path in ("/v1/chat/completions", "/v1/models", "*"):
            response = await ask(gateway.port, "OPTIONS", path, gateway.headers())
            assert response.status in (200, 204, 404, 405)
            if response.status == 405:
                assert response.header("allow")

    @pytest.mark.parametrize(
        "path",
        [
            "/v2/chat/completions",
            "/v1/chat/completions/extra",
            "/v1/chat/completionsx",
            "/v1/chat//completions",
            "/V1/CHAT/COMPLETIONS",
            "/v1/v1/models",
            "/../etc/passwd",
            "/%2e%2e/%2e%2e/etc/passwd",
            "/v1/models/%00",
            "/v1/models/..",
            "/v1/models/no-such-model",
            "/v1/%ff%fe",
            "/%",
            "/%zz",
            "/favicon.ico",
            "/apportion/decisions/",
            "/apportion/",
        ],
    )
    async def test_unknown_paths(self, gateway: Gateway, path: str) -> None:
        response = await gateway.get(path)
        assert response.status == 404
        assert response.header("x-apportion-error") in ("not_found", "model_not_found")
        error_of("openai", response)

    async def test_index_tells_nothing_that_needs_a_key(self, gateway: Gateway) -> None:
        response = await ask(gateway.port, "GET", "/")
        assert response.status == 200
        assert b"openai-one" not in response.body
        assert b"127.0.0.1" not in response.body

    @pytest.mark.parametrize(
        "path", ["/v1/chat/completions", "/chat/completions", "/v1/messages", "/messages"]
    )
    async def test_with_and_without_v1(self, gateway: Gateway, path: str) -> None:
        dialect = MESSAGES if "messages" in path else CHAT
        raw = json.dumps(dialect.request("openai-one", "x")).encode()
        for target in (path, path + "?beta=true", f"http://gateway.test{path}"):
            response = await ask(gateway.port, "POST", target, gateway.headers(dialect), raw)
            assert response.status == 200, (target, response.body)

    @pytest.mark.parametrize(
        "name",
        ["completions", "embeddings", "responses", "messages/count_tokens", "models", "models/openai-one"],
    )
    async def test_every_path_without_v1(self, gateway: Gateway, name: str) -> None:
        for prefix in ("/v1", ""):
            if name.startswith("models"):
                response = await gateway.get(f"{prefix}/{name}")
            else:
                dialect = DIALECTS.get(name, MESSAGES)
                body = dialect.request("openai-one", "x")
                raw = json.dumps(body).encode()
                response = await ask(gateway.port, "POST", f"{prefix}/{name}", gateway.headers(dialect), raw)
            assert response.status == 200, (prefix, response.body)

    async def test_models(self, gateway: Gateway, base_config: Json) -> None:
        listed = (await gateway.get("/v1/models")).json
        assert listed["object"] == "list"
        assert {m["id"] for m in listed["data"]} == set(base_config["models"])
        for entry in listed["data"]:
            assert entry["object"] == "model"
            assert isinstance(entry["created"], int)
            assert isinstance(entry["owned_by"], str)
        one = (await gateway.get("/v1/models/openai-one")).json
        assert one in listed["data"]


class TestSlowClients:
    async def test_slow_headers(self, gateway: Gateway) -> None:
        async with await Wire.open(gateway.port) as wire:
            await wire.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n")
            own_error("openai", await wire.read(), 408, "request_timeout")

    async def test_dripping_headers(self, gateway: Gateway) -> None:
        """A byte now and then does not start the clock again (slowloris)."""
        async with await Wire.open(gateway.port) as wire:
            await wire.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-slow: ")

            async def drip() -> None:
                while True:
                    wire.writer.write(b"a")
                    await asyncio.sleep(0.1)

            task = asyncio.ensure_future(drip())
            try:
                assert (await wire.read()).status == 408
            finally:
                task.cancel()

    async def test_slow_body(self, gateway: Gateway) -> None:
        headers = {**gateway.headers(), "content-length": "500"}
        async with await Wire.open(gateway.port) as wire:
            await wire.send(request_bytes("POST", CHAT.path, headers) + b'{"model":')
            own_error(CHAT, await wire.read(), 408, "request_timeout")

    async def test_client_that_leaves_in_the_middle_of_its_body(self, gateway: Gateway) -> None:
        for size in (0, 1, 200):
            wire = await Wire.open(gateway.port)
            headers = {**gateway.headers(), "content-length": "500"}
            await wire.send(request_bytes("POST", CHAT.path, headers) + b"x" * size)
            wire.abort()

    async def test_thousands_of_idle_connections(self, gateway: Gateway, upstream: Upstream) -> None:
        """Three thousand silent connections, and everybody else is served as before."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        count = 3000
        if hard != resource.RLIM_INFINITY and hard < count + 500:
            pytest.skip(f"this machine allows only {hard} open files")
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count + 500), hard))
        before = gateway.rss_bytes()
        idle: list[Wire] = []
        try:
            for _ in range(count // 100):
                idle += await asyncio.gather(*(Wire.open(gateway.port) for _ in range(100)))
            for i, wire in enumerate(idle):
                if i % 2:
                    wire.writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n")
            answers = await asyncio.gather(
                *(gateway.post(CHAT, CHAT.request("openai-one", new_marker())) for _ in range(50))
            )
            assert [a.status for a in answers] == [200] * 50
            assert gateway.rss_bytes() - before < 64 * MIB
        finally:
            for wire in idle:
                wire.abort()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_connection_limit(start: Callable[..., Gateway], small_config: Callable[..., Json]) -> None:
    """More than `max_connections` are told 503, and there is room again when others leave."""
    gateway = start(small_config(listen={"max_connections": 5}))
    held: list[Wire] = []
    try:
        for _ in range(5):
            held.append(await Wire.open(gateway.port))
            await held[-1].send(request_bytes("GET", "/health/live", {}))
            assert (await held[-1].read()).status == 200
        async with await Wire.open(gateway.port) as wire:
            own_error("openai", await wire.read(), 503, "gateway_overloaded")
    finally:
        for wire in held:
            await wire.close()
    for _ in range(1000):
        try:
            if (await ask(gateway.port, "GET", "/health/live")).status == 200:
                return
        except (Broken, OSError):
            pass
        await asyncio.sleep(0.02)
    raise AssertionError("the room was never given back")


async def test_a_storm_of_mixed_abuse_changes_nothing_for_others(
    gateway: Gateway, upstream: Upstream
) -> None:
    """Good requests among bad ones, all at once: every good one gets its own right answer."""

    async def good(i: int) -> None:
        marker = new_marker()
        dialect = (CHAT, MESSAGES)[i % 2]
        response = await gateway.post(dialect, dialect.request("openai-slow", marker, max_tokens=i % 7 + 1))
        assert response.status == 200
        assert dialect.text(response.json) == " ".join(f"w{k}" for k in range(i % 7 + 1))

    async def bad(i: int) -> Response | None:
        raw = [
            gateway.bytes_of(CHAT, b"{"),
            gateway.bytes_of(CHAT, b"[" * 10_000),
            gateway.bytes_of(CHAT, CHAT.request("none", "x")),
            gateway.bytes_of(CHAT, CHAT.request("openai-one", "x"), key="wrong"),
            b"nonsense\r\n\r\n",
            request_bytes("POST", CHAT.path, {**gateway.headers(), "transfer-encoding": "chunked"})
            + b"zz\r\n",
        ][i % 6]
        async with await Wire.open(gateway.port) as wire:
            await wire.send(raw)
            if i % 5 == 0:
                wire.abort()
                return None
            try:
                response = await wire.read()
            except Broken:
                return None
            assert 400 <= response.status < 500
            return response

    await asyncio.gather(*(good(i) for i in range(60)), *(bad(i) for i in range(120)))
