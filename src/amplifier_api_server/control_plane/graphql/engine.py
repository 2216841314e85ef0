"""Carrying out documents: parse, measure, validate, execute. Knows no HTTP and no sockets.

Strawberry makes the types; graphql-core, which it is built upon, is asked directly: so every document is measured before the
costly steps, and nothing but `problems` says what a caller reads of a failure.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from graphql import (
    DocumentNode,
    ExecutionResult,
    GraphQLError,
    NoSchemaIntrospectionCustomRule,
    OperationDefinitionNode,
    OperationType,
    execute,
    get_operation_ast,
    parse,
    specified_rules,
    subscribe,
    validate,
)

from amplifier_api_server.control_plane.fair_queue import FairQueue
from amplifier_api_server.control_plane.graphql import problems
from amplifier_api_server.control_plane.graphql.context import Context
from amplifier_api_server.control_plane.graphql.execution import execution_in_turns
from amplifier_api_server.control_plane.graphql.measure import Bounds, measure
from amplifier_api_server.control_plane.graphql.schema import CORE
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.tenants.errors import DomainError, Invalid

_MAX_ERRORS: Final = 10  # of one document
_MAX_NAMES: Final = 10  # of its operations, in an error
_KEPT: Final = 256  # documents that were valid: clients send the same ones again and again
_MAX_KEPT_CHARS: Final = 8192
_MAX_CHARS: Final = 64 * 1024  # of a document: they are read one by one, in 10 ms

Payload = dict[str, Any]  # a response as it becomes JSON: `data`, `errors`


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request holds."""

    query: str
    variables: Mapping[str, Any] = field(default_factory=dict)
    operation_name: str | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A document that can be carried out, and which of its operations is."""

    document: DocumentNode
    operation: OperationDefinitionNode

    @property
    def kind(self) -> OperationType:
        return self.operation.operation


class Unusable(Exception):
    """A document that can't be carried out: for its `errors`, or for the one `problem`. `is_syntax`: it is none at all."""

    def __init__(
        self, errors: list[GraphQLError], *, is_syntax: bool = False, problem: dict[str, Any] | None = None
    ) -> None:
        super().__init__(errors[0].message if errors else "")
        self.errors = errors
        self.is_syntax = is_syntax
        self.problem = problem

    def told(self) -> list[dict[str, Any]]:
        """As a response's `errors`."""
        if self.problem is not None:
            return [problems.bare(self.problem)]
        return problems.invalid(self.errors)


