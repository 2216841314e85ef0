"""Carrying a document out a little at a time: the fields of all tenants take turns.

graphql-core completes a list in one go, with all that is within it: twenty thousand fields hold the event loop for 0.2 s.
Here the items of lists, and what was waited for, are completed in turns (`FairQueue`), by tenant. Owns when something is
completed, not what comes of it. Invariant: of one document no more than about `FIELDS_AT_ONCE` fields are completed without a
pause.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final, TypeVar

from graphql import GraphQLOutputType, GraphQLResolveInfo, get_named_type, is_leaf_type
from graphql.execution.collect_fields import FieldDetailsList, GroupedFieldSet
from graphql.pyutils import AwaitableOrValue, Path, gather_with_cancel
from strawberry.schema.schema import StrawberryGraphQLCoreExecutionContext

from amplifier_api_server.control_plane.fair_queue import FairQueue

Result = TypeVar("Result")

FIELDS_AT_ONCE: Final = 100  # about 0.6 ms


class ExecutionInTurns(StrawberryGraphQLCoreExecutionContext):
    """One for each document that is carried out; `queue` is shared by all."""

    queue: FairQueue

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._fields = 0  # that were completed so far
        self._begun = 0  # of them when this turn began

    @property
    def _is_over(self) -> bool:
        return self._fields - self._begun >= FIELDS_AT_ONCE

    async def _in_turn(self, work: Callable[[], Result]) -> Result:
        def begin() -> Result:
            self._begun = self._fields
            return work()

        tenant_id = self.context_value.principal.tenant_id
        return await self.queue.run(tenant_id, begin)

    def execute_fields(
        self, parent_type: Any, source_value: Any, path: Path | None, grouped_field_set: GroupedFieldSet, position: Any
    ) -> AwaitableOrValue[dict[str, Any]]:
        self._fields += len(grouped_field_set)
        return super().execute_fields(parent_type, source_value, path, grouped_field_set, position)

    async def complete_awaitable_value(
        self,
        return_type: GraphQLOutputType,
        field_details_list: FieldDetailsList,
        info: GraphQLResolveInfo[Any],
        path: Path,
        result: Any,
        position_context: Any,
    ) -> Any:
        try:
            found = await self.with_abort_signal(result)
            completed = await self._in_turn(
                partial(self.complete_value, return_type, field_details_list, info, path, found, position_context)
            )
            return await completed if self.is_awaitable(completed) else completed
        except Exception as error:  # noqa: BLE001 - it becomes one of the document's errors
            self.handle_field_error(error, return_type, field_details_list, path)
            return None

    def complete_iterable_value(
        self,
        item_type: GraphQLOutputType,
        field_details_list: FieldDetailsList,
        info: GraphQLResolveInfo[Any],
        path: Path,
        items: Iterable[Any],
        position_context: Any,
    ) -> AwaitableOrValue[list[Any]]:
        if is_leaf_type(get_named_type(item_type)):
            return super().complete_iterable_value(item_type, field_details_list, info, path, items, position_context)
        waiting = iter(items)
        completed: list[Any] = []
        unfinished: list[int] = []

        def some() -> bool:
            """Complete as many as one turn has room for. Whether there are more."""
            while not self._is_over:
                try:
                    item = next(waiting)
                except StopIteration:
                    return False
                at = len(completed)
                if self.complete_list_item_value(
                    item, completed, item_type, field_details_list, info, path.add_key(at, None), position_context
                ):
                    unfinished.append(at)
            return True

        async def rest(is_more: bool) -> list[Any]:
            try:
                while is_more:
                    is_more = await self._in_turn(some)
            except BaseException:
                self.settle_in_background([completed[at] for at in unfinished])
                raise
            for at, found in zip(
                unfinished, await gather_with_cancel(*(completed[at] for at in unfinished)), strict=True
            ):
                completed[at] = found
            return completed

        try:
            is_more = some()
        except Exception:
            self.settle_in_background([completed[at] for at in unfinished])
            raise
        return rest(is_more) if is_more or unfinished else completed


def execution_in_turns(queue: FairQueue) -> type[ExecutionInTurns]:
    """graphql-core makes its own instances."""
    return type("ExecutionInTurns", (ExecutionInTurns,), {"queue": queue})
