"""Every table. Rows are facts; rules about them live beside this file, SQL only in `repository/`.

SQLModel tables don't validate: nothing from outside is made into a row without a schema class in between. All times are
aware UTC. Every table but `runtime` and operator keys carries a tenant, so that row-level security can double the
repository's own rule.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import BigInteger, Column, DateTime, Dialect, Index, Integer, LargeBinary, text
from sqlalchemy.types import TypeDecorator
from sqlmodel import Field, SQLModel

from amplifier_api_server.tenants.json_columns import Json


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC time on every database; SQLite alone would drop the zone. A naive value is refused."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"a naive time would be stored as if it were UTC: {value!r}")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is not None and value.tzinfo is None:
            return value.replace(tzinfo=UTC)
        return value


def _at(*, nullable: bool = False, index: bool = False) -> Any:
    return Field(sa_column=Column(UtcDateTime(), nullable=nullable, index=index))


def _optional_at() -> Any:
    return Field(default=None, sa_column=Column(UtcDateTime(), nullable=True))


def _json(*, nullable: bool = False) -> Any:
    return Field(sa_column=Column(Json(), nullable=nullable))


def _json_list(of: type[Any]) -> Any:
    return Field(sa_column=Column(Json(list, of), nullable=False))


class Tenant(SQLModel, table=True):
    """The paying organisation."""

    id: str = Field(primary_key=True)
    name: str
    tier: str
    status: str  # active | suspended | deleted
    limits: dict[str, Any] = _json()  # overrides of the tier's, by the names of tiers.Limits
    web: dict[str, Any] = (
        _json()
    )  # {"allow": [...], "deny": [...]}: hosts that its tools may fetch from; {} adds nothing
    created_at: datetime = _at()
    updated_at: datetime = _at()


class Member(SQLModel, table=True):
    """A person or a service of a tenant: the user that requests and sessions are counted for. Outlives its keys."""

    __table_args__ = (
        Index(
            "ux_member_tenant_person",
            "tenant_id",
            "person_id",
            unique=True,
            sqlite_where=text("person_id IS NOT NULL AND status <> 'removed'"),
            postgresql_where=text("person_id IS NOT NULL AND status <> 'removed'"),
        ),
    )

    id: str = Field(primary_key=True)
    tenant_id: str = Field(index=True, foreign_key="tenant.id")
    name: str
    role: str  # a built-in one, or the name of one of the tenant's own
    kind: str = Field(default="person", sa_column_kwargs={"server_default": "person"})  # person | service
    status: str = Field(default="active", sa_column_kwargs={"server_default": "active"})  # lifecycle.MemberStatus
    person_id: str | None = Field(default=None, index=True, foreign_key="person.id")  # who logs in as it
    email: str | None = None
    limits: dict[str, Any] = _json()
    created_at: datetime = _at()


class Person(SQLModel, table=True):
    """A human being who logs in: a member of any number of tenants."""

    id: str = Field(primary_key=True)
    name: str
    email: str | None = (
        None  # as the provider verified it; for people to read and for invitations, never to find somebody by
    )
    created_at: datetime = _at()
    last_login_at: datetime | None = _optional_at()


class Identity(SQLModel, table=True):
    """How a provider knows a person: by an id of its own that never changes hands."""

    __table_args__ = (Index("ux_identity_provider_subject", "provider", "subject", unique=True),)

    id: str = Field(primary_key=True)
    person_id: str = Field(index=True, foreign_key="person.id")
    provider: str  # an OIDC issuer's URL, or "github"
    subject: str  # `sub`, or GitHub's numeric id
    name: str = ""  # what the provider called them last
    email: str | None = None
    created_at: datetime = _at()


class Role(SQLModel, table=True):
    """A role of a tenant's own."""

    __table_args__ = (Index("ux_role_tenant_name", "tenant_id", "name", unique=True),)

    id: str = Field(primary_key=True)
    tenant_id: str = Field(foreign_key="tenant.id")
    name: str
    description: str = ""
    permissions: list[str] = _json_list(str)  # grants, as permissions.py reads them
    created_at: datetime = _at()
    updated_at: datetime = _at()
    created_by: str


class Invitation(SQLModel, table=True):
    """An offer to become a member, good for whoever holds its token and logs in with a verified e-mail address that fits."""

    __table_args__ = (Index("ix_invitation_tenant_created", "tenant_id", "created_at", "id"),)

    id: str = Field(primary_key=True)
    tenant_id: str = Field(foreign_key="tenant.id")
    email: str
    any_email: bool = False  # whoever holds the token may take it, whatever their address is
    role: str
    digest: bytes = Field(sa_column=Column(LargeBinary(32), nullable=False, unique=True))  # of the token
    status: str  # lifecycle.InvitationStatus
    created_at: datetime = _at()
    created_by: str
    expires_at: datetime = _at()
    accepted_at: datetime | None = _optional_at()
    member_id: str | None = None  # who it made


