"""The OpenAPI document: what the framework knows of its own endpoints, and what the route table says of the hot ones."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from amplifier_api_server.control_plane import openapi_answers, openapi_events
from amplifier_api_server.control_plane.auth_settings import Auth
from amplifier_api_server.control_plane.openapi_answers import problem_answers
from amplifier_api_server.control_plane.routes import RouteTable


class Problem(BaseModel):
    """RFC 9457; `code` is stable, and docs/errors.md lists them."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str | None = None
    retry_after_seconds: int | None = None
    errors: list[dict[str, Any]] | None = None


_REF = "#/components/schemas/"


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
        "tags": [tag],
        "responses": {"200": {"description": "OK", "content": content}}
        | {str(status): value for status, value in problems(*statuses).items()},
    }
    if accepted is not None:
        found["responses"]["202"] = {
            "description": "It goes on by itself",
            "headers": {"Location": {"description": "where it is", "schema": {"type": "string"}}},
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
    shared: tuple[type[BaseModel], ...] = (Problem, *openapi_events.MODELS)
    for one in shared:
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
            openapi_answers.complete(found, route)


def _finish_operation(found: dict[str, Any], schemes: list[str]) -> None:
    """What is refused as invalid is a problem here, not the framework's own shape; and who may call it."""
    if "HTTPValidationError" in str(found["responses"].get("422", "")):
        found["responses"]["422"] = problems(422)[422]
    found["security"] = [{name: []} for name in schemes]


def _add_model(schemas: dict[str, Any], model: type[BaseModel]) -> None:
    made = model.model_json_schema(ref_template=_REF + "{model}")
    for name, definition in made.pop("$defs", {}).items():
        schemas.setdefault(name, definition)
    schemas.setdefault(model.__name__, made)
