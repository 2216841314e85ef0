"""Root fields, each bound to an operation: what asks for something can't be written without saying which permission it takes.

Owns the order of things for a root field: its ids could exist, the gate lets the caller in, the work has its time. An
operation that takes an Idempotency-Key has it as an argument.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import re
import typing
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Any, Final, TypeVar

import strawberry
from pydantic import BaseModel, ValidationError

from amplifier_api_server.control_plane import wrong_fields
from amplifier_api_server.control_plane.graphql.context import Context, Info
from amplifier_api_server.control_plane.operations import OPERATIONS, Operation
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.tenants.errors import Invalid, NotFound, Unavailable

Body = TypeVar("Body", bound=BaseModel)
Resolver = Callable[..., Awaitable[Any]]
Lasts = Callable[[Settings], timedelta]

OPERATION: Final = "operation"  # in a field's `metadata`
_KEY: Final = "idempotency_key"
_SPARE: Final = timedelta(seconds=60)  # for a sandbox to start and a settlement to be written
_CAN_EXIST: Final = re.compile(r"[A-Za-z0-9._:~@-]{1,160}")  # as in a path: anything else is nobody's id or name


def root(
    operation: str, returns: Any, *, lasts: Lasts | None = None, keeps: type[BaseModel] | None = None
) -> Callable[[Resolver], Any]:
    """A field of Query or Mutation. `lasts`: how long the work may take that it waits for, where that is long.

    Where `returns` can be null, what is not there is null. `keeps` is what the resolver gives, of an operation that takes an
    Idempotency-Key: a repetition is answered with the same.
    """
    row = OPERATIONS[operation]

    def decorate(resolver: Resolver) -> Any:
        ids = _ids_of(resolver, operation)

        is_nullable = type(None) in typing.get_args(returns)

        @functools.wraps(resolver)
        async def entered(_nothing: None, /, info: Info, **given: Any) -> Any:
            context = info.context
            key = given.pop(_KEY, None) if keeps is not None else None
            work: Callable[[], Awaitable[Any]] = functools.partial(_resolved, resolver, ids, info, given)
            if key is not None and keeps is not None:
                work = functools.partial(_once, context, key, row, {"field": info.field_name, **given}, work, keeps)
            try:
                return await context.carry_out(row, functools.partial(_in_time, context, work, lasts))
            except NotFound:
                if is_nullable:
                    return None
                raise

        assert row.takes_key == (keeps is not None or _KEY in inspect.signature(resolver).parameters), operation
        entered.__signature__ = signature_of(resolver, takes_key=keeps is not None)  # type: ignore[attr-defined]
        return strawberry.field(
            resolver=entered, graphql_type=returns, metadata={OPERATION: row}, description=_told(resolver)
        )

    return decorate


def stream(operation: str, returns: Any) -> Callable[[Resolver], Any]:
    """A field of Subscription: its resolver checks what was asked for, and gives what is then iterated."""
    row = OPERATIONS[operation]

    def decorate(resolver: Resolver) -> Any:
        ids = _ids_of(resolver, operation)

        @functools.wraps(resolver)
        async def entered(_nothing: None, /, info: Info, **given: Any) -> Any:
            context = info.context
            work = functools.partial(_resolved, resolver, ids, info, given)
            return await context.carry_out(row, functools.partial(_in_time, context, work, None))

        entered.__signature__ = signature_of(resolver)  # type: ignore[attr-defined]
        return strawberry.subscription(
            resolver=entered, graphql_type=returns, metadata={OPERATION: row}, description=_told(resolver)
        )

    return decorate


def operation_of(metadata: Mapping[Any, Any]) -> Operation:
    """What a root field is bound to. Raises KeyError for one that is bound to nothing."""
    found = metadata[OPERATION]
    assert isinstance(found, Operation)
    return found


def parsed(model: type[Body], **given: Any) -> Body:
    """REST's body of these values, checked as there. Raises Invalid."""
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise invalid(error) from error


def invalid(error: ValidationError) -> Invalid:
    """What pydantic refused, by GraphQL's names of the arguments."""
    refused = error.errors(include_url=False, include_input=False, include_context=False)
    found = wrong_fields.told(refused, whole="arguments", name=_camel)
    return Invalid(wrong_fields.detail(found, len(refused)), errors=found)


def known(kind: str, name: str) -> str:
    """A name that is looked up, if there could be a `kind` called like it. Raises NotFound."""
    if not _CAN_EXIST.fullmatch(name):
        raise NotFound(f"there is no {kind.replace('_', ' ')} of this name", code=f"{kind}_not_found")
    return name


async def _resolved(resolver: Resolver, ids: Mapping[str, str], info: Info, given: Mapping[str, Any]) -> Any:
    _check_ids(ids, given)
    return await resolver(None, info, **given)


async def _once(
    context: Context,
    key: str,
    operation: Operation,
    arguments: Mapping[str, Any],
    work: Callable[[], Awaitable[BaseModel]],
    keeps: type[BaseModel],
) -> BaseModel:
    """What the work gives, or gave the first time with this key."""

    async def kept() -> dict[str, Any]:
        return (await work()).model_dump(mode="json")

    found = await context.services.idempotency.once(context.principal, key, operation.name, arguments, kept)
    return keeps.model_validate(found)


async def _in_time(context: Context, work: Callable[[], Awaitable[Any]], lasts: Lasts | None) -> Any:
    settings = context.settings
    limit = max(settings.graphql.timeout, lasts(settings) + _SPARE) if lasts else settings.graphql.timeout
    try:
        async with asyncio.timeout(limit.total_seconds()) as time:
            return await work()
    except TimeoutError as error:
        if not time.expired():
            raise
        raise Unavailable(
            f"it did not end within {limit.total_seconds():g} s; try again",
            code="graphql_timeout",
            retry_after_seconds=1,
        ) from error


def _ids_of(resolver: Resolver, operation: str) -> Mapping[str, str]:
    """The arguments that are ids, and what each is the id of: `session_id` of a session, `id` what the operation is about."""
    about = "_".join(re.findall("[A-Z][a-z]*", operation)).lower()  # getKey: a key
    found = inspect.signature(resolver).parameters.values()
    names = [
        one.name for one in found if str(one.annotation).startswith(("ID", "strawberry.ID")) and one.name != "after"
    ]
    return {name: {"id": about, "request_id": "execution"}.get(name, name.removesuffix("_id")) for name in names}


def _check_ids(ids: Mapping[str, str], given: Mapping[str, Any]) -> None:
    for name, kind in ids.items():
        value = given.get(name)
        if value is not None and not _CAN_EXIST.fullmatch(value):
            raise NotFound(f"{_camel(name)}: there is no {kind} with this id", code=f"{kind}_not_found")


def signature_of(resolver: Resolver, *, takes_key: bool = False) -> inspect.Signature:
    """As strawberry should read it: an argument that has a default is one that can be left out, and has none itself."""
    found = inspect.signature(resolver)
    parameters = [
        one if one.default is inspect.Parameter.empty else one.replace(default=strawberry.UNSET)
        for one in found.parameters.values()
    ]
    if takes_key:
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(_KEY, kind, default=strawberry.UNSET, annotation="str | None"))
    return found.replace(parameters=parameters)


def _told(resolver: Resolver) -> str:
    assert resolver.__doc__, f"{resolver.__name__} says nothing of itself"
    return " ".join(resolver.__doc__.split())


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(one.capitalize() for one in rest)