class Login(SQLModel, table=True):
    """A browser's session: a person, acting as one of their members at a time. Its cookie's text is stored nowhere."""

    id: str = Field(primary_key=True)
    person_id: str = Field(index=True, foreign_key="person.id")
    tenant_id: str | None = None  # where they act now; None for somebody who is no member anywhere yet
    member_id: str | None = Field(default=None, index=True)
    provider: str
    digest: bytes = Field(sa_column=Column(LargeBinary(32), nullable=False, unique=True))
    created_at: datetime = _at()
    expires_at: datetime = _at()
    revoked_at: datetime | None = _optional_at()
    last_used_at: datetime | None = _optional_at()
    address: str = ""  # where the login came from
    user_agent: str = ""


class DeviceGrant(SQLModel, table=True):
    """A device that waits for a person's word (RFC 8628); approved, it is exchanged for an API key, once."""

    __tablename__ = "device_grant"

    id: str = Field(primary_key=True)
    device_digest: bytes = Field(sa_column=Column(LargeBinary(32), nullable=False, unique=True))
    user_digest: bytes = Field(sa_column=Column(LargeBinary(32), nullable=False, unique=True))
    name: str  # what the device calls itself
    status: str  # pending | approved | denied | exchanged
    tenant_id: str | None = None
    member_id: str | None = None
    login_id: str | None = None  # by which it was let in, where that was no key
    role: str | None = None  # of the member then
    # The key that it gets, where a person gave one of theirs; encrypted, and gone when the device has it.
    sealed_key: bytes | None = Field(default=None, sa_column=Column(LargeBinary, nullable=True))
    address: str = ""
    network: str | None = None  # as which the address is counted
    created_at: datetime = _at()
    expires_at: datetime = _at()


class ApiKey(SQLModel, table=True):
    """A credential of a member; an operator's belongs to no tenant and no member."""

    __tablename__ = "api_key"

    id: str = Field(primary_key=True)
    tenant_id: str | None = Field(default=None, index=True, foreign_key="tenant.id")
    member_id: str | None = Field(default=None, foreign_key="member.id")
    name: str
    role: str
    digest: bytes = Field(sa_column=Column(LargeBinary(32), nullable=False, unique=True))  # HMAC-SHA256 with the pepper
    hint: str  # the last four characters, so that a person can tell keys apart
    limits: dict[str, Any] = _json()
    created_at: datetime = _at()
    created_by: str | None = None
    expires_at: datetime | None = _optional_at()
    revoked_at: datetime | None = _optional_at()
    last_used_at: datetime | None = _optional_at()
    rotated_from: str | None = None


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
    )

    id: str = Field(primary_key=True)
    tenant_id: str = Field(foreign_key="tenant.id")
    member_id: str = Field(index=True)
    key_id: str
    title: str | None = None  # for people to read
    forked_from: dict[str, Any] | None = _json(nullable=True)  # {"session_id", "request_id"} of what it continues
    profile: str
    context: dict[str, Any] = _json()
    plan: dict[str, Any] | None = _json(nullable=True)  # as the runtime compiled it when the session was made
    model: str = ""
    collections: list[dict[str, Any]] = _json_list(dict)  # runtime.protocol.Image, in precedence order
    collections_key: str = ""  # which runtimes can host it; "" where it needs no collection
    state: dict[str, Any] = _json()  # the modules' own, as of the last checkpoint
    status: str  # lifecycle.SessionStatus
    failure: dict[str, Any] | None = _json(nullable=True)
    runtime_id: str | None = Field(default=None, index=True)
    message_count: int = 0
    transcript_bytes: int = 0  # of its messages, as JSON
    # What its files took when they were last measured at rest; whether they may have changed since.
    disk_bytes: int = Field(default=0, sa_column=Column(BigInteger, nullable=False, server_default="0"))
    disk_files: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    disk_is_known: bool = Field(default=False, sa_column_kwargs={"server_default": "0"})
    turn_count: int = 0  # completed and cancelled ones
    created_at: datetime = _at()
    last_active_at: datetime = _at(index=True)
    closed_at: datetime | None = _optional_at()


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
    tool_calls: list[dict[str, Any]] = _json_list(dict)
    problem: dict[str, Any] | None = _json(nullable=True)
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
    started_at: datetime = _at()
    finished_at: datetime | None = _optional_at()


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
    body: dict[str, Any] = _json()
    created_at: datetime = _at()


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
    recorded_at: datetime = _at()


