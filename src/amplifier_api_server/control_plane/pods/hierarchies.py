"""Which hierarchies of control groups this machine has, and which group of each the server is in (cgroups(7)).

Owns the reading of /proc/self/mountinfo and /proc/self/cgroup. Refuses to change anything. Invariant: a folder that is
named here is the server's own group or lies at the top of what a container shows of it, so that whatever is made below
it stays within the limits that the server has itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

CONTROLLERS = frozenset({"memory", "cpu", "pids"})  # the ones that bound sandboxes
SERVER_LEAF = "amplifier-server"  # where the server moves itself on v2: a group with controllers below holds no process

_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A mounted hierarchy. `controllers` of v2 are those that the kernel has there for groups below `folder`."""

    folder: Path  # the server's own group
    controllers: frozenset[str]
    is_v2: bool


def find() -> list[Hierarchy]:
    """The hierarchies that are of use here, v2 first; none where there are no control groups."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
        own = Path("/proc/self/cgroup").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return []
    return [_with_controllers(one) if one.is_v2 else one for one in parse(mounts, own)]


def parse(mountinfo: str, own: str) -> list[Hierarchy]:
    """What the two files say; the controllers of v2 are not in them."""
    paths = _own_paths(own)
    found: dict[frozenset[str], Hierarchy] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.partition(" ")
        if kind not in {"cgroup", "cgroup2"} or len(fields := before.split()) < 5:  # noqa: PLR2004 - proc(5)
            continue
        named = frozenset() if kind == "cgroup2" else frozenset(options.split()[-1].split(",")) & CONTROLLERS
        path = paths.get("" if kind == "cgroup2" else next(iter(named), "none"))
        folder = None if path is None else _folder(_plain(fields[3]), _plain(fields[4]), path)
        if folder is not None:
            found.setdefault(named, Hierarchy(folder, named, kind == "cgroup2"))
    return sorted(found.values(), key=lambda one: (not one.is_v2, str(one.folder)))


def _own_paths(own: str) -> dict[str, str]:
    """The path of the own group by controller; v2's by the empty name."""
    paths: dict[str, str] = {}
    for line in own.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for name in [""] if number == "0" else controllers.split(","):
            paths[name] = path
    return paths


def _folder(root: str, mounted_at: str, path: str) -> Path | None:
    """Where a mount of the subtree `root` shows the group `path`; None where it does not."""
    parts = Path(path).parts
    if ".." in parts or not path.startswith("/"):  # the group lies outside of this container's namespace
        return None
    if root == "/" or path == "/":
        relative = path.lstrip("/")
    elif path == root or path.startswith(root + "/"):
        relative = path[len(root) :].lstrip("/")
    else:
        return None
    folder = Path(mounted_at) / relative
    return folder.parent if folder.name == SERVER_LEAF else folder  # whoever started us was moved there with a server


def _plain(field: str) -> str:
    return _OCTAL.sub(lambda found: chr(int(found[1], 8)), field)


def _with_controllers(hierarchy: Hierarchy) -> Hierarchy:
    try:
        names = (hierarchy.folder / "cgroup.controllers").read_text(encoding="ascii").split()
    except OSError:
        names = []
    return Hierarchy(hierarchy.folder, frozenset(names) & CONTROLLERS, is_v2=True)
