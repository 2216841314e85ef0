"""What an Accept header asks for, by its weights (RFC 9110, 12.5.1). Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

_SPLIT: Final = re.compile(r'((?:[^,;"]|"(?:[^"\\]|\\.)*"?)+|[,;])')  # a comma in a quoted parameter separates nothing
_WEIGHT: Final = re.compile(r"q\s*=\s*(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)", re.IGNORECASE)
_ANY: Final = "*/*"
_MAX_RANGES: Final = 64  # of a header: no client has a tenth of that, and each is compared with every offer


@dataclass(frozen=True, slots=True)
class _Range:
    pattern: str
    weight: float

    def precision(self, media_type: str) -> int:
        """How exactly it names the type; 0 where it does not."""
        if self.pattern == media_type:
            return 3
        if self.pattern == media_type.partition("/")[0] + "/*":
            return 2
        return 1 if self.pattern == _ANY else 0


def preferred(headers: Iterable[tuple[bytes, bytes]], offers: Sequence[str]) -> list[str]:
    """Those of `offers` that are accepted, the one that is wanted most first.

    The weight decides, then the place in the header, then the place in `offers`. All of them, where there is no such header.
    """
    text = ",".join(value.decode("latin-1") for name, value in headers if name == b"accept")
    ranges = _ranges(text)
    if not ranges:
        return list(offers)
    found = []
    for offer in offers:
        weight, place = _wanted(ranges, offer)
        if weight > 0:
            found.append((-weight, place, offer))
    return [offer for _, _, offer in sorted(found, key=lambda one: one[:2])]


def _wanted(ranges: Sequence[_Range], media_type: str) -> tuple[float, int]:
    """The weight and the place of the range that names the type most exactly."""
    _, negative_place, weight = max((one.precision(media_type), -place, one.weight) for place, one in enumerate(ranges))
    place = -negative_place
    return (weight if ranges[place].precision(media_type) else 0.0), place


def _ranges(text: str) -> list[_Range]:
    """Parameters but the weight are left aside: no type of ours is offered with different ones."""
    found: list[_Range] = []
    parts: list[str] = []
    for piece in [*_SPLIT.findall(text), ","]:
        if len(found) == _MAX_RANGES:
            break
        if piece == ",":
            if parts and "/" in parts[0]:
                found.append(_Range(parts[0].lower(), _weight(parts[1:])))
            parts = []
        elif piece != ";" and piece.strip():
            parts.append(piece.strip())
    return found


def _weight(parameters: Iterable[str]) -> float:
    for one in parameters:
        if (match := _WEIGHT.fullmatch(one)) is not None:
            return float(match[1])
    return 1.0
