"""The fault suite of the books: whatever happens to a request, what is booked is what its upstreams billed.

The scripted upstream has a meter of its own: input once it works on a request, each token of output that it
produced. It stops when its connection closes. Every endpoint here has answered a few requests before, as one has
that is in use; what cannot be known is counted, and must then be within 2% of the meter.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from apportion.serve.records import usd

from .booked import Booked, attempts_of, booked, check_metrics
from .conftest import KEYS, NEVER_OPEN, Json, model
from .dialects import DIALECTS
from .providers import Prices
from .proxy import Gateway
from .shapes import Want
from .test_amounts import priced_endpoint
from .upstream import SENT_ON_S, Seen, Upstream, is_timed, new_marker
from .wire import Response, Wire

PRICES = Prices(input=3.1, output=15.3, cached=3.1, write_5m=3.1, write_1h=3.1)
WORDS = 150
PIECE = 5
"""Bytes of a token."""
WARM = 5
COUNTED = 0.02
SENTENCE = "The quick brown fox jumps over the lazy dog, and nobody in the village ever asks it why. "
PATIENT = {"connect_s": 20.0, "first_token_s": 30.0, "gap_s": 30.0, "total_s": 60.0}
HASTY = {"connect_s": 4.0, "first_token_s": 4.0, "gap_s": 4.0, "total_s": 10.0}
WAYS = [
    ("chat", "chat"),
    ("completions", "completions"),
    ("responses", "responses"),
    ("messages", "messages"),
    ("messages", "chat"),
    ("chat", "messages"),
    ("responses", "chat"),
]
"""(dialect of the client, API of the endpoint)"""


@dataclass(frozen=True)
class Case:
    """One request, what its upstream does, and whether its client goes away once the upstream holds."""

    client: str
    api: str
    fault: str
    leaves: bool
    stream: bool = True
    usage: str = "usual"
    nonsense: str = ""
    """Name of what is said in place of the usage."""

    def __str__(self) -> str:
        way = "stream" if self.stream else "whole"
        more = "" if self.usage == "usual" else f"-{self.usage}"
        more += f"-{self.nonsense}" if self.nonsense else ""
        return f"{self.fault}-{self.client}-to-{self.api}-{way}{more}"

    @property
    def input_known(self) -> bool:
        """Whether the upstream says its input before the fault."""
        if self.usage == "absent" or self.nonsense or self.fault in ("stall_before_head", "stall_after_head"):
            return False
        if self.usage == "every" or self.api == "messages":
            return True
        return self.all_known

    @property
    def all_known(self) -> bool:
        """Whether it says all it has used before the fault."""
        if self.usage == "absent" or self.nonsense:
            return False
        if self.usage == "every":
            return True
        with_finish = self.api == "messages" and self.fault == "stall_after_finish"
        return with_finish or self.fault in ("stall_before_end_mark", "usage_late")


LEAVING = [
    Case(client, api, fault, leaves=True)
    for client, api in WAYS
    for fault in (
        "stall_before_head",
        "stall_after_head",
        "stall_after_role",
        "stall_mid",
        "stall_after_last_token",
        "stall_after_finish",
        "stall_before_end_mark",
        "usage_late",
    )
    if not (api == "responses" and fault in ("stall_after_finish", "stall_before_end_mark", "usage_late"))
    if not (api == "messages" and fault == "usage_late")
]
LEAVING += [
    Case("chat", "chat", f, leaves=True, usage="every") for f in ("stall_mid", "stall_after_last_token")
]


def counts(tokens_in: object, tokens_out: object) -> Json:
    """A usage object in every dialect at once."""
    told = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out}
    return {**told, "input_tokens": tokens_in, "output_tokens": tokens_out}


BREAKING = [
    Case(client, api, fault, leaves=False)
    for client, api in WAYS
    for fault in ("reset_mid", "close_mid", "bad_chunk_size", "stall_mid", "error_mid", "bad_sse_line")
]
SILENT = [
    Case(client, api, "none", leaves=False, stream=stream, usage="absent")
    for client, api in WAYS
    if api in ("chat", "messages")
    for stream in (False, True)
]
NONSENSE: dict[str, object] = {
    "word": "x",
    "number": 3,
    "list": [],
    "empty": {},
    "zero": counts(0, 0),
    "negative": counts(-5, 40),
    "words": counts("many", "few"),
    "absurd": counts(700, 10**12),
    "endless": counts(1e300, 40),
    "truth": counts(True, False),
}
ABSURD = [
    Case(api, api, "none", leaves=False, stream=stream, nonsense=name)
    for api in ("chat", "messages", "responses")
    for name in NONSENSE
    for stream in (False, True)
]
WAITING = [
    Case(client, api, fault, leaves=True, stream=False)
    for client, api in [*((c, a) for c, a in WAYS if a != "completions"), ("embeddings", "embeddings")]
    for fault in ("stall_before_head", "stall_mid")
]
"""Clients that leave while they wait for a whole answer."""
CASES = [*LEAVING, *BREAKING, *SILENT, *ABSURD, *WAITING]


@dataclass
class Ran:
    response: Response | None
    seen: list[Seen]
    booked: Booked
    """Of the case alone (its marks with those of the requests before, which are all measured)."""


Outcome = Ran | Exception


async def drive(gateway: Gateway, upstream: Upstream, case: Case, name: str) -> Ran:
    """Warm the endpoint up, then play the case; the books of the case are what was added by it."""
    dialect = DIALECTS[case.client]
    stream = {"stream": True} if case.stream else {}
    for i in range(WARM):
        marker = upstream.script(new_marker(), want=Want(words=WORDS // 2 + 20 * i, piece_bytes=PIECE))
        text = f"{marker} {SENTENCE * (20 + 5 * i)}"
        response = await gateway.post(dialect, dialect.request(name, text, **stream))
        assert response.status == 200, response.body[:300]
    before = await booked(gateway, name, WARM)
    want = Want(words=WORDS, piece_bytes=PIECE, usage=case.usage, say=NONSENSE.get(case.nonsense))
    gate = threading.Semaphore(0) if case.leaves and case.fault == "usage_late" else None
    marker = upstream.script(new_marker(), fault=case.fault, on="all", want=want, gate=gate)
    body = dialect.request(name, f"{marker} {SENTENCE * 33}", **stream)
    response = None
    if not case.leaves:
        response = await gateway.post(dialect, body)
    else:
        async with await Wire.open(gateway.port) as wire:
            await wire.send(gateway.bytes_of(dialect, body))
            async with asyncio.timeout(60):
                while not (upstream.of(marker) and upstream.of(marker)[0].holds):
                    await asyncio.sleep(0.01)
            await asyncio.sleep(SENT_ON_S)
            wire.abort()
        if gate is not None:
            await asyncio.sleep(0.1)  # it is known by now that nobody listens
            gate.release()
    after = await booked(gateway, name, WARM + 1)
    sums = [getattr(after, n) - getattr(before, n) for n in Booked._fields[:4]]
    return Ran(response, upstream.of(marker), Booked(*sums, after.marks))


@pytest.fixture(scope="module")
def ran(
    request: pytest.FixtureRequest, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> dict[Case, Outcome]:
    """Every case that was selected, through one proxy."""
    cases = [
        item.callspec.params["case"]
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and item.module is request.module
        and "case" in getattr(getattr(item, "callspec", None), "params", ())
    ]
    cases = list(dict.fromkeys(cases))
    names = {case: f"e{i}" for i, case in enumerate(cases)}
    endpoints: Json = {}
    for case, name in names.items():
        times = HASTY if is_timed(case.fault) and not case.leaves else PATIENT
        more = {"price": PRICES.config(), "timeouts": times, "breaker": NEVER_OPEN}
        endpoints[name] = priced_endpoint(upstream, name, case.api, **more)
    config = {"keys": KEYS[:1] + KEYS[2:], "endpoints": endpoints, "models": {n: model(n) for n in endpoints}}
    gateway = Gateway(tmp_path_factory.mktemp("bills"), config).start()

    async def run_all() -> dict[Case, Outcome]:
        turn = asyncio.Semaphore(12)

        async def run(case: Case) -> Outcome:
            async with turn:
                try:
                    return await drive(gateway, upstream, case, names[case])
                except Exception as error:  # shown by the test of this case
                    return error

        outcomes = await asyncio.gather(*map(run, cases))
        await check_metrics(gateway)
        return dict(zip(cases, outcomes, strict=True))

    try:
        found = asyncio.run(run_all())
    finally:
        gateway.stop()
    return found


def check(case: Case, ran: Outcome) -> Ran:
    """Booked against the meter: exact where the upstream has said it, else within 2%."""
    if isinstance(ran, Exception):
        raise ran
    (seen,) = ran.seen
    if case.leaves:
        assert seen.done == (case.fault == "usage_late")
        assert seen.done or seen.gone_at_s is not None, "the upstream still works for nobody"
    if case.all_known:
        assert (ran.booked.input_tokens, ran.booked.output_tokens) == (seen.tokens_in, seen.tokens_out)
        assert ran.booked.units == seen.units(PRICES)
        assert ran.booked.marks == {"measured"}
        return ran
    if case.api == "messages" and case.input_known and seen.tokens_out == 0:
        seen.tokens_out = 1  # as its first event says
    assert ran.booked.output_tokens == pytest.approx(seen.tokens_out, rel=COUNTED)
    if case.input_known:
        assert ran.booked.input_tokens == seen.tokens_in
    else:
        assert ran.booked.input_tokens == pytest.approx(seen.tokens_in, rel=COUNTED)
    assert ran.booked.units == pytest.approx(seen.units(PRICES), rel=COUNTED)
    assert "estimated" in ran.booked.marks, "what was counted is said to be"
    return ran


@pytest.mark.parametrize("case", LEAVING, ids=str)
def test_a_client_that_leaves_is_booked_what_was_produced(case: Case, ran: dict[Case, Outcome]) -> None:
    check(case, ran[case])


@pytest.mark.parametrize("case", [c for c in LEAVING if c.fault == "stall_mid"], ids=str)
def test_field_20_a_client_that_leaves_is_booked_its_output_too(case: Case, ran: dict[Case, Outcome]) -> None:
    found = check(case, ran[case])
    assert found.booked.output_tokens == found.seen[0].tokens_out == 2


@pytest.mark.parametrize("case", BREAKING, ids=str)
def test_an_upstream_that_breaks_off_is_booked_what_it_produced(case: Case, ran: dict[Case, Outcome]) -> None:
    check(case, ran[case])


@pytest.mark.parametrize("case", [*SILENT, *ABSURD], ids=str)
def test_an_answer_without_a_usable_usage_is_counted(case: Case, ran: dict[Case, Outcome]) -> None:
    response = check(case, ran[case]).response
    assert response is not None
    assert response.status == 200
    mark = response.header("x-apportion-cost-mark")
    assert mark == ("unknown" if case.stream else "estimated"), "what was counted is said to be"


@pytest.mark.parametrize("case", WAITING, ids=str)
def test_a_client_that_leaves_a_whole_answer_is_not_booked_nothing(
    case: Case, ran: dict[Case, Outcome]
) -> None:
    """Nothing of the answer was seen, so nobody can be exact: it is presumed, marked so, and never free.

    (Field item 20: the provider may bill the full answer.)
    """
    found = ran[case]
    if isinstance(found, Exception):
        raise found
    (seen,) = found.seen
    assert seen.gone_at_s is not None, "the upstream still works for nobody"
    assert found.booked.input_tokens == pytest.approx(seen.tokens_in, rel=COUNTED)
    assert found.booked.marks == {"measured", "estimated"}
    if case.client == "embeddings":
        assert found.booked.output_tokens == 0
    else:
        assert 75 <= found.booked.output_tokens <= 256, (
            "what such answers take, are allowed or expected to take"
        )


# ----------------------------------------------------------------------------------- several attempts, one request

FREE = ("status_500", "status_503", "status_429", "close_before_head", "error_in_200")
"""The upstream refuses, or says that it failed: it bills nothing."""
PAID = ("stall_before_head", "half_json", "garbage_head")
"""Nobody can tell what it did: presumed, what it was allowed or is expected to produce."""


@pytest.fixture(scope="module")
def pairs(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A proxy with two endpoints for each fault, way and API."""
    endpoints: Json = {}
    models: Json = {}
    for api in ("chat", "messages"):
        running = f"running-{api}"
        endpoints[running] = priced_endpoint(upstream, running, api, price=PRICES.config(), timeouts=PATIENT)
        models[running] = model(running)
        for fault in (*FREE, *PAID):
            for way in ("whole", "stream"):
                name = f"{api}-{fault}-{way}"
                times = HASTY if is_timed(fault) else PATIENT
                more = {"price": PRICES.config(), "timeouts": times, "breaker": NEVER_OPEN}
                for one in ("a", "b"):
                    endpoints[f"{name}-{one}"] = priced_endpoint(upstream, f"{name}-{one}", api, **more)
                retries = {"attempts": 2, "backoff_s": 0.01}
                models[name] = model(f"{name}-a", f"{name}-b", retries=retries, expected_output_tokens=40)
    config = {"keys": KEYS[:1] + KEYS[2:], "endpoints": endpoints, "models": models}
    gateway = Gateway(tmp_path_factory.mktemp("pairs"), config).start()
    yield gateway
    gateway.stop()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("fault", [*FREE, *PAID])
