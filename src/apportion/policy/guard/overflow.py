"""Recognises requests that make a model run on, from how long a tenant's answers were, and bounds them."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, final

from apportion.core.errors import SavedStateError
from apportion.core.features import Features
from apportion.core.guard import Action, Guard, StreamWatch, Verdict
from apportion.core.method import Constraint, Interval, Kind, OneOf
from apportion.policy.guard._history import History
from apportion.policy.guard._watch import Watch

BRIEF = (
    "Answer as briefly as the question allows. Do not repeat yourself, and leave out what was not asked for."
)
"""The reminder; BenchOverflow finds that a fixed one shortens the tails of most models."""
_MOST_TENANTS = 512
_FREE = 20
"""Of the answers, one in so many is not stopped by what was learned from others: only so is it seen which of those
that would be stopped end by themselves. It then stands for all of them."""
_LEAST_TOKENS = 64
"""Shorter answers, and shorter calm, are left alone: little can be saved."""


@final
class Overflow(Guard):
    """Recognises requests that make a model run on, from how long a tenant's answers were, and bounds them.

    Plain requests can make a model write without end ("list all ...", "explain every word", "never stop") [1]_.
    For every tenant and model, the odds that an answer has ``limit_tokens`` or more are learned online from the
    request's lexical features. A request is flagged when its odds exceed those of all but ``alpha`` of the last
    thousand ordinary requests, so that at most that share of ordinary traffic is flagged, whatever the
    model is worth (conformal, [3]_).

    Answers are watched as they come, for a model may be kept from ending them [2]_. Four signs stop one: it
    repeats itself; it is longer than the conformal bound for such a request (a length predicted from its features,
    and what answers that ended by themselves had beyond it); and, where log probabilities come with the tokens:
    the end of the text was the likeliest continuation and was not taken, so often that this happens by itself with
    a probability of ``alpha / 2`` at most (a test martingale, [4]_); or the model was sure of every token
    for longer than in all but ``alpha / 2`` of its answers.

        flag  iff  odds(x) > conformal (1 - alpha) quantile of odds of ordinary requests
        stop  iff  repetition, circles;
              or   log(1 + tokens / slack) > prediction(x) + conformal (1 - alpha / 2) quantile of what was beyond it;
              or   sum of -log(1 - p_end), where p_end is greatest, > log(2 / alpha);
              or   c = max(0, c + 1 - surprise / 0.1 nats) > its conformal (1 - alpha / 2) quantile

    Parameters
    ----------
    action
        What becomes of a flagged request: "brief" asks for a short answer, "cap" does so and also limits the output,
        "refuse" refuses it, "pass" lets it pass (only re-priced, and shown).
    limit_tokens
        An answer of so many tokens over-generates.
    alpha
        The share of ordinary requests that may be flagged, in the long run; 0.005 leaves room below 1%.
    cap_tokens
        The most output tokens of a capped request; None: ``limit_tokens``.
    let_through
        Of the flagged requests, one in so many passes all the same, so that it is seen whether they still run on.
    note
        The reminder to be brief.
    slack
        How many times the bound of its length an answer may have before it is stopped; above 1 it leaves room for a
        change of the traffic, which the bound follows late.
    repeat_tokens
        Tokens of exact repetition after which an answer is stopped.
    loop_tokens
        Words in which hardly any sequence is new after which an answer is stopped.
    logprobs
        Whether log probabilities are asked for where the client did not, and kept from it: only for chat completions
        that go to the endpoint as they come, and only where the endpoint has them (many reasoning models refuse).

    Complexity
    ----------
    O(d) per request and per answer for d features (some 30 microseconds for 60), O(1) per character of an answer;
    memory is five lists of a thousand numbers and eight of d for each of the 512 tenants and models seen last.

    Notes
    -----
    Nothing is shared between tenants, so a new one is not flagged before it has had about 1 / alpha ordinary
    answers and ten that over-generate. What a flagged request would have taken is not seen once it is acted on: of
    such an answer only an excess is learned, and those let through stand for the others; but one that ended by
    itself, no longer than usual, counts as ordinary whatever was done. The bounds hold while
    ordinary requests keep coming from the same distribution; they follow over a thousand of them. One answer in
    twenty is not held to what was learned from others, and stands for all: what ends by itself was ordinary,
    however long. "factor" re-prices a flagged request at its expected length over the usual one.

    The wish to end is judged only where the request leaves the model its choice: temperature at most 1, no grammar,
    schema or tools. Its bound then holds for samplers that cut off the unlikely (top-k, top-p, min-p), for
    they make the likeliest likelier. Servers that report probabilities after a bias hide it (llama.cpp's are from
    before).

    See Also
    --------
    guard/repetition : only watches answers.

    References
    ----------
    .. [1] "BenchOverflow: Measuring Overflow in Large Language Models via Plain-Text Prompts." (2026)
       https://arxiv.org/search/?query=BenchOverflow&searchtype=title
    .. [2] K. Gao, Y. Bai, J. Gu, S. Xia, P. Torr, Z. Li, W. Liu (2024). "Inducing High Energy-Latency of Large
       Vision-Language Models with Verbose Images." ICLR 2024. arXiv:2401.11170
    .. [3] A. Angelopoulos, S. Bates (2021). "A Gentle Introduction to Conformal Prediction and
       Distribution-Free Uncertainty Quantification." arXiv:2107.07511
    .. [4] A. Ramdas, P. Grünwald, V. Vovk, G. Shafer (2023). "Game-Theoretic Statistics and Safe Anytime-Valid
       Inference." Statistical Science 38(4). arXiv:2210.01948

    Examples
    --------
    >>> from apportion.core import Features
    >>> guard = Overflow(action="cap", limit_tokens=500)
    >>> plain, endless = Features((0.2, 0.0)), Features((0.3, 1.0))
    >>> guard.inspect(endless, "team", "model", None).action
    'pass'
    >>> for n in range(600):
    ...     guard.learn(plain, "team", "model", 80.0 + n % 7)
    ...     if n % 10 == 0:
    ...         guard.learn(endless, "team", "model", 2000.0)
    >>> verdict = guard.inspect(endless, "team", "model", None)
    >>> verdict.action, verdict.max_tokens, guard.inspect(plain, "team", "model", None).action
    ('cap', 500, 'pass')
    >>> guard.inspect(endless, "another team", "model", None).action
    'pass'
    """

    constraints: ClassVar[Mapping[str, Constraint]] = {
        "action": OneOf("brief", "cap", "refuse", "pass"),
        "limit_tokens": Interval(int, 1),
        "alpha": Interval(float, 0.0025, 0.5),
        "cap_tokens": Interval(int, 1) | Kind(type(None)),
        "let_through": Interval(int, 2),
        "note": Kind(str),
        "slack": Interval(float, 1.0),
        "repeat_tokens": Interval(int, 20),
        "loop_tokens": Interval(int, 50),
        "logprobs": Kind(bool),
    }

    def __init__(
        self,
        *,
        action: Action = "brief",
        limit_tokens: int = 1000,
        alpha: float = 0.005,
        cap_tokens: int | None = None,
        let_through: int = 10,
        note: str = BRIEF,
        slack: float = 1.25,
        repeat_tokens: int = 300,
        loop_tokens: int = 250,
        logprobs: bool = False,
    ) -> None:
        self.action = action
        self.limit_tokens = limit_tokens
        self.alpha = alpha
        self.cap_tokens = cap_tokens
        self.let_through = let_through
        self.note = note
        self.slack = slack
        self.repeat_tokens = repeat_tokens
        self.loop_tokens = loop_tokens
        self.logprobs = logprobs
        self.start()

    def reset(self) -> None:
        """Know nobody."""
        self._histories: OrderedDict[tuple[str, str], History] = OrderedDict()
        self._acted: OrderedDict[tuple[str, str, tuple[float, ...]], int] = OrderedDict()

    def inspect(self, features: Features, tenant: str, model: str, max_tokens: int | None) -> Verdict:
        """Flag what is likelier to over-generate than all but ``alpha`` of ordinary requests."""
        x = features.lexical
        history = self._histories.get((tenant, model))
        if history is None or history.dimensions != len(x):
            return Verdict("pass")
        probability = history.probability(x)
        if not history.stands_out(x, self.alpha) or (
            max_tokens is not None and max_tokens < self.limit_tokens
        ):
            return Verdict("pass", probability)
        expected = math.expm1(min(max(history.log_length(x), 0.0), 12.0))
        if max_tokens is not None:
            expected = min(expected, max_tokens)
        usual = math.expm1(max(history.usual_log_length, 0.1))
        why = f"likelier to run on ({probability:.0%}) than {1 - self.alpha:.0%} of ordinary requests"
        factor = max(expected / usual, 1.0)
        if self.action == "pass":
            return Verdict("pass", probability, factor=factor, why=why)
        history.flagged += 1
        let_through = history.flagged % self.let_through == 0
        self._acted[tenant, model, x] = self.let_through if let_through else 0
        if len(self._acted) > 4096:
            self._acted.popitem(last=False)
        if let_through:
            return Verdict(
                "pass", probability, factor=factor, why=f"{why}; let through, to see what becomes of it"
            )
        if self.action == "refuse":
            return Verdict("refuse", probability, factor=factor, why=why)
        if self.action == "brief":
            return Verdict("brief", probability, note=self.note, factor=factor, why=why)
        cap = self.cap_tokens or self.limit_tokens
        if max_tokens is not None:
            cap = min(cap, max_tokens)
        return Verdict("cap", probability, cap, self.note, max(min(expected, cap) / usual, 1.0), why)

    def watch(
        self, tenant: str, model: str, expected_tokens: float | None, features: Features | None = None
    ) -> StreamWatch:
        """A watcher for one answer, which also knows how long such answers get here, and how calm they are."""
        alpha = self.alpha / 2.0
        history = self._histories.get((tenant, model))
        if history is None:
            return Watch(self.repeat_tokens, self.loop_tokens, false_ends=alpha)
        history.watched += 1
        free = history.watched % _FREE == 0
        most_calm = max(history.calm.bound(alpha), _LEAST_TOKENS)
        most_tokens = math.inf
        if features is not None and history.dimensions == len(features.lexical):
            bound = self.slack * history.most_tokens(features.lexical, alpha)
            most_tokens = max(bound, expected_tokens or 0.0, _LEAST_TOKENS)

        def heard_calm(calm: float) -> None:
            for _ in range(_FREE if calm > most_calm else 1):
                history.calm.add(calm)

        return Watch(
            self.repeat_tokens,
            self.loop_tokens,
            math.inf if free else most_tokens,
            false_ends=alpha,
            most_calm=math.inf if free else most_calm,
            heard_calm=heard_calm,
        )

    def learn(
        self, features: Features, tenant: str, model: str, output_tokens: float, *, censored: bool = False
    ) -> None:
        """Take in how long the answer was; of one that was acted on only that it ran on all the same."""
        if not 0.0 <= output_tokens < math.inf:
            return
        x = features.lexical
        weight = self._acted.pop((tenant, model, x), 1)
        key = (tenant, model)
        history = self._histories.get(key)
        if history is None or history.dimensions != len(x):
            history = self._histories[key] = History(len(x))
            if len(self._histories) > _MOST_TENANTS:
                self._histories.popitem(last=False)
        else:
            self._histories.move_to_end(key)
        if not censored:
            if math.log1p(output_tokens) <= history.usual_log_length:
                weight = 1  # as short as most, whatever was done about it: its request is seen to be ordinary
            stopped = output_tokens > self.slack * history.most_tokens(x, self.alpha / 2.0)
            history.ended(x, output_tokens, _FREE if stopped else 1)
        history.learn(x, output_tokens, self.limit_tokens, censored or not weight, max(weight, 1))

    def save(self) -> dict[str, Any]:
        """What is known of every tenant, as an object that JSON can carry."""
        histories = [[*key, history.save()] for key, history in self._histories.items()]
        acted = [[tenant, model, list(x), n] for (tenant, model, x), n in self._acted.items()]
        return {"method": type(self).__name__, "learned": {"histories": histories, "acted": acted}}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Continue from what `save` returned; raises `SavedStateError` if it was another method's."""
        learned = saved.get("learned")
        if saved.get("method") != type(self).__name__ or not isinstance(learned, Mapping):
            raise SavedStateError(
                f"The saved state is of {saved.get('method')!r}, not of 'Overflow'.", field="method"
            )
        if learned.keys() != {"histories", "acted"}:
            raise SavedStateError(
                f"The saved state of Overflow has {sorted(learned)}.",
                field="learned",
                fix="It was written by another version; start without it.",
            )
        self._histories = OrderedDict(
            ((tenant, model), History.loaded(history)) for tenant, model, history in learned["histories"]
        )
        self._acted = OrderedDict(((tenant, model, tuple(x)), n) for tenant, model, x, n in learned["acted"])

    @classmethod
    def examples(cls) -> Iterable[Mapping[str, Any]]:
        """Each action."""
        yield {"action": "cap", "limit_tokens": 200, "cap_tokens": 100}
        yield {"action": "refuse", "alpha": 0.05}
        yield {"action": "pass", "slack": 2.0, "logprobs": True}
