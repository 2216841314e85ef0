"""What the runtime answers: the paths of `protocol.Path`, each a few lines over the part that does the work."""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from amplifier_api_server.runtime import tools
from amplifier_api_server.runtime.building import Builds
from amplifier_api_server.runtime.bundles.compiling import Defaults, compile_profile, default_specs
from amplifier_api_server.runtime.bundles.inspecting import inspect
from amplifier_api_server.runtime.bundles.library import Library
from amplifier_api_server.runtime.failures import BadRequest, Conflicting, Missing, Refused
from amplifier_api_server.runtime.gateway import Gateway
from amplifier_api_server.runtime.http_server import Request, Response
from amplifier_api_server.runtime.protocol import (
    ApprovalAnswer,
    ApprovalList,
    Build,
    Catalog,
    Claim,
    CompiledProfile,
    CompileProfile,
    ExecuteTool,
    Failure,
    Health,
    Inspect,
    OpenSession,
    StartTurn,
)
from amplifier_api_server.runtime.sdk_door import SdkDoor
from amplifier_api_server.runtime.sessions import Sessions
from amplifier_api_server.runtime.turn_port import Services
from amplifier_api_server.runtime.turns import RunningTurn

log = logging.getLogger(__name__)

STOPPING = Failure(code="runtime_stopping", detail="the sandbox is being stopped; the session goes on in another one")
EVENT_STREAM = "text/event-stream"

BodyT = TypeVar("BodyT", bound=BaseModel)


class App:
    """One runtime. `handle` is the server's handler."""

    def __init__(self, gateway: Gateway, workspace: Path, installed: Path, *, is_own: bool = False) -> None:
        """`is_own`: it is one session's own process."""
        self._gateway = gateway
        self._workspace = workspace
        self._installed = installed
        self._services: Services | None = None
        self._door = SdkDoor(gateway)
        self._sessions = Sessions(is_own=is_own)
        self._builds = Builds(workspace / ".builds", installed)
        self._stopping = False

    async def handle(self, request: Request) -> Response:
        try:
            return await self._route(request)
        except Refused as refused:
            return _json(refused.answer_status, refused.failure)
        except Exception:
            log.exception("a request failed")
            return _json(500, Failure(code="internal", detail="the runtime failed to answer"))

    async def stop(self) -> None:
        """Take no more turns, end the running ones with a checkpoint, close every session."""
        self._stopping = True
        await self._sessions.close_all(STOPPING)
        await self._door.close()
        await self._gateway.close()

    async def _route(self, request: Request) -> Response:
        parts = request.path.strip("/").split("/")
        match request.method, parts:
            case "GET", ["health"]:
                return self._health()
            case "GET", ["catalog"]:
                return await self._catalog()
            case "POST", ["claim"]:
                return self._claim(_body(request, Claim))
            case "POST", ["compile"]:
                return await self._compile(_body(request, CompileProfile))
            case "POST", ["inspect"]:
                return await self._inspect(_body(request, Inspect))
            case _, ["builds", build_id, *rest]:
                return await self._build(request, build_id, rest)
            case "POST", ["tools", name]:
                outcome = await tools.execute(self._claimed(), name, _body(request, ExecuteTool))
                return _json(200, outcome)
            case "PUT", ["sessions", session_id]:
                return await self._open(session_id, _body(request, OpenSession))
            case "DELETE", ["sessions", session_id]:
                await self._sessions.close(session_id)
                return Response(HTTPStatus.NO_CONTENT)
            case _, ["sessions", session_id, "turns", request_id, *rest]:
                return await self._route_turn(request, session_id, request_id, rest)
        raise _no_such_path(request)

    async def _route_turn(self, request: Request, session_id: str, request_id: str, rest: list[str]) -> Response:
        if (own := self._sessions.own(session_id)) is not None:
            starts = request.method == "POST" and not rest
            if starts:
                self._check_start(request_id)
            return await own.forward(request, request_id, starts=starts)
        match request.method, rest:
            case "POST", []:
                return await self._start_turn(request, session_id, request_id)
            case "GET", []:
                return self._turn(self._sessions.get(session_id).turn_of(request_id))
            case "GET", ["events"]:
                turn = self._sessions.get(session_id).turn_of(request_id)
                return _events(turn, _number(request.query.get("after", "0")))
            case "POST", ["cancel"]:
                self._sessions.get(session_id).turn_of(request_id).cancel()
                return Response(HTTPStatus.ACCEPTED, b"{}")
            case "GET", ["approvals"]:
                approvals = self._sessions.get(session_id).turn_of(request_id).turn.approvals
                return _json(200, ApprovalList(approvals=approvals.waiting))
            case "POST", ["approvals", approval_id]:
                approvals = self._sessions.get(session_id).turn_of(request_id).turn.approvals
                return _json(200, approvals.answer(approval_id, _body(request, ApprovalAnswer)))
        raise _no_such_path(request)

    def _health(self) -> Response:
        health = Health(
            runtime_id=self._services.claim.runtime_id if self._services else None,
            open_sessions=self._sessions.ids(),
            running_turns=self._sessions.running_turns(),
        )
        return _json(200, health)

    async def _catalog(self) -> Response:
        specs = await asyncio.to_thread(default_specs, Library())
        return _json(200, Catalog(profiles=specs, tools=await tools.catalog()))

    def _claim(self, claim: Claim) -> Response:
        if self._services is None:
            self._services = Services(claim, self._gateway, self._workspace, self._installed, self._door)
            log.info("claimed as %s", claim.runtime_id)
        elif self._services.claim != claim:
            raise Conflicting("already_claimed", "this runtime has another identity already")
        return Response(HTTPStatus.NO_CONTENT)

    def _claimed(self) -> Services:
        if self._services is None:
            raise Conflicting("not_claimed", "this runtime has no identity yet")
        return self._services

    async def _inspect(self, body: Inspect) -> Response:
        found = await asyncio.to_thread(inspect, self._installed, body.image, body.use, skip_missing=body.skip_missing)
        return _json(200, found)

    async def _compile(self, body: CompileProfile) -> Response:
        return _json(200, await asyncio.to_thread(compiled, self._installed, body, self._services))

    async def _build(self, request: Request, build_id: str, rest: list[str]) -> Response:
        self._claimed()
        if not _is_id(build_id):
            raise BadRequest("invalid_request", f"{build_id!r:.100} is no build id")
        match request.method, rest:
            case "POST", []:
                return _json(200, await self._builds.build(build_id, _body(request, Build)))
            case "GET", ["packages"]:
                return Response(200, content_type="application/zip", stream=await self._builds.packages(build_id))
        raise _no_such_path(request)

    async def _open(self, session_id: str, body: OpenSession) -> Response:
        if not _is_id(session_id):
            raise BadRequest("invalid_request", f"{session_id!r:.100} is no session id")
        session, is_new = await self._sessions.open(self._claimed(), session_id, body)
        return _json(HTTPStatus.CREATED if is_new else HTTPStatus.OK, session.opened)

    async def _start_turn(self, request: Request, session_id: str, request_id: str) -> Response:
        session = self._sessions.get(session_id)
        body = _body(request, StartTurn)
        self._check_start(request_id)
        turn = await session.start_turn(request_id, body.prompt)
        if EVENT_STREAM in request.headers.get("accept", ""):
            return _events(turn, 0)
        await asyncio.wait({turn.ended})
        return self._turn(turn)

    def _check_start(self, request_id: str) -> None:
        if self._stopping:
            raise Conflicting(STOPPING.code, STOPPING.detail, status=503)
        if not _is_id(request_id):
            raise BadRequest("invalid_request", f"{request_id!r:.100} is no request id")

    def _turn(self, turn: RunningTurn) -> Response:
        if turn.result is None:
            return Response(HTTPStatus.ACCEPTED, b"{}")
        return _json(200, turn.result)


