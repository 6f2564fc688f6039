"""The admin API: keys, teams and budgets under ``/apportion/``, for admin keys; a key's own page for itself.

A body is JSON of one of the forms; what it makes is in the database and holds for every worker within a second, for
the one that answered at once. The database is asked in a thread.
"""

from __future__ import annotations

import asyncio
import functools
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl

import msgspec

from apportion.serve import errors
from apportion.serve.config.budgets import budgets_for
from apportion.serve.config.schema import Budget, Config, Key, Team
from apportion.serve.config.units import show_moment
from apportion.serve.forms import (
    BudgetChange,
    BudgetForm,
    FormError,
    KeyChange,
    KeyForm,
    Known,
    RotateForm,
    TeamChange,
    TeamForm,
    changed_budget,
    changed_key,
    changed_team,
    grace_s,
    new_budget,
    new_key,
)
from apportion.serve.keyring import Snapshot, merged
from apportion.serve.ledger.balances import Balance
from apportion.serve.ledger.people import (
    MissingError,
    People,
    PeopleError,
    StoredKey,
    TakenError,
    UnreachableError,
)
from apportion.serve.routes import Route, Visit
from apportion.serve.runtime import Runtime
from apportion.serve.shown import shown_balance, shown_budget, shown_key, shown_team

_S = TypeVar("_S", bound=msgspec.Struct)
_T = TypeVar("_T")

