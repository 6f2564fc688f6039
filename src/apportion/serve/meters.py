"""The metric families of the proxy. Labels are bounded: names from the configuration and short fixed words."""

from __future__ import annotations

from apportion.measure.metrics import LATENCY_S, OVERHEAD_S, Counter, Histogram, Registry


class RouteMeters:
    """The series of one model on one endpoint, looked up once."""

    __slots__ = (
        "_cells",
        "_cost",
        "_in",
        "_out",
        "_server",
        "_unpriced",
        "duration_s",
        "first_token_s",
        "overhead_s",
    )

    def __init__(self, meters: Meters, model: str, endpoint: str) -> None:
        at = (model, endpoint)
        self._cells = meters.registry.cells
        self._in = meters.tokens.index(*at, "input")
        self._out = meters.tokens.index(*at, "output")
        self._cost = meters.cost_usd.index(*at)
        self._server = meters.server_s.index(*at)
        self._unpriced = meters.unpriced.index(*at)
        self.duration_s: Histogram = meters.duration_s.histogram_at(*at)
        self.first_token_s: Histogram = meters.first_token_s.histogram_at(*at)
        self.overhead_s: Histogram = meters.overhead_s.histogram_at(*at)

    def book(self, tokens_in: int, tokens_out: int, usd: float | None, server_s: float) -> None:
        """Count one attempt; ``usd`` None: its cost is unknown."""
        cells = self._cells
        cells[self._in] += tokens_in
        cells[self._out] += tokens_out
        cells[self._server] += server_s
        if usd is None:
            cells[self._unpriced] += 1.0
        else:
            cells[self._cost] += usd


class Meters:
    """All families of one worker."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        at = ("model", "endpoint")
        self.requests = registry.counter(
            "apportion_requests_total",
            "Requests answered, by API and status code.",
            ("api", "model", "status"),
        )
        self.attempts = registry.counter(
            "apportion_attempts_total",
            "Attempts at an endpoint: ok, or how it failed.",
            ("model", "endpoint", "result"),
        )
        self.tokens = registry.counter(
            "apportion_tokens_total", "Tokens, by direction (input, output).", (*at, "direction")
        )
        self.cost_usd = registry.counter(
            "apportion_cost_usd_total", "Dollars booked, measured or estimated.", at
        )
        self.server_s = registry.counter(
            "apportion_server_seconds_total",
            "Machine time used, shared fairly among concurrent requests.",
            at,
        )
        self.unpriced = registry.counter(
            "apportion_unpriced_requests_total", "Answers whose cost is unknown because a price is.", at
        )
        self.duration_s = registry.histogram(
            "apportion_request_duration_seconds", "From request to the end of the answer.", at, LATENCY_S
        )
        self.first_token_s = registry.histogram(
            "apportion_time_to_first_token_seconds",
            "From request to the first content (streams).",
            at,
            LATENCY_S,
        )
        self.overhead_s = registry.histogram(
            "apportion_overhead_seconds",
            "Time spent in the proxy itself before the answer began.",
            at,
            OVERHEAD_S,
        )
        self.in_flight = registry.gauge("apportion_requests_in_flight", "Requests being answered.").at()
        self.cancelled = registry.counter(
            "apportion_client_disconnects_total", "Clients that went away before their answer ended."
        ).at()
        self.circuit = registry.gauge(
            "apportion_endpoint_open_circuits",
            "Workers in which the endpoint's circuit is not closed.",
            ("endpoint",),
        )
        self.reloads = registry.counter(
            "apportion_reloads_total", "Configuration reloads, by result.", ("result",)
        )
        self.spans_lost = registry.counter(
            "apportion_spans_lost_total",
            "Trace spans dropped because too many waited (queue) or the collector did not take them (collector).",
            ("where",),
        )
        self.ledger_pending = registry.gauge(
            "apportion_ledger_pending_entries",
            "Entries that are not in the database yet (they are in the journal).",
        ).at()
        self.ledger_lost = registry.gauge(
            "apportion_ledger_cut_off_workers", "Workers whose database does not answer."
        ).at()
        self.ledger_entries = registry.counter(
            "apportion_ledger_entries_total", "Entries written to the database."
        ).at()
        self.queue_wait_s = registry.histogram(
            "apportion_queue_wait_seconds", "Time spent in an endpoint's queue.", ("endpoint",), LATENCY_S
        )
        self.queue_waiting = registry.gauge(
            "apportion_queue_waiting", "Requests that wait in an endpoint's queue.", ("endpoint",)
        )
        self.queue_refused = registry.counter(
            "apportion_queue_refused_total",
            "Requests that an endpoint's queue ended: full, too late (deadline or longest wait).",
            ("endpoint", "why"),
        )
        self.cache_lookups = registry.counter(
            "apportion_cache_lookups_total",
            "Questions to the answer cache: hit, semantic, joined, or why not.",
            ("model", "category", "outcome"),
        )
        self.cache_saved_usd = registry.counter(
            "apportion_cache_saved_usd_total",
            "Dollars that kept answers had cost when they were made.",
            ("model",),
        )
        self.replays = registry.counter(
            "apportion_example_replays_total",
            "Examples that the large model was asked for again: better, no_better, failed.",
            ("model", "result"),
        )
        self.cache_bytes = registry.gauge("apportion_cache_bytes", "Bytes of kept answers.").at()
        self.cache_entries = registry.gauge("apportion_cache_entries", "Kept answers.").at()
        self.calls = registry.counter(
            "apportion_strategy_calls_total", "Calls that strategies made.", ("model", "strategy")
        )
        self.guarded = registry.counter(
            "apportion_guard_verdicts_total",
            "Requests that a guard did not just let pass, and answers that it ended.",
            ("model", "action"),
        )
        self.vectors = registry.counter(
            "apportion_encoder_texts_total",
            "Texts for the sentence encoder: hits of its cache, misses, late, when full, failed.",
            ("outcome",),
        )
        self._requests: dict[tuple[str, str, int], Counter] = {}
        self._attempts: dict[tuple[str, str, str], Counter] = {}

    def answered(self, api: str, model: str, status: int) -> None:
        """Count an answered request; ``model`` is "" where it is not a configured one."""
        key = (api, model, status)
        counter = self._requests.get(key)
        if counter is None:
            counter = self._requests[key] = self.requests.at(api, model, str(status))
        counter.add()

    def attempted(self, model: str, endpoint: str, result: str) -> None:
        """Count an attempt."""
        key = (model, endpoint, result)
        counter = self._attempts.get(key)
        if counter is None:
            counter = self._attempts[key] = self.attempts.at(model, endpoint, result)
        counter.add()
