"""The OpenAPI document: what the framework knows of its own endpoints, and what the route table says of the hot ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI
from pydantic import BaseModel

from amplifier_api_server.control_plane import openapi_answers, openapi_events, openapi_schemas
from amplifier_api_server.control_plane.auth_settings import Auth
from amplifier_api_server.control_plane.openapi_answers import problem_answers
from amplifier_api_server.control_plane.routes import RouteTable
from amplifier_api_server.control_plane.sessions import shapes

_REF: Final = "#/components/schemas/"
TAGS: Final[Mapping[str, str]] = {
    "sessions": "Conversations with an agent, what is executed in them, and the approvals that an execution waits for.",
    "catalog": "What sessions are made of: profiles, collections and tools.",
    "models": "The models that a tenant may use, with their prices and capabilities.",
    "keys": "API keys: made, listed, rotated, revoked.",
    "provider keys": "A tenant's own keys at model providers.",
    "members": "Who belongs to the tenant, people and services, and who is invited.",
    "roles": "What members may do.",
    "limits": "The limits of the caller and of its tenant, what is used of them, and why the last request was refused.",
    "usage": "Tokens and costs, by session, member, model or day.",
    "web": "Which hosts of the public web the tenant's tools may read.",
    "events": "What happens in the tenant, as a stream.",
    "audit": "The record of every change of management.",
    "tenants": "For the operator: the tenants of this installation.",
    "logins": "Logging in by a browser, and the device flow by which a program gets an API key.",
    "graphql": "The GraphQL API.",
    "operations": "Health, readiness, metrics and the descriptions of the other APIs.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of an endpoint that can answer these problems."""
    return problem_answers(*statuses)


def pages_or_problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The same of one that a browser may ask: it gets a page."""
    found = problem_answers(*statuses)
    for one in found.values():
        one["content"]["text/html"] = {"schema": {"type": "string"}}
    return found


def operation(
    *,
    operation_id: str,
    summary: str,
    description: str,
    answer: type[BaseModel] | None,
    accepted: type[BaseModel] | None = None,
    body: type[BaseModel] | None = None,
    streams: str | None = None,
    statuses: tuple[int, ...] = (),
    tag: str = "sessions",
) -> dict[str, Any]:
    """An OpenAPI operation of a hot endpoint. `streams` names the component that its events are."""
    content: dict[str, Any] = {}
    if answer is not None:
        content["application/json"] = {"schema": {"$ref": _REF + answer.__name__}}
    if streams is not None:
        content |= openapi_events.stream_of(streams)
    found: dict[str, Any] = {
        "operationId": operation_id,
        "summary": summary,
        "description": description,
        "tags": [tag],
        "responses": {"200": {"description": "OK", "content": content}}
        | {str(status): value for status, value in problems(*statuses).items()},
    }
    if accepted is not None:
        found["responses"]["202"] = {
            "description": "It goes on by itself",
            "content": {"application/json": {"schema": {"$ref": _REF + accepted.__name__}}},
        }
    if body is not None:
        found["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": _REF + body.__name__}}},
        }
    found["models"] = [one for one in (answer, accepted, body) if one is not None]
    return found


def security_schemes(auth: Auth) -> dict[str, dict[str, Any]]:
    """How callers may say who they are, as it is configured."""
    found: dict[str, dict[str, Any]] = {}
    for place, method in enumerate(auth.keys, start=1):
        found[f"ApiKey{place if place > 1 else ''}"] = {"type": "apiKey", "in": "header", "name": method.header}
    issuers = ", ".join(one.issuer for one in auth.bearers)
    found["Bearer"] = {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT" if issuers else "API key",
        "description": "an API key" + (f", or a JWT that one of these issued: {issuers}" if issuers else ""),
    }
    if auth.logins:
        is_secure = (auth.login.public_url or "").startswith("https://")
        about = "from a login in the browser; what changes something needs X-CSRF-Token besides"
        name = "__Host-amplifier" if is_secure else "amplifier"
        found["Login"] = {"type": "apiKey", "in": "cookie", "name": name, "description": about}
    return found


def install(app: FastAPI, routes: RouteTable, auth: Auth) -> None:
    """Have `app.openapi()` give the whole document."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            _complete(document, routes, auth)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(document: dict[str, Any], routes: RouteTable, auth: Auth) -> None:
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    document["info"] |= {
        "license": {"name": "MIT", "identifier": "MIT"},
        "contact": {"name": "The amplifier-api-server authors"},
    }
    document["servers"] = [{"url": auth.login.public_url or "/", "description": "this server"}]
    for one in (*openapi_events.MODELS, *shapes.MODELS):
        _add_model(schemas, one)
    schemas |= openapi_events.COMPONENTS
    components["headers"] = dict(openapi_answers.HEADERS)
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    components["securitySchemes"] = schemes = security_schemes(auth)
    for route in routes.routes:
        path = (
            document["paths"].setdefault(route.template, {})
            if route.docs
            else document["paths"].get(route.template, {})
        )
        if route.docs:
            said = dict(route.docs)
            for model in said.pop("models"):
                _add_model(schemas, model)
            names = [part[1:-1] for part in route.template.split("/") if part.startswith("{")]
            parameters = [{"name": one, "in": "path", "required": True, "schema": {"type": "string"}} for one in names]
            path[route.method.lower()] = said | {"parameters": parameters + list(said.get("parameters", []))}
        found = path.get(route.method.lower())
        if found is not None:
            _finish_operation(found, list(schemes) if route.permission is not None else [])
            _name_bodies(found, schemas)
            openapi_answers.complete(found, route)
    used = {tag for one in openapi_schemas.operations(document) for tag in one["tags"]}
    document["tags"] = [{"name": name, "description": text} for name, text in TAGS.items() if name in used]
    openapi_schemas.complete(document)


def _finish_operation(found: dict[str, Any], schemes: list[str]) -> None:
    """What is refused as invalid is a problem here, not the framework's own shape; and who may call it."""
    if "HTTPValidationError" in str(found["responses"].get("422", "")):
        found["responses"]["422"] = problems(422)[422]
    found["security"] = [{name: []} for name in schemes]


def _name_bodies(found: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Bodies that an endpoint reads by itself have their schema in place: give it a name, as all others have."""
    for media in found.get("requestBody", {}).get("content", {}).values():
        if (name := media["schema"].get("title")) and "properties" in media["schema"]:
            _add(schemas, name, media["schema"])
            media["schema"] = {"$ref": _REF + name}


def _add_model(schemas: dict[str, Any], model: type[BaseModel]) -> None:
    _add(schemas, model.__name__, model.model_json_schema(ref_template=_REF + "{model}"))


def _add(schemas: dict[str, Any], name: str, made: dict[str, Any]) -> None:
    for inner, definition in made.pop("$defs", {}).items():
        schemas.setdefault(inner, definition)
    schemas.setdefault(name, made)