@pytest.mark.parametrize("api", ["chat", "messages"])
async def test_every_attempt_is_booked_to_the_request_it_was_for(
    pairs: Gateway, upstream: Upstream, api: str, fault: str, stream: bool
) -> None:
    name = f"{api}-{fault}-{'stream' if stream else 'whole'}"
    dialect = DIALECTS[api]
    marker = upstream.script(new_marker(), fault=fault, on="first_attempt", want=Want(words=20))
    more = {"stream": True} if stream else {}
    response = await pairs.post(dialect, dialect.request(name, f"{marker} {SENTENCE * 10}", **more))
    assert response.status == 200, response.body[:300]
    first, last = upstream.of(marker)
    assert first.endpoint != last.endpoint
    failed, answered = await booked(pairs, first.endpoint, 1), await booked(pairs, last.endpoint, 1)
    assert answered.units == last.units(PRICES)
    if fault in FREE:
        assert failed[1:4] == (0, 0, 0)
    else:
        # a stream would have brought what there was; of a whole answer all may have been made
        allowed = 100 if api == "messages" else 40
        assert failed.output_tokens == (0 if stream else allowed)
        assert failed.input_tokens > 0
    record = await pairs.decision(response)
    assert [a["endpoint"] for a in record["attempts"]] == [first.endpoint, last.endpoint]
    assert record["outcome"]["cost_usd"] == usd(failed.units + answered.units)
    assert record["outcome"]["cost_mark"] == ("measured" if fault in FREE else "estimated")
    entries = [(first.endpoint, failed.units), (last.endpoint, answered.units)]
    assert attempts_of(pairs, record["id"]) == entries


