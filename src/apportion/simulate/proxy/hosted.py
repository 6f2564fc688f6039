"""Somebody else's machines: without a queue that we could fill, as fast for the thousandth request as for the first."""

from __future__ import annotations

import math
from collections.abc import Sequence

from apportion.simulate.engine import Done, Progress
from apportion.simulate.profile import Profile


def come(done: Done, now_s: float) -> int:
    """Tokens of an answer that have come by ``now_s``: the first, and the others at an even pace."""
    if now_s < done.first_token_s:
        return 0
    spread_s = done.finish_s - done.first_token_s
    share = min(1.0, (now_s - done.first_token_s) / spread_s) if spread_s else 1.0
    return 1 + int(share * (done.tokens - 1))


class Hosted:
    """Answers each request by itself: first token and pace are log-normal round the profile's medians. The draws come
    with the request, so that two scenarios meet the same luck. As `engine.Engine`, as far as a fleet asks, but that
    `submit` tells at once what becomes of the request, and nothing ever happens by itself.
    """

    __slots__ = ("_factor", "_profile", "_under_way", "busy_s", "iterations")

    next_s = math.inf

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._factor = 1.0
        self._under_way: dict[int, Done] = {}
        self.iterations = 0
        self.busy_s = 0.0

    def submit(
        self,
        now_s: float,
        request: int,
        prompt_tokens: int,
        output_tokens: int,
        cached_tokens: int = 0,
        draws: Sequence[float] = (0.0, 0.0),
    ) -> Done:
        """A request: its times are known at once."""
        profile = self._profile
        wait_s = profile.ttft_s + profile.ttft_s_per_token * (prompt_tokens - cached_tokens)
        wait_s *= math.exp(profile.ttft_sigma * draws[0]) * self._factor
        gap_s = 0.0
        if profile.tokens_per_s > 0.0:
            gap_s = self._factor / (profile.tokens_per_s * math.exp(profile.rate_sigma * draws[1]))
        started_s = now_s + profile.before_s
        first_s = started_s + wait_s
        more = max(0, output_tokens - 1)
        done_s = first_s + more * gap_s
        done = self._under_way[request] = Done(
            request,
            started_s,
            first_s + profile.after_s,
            done_s + profile.after_s,
            gap_s if more else 0.0,
            0,
            done_s - started_s,
            math.nan,
            max(1, output_tokens),
        )
        return done

    def advance(self, until_s: float) -> list[Done]:
        """Nothing happens by itself."""
        return []

    def left(self, done: Done) -> None:
        """A request has been answered."""
        if self._under_way.pop(done.request, None) is not None:
            self.busy_s += done.server_s

    def progress(self, now_s: float, request: int) -> Progress:
        """How far an answer has come."""
        done = self._under_way[request]
        tokens = come(done, now_s)
        return Progress("decode" if tokens else "prefill", tokens, tokens, done.tokens - tokens)

    def cancel(self, now_s: float, request: int) -> Done | None:
        """A request is not wanted any more; what its client has by now."""
        if request not in self._under_way:
            return None
        tokens = self.progress(now_s, request).tokens
        done = self._under_way.pop(request)
        return done._replace(finish_s=now_s, tokens=tokens, server_s=max(0.0, now_s - done.started_s))

    def stop(self, now_s: float) -> list[Done]:
        """It is gone: the requests lost, and what their clients have by now."""
        lost = [self.cancel(now_s, request) for request in sorted(self._under_way)]
        return [done for done in lost if done is not None]

    def start(self, now_s: float) -> None:
        """It is there again."""

    def slow(self, now_s: float, factor: float) -> None:
        """Requests from now on take ``factor`` times as long."""
        self._factor = factor

    def unused_j(self, now_s: float) -> float:
        """Nobody tells."""
        return math.nan
