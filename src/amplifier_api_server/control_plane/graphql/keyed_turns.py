"""An execution that is begun with an Idempotency-Key, as an argument: the key's turn is its answer."""

from __future__ import annotations

import asyncio
from typing import Self

import orjson

from amplifier_api_server.control_plane.graphql.context import Context
from amplifier_api_server.control_plane.idempotency.fingerprints import checked_key, fingerprint_of
from amplifier_api_server.control_plane.idempotency.service import RepeatedTurn, Ticket, in_flight
from amplifier_api_server.control_plane.sessions.schemas import Execute
from amplifier_api_server.control_plane.sessions.settlement import ending_of_row
from amplifier_api_server.runtime.protocol import TurnResult, TurnStatus
from amplifier_api_server.tenants.errors import NotFound
from amplifier_api_server.tenants.ids import SessionId, TurnId, new_session_id


class KeyedTurn:
    """For as long as an execution is begun. Without a key it does nothing."""

    def __init__(self, context: Context, key: str | None, session_id: SessionId | None, body: Execute) -> None:
        """Without a `session_id`, one is to be made for it."""
        self._context = context
        self._key = key
        self._operation = "executeOnce" if session_id is None else "execute"
        self._params = {} if session_id is None else {"session_id": session_id}
        self.session_id = session_id or new_session_id()
        self._body = body
        self._ticket: Ticket | None = None
        self.id: TurnId | None = None  # what the execution is to be begun with
        self.repeated: TurnId | None = None  # what was begun with this key before

    async def __aenter__(self) -> Self:
        """Raises Invalid, Conflict."""
        if self._key is None:
            return self
        said = orjson.dumps(self._body.model_dump(mode="json", exclude_defaults=True, exclude={"callback"}))
        told = _callback_of(self._body)
        mark = fingerprint_of(self._operation, self._params, told, said)
        idempotency, who = self._context.services.idempotency, self._context.principal
        found = await idempotency.begin_turn(who, checked_key(self._key), mark, self.session_id, self._operation)
        self.session_id = found.session_id
        if isinstance(found, RepeatedTurn):
            self.repeated = found.turn_id
        else:
            self._ticket, self.id = found, found.turn_id
        return self

    async def __aexit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if self._ticket is not None and error is not None:
            await asyncio.shield(self._ticket.did_not_run(error))

    async def result(self) -> TurnResult:
        """How the execution of this key ended. Raises Conflict (`idempotency_in_flight`) while it has not."""
        assert self.repeated is not None, "the caller has looked"
        tenant_id = self._context.principal.tenant_id
        try:
            row = await self._context.services.sessions.execution(tenant_id, self.session_id, self.repeated)
        except NotFound as error:
            raise in_flight() from error  # the limits are asked first, then it is recorded
        if row.status == TurnStatus.RUNNING:
            raise in_flight(self.repeated)
        return ending_of_row(row).result


def _callback_of(body: Execute) -> bytes:
    """What tells two callbacks apart, secrets included: the mark is a hash. Without one, as other doors have it: nothing."""
    if body.callback is None:
        return b""
    secret = body.callback.secret
    return orjson.dumps([body.callback.url, secret.get_secret_value() if secret is not None else ""])
