"""How fast and how hungry a machine is: what an iteration of its engine takes, and what it holds."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from apportion.core.errors import ApportionError

VERSION: Final = 1


class ProfileError(ApportionError):
    """A profile is not there, cannot be read, or has a value that no machine can have."""

    code = "profile"


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One engine on one machine (or one group of machines that works as one).

    An iteration is one forward pass over a batch: chunks of prompts (prefill) and one token for each request
    that is generating (decode). It takes

        seconds = T(new) + a * sum over chunks of n * (context + n / 2)
                  + d * sum over decoding requests of their context + r * (requests in the batch)
                  + x (where a chunk and a decoding request are in it)

    where ``new`` are all tokens of the batch, T is linear between the points (``tokens``, ``seconds``) and goes on with
    its last slope, a is ``prefill_attention_s`` (per pair of tokens), d is ``decode_attention_s`` (per token of
    context), r is ``request_s``, x is ``mixed_s``.
    """

    name: str
    tokens: tuple[float, ...] = (1.0,)
    seconds: tuple[float, ...] = (0.0,)
    prefill_attention_s: float = 0.0
    decode_attention_s: float = 0.0
    request_s: float = 0.0
    mixed_s: float = 0.0
    """Engines that pass prompts and generated tokens through the model one after the other read the weights twice."""
    before_s: float = 0.0
    """From the request's arrival to where the engine can begin (parsing, tokenising, network)."""
    before_s_per_token: float = 0.0
    """The same, for each token of the prompt."""
    after_s: float = 0.0
    """From a token's iteration to where the client has it."""
    batching: Literal["prefill_first", "chunked", "mixed", "decode_first", "static", "slots"] = (
        "prefill_first"
    )
    """How its engine fills an iteration, where nobody says otherwise (see `apportion.simulate.engine.Batching`)."""
    slots: int = 256
    """The most requests in a batch."""
    batch_tokens: int = 2048
    """The most tokens of an iteration."""
    kv_tokens: int = 2**40
    """Tokens whose keys and values fit into memory."""
    block_tokens: int = 16
    shared_tokens: int = 0
    """The beginning that all prompts have (the template of a chat) and that stays in memory: no prompt computes it."""
    kv_bytes_per_token: float = 0.0
    weights_bytes: float = 0.0
    load_s: float = 0.0
    """A cold start."""
    idle_w: float | None = None
    prefill_w: float | None = None
    """While an iteration has prompts in it."""
    decode_tokens: tuple[float, ...] = ()
    decode_w: tuple[float, ...] = ()
    """Power of an iteration that only decodes, by the number of requests in it; linear between the points."""
    devices: int = 1
    usd_per_hour: float | None = None
    error: Mapping[str, float] = field(default_factory=dict)
    """Mean absolute relative error of the fit, on measurements that were held out, by quantity."""
    draws: tuple[Mapping[str, Any], ...] = ()
    """Other values of the constants that explain the measurements as well (bootstrap): the uncertainty of the fit."""
    kind: Literal["batch", "hosted"] = "batch"
    """``batch``: as above. ``hosted``: somebody else's machines, without a queue that we could fill: the first token
    comes after ``ttft_s`` and ``ttft_s_per_token`` of the prompt (times a log-normal factor of ``ttft_sigma``), the
    others at ``tokens_per_s`` (``rate_sigma``)."""
    ttft_s: float = 0.0
    ttft_s_per_token: float = 0.0
    ttft_sigma: float = 0.0
    tokens_per_s: float = 0.0
    rate_sigma: float = 0.0
    source: str = ""
    """Where the numbers come from, with the licence of the data."""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name:
            raise _wrong("name", "is empty.", "Give it a name, for example h100-llama2-70b-tp8.")
        _points(self, "tokens", "seconds")
        if not self.tokens:
            raise _wrong("tokens", "has no point.", "Give at least one number of tokens with its seconds.")
        _points(self, "decode_tokens", "decode_w")
        for name in _AMOUNTS:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise _wrong(name, f"is {value!r}.", "It must be a finite number of zero or more.")
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise _wrong(name, f"is {getattr(self, name)!r}.", "It must be at least 1.")
        if self.kind == "hosted" and self.tokens_per_s <= 0:
            raise _wrong(
                "tokens_per_s", f"is {self.tokens_per_s!r}.", "A hosted endpoint has a positive rate."
            )
        for i, draw in enumerate(self.draws):
            for name in draw:
                if name not in _FIELDS or name in ("name", "draws", "error", "facts"):
                    raise _wrong(f"draws[{i}].{name}", "is no constant of a profile.", "Leave it out.")

    def seconds_of(
        self,
        new: ArrayLike,
        *,
        prefill_pairs: ArrayLike = 0.0,
        decode_context: ArrayLike = 0.0,
        requests: ArrayLike = 0.0,
        mixed: ArrayLike = False,
    ) -> NDArray[np.float64]:
        """Seconds of iterations, as the formula says: the reference that faster implementations are held to.

        All arguments broadcast: ``new`` tokens of the batch, ``prefill_pairs`` the sum of n * (context + n / 2) over
        chunks, ``decode_context`` the sum of contexts of decoding requests, ``requests`` in the batch, and whether it
        is ``mixed``.
        """
        return np.asarray(
            linear(new, self.tokens, self.seconds)
            + self.prefill_attention_s * np.asarray(prefill_pairs, np.float64)
            + self.decode_attention_s * np.asarray(decode_context, np.float64)
            + self.request_s * np.asarray(requests, np.float64)
            + self.mixed_s * np.asarray(mixed, np.float64)
        )

    def decode_watts(self, requests: ArrayLike) -> NDArray[np.float64]:
        """Power of iterations that decode for ``requests``; not a number where it is not known."""
        if not self.decode_tokens:
            return np.full(np.shape(requests), np.nan)
        return np.asarray(np.interp(np.asarray(requests, np.float64), self.decode_tokens, self.decode_w))

    def drawn(self, which: int | np.random.Generator) -> Profile:
        """This profile with constants that explain the measurements as well: one of ``draws``, by index or at random.

        Itself where there are no draws.
        """
        if not self.draws:
            return self
        index = int(which.integers(len(self.draws))) if isinstance(which, np.random.Generator) else which
        changed: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in self.draws[index % len(self.draws)].items()
        }
        return dataclasses.replace(self, draws=(), **changed)

    def scaled(self, factor: float) -> Profile:
        """The same machine, ``factor`` times as slow in all that the engine does."""
        if not (math.isfinite(factor) and factor > 0):
            raise _wrong("factor", f"is {factor!r}.", "It must be a positive number.")
        speeds: dict[str, Any] = {name: getattr(self, name) * factor for name in _SPEEDS}
        return dataclasses.replace(
            self,
            seconds=tuple(s * factor for s in self.seconds),
            **speeds,
            tokens_per_s=self.tokens_per_s / factor,
            draws=tuple(_scaled_draw(draw, factor) for draw in self.draws),
        )

    def to_json(self) -> bytes:
        """One JSON object with a line for each field; what has its default is left out, except for ``seconds``."""
        body: dict[str, Any] = {"apportion": "profile", "version": VERSION}
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if value != _default(each) or (each.name == "seconds" and self.kind == "batch"):
                body[each.name] = value
        lines = (b'  "%b": %b' % (name.encode(), msgspec.json.encode(value)) for name, value in body.items())
        return b"{\n" + b",\n".join(lines) + b"\n}\n"

    def save(self, path: Path) -> None:
        """Write it to ``path``, all or nothing; the folder is made where it is not there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(self.to_json())
            os.chmod(draft, 0o644)
            os.replace(draft, path)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise


def read(path: Path) -> Profile:
    """The profile in a file.

    Raises:
        ProfileError: naming the file and the field at fault.
    """
    try:
        return from_json(path.read_bytes(), str(path))
    except OSError as error:
        raise ProfileError(
            f"The profile {path} cannot be read: {error.strerror}.",
            field="profile",
            fix="Measure one with `apportion calibrate`, or see `apportion profiles`.",
        ) from None


def from_json(data: bytes, where: str = "the profile") -> Profile:
    """The profile that `Profile.to_json` wrote. Raises `ProfileError` as `read` does."""
    try:
        body = msgspec.json.decode(data, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise ProfileError(f"{where} is no JSON object: {error}.", field="profile") from None
    if body.pop("apportion", "profile") != "profile":
        raise ProfileError(
            f"{where} is another kind of file.", field="apportion", fix="It must be 'profile'."
        )
    version = body.pop("version", VERSION)
    if version != VERSION:
        raise ProfileError(
            f"{where} is of version {version!r}; this program reads {VERSION}.",
            field="version",
            fix="Calibrate again.",
        )
    for name in body:
        if name not in _FIELDS:
            near = difflib.get_close_matches(name, _FIELDS, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else "Leave it out."
            raise ProfileError(f"{where}: there is no field {name!r}.", field=name, fix=hint)
    try:
        profile = msgspec.convert(body, Profile)
    except ProfileError as error:
        raise ProfileError(f"{where}: {error.message}", field=error.field, fix=error.fix) from None
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, ProfileError):
            cause = error.__cause__
            raise ProfileError(f"{where}: {cause.message}", field=cause.field, fix=cause.fix) from None
        says, _, place = str(error).partition(" - at `$")
        name = place.strip("`.") or _missing(says)
        raise ProfileError(f"{where}: '{name}': {says}.", field=name) from None
    if profile.kind == "batch" and not body.keys() & _TAKES:
        raise ProfileError(
            f"{where}: 'seconds' is missing: nothing says how long an iteration of this machine takes.",
            field="seconds",
            fix="Measure it with `apportion calibrate ENDPOINT --name NAME`, or write 'tokens' and 'seconds'.",
        )
    return profile


def linear(x: ArrayLike, points: ArrayLike, values: ArrayLike) -> NDArray[np.float64]:
    """Linear between the points, constant before the first, with the last slope after the last."""
    at, xs, ys = (np.asarray(each, np.float64) for each in (x, points, values))
    inside = np.interp(at, xs, ys)
    if len(xs) < 2:
        return np.asarray(inside)
    slope = (ys[-1] - ys[-2]) / (xs[-1] - xs[-2])
    return np.asarray(inside + slope * np.maximum(at - xs[-1], 0.0))


_SPEEDS: Final = (
    "prefill_attention_s",
    "decode_attention_s",
    "request_s",
    "mixed_s",
    "ttft_s",
    "ttft_s_per_token",
)
_TAKES: Final = frozenset({"seconds", "prefill_attention_s", "decode_attention_s", "request_s", "mixed_s"})
"""Of a file of a ``batch`` one at least must be there: a machine that takes no time is a forgotten measurement."""
_AMOUNTS: Final = (
    *_SPEEDS,
    "shared_tokens",
    "before_s",
    "before_s_per_token",
    "after_s",
    "kv_bytes_per_token",
    "weights_bytes",
    "load_s",
    "idle_w",
    "prefill_w",
    "usd_per_hour",
    "ttft_sigma",
    "tokens_per_s",
    "rate_sigma",
)
_COUNTS: Final = ("slots", "batch_tokens", "kv_tokens", "block_tokens", "devices")
_FIELDS: Final = frozenset(each.name for each in dataclasses.fields(Profile))


def _wrong(name: str, says: str, fix: str) -> ProfileError:
    return ProfileError(f"'{name}' {says}", field=name, fix=fix)


def _points(profile: Profile, at: str, values: str) -> None:
    xs, ys = getattr(profile, at), getattr(profile, values)
    if len(xs) != len(ys):
        raise _wrong(values, f"has {len(ys)} values for {len(xs)} of '{at}'.", "Give one for each.")
    for name, numbers in ((at, xs), (values, ys)):
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            raise _wrong(name, f"is {list(numbers)!r}.", "All must be finite numbers of zero or more.")
    if any(b <= a for a, b in itertools.pairwise(xs)):
        raise _wrong(at, f"is {list(xs)!r}.", "The numbers must increase.")


def _default(each: dataclasses.Field[Any]) -> Any:
    if each.default_factory is not dataclasses.MISSING:
        return each.default_factory()
    return each.default


def _scaled_draw(draw: Mapping[str, Any], factor: float) -> dict[str, Any]:
    scaled = dict(draw)
    for name in draw.keys() & {*_SPEEDS}:
        scaled[name] = draw[name] * factor
    if "seconds" in draw:
        scaled["seconds"] = [s * factor for s in draw["seconds"]]
    if "tokens_per_s" in draw:
        scaled["tokens_per_s"] = draw["tokens_per_s"] / factor
    return scaled


def _missing(says: str) -> str:
    return says.partition("`")[2].partition("`")[0] or "profile"