@pytest.mark.parametrize("api", ["chat", "messages"])
async def test_a_stream_that_runs_is_booked_until_it_stopped(
    pairs: Gateway, upstream: Upstream, api: str
) -> None:
    """The client leaves in the middle of it, as the next token is produced: it is in the books or lost, and none
    follows."""
    dialect = DIALECTS[api]
    gate = threading.Semaphore(0)
    marker = upstream.script(new_marker(), want=Want(words=90, piece_bytes=PIECE), gate=gate)
    body = dialect.request(f"running-{api}", marker, stream=True)
    async with await Wire.open(pairs.port) as wire:
        await wire.send(pairs.bytes_of(dialect, body))
        words = 0
        async for event in wire.events(await wire.head()):
            words += bool(dialect.stream_text([event]))
            if words >= 2:
                gate.release()
            if words == 60:
                break
        wire.abort()
    found = await booked(pairs, f"running-{api}", 1)
    (seen,) = upstream.of(marker)
    async with asyncio.timeout(60):
        while seen.gone_at_s is None:  # the upstream is told to stop
            await asyncio.sleep(0.01)
    assert 60 <= seen.tokens_out <= 61
    assert 0 <= seen.tokens_out - found.output_tokens <= 1
    assert found.output_tokens == pytest.approx(seen.tokens_out, rel=COUNTED)
