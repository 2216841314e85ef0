"""Mirrors: addresses that the operator lets others stand in for, in closed networks.

Owns which mirror an address has and where its files lie when they are on this machine. What is recorded of a source is its
own address; only where it is fetched from is another.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit


def mirror_of(url: str, mirrors: Mapping[str, str]) -> str | None:
    """What stands in for `url`: the longest beginning that is named, at the end of a part of the path, replaced.

    Raises ValueError for a rest that leads out of the mirror: that part is a tenant's to write.
    """
    best = max((one for one in mirrors if _begins(url, one)), key=len, default=None)
    if best is None:
        return None
    rest = url[len(best.rstrip("/")) :]
    plain = unquote(rest)
    if ".." in plain.replace("\\", "/").split("/") or "%" in plain or not plain.isprintable():
        raise ValueError(f"{rest[:100]!r} is no path below a mirror")
    return mirrors[best].rstrip("/") + rest


def _begins(url: str, beginning: str) -> bool:
    bare = beginning.rstrip("/")
    return url == bare or url.startswith(bare + "/")


def local_path(url: str) -> Path | None:
    """The path of a file:// address; None for any other."""
    parts = urlsplit(url)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        return None
    return Path(unquote(parts.path))


def archive_at(path: Path) -> Path | None:
    """The zip that lies there, with or without its ending."""
    for candidate in (path, path.with_name(path.name + ".zip")):
        if candidate.suffix == ".zip" and candidate.is_file():
            return candidate
    return None


def repository_at(path: Path) -> Path | None:
    """The git folder of the repository that lies there, bare or not, with or without `.git` at its end."""
    for candidate in (path, path.with_name(path.name + ".git"), path / ".git"):
        if (candidate / "HEAD").is_file() and (candidate / "objects").is_dir():
            return candidate
    return None
