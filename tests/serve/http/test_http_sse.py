"""Server-sent events against a plain reading of the WHATWG rules."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apportion.serve.http import sse

Event = tuple[bytes | None, bytes | None]

words = st.binary(max_size=12).map(lambda b: b.replace(b"\r", b"").replace(b"\n", b""))
spaced = st.sampled_from([b"", b" ", b"  "])
lines = st.one_of(
    st.tuples(st.sampled_from([b"data", b"event", b"id", b"retry", b"other"]), spaced, words).map(
        lambda t: t[0] + b":" + t[1] + t[2]
    ),
    words.map(lambda w: b":" + w),
    st.sampled_from([b"data", b"event", b"id", b"data:"]),
)
ends = st.sampled_from([b"\n", b"\r\n", b"\r"])


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Lines with any line ends, blank lines among them; each end of its own choice, or one for all."""
    one = draw(st.none() | ends)
    parts = []
    for line in draw(st.lists(st.one_of(lines, st.just(b"")), max_size=20)):
        # "\r" ending a line and "\n" ending the next empty one would be read as one "\r\n".
        end = one or draw(ends)
        if end == b"\n" and line == b"" and parts and parts[-1].endswith(b"\r"):
            end = b"\r\n"
        parts.append(line + end)
    return b"".join(parts)


def cut(data: bytes, at: list[int]) -> list[bytes]:
    bounds = sorted({0, len(data), *(i % (len(data) + 1) for i in at)})
    return [data[a:b] for a, b in pairwise(bounds)]


def read_whole(stream: bytes) -> list[Event]:
    """Section 9.2.6, straight from the text, without the fields that nobody here reads."""
    found: list[Event] = []
    name, data = b"", []
    text = stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    for line in text.split(b"\n")[:-1]:
        if line == b"":
            if data:
                found.append((name or None, b"\n".join(data)))
            name, data = b"", []
        elif line.startswith(b":"):
            continue
        else:
            field, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if field == b"event":
                name = value
            elif field == b"data":
                data.append(value)
    return found


def fed(pieces: list[bytes]) -> list[bytes]:
    splitter = sse.Splitter()
    return [event for piece in pieces for event in splitter.feed(piece)]


def parsed(events: list[bytes]) -> list[Event]:
    found = [sse.parse(event) for event in events]
    return [(name or None, data) for name, data in found if data is not None]


@given(streams(), st.lists(st.integers(0, 10_000), max_size=30))
def test_any_cut_gives_the_same_events(stream: bytes, at: list[int]) -> None:
    whole = fed([stream])
    assert fed(cut(stream, at)) == whole
    assert fed([stream[i : i + 1] for i in range(len(stream))]) == whole


@given(streams())
def test_events_are_those_of_the_standard(stream: bytes) -> None:
    # A field line without a colon that is no field is kept here (a broken stream), and dropped there.
    assert parsed(fed([stream])) == read_whole(stream)


@given(streams())
def test_an_event_ends_at_its_blank_line_and_holds_only_line_feeds(stream: bytes) -> None:
    for event in fed([stream]):
        assert event.endswith(b"\n\n")
        assert b"\r" not in event
        assert b"\n\n" not in event.lstrip(b"\n")[:-1]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_no_event_is_held_back(end: bytes) -> None:
    splitter = sse.Splitter()
    for i in range(3):
        assert splitter.feed(b"data: %d" % i + end + end) == [b"data: %d\n\n" % i]
    assert splitter.rest() == b""


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r", b""])
def test_a_last_event_without_its_blank_line(end: bytes) -> None:
    splitter = sse.Splitter()
    assert splitter.feed(b"data: a\n\ndata: b" + end) == [b"data: a\n\n"]
    assert splitter.rest() == b"data: b\n\n"
    assert splitter.rest() == b""


@pytest.mark.parametrize("rest", [b"", b"\n", b"\r", b"\r\n", b"\n \n"])
def test_nothing_is_left_of_blank_lines(rest: bytes) -> None:
    splitter = sse.Splitter()
    splitter.feed(b"data: a\n\n" + rest)
    assert splitter.rest() == b""


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (b"data: {}\n\n", (None, b"{}")),
        (b"data:{}\n\n", (None, b"{}")),
        (b"data:  {}\n\n", (None, b" {}")),
        (b"data: \n\n", (None, b"")),
        (b"data\n\n", (None, b"")),
        (b"data: a\ndata: b\n\n", (None, b"a\nb")),
        (b"data: a\n: c\ndata:b\n\n", (None, b"a\nb")),
        (b"event: x\ndata: a\n\n", (b"x", b"a")),
        (b"data: a\nevent:x\n\n", (b"x", b"a")),
        (b"event: x\nevent: y\ndata: a\n\n", (b"y", b"a")),
        (b"event: x\n\n", (b"x", None)),
        (b": ping\n\n", (None, None)),
        (b":\n\n", (None, None)),
        (b"\n\n", (None, None)),
        (b"id: 1\nretry: 5\nid\n\n", (None, None)),
        (b"id: 1\ndata: a:b: c\n\n", (None, b"a:b: c")),
        (b"DATA: a\n\n", (None, None)),
        (b'{"half\n\n', (None, b'{"half')),
    ],
)
def test_parse(event: bytes, said: Event) -> None:
    assert sse.parse(event) == said


def test_an_event_without_end_is_refused() -> None:
    splitter = sse.Splitter()
    piece = b"x" * 2**20
    for _ in range(sse.MAX_EVENT_BYTES // len(piece)):
        assert splitter.feed(piece) == []
    with pytest.raises(sse.EventTooLarge):
        splitter.feed(piece)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_a_long_event_is_not_read_again_with_each_piece(end: bytes) -> None:
    """Bytes handled, not time: whatever a piece costs may not grow with what came before it."""
    splitter = sse.Splitter()
    piece = b"x" * 1000
    tracemalloc.start()
    try:
        for _ in range(4000):
            splitter.feed(piece)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        splitter.feed(piece)
        copied = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert copied < 1_000_000, "the four megabytes that wait are not copied"
    assert splitter.feed(end) == []
    events = splitter.feed(end + b"data: b")
    assert events == [piece * 4001 + b"\n\n"]
    assert splitter.rest() == b"data: b\n\n"


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_any_bytes_at_all(pieces: list[bytes]) -> None:
    events = fed(pieces)
    for event in events:
        sse.parse(event)
    splitter = sse.Splitter()
    assert [e for p in [b"".join(pieces)] for e in splitter.feed(p)] == events
