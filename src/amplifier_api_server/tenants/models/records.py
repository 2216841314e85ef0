"""What is written down and never changed: the ledger, the audit log and events."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

from sqlalchemy import BigInteger, Column, Index, Integer
from sqlmodel import Field, SQLModel

from amplifier_api_server.tenants.models.columns import at, json_object


class Usage(SQLModel, table=True):
    """The ledger: what a model call used, or (with no tokens) that a turn was. Append-only, unique by `source`.

    `turns` is 1 on exactly one row of each turn and 0 on its others, so that every grouping adds up to the same totals.
    """

    __table_args__ = (
        Index("ix_usage_tenant_day", "tenant_id", "day"),
        Index("ix_usage_tenant_session", "tenant_id", "session_id"),
    )

    # SQLite numbers rows by itself only in an INTEGER PRIMARY KEY, which has 64 bits there.
    id: int | None = Field(
        default=None, sa_column=Column(BigInteger().with_variant(Integer(), "sqlite"), primary_key=True)
    )
    source: str = Field(unique=True)  # "call:<id>" or "turn:<request id>"
    tenant_id: str
    member_id: str
    session_id: str
    turn_id: str = Field(index=True)
    model: str
    provider: str = ""
    prompt_tokens: int = 0  # cached ones among them
    completion_tokens: int = 0  # reasoning among them
    total_tokens: int = 0
    cached_tokens: int = 0  # of the prompt: read from the provider's cache
    cache_write_tokens: int = 0  # of the prompt: written to it
    reasoning_tokens: int = 0  # of the completion
    cost_microdollars: int | None = Field(default=None, sa_type=BigInteger)  # None: no price is known
    own_key: bool = False  # it went out with the tenant's own key, so the operator was not charged
    turns: int = 0
    estimated: bool = False  # the provider's own count did not arrive; ours stands in
    day: date
    recorded_at: datetime = at()


class AuditEntry(SQLModel, table=True):
    """Who changed what, from where. Append-only: the database itself refuses to change or delete a row."""

    __tablename__ = "audit_entry"
    __table_args__ = (Index("ix_audit_tenant_id", "tenant_id", "id"),)

    id: int | None = Field(
        default=None, sa_column=Column(BigInteger().with_variant(Integer(), "sqlite"), primary_key=True)
    )
    tenant_id: str  # whose log it is in; "" for what is the operator's alone
    at: datetime = at()
    actor: str  # the member's id; "op_..." for an operator, "cli" for the command line, "system"
    credential_id: str = ""
    door: str = ""  # rest | graphql | websocket | cli | ""
    address: str = ""
    user_agent: str = ""
    request_id: str = Field(default="", index=True)
    action: str  # an operation's name, as operations.py has it
    target: str = ""  # the id or name of what was changed
    changes: dict[str, Any] = json_object()  # {"field": [before, after]}; a secret is never in it


class TenantEvent(SQLModel, table=True):
    """Something that happened to a tenant, for `GET /v1/events`. Written in the transaction of what it tells of."""

    __tablename__ = "tenant_event"
    # Ids are never used twice, also when every row was deleted: readers go on after the last one that they saw.
    __table_args__ = (Index("ix_tenant_event_tenant_id", "tenant_id", "id"), {"sqlite_autoincrement": True})

    id: int | None = Field(
        default=None, sa_column=Column(BigInteger().with_variant(Integer(), "sqlite"), primary_key=True)
    )
    tenant_id: str
    type: str  # tenant_events.EventType
    data: dict[str, Any] = json_object()
    created_at: datetime = at(index=True)
