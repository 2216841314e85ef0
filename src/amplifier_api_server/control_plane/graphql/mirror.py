"""REST's answers as GraphQL types: the same members under the same names, in camel case, so that the doors can't drift apart.

A resolver returns the very object that REST would make JSON of; its attributes are what the fields are read from. Whole
numbers are BigInt, what is called `id` or ends in `_id` is an ID, what has no shape of its own is JSON.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Any, Final, Literal

import strawberry
from pydantic import AwareDatetime, BaseModel
from strawberry import ID

from amplifier_api_server.control_plane.graphql.scalars import JSON, BigInt

_PLAIN: Final[Mapping[object, object]] = {
    str: str,
    bool: bool,
    float: float,
    int: BigInt,
    datetime: datetime,
    AwareDatetime: datetime,
    Any: JSON | None,
    date: date,
}


@strawberry.interface(description="What has an id of its own, by which `node` finds it.")
class Node:
    id: ID


_made: dict[type[BaseModel], Any] = {}


def mirror(
    model: type[BaseModel],
    name: str,
    *,
    renamed: Mapping[str, str] | None = None,
    without: Sequence[str] = (),
    more: Mapping[str, Any] | None = None,
    is_node: bool = False,
) -> Any:
    """The type called `name` that has the members of `model`, and `more` fields of its own.

    `renamed` maps a member to its name in GraphQL. `is_node`: `node` finds it by what is called `id` there.
    Made once for each model: where it is a member of another one, it is this.
    """
    if model in _made:
        raise ValueError(f"{model.__name__} is mirrored already")
    renamed, more = renamed or {}, more or {}
    annotations: dict[str, Any] = {}
    namespace: dict[str, Any] = {"__annotations__": annotations, "__doc__": model.__doc__, "__module__": __name__}
    for member, field in model.model_fields.items():
        if member in more or member in without:
            continue
        if is_node and renamed.get(member, member) == "id":
            namespace["id"] = strawberry.field(resolver=_reads(member), graphql_type=ID, description=field.description)
            continue
        annotations[member] = _kind(field.annotation, member)
        if member in renamed or field.description:
            namespace[member] = strawberry.field(name=renamed.get(member), description=field.description)
    namespace.update(more)
    if is_node:
        namespace["is_type_of"] = staticmethod(lambda found, _info: isinstance(found, model))
    _made[model] = strawberry.type(
        type(name, (Node,) if is_node else (), namespace), name=name, description=_description(model)
    )
    return _made[model]


def _reads(member: str) -> Any:
    def read(self: BaseModel) -> Any:
        return getattr(self, member)

    return read


def mirrored(model: type[BaseModel]) -> Any:
    """The type of a model, which is made under its own name where nobody named it."""
    return _made.get(model) or mirror(model, model.__name__.removesuffix("View"))


def _description(model: type[BaseModel]) -> str | None:
    text = model.__doc__
    if not text or text == BaseModel.__doc__ or "`/" in text or "`POST" in text or "`GET" in text:
        return None  # REST's own words
    return " ".join(text.split())


def _kind(annotation: Any, member: str) -> Any:
    """The GraphQL type of a member, as strawberry reads annotations."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _kind(arguments[0], member)
    if origin in (typing.Union, types.UnionType):
        given = [one for one in arguments if one is not types.NoneType]
        return (_kind(given[0], member) if len(given) == 1 else JSON) | None
    if origin in (list, tuple, Sequence):
        return list[_kind(arguments[0], member)]  # type: ignore[misc]
    if origin is Literal:
        return str
    if annotation is str:
        return strawberry.ID if member == "id" or member.endswith("_id") else str
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return mirrored(annotation)
    if isinstance(annotation, type) and issubclass(annotation, str):
        return str
    return _PLAIN.get(annotation, JSON)
