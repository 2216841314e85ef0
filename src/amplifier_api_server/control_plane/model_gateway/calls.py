"""One model call: from a parsed request to its last byte, over as many attempts as it takes.

Owns the order of attempts: targets, tries, waits between them, and the call's end. Refuses to know which turn may call and
which model is meant: that is settled before. Invariants: nothing is tried again once bytes reached the sandbox; a call
takes no longer than `call_timeout`, waiting included; what the sandbox is told is the last failure.
"""

from __future__ import annotations

import asyncio
import secrets

import structlog

from amplifier_api_server.control_plane.model_gateway import failures
from amplifier_api_server.control_plane.model_gateway.answers import Receive, Refusal, Send, no_turn, unavailable
from amplifier_api_server.control_plane.model_gateway.attempt import Asking, Attempt, Means
from amplifier_api_server.control_plane.model_gateway.dialects import Dialect, Request
from amplifier_api_server.control_plane.model_gateway.failures import Failure, Passed
from amplifier_api_server.control_plane.model_gateway.outlet import Outlet
from amplifier_api_server.control_plane.model_gateway.resilience import retry_delay_seconds
from amplifier_api_server.control_plane.model_gateway.targets import Route, Target
from amplifier_api_server.control_plane.model_gateway.turns import CallUsage, MeteredTurn

__all__ = ["Means", "ModelCall"]

log = structlog.get_logger(__name__)


class ModelCall:
    """One call. `run` it once."""

    def __init__(self, means: Means, turn: MeteredTurn, dialect: Dialect, request: Request, route: Route) -> None:
        self._means = means
        self._turn = turn
        self._dialect = dialect
        self._request = request
        self._route = route
        self._call_id = "call_" + secrets.token_hex(16)
        self._attempts = 0
        self._attempt: Attempt | None = None  # the latest
        self._is_trying = False  # it is under way
        self._is_abandoned = False  # nobody wants the rest
        self._outlet: Outlet | None = None
        self._has_ended = asyncio.Event()
        self._deadline = asyncio.timeout(means.settings.call_timeout.total_seconds())

    # What a turn may do with it.

    def used_so_far(self) -> CallUsage | None:
        """See `turns.Call`."""
        return self._attempt.used_so_far() if self._attempt is not None else None

    def end(self, *, abort: bool) -> None:
        """See `turns.Call`. Between two attempts, and with a running count, nothing is to be learned by reading on."""
        self._is_abandoned = True
        if self._outlet is not None:
            self._outlet.is_abandoned = True
        may_learn = self._is_trying and self._attempt is not None and not self._attempt.knows_usage
        self._hurry(self._means.settings.drain.total_seconds() if may_learn and not abort else 0.0)

    async def ended(self) -> None:
        await self._has_ended.wait()

    def _hurry(self, seconds: float) -> None:
        """Bring the call's deadline forward."""
        when = asyncio.get_running_loop().time() + seconds
        now_at = self._deadline.when()
        if not self._has_ended.is_set() and now_at is not None and when < now_at and not self._deadline.expired():
            self._deadline.reschedule(when)

    # The call.

    async def run(self, receive: Receive, send: Send) -> None:
        """Answer the sandbox, whatever happens."""
        outlet = self._outlet = Outlet(send, self._dialect)
        if not self._means.turns.call_began(self._turn, self):
            await outlet.close(no_turn(), b"")
            return
        watcher = asyncio.create_task(self._watch(receive))
        told: Refusal | Passed | None = None
        try:
            try:
                async with self._deadline:
                    failure = await self._try_targets(outlet)
                    told = failure.told if failure is not None else None
            except TimeoutError:
                told = self._timed_out()
            except Exception:
                log.exception("model:call_failed", request_id=self._turn.turn_id, call_id=self._call_id)
                told = Refusal(500, "internal", "the gateway failed; it is logged")
                if self._attempt is not None:
                    self._attempt.outcome = "failed"
        finally:
            watcher.cancel()
            if self._attempt is not None:
                self._attempt.settle()
            self._end()
        last_words = self._attempt.last_words(told) if self._attempt and isinstance(told, Refusal) else b""
        await outlet.close(told, last_words)

    async def _watch(self, receive: Receive) -> None:
        """The body was read: what comes now is the sandbox hanging up."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self.end(abort=False)

    async def _try_targets(self, outlet: Outlet) -> Failure | None:
        """Each target in turn, until one answers or nothing more may be tried."""
        failure: Failure | None = None
        for target in self._route.targets:
            latest = await self._try_target(target, outlet)
            if latest is None:
                return None
            failure = latest if failure is None or latest.was_asked else failure
            if not latest.may_fall_back or outlet.has_begun or self._is_abandoned:
                break
        return failure

    async def _try_target(self, target: Target, outlet: Outlet) -> Failure | None:
        """Attempts at one target, with waits between them."""
        failure: Failure | None = None
        tried = 0
        while True:
            name, breakers = target.provider.name, self._means.breakers
            if not breakers.allows(name):
                return failure or failures.left_alone(name, breakers.retry_after_seconds(name))
            failure = await self._attempt_at(target)
            tried += 1
            if failure is None or not failure.may_retry or outlet.has_begun or self._is_abandoned:
                return failure
            delay = retry_delay_seconds(tried, failure.retry_after_seconds, settings=self._means.settings)
            if delay is None or not self._has_time_for(delay):
                return failure
            await asyncio.sleep(delay)

    async def _attempt_at(self, target: Target) -> Failure | None:
        assert self._outlet is not None
        self._attempts += 1
        # Each attempt has a line of its own in the ledger.
        call_id = self._call_id if self._attempts == 1 else f"{self._call_id}_{self._attempts}"
        asking = Asking(self._means, self._turn, self._dialect, self._request, self._outlet, self._end)
        self._attempt = attempt = Attempt(asking, target, call_id)
        self._is_trying = True
        breakers, name = self._means.breakers, target.provider.name
        verdict: failures.Verdict = "unknown"
        try:
            failure = await attempt.run()
            verdict = "works" if failure is None else failure.verdict
        finally:
            self._is_trying = False
            match verdict:
                case "works":
                    breakers.succeeded(name, self._turn.tenant_id)
                case "fails":
                    if breakers.failed(name, self._turn.tenant_id):
                        log.warning("model:provider_left_alone", provider=name)
                case _:
                    breakers.released(name)
        if failure is not None:
            attempt.settle()
        return failure

    def _has_time_for(self, seconds: float) -> bool:
        """Whether the call would still have time to do anything after a wait."""
        until = self._deadline.when()
        return until is not None and asyncio.get_running_loop().time() + seconds < until

    def _timed_out(self) -> Refusal:
        if self._attempt is not None:
            self._attempt.outcome = "abandoned"
        if self._is_abandoned:
            return no_turn()
        return unavailable(504, "the model call took longer than allowed")

    def _end(self) -> None:
        """Count the call out of its turn, once."""
        if not self._has_ended.is_set():
            self._means.turns.call_ended(self._turn, self)
            self._has_ended.set()
