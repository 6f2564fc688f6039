"""Every upstream fault x endpoint kind x API x streaming or not x group of one or two, each with its answer.

All cases are driven at once against the shared proxy (most of their time is waiting for time-outs); each
then has a test of its own. Before content a fault becomes another endpoint's answer or a real status;
after content it becomes an in-band error and never a clean end.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

import pytest

from .dialects import DIALECTS, Dialect, error_of, own_error
from .proxy import Gateway
from .shapes import Want
from .upstream import FAULTS, Seen, Upstream, is_timed, new_marker
from .wire import Response

AT_ONCE = 48
WHOLE = "w0 w1 w2 w3 w4 w5 w6 w7"
SPOKEN = {
    "openai": ("chat", "messages", "completions", "responses", "embeddings"),
    "anthropic": ("chat", "messages", "responses"),
}
ADDRESS_FAULTS = {
    "refused": (502,),
    "deaf": (504,),
    "dns": (502, 504),
    "stranger": (502,),
    "wrong_name": (502,),
    "tls_to_plain": (502, 504),
    "plain_to_tls": (502,),
}


@dataclass(frozen=True)
class Case:
    fault: str
    kind: str
    dialect: str
    stream: bool
    group: str
    """one | two: how many endpoints serve the model."""

    @property
    def expected(self) -> str:
        if self.fault in ADDRESS_FAULTS:
            return "before"
        if self.dialect == "responses" and self.fault in ("missing_done", "no_last_blank_line_nor_done"):
            return "skip"  # there the end mark itself says how the answer finished
        return FAULTS[self.fault].stream if self.stream else FAULTS[self.fault].plain

    @property
    def status(self) -> tuple[int, ...]:
        return ADDRESS_FAULTS.get(self.fault) or FAULTS[self.fault].status

    def __str__(self) -> str:
        way = "stream" if self.stream else "plain"
        return f"{self.fault}-{self.kind}-{self.dialect}-{way}-{self.group}"


def all_cases() -> list[Case]:
    cases = []
    for fault in [*FAULTS, *ADDRESS_FAULTS]:
        for kind, spoken in SPOKEN.items():
            for dialect in spoken:
                for stream in (False, True):
                    if dialect == "embeddings" and stream:
                        continue
                    for group in ("one", "two"):
                        case = Case(fault, kind, dialect, stream, group)
                        if case.expected == "skip" or (case.expected in ("ok", "either") and group == "two"):
                            continue
                        cases.append(case)
    return cases


CASES = all_cases()


@dataclass
class Ran:
    response: Response | Exception
    seen: list[Seen]


@pytest.fixture(scope="module")
def ran(request: pytest.FixtureRequest, gateway: Gateway, upstream: Upstream) -> dict[Case, Ran]:
    """Run every case that was selected."""
    wanted = {
        item.callspec.params["case"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.function is test_fault
    }

    async def run(case: Case, turn: asyncio.Semaphore) -> Ran:
        dialect = DIALECTS[case.dialect]
        marker = new_marker()
        name = f"{case.kind}-slow" + ("-two" if case.group == "two" else "")
        if is_timed(case.fault):
            name = f"{case.kind}-quick-{case.group}"
        if case.fault in ADDRESS_FAULTS:
            name = f"{case.kind}-{case.fault}-{case.group}"
        else:
            upstream.script(marker, fault=case.fault)
        body = dialect.request(name, marker, **({"stream": True} if case.stream else {}))
        async with turn:
            try:
                response: Response | Exception = await gateway.post(dialect, body)
            except Exception as error:  # shown by the test of this case
                response = error
            return Ran(response, upstream.of(marker))

    async def run_all() -> dict[Case, Ran]:
        turn = asyncio.Semaphore(AT_ONCE)
        cases = [c for c in CASES if c in wanted]
        return dict(zip(cases, await asyncio.gather(*(run(c, turn) for c in cases)), strict=True))

    return asyncio.run(run_all())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_fault(case: Case, ran: dict[Case, Ran]) -> None:
    dialect, response, seen = DIALECTS[case.dialect], ran[case].response, ran[case].seen
    if isinstance(response, Exception):
        raise response
    assert response.complete, "the response itself was cut"
    expected = case.expected
    if expected == "either":
        expected = "ok" if response.status == 200 else "before"
    if expected == "ok" or (expected == "before" and case.group == "two"):
        assert_whole(dialect, case, response)
        if case.fault not in ADDRESS_FAULTS:
            assert len({s.endpoint for s in seen}) == (1 if case.group == "one" else 2)
            assert len(seen) <= most_attempts(case)
    elif expected == "before":
        assert response.status in case.status, (response.status, response.body[:500])
        assert_error(dialect, case, response)
        assert len(seen) <= most_attempts(case)
    else:
        assert_broken(dialect, response)
        assert len(seen) == 1, "nothing is tried again after content was sent"


def most_attempts(case: Case) -> int:
    """One an endpoint; a kept connection that closes without a byte may have been stale: once more."""
    stale = case.fault in ("reset_before_head", "close_before_head")
    return (1 if case.group == "one" else 2) + stale


def assert_whole(dialect: Dialect, case: Case, response: Response) -> None:
    """The whole answer, with its clean end, as if nothing had happened."""
    assert response.status == 200, response.body[:500]
    assert response.header("x-apportion-error") is None
    if dialect.name == "embeddings":
        assert dialect.text(response.json) == json.dumps([0.5, -0.5, 0.25, 1.0])
        return
    if not case.stream:
        assert (response.header("content-type") or "").startswith("application/json")
        assert dialect.text(response.json) == WHOLE
        assert dialect.finish(response.json) == dialect.stops[0]
        return
    assert (response.header("content-type") or "").startswith("text/event-stream")
    events = response.events
    assert dialect.error(events) is None
    assert dialect.stream_text(events) == WHOLE
    assert dialect.stream_finish(events) == dialect.stops[0]
    assert dialect.ended(events)


def assert_error(dialect: Dialect, case: Case, response: Response) -> None:
    """A real status in the caller's shape; our own say so and tell the SDK not to multiply attempts."""
    error = error_of(dialect, response)
    code = response.header("x-apportion-error")
    if response.status == 429:
        if case.fault == "status_429_retry_after":
            assert response.header("retry-after") == "7"
        if case.fault == "status_429_retry_after_ms":
            assert response.header("retry-after-ms") == "7000"
        return
    if code is not None:
        assert error["code"] == code
        assert code == ("upstream_timeout" if response.status == 504 else "upstream_error")
        assert response.header("x-should-retry") == "false"


