"""The codes of problems, as docs/errors.md lists them: what is written there for people is what the server reads.

Owns that one table. A code that is not in it has no page; a test holds it to the codes that the source raises.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Final

DOCS: Final = resources.files("amplifier_api_server").joinpath("docs")

_CODE: Final = re.compile(r"`([a-z][a-z_]+)`")
_STATUS: Final = re.compile(r"\b[45]\d\d\b")


@dataclass(frozen=True, slots=True)
class Meaning:
    """One row. `when` and `remedy` are Markdown, of one line."""

    section: str
    status: str  # as it is written: it may depend on where the code is met
    when: str
    remedy: str

    @property
    def statuses(self) -> frozenset[int]:
        """Those that are named; none where it is not a code of answers."""
        return frozenset(int(one) for one in _STATUS.findall(self.status))


def _rows(text: str) -> Iterator[tuple[str, Meaning]]:
    section = ""
    for line in text.splitlines():
        if line.startswith("#"):
            section = line.lstrip("# ")
        elif line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            remedy = cells[3] if len(cells) > 3 else ""  # noqa: PLR2004 - within a sandbox there is nothing to do
            for code in _CODE.findall(cells[0]):
                yield code, Meaning(section, cells[1], cells[2], remedy)


def _read() -> Mapping[str, tuple[Meaning, ...]]:
    found: dict[str, tuple[Meaning, ...]] = {}
    for code, meaning in _rows(DOCS.joinpath("errors.md").read_text(encoding="utf-8")):
        found[code] = (*found.get(code, ()), meaning)
    return found


CODES: Final = _read()
