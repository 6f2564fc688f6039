"""``apportion profiles``: what endpoints can be modelled by, and what a profile says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from apportion.simulate.profile import Profile

_WORDS: Final = {
    "ttft_s": "first token",
    "token_s": "each token",
    "tpot_s": "each token",
    "prompt_s": "prompts",
    "mixed_s": "prompt into an answer",
    "unseen_s": "settings never fitted",
    "layers_s": "layers",
    "prefill_attention_s": "attention of prompts",
    "decode_attention_s": "attention of answers",
    "rows": "measurements fitted",
    "requests": "requests measured",
    "seconds": "seconds of measuring",
    "ended": "measuring ended",
    "slots": "number of slots is",
}
"""What errors and facts of profiles are called."""


@click.group("profiles", invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """List and show the profiles that endpoints are modelled by (`profile` of an endpoint, for `apportion replay`).

    A profile is a name of the list, a .json file, or `roofline:MACHINE/MODEL/tpN`, computed from data sheets. Your own
    are made by `apportion calibrate`.
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_profiles)


@command.command("list")
@click.argument("words", nargs=-1)
@click.option("--json", "json_", is_flag=True, help="As JSON.")
def list_profiles(words: tuple[str, ...] = (), json_: bool = False) -> None:
    """List profiles, those whose names have all WORDS in them."""
    from apportion.cli.show import as_json, table
    from apportion.simulate.profile import read
    from apportion.simulate.profiles import SHIPPED, names

    found = {
        name: path for name, path in names().items() if all(word.lower() in name.lower() for word in words)
    }
    rows = [(name, path, read(path)) for name, path in sorted(found.items())]
    if json_:
        as_json([_summary(name, path, profile) for name, path, profile in rows])
        return
    if not rows:
        click.echo("No profile is called so. `apportion profiles list` shows all.", err=True)
        sys.exit(1)
    table(
        "Profiles",
        ("name", "from", "one token", "1024 tokens", "held-out error"),
        [
            (
                name,
                "the package" if path.parent == SHIPPED else str(path.parent),
                _ms(_seconds(profile, 1)),
                _ms(_seconds(profile, 1024)),
                ", ".join(f"{_WORDS.get(what, what)} {value:.0%}" for what, value in profile.error.items()),
            )
            for name, path, profile in rows
        ],
    )
    click.echo(
        "Others from data sheets: roofline:h100/llama3.1-8b/tp1 (`apportion profiles show` tells what is known)."
    )


@command.command("show")
@click.argument("name")
@click.option("--json", "json_", is_flag=True, help="The profile itself, as JSON.")
def show(name: str, json_: bool) -> None:
    """Show what NAME says: seconds of an iteration, memory, power, where it comes from and how right it is."""
    from apportion.cli.show import table
    from apportion.simulate.profiles import load

    profile = load(name)
    if json_:
        click.echo(profile.to_json().decode(), nl=False)
        return
    if profile.kind == "hosted":
        rows = [
            (
                "first token",
                f"{_ms(profile.ttft_s)} + {profile.ttft_s_per_token * 1e6:.1f} us a token of the prompt",
            ),
            ("its spread", f"log-normal, sigma {profile.ttft_sigma:g}"),
            ("rate", f"{profile.tokens_per_s:.1f} tokens/s, sigma {profile.rate_sigma:g}"),
        ]
    else:
        rows = _batch_rows(profile)
    rows += [
        (f"error of {_WORDS.get(what, what)}", f"{value:.1%} (on held-out measurements)")
        for what, value in profile.error.items()
    ]
    rows += [
        ("draws", f"{len(profile.draws)} (uncertainty of the fit)"),
        ("source", profile.source or "not said"),
    ]
    rows += [
        (_WORDS.get(key, key), str(value)) for key, value in profile.facts.items() if key != "efficiency"
    ]
    table(f"Profile {profile.name}", ("what", "value"), rows)
    if profile.kind == "batch":
        _curve(profile)


def _batch_rows(profile: Profile) -> list[tuple[str, str]]:
    watts = "unknown" if profile.prefill_w is None else f"{profile.prefill_w:.0f} W prompts"
    if profile.decode_w:
        watts += f", {profile.decode_w[0]:.0f} to {profile.decode_w[-1]:.0f} W answers"
    return [
        ("attention of prompts", f"{profile.prefill_attention_s * 1e9:.3g} ns a pair of tokens"),
        ("attention of answers", f"{profile.decode_attention_s * 1e6:.3g} us a token of context"),
        ("prompt among answers", f"{_ms(profile.mixed_s)} more"),
        ("overhead", f"{_ms(profile.before_s)} before, {_ms(profile.after_s)} after"),
        ("requests at once", str(profile.slots)),
        ("tokens an iteration", f"{profile.batch_tokens}, {profile.batching}"),
        (
            "memory",
            "unknown" if profile.kv_tokens >= 2**40 else f"keys and values of {profile.kv_tokens:,} tokens",
        ),
        ("devices", str(profile.devices)),
        ("power", watts),
        ("cold start", f"{profile.load_s:.0f} s" if profile.load_s else "unknown"),
    ]


def _curve(profile: Profile) -> None:
    """Seconds of an iteration by its tokens, with bars on a scale of logarithms."""
    import math

    from apportion.cli.show import table

    last = max(profile.tokens[-1], 16.0)
    sizes = [2.0**k for k in range(int(math.log2(last)) + 1)]
    seconds = [_seconds(profile, size) for size in sizes]
    low, high = math.log(max(min(seconds), 1e-9)), math.log(max(*seconds, 2e-9))
    table(
        "An iteration",
        ("tokens", "takes", "a token", ""),
        [
            (
                f"{size:.0f}",
                _ms(s),
                _ms(s / size),
                "█" * (1 + round(39 * (math.log(max(s, 1e-9)) - low) / (high - low)) if high > low else 1),
            )
            for size, s in zip(sizes, seconds, strict=True)
        ],
    )


def _summary(name: str, path: Path, profile: Profile) -> dict[str, Any]:
    return {
        "name": name,
        "path": str(path),
        "kind": profile.kind,
        "one_token_s": _seconds(profile, 1),
        "thousand_tokens_s": _seconds(profile, 1024),
        "devices": profile.devices,
        "error": profile.error,
        "source": profile.source,
    }


def _seconds(profile: Profile, tokens: float) -> float:
    if profile.kind == "hosted":
        return profile.ttft_s + tokens * profile.ttft_s_per_token
    return float(profile.seconds_of(tokens))


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
