"""Callbacks: a POST to an address that a caller named, when their execution has ended.

Owns the way from a row that is due to one that was delivered or given up: the outbox. Refuses to know how a message is signed
and sent (`webhooks`). Invariants: a callback is recorded with its turn and becomes due with the turn's settlement, so that no
crash loses one; it is delivered at least once, with one id at every attempt; nobody's slow receiver keeps another tenant's
callbacks waiting for long.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog
from pydantic import SecretStr

from amplifier_api_server.control_plane.clock import Clock, Steadiness
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.egress.addresses import NotAllowed
from amplifier_api_server.control_plane.errors import encode
from amplifier_api_server.control_plane.secrets import SealBroken, Vault
from amplifier_api_server.control_plane.sessions.schemas import ExecutionView
from amplifier_api_server.control_plane.settings import Callbacks as CallbackSettings
from amplifier_api_server.control_plane.shares import share_of
from amplifier_api_server.control_plane.webhooks.sending import Attempt, Message, Schedule, Sender
from amplifier_api_server.control_plane.webhooks.signing import key_of
from amplifier_api_server.tenants.errors import Forbidden, Invalid, Unavailable
from amplifier_api_server.tenants.ids import SessionId, TenantId, TurnId, new_callback_id
from amplifier_api_server.tenants.lifecycle import CallbackStatus, TenantStatus
from amplifier_api_server.tenants.models import Turn, TurnCallback
from amplifier_api_server.tenants.repository import callbacks, tenants, turns

log = structlog.get_logger(__name__)

MAX_BODY_BYTES = 4 * 1024 * 1024
_CUT_RESPONSE_CHARS = 256 * 1024
_OF_A_TENANT = 8  # at once
_GRACE = timedelta(seconds=30)  # beyond an attempt's own time, until it counts as never told of
_MAX_SLEEP_SECONDS = 30.0
_BUSY_SLEEP_SECONDS = 1.0
_LEAST_SLEEP_SECONDS = 0.05
_TROUBLE_SLEEP_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class WantedCallback:
    """What a caller asks for; made by `Callbacks.wanted`, which has checked it."""

    url: str
    secret: SecretStr | None = None


class Callbacks:
    """Of all tenants. `run` is the outbox, one in a process."""

    def __init__(
        self, *, settings: CallbackSettings, database: Database, vault: Vault, sender: Sender, clock: Clock
    ) -> None:
        self._settings = settings
        self._database = database
        self._vault = vault
        self._sender = sender
        self._clock = clock
        self._steadiness = Steadiness(clock)
        self._followed_at: float | None = None  # when the clock was set that the rows' times follow
        self._schedule = Schedule(settings.retries, settings.retry_delay.total_seconds())
        self._woken = asyncio.Event()
        self._sending: dict[asyncio.Task[None], str] = {}  # -> tenants

    def wanted(self, url: str, secret: SecretStr | None) -> WantedCallback:
        """Raises Forbidden (`callbacks_disabled`), Invalid (`invalid_callback`)."""
        if not self._settings.enabled:
            raise Forbidden(
                "this server calls nobody back: its operator has switched that off", code="callbacks_disabled"
            )
        try:
            self._sender.check(url)
        except NotAllowed as error:
            raise Invalid(f"callback.url: {error}", code="invalid_callback") from error
        if secret is not None:
            try:
                key_of(secret)
            except ValueError as error:
                raise Invalid(f"callback.secret: it {error}", code="invalid_callback") from error
        return WantedCallback(url, secret)

    def row(self, tenant_id: TenantId, session_id: SessionId, turn_id: TurnId, asked: WantedCallback) -> TurnCallback:
        """To be added in the transaction that records the turn."""
        callback_id = new_callback_id()
        sealed = self._vault.seal(asked.secret, _owner(tenant_id, callback_id)) if asked.secret is not None else None
        return TurnCallback(
            id=callback_id,
            tenant_id=tenant_id,
            session_id=session_id,
            turn_id=turn_id,
            url=asked.url,
            secret=sealed,
            status=CallbackStatus.WAITING.value,
            created_at=self._clock.now(),
        )

    async def of_turn(self, tenant_id: TenantId, session_id: SessionId, turn_id: TurnId) -> TurnCallback | None:
        async with self._database.read() as db:
            return await callbacks.of_turn(db, tenant_id, session_id, turn_id)

    # The outbox.

    def __len__(self) -> int:
        """Those that are being sent."""
        return len(self._sending)

    def wake(self) -> None:
        """Something may be due."""
        self._woken.set()

    async def run(self) -> None:
        """Until cancelled; what is being sent then is sent again by whoever comes next."""
        try:
            while True:
                self._woken.clear()
                try:
                    seconds = await self._pass()
                except Unavailable:
                    seconds = _TROUBLE_SLEEP_SECONDS  # the database has told it
                except Exception:
                    log.exception("callbacks could not be looked for; they are looked for again")
                    seconds = _TROUBLE_SLEEP_SECONDS
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await self._woken.wait()
        finally:
            for task in self._sending:
                task.cancel()
            await asyncio.gather(*self._sending, return_exceptions=True)

    async def _pass(self) -> float:
        """Begin to send what is due, as far as there is room; how long there is nothing to do."""
        now = self._clock.now()
        await self._follow_clock(now)
        room = self._settings.max_concurrent - len(self._sending)
        if room <= 0:
            return _BUSY_SLEEP_SECONDS
        of_tenants = Counter(self._sending.values())
        most = min(_OF_A_TENANT, share_of(room))
        full = [tenant_id for tenant_id, count in of_tenants.items() if count >= most]
        async with self._database.read() as db:
            due = await callbacks.due_of_all_tenants(db, now, limit=room, but_of=full)
        for row in due:
            if of_tenants[row.tenant_id] < most:
                of_tenants[row.tenant_id] += 1
                self._begin(row)
        async with self._database.read() as db:
            next_at = await callbacks.next_of_all_tenants(db)
        if next_at is None:
            return _MAX_SLEEP_SECONDS
        ahead = (next_at - now).total_seconds()
        return min(max(ahead, _LEAST_SLEEP_SECONDS), _MAX_SLEEP_SECONDS) if ahead > 0 else _BUSY_SLEEP_SECONDS

    async def _follow_clock(self, now: datetime) -> None:
        """Where the clock was set back, what was put off for some minutes would wait until it has caught up."""
        if not self._steadiness.is_given() and self._followed_at != self._steadiness.set_at:
            self._followed_at = self._steadiness.set_at
            async with self._database.write() as db:
                await callbacks.bring_forward_of_all_tenants(db, now)

    def _begin(self, row: TurnCallback) -> None:
        task = asyncio.create_task(self._send(row), name=f"callback {row.id}")
        self._sending[task] = row.tenant_id
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._sending.pop(task, None)
        self.wake()

    async def _send(self, row: TurnCallback) -> None:
        """One attempt, and what comes of it. Never raises."""
        tenant_id = TenantId(row.tenant_id)
        again_at = self._clock.now() + self._settings.timeout + _GRACE
        try:
            async with self._database.write() as db:
                if not await callbacks.begin_attempt(db, tenant_id, row, again_at):
                    return
            if row.attempts > self._settings.retries:
                attempt = Attempt("the server ended in the middle of the last attempt", is_final=True)
            else:
                attempt = await self._attempt(tenant_id, row)
            await self._note(tenant_id, row, attempt, row.attempts + 1)
        except Exception:
            log.exception("a callback could not be sent; it is tried again", callback_id=row.id, request_id=row.turn_id)

    async def _attempt(self, tenant_id: TenantId, row: TurnCallback) -> Attempt:
        async with self._database.read() as db:
            tenant = await tenants.find(db, tenant_id)
            turn = await turns.find(db, tenant_id, SessionId(row.session_id), TurnId(row.turn_id))
        if tenant is None or tenant.status != TenantStatus.ACTIVE or turn is None:
            return Attempt("the tenant is not active", is_final=True)
        try:
            secret = self._vault.open(row.secret, _owner(tenant_id, row.id)) if row.secret is not None else None
        except SealBroken as error:
            log.error("a callback's secret can't be opened", callback_id=row.id, why=str(error))
            return Attempt(f"its secret can't be read: {error}", is_final=True)
        body = await asyncio.to_thread(body_of, turn)
        return await self._sender.send(row.url, Message(row.id, body, secret))

    async def _note(self, tenant_id: TenantId, row: TurnCallback, attempt: Attempt, attempts: int) -> None:
        now = self._clock.now()
        delay = None if attempt.is_final else self._schedule.delay_seconds(attempts, attempt.retry_after_seconds)
        told = {"callback_id": row.id, "request_id": row.turn_id, "tenant_id": tenant_id, "attempts": attempts}
        async with self._database.write() as db:
            if attempt.is_delivered:
                await callbacks.finish(db, tenant_id, row.id, CallbackStatus.DELIVERED, "", now)
            elif delay is None:
                await callbacks.finish(db, tenant_id, row.id, CallbackStatus.FAILED, attempt.problem, now)
            else:
                await callbacks.put_off(db, tenant_id, row.id, now + timedelta(seconds=delay), attempt.problem)
        if attempt.is_delivered:
            log.info("callback delivered", **told)
        elif delay is None:
            log.warning("a callback was given up", problem=attempt.problem, **told)
        else:
            log.info("a callback is tried again", problem=attempt.problem, in_seconds=round(delay), **told)


def body_of(turn: Turn) -> bytes:
    """The execution as `GET` shows it, as JSON. One that is too large for a callback is cut, and says so. Blocking."""
    view: dict[str, Any] = ExecutionView.of(turn).model_dump(mode="json", exclude={"callback"})
    body = encode(view)
    if len(body) <= MAX_BODY_BYTES:
        return body
    return encode(view | {"tool_calls": [], "response": view["response"][:_CUT_RESPONSE_CHARS], "is_cut": True})


def _owner(tenant_id: TenantId, callback_id: str) -> tuple[str, ...]:
    return ("callback", tenant_id, callback_id)
