"""What a model gave a tool, held against the tool's own schema. The few words of JSON Schema that our tools use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": list,
    "object": dict,
}


def wrong(given: Mapping[str, Any], schema: Mapping[str, Any]) -> str | None:
    """What is wrong with `given`, for the model to read; None when nothing is. Unknown names are nobody's harm."""
    for name, one in schema["properties"].items():
        value = given.get(name)
        if value is None:
            if name in schema.get("required", ()):
                return f"{name} is missing"
        elif (found := _wrong_value(name, value, one)) is not None:
            return found
    return None


def _wrong_value(name: str, value: Any, schema: Mapping[str, Any]) -> str | None:
    kind = schema["type"]
    if not isinstance(value, _KINDS[kind]) or (kind in ("integer", "number") and isinstance(value, bool)):
        return f"{name} should be of type {kind}"
    if schema.get("minimum") is not None and value < schema["minimum"]:
        return f"{name} should be at least {schema['minimum']}"
    if schema.get("enum") is not None and value not in schema["enum"]:
        return f"{name} is {value!r:.60}; it should be one of {', '.join(map(str, schema['enum']))}"
    if isinstance(value, list) and (items := schema.get("items")):
        return next((found for one in value if (found := _wrong_value(f"an item of {name}", one, items))), None)
    return None
