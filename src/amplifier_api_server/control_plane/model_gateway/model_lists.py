"""Models as a sandbox sees them: the list, and one of them, in the shape of the vendor whose client asks.

Owns the shapes of `GET /v1/models` and `GET /v1/models/{id}`. What there is, and for whom, `providers` says.
"""

from __future__ import annotations

from typing import Any

from amplifier_api_server.control_plane.model_gateway.answers import Refusal, Scope
from amplifier_api_server.control_plane.model_gateway.catalogue import Known
from amplifier_api_server.control_plane.model_gateway.dialects import CHAT, MESSAGES, RESPONSES, Dialect
from amplifier_api_server.control_plane.model_gateway.providers import Listed, Providers
from amplifier_api_server.tenants.ids import TenantId

_UNKNOWN_DATE = "1970-01-01T00:00:00Z"  # the vendor's own word for one that isn't known


def asks_as(scope: Scope) -> Dialect:
    """The dialect of a request that has no body to tell it by: Anthropic's clients always name a version."""
    is_anthropics = any(name == b"anthropic-version" for name, _ in scope["headers"])
    return MESSAGES if is_anthropics else CHAT


def list_of(listed: list[Listed], dialect: Dialect) -> dict[str, Any]:
    """Every model. Anthropic's clients get one page, which is all there is; only what they can ask for is in it."""
    if dialect is not MESSAGES:
        return {"object": "list", "data": [_openai(one.name, _owner(one), one.known) for one in listed]}
    data = [_anthropic(one.name, one.known) for one in listed if "messages" in one.dialects]
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return {"data": data, "has_more": False, **ends}


async def one_of(
    providers: Providers, name: str, dialect: Dialect, *, tenant_id: TenantId, tier: str
) -> dict[str, Any]:
    """The model of this name, whether it is listed or would be taken unlisted. Raises Refusal."""
    listed = await providers.models(tenant_id=tenant_id, tier=tier)
    for one in listed:
        if name in {one.name, f"{one.provider}/{one.model}"}:
            return _shaped(name, _owner(one), one.known, dialect)
    refusal: Refusal | None = None
    for spoken in (MESSAGES,) if dialect is MESSAGES else (CHAT, RESPONSES):
        try:
            route = await providers.route(tenant_id=tenant_id, tier=tier, model=name, dialect=spoken.name)
        except Refusal as refused:
            refusal = refusal or refused
            continue
        target = route.targets[0]
        return _shaped(name, target.provider.name, providers.known(target), dialect)
    assert refusal is not None
    raise refusal


def _shaped(name: str, owner: str, known: Known, dialect: Dialect) -> dict[str, Any]:
    return _anthropic(name, known) if dialect is MESSAGES else _openai(name, owner, known)


def _owner(one: Listed) -> str:
    return "amplifier" if one.is_alias else one.provider


def _openai(name: str, owner: str, known: Known) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": owner,
        "context_window": known.context_window,
        "max_output_tokens": known.max_output_tokens,
    }


def _anthropic(name: str, known: Known) -> dict[str, Any]:
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": _UNKNOWN_DATE,
        "lifecycle": "active",
        "line": None,
        "max_input_tokens": known.context_window,
        "max_tokens": known.max_output_tokens,
    }
