"""From a token's claims to what they say here: whose tenant, which roles, which name. Pure.

The token was verified before; what is in it is still somebody else's text, so every value is checked for its kind and cut.
A claim never leads to the operator, and an issuer that is bound to tenants leads to no other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from amplifier_api_server.control_plane.auth.credentials import grants_by
from amplifier_api_server.control_plane.auth_settings import BearerAuth, Claims
from amplifier_api_server.tenants.errors import Forbidden
from amplifier_api_server.tenants.permissions import RESOURCES, TENANT_ROLES, Role, allows

_MAX_ROLES: Final = 100
_MAX_ROLE_CHARS: Final = 63
_MAX_NAME_CHARS: Final = 200
_MAX_EMAIL_CHARS: Final = 254  # RFC 5321, 4.5.3.1.3


class Subject(NamedTuple):
    """What a token claims, as far as rows decide what it is good for: verdicts are remembered by it."""

    issuer: str
    subject: str
    tenant_id: str
    roles: tuple[str, ...] | None  # None: the member's own role holds
    default_role: str | None


@dataclass(frozen=True, slots=True)
class Claimed:
    """A subject, and what people read of it."""

    subject: Subject
    name: str
    email: str | None  # only where the issuer says that it was verified
    is_service: bool  # a client that got the token for itself (RFC 9068, 2.2)


def claimed_by(claims: Mapping[str, Any], method: BearerAuth) -> Claimed:
    """What verified claims say. Raises Forbidden (`not_a_member`) where they lead to no tenant."""
    wanted = method.claims
    subject = str(claims["sub"])
    name = _text(_at(claims, wanted.name), _MAX_NAME_CHARS) or _text(subject, _MAX_NAME_CHARS) or "?"
    email = _text(_at(claims, wanted.email), _MAX_EMAIL_CHARS) if claims.get("email_verified") is True else None
    roles = None if wanted.roles is None else _roles(_at(claims, wanted.roles), wanted.role_map)
    client = claims.get("client_id", claims.get("azp"))
    return Claimed(
        Subject(method.issuer, subject, _tenant(claims, wanted), roles, wanted.default_role),
        name,
        email if email and "@" in email else None,
        is_service=client == subject,
    )


def role_and_grants(
    names: Sequence[str], default_role: str | None, own: Mapping[str, Sequence[str]]
) -> tuple[str, frozenset[str]] | None:
    """The roles among `names` that exist, the widest first and joined by +, and all that they hold together.

    `own` are the tenant's own roles. None where none exists, the default one neither.
    """
    found = [name for name in dict.fromkeys(names) if _exists(name, own)]
    if not found and default_role is not None and _exists(default_role, own):
        found = [default_role]
    if not found:
        return None
    held = {name: grants_by(name, own.get(name)) for name in found}
    found.sort(key=lambda name: -_width(held[name]))
    return "+".join(found), frozenset().union(*held.values())


def widest(role: str) -> str:
    """Of roles that were joined, the one that holds most: what a member is listed with."""
    return role.partition("+")[0]


def _exists(name: str, own: Mapping[str, Sequence[str]]) -> bool:
    return name in TENANT_ROLES or name in own


def _width(grants: frozenset[str]) -> int:
    return sum(allows(grants, f"{resource}:{action}") for resource, actions in RESOURCES.items() for action in actions)


def _tenant(claims: Mapping[str, Any], wanted: Claims) -> str:
    value = _at(claims, wanted.tenant)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if value is None or value == "":
        if wanted.default_tenant is None:
            raise Forbidden(f"the token names no tenant: it has no claim {wanted.tenant}", code="not_a_member")
        return wanted.default_tenant
    if not isinstance(value, str) or not value.isprintable():
        raise Forbidden(f"the token's claim {wanted.tenant} is not one tenant", code="not_a_member")
    bound = wanted.bound_to
    found = value[:_MAX_NAME_CHARS] if bound is None else bound.get(value)
    if found is None:
        raise Forbidden(
            f"the token's claim {wanted.tenant} names a tenant that its issuer does not speak for here",
            code="not_a_member",
        )
    return found


def _roles(value: Any, role_map: Mapping[str, str]) -> tuple[str, ...]:
    """Roles here, sorted: the same ones in another order are the same subject. A text is split at spaces (as `scope` is)."""
    given = value.split() if isinstance(value, str) else value if isinstance(value, list) else []
    named = [one for one in given[:_MAX_ROLES] if isinstance(one, str)]
    here = [role_map[one] for one in named if one in role_map] if role_map else named
    return tuple(sorted({one for one in here if _may_be_a_role(one)}))


def _may_be_a_role(name: str) -> bool:
    return 0 < len(name) <= _MAX_ROLE_CHARS and name.isprintable() and name != Role.OPERATOR.value


def _at(claims: Mapping[str, Any], path: str) -> Any:
    """The claim of that very name (names that are addresses have dots), or what the path leads to; None where nothing is."""
    if path in claims:
        return claims[path]
    found: Any = claims
    for part in path.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _text(value: Any, most: int) -> str | None:
    if not isinstance(value, str):
        return None
    return "".join(char for char in value[:most] if char.isprintable()).strip() or None
