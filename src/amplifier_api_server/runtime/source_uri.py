"""Where a bundle or a module comes from, as the ecosystem writes it. A part of the wire contract: `protocol` has its name.

Owns the form of an address and its one spelling. Refuses to say whether it may be had: that is the control plane's.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

_MAX_URI_CHARS = 2048


class SourceUri(NamedTuple):
    """Where a bundle or a module comes from, as the ecosystem writes it: `git+https://host/org/repo@ref#subdirectory=x`,
    `https://host/file.zip`. Parsing says nothing of whether it may be had: that is the control plane's to decide.
    """

    kind: Literal["git", "zip"]
    url: str  # of the repository or archive, without a ref
    ref: str  # a branch, a tag or a commit; "" for a zip, and for the default branch
    subdirectory: str  # within it; no leading slash

    @property
    def key(self) -> str:
        """The source's name less its subdirectory, one for all ways to write it."""
        return f"git+{self.url}@{self.ref}" if self.kind == "git" else self.url

    @classmethod
    def parse(cls, text: str) -> SourceUri:
        """Raises ValueError that says what is wrong."""
        if len(text) > _MAX_URI_CHARS or not text.isprintable() or " " in text:
            raise ValueError(
                f"{text[:80]!r} should be an address of at most {_MAX_URI_CHARS} characters, without spaces"
            )
        head, _, fragment = text.partition("#")
        options = dict(part.partition("=")[::2] for part in fragment.split("&") if part)
        subdirectory = options.get("subdirectory", "").strip("/")
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
    """The address, and what follows the last @ of its path: an @ in the host is a user's name."""
    scheme, separator, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    path, at, ref = path.rpartition("@")
    if not at:
        path, ref = ref, ""
    return f"{scheme}{separator}{host}{slash}{path}", ref
