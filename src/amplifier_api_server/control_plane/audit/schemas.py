"""What the audit log's endpoints give: an entry as JSON, as a line of NDJSON and as one of CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import AwareDatetime, Field

from amplifier_api_server.control_plane.origin import http_request_id_in
from amplifier_api_server.control_plane.pages import shown
from amplifier_api_server.control_plane.schemas import Answer
from amplifier_api_server.runtime.protocol import one_line
from amplifier_api_server.tenants.models import AuditEntry

ExportFormat = Literal["ndjson", "csv"]
MEDIA_TYPES: Final[dict[ExportFormat, str]] = {"ndjson": "application/x-ndjson", "csv": "text/csv; charset=utf-8"}
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would compute (OWASP, "CSV Injection")


class AuditEntryView(Answer):
    """Who changed what, from where."""

    id: Annotated[str, Field(description="aud_ and a number that grows, by the time and chance")]
    at: AwareDatetime
    tenant_id: Annotated[str, Field(description='whose log it is in; "" is the operator\'s own')]
    actor: Annotated[
        str, Field(description='the member\'s id; "op_..." is an operator, "cli" the command line, "system"')
    ]
    credential_id: str
    door: Annotated[str, Field(description="rest, graphql, websocket, cli; empty for what acts by itself")]
    address: Annotated[str, Field(description="the other end of the connection")]
    user_agent: str
    http_request_id: Annotated[str, Field(description="the answer's `X-Request-Id`")]
    action: Annotated[str, Field(description="the operation's name, as in this document")]
    target: Annotated[str, Field(description="the id or name of what was changed")]
    changes: Annotated[dict[str, Any], Field(description="field: [before, after]; of a secret [null, null]")]

    @classmethod
    def of(cls, row: AuditEntry) -> AuditEntryView:
        return cls.model_validate(
            {
                **row.model_dump(exclude={"request_id"}),
                "id": f"aud_{row.id}",
                "http_request_id": http_request_id_in(row.request_id),
            }
        )


class AuditPage(Answer):
    audit_entries: list[AuditEntryView]
    next_cursor: str | None = None


def head(wanted: ExportFormat) -> bytes:
    """What an export begins with."""
    return _csv([list(AuditEntryView.model_fields)]) if wanted == "csv" else b""


def lines(rows: Sequence[AuditEntry], wanted: ExportFormat) -> bytes:
    """A page of an export."""
    views = shown(rows, AuditEntryView.of)
    if wanted == "ndjson":
        return b"".join(one_line(one.model_dump_json()).encode() + b"\n" for one in views)
    return _csv([[_cell(value) for value in one.model_dump(mode="json").values()] for one in views])


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    return "'" + text if text.startswith(_FORMULA) else text


def _csv(rows: Sequence[Sequence[str]]) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerows(rows)  # RFC 4180
    return out.getvalue().encode()
