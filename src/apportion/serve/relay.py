"""A stream on its way from an upstream to a client: passed on as it comes, and never ended as if it were whole
when it is not.

Until the first content nothing is sent, so that a failure still becomes a status code or a fail-over. After it,
every event is read once (one typed decode, which proves it well-formed and finds usage and errors) and written
on at once. A cut, a stall, a malformed event or an error inside ends the client's stream with an in-band
``error`` event.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from typing import Final, Literal, Protocol

import msgspec

from apportion.core.guard import StreamWatch
from apportion.serve import errors, heard
from apportion.serve.drawn import DrawnReader
from apportion.serve.http import sse
from apportion.serve.http.client import Exchange, Phase, Timeouts, TransportFailure
from apportion.serve.wire import Kind, StreamReader

Stage = Literal["waiting", "live", "ended"]

_CONTENT, _META, _USAGE, _DONE, _ERROR, _BAD = Kind
_STOPS: Final = ("stop", "end_turn", "completed", "tool_calls", "tool_use")
"""How the dialects say that an answer has ended by itself."""
_MAX_HELD_BYTES: Final = 4 * 2**20
"""Most that may come before the first content."""
_MAX_ERROR_BYTES: Final = 1 * 2**20


class Translator(Protocol):
    """Turns a stream of one dialect into another, event by event."""

    def feed(self, event_name: bytes | None, data: bytes) -> bytes:
        """The client's events for one upstream event."""
        ...

    def finish(self) -> bytes:
        """What closes the client's stream when the upstream's has ended whole."""
        ...


class Sink(Protocol):
    """Where a relay writes: a client's ``Responder``, or an assembler that makes one answer of the stream."""

    def write(self, data: bytes) -> None:
        """Take a piece now."""
        ...


