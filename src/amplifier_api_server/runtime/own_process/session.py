"""A session in a process of its own, as the runtime's main process has it: opened, forwarded to, watched, ended.

Owns the way to it and what is said of its end. Refuses to know what runs in it: what it answers goes on as it comes.
Invariant: a turn that ran when the process ended is told failed, with why, before anybody who reads it is let go; the
process's end harms no other session.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from pydantic import BaseModel, ValidationError

from amplifier_api_server.runtime.checkpoint import NotDurableError, deliver
from amplifier_api_server.runtime.events import encoded
from amplifier_api_server.runtime.failures import BadRequest, Conflicting, Missing, Refused
from amplifier_api_server.runtime.gateway import Answer, Gateway, GatewayError, GatewayUnreachableError
from amplifier_api_server.runtime.http_server import MAX_BODY_BYTES, Request, Response
from amplifier_api_server.runtime.own_process.process import OwnProcess
from amplifier_api_server.runtime.protocol import (
    MAX_TURN_EVENTS_BYTES,
    Checkpoint,
    CheckpointAnswer,
    Claim,
    Failure,
    Health,
    OpenedSession,
    OpenSession,
    Path,
    TurnStatus,
    sse,
)
from amplifier_api_server.runtime.turn_port import Services

log = logging.getLogger(__name__)

_PINGS_IN_SILENCE = 3  # so often it is asked whether it lives, within the time that it may be silent
CLOSE_SECONDS = 2.5  # to end its turn and itself; the control plane waits 5 s
STOP_SECONDS = 1.5  # the runtime itself has less than two
EVENT_STREAM = "text/event-stream"
CODE = "module_failed"
_END_IS_SEEN_SECONDS = 1.0  # between a connection's end and its process's
_NUMBER = re.compile(rb"(?:^|\n)id: [^\n]*:(\d{1,9})\n")


@dataclass(slots=True)
class _Told:
    """A turn that runs there, and the highest number of an event of it that went out."""

    posted_at: float
    last_event: int = 0


@dataclass(slots=True)
class _Ends:
    """How its running turns were told ended after the process's own end."""

    answers: dict[str, CheckpointAnswer] = field(default_factory=dict)


