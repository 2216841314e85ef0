"""What a document would cost, before it is validated or carried out. Reads its syntax and the schema, and runs nothing.

Owns the bounds of depth, aliases, cost and repetition. A document is walked as it would be carried out, fragments spread
where they stand, and never further than its bounds: fragments that spread one another twice each would be 2^n fields long,
and a field that is asked for n times costs n^2 comparisons when it is validated (GraphQL, 5.3.2).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLField,
    GraphQLList,
    GraphQLObjectType,
    GraphQLSchema,
    InlineFragmentNode,
    IntValueNode,
    OperationDefinitionNode,
    OperationType,
    SelectionSetNode,
    VariableNode,
    get_named_type,
    get_nullable_type,
)

from amplifier_api_server.control_plane.graphql_settings import Graphql
from amplifier_api_server.tenants.errors import Invalid

_LIST: Final = 10  # how long a list is taken to be that has no pages
_LISTS: Final = {  # those of which more is known
    ("Query", "sessions"): 100,
    ("Session", "messages"): 20,
}
_COMPARISONS: Final = 2000  # of fields that stand for the same place in the answer
_INTROSPECTION: Final = ("__schema", "__type")  # its own rule holds how deep it goes, and no page multiplies it


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one document may be; `page_size` and `max_page_size` as lists have them."""

    depth: int
    aliases: int
    cost: int
    page_size: int
    max_page_size: int

    @classmethod
    def of(cls, settings: Graphql, page_size: int, max_page_size: int) -> Bounds:
        return cls(settings.max_depth, settings.max_aliases, settings.max_cost, page_size, max_page_size)


def measure(schema: GraphQLSchema, document: DocumentNode, variables: Mapping[str, Any], bounds: Bounds) -> int:
    """The cost of the costliest operation. Raises Invalid (`document_too_complex`), saying which bound it passes."""
    fragments = {one.name.value: one for one in document.definitions if isinstance(one, FragmentDefinitionNode)}
    most = 0
    for one in document.definitions:
        if isinstance(one, OperationDefinitionNode):
            walk = _Walk(schema, fragments, _values(one, variables), bounds)
            walk.level([one.selection_set], _root_of(schema, one.operation), 1, 1)
            most = max(most, walk.cost)
        elif isinstance(one, FragmentDefinitionNode):  # validation reads it also where nothing spreads it
            kind = schema.get_type(one.type_condition.name.value)
            walk = _Walk(schema, fragments, variables, bounds)
            walk.level([one.selection_set], kind if isinstance(kind, GraphQLObjectType) else None, 1, 1)
    return most


