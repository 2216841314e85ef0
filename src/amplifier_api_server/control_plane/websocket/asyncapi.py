"""The AsyncAPI document of `/ws`: made of the models that read and describe the messages, and of the table of operations.

Owns the document's shape (AsyncAPI 3.0). Invariant (a test holds it): every message there is, in both directions, is in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import BaseModel

from amplifier_api_server import __version__
from amplifier_api_server.control_plane.operations import OPERATIONS
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.control_plane.websocket.answers import SERVER_MESSAGES, type_of
from amplifier_api_server.control_plane.websocket.messages import CLIENT_MESSAGES
from amplifier_api_server.control_plane.websocket.table import ANY, CALLABLE, OPERATION_OF, TRANSLATED

_SCHEMAS: Final = "#/components/schemas/"
_CHANNEL: Final = {"$ref": "#/channels/ws"}

# What a message is answered with, beside `error`; what follows it is sent as it happens.
REPLIES: Final[Mapping[str, str]] = {name: one.answer for name, one in TRANSLATED.items()} | {
    "auth": "auth.ok",
    "ping": "pong",
    "execute": "execution.started",
    "execute.once": "execution.started",
    "attach": "attached",
    "detach": "detached",
    "events.subscribe": "events.subscribed",
    "events.unsubscribe": "events.unsubscribed",
    ANY: "result",
}

_EXAMPLES: Final[Mapping[str, dict[str, Any]]] = {
    "auth": {"type": "auth", "token": "amp_live_..."},
    "ping": {"type": "ping", "id": 1},
    "session.create": {"type": "session.create", "id": "a", "profile": "foundation:base"},
    "execute": {"type": "execute", "id": "b", "session_id": "sess_abc123", "prompt": "Analyze this code..."},
    "execute.once": {"type": "execute.once", "id": "c", "profile": "foundation:base", "prompt": "Say hello"},
    "attach": {"type": "attach", "session_id": "sess_abc123", "request_id": "req_xyz789", "after": "req_xyz789:17"},
    "call": {"type": "call", "id": "c", "operation": "getProfile", "params": {"name": "foundation:base"}},
}


def document(settings: Settings) -> dict[str, Any]:
    """The document of a server with these settings; nothing is started for it."""
    schemas: dict[str, Any] = {}
    from_client = {name: _message(name, model, "validation", schemas) for name, model in CLIENT_MESSAGES.items()}
    to_client = {type_of(model): _message(type_of(model), model, "serialization", schemas) for model in SERVER_MESSAGES}
    replies = frozenset(REPLIES.values())
    told = [name for name in to_client if name not in replies]
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Amplifier API: WebSocket",
            "version": __version__,
            "description": "JSON messages in text frames, in both directions. docs/websocket.md tells the whole of it.",
        },
        "defaultContentType": "application/json",
        "servers": {
            "here": {
                "host": "{host}",
                "protocol": "wss",
                "variables": {"host": {"default": "localhost:8000", "description": "ws:// where no proxy adds TLS"}},
                "security": [{"$ref": "#/components/securitySchemes/" + name} for name in ("ApiKey", "Bearer")],
            }
        },
        "channels": {
            "ws": {
                "address": "/ws",
                "description": f"A message has at most {settings.websocket.max_message} bytes.",
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in (*from_client, *to_client)},
                "bindings": {"ws": {"method": "GET"}},
            }
        },
        "operations": {_operation_name(name): _received(name) for name in from_client}
        | {"tell": {"action": "send", "channel": _CHANNEL, "messages": [_in_channel(name) for name in told]}},
        "components": {
            "messages": from_client | to_client,
            "schemas": schemas,
            "securitySchemes": {
                "ApiKey": {
                    "type": "httpApiKey",
                    "in": "header",
                    "name": settings.auth.keys[0].header if settings.auth.keys else "X-API-Key",
                    "description": "of the upgrade request; or `auth` as the first message",
                },
                "Bearer": {"type": "http", "scheme": "bearer", "description": "the same"},
            },
        },
    }


def _operation_name(message: str) -> str:
    return "on." + message


def _in_channel(message: str) -> dict[str, str]:
    return {"$ref": f"#/channels/ws/messages/{message}"}


def _received(message: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "action": "receive",
        "channel": _CHANNEL,
        "messages": [_in_channel(message)],
        "reply": {"channel": _CHANNEL, "messages": [_in_channel(REPLIES[message]), _in_channel("error")]},
    }
    if message == ANY:
        found["x-operations"] = {name: OPERATIONS[name].permission for name in sorted(CALLABLE)}
    elif (operation := OPERATION_OF[message]) is not None:
        found["x-operation"] = operation
        found["x-permission"] = OPERATIONS[operation].permission
        if also := OPERATIONS[operation].also:
            found["x-permission-also"] = also
    return found


def _message(
    name: str, model: type[BaseModel], mode: Literal["validation", "serialization"], schemas: dict[str, Any]
) -> dict[str, Any]:
    made = model.model_json_schema(ref_template=_SCHEMAS + "{model}", mode=mode)
    definitions = made.pop("$defs", {})
    summary = " ".join((model.__doc__ or "").split())
    for title, schema in [*definitions.items(), (model.__name__, made)]:
        schema.pop("example", None)
        if schemas.setdefault(title, schema) != schema:
            raise ValueError(f"two schemas are called {title}")
    found: dict[str, Any] = {
        "name": name,
        "title": name,
        "summary": summary,
        "payload": {"$ref": _SCHEMAS + model.__name__},
    }
    if name in _EXAMPLES:
        found["examples"] = [{"payload": _EXAMPLES[name]}]
    return found