class Runtime(SQLModel, table=True):
    """One sandboxed process or pod. The row is written first, then the process is started."""

    id: str = Field(primary_key=True)
    tenant_id: str | None = Field(default=None, index=True)  # None until it is claimed
    collections_key: str = ""
    status: str = Field(index=True)  # lifecycle.RuntimeStatus
    reason: str = ""  # why it is gone or draining
    created_at: datetime = _at()
    claimed_at: datetime | None = _optional_at()
    idle_since: datetime | None = _optional_at()  # no session since; None while it has one
    gone_at: datetime | None = _optional_at()


class Collection(SQLModel, table=True):
    """An installed collection of a tenant. Its trees lie in the object store, each under its content hash."""

    __table_args__ = (Index("ux_collection_tenant_name", "tenant_id", "name", unique=True),)

    id: str = Field(primary_key=True)
    tenant_id: str = Field(foreign_key="tenant.id")
    name: str
    version: str
    description: str = ""
    source: str
    commit: str | None = None
    content_hash: str  # of the image, as canonical JSON: the same hash is the same collection, all it includes too
    image: dict[str, Any] = _json()  # runtime.protocol.Image: what to install again from
    manifest: dict[str, Any] = _json()  # runtime.protocol.CollectionManifest
    installed_at: datetime = _at()
    installed_by: str


class Installation(SQLModel, table=True):
    """A job that installs a collection. Its row is its progress; only the process that began it works on it."""

    __table_args__ = (Index("ix_installation_tenant_created", "tenant_id", "created_at", "id"),)

    id: str = Field(primary_key=True)
    tenant_id: str = Field(foreign_key="tenant.id")
    member_id: str
    source: str
    status: str = Field(index=True)  # lifecycle.InstallationStatus
    phase: str = ""  # what is being done, in a word: fetching, inspecting, downloading, building, keeping
    detail: str = ""
    done: int = 0  # of `total` sources, as far as they are known
    total: int = 0
    warnings: list[str] = _json_list(str)
    failure: dict[str, Any] | None = _json(nullable=True)  # {"code", "detail"}
    collection: str | None = None  # its name, once it is installed
    created_at: datetime = _at()
    finished_at: datetime | None = _optional_at()


class Profile(SQLModel, table=True):
    """One version of a profile of a tenant's own. Versions are never changed; the highest one is current."""

    __table_args__ = (Index("ux_profile_tenant_name_version", "tenant_id", "name", "version", unique=True),)

    id: str = Field(primary_key=True)
    tenant_id: str = Field(foreign_key="tenant.id")
    name: str
    version: int
    description: str = ""
    content: str  # a bundle or a profile, as it was sent
    is_removed: bool = False  # this version says: there is no such profile any more
    created_at: datetime = _at()
    created_by: str


class ProviderKey(SQLModel, table=True):
    """A tenant's own key for a model provider, encrypted. It leaves in one header of a call to that provider."""

    __tablename__ = "provider_key"
    __table_args__ = (Index("ux_provider_key_tenant_provider", "tenant_id", "provider", unique=True),)

    id: str = Field(primary_key=True)
    tenant_id: str = Field(foreign_key="tenant.id")
    provider: str  # as the operator's configuration names it
    ciphertext: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    hint: str  # the last four characters
    created_at: datetime = _at()
    created_by: str


class AuditEntry(SQLModel, table=True):
    """Who changed what, from where. Append-only: the database itself refuses to change or delete a row."""

    __tablename__ = "audit_entry"
    __table_args__ = (Index("ix_audit_tenant_id", "tenant_id", "id"),)

    id: int | None = Field(
        default=None, sa_column=Column(BigInteger().with_variant(Integer(), "sqlite"), primary_key=True)
    )
    tenant_id: str  # whose log it is in; "" for what is the operator's alone
    at: datetime = _at()
    actor: str  # the member's id; "op_..." for an operator, "cli" for the command line, "system"
    credential_id: str = ""
    door: str = ""  # rest | graphql | websocket | cli | ""
    address: str = ""
    user_agent: str = ""
    request_id: str = Field(default="", index=True)
    action: str  # an operation's name, as operations.py has it
    target: str = ""  # the id or name of what was changed
    changes: dict[str, Any] = _json()  # {"field": [before, after]}; a secret is never in it


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
    data: dict[str, Any] = _json()
    created_at: datetime = _at(index=True)


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
    created_at: datetime = _at(index=True)


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
    next_at: datetime | None = _optional_at()
    problem: str = ""  # of the last attempt
    created_at: datetime = _at()
    finished_at: datetime | None = _optional_at()
