"""What pydantic found wrong with a request, in the words of whoever sent it: the same on every door.

Owns the words of `errors` and `detail` in `invalid_request`. Refuses to repeat a value that was sent. Invariants: no name of
a class of ours is in them; however much was wrong, they are of a bounded length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

_SHOWN: Final = 3  # in `detail`
_LISTED: Final = 50  # in `errors`: a small body may hold very many
_MAX_FIELD_CHARS: Final = 200  # of a name, which whoever sent it made up
_MAX_MESSAGE_CHARS: Final = 1000  # some repeat a name too
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
    """The first wrong fields and what each should be; `whole` is what it is called where no field alone is wrong."""
    return [
        {
            "field": _cut(".".join(name(str(part)) for part in one["loc"] if part != "body"), _MAX_FIELD_CHARS)
            or whole,
            "message": _WORDS.get(one["type"]) or _cut(one["msg"].removeprefix(_OWN_WORDS), _MAX_MESSAGE_CHARS),
        }
        for one in errors[:_LISTED]
    ]


def detail(wrong: Sequence[Mapping[str, str]], count: int) -> str:
    """The first of them in one line, and how many more there are of the `count` that `told` was given."""
    shown = "; ".join(f"{one['field']}: {one['message']}" for one in wrong[:_SHOWN])
    if count <= _SHOWN:
        return shown
    where = "in errors" if count <= len(wrong) else f"the first {len(wrong)} of all in errors"
    return f"{shown}; and {count - _SHOWN} more, {where}"


def _cut(text: str, chars: int) -> str:
    return text if len(text) <= chars else f"{text[: chars - 3]}..."