class _Walk:
    """One definition of a document."""

    def __init__(
        self,
        schema: GraphQLSchema,
        fragments: Mapping[str, FragmentDefinitionNode],
        variables: Mapping[str, Any],
        bounds: Bounds,
    ) -> None:
        self._schema = schema
        self._fragments = fragments
        self._variables = variables
        self._bounds = bounds
        self.cost = 0
        self._aliases = 0
        self._comparisons = 0
        self._steps = 0

    def level(
        self, sets: Sequence[SelectionSetNode], kind: GraphQLObjectType | None, depth: int, times: int, rows: int = 1
    ) -> None:
        """What stands at one place in the answer: the selections of every field that stands for it, together.

        It stands there `times` times; where it is a page, that has so many `rows`.
        """
        bounds = self._bounds
        if depth > bounds.depth:
            raise _too("deep", f"its fields are nested deeper than {bounds.depth}", bounds.depth)
        places, spreads = _collected(sets, self._fragments)
        self._comparisons += spreads * spreads // 2
        for fields in places.values():
            self._step(fields)
            first = fields[0]
            name = first.name.value
            definition = kind.fields.get(name) if kind is not None else None
            inner = [one.selection_set for one in fields if one.selection_set is not None]
            is_introspection = name in _INTROSPECTION
            self.cost += times
            if self.cost > bounds.cost:
                raise _too(
                    "costly", f"it costs more than {bounds.cost}: ask for fewer fields, or shorter pages", bounds.cost
                )
            if inner and not is_introspection:
                below = get_named_type(definition.type) if definition is not None else None
                is_page = definition is not None and "first" in definition.args
                length = _length(kind, name, definition, rows) if definition is not None and kind is not None else 1
                self.level(
                    inner,
                    below if isinstance(below, GraphQLObjectType) else None,
                    depth + 1,
                    times * length,
                    self._page(first) if is_page else 1,
                )

    def _step(self, fields: Sequence[FieldNode]) -> None:
        bounds = self._bounds
        self._aliases += sum(one.alias is not None for one in fields)
        if self._aliases > bounds.aliases:
            raise _too("many aliases", f"it has more than {bounds.aliases} aliases", bounds.aliases)
        self._comparisons += len(fields) * (len(fields) - 1) // 2
        if self._comparisons > _COMPARISONS:
            raise _too("repetitive", "it asks for the same fields over and over; ask for each once", _COMPARISONS)
        self._steps += len(fields)
        if self._steps > bounds.cost:
            raise _too("long", f"it asks for more than {bounds.cost} fields", bounds.cost)

    def _page(self, field: FieldNode) -> int:
        asked = next((one.value for one in field.arguments or () if one.name.value == "first"), None)
        size: object = None
        if isinstance(asked, IntValueNode):
            size = int(asked.value) if len(asked.value) < 10 else self._bounds.max_page_size  # noqa: PLR2004 - digits
        elif isinstance(asked, VariableNode):
            size = self._variables.get(asked.name.value)
            if isinstance(size, float) and size.is_integer():  # 100.0 is taken for an Int (GraphQL, 3.5.1)
                size = int(size)
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            size = self._bounds.page_size
        return min(size, self._bounds.max_page_size)


def width(fields: Sequence[FieldNode], fragments: Mapping[str, FragmentDefinitionNode]) -> int:
    """How many fields stand within each item of the list that `fields` ask for; itself, where it has none."""
    places, _ = _collected([one.selection_set for one in fields if one.selection_set is not None], fragments)
    return max(1, len(places))


def _length(kind: GraphQLObjectType, name: str, definition: GraphQLField, rows: int) -> int:
    """How often the fields within one are carried out."""
    if not isinstance(get_nullable_type(definition.type), GraphQLList):
        return 1
    return rows if kind.name.endswith("Connection") else _LISTS.get((kind.name, name), _LIST)


def _collected(
    sets: Sequence[SelectionSetNode], fragments: Mapping[str, FragmentDefinitionNode]
) -> tuple[dict[str, list[FieldNode]], int]:
    """The fields by their places in the answer, each fragment spread once; and how often fragments are spread here."""
    places: defaultdict[str, list[FieldNode]] = defaultdict(list)
    seen: set[str] = set()
    spreads = 0
    waiting = list(reversed(sets))
    while waiting:
        for one in waiting.pop().selections:
            if isinstance(one, FieldNode):
                places[one.alias.value if one.alias is not None else one.name.value].append(one)
            elif isinstance(one, InlineFragmentNode):
                waiting.append(one.selection_set)
            elif isinstance(one, FragmentSpreadNode):
                spreads += 1
                name = one.name.value
                if name in fragments and name not in seen:
                    seen.add(name)
                    waiting.append(fragments[name].selection_set)
    return places, spreads


def _values(operation: OperationDefinitionNode, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """The variables' values, with the defaults of those that are not given."""
    defaults = {
        one.variable.name.value: int(one.default_value.value[:9])
        for one in operation.variable_definitions or ()
        if isinstance(one.default_value, IntValueNode)
    }
    return {**defaults, **given}


def _root_of(schema: GraphQLSchema, operation: OperationType) -> GraphQLObjectType | None:
    return schema.get_root_type(operation)


def _too(word: str, detail: str, limit: int) -> Invalid:
    return Invalid(f"the document is too {word}: {detail}", code="document_too_complex", limit=limit)