def assert_broken(dialect: Dialect, response: Response) -> None:
    """What had come, then an error in the stream, and no clean end."""
    assert response.status == 200
    events = response.events
    text = dialect.stream_text(events)
    assert text.startswith("w0")
    assert text != WHOLE or dialect.error(events) is not None
    error = dialect.error(events)
    assert error is not None, f"no in-band error: {[e.data for e in events][-3:]}"
    assert error["message"]
    assert not dialect.ended(events), "a broken stream must not look finished"
    assert dialect.error(events[-1:]) is not None, "the error must be the last thing said"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["chat", "messages"])
@pytest.mark.parametrize("kind", ["openai", "anthropic"])
async def test_upstreams_own_refusal_is_passed_through(
    gateway: Gateway, upstream: Upstream, kind: str, name: str, stream: bool
) -> None:
    """A 400 of the upstream is the client's to mend: its words and status, not ours, not retried."""
    marker = upstream.script(new_marker(), fault="status_400", on="all")
    dialect = DIALECTS[name]
    response = await gateway.post(dialect, dialect.request(f"{kind}-two", marker, stream=stream))
    assert response.status == 400
    assert response.header("x-apportion-error") is None
    error = error_of(dialect, response)
    assert error["message"] == "upstream says 400"
    assert error["type"] == "invalid_request_error"
    assert len(upstream.of(marker)) == 1


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
async def test_tls_upstream(gateway: Gateway, upstream: Upstream, kind: str) -> None:
    marker = new_marker()
    for stream in (False, True):
        response = await gateway.post(
            DIALECTS["chat"], DIALECTS["chat"].request(f"{kind}-tls", marker, stream=stream)
        )
        assert response.status == 200, response.body
    assert all(s.over_tls for s in upstream.of(marker))


@pytest.mark.parametrize("fault", ["status_500", "status_429", "reset_before_head", "error_in_200"])
async def test_retries_on_the_only_endpoint(gateway: Gateway, upstream: Upstream, fault: str) -> None:
    """Tried again, with backoff, and the caller never notices."""
    marker = upstream.script(new_marker(), fault=fault, on="first_attempt")
    chat = DIALECTS["chat"]
    for stream in (False, True):
        response = await gateway.post(chat, chat.request("openai-retry", marker, stream=stream))
        assert response.status == 200, response.body
    assert len(upstream.of(marker)) in (3, 4)


async def test_retries_are_bounded(gateway: Gateway, upstream: Upstream) -> None:
    marker = upstream.script(new_marker(), fault="reset_before_head", on="all")
    chat = DIALECTS["chat"]
    response = await gateway.post(chat, chat.request("openai-retry", marker))
    own_error(chat, response, 502, "upstream_error")
    assert response.header("x-should-retry") == "false"
    assert len(upstream.of(marker)) in (3, 4), "three attempts, one of them perhaps on a stale connection"


async def test_long_retry_after_is_handed_to_the_client(gateway: Gateway, upstream: Upstream) -> None:
    """Seven seconds are longer than the proxy's own backoff: it does not hammer, the client is told when."""
    marker = upstream.script(new_marker(), fault="status_429_retry_after", on="all")
    chat = DIALECTS["chat"]
    response = await gateway.post(chat, chat.request("openai-one", marker))
    assert response.status == 429
    assert response.header("retry-after") == "7"
    assert error_of(chat, response)["message"]
    assert len(upstream.of(marker)) == 1


async def test_stream_cut_after_the_role_but_before_content(gateway: Gateway, upstream: Upstream) -> None:
    """A role or `message_start` is not an answer: another endpoint may still be asked, or the error is real
    or in-band; in no case does it look like an empty answer."""
    for kind in ("openai", "anthropic"):
        for name in ("chat", "messages"):
            dialect = DIALECTS[name]
            marker = upstream.script(new_marker(), fault="cut_after_role")
            response = await gateway.post(dialect, dialect.request(f"{kind}-two", marker, stream=True))
            assert response.complete
            if response.status == 200 and dialect.error(response.events) is None:
                assert dialect.stream_text(response.events) == WHOLE
            else:
                assert response.status >= 500 or not dialect.ended(response.events)


async def test_a_long_event_passes_whole(gateway: Gateway, upstream: Upstream) -> None:
    """One event of a megabyte, as images and long tool arguments make them."""
    size = 2**20
    for kind in ("openai", "anthropic"):
        for name in ("chat", "messages"):
            dialect = DIALECTS[name]
            marker = upstream.script(new_marker(), want=Want(words=2, piece_bytes=size))
            response = await gateway.post(dialect, dialect.request(f"{kind}-one", marker, stream=True))
            assert len(dialect.stream_text(response.events)) == 2 * size
            assert dialect.ended(response.events)
