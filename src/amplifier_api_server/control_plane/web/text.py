"""What of an answer is text, and which: content types, decompression within a bound, and character sets. Pure.

Refuses what is no text, and encodings that nobody needs for a page but an attacker for a processor (punycode, escapes).
"""

from __future__ import annotations

import codecs
import re
import zlib
from typing import Final

_TEXTS: Final = frozenset(
    "application/" + kind
    for kind in (
        "json",
        "xml",
        "javascript",
        "x-javascript",
        "ecmascript",
        "x-ndjson",
        "jsonl",
        "yaml",
        "x-yaml",
        "toml",
        "x-sh",
        "sql",
        "graphql",
        "x-python",
    )
)
# By the names that Python gives them; ISO-8859-1 and ASCII are read as windows-1252, as browsers do (WHATWG Encoding).
_CHARSETS: Final = re.compile(
    r"utf-8|utf-16(-le|-be)?|cp125\d|iso8859-\d+|koi8-[ru]|gb18030|gbk|gb2312|big5(hkscs)?|euc_jp|shift_jis|cp932|"
    r"iso2022_jp|euc_kr|cp949|cp866|mac-roman|cp874|tis-620"
)
_DECLARED: Final = re.compile(rb"""(?:charset|encoding)\s*=\s*["']?\s*([A-Za-z0-9_.:-]{1,40})""", re.IGNORECASE)
_LOOKED_AT_BYTES: Final = 1024  # WHATWG HTML, 13.2.3.2
_GZIP_OR_ZLIB: Final = 32 + zlib.MAX_WBITS
_RAW_DEFLATE: Final = -zlib.MAX_WBITS
_BOMS: Final = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


class Unreadable(Exception):
    """It is no text that can be read; the message says why."""


def is_text(content_type: str) -> bool:
    """Whether a type says text, JSON, XML or a script. An answer without a type may be."""
    kind = content_type.partition(";")[0].strip().lower()
    return not kind or kind.startswith("text/") or kind in _TEXTS or kind.endswith(("+json", "+xml", "+yaml"))


class Inflater:
    """Undoes a content encoding, never making more than it is asked for. Raises Unreadable for one that is unknown."""

    def __init__(self, encoding: str) -> None:
        self._kind = encoding.strip().lower()
        if self._kind not in ("", "identity", "gzip", "x-gzip", "deflate"):
            raise Unreadable(f"it is encoded as {encoding[:40]!r}, though no encoding was asked for")
        self._inflate: zlib._Decompress | None = None

    def more(self, chunk: bytes, most: int) -> bytes:
        """What `chunk` adds, `most` bytes of it at most: then no more is wanted. Raises Unreadable."""
        if self._kind in ("", "identity"):
            return chunk[:most]
        try:
            if self._inflate is None:
                # Servers disagree on what deflate is (RFC 9110, 8.4.1.2): a zlib stream begins with 0x78.
                is_raw = self._kind == "deflate" and not chunk.startswith(b"\x78")
                self._inflate = zlib.decompressobj(_RAW_DEFLATE if is_raw else _GZIP_OR_ZLIB)
            return self._inflate.decompress(chunk, most) if most else b""
        except zlib.error as error:
            raise Unreadable("its compressed content is broken") from error


def decoded(raw: bytes, content_type: str, *, is_cut: bool) -> str:
    """The text, in the character set that it is in; what can't be read in it is replaced. Raises Unreadable."""
    charset = next((name for bom, name in _BOMS if raw.startswith(bom)), None)
    if charset is None:
        charset = _known(_charset_in(content_type)) or _known(_declared_in(raw, content_type)) or "utf-8"
    if not content_type.strip() and b"\0" in raw:
        raise Unreadable("it has no content type, and is no text")
    return codecs.getincrementaldecoder(charset)("replace").decode(raw, not is_cut)


def _charset_in(content_type: str) -> str:
    match = re.search(r"""charset\s*=\s*["']?\s*([A-Za-z0-9_.:-]{1,40})""", content_type, re.IGNORECASE)
    return match[1] if match else ""


def _declared_in(raw: bytes, content_type: str) -> str:
    kind = content_type.partition(";")[0].strip().lower()
    if not kind.endswith(("html", "xml")):
        return ""
    match = _DECLARED.search(raw[:_LOOKED_AT_BYTES])
    # One that could be read as ASCII is none of two bytes a character.
    found = match[1].decode("ascii") if match else ""
    return "" if found.lower().startswith("utf-16") else found


def _known(charset: str) -> str | None:
    try:
        name = codecs.lookup(charset).name if charset else ""
    except (LookupError, ValueError):
        return None
    if name in ("ascii", "iso8859-1"):
        return "cp1252"
    return name if _CHARSETS.fullmatch(name) else None
