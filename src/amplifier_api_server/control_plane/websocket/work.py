"""What each message of a known caller comes to. It translates; the operations' own handlers and services do the work.

Refuses nothing by itself but what is about the connection: that the caller may is asked of the gate, for each message anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any, Final, TypeAlias, cast

import orjson

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.idempotency.fingerprints import checked_key, fingerprint_of
from amplifier_api_server.control_plane.idempotency.service import RepeatedTurn, in_flight
from amplifier_api_server.control_plane.services import Services
from amplifier_api_server.control_plane.sessions.executions import OneShot
from amplifier_api_server.control_plane.sessions.frames import TurnEvent
from amplifier_api_server.control_plane.tenant_events.followers import START
from amplifier_api_server.control_plane.tenant_events.schemas import number_of, types_of
from amplifier_api_server.control_plane.websocket.answers import written
from amplifier_api_server.control_plane.websocket.calls import Answered, Asked, Calls, check_callable
from amplifier_api_server.control_plane.websocket.connection import Connection
from amplifier_api_server.control_plane.websocket.following import Followed
from amplifier_api_server.control_plane.websocket.messages import (
    Ask,
    Attach,
    EventsSubscribe,
    Execute,
    ExecuteOnce,
    Keyed,
    Message,
)
from amplifier_api_server.control_plane.websocket.table import FOLLOWED, IN_BACKGROUND, TRANSLATED, Translated
from amplifier_api_server.tenants.errors import DomainError, Malformed, NotFound
from amplifier_api_server.tenants.ids import SessionId, TurnId, new_session_id

_OWN: Final = frozenset({"type", "id", "idempotency_key"})
_LARGE: Final = frozenset({"exportSession", "listMessages"})  # as much as a whole transcript
_MAX_DIGITS: Final = 9  # of an event's number: more than any execution has

Executes: TypeAlias = Execute | ExecuteOnce


class Work:
    """One a process."""

    def __init__(self, services: Services, calls: Calls) -> None:
        self._uses = services
        self._calls = calls

    async def __call__(
        self, connection: Connection, principal: Principal, message: Message, given: dict[str, Any]
    ) -> None:
        """Carry one message out, and answer it. Raises DomainError: that is the answer."""
        match message:
            case Execute(background=False) | ExecuteOnce(background=False):
                await self._execute(connection, principal, message)
            case Attach():
                await self._attach(connection, principal, message)
            case EventsSubscribe():
                await self._subscribe(connection, principal, message)
            case Ask():
                await self._call(connection, principal, message)
            case Execute() | ExecuteOnce():
                await self._translated(connection, principal, message, given, IN_BACKGROUND[given["type"]])
            case _:
                await self._translated(connection, principal, message, given, TRANSLATED[given["type"]])

    async def _translated(
        self,
        connection: Connection,
        principal: Principal,
        message: Message,
        given: Mapping[str, Any],
        one: Translated,
    ) -> None:
        of_path = {name: given[name] for name in one.path}
        params = of_path | {name: given[name] for name in one.query if name in given}
        body = {name: value for name, value in given.items() if name not in params and name not in _OWN}
        answered = await self._asked(
            connection, principal, Asked(one.operation, params, body or None, _key_of(message))
        )
        members = orjson.loads(answered.body) if answered.body else {}
        connection.answer(one.answer, message.id, of_path | members)

    async def _call(self, connection: Connection, principal: Principal, message: Ask) -> None:
        check_callable(message.operation)
        answered = await self._asked(
            connection, principal, Asked(message.operation, message.params, message.body, _key_of(message))
        )
        data = orjson.Fragment(answered.body) if answered.body else None
        members = {"operation": message.operation, "status": answered.status, "data": data}
        connection.outbox.answer(written("result", message.id, members))

    async def _asked(self, connection: Connection, principal: Principal, asked: Asked) -> Answered:
        """What the operation answers. A client that reads none of its large answers has one or two of them held."""
        if asked.operation not in _LARGE:
            return await self._calls.ask(principal, asked)
        async with connection.large_answers:
            await connection.outbox.room()
            return await self._calls.ask(principal, asked)

    async def _execute(self, connection: Connection, principal: Principal, message: Executes) -> None:
        with connection.following.place():
            await self._calls.enter(principal, FOLLOWED[message.type])
            followed, status = await self._executed(principal, message)
            connection.following.demand_not_attached(followed.request_id)
            told = {"session_id": followed.session_id, "request_id": followed.request_id, "status": status}
            connection.answer("execution.started", message.id, told)
            connection.following.execution(followed, message.id)

    async def _executed(self, principal: Principal, message: Executes) -> tuple[Followed, str]:
        """The execution, which is recorded and runs, or ran when its key was used first; and its status."""
        is_once = isinstance(message, ExecuteOnce)
        session_id = new_session_id() if isinstance(message, ExecuteOnce) else SessionId(message.session_id)
        if message.idempotency_key is None:
            return await self._launched(principal, session_id, message, None), "running"
        operation, params = FOLLOWED[message.type], {} if is_once else {"session_id": session_id}
        said = orjson.dumps(message.model_dump(mode="json", include={"prompt", "callback", "profile", "context"}))
        fingerprint, key = fingerprint_of(operation, params, b"", said), checked_key(message.idempotency_key)
        found = await self._uses.idempotency.begin_turn(principal, key, fingerprint, session_id, operation)
        if isinstance(found, RepeatedTurn):
            return await self._repeated(principal, found)
        try:
            return await self._launched(principal, found.session_id, message, found.turn_id), "running"
        except BaseException as error:
            await asyncio.shield(found.did_not_run(error))
            raise

    async def _launched(
        self, principal: Principal, session_id: SessionId, message: Executes, turn_id: TurnId | None
    ) -> Followed:
        session: SessionId | OneShot = session_id
        if isinstance(message, ExecuteOnce):
            session = OneShot(session_id, message.profile, message.context)
        asked = message.callback
        callback = self._uses.callbacks.wanted(asked.url, asked.secret) if asked is not None else None
        launched = await self._uses.executions.launch(principal, session, message.prompt, turn_id, callback=callback)
        return Followed(session_id, launched.turn.id, _closable(launched.events()), launched.leave)

    async def _repeated(self, principal: Principal, found: RepeatedTurn) -> tuple[Followed, str]:
        try:
            row = await self._uses.sessions.execution(principal.tenant_id, found.session_id, found.turn_id)
        except NotFound as error:
            raise in_flight(found.turn_id) from error
        return self._watched(principal, found.session_id, found.turn_id, 0), row.status

    def _watched(self, principal: Principal, session_id: SessionId, turn_id: TurnId, after: int) -> Followed:
        events = self._uses.executions.watch(principal, session_id, turn_id, after)
        return Followed(session_id, turn_id, _closable(events))

    async def _attach(self, connection: Connection, principal: Principal, message: Attach) -> None:
        session_id, turn_id = SessionId(message.session_id), TurnId(message.request_id)
        with connection.following.place():
            connection.following.demand_not_attached(turn_id)
            await self._calls.enter(principal, "streamExecution")
            after = _number(message)
            if self._uses.executions.live(principal.tenant_id, session_id, turn_id) is None:
                await self._uses.sessions.execution(principal.tenant_id, session_id, turn_id)
            connection.following.demand_not_attached(turn_id)
            connection.answer("attached", message.id, {"session_id": session_id, "request_id": turn_id})
            connection.following.execution(self._watched(principal, session_id, turn_id, after), message.id)

    async def _subscribe(self, connection: Connection, principal: Principal, message: EventsSubscribe) -> None:
        with connection.following.place():
            connection.following.demand_not_subscribed()
            await self._calls.enter(principal, "streamEvents")
            place = number_of(message.after, "after") if message.after is not None else START if message.start else None
            types = types_of(",".join(message.types)) if message.types else None
            follower = await self._uses.followers.open(principal, place, types)
            try:
                connection.following.demand_not_subscribed()
            except DomainError:
                follower.close()
                raise
            connection.answer("events.subscribed", message.id, {})
            connection.following.tenant(follower, message.id)


def _closable(events: AsyncIterator[TurnEvent]) -> AsyncGenerator[TurnEvent, None]:
    """What `executions` gives are generators: who stops reading closes them."""
    return cast("AsyncGenerator[TurnEvent, None]", events)


def _key_of(message: Message) -> str | None:
    return message.idempotency_key if isinstance(message, Keyed) else None


def _number(message: Attach) -> int:
    """The number in an event's id, which is this execution's. Raises Malformed."""
    if message.after is None:
        return 0
    owner, _, number = message.after.rpartition(":")
    if owner != message.request_id or not number.isdecimal() or len(number) > _MAX_DIGITS:
        raise Malformed(f"after should be {message.request_id}:N, an event's id", code="invalid_event_id")
    return int(number)