class Relay(Exchange):
    """One streamed exchange. ``await first()``, then ``go_live(sink)``, then ``await answered()``.

    ``usage_chunk`` makes the chunk of ``stream_options.include_usage`` where the upstream sends none (None: not asked
    for). ``cost_json`` is asked, when the stream is done, for what is said about its cost: in a comment before the
    end mark, and inside the usage chunk if the client asked for one. ``error_event`` renders an error as an
    in-band event of the client's dialect. ``whole_mark`` closes a stream whose upstream ended it properly but
    without the end mark of its dialect (None: with several choices a finish of one does not tell that it is whole).
    ``watch`` sees every piece of the answer (drawn at ``temperature``, as `DrawnReader` has it) and may end it; with
    ``hide_logprobs`` (chat completions only) the client does not see the log probabilities that were asked for on its
    behalf. The client of a ``patient`` relay is not told
    at once that the stream has broken: whoever waits for the end may have it go on elsewhere, or ``tell_broken``.
    """

    __slots__ = (
        "_cost_json",
        "_error_bytes",
        "_error_event",
        "_first",
        "_held",
        "_held_bytes",
        "_hide_logprobs",
        "_inflate",
        "_keep_usage",
        "_leaving",
        "_patient",
        "_sink",
        "_splitter",
        "_translator",
        "_usage_chunk",
        "_watch",
        "_whole_mark",
        "broken",
        "reader",
        "stage",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        timeouts: Timeouts,
        reader: StreamReader,
        *,
        keep_usage: bool,
        translator: Translator | None,
        cost_json: Callable[[], bytes],
        usage_chunk: Callable[[], bytes] | None,
        error_event: Callable[[errors.GatewayError], bytes],
        whole_mark: bytes | None,
        watch: StreamWatch | None = None,
        temperature: float | None = None,
        hide_logprobs: bool = False,
        patient: bool = False,
    ) -> None:
        super().__init__(loop, timeouts)
        self.reader = reader
        self.stage: Stage = "waiting"
        self.broken: errors.GatewayError | None = None
        """Why the stream ended badly after content, if it did."""
        self._keep_usage = keep_usage
        self._translator = translator
        self._cost_json = cost_json
        self._usage_chunk = usage_chunk
        self._error_event = error_event
        self._whole_mark = whole_mark
        self._watch = watch
        self._hide_logprobs = hide_logprobs
        self._patient = patient
        self._leaving: Callable[[], bool] | None = None
        if watch is not None:
            reader.heard = []
            reader.drawn = DrawnReader(temperature)
        self._splitter = sse.Splitter()
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._error_bytes = 0
        self._inflate: zlib._Decompress | None = None
        self._sink: Sink | None = None
        self._first: asyncio.Future[None] = loop.create_future()

    def phase(self) -> Phase:
        return "first_token" if self.stage == "waiting" else "gap"

    def pause(self) -> None:
        if self.stage != "ended":  # what still comes is thrown away, and must not be waited for
            super().pause()

    async def first(self) -> None:
        """Wait until it is known what this will be. Raises ``TransportFailure`` if it broke before content.

        Afterwards ``status`` tells: 200 and there is content, or an error answer whose ``body`` is complete.
        """
        try:
            await self._first
        except asyncio.CancelledError:
            self.abort()
            raise
        if (
            self.failure is not None and self.failure.phase != "guard"
        ):  # there was content: it ends like a stream
            raise self.failure

    async def answered(self) -> None:
        """Wait for the end of the answer. Raises ``TransportFailure``. If cancelled, the caller aborts."""
        await asyncio.shield(self.done)
        if self.failure is not None:
            raise self.failure

    async def last_words(self, within_s: float) -> None:
        """A finished answer whose client has left: wait a moment for the upstream to say what it used."""
        if self.reader.finish_reason is None or self.reader.usage_final or self.stage != "live":
            return
        self.resume()
        try:
            async with asyncio.timeout(within_s):
                await self.answered()
        except (TimeoutError, TransportFailure):
            pass

    def go_live(self, sink: Sink) -> bytes:
        """From now on events go to ``sink``; returns those that came until now."""
        self._sink = sink
        if self.stage == "waiting":
            self.stage = "live"
        held, self._held = self._held, []
        return b"".join(held)

    def leave(self, when: Callable[[], bool]) -> None:
        """End behind the first piece of the answer after which ``when`` is true (a failure of phase "move"), unless it
        ends before."""
        self._leaving = when

    def tell_broken(self) -> None:
        """Tell the client of a patient relay that its stream has broken."""
        if self.broken is not None:
            self._write(self._error_event(self.broken))

    # called by the connection

    def on_head(self) -> None:
        if self.status != 200:
            return
        if (self.header(b"content-encoding") or b"").lower() in (b"gzip", b"x-gzip", b"deflate"):
            self._inflate = zlib.decompressobj(32 + zlib.MAX_WBITS)
        kind = self.header(b"content-type")
        if kind is not None and b"text/event-stream" not in kind.lower():
            said = kind.decode("latin-1")[:80]
            raise TransportFailure(
                "malformed", f"The upstream sent {said!r} in place of a stream.", sent=True
            )

    def on_data(self, data: bytes) -> None:
        if self.stage == "ended":
            return
        if self.status != 200:
            self._error_bytes += len(data)
            if self._error_bytes <= _MAX_ERROR_BYTES:
                self.chunks.append(data)
            return
        try:
            if self._inflate is not None:
                data = self._inflate.decompress(data, sse.MAX_EVENT_BYTES)
                if self._inflate.unconsumed_tail:
                    raise sse.EventTooLarge
            events = self._splitter.feed(data)
        except sse.EventTooLarge:
            raise TransportFailure(
                "malformed", "The upstream sent an event without end.", sent=True
            ) from None
        except zlib.error as error:
            raise TransportFailure(
                "malformed", f"The upstream's gzip is broken: {error}.", sent=True
            ) from None
        if events:
            self._take(events)

    def on_end(self) -> None:
        if self.status == 200 and self.stage != "ended":
            try:
                self._take_rest()
            except TransportFailure as failure:
                self.on_failure(failure)
                return
        self._resolve()
        super().on_end()

    def on_failure(self, failure: TransportFailure) -> None:
        if self.stage == "ended" and self.broken is None:
            return  # all had been sent; how the upstream closes no longer matters
        super().on_failure(failure)
        self._resolve()
        if self.stage == "live":
            self.stage = "ended"
            if failure.phase not in ("deadline", "guard") and self.broken is None:
                self.broken = errors.StreamBrokenError(f"{failure} The answer is incomplete.")
                if not self._patient:
                    self.tell_broken()

    # events

    def _take(self, events: list[bytes]) -> None:
        reader, translator = self.reader, self._translator
        out: list[bytes] = []
        decisive = False
        for event in events:
            name, data = sse.parse(event)
            if data is None:
                if translator is None:
                    out.append(event)
                continue
            kind = reader.event(data, name)
            if self._hide_logprobs and kind in (_CONTENT, _META):
                event = b"data: %b\n\n" % heard.without_logprobs("chat", data)
            if kind is _CONTENT:
                decisive = True
                if self._watch is not None:
                    self._look(self._watch, out)
                out.append(event if translator is None else translator.feed(name, data))
            elif kind is _META:
                out.append(event if translator is None else translator.feed(name, data))
            elif kind is _USAGE:
                if translator is not None:
                    out.append(translator.feed(name, data))
                elif self._keep_usage:
                    cost = self._cost_json()
                    chunk = data.replace(b"\n", b" ").rstrip()
                    out.append(b'data: %b,"apportion":%b}\n\n' % (chunk[:-1], cost))
            elif kind is _DONE:
                out.append(self._remarks())
                if translator is None:
                    out.append(event)
                else:
                    out += (translator.feed(name, data), translator.finish())
                self._end(out)
                return
            else:
                self._write(b"".join(out))
                self._bad_event(kind, event, data)
        if decisive:
            self._resolve()
        self._write(out[0] if len(out) == 1 else b"".join(out))
        if self._leaving is not None and decisive and self.reader.finish_reason is None and self._leaving():
            raise TransportFailure("closed", "The stream leaves its endpoint.", phase="move", sent=True)

    def _look(self, watch: StreamWatch, out: list[bytes]) -> None:
        """Show the newest piece to the guard. Raises ``TransportFailure`` if the answer is to end before it."""
        pieces, tokens = self.reader.heard or [], self.reader.drawn
        if tokens is None or not (pieces or tokens.found):
            return
        why = watch.feed("".join(pieces), 1, tokens.found)
        pieces.clear()
        tokens.found.clear()
        if why is not None:
            self._write(b"".join(out))
            raise TransportFailure("closed", why, phase="guard", sent=True)

    def _take_rest(self) -> None:
        """The connection has ended properly: a last event may lack its blank line, or the end mark be missing."""
        rest = self._splitter.rest()
        if rest:
            self._take([rest])
        if self.stage != "ended":
            self._end_without_mark()

    def _write(self, piece: bytes) -> None:
        if self._sink is not None:
            if piece:
                self._sink.write(piece)
            return
        self._held.append(piece)
        self._held_bytes += len(piece)
        if self._held_bytes > _MAX_HELD_BYTES and not self._first.done():
            raise TransportFailure("malformed", "The upstream sends events without content.", sent=True)

    def _bad_event(self, kind: Kind, event: bytes, data: bytes) -> None:
        """An error inside the stream, or an event that is not JSON. Always raises."""
        if kind is _ERROR:
            detail = _message(self.reader.error or data)
            failure = TransportFailure("error", f"The upstream reported an error: {detail}", sent=True)
            if self.stage == "live" and self._translator is None and not self._patient:
                self.broken = errors.StreamBrokenError(str(failure))
                self._write(event)  # in the upstream's own words
        else:
            failure = TransportFailure("malformed", "The upstream sent an event that is not JSON.", sent=True)
        raise failure

    def _end(self, out: list[bytes]) -> None:
        """The stream is whole; how the connection ends is of no interest any more."""
        if self._watch is not None and self.reader.finish_reason in _STOPS:
            self._watch.ended()
        self._resolve()
        self._write(b"".join(out))
        self.stage = "ended"
        self.resume()
        super().on_end()

    def _end_without_mark(self) -> None:
        if self.reader.finish_reason is None or self._whole_mark is None:
            raise TransportFailure("reset", "The upstream ended its stream in the middle.", sent=True)
        closing = self._translator.finish() if self._translator is not None else self._whole_mark
        self._end([self._remarks(), closing])

    def _remarks(self) -> bytes:
        """What is said before the end mark: the cost, and the usage if it was asked for and has not come."""
        cost = self._cost_json()
        if self._usage_chunk is None or self.reader.usage is not None:
            return b": apportion %b\n\n" % cost
        return b'data: %b,"apportion":%b}\n\n: apportion %b\n\n' % (self._usage_chunk()[:-1], cost, cost)

    def _resolve(self) -> None:
        if not self._first.done():
            self._first.set_result(None)


def _message(error: bytes) -> str:
    """The message of an upstream's error object, whatever its shape."""
    try:
        found = msgspec.json.decode(error)
    except (msgspec.DecodeError, RecursionError):
        return ""
    for _ in range(3):
        if isinstance(found, dict):
            found = found.get("message") or found.get("error")
    return found if isinstance(found, str) else ""