class Engine:
    """One a process."""

    def __init__(self, settings: Settings, queue: FairQueue) -> None:
        self._limits = settings.graphql
        self._bounds = Bounds.of(settings.graphql, settings.api.page_size, settings.api.max_page_size)
        rules = list(specified_rules)
        self._rules = rules if settings.graphql.introspection else [*rules, NoSchemaIntrospectionCustomRule]
        self._kept: OrderedDict[str, DocumentNode] = OrderedDict()
        self._queue = queue
        self._execution = execution_in_turns(queue)

    async def prepare(self, asked: Asked, tenant_id: str) -> Prepared:
        """When it is the tenant's turn. Raises Unusable; Invalid (`document_too_complex`)."""
        return await self._queue.run(tenant_id, partial(self.prepared, asked))

    def prepared(self, asked: Asked) -> Prepared:
        """Raises Unusable; Invalid (`document_too_complex`)."""
        document = self._kept.get(asked.query)
        try:
            if document is None:
                document = self._parsed(asked.query)
                measure(CORE, document, asked.variables, self._bounds)
                self._validate(document)
                self._keep(asked.query, document)
            else:
                self._kept.move_to_end(asked.query)
                measure(CORE, document, asked.variables, self._bounds)
        except RecursionError as error:
            raise Invalid("the document is nested too deeply", code="document_too_complex") from error
        operation = get_operation_ast(document, asked.operation_name)
        if operation is None:
            raise Unusable([GraphQLError(_which(document, asked.operation_name))])
        return Prepared(document, operation)

    def _parsed(self, query: str) -> DocumentNode:
        if len(query) > _MAX_CHARS:
            raise Invalid(
                f"the document is too long: it has more than {_MAX_CHARS} characters; send long values as variables",
                code="document_too_complex",
                limit_value=_MAX_CHARS,
            )
        try:
            return parse(query, max_tokens=self._limits.max_tokens)
        except GraphQLError as error:
            raise Unusable([error], is_syntax=True) from error

    def _validate(self, document: DocumentNode) -> None:
        is_open = self._limits.introspection
        errors = validate(CORE, document, self._rules, max_errors=_MAX_ERRORS, hide_suggestions=not is_open)
        if errors:
            raise Unusable(errors)

    def _keep(self, query: str, document: DocumentNode) -> None:
        if len(query) <= _MAX_KEPT_CHARS:
            self._kept[query] = document
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)

    async def run(self, prepared: Prepared, asked: Asked, context: Context) -> Payload:
        """A query's or a mutation's whole response."""
        work = partial(execute, CORE, prepared.document, **self._given(asked, context))
        found = await self._queue.run(context.principal.tenant_id, work)
        return _payload(await found if inspect.isawaitable(found) else found, context)

    def _given(self, asked: Asked, context: Context) -> dict[str, Any]:
        return {
            "context_value": context,
            "variable_values": dict(asked.variables),
            "operation_name": asked.operation_name,
            "max_coercion_errors": _MAX_ERRORS,
            "executor_class": self._execution,
            "hide_suggestions": not self._limits.introspection,
        }

    async def stream(self, prepared: Prepared, asked: Asked, context: Context) -> AsyncGenerator[Payload, None]:
        """Every response of any operation: one of a query, as many as there are of a subscription."""
        if prepared.kind is not OperationType.SUBSCRIPTION:
            yield await self.run(prepared, asked, context)
            return
        found = subscribe(CORE, prepared.document, **self._given(asked, context))
        source = await found if inspect.isawaitable(found) else found
        if isinstance(source, ExecutionResult):  # there is nothing to follow, and so no data either
            yield {"errors": problems.told(source.errors or [], context)}
            return
        try:
            async for result in source:
                yield _payload(result, context)
        except DomainError as error:
            yield {"errors": [problems.bare(problems.refusal(error, context))]}
        except Exception as error:  # noqa: BLE001 - it is logged there, and the stream ends with it
            yield {"errors": [problems.bare(problems.ours(error, context))]}
        finally:
            await _close(source)


def _which(document: DocumentNode, asked: str | None) -> str:
    """What to do where it is not certain which operation is wanted, or where there is none of that name."""
    operations = [one.name for one in document.definitions if isinstance(one, OperationDefinitionNode)]
    if not operations:
        return "the document has no operation: a query, a mutation or a subscription"
    if asked is None:
        return f"the document has {len(operations)} operations; operationName should say which of them is to be carried out"
    names = [one.value for one in operations if one is not None]
    if not names:
        return f"the document has no operation named {asked!r}; its operation has no name, so leave operationName out"
    return f"the document has no operation named {asked!r}; operationName should be {' or '.join(names[:_MAX_NAMES])}"


async def _close(source: AsyncIterator[ExecutionResult]) -> None:
    """What was followed is let go of now, not when it is collected."""
    close = getattr(source, "aclose", None)
    if close is not None:
        await close()


def _payload(result: ExecutionResult, context: Context) -> Payload:
    payload: Payload = {}
    if result.errors:
        payload["errors"] = problems.told(result.errors, context)
    if result.data is not None or not _is_unasked(result.errors or []):
        payload["data"] = result.data
    return payload


def _is_unasked(errors: list[GraphQLError]) -> bool:
    """Whether nothing was carried out: such a response has no `data` at all (GraphQL, 7.1)."""
    return bool(errors) and all(one.path is None for one in errors)