_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.*)`")
_MISSING: Final = re.compile(r"Object missing required field `(.*)`")
_BODY_BYTES: Final = 1 << 20
_AUDIT: Final = 1000
_THREADS: Final = 2
_WAITING: Final = 64
"""Requests that may wait for the database at once."""


class Admin:
    """The handlers of one worker. ``people`` is given as soon as the database is open."""

    def __init__(self, runtime: Callable[[], Runtime]) -> None:
        self.people: People | None = None
        self._runtime = runtime
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="admin")
        self._waiting = 0

    def routes(self) -> Iterator[Route]:
        """The part of the route table that is answered here."""
        yield Route("GET", "/apportion/keys", "admin", self._list_keys)
        yield Route("POST", "/apportion/keys", "admin", self._create_key)
        yield Route("GET", "/apportion/keys/self", "key", self._own_key)
        yield Route("GET", "/apportion/keys/{id}", "admin", self._get_key)
        yield Route("PATCH", "/apportion/keys/{id}", "admin", self._change_key)
        yield Route("DELETE", "/apportion/keys/{id}", "admin", self._delete_key)
        yield Route("POST", "/apportion/keys/{id}/rotate", "admin", self._rotate_key)
        yield Route("GET", "/apportion/teams", "admin", self._list_teams)
        yield Route("POST", "/apportion/teams", "admin", self._create_team)
        yield Route("GET", "/apportion/teams/{name}", "admin", self._get_team)
        yield Route("PATCH", "/apportion/teams/{name}", "admin", self._change_team)
        yield Route("DELETE", "/apportion/teams/{name}", "admin", self._delete_team)
        yield Route("GET", "/apportion/budgets", "admin", self._list_budgets)
        yield Route("POST", "/apportion/budgets", "admin", self._create_budget)
        yield Route("GET", "/apportion/budgets/{name}", "admin", self._get_budget)
        yield Route("PATCH", "/apportion/budgets/{name}", "admin", self._change_budget)
        yield Route("DELETE", "/apportion/budgets/{name}", "admin", self._delete_budget)
        yield Route("GET", "/apportion/audit", "admin", self._audit)

    async def refresh(self) -> None:
        """Take over what others have changed in the database, if anything has been."""
        people = self._open()
        if await self._asked(people.version) > self._runtime().people.version:
            await self._adopt(people)

    async def _adopt(self, people: People) -> None:
        snapshot = await self._asked(people.snapshot)
        runtime = self._runtime()
        if snapshot.version > runtime.people.version:
            runtime.adopt(snapshot)

    async def _asked(self, ask: Callable[..., _T], *args: Any, **named: Any) -> _T:
        """What the database says; its errors as answers to the client.

        It is asked in threads of its own: one that does not answer must not keep others waiting, such as those that
        look up the addresses of endpoints.
        """
        if self._waiting >= _WAITING:
            raise errors.OverloadedError("The database of keys is asked too much.", retry_after_s=1.0)
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, functools.partial(ask, *args, **named))
        except MissingError as error:
            raise errors.NotFoundError(error.message, field=error.field, fix=error.fix) from None
        except TakenError as error:
            raise errors.ConflictError(error.message, field=error.field, fix=error.fix) from None
        except UnreachableError as error:
            raise errors.LedgerUnavailableError(
                "The database of keys does not answer.", retry_after_s=1.0
            ) from error
        except (PeopleError, FormError) as error:
            raise errors.InvalidRequestError(error.message, field=error.field, fix=error.fix) from None
        finally:
            self._waiting -= 1

    def _open(self) -> People:
        if self.people is None:
            raise errors.LedgerUnavailableError("The database is not open.", retry_after_s=1.0)
        return self.people

    def _known(self) -> Known:
        config = self._runtime().config
        return Known(config, {key.name for key in config.keys}, config.teams)

    def _configured(self, kind: str, name: str) -> None:
        """What the configuration names can be neither made nor changed here."""
        config = self._runtime().configured
        names = {
            "key": {key.name for key in config.keys},
            "team": set(config.teams),
            "budget": {budget.name for budget in config.budgets},
        }
        if name in names[kind]:
            raise errors.ConflictError(
                f"The {kind} {name!r} is in the configuration file.",
                field="name",
                fix="Change it there and reload, or choose another name.",
            )

    # keys

    async def _list_keys(self, visit: Visit) -> None:
        stored = await self._asked(self._open().all_keys)
        now = time.time()
        found = [shown_key(key, now) for key in self._runtime().configured.keys]
        visit.send({"object": "list", "data": [*found, *(shown_key(each.key, now, each) for each in stored)]})

    async def _create_key(self, visit: Visit) -> None:
        people = self._open()
        now = time.time()
        key = _checked(lambda: new_key(_body(visit, KeyForm), now))
        self._configured("key", key.name)
        _checked(lambda: self._known().check_key(key))
        teams = self._runtime().configured.teams
        stored, secret = await self._asked(people.create_key, key, _actor(visit), teams=teams)
        await self._adopt(people)
        visit.send({**shown_key(stored.key, now, stored), "key": secret}, 201)

    async def _own_key(self, visit: Visit) -> None:
        """Whoever has a key sees what it may do and what is left; of others, nothing."""
        key = visit.key
        stored: StoredKey | None = None
        scopes = [f"key:{key.name}"] + ([f"team:{key.team}"] if key.team is not None else [])
        left: Sequence[Balance] = ()
        if self.people is not None:
            config = self._runtime().config
            wanted = [(budget, scope) for scope in scopes for budget in budgets_for(config, scope)]
            left = await self._asked(self.people.balances_of, wanted)
            try:
                stored = await self._asked(self.people.key, key.name)
            except errors.NotFoundError:
                pass  # one of the configuration
        shown = shown_key(key, time.time(), stored)
        models = self._runtime().models_of(key)
        visit.send({**shown, "usable_models": models, "budgets": [shown_balance(each) for each in left]})

    async def _get_key(self, visit: Visit) -> None:
        id = visit.names["id"]
        now = time.time()
        for key in self._runtime().configured.keys:
            if key.name == id:
                visit.send(shown_key(key, now))
                return
        stored = await self._asked(self._open().key, id)
        visit.send(shown_key(stored.key, now, stored))

    async def _change_key(self, visit: Visit) -> None:
        people = self._open()
        id = visit.names["id"]
        now = time.time()
        change = _body(visit, KeyChange)
        self._configured("key", id)
        known = self._known()

        def changed(before: Key) -> Key:
            after = changed_key(before, change, now)
            known.check_key(after)
            return after

        teams = self._runtime().configured.teams
        stored = await self._asked(people.change_key, id, changed, _actor(visit), teams=teams)
        await self._adopt(people)
        visit.send(shown_key(stored.key, now, stored))

    async def _rotate_key(self, visit: Visit) -> None:
        people = self._open()
        id = visit.names["id"]
        form = _body(visit, RotateForm) if visit.request.body else RotateForm()
        grace = _checked(lambda: grace_s(form))
        self._configured("key", id)
        stored, secret = await self._asked(people.rotate_key, id, grace, _actor(visit))
        await self._adopt(people)
        visit.send({**shown_key(stored.key, time.time(), stored), "key": secret})

    async def _delete_key(self, visit: Visit) -> None:
        people = self._open()
        id = visit.names["id"]
        self._configured("key", id)
        stored = await self._asked(people.delete_key, id, _actor(visit))
        await self._adopt(people)
        visit.send({"id": stored.id, "object": "apportion.key", "name": stored.key.name, "deleted": True})

    # teams

    async def _list_teams(self, visit: Visit) -> None:
        stored = await self._asked(self._open().all_teams)
        configured = self._runtime().configured.teams
        found = [shown_team(name, team, stored=False) for name, team in configured.items()]
        found += [shown_team(name, team) for name, team in stored.items() if name not in configured]
        visit.send({"object": "list", "data": found})

    async def _create_team(self, visit: Visit) -> None:
        people = self._open()
        form = _body(visit, TeamForm)
        self._configured("team", form.name)
        team = _checked(lambda: changed_team(Team(), form))
        _checked(lambda: self._known().check_team(form.name, team))
        await self._asked(people.create_team, form.name, team, _actor(visit))
        await self._adopt(people)
        visit.send(shown_team(form.name, team), 201)

    async def _get_team(self, visit: Visit) -> None:
        name = visit.names["name"]
        configured = self._runtime().configured.teams
        if name in configured:
            visit.send(shown_team(name, configured[name], stored=False))
            return
        stored = await self._asked(self._open().all_teams)
        if name not in stored:
            raise errors.NotFoundError(f"There is no team {name[:100]!r}.", field="name")
        visit.send(shown_team(name, stored[name]))

    async def _change_team(self, visit: Visit) -> None:
        people = self._open()
        name = visit.names["name"]
        change = _body(visit, TeamChange)
        self._configured("team", name)
        known = self._known()

        def changed(before: Team) -> Team:
            after = changed_team(before, change)
            known.check_team(name, after)
            return after

        team = await self._asked(people.change_team, name, changed, _actor(visit))
        await self._adopt(people)
        visit.send(shown_team(name, team))

    async def _delete_team(self, visit: Visit) -> None:
        people = self._open()
        name = visit.names["name"]
        self._configured("team", name)
        await self._asked(people.delete_team, name, _actor(visit))
        await self._adopt(people)
        visit.send({"object": "apportion.team", "name": name, "deleted": True})

    # budgets

    async def _list_budgets(self, visit: Visit) -> None:
        configured = self._runtime().configured
        snapshot = await self._asked(self._open().snapshot)
        names = _budget_names(configured)
        found = [
            shown_budget(budget, stored=budget.name not in names)
            for budget in merged(configured, snapshot).all_budgets()
        ]
        visit.send({"object": "list", "data": found})

    async def _create_budget(self, visit: Visit) -> None:
        people = self._open()
        budget = _checked(lambda: new_budget(_body(visit, BudgetForm)))
        self._configured("budget", budget.name)
        _checked(lambda: self._known().check_budget(budget))
        await self._asked(people.create_budget, budget, _actor(visit))
        await self._adopt(people)
        visit.send(shown_budget(budget), 201)

    async def _get_budget(self, visit: Visit) -> None:
        """A budget with its accounts: what was spent, what is left, when it begins again."""
        people = self._open()
        name = visit.names["name"]
        runtime = self._runtime()
        budget = next((each for each in runtime.config.all_budgets() if each.name == name), None)
        if budget is None:
            raise errors.NotFoundError(f"There is no budget {name[:100]!r}.", field="name")
        stored = name not in _budget_names(runtime.configured)
        found = await self._asked(people.balances, budgets=[name])
        visit.send(
            {**shown_budget(budget, stored=stored), "accounts": [shown_balance(each) for each in found]}
        )

    async def _change_budget(self, visit: Visit) -> None:
        people = self._open()
        name = visit.names["name"]
        change = _body(visit, BudgetChange)
        self._configured("budget", name)
        known = self._known()

        def changed(before: Budget) -> Budget:
            after = changed_budget(before, change)
            known.check_budget(after)
            return after

        budget = await self._asked(people.change_budget, name, changed, _actor(visit))
        await self._adopt(people)
        visit.send(shown_budget(budget))

    async def _delete_budget(self, visit: Visit) -> None:
        people = self._open()
        name = visit.names["name"]
        self._configured("budget", name)
        await self._asked(people.delete_budget, name, _actor(visit))
        await self._adopt(people)
        visit.send({"object": "apportion.budget", "name": name, "deleted": True})

    async def _audit(self, visit: Visit) -> None:
        query = dict(parse_qsl(visit.request.query))
        try:
            most = int(query.get("limit", "100"))
        except ValueError:
            most = 0
        if not 1 <= most <= _AUDIT:
            fix = f"Give a whole number from 1 to {_AUDIT}."
            raise errors.InvalidRequestError("The limit is no number of lines.", field="limit", fix=fix)
        found = await self._asked(self._open().audit, most)
        data = [
            {
                "at": show_moment(each.at_s),
                "actor": each.actor,
                "action": each.action,
                "object": each.object,
                "detail": each.detail,
            }
            for each in found
        ]
        visit.send({"object": "list", "data": data})


def _budget_names(configured: Config) -> set[str]:
    """Of all budgets that are not in the database, those of the proxy's own keys included."""
    return {budget.name for budget in merged(configured, Snapshot()).all_budgets()}


def _actor(visit: Visit) -> str:
    return f"key:{visit.key.name}"


def _checked(make: Callable[[], _T]) -> _T:
    try:
        return make()
    except FormError as error:
        raise errors.InvalidRequestError(error.message, field=error.field, fix=error.fix) from None


def _body(visit: Visit, form: type[_S]) -> _S:
    """The body as a form. Raises ``InvalidRequestError`` naming the field."""
    request = visit.request
    media = request.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if media != b"application/json" or b"content-encoding" in request.headers:
        raise errors.UnsupportedMediaTypeError(
            "The body is read as plain JSON only.",
            field="content-type",
            fix="Send application/json, unencoded.",
        )
    if len(request.body) > _BODY_BYTES:
        raise errors.BodyTooLargeError("The body is too large.", fix=f"Send at most {_BODY_BYTES} bytes.")
    try:
        return msgspec.json.decode(request.body, type=form)
    except msgspec.ValidationError as error:
        raise _wrong(str(error), form) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise errors.InvalidJSONError("The body is not valid JSON in UTF-8.") from None


def _wrong(message: str, form: type[msgspec.Struct]) -> errors.InvalidRequestError:
    said, _, path = message.partition(" - at `")
    field = path.rstrip("`").removeprefix("$").lstrip(".")
    for pattern, what in ((_MISSING, "is missing"), (_UNKNOWN, "does not exist")):
        match = pattern.fullmatch(said)
        if match is not None:
            name = f"{field}.{match[1]}" if field else match[1]
            known = ", ".join(form.__struct_fields__)
            fix = None if field else f"Fields: {known}."
            return errors.InvalidRequestError(f"The field {name[:100]!r} {what}.", field=name[:100], fix=fix)
    if not field:
        return errors.InvalidRequestError("The body must be a JSON object.")
    return errors.InvalidRequestError(f"The field {field[:100]!r}: {said}.", field=field[:100])
