"""Sessions, their turns and transcripts, and what callers wait for of them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Column, Index, LargeBinary, text
from sqlmodel import Field, SQLModel

from amplifier_api_server.tenants.json_columns import Json
from amplifier_api_server.tenants.models.columns import at, json_list, json_object, optional_at


class Session(SQLModel, table=True):
    """A conversation. `plan`, `state` and the messages are all a new runtime needs to go on with it."""

    __table_args__ = (
        Index("ix_session_tenant_created", "tenant_id", "created_at", "id"),
        Index(
            "ix_session_disk_unknown",
            "last_active_at",
            sqlite_where=text("disk_is_known = 0 AND status <> 'closed'"),
            postgresql_where=text("NOT disk_is_known AND status <> 'closed'"),
        ),
        Index(
            "ix_session_closes_with_turn",
            "last_active_at",
            sqlite_where=text("closes_with_turn = 1"),
            postgresql_where=text("closes_with_turn"),
        ),
    )

    id: str = Field(primary_key=True)
    tenant_id: str = Field(foreign_key="tenant.id")
    member_id: str = Field(index=True)
    key_id: str
    title: str | None = None  # for people to read
    forked_from: dict[str, Any] | None = json_object(nullable=True)  # {"session_id", "request_id"} of what it continues
    profile: str
    context: dict[str, Any] = json_object()
    plan: dict[str, Any] | None = json_object(nullable=True)  # as the runtime compiled it when the session was made
    model: str = ""
    collections: list[dict[str, Any]] = json_list(dict)  # runtime.protocol.Image, in precedence order
    collections_key: str = ""  # which runtimes can host it; "" where it needs no collection
    state: dict[str, Any] = json_object()  # the modules' own, as of the last checkpoint
    status: str  # lifecycle.SessionStatus
    failure: dict[str, Any] | None = json_object(nullable=True)
    runtime_id: str | None = Field(default=None, index=True)
    message_count: int = 0
    transcript_bytes: int = 0  # of its messages, as JSON
    # What its files took when they were last measured at rest; whether they may have changed since.
    disk_bytes: int = Field(default=0, sa_column=Column(BigInteger, nullable=False, server_default="0"))
    disk_files: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    disk_is_known: bool = Field(default=False, sa_column_kwargs={"server_default": "0"})
    turn_count: int = 0  # completed and cancelled ones
    # It was made for one execution, closes in the transaction that ends that, and has not been cleared away yet.
    closes_with_turn: bool = Field(default=False, sa_column_kwargs={"server_default": "0"})
    created_at: datetime = at()
    last_active_at: datetime = at(index=True)
    closed_at: datetime | None = optional_at()


class Turn(SQLModel, table=True):
    """One execute. At most one runs in a session: the partial unique index is what decides, not a lock."""

    __table_args__ = (
        Index(
            "ux_turn_running",
            "session_id",
            unique=True,
            sqlite_where=text("status = 'running'"),
            postgresql_where=text("status = 'running'"),
        ),
        Index(
            "ix_turn_running_runtime",
            "runtime_id",
            sqlite_where=text("status = 'running'"),
            postgresql_where=text("status = 'running'"),
        ),
    )

    id: str = Field(primary_key=True)
    tenant_id: str = Field(foreign_key="tenant.id")
    session_id: str = Field(index=True, foreign_key="session.id")
    member_id: str
    key_id: str
    runtime_id: str | None = None
    status: str  # lifecycle.TurnStatus
    response: str = ""
    finish_reason: str | None = None  # why the model's last answer ended
    tool_calls: list[dict[str, Any]] = json_list(dict)
    problem: dict[str, Any] | None = json_object(nullable=True)
    last_event: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    reasoning_tokens: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    cost_microdollars: int | None = Field(default=None, sa_type=BigInteger)  # None: a call's price is not known
    open_calls: list[dict[str, Any]] = Field(  # of a running turn: what calls used that the ledger does not have yet
        default_factory=list, sa_column=Column(Json(list, dict), nullable=False, server_default="[]")
    )
    started_at: datetime = at()
    finished_at: datetime | None = optional_at()


class TurnEvents(SQLModel, table=True):
    """A finished turn's stream as it was sent, zlib-compressed, terminal frame included."""

    __tablename__ = "turn_events"

    turn_id: str = Field(primary_key=True, foreign_key="turn.id")
    tenant_id: str
    frames: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    # The session's state as of this turn's end, as JSON, zlib-compressed: a fork at this turn begins with it. None where
    # the turn did not complete.
    state: bytes | None = Field(default=None, sa_column=Column(LargeBinary, nullable=True))


class Message(SQLModel, table=True):
    """One message of a transcript, append-only; `body` is the message as the runtime wrote it."""

    session_id: str = Field(primary_key=True, foreign_key="session.id")
    seq: int = Field(primary_key=True)
    tenant_id: str
    turn_id: str
    role: str
    body: dict[str, Any] = json_object()
    created_at: datetime = at()


class IdempotentRequest(SQLModel, table=True):
    """A request that came with an Idempotency-Key: what it was, and how it was answered."""

    __tablename__ = "idempotent_request"

    tenant_id: str = Field(primary_key=True)
    member_id: str = Field(primary_key=True)
    key: str = Field(primary_key=True)
    fingerprint: bytes = Field(sa_column=Column(LargeBinary(32), nullable=False))  # of operation, path and body
    operation: str  # its name
    request_id: str = ""  # of the first request: an entry of the audit log with it says that its work was done
    status: str  # lifecycle.RequestStatus
    turn_id: str | None = None  # of an execution: its answer is read from the turn
    session_id: str | None = None
    answer: bytes | None = Field(
        default=None, sa_column=Column(LargeBinary, nullable=True)
    )  # sealed: keys may be in it
    created_at: datetime = at(index=True)


class TurnCallback(SQLModel, table=True):
    """A POST that a caller wants when its turn has ended. Written with the turn, sent by the outbox."""

    __tablename__ = "turn_callback"
    __table_args__ = (Index("ix_turn_callback_due", "status", "next_at"),)

    id: str = Field(primary_key=True)
    tenant_id: str
    session_id: str
    turn_id: str = Field(index=True, foreign_key="turn.id")
    url: str
    secret: bytes | None = Field(default=None, sa_column=Column(LargeBinary, nullable=True))  # sealed; signs the body
    status: str  # waiting (for the turn's end) | due | delivered | failed
    attempts: int = 0
    next_at: datetime | None = optional_at()
    problem: str = ""  # of the last attempt
    created_at: datetime = at()
    finished_at: datetime | None = optional_at()