def compiled(collections: Path, body: CompileProfile, services: Services | None) -> CompiledProfile:
    """As a new session of the profile would have it. Blocking. Raises Refused."""
    library = Library(collections, body.images, body.documents)
    defaults = Defaults(services.claim.default_model, services.claim.default_provider) if services else None
    made = compile_profile(library, body.profile, {}, defaults)
    return CompiledProfile(spec=made.spec, plan=made.plan, model=made.plan["model"], warnings=made.warnings)


def _events(turn: RunningTurn, after: int) -> Response:
    return Response(200, content_type=EVENT_STREAM, stream=turn.turn.log.follow(after))


def _json(status: int, body: BaseModel) -> Response:
    return Response(status, body.model_dump_json(exclude_none=True).encode())


def _body(request: Request, kind: type[BodyT]) -> BodyT:
    try:
        return kind.model_validate_json(request.body or b"{}")
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "body"
        raise BadRequest("invalid_request", f"{where}: {first['msg']}") from None


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:  # noqa: PLR2004 - no turn has a billion events
        raise BadRequest("invalid_request", f"after is {text!r:.50}; it should be a whole number from 0 on")
    return int(text)


def _no_such_path(request: Request) -> Missing:
    return Missing("no_such_path", f"there is no {request.method} {request.path[:200]} here")


def _is_id(text: str) -> bool:
    """Ids become folder names and frame ids: letters, digits, _ and - only."""
    return 0 < len(text) <= 128 and text.isascii() and text.replace("_", "").replace("-", "").isalnum()  # noqa: PLR2004
