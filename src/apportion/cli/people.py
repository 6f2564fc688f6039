"""What the commands for keys, teams and budgets share: the database opened, options turned into forms."""

from __future__ import annotations

import getpass
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import click

from apportion.cli.record import NoLedgerError
from apportion.cli.start import DEFAULT_FILE
from apportion.core.errors import ApportionError

if TYPE_CHECKING:
    import msgspec

    from apportion.serve.config.schema import Config, Key, Team
    from apportion.serve.forms import Known
    from apportion.serve.ledger.people import People

_Command = TypeVar("_Command", bound=Callable[..., object])

_PARTS: Final = {
    "limits": {"rpm": "requests_per_minute", "tpm": "tokens_per_minute", "parallel": "parallel"},
    "budget": {"usd": "usd", "tokens": "tokens"},
}
"""Options that are parts of one field."""
OWNER_CLEARS: Final = (
    *("models", "endpoints", "require"),
    *(name for part, options in _PARTS.items() for name in (part, *options)),
)
"""What of a key or team ``--clear`` can take away."""
_NOTHING: Final[dict[str, Any]] = {
    "models": None,
    "endpoints": None,
    "require": [],
    "team": None,
    "expires": None,
}
"""What such a field is then."""


class OptionError(ApportionError):
    """An option has a value that it cannot have."""

    code = "invalid_option"


class Opened(NamedTuple):
    """The people of a database, with the configuration that the proxy has (None: there is none here)."""

    people: People
    config: Config | None

    @property
    def merged(self) -> Config:
        """The configuration with what is in the database."""
        from apportion.serve.config.schema import Config
        from apportion.serve.keyring import merged

        return merged(self.config or Config(), self.people.snapshot())

    def known(self) -> Known:
        """The names that may be referred to."""
        from apportion.serve.forms import Known

        whole = self.merged
        return Known(self.config, {key.name for key in whole.keys}, whole.teams)

    def refuse_configured(self, kind: str, name: str) -> None:
        """What the configuration names cannot be made or changed here."""
        if self.config is None:
            return
        names = {
            "key": {key.name for key in self.config.keys},
            "team": set(self.config.teams),
            "budget": {budget.name for budget in self.config.all_budgets()},
        }
        if name in names[kind]:
            raise OptionError(
                f"The {kind} {name!r} is in the configuration file.",
                field="name",
                fix="Change it there and run `apportion reload`.",
            )


@contextmanager
def opened(ledger: str | None, file: str | None) -> Iterator[Opened]:
    """The database that ``--ledger`` and ``--config`` mean, made if it is not there yet."""
    from apportion.serve.config import reader, state
    from apportion.serve.ledger.database import Database
    from apportion.serve.ledger.entries import BankError
    from apportion.serve.ledger.people import People, UnreachableError

    config = None
    if file is not None or Path(DEFAULT_FILE).is_file():
        config = reader.load(file or DEFAULT_FILE)
    url = ledger or (state.default_url() if config is None else config.ledger_url())
    if url == "memory":
        raise NoLedgerError(
            "The keys are in the memory of the proxy.",
            field="ledger.url",
            fix="Ask it with an admin key (POST /apportion/keys), or set ledger.url to a file or database.",
        )
    try:
        database = Database(url)
    except BankError:
        raise UnreachableError(
            f"The database {state.shown(url)} does not answer.",
            field="ledger.url",
            fix="See that it runs, or name another with --ledger or --config.",
        ) from None
    try:
        yield Opened(People.of(database, None if config is None else config.auth.pepper), config)
    finally:
        database.dispose()


