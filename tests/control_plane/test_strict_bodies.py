"""What decides something is said plainly: no request's body takes "yes" for true, or "5" and true for a number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from amplifier_api_server.control_plane.framework import framework
from amplifier_api_server.control_plane.routing import route_table
from amplifier_api_server.control_plane.schemas import Body
from amplifier_api_server.control_plane.sessions.schemas import SessionDocument
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.control_plane.websocket.messages import Message

# What it is told is text, lists and objects; `sessions.transcripts` reads them.
DECIDES_NOTHING = {SessionDocument}


def subclasses(kind: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for one in kind.__subclasses__():
        yield one
        yield from subclasses(one)


def bodies() -> list[type[BaseModel]]:
    """Of every endpoint and message."""
    settings = Settings()
    found: set[type[BaseModel]] = {*subclasses(Body), *subclasses(Message)}
    for route in framework(settings, route_table(settings, None)).routes:
        if isinstance(route, APIRoute) and route.body_field is not None:
            kind = route.body_field.field_info.annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found.add(kind)
    return sorted(found - DECIDES_NOTHING, key=lambda one: (one.__module__, one.__name__))


def refused(kind: type[BaseModel], field: str, value: Any) -> bool:
    try:
        kind.model_validate({field: value})
    except ValidationError as error:
        return any(one["loc"][:1] == (field,) for one in error.errors())
    return False


FIELDS = [
    (kind, name, str(field.annotation))
    for kind in bodies()
    for name, field in kind.model_fields.items()
    if "bool" in str(field.annotation) or "int" in str(field.annotation)
]


@pytest.mark.parametrize(
    ("kind", "name"), [one[:2] for one in FIELDS if "bool" in one[2]], ids=lambda one: getattr(one, "__name__", one)
)
def test_only_true_is_true(kind: type[BaseModel], name: str):
    for value in ("yes", "true", "on", "t", "1", 1, 0, 1.0, "no", "false", [], {}):
        assert refused(kind, name, value), value
    assert not refused(kind, name, True)
    assert not refused(kind, name, False)


NUMBERS = [one[:2] for one in FIELDS if one[2] in ("<class 'int'>", "int | None")]


@pytest.mark.parametrize(("kind", "name"), NUMBERS, ids=lambda one: getattr(one, "__name__", one))
def test_only_a_number_is_a_number(kind: type[BaseModel], name: str):
    for value in ("86400", 86400.5, True, False, "1e3", [1]):
        assert refused(kind, name, value), value


@pytest.mark.parametrize(
    "kind", [one for one in bodies() if "limits" in one.model_fields], ids=lambda one: one.__name__
)
def test_a_limit_is_no_boolean(kind: type[BaseModel]):
    assert refused(kind, "limits", {"requests_per_minute": True})
    assert refused(kind, "limits", {"requests_per_minute": 5.0})
    assert not refused(kind, "limits", {"requests_per_minute": 5, "tokens_per_day": "unlimited"})


def test_there_are_some_of_each():
    names = {f"{kind.__name__}.{name}" for kind, name, _ in FIELDS}
    assert {"AnswerApproval.approved", "ApprovalRespond.approved", "CreateInvitation.any_email"} <= names
    assert {"RotateKey.overlap", "CreateInvitation.expires_in"} <= {f"{kind.__name__}.{name}" for kind, name in NUMBERS}