class OwnSession:
    """Made by `open_own`."""

    def __init__(
        self, session_id: str, process: OwnProcess, services: Services, on_end: Callable[[OwnSession], None]
    ) -> None:
        self.session_id = session_id
        self._process = process
        self._services = services
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._client = Gateway(process.address)
        self._load_seconds = services.claim.module_load_seconds
        self._silence_seconds = services.claim.module_silence_seconds
        self._running: dict[str, _Told] = {}
        self._ends: asyncio.Future[_Ends] = self._loop.create_future()
        self._why = ""
        self._is_closing = False
        self._is_open = False
        self._following = asyncio.create_task(self._follow(), name=f"own process of {session_id}")
        self._watching: asyncio.Task[None] | None = None
        self._opened: OpenedSession | None = None

    @property
    def opened(self) -> OpenedSession:
        assert self._opened is not None, "open() comes first"
        return self._opened

    async def open(self, claim: Claim, body: OpenSession) -> None:
        """Raises Refused; the process has ended then."""
        try:
            async with asyncio.timeout(self._load_seconds):
                await self._ask("POST", Path.CLAIM, claim)
                path = Path.SESSION.format(session_id=self.session_id)
                self._opened = OpenedSession.model_validate_json(await self._ask("PUT", path, body))
        except TimeoutError:
            raise await self._did_not_open(f"the modules took longer than {self._load_seconds:g} s to load") from None
        except GatewayError:
            await asyncio.wait({self._process.ended}, timeout=_END_IS_SEEN_SECONDS)  # so that it says how it ended
            raise await self._did_not_open("") from None
        except ValidationError:
            raise await self._did_not_open("its process does not say what was opened") from None
        except BaseException:
            await self._end("")
            raise
        self._is_open = True
        self._watching = asyncio.create_task(self._watch(), name=f"watch of {self.session_id}")

    async def _did_not_open(self, why: str) -> BadRequest:
        await self._end(why)
        why = why or f"the session's process {self._process.how_it_ended}, while its modules were loaded"
        return BadRequest(CODE, why)

    @property
    def has_ended(self) -> bool:
        return self._process.ended.done()

    @property
    def running_turns(self) -> list[str]:
        return list(self._running)

    async def forward(self, request: Request, turn_id: str, *, starts: bool) -> Response:
        """What the session's process answers to a request about a turn, which may be the one that `starts` it."""
        told: _Told | None = None
        if starts and turn_id not in self._running:
            self._running[turn_id] = told = _Told(self._loop.time())
        try:
            response = await self._forward(request, turn_id)
        except GatewayError as error:
            if told is not None and isinstance(error, GatewayUnreachableError):
                del self._running[turn_id]  # it was not begun: whoever asked can have it elsewhere
            return await self._after_its_end(request, turn_id, error)
        # With its own result, or refused, it does not run (any more).
        if told is not None and response.stream is None:
            self._running.pop(turn_id, None)
        return response

    async def _forward(self, request: Request, turn_id: str) -> Response:
        async with AsyncExitStack() as stack:
            answer = await stack.enter_async_context(
                self._client.request(
                    request.method,
                    request.target,
                    body=request.body,
                    headers={"accept": request.headers.get("accept", "")},
                    idle_timeout_seconds=None,  # a model may take its time; the watch ends what hangs
                )
            )
            content_type = answer.headers.get("content-type", "application/json")
            if content_type != EVENT_STREAM:
                return Response(answer.status, await answer.read(MAX_BODY_BYTES), content_type)
            kept = stack.pop_all()
            return Response(answer.status, content_type=content_type, stream=self._events(kept, answer, turn_id))

    async def _events(self, kept: AsyncExitStack, answer: Answer, turn_id: str) -> AsyncGenerator[bytes, None]:
        """Whole frames as they come, and the one that ends the turn, whoever ends it."""
        async with kept:
            held = b""
            try:
                async for chunk in answer.chunks():
                    held += chunk
                    whole = held.rfind(b"\n\n") + 2
                    if whole > 1:
                        self._note(turn_id, held[:whole])
                        yield held[:whole]
                        held = held[whole:]
                    elif len(held) > MAX_TURN_EVENTS_BYTES:
                        raise ConnectionError("a frame that never ends")
            except GatewayError:
                pass
            else:
                self._running.pop(turn_id, None)
                return
        ends = await asyncio.shield(self._ends)
        if turn_id not in ends.answers:
            raise ConnectionResetError("the session's process has ended, and nobody could be told")
        yield self._last_frame(turn_id, ends.answers[turn_id])

    def _last_frame(self, turn_id: str, ended: CheckpointAnswer) -> bytes:
        return sse(turn_id, self._running[turn_id].last_event + 1, ended.event, encoded(ended.data))

    def _note(self, turn_id: str, frames: bytes) -> None:
        told = self._running.get(turn_id)
        if told is None:
            return
        found = _NUMBER.match(frames, max(frames.rfind(b"\nid: "), 0))
        if found is not None:
            told.last_event = max(told.last_event, int(found[1]))

    async def _after_its_end(self, request: Request, turn_id: str, error: GatewayError) -> Response:
        """To whom had no answer when the process ended."""
        await asyncio.wait({self._process.ended}, timeout=_END_IS_SEEN_SECONDS)
        if not self._process.ended.done():
            raise Conflicting(CODE, f"the session's process does not answer: {error}", status=503)
        if "/approvals" in request.path:
            raise Conflicting("approval_closed", f"the session's process has ended: {self._why}")
        ends = await asyncio.shield(self._ends)
        ended = ends.answers.get(turn_id)
        if ended is None:
            raise Missing("no_session", f"the session's process has ended: {self._why}; open it again")
        if EVENT_STREAM in request.headers.get("accept", ""):
            return Response(200, content_type=EVENT_STREAM, stream=_one(self._last_frame(turn_id, ended)))
        return Response(200, ended.result.model_dump_json(exclude_none=True).encode())

    async def close(self, failure: Failure | None = None) -> None:
        """Close the session in its process and end that, with all that it started. Idempotent."""
        self._is_closing = True
        if failure is not None:  # the whole runtime stops: it gets the signal that we got, and does as we do
            self._process.terminate()
            await asyncio.wait({self._process.ended}, timeout=STOP_SECONDS)
        elif not self._process.ended.done() and self._is_open:
            try:
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self._ask("DELETE", Path.SESSION.format(session_id=self.session_id), None)
            except (GatewayError, TimeoutError, Refused) as error:
                log.warning("a session's process did not close it: %s", error or "time-out")
        await self._end("it was closed")

    async def _end(self, why: str) -> None:
        self._why = self._why or why
        await self._process.end()
        if not self._following.done():
            await asyncio.wait({self._following}, timeout=1)

    async def _follow(self) -> None:
        """Until the process has ended; then say so, of the session and of its turn."""
        await asyncio.wait({self._process.ended})
        self._why = self._why or f"its process {self._process.how_it_ended}"
        if self._watching is not None:
            self._watching.cancel()
        self._on_end(self)
        await self._client.close()
        ends = _Ends()
        try:
            if self._is_open and not self._is_closing:
                log.warning("a session's process has ended: %s", self._why)
                for turn_id in list(self._running):
                    await self._tell(turn_id, ends)
        finally:
            self._ends.set_result(ends)

    async def _tell(self, turn_id: str, ends: _Ends) -> None:
        checkpoint = Checkpoint(
            session_id=self.session_id,
            request_id=turn_id,
            status=TurnStatus.FAILED,
            base=0,  # nothing is added to the transcript
            failure=Failure(code=CODE, detail=f"the session's own process ended in mid-turn: {self._why}"),
            last_event=self._running[turn_id].last_event,
        )
        try:
            ends.answers[turn_id] = await deliver(self._services.gateway, checkpoint)
        except NotDurableError as error:
            log.error("a turn could not be made durable: %s", error)
        except Exception:  # the other turns, and whoever waits for this
            log.exception("a turn's end could not be told")

    async def _watch(self) -> None:
        """End a process that lives and does not answer."""
        while True:
            await asyncio.sleep(self._silence_seconds / _PINGS_IN_SILENCE)
            asked_at = self._loop.time()
            try:
                async with asyncio.timeout(self._silence_seconds):
                    health = Health.model_validate_json(await self._ask("GET", Path.HEALTH, None))
            except (GatewayError, TimeoutError, Refused, ValidationError) as error:
                if not self._process.ended.done():
                    silence = f"it did not answer for {self._silence_seconds:g} s"
                    self._why = f"{silence}: something in it blocks the event loop"
                    log.warning("a session's process is ended: %s (%s)", self._why, error or "time-out")
                    self._process.kill()
                return
            for turn_id, told in list(self._running.items()):
                if told.posted_at < asked_at and turn_id not in health.running_turns:
                    del self._running[turn_id]

    async def _ask(self, method: str, path: str, body: BaseModel | None) -> bytes:
        """Raises what it refused with, and GatewayError. The caller has a timeout."""
        sent = body.model_dump_json().encode() if body is not None else b""
        async with self._client.request(method, path, body=sent, idle_timeout_seconds=None) as answer:
            told = await answer.read(MAX_BODY_BYTES)
        if answer.status >= 400:  # noqa: PLR2004 - RFC 9110, 15.5
            raise _refusal(answer.status, told)
        return told


async def open_own(
    session_id: str, services: Services, body: OpenSession, on_end: Callable[[OwnSession], None]
) -> OwnSession:
    """The session that `body.plan` describes, in a new process. Raises Refused and leaves nothing."""
    try:
        process = OwnProcess(session_id, services.gateway, services.workspace, services.collections)
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)  # its folder; no other sandbox has more room on the disk
        code = "workspace_unavailable" if is_full else "too_many_processes"
        detail = f"a process for the session can't be started: {error.strerror or error}"
        raise Conflicting(code, detail, status=503) from error
    session = OwnSession(session_id, process, services, on_end)
    await session.open(services.claim, body)
    return session


def _refusal(status: int, told: bytes) -> Refused:
    try:
        failure = Failure.model_validate_json(told)
    except ValidationError:
        failure = Failure(code=CODE, detail="the session's process answered with an error that can't be read")
    return Refused(failure.code, failure.detail, retry_after_seconds=failure.retry_after_seconds, status=status)


async def _one(frame: bytes) -> AsyncGenerator[bytes, None]:
    yield frame
