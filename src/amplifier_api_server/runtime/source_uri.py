"""Where a bundle or a module comes from, as the ecosystem writes it. A part of the wire contract: `protocol` has its name.

Owns the form of an address and its one spelling. Refuses to say whether it may be had: that is the control plane's.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple
from urllib.parse import quote, unquote

_MAX_URI_CHARS = 2048
_REF_BEGINS = re.compile("(?<=[^/])@")  # a segment that begins with @ is a name: a scope's, as registries have it
_PLAIN_IN_REF = "/@+=,!$&'();"


class SourceUri(NamedTuple):
    """Where a bundle or a module comes from, as the ecosystem writes it: `git+https://host/org/repo@ref#subdirectory=x`,
    `https://host/file.zip`. Parsing says nothing of whether it may be had: that is the control plane's to decide.

    A ref and a subdirectory may be percent-encoded (RFC 3986, 2.1), and must be where they hold what an address can't.
    """

    kind: Literal["git", "zip"]
    url: str  # of the repository or archive, without a ref
    ref: str  # a branch, a tag or a commit; "" for a zip, and for the default branch
    subdirectory: str  # within it; no leading slash

    @property
    def key(self) -> str:
        """The source's name less its subdirectory, one for all ways to write it."""
        return f"git+{self.url}@{quote(self.ref, _PLAIN_IN_REF)}" if self.kind == "git" else self.url

    @classmethod
    def parse(cls, text: str) -> SourceUri:
        """Raises ValueError that says what is wrong."""
        if len(text) > _MAX_URI_CHARS or not text.isprintable() or " " in text:
            raise ValueError(
                f"{text[:80]!r} should be an address of at most {_MAX_URI_CHARS} characters, without spaces"
            )
        head, _, fragment = text.partition("#")
        options = dict(part.partition("=")[::2] for part in fragment.split("&") if part)
        subdirectory = _decoded(options.get("subdirectory", "")).strip("/")
        if ".." in subdirectory.split("/") or "\\" in subdirectory:
            raise ValueError(f"{subdirectory[:80]!r} leads out of the repository")
        if head.startswith("git+"):
            url, ref = _without_ref(head.removeprefix("git+"))
            kind: Literal["git", "zip"] = "git"
        elif head.removeprefix("zip+").partition("?")[0].endswith(".zip"):
            url, ref, kind = head.removeprefix("zip+"), "", "zip"
        else:
            raise ValueError(f"{text[:80]!r} should be git+https://host/org/repo@ref, or the https address of a .zip")
        scheme, separator, rest = url.partition("://")
        if not separator or not rest or scheme not in ("https", "http", "file", "ssh"):
            raise ValueError(f"{text[:80]!r} should be an https address")
        host, slash, path = rest.partition("/")
        if "@" in host:
            raise ValueError("an address holds no credentials")
        path = path.rstrip("/") if kind == "zip" else path.rstrip("/").removesuffix(".git")
        return cls(kind, f"{scheme}://{host.lower()}{slash}{path}", ref, subdirectory)


def _without_ref(url: str) -> tuple[str, str]:
    """The address, and what follows the first @ within a segment of its path: an @ in the host is a user's name."""
    scheme, separator, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    path, *ref = _REF_BEGINS.split(path, maxsplit=1)
    return f"{scheme}{separator}{host}{slash}{path}", _decoded("".join(ref))


def _decoded(text: str) -> str:
    """Without its percent-encoding. Raises ValueError where that hides what no name has."""
    try:
        plain = unquote(text, errors="strict")
    except UnicodeDecodeError:
        plain = ""
    if not plain.isprintable() or bool(plain) != bool(text):
        raise ValueError(f"{text[:80]!r} is not percent-encoded UTF-8 of a name")
    return plain
