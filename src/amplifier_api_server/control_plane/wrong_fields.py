"""What pydantic found wrong with a request, in the words of whoever sent it: the same on every door.

Owns the words of `errors` and `detail` in `invalid_request`. Refuses to repeat a value that was sent. Invariant: no name of a
class of ours is in them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

_SHOWN: Final = 3  # in `detail`; `errors` has all
_OWN_WORDS: Final = "Value error, "  # pydantic's, before the words of a validator of ours
_WORDS: Final[Mapping[str, str]] = {
    "missing": "is missing",
    "extra_forbidden": "is not a known field",
    "model_type": "should be a JSON object",
    "model_attributes_type": "should be a JSON object",
    "dict_type": "should be a JSON object",
    "list_type": "should be a JSON array",
    "tuple_type": "should be a JSON array",
}

Name = Callable[[str], str]


def told(errors: Sequence[Mapping[str, Any]], *, whole: str = "body", name: Name = str) -> list[dict[str, str]]:
    """Each wrong field and what it should be; `whole` is what it is called where no field alone is wrong."""
    return [
        {
            "field": ".".join(name(str(part)) for part in one["loc"] if part != "body") or whole,
            "message": _WORDS.get(one["type"]) or one["msg"].removeprefix(_OWN_WORDS),
        }
        for one in errors
    ]


def detail(wrong: Sequence[Mapping[str, str]]) -> str:
    """The first of them in one line, and how many more there are."""
    shown = "; ".join(f"{one['field']}: {one['message']}" for one in wrong[:_SHOWN])
    return f"{shown}; and {len(wrong) - _SHOWN} more, in errors" if len(wrong) > _SHOWN else shown
