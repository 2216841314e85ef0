"""What makes a request the same one: its key, and the fingerprint of what it asks for. Pure.

Two bodies of JSON that differ in spaces or in the order of their members ask for the same; a client that makes a body anew
for each attempt need not make it byte by byte the same. A long body is taken as it came.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from graphql import FieldNode, GraphQLError, OperationDefinitionNode, OperationType, parse

from amplifier_api_server.control_plane.request_json import parsed
from amplifier_api_server.tenants.errors import Invalid, Malformed

HEADER: Final = b"idempotency-key"
MAX_KEY_CHARS: Final = 255
_KEY: Final = re.compile(rf"[!-~]{{1,{MAX_KEY_CHARS}}}")
_CANONICAL_BYTES: Final = 64 * 1024
_MAX_TOKENS: Final = 20_000  # of a GraphQL document, in which a mutation is looked for; its door has a lower bound


def key_of(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The request's key; None where it has none. Raises Invalid (`invalid_idempotency_key`)."""
    found = [value for name, value in headers if name == HEADER]
    if not found:
        return None
    if len(found) > 1:
        raise _wrong("came twice; send one")
    return checked_key(found[0].decode("latin-1"))


def checked_key(text: str) -> str:
    """A key as it is kept: without the quotes that the header's syntax has (a string of RFC 8941). Raises Invalid."""
    is_quoted = len(text) > 1 and text[0] == text[-1] == '"'
    key = text[1:-1] if is_quoted else text
    if not _KEY.fullmatch(key):
        raise _wrong(f"should be 1 to {MAX_KEY_CHARS} visible ASCII characters, such as a UUID")
    return key


def _wrong(message: str) -> Invalid:
    name = "Idempotency-Key"
    return Invalid(f"{name} {message}", code="invalid_idempotency_key", errors=[{"field": name, "message": message}])


def fingerprint_of(operation: str, parameters: Mapping[str, str], query: bytes, body: bytes) -> bytes:
    """SHA-256 over all that a request asks for."""
    parts = [operation.encode(), json.dumps(sorted(parameters.items())).encode(), query, _canonical(body)]
    digest = hashlib.sha256()
    for part in parts:  # each with its length: no two different lists of parts make the same bytes
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()


def rightful(fingerprint: bytes, grants: Iterable[str]) -> bytes:
    """The fingerprint, of a caller who holds `grants`. A kept answer may hold a secret, and is not checked a second time:
    another credential of the same member, or the same one with another role, is not told what it might not have got.
    """
    return hashlib.sha256(fingerprint + json.dumps(sorted(grants)).encode()).digest()


def _canonical(body: bytes) -> bytes:
    if not body or len(body) > _CANONICAL_BYTES:
        return body
    try:
        return json.dumps(json.loads(body), sort_keys=True, separators=(",", ":")).encode()
    except (ValueError, RecursionError):
        return body  # no JSON, or nothing that its handler will read


def mutations_in(body: bytes) -> int:
    """How many root fields of mutations a request to the GraphQL door holds; a fragment counts as two.

    0 for one that can't be read: its handler refuses it.
    """
    try:
        asked: Any = parsed(body)
        text = asked.get("query") if isinstance(asked, dict) else None
        if not isinstance(text, str) or "mutation" not in text:
            return 0
        document = parse(text, no_location=True, max_tokens=_MAX_TOKENS)
    except (Malformed, RecursionError, GraphQLError):
        return 0
    fields = (
        1 if isinstance(selection, FieldNode) else 2
        for one in document.definitions
        if isinstance(one, OperationDefinitionNode) and one.operation is OperationType.MUTATION
        for selection in one.selection_set.selections
    )
    return sum(fields)