def actor() -> str:
    """Who the audit says it was."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):
        return "cli"


def hard_option(help: str) -> Callable[[_Command], _Command]:
    """``--soft`` and ``--hard``."""
    return click.option("--hard/--soft", default=None, help=help)


def clear_option(*names: str) -> Callable[[_Command], _Command]:
    """``--clear``, which takes away what no value can say."""
    return click.option(
        "--clear",
        multiple=True,
        type=click.Choice(names),
        help="Take this away, before anything else that is said is set.",
    )


def owner_options(command: _Command) -> _Command:
    """What keys and teams have in common: what they may use, spend and how fast."""
    for option in (
        click.option("--parallel", type=click.IntRange(1), help="Requests under way at once."),
        click.option("--tpm", type=click.IntRange(1), help="Tokens per minute."),
        click.option("--rpm", type=click.IntRange(1), help="Requests per minute."),
        hard_option("The budget is kept, or only raises prices and refuses nothing.  [default: hard]"),
        click.option("--time-zone", metavar="ZONE", help="Whose days, weeks and months they are."),
        click.option(
            "--window", help="Of the budget: day, week, month, forever or a duration.  [default: forever]"
        ),
        click.option("--tokens", type=click.IntRange(0), help="Budget: tokens per window."),
        click.option("--usd", type=click.FloatRange(0), help="Budget: dollars per window."),
        click.option(
            "--routing/--no-routing",
            default=None,
            help="Takes part in what is being tried, or is left out of it.",
        ),
        click.option(
            "--require", multiple=True, metavar="TAG", help="Only endpoints with this tag (these) may answer."
        ),
        click.option("--endpoint", "endpoints", multiple=True, help="Only this endpoint (these) may answer."),
        click.option("--no-models", is_flag=True, help="No model at all: for keys that only administer."),
        click.option("--model", "models", multiple=True, help="Only this model (these) may be used."),
    ):
        command = option(command)
    return command


def owner_fields(
    *,
    models: Sequence[str],
    no_models: bool,
    endpoints: Sequence[str],
    require: Sequence[str],
    routing: bool | None,
    usd: float | None,
    tokens: int | None,
    window: str | None,
    time_zone: str | None,
    hard: bool | None,
    rpm: int | None,
    tpm: int | None,
    parallel: int | None,
) -> dict[str, Any]:
    """The options of `owner_options` as fields of a form; those not given are left out."""
    fields = given(routing=routing)
    if models and no_models:
        raise OptionError("--model and --no-models exclude each other.", field="--no-models")
    if models or no_models:
        fields["models"] = list(models)
    if endpoints:
        fields["endpoints"] = list(endpoints)
    if require:
        fields["require"] = list(require)
    budget = given(usd=usd, tokens=tokens, window=window, time_zone=time_zone, hard=hard)
    if budget:
        fields["budget"] = budget
    limits = given(requests_per_minute=rpm, tokens_per_minute=tpm, parallel=parallel)
    if limits:
        fields["limits"] = limits
    return fields


def new_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """``fields`` of what is to be made. Raises `OptionError` for a budget without an amount."""
    if "budget" in fields:
        _check_amount(fields["budget"])
    return fields


def changed_fields(before: Key | Team, fields: dict[str, Any], clear: Collection[str]) -> dict[str, Any]:
    """A change of ``before`` as fields of a form: first what ``clear`` names is taken away, then ``fields`` are set.

    Of limits, tags and the budget those parts stay that are not named. Raises `OptionError`.
    """
    import msgspec

    taken = set(clear)
    wanted = {name: _NOTHING[name] for name in taken & _NOTHING.keys()} | fields
    for part, options in _PARTS.items():
        if part not in fields and taken.isdisjoint((part, *options)):
            continue
        whole = getattr(before, part)
        kept = {} if whole is None or part in taken else msgspec.structs.asdict(whole)
        for option in taken & options.keys():
            kept.pop(options[option], None)
        wanted[part] = kept | fields.get(part, {})
    if wanted.get("budget") == {}:
        wanted["budget"] = None
    elif "budget" in wanted:
        _check_amount(wanted["budget"])
    return wanted


def refuse_nothing(fields: dict[str, Any], clear: Collection[str]) -> None:
    """A change must change something."""
    if not fields and not clear:
        raise OptionError("There is nothing to change.", fix="Give at least one option; --help lists them.")


def _check_amount(budget: dict[str, Any]) -> None:
    if budget.get("usd") is None and budget.get("tokens") is None:
        fix = "Give --usd or --tokens; `set --clear budget` takes a budget away."
        raise OptionError("The budget has no amount.", field="--usd", fix=fix)


def given(**values: Any) -> dict[str, Any]:
    """Those that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def tags(pairs: Sequence[str]) -> dict[str, str]:
    """``NAME=VALUE`` options as an object."""
    found = {}
    for pair in pairs:
        name, mark, value = pair.partition("=")
        if not mark or not name:
            raise OptionError(f"{pair!r} is no tag.", field="--tag", fix="Write --tag NAME=VALUE.")
        found[name] = value
    return found


_S = TypeVar("_S", bound="msgspec.Struct")


def form(fields: dict[str, Any], type_: type[_S]) -> _S:
    """Fields as a form. Raises `OptionError`."""
    import msgspec

    try:
        return msgspec.convert(fields, type_)
    except msgspec.ValidationError as error:
        said, _, path = str(error).partition(" - at `$.")
        field = path.rstrip("`") or None
        raise OptionError(f"{field}: {said}." if field else f"{said}.", field=field) from None


def shown_limits(limits: dict[str, int | None]) -> str:
    """Rates in a few words."""
    words = {"requests_per_minute": "rpm", "tokens_per_minute": "tpm", "parallel": "parallel"}
    return ", ".join(f"{limits[name]} {word}" for name, word in words.items() if limits.get(name) is not None)


def shown_spending(budget: dict[str, Any] | None) -> str:
    """A key's or team's budget in a few words."""
    if budget is None:
        return ""
    amounts = [f"${budget['usd']:g}"] if budget["usd"] is not None else []
    amounts += [f"{budget['tokens']} tokens"] if budget["tokens"] is not None else []
    text = " and ".join(amounts)
    if budget["window"] != "forever":
        text += f" per {budget['window']}"
    return text if budget["hard"] else f"{text} (soft)"


def shown_names(names: Sequence[str] | None) -> str:
    """Allowed names; all of them where there is no list."""
    return "all" if names is None else ", ".join(names) or "none"


BALANCE_HEAD = ("budget", "for", "spent", "held", "left", "of", "begins again")


def balance_row(balance: dict[str, Any]) -> tuple[str, ...]:
    """A line of a table of what is left."""
    unit = "" if balance["resource"] == "usd" else f" {balance['resource']}"
    amounts = [
        f"${balance[name]}" if balance["resource"] == "usd" else f"{balance[name]}{unit}"
        for name in ("spent", "held", "left", "amount")
    ]
    return (balance["budget"], balance["subject"], *amounts, balance["begins_again"] or "")
