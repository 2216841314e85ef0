"""What a document would cost, before it is validated or carried out. Reads its syntax and the schema, and runs nothing.

Owns the bounds of depth, aliases, cost and repetition, of introspection as of all else. A document is walked as it would be
carried out, fragments spread where they stand, and never further than its bounds: fragments that spread one another twice
each would be 2^n fields long, and a field that is asked for n times costs n^2 comparisons when it is validated (GraphQL,
5.3.2).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Final

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLField,
    GraphQLInterfaceType,
    GraphQLList,
    GraphQLNamedType,
    GraphQLObjectType,
    GraphQLSchema,
    InlineFragmentNode,
    IntValueNode,
    ListValueNode,
    OperationDefinitionNode,
    SelectionSetNode,
    VariableNode,
    get_named_type,
    get_nullable_type,
    is_introspection_type,
)

from amplifier_api_server.control_plane.graphql.introspection import (
    ALL_TYPES,
    META_FIELDS,
    holds_each_once,
    lengths_of,
)
from amplifier_api_server.control_plane.graphql_settings import Graphql
from amplifier_api_server.tenants.errors import Invalid

_STEPS: Final = 10_000  # of fields of the document that are looked at, each as often as its fragment is spread
_AWAITED: Final = 10  # a field that waits for the database costs as much as so many that don't
_LIST: Final = 10  # how long a list is taken to be that has no pages
_LISTS: Final = {  # those of which more is known
    ("Query", "sessions"): 100,
    ("Session", "messages"): 20,
}
_COMPARISONS: Final = 2000  # of fields that stand for the same place in the answer
_INTROSPECTION_DEPTH: Final = 16  # tools' own documents have 15
_INTROSPECTION_COST: Final = 50_000  # and cost a third of that on this schema


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
    work = _Work()
    most = 0.0
    for one in document.definitions:
        if isinstance(one, OperationDefinitionNode):
            walk = _Walk(schema, fragments, _values(one, variables), bounds, work)
            walk.level([one.selection_set], _Place(schema.get_root_type(one.operation)))
            most = max(most, walk.cost)
        elif isinstance(one, FragmentDefinitionNode):  # validation reads it also where nothing spreads it
            walk = _Walk(schema, fragments, variables, bounds, work)
            walk.level([one.selection_set], _Place(_composite(schema.get_type(one.type_condition.name.value))))
    return ceil(most)


@dataclass(slots=True)
class _Work:
    """What measuring and validating a whole document takes, whichever of its operations is carried out."""

    comparisons: int = 0
    steps: int = 0

    def take(self, fields: int, spreads: int = 0) -> None:
        """Of one place in the answer: the fields that stand for it, or the fragments that are spread in it."""
        self.comparisons += fields * (fields - 1) // 2 + spreads * spreads // 2
        self.steps += fields + spreads
        if self.comparisons > _COMPARISONS:
            raise _too("repetitive", "it asks for the same fields over and over; ask for each once", _COMPARISONS)
        if self.steps > _STEPS:
            raise _too("long", f"it asks for more than {_STEPS} fields", _STEPS)


@dataclass(frozen=True, slots=True)
class _Place:
    """A place in the answer: an object of this kind stands there `times` times."""

    kind: GraphQLObjectType | GraphQLInterfaceType | None
    depth: int = 1
    times: float = 1
    rows: int = 1  # that it has, where it is a page
    wraps: int = 0  # of introspection: so many types were unwrapped (`ofType`) to get here
    is_each: bool = False  # of introspection: all objects of the kind stand there, each as often as any other

    @property
    def is_introspection(self) -> bool:
        return self.kind is not None and is_introspection_type(self.kind)


class _Walk:
    """One definition of a document."""

    def __init__(
        self,
        schema: GraphQLSchema,
        fragments: Mapping[str, FragmentDefinitionNode],
        variables: Mapping[str, Any],
        bounds: Bounds,
        work: _Work,
    ) -> None:
        self._schema = schema
        self._fragments = fragments
        self._variables = variables
        self._bounds = bounds
        self._work = work
        self.cost = 0.0
        self._introspection_cost = 0.0
        self._aliases = 0

    def level(self, sets: Sequence[SelectionSetNode], place: _Place) -> None:
        """What stands at one place: the selections of every field that stands for it, together."""
        most = max(self._bounds.depth, _INTROSPECTION_DEPTH) if place.is_introspection else self._bounds.depth
        if place.depth > most:
            raise _too("deep", f"its fields are nested deeper than {most}", most)
        places, spreads = _collected(sets, self._fragments)
        self._work.take(0, spreads)
        for fields in places.values():
            here = self._as_owner(place, fields[0].name.value)
            definition = self._definition(here, fields[0].name.value)
            self._take(fields, here, definition)
            inner = [one.selection_set for one in fields if one.selection_set is not None]
            if inner:
                self.level(inner, self._below(here, fields[0], definition))

    def _as_owner(self, place: _Place, name: str) -> _Place:
        """Where an object of one of several types stands, as that of the type that has the field."""
        if not isinstance(place.kind, GraphQLInterfaceType):
            return place
        possible = self._schema.get_possible_types(place.kind)
        return replace(place, kind=next((one for one in possible if name in one.fields), place.kind))

    def _definition(self, place: _Place, name: str) -> GraphQLField | None:
        if place.kind is self._schema.query_type and name in META_FIELDS:
            return META_FIELDS[name]
        return place.kind.fields.get(name) if place.kind is not None else None

    def _below(self, place: _Place, field: FieldNode, definition: GraphQLField | None) -> _Place:
        """Where the selections of a field stand."""
        if definition is None or place.kind is None:
            return _Place(None, place.depth + 1, place.times)
        name, kind = field.name.value, _composite(get_named_type(definition.type))
        if place.is_introspection:
            lengths = lengths_of(self._schema)
            length = lengths.of(place.kind.name, name, is_each=place.is_each, wraps=place.wraps)
            is_each = holds_each_once(place.kind.name, name) and (place.is_each or (place.kind.name, name) == ALL_TYPES)
            wraps = place.wraps + 1 if name == "ofType" else 0
            return _Place(kind, place.depth + 1, place.times * length, is_each=is_each, wraps=wraps)
        length = self._ids(field) if "ids" in definition.args else _length(place.kind, name, definition, place.rows)
        rows = self._page(field) if "first" in definition.args else 1
        return _Place(kind, place.depth + 1, place.times * length, rows)

    def _take(self, fields: Sequence[FieldNode], place: _Place, definition: GraphQLField | None) -> None:
        bounds = self._bounds
        self._work.take(len(fields))
        self._aliases += sum(one.alias is not None for one in fields)
        if self._aliases > bounds.aliases:
            raise _too("many aliases", f"it has more than {bounds.aliases} aliases", bounds.aliases)
        if place.is_introspection:
            self._introspection_cost += place.times
        else:
            self.cost += place.times * (_AWAITED if place.times > 1 and _is_awaited(definition) else 1)
        for cost, most in ((self.cost, bounds.cost), (self._introspection_cost, _INTROSPECTION_COST)):
            if cost > most:
                raise _too("costly", f"it costs more than {most}: ask for fewer fields, or shorter pages", most)

    def _ids(self, field: FieldNode) -> int:
        """How many things are asked for by their ids."""
        asked = next((one.value for one in field.arguments or () if one.name.value == "ids"), None)
        given = self._variables.get(asked.name.value) if isinstance(asked, VariableNode) else None
        found = asked.values if isinstance(asked, ListValueNode) else given
        return len(found) if isinstance(found, list | tuple) else 1

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


def _length(kind: GraphQLObjectType | GraphQLInterfaceType, name: str, definition: GraphQLField, rows: int) -> int:
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


def _composite(kind: GraphQLNamedType | None) -> GraphQLObjectType | GraphQLInterfaceType | None:
    return kind if isinstance(kind, GraphQLObjectType | GraphQLInterfaceType) else None


def _is_awaited(definition: GraphQLField | None) -> bool:
    found = definition.extensions.get("strawberry-definition") if definition is not None else None
    return found is not None and found.is_async


def _too(word: str, detail: str, limit: int) -> Invalid:
    return Invalid(f"the document is too {word}: {detail}", code="document_too_complex", limit_value=limit)
