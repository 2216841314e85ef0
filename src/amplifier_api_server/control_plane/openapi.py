"""The OpenAPI document: what the framework knows of its own endpoints, and what the route table says of the hot ones."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from amplifier_api_server.control_plane.errors import PROBLEM_TYPE, TITLES
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
    return {
        status: {"description": TITLES[status], "content": {PROBLEM_TYPE: {"schema": {"$ref": _REF + "Problem"}}}}
        for status in statuses
    }


def operation(
    *,
    operation_id: str,
    summary: str,
    answer: type[BaseModel] | None,
    body: type[BaseModel] | None = None,
    streams: bool = False,
    statuses: tuple[int, ...] = (),
    tag: str = "sessions",
) -> dict[str, Any]:
    """An OpenAPI operation of a hot endpoint."""
    content: dict[str, Any] = {}
    if answer is not None:
        content["application/json"] = {"schema": {"$ref": _REF + answer.__name__}}
    if streams:
        content["text/event-stream"] = {"schema": {"type": "string", "description": "events as docs/protocol.md says"}}
    found: dict[str, Any] = {
        "operationId": operation_id,
        "summary": summary,
        "tags": [tag],
        "responses": {"200": {"description": "OK", "content": content}}
        | {str(status): value for status, value in problems(*statuses).items()},
    }
    if body is not None:
        found["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": _REF + body.__name__}}},
        }
    found["models"] = [one for one in (answer, body) if one is not None]
    return found


def install(app: FastAPI, routes: RouteTable) -> None:
    """Have `app.openapi()` give the whole document."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            _complete(document, routes)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(document: dict[str, Any], routes: RouteTable) -> None:
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    _add_model(schemas, Problem)
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    components["securitySchemes"] = {
        "ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        "Bearer": {"type": "http", "scheme": "bearer"},
    }
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
            _finish_operation(found, needs_key=route.permission is not None)


def _finish_operation(found: dict[str, Any], *, needs_key: bool) -> None:
    """What is refused as invalid is a problem here, not the framework's own shape; and who may call it."""
    if "HTTPValidationError" in str(found["responses"].get("422", "")):
        found["responses"]["422"] = problems(422)[422]
    found["security"] = [{"ApiKey": []}, {"Bearer": []}] if needs_key else []


def _add_model(schemas: dict[str, Any], model: type[BaseModel]) -> None:
    made = model.model_json_schema(ref_template=_REF + "{model}")
    for name, definition in made.pop("$defs", {}).items():
        schemas.setdefault(name, definition)
    schemas.setdefault(model.__name__, made)
