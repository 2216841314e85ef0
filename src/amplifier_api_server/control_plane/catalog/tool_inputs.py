"""What a caller gives a tool, held against the tool's own schema before a sandbox is asked. Pure.

Owns the few words of JSON Schema that bundled tools use; a word that it does not know forbids nothing. Refuses names that
the schema lacks, as every body does: a slip of the pen would be ignored by the tool.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from amplifier_api_server.control_plane import wrong_fields
from amplifier_api_server.tenants.errors import Malformed

_KINDS: Final[Mapping[object, tuple[type | tuple[type, ...], str]]] = {
    "string": (str, "a text"),
    "integer": (int, "a whole number"),
    "number": ((int, float), "a number"),
    "boolean": (bool, "true or false"),
    "array": (list, "a list"),
    "object": (dict, "an object"),
}
_MAX_VALUE_CHARS: Final = 60


def demand(given: Mapping[str, Any], schema: Mapping[str, Any]) -> None:
    """Raises Malformed, naming every wrong field."""
    found = [
        {"loc": where, "type": kind, "msg": message} for where, kind, message in _in_object(given, schema, ("input",))
    ]
    if found:
        told = wrong_fields.told(found)
        raise Malformed(wrong_fields.detail(told, len(found)), errors=told)


_Wrong = Iterator[
    tuple[tuple[str, ...], str, str]
]  # where, the kind of fault as pydantic calls it, and what it should be


def _in_object(given: Mapping[str, Any], schema: Mapping[str, Any], where: tuple[str, ...]) -> _Wrong:
    properties = schema.get("properties")
    if not isinstance(properties, Mapping):
        return
    for name in schema.get("required", ()):
        if given.get(name) is None:
            yield (*where, str(name)), "missing", ""
    for name, value in given.items():
        if name not in properties:
            yield (*where, name), "extra_forbidden", ""
        elif value is not None:  # which is the same as leaving it out
            yield from _in_value(value, properties[name], (*where, name))


def _in_value(value: Any, schema: Mapping[str, Any], where: tuple[str, ...]) -> _Wrong:
    kind, words = _KINDS.get(schema.get("type"), (object, ""))
    if not isinstance(value, kind) or (isinstance(value, bool) and schema.get("type") in ("integer", "number")):
        yield where, "kind", f"should be {words}"
        return
    least, allowed, most = schema.get("minimum"), schema.get("enum"), schema.get("maxItems")
    if least is not None and value < least:
        yield where, "minimum", f"should be at least {least}"
    if allowed is not None and value not in allowed:
        yield where, "enum", f"is {value!r:.{_MAX_VALUE_CHARS}}; it should be one of {', '.join(map(str, allowed))}"
    if most is not None and isinstance(value, list) and len(value) > most:
        yield where, "maxItems", f"should have at most {most} items"
    if isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        for number, one in enumerate(value):
            yield from _in_value(one, schema["items"], (*where, str(number)))
    if isinstance(value, dict):
        yield from _in_object(value, schema, where)
