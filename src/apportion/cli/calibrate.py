"""``apportion calibrate``: measure an endpoint, fit its profile, save it."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import click

from apportion.cli.start import DEFAULT_FILE

if TYPE_CHECKING:
    from apportion.serve.config.schema import Config, Endpoint
    from apportion.serve.local import LocalEngine
    from apportion.simulate.calibrate import Calibrated, Heard, Known, Log

_LOCAL_BATCH_TOKENS = 512


class _Target(NamedTuple):
    """What to measure: an address, or an engine to start first."""

    name: str
    base_url: str
    model: str
    key: str | None
    hosted: bool
    config: Endpoint | None


@click.command("calibrate")
@click.argument("endpoint")
@click.option(
    "--config", "file", type=click.Path(dir_okay=False), help=f"Default: ./{DEFAULT_FILE}, if there."
)
@click.option("--model", help="The model's name there. Default: the endpoint's, or its first.")
@click.option(
    "--key", envvar="APPORTION_CALIBRATE_KEY", show_envvar=True, help="Key, where ENDPOINT is an address."
)
@click.option(
    "--kind",
    type=click.Choice(["auto", "batch", "hosted"]),
    default="auto",
    show_default=True,
    help="`batch`: an engine of yours, iteration by iteration. `hosted`: somebody else's, by rate.",
)
@click.option("--name", help="Name of the profile. Default: the endpoint's.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="File to write.")
@click.option("--max-seconds", type=click.FloatRange(min=1), default=120.0, show_default=True)
@click.option("--max-requests", type=click.IntRange(min=3), default=600, show_default=True)
@click.option(
    "--max-usd",
    type=click.FloatRange(min=0),
    help="Most it may cost. Needs the endpoint's prices in the file.",
)
@click.option(
    "--max-prompt-tokens",
    type=click.IntRange(min=16),
    default=2048,
    show_default=True,
    help="Longest prompt.",
)
@click.option(
    "--max-concurrency", type=click.IntRange(1, 512), help="Most requests at once. Default: its slots, or 16."
)
@click.option("--slots", type=click.IntRange(min=1), help="Requests it works on at once, if you know.")
@click.option(
    "--batch-tokens", type=click.IntRange(min=1), help="Tokens of an iteration at most, if you know."
)
@click.option(
    "--watts", type=click.FloatRange(min=0), help="Power while it works. Default: measured, where possible."
)
@click.option(
    "--clock",
    type=click.Choice(["wall", "cpu"]),
    default="wall",
    show_default=True,
    help="`cpu`: processor time of a `local` engine with one thread, for a machine that others use, too. Linux.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the prompts and their order.")
@click.option("--json", "json_", is_flag=True, help="The profile and the measurements as JSON.")
def command(
    endpoint: str,
    file: str | None,
    model: str | None,
    key: str | None,
    kind: str,
    name: str | None,
    out: Path | None,
    max_seconds: float,
    max_requests: int,
    max_usd: float | None,
    max_prompt_tokens: int,
    max_concurrency: int | None,
    slots: int | None,
    batch_tokens: int | None,
    watts: float | None,
    clock: str,
    seed: int,
    json_: bool,
) -> None:
    """Measure ENDPOINT (a name of apportion.yaml, or a base URL) and save its profile, for `apportion replay`.

    It streams prompts that nobody has sent before: alone and together, short and long. It ends when the time, the
    requests or the money is used up; Ctrl-C ends it sooner, and what was measured by then is fitted. An endpoint of
    kind `local` is started for the purpose.
    """
    from apportion.cli.show import as_json
    from apportion.simulate.calibrate import CalibrationError, Limits
    from apportion.simulate.profiles import directory

    config = _config(file)
    target = _target(endpoint, config, model, key, kind)
    entry = target.config
    if clock == "cpu" and (entry is None or entry.kind != "local" or sys.platform != "linux"):
        raise CalibrationError(
            f"The processor time of {endpoint} cannot be read.",
            field="clock",
            fix="Only that of an endpoint of kind `local` on Linux can.",
        )
    known = _known(entry, slots, batch_tokens, watts)
    if max_usd is not None and not target.hosted and entry is None:
        raise CalibrationError(
            "What an answer costs is not known.",
            field="max-usd",
            fix="Name an endpoint of apportion.yaml with a price.",
        )
    most = max_concurrency or (min(known.slots, 64) if known.slots else 16)
    if known.context_tokens is not None:
        max_prompt_tokens = min(max_prompt_tokens, max(16, known.context_tokens - 256))
    limits = Limits(prompt_tokens=max_prompt_tokens, concurrency=most, hosted=target.hosted, seed=seed)
    with _progress(f"Measuring {target.name}") as progress:
        log = asyncio.run(
            _measure(
                target, limits, max_seconds, max_requests, max_usd, _price(entry, max_usd), progress, clock
            )
        )
    label = name or re.sub(r"[^A-Za-z0-9._-]+", "-", target.name)
    done = _fitted(label, target, log, known, seed)
    there = file is not None or os.path.exists(DEFAULT_FILE)
    beside = Path(file or DEFAULT_FILE).parent / "profiles" if there else directory()
    path = out or beside / f"{label}.json"
    done.profile.save(path)
    if json_:
        as_json(
            {
                "profile": done.profile.name,
                "path": str(path),
                "error": done.profile.error,
                "ended": log.ended,
                "requests": log.requests,
                "seconds": log.seconds,
                "usd": log.usd,
                "settings": list(done.settings),
            }
        )
        return
    _show(done, log)
    click.echo(
        f"\nSaved as {path}. In {file or DEFAULT_FILE}, at the endpoint:\n\n"
        f"    profile: {_reference(path, label, Path(file or DEFAULT_FILE).parent)}"
    )


def _config(file: str | None) -> Config:
    from apportion.serve.config.default import default_config
    from apportion.serve.config.reader import load

    if file is None and not os.path.exists(DEFAULT_FILE):
        return default_config()
    return load(file or DEFAULT_FILE)


def _target(endpoint: str, config: Config, model: str | None, key: str | None, kind: str) -> _Target:
    from apportion.simulate.calibrate import CalibrationError

    if "://" in endpoint:
        hosted = kind == "hosted" or (kind == "auto" and not _near(endpoint))
        name = model or urlsplit(endpoint).hostname or "endpoint"
        return _Target(name, endpoint.rstrip("/"), model or "", key or _own_key(endpoint), hosted, None)
    known = config.endpoints
    entry = known.get(endpoint)
    if entry is None:
        raise CalibrationError(
            f"There is no endpoint {endpoint!r}.",
            field="endpoint",
            fix=f"The configuration has: {', '.join(known)}; or give a base URL.",
        )
    if entry.kind not in ("openai", "local"):
        raise CalibrationError(
            f"{endpoint} is of kind `{entry.kind}`, which does not speak the OpenAI API.",
            field="endpoint",
            fix="Measure it through a running proxy: apportion calibrate http://127.0.0.1:8080/v1 --model NAME.",
        )
    logical = next(
        (name for name, m in config.models.items() if any(t.endpoint == endpoint for t in m.endpoints)), ""
    )
    url = entry.base_url or ""
    hosted = kind == "hosted" or (kind == "auto" and entry.kind == "openai" and not _near(url))
    secret = key or (entry.api_key.reveal() if entry.api_key else None)
    return _Target(endpoint, url, model or entry.model or logical, secret, hosted, entry)


def _near(url: str) -> bool:
    """Whether an address is of this machine or a private network: then its engine is taken to be one's own."""
    host = urlsplit(url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or "." not in host or host.endswith((".local", ".internal"))
    return address.is_private or address.is_loopback


def _own_key(url: str) -> str | None:
    """What a proxy on this machine tells its own user in place of a key."""
    parts = urlsplit(url)
    if parts.hostname not in ("127.0.0.1", "localhost", "::1") or parts.port is None:
        return None
    from apportion.serve.control import local_key

    return local_key(parts.port)


def _known(entry: Endpoint | None, slots: int | None, batch: int | None, watts: float | None) -> Known:
    from apportion.simulate.calibrate import Known

    if entry is None:
        return Known(slots=slots, batch_tokens=batch, watts=watts)
    local = entry.kind == "local"
    return Known(
        slots=slots or entry.slots or (4 if local else None),
        batch_tokens=batch or (_LOCAL_BATCH_TOKENS if local else None),
        context_tokens=entry.context_tokens or (4096 if local else None),
        batching="slots" if local else None,
        usd_per_hour=entry.usd_per_hour,
        watts=watts if watts is not None else entry.watts,
    )


def _price(entry: Endpoint | None, max_usd: float | None) -> Callable[[Heard], float] | None:
    """Dollars of an answer, where the configuration has a table of prices."""
    from apportion.serve.config.schema import TokenPrices
    from apportion.simulate.calibrate import CalibrationError

    if entry is None or not isinstance(entry.price, TokenPrices):
        if max_usd is not None and not (
            entry is not None and (entry.kind == "local" or entry.price == "free")
        ):
            raise CalibrationError(
                "What an answer costs is not known.",
                field="max-usd",
                fix="Give the endpoint `price` in apportion.yaml, or bound it by --max-requests.",
            )
        return None
    prices = entry.price
    return lambda heard: (
        prices.request_usd
        + heard.prompt_tokens * prices.input_usd_per_mtok / 1e6
        + max(heard.output_tokens, len(heard.token_s)) * prices.output_usd_per_mtok / 1e6
    )


async def _measure(
    target: _Target,
    limits: Any,
    max_seconds: float,
    max_requests: int,
    max_usd: float | None,
    usd_of: Callable[[Heard], float] | None,
    progress: Callable[[float, str], None],
    clock_kind: str,
) -> Log:
    from apportion.cli._endpoint import StreamClient
    from apportion.simulate.calibrate import Bounds, Clock, Prompts, drive, plan
    from apportion.simulate.calibrate.meter import rapl

    engine: LocalEngine | None = None
    url, key, config = target.base_url, target.key, target.config
    client = None
    now: Callable[[], float] = time.perf_counter
    try:
        if config is not None and config.kind == "local":
            progress(0.0, "starting the engine")
            engine = _engine(target, config)
            await engine.start()
            url, key = f"{engine.address}/v1", engine.api_key
            if clock_kind == "cpu":
                now = _processor(engine.pid or 0)
        tls = config.tls if config is not None else None
        client = StreamClient(
            url,
            target.model,
            key,
            headers={n: v.reveal() for n, v in config.headers.items()} if config is not None else None,
            ca_file=tls.ca_file if tls else None,
            verify=tls.verify if tls else True,
            now=now,
        )
        clock = Clock()
        return await drive(
            plan(limits, clock),
            clock,
            client,
            Bounds(seconds=max_seconds, requests=max_requests, usd=max_usd, usd_of=usd_of),
            prompts=Prompts(limits.seed),
            progress=progress,
            joules=rapl(),
        )
    finally:
        if client is not None:
            client.close()
        if engine is not None:
            await engine.stop()


def _engine(target: _Target, config: Endpoint) -> LocalEngine:
    """The engine as the proxy would run it."""
    from apportion.serve.local import LocalEngine

    return LocalEngine(
        config.weights or "smollm2-135m-instruct",
        sha256=config.sha256,
        slots=config.slots or 4,
        context_tokens=config.context_tokens or 4096,
        threads=config.threads,
        alias=target.model or None,
    )


def _processor(pid: int) -> Callable[[], float]:
    """The clock of a process's processor time (the ids of such clocks are made of the process's, in Linux)."""
    clock = (~pid << 3) | 2
    return lambda: time.clock_gettime(clock)


def _fitted(label: str, target: _Target, log: Log, known: Known, seed: int) -> Calibrated:
    from datetime import UTC, datetime

    from apportion.simulate.calibrate import calibrated, calibrated_hosted

    when = datetime.now(UTC).strftime("%Y-%m-%d")
    source = f"Measured by `apportion calibrate` on {when}: {target.model or target.name}."
    if target.hosted:
        return calibrated_hosted(label, log, seed=seed, source=source)
    return calibrated(label, log, known, seed=seed, source=source)


def _reference(path: Path, label: str, beside: Path) -> str:
    """How apportion.yaml names the profile: by name where names are looked up, else by path."""
    from apportion.simulate.profiles import names

    found = names(beside).get(label)
    return label if found is not None and found.resolve() == path.resolve() else str(path)


def _show(done: Calibrated, log: Log) -> None:
    from apportion.cli.show import table
    from apportion.simulate.compare import BAD_FIT

    words = {
        "ttft_s": "first token",
        "token_s": "each token",
        "mixed_s": "prompt into an answer",
        "unseen_s": "settings never fitted",
    }
    rows = [
        (
            words.get(str(row["quantity"]), str(row["quantity"])),
            str(row["setting"]),
            str(row["times"]),
            f"{row['measured_s'] * 1e3:.1f} ms",
            f"{row['profile_s'] * 1e3:.1f} ms",
            f"{row['profile_s'] / row['measured_s'] - 1:+.1%}",
        )
        for row in done.settings
    ]
    table(
        f"Profile {done.profile.name}",
        ("what", "setting", "times", "measured", "profile", "difference"),
        rows,
    )
    error = ", ".join(f"{words.get(name, name)} {value:.1%}" for name, value in done.profile.error.items())
    why = {"done": "complete", "interrupted": "interrupted"}.get(log.ended, f"ended by {log.ended}")
    click.echo(
        f"{log.requests} requests in {log.seconds:.0f} s ({why}). Error on held-out measurements: {error}."
    )
    worst = max(done.profile.error.values(), default=0.0)
    if worst > BAD_FIT:
        click.echo(
            f"note: an error of {worst:.0%} is large, and rehearsals with this profile will be no better. Calibrate "
            "again when nothing else runs on this machine, for longer (--max-seconds), or by its processor time "
            "(--clock cpu, for `local` endpoints).",
            err=True,
        )
    facts = done.profile.facts
    if done.profile.kind == "batch":
        click.echo(
            f"Slots {done.profile.slots} ({facts['slots']}), {done.profile.batch_tokens} tokens an iteration, "
            f"{done.profile.batching}; energy {'known' if done.profile.prefill_w is not None else 'unknown'}."
        )


@contextmanager
def _progress(title: str) -> Iterator[Callable[[float, str], None]]:
    """A bar on standard error; away from a terminal one line."""
    if not sys.stderr.isatty():
        click.echo(f"{title} ...", err=True)
        yield lambda share, label: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from apportion.cli.show import console

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[now]}"),
        console=console(stderr=True),
        transient=True,
    ) as bars:
        task = bars.add_task(title, total=1.0, now="")
        yield lambda share, label: bars.update(task, completed=share, now=label)
