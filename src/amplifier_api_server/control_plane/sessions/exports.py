"""A session as a document, written in pieces: what a reader who does not read holds is one piece, not a transcript.

Owns how a document is cut: messages are read by their bytes, each piece in a transaction of its own, up to the message that
was the newest one when the document was begun. Invariant: no transaction is held while a piece is sent, and a document that
ends well is whole.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing, suppress
from typing import Final

from fastapi.responses import StreamingResponse
from pydantic_core import to_json

from amplifier_api_server.control_plane import json_bounds
from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.routes import Receive, Scope, Send
from amplifier_api_server.control_plane.sessions import called_tools, transcripts
from amplifier_api_server.control_plane.sessions.schemas import SessionDocument
from amplifier_api_server.control_plane.sessions.streams import OpenStreams
from amplifier_api_server.tenants.errors import NotFound
from amplifier_api_server.tenants.ids import SessionId, TenantId
from amplifier_api_server.tenants.models import Session
from amplifier_api_server.tenants.repository import sessions
from amplifier_api_server.tenants.repository import transcripts as rows
from amplifier_api_server.tenants.repository.pages import Page

PIECE_BYTES: Final = 1024 * 1024
Pieces = AsyncGenerator[bytes, None]
_WEIGHED: Final = 256  # messages that are looked at together


class PiecesResponse(StreamingResponse):
    """JSON in pieces; what makes them is closed when the answer is over, however it ended."""

    def __init__(self, pieces: Pieces) -> None:
        super().__init__(pieces, media_type="application/json")
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._pieces):
            await super().__call__(scope, receive, send)


class Exports:
    """Of all tenants' sessions."""

    def __init__(self, database: Database, streams: OpenStreams) -> None:
        self._database = database
        self._streams = streams

    async def open(self, principal: Principal, session_id: SessionId) -> Pieces:
        """The document, as pieces of JSON. Raises NotFound, Refused (`too_many_streams`) before the first of them."""
        self._streams.require_room(principal)
        tenant_id = principal.tenant_id
        async with self._database.read() as db:
            session = await sessions.find(db, tenant_id, session_id)
            if session is None:
                raise NotFound(f"there is no session {session_id}", code="session_not_found")
            last = await rows.last_number(db, tenant_id, session_id)
        return self._watched(principal, self._pieces(tenant_id, session_id, _head(session), last))

    async def _watched(self, principal: Principal, pieces: Pieces) -> Pieces:
        """The pieces, until the principal may read no more: then it breaks off, and does not look whole."""
        ended: list[bool] = []

        def end() -> None:
            ended.append(True)

        self._streams.add(principal, end)
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    if ended:
                        raise ConnectionAbortedError("whoever exports the session may read it no more")
                    yield piece
        finally:
            self._streams.remove(principal, end)

    async def _pieces(self, tenant_id: TenantId, session_id: SessionId, head: bytes, last: int) -> Pieces:
        yield head
        after, between = -1, b""
        while after < last:
            async with self._database.read() as db:
                weighed = await rows.weights(db, tenant_id, session_id, Page(_WEIGHED, (after,), descending=False))
            weighed = [one for one in weighed if one[0] <= last]
            if not weighed:
                raise ConnectionAbortedError("the session was deleted while it was exported")
            while weighed:
                count = transcripts.count_within(weighed, PIECE_BYTES)
                if weighed[0][1] > PIECE_BYTES:
                    yield between
                    async for part in self._large(tenant_id, session_id, weighed[0][0]):
                        yield part
                else:
                    async with self._database.read() as db:
                        found = await rows.written(db, tenant_id, session_id, Page(count, (after,), descending=False))
                    if len(found) < count:
                        raise ConnectionAbortedError("the session was deleted while it was exported")
                    piece = between + b",".join(map(exported, found))
                    del found
                    yield piece
                    del piece
                after, between = weighed[count - 1][0], b","
                weighed = weighed[count:]
        yield b"]}"

    async def _large(self, tenant_id: TenantId, session_id: SessionId, seq: int) -> Pieces:
        """One message that is more than a piece, as the text that is stored, without ever being held whole."""
        async with self._database.read() as db:
            about = await rows.about(db, tenant_id, session_id, seq)
        if about is None:
            raise ConnectionAbortedError("the session was deleted while it was exported")
        begin, left = 0, about.size_bytes - 1  # all but the brace that ends it
        while left > 0:
            async with self._database.read() as db:
                part = await rows.part_of_body(
                    db, tenant_id, session_id, seq, begin=begin, count=min(left, PIECE_BYTES)
                )
            if not part:
                raise ConnectionAbortedError("the session was deleted while it was exported")
            begin, left = begin + len(part), left - len(part)
            yield part
        # What a sandbox put under these names itself stands before, and counts no more (RFC 8259, 4: the last one does).
        ours = transcripts.ours(about.turn_id, seq, about.created_at)
        yield b"," + to_json(ours)[1:]


def _head(session: Session) -> bytes:
    """All that is before the first message."""
    empty = SessionDocument.model_validate(transcripts.document(session, []))
    return to_json(empty, inf_nan_mode="null").removesuffix(b"]}")


def page_of(messages: Iterable[rows.Written], next_cursor: str | None) -> bytes:
    """A page of a transcript, as JSON. What calls no tool is as it is stored: megabytes are not parsed and written again."""
    return b'{"messages":[%b],"next_cursor":%b}' % (b",".join(map(_shown, messages)), to_json(next_cursor))


def _shown(message: rows.Written) -> bytes:
    if called_tools.has_calls(message.text):
        with suppress(json_bounds.UnboundedJSON):  # more than an honest turn makes, and too much to parse
            body = called_tools.shown(json_bounds.loads(message.text.encode()))
            return to_json(body | transcripts.ours(message.turn_id, message.seq, message.created_at))
    return exported(message)


def exported(message: rows.Written) -> bytes:
    """A message with what a document says of it, by the text that is stored."""
    ours = to_json(transcripts.ours(message.turn_id, message.seq, message.created_at))
    text = message.text.rstrip()[:-1].rstrip()
    return ours if text == "{" else text.encode() + b"," + ours[1:]
