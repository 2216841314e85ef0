"""How long the lists of introspection are: a schema's own types, fields and arguments, as they are counted in it.

Of the lists that hold all of something once (all types, the fields of all types) the average is taken, which multiplies to
what is really there; of any other the longest.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final

from graphql import GraphQLAbstractType, GraphQLField, GraphQLSchema, is_abstract_type
from graphql.type import SchemaMetaFieldDef, TypeMetaFieldDef

META_FIELDS: Final[dict[str, GraphQLField]] = {"__schema": SchemaMetaFieldDef, "__type": TypeMetaFieldDef}
ALL_TYPES: Final = ("__Schema", "types")
_ONCE_EACH: Final = frozenset({ALL_TYPES, ("__Type", "fields"), ("__Type", "inputFields"), ("__Field", "args")})


def holds_each_once(kind: str, name: str) -> bool:
    """Whether a list, of parents that are each there once, holds each of its own once too."""
    return (kind, name) in _ONCE_EACH


class Lengths:
    """Those of one schema."""

    def __init__(self, schema: GraphQLSchema) -> None:
        types = list(schema.type_map.values())
        fields = [list(getattr(one, "fields", {}).values()) for one in types]
        arguments = [len(getattr(one, "args", {})) for several in fields for one in several]
        written = [str(one.type) for several in fields for one in several]
        self._most_wraps = max((one.count("[") + one.count("!") for one in written), default=0)
        self._most: dict[tuple[str, str], float] = {}
        self._average: dict[tuple[str, str], float] = {}
        self._note(ALL_TYPES, [len(types)])
        self._note(("__Schema", "directives"), [len(schema.directives)])
        self._note(("__Directive", "args"), [len(one.args) for one in schema.directives])
        self._note(("__Field", "args"), arguments)
        self._note(("__Type", "fields"), [len(several) for several in fields])
        self._note(("__Type", "inputFields"), [len(several) for several in fields])
        self._note(("__Type", "enumValues"), [len(getattr(one, "values", ())) for one in types])
        self._note(("__Type", "interfaces"), [len(getattr(one, "interfaces", ())) for one in types])
        self._note(("__Type", "possibleTypes"), [_possible(schema, one) for one in types])

    def _note(self, place: tuple[str, str], lengths: Iterable[int]) -> None:
        found = list(lengths) or [0]
        self._most[place] = max(found)
        self._average[place] = sum(found) / len(found)

    def of(self, kind: str, name: str, *, is_each: bool, wraps: int) -> float:
        """Of a list; 1 for what is none, 0 for what is never there.

        `is_each`: its parents are all that there are, each once. `wraps`: how many types were unwrapped to get to them.
        """
        if name == "ofType" and (
            is_each or wraps >= self._most_wraps
        ):  # the types of a schema have names, and wrap none
            return 0
        return (self._average if is_each else self._most).get((kind, name), 1)


def _possible(schema: GraphQLSchema, kind: Any) -> int:
    if not is_abstract_type(kind):
        return 0
    found: GraphQLAbstractType = kind
    return len(schema.get_possible_types(found))


@lru_cache(8)
def lengths_of(schema: GraphQLSchema) -> Lengths:
    """Counted once."""
    return Lengths(schema)
