"""Control groups: the bounds of sandboxes that the kernel itself holds, where the server may make groups (cgroups(7)).

Owns one group below the server's own in each hierarchy, in it one for each sandbox (`group.py`), and the place of the
server beside them. Refuses to touch a group that it did not make, or one that other programs are in. Invariants: all
groups of a data folder have its name, and where they were made is written down before they are, so that a later server
finds what a killed one left; what `held` names is held for every sandbox that is started.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path

import structlog

from amplifier_api_server.control_plane import settings
from amplifier_api_server.control_plane.pods import autogroup, group, hierarchies, process
from amplifier_api_server.control_plane.pods.group import Group, read_pids, write
from amplifier_api_server.control_plane.pods.hierarchies import SERVER_LEAF, Hierarchy
from amplifier_api_server.tenants.ids import RuntimeId

log = structlog.get_logger(__name__)

KILL = "kill"  # beside the controllers' names: what a call or a session leaves is ended by one write (v2, Linux 5.14)
ALL = hierarchies.CONTROLLERS | {KILL}
_RECORD = "control_groups.json"
# A server that wants a processor gets eight parts of nine of it against all sandboxes together. On v1 these are beside
# whatever else runs on the machine, where each session or group weighs 1024, and a group's weight is spread over processors.
_SERVERS_PART = 8
_WEIGHT, _SHARES, _MOST_SHARES = 100, 1024 * (os.cpu_count() or 1), 262_144


class GroupsError(Exception):
    """`sandbox.cgroups` is `required`, and the machine does not let the server have them."""


class ControlGroups:
    """Those of one launcher. `prepare` comes first, and again after `close`."""

    def __init__(self, sandbox: settings.Sandbox, data_dir: Path) -> None:
        self._settings = sandbox
        self._record = data_dir / _RECORD
        self._name = "amplifier-" + hashlib.sha256(os.fsencode(data_dir.resolve())).hexdigest()[:12]
        self._roots: list[group.Root] = []
        self._leaf: Path | None = None  # of v2; all that was in the server's group is in it
        self._cpu_leaf: Path | None = None  # of v1; the server alone is in it
        self._groups: dict[RuntimeId, Group] = {}
        self.held: frozenset[str] = frozenset()
        self.refused: dict[str, str] = {}  # why a hierarchy is of no use, by its folder

    def prepare(self, living: Collection[RuntimeId]) -> None:
        """Remove what an earlier server left, but for the `living`; then make the groups that sandboxes will be in.

        Blocks. Raises GroupsError, and OSError when the data folder can't be written.
        """
        found = [] if self._settings.cgroups == "never" else hierarchies.find()
        self._remove_left([one.folder / self._name for one in found], living)
        for hierarchy in found:
            try:
                self._claim(hierarchy)
            except OSError as error:
                self.refused[str(hierarchy.folder)] = f"{hierarchy.folder}: {error.strerror or error}"
        if "cpu" not in self.held:
            autogroup.raise_own()
        missing = ", ".join(sorted(ALL - self.held))
        if self._settings.cgroups == "required" and missing:
            why = "; ".join(self.refused.values()) or "the hierarchies with these controllers are not mounted"
            raise GroupsError(f"sandbox.cgroups is required, and these can't be had: {missing} ({why})")
        log.info("control groups", held=sorted(self.held), refused=list(self.refused.values()))

    def make(self, runtime_id: RuntimeId) -> Group:
        """The group of a new sandbox, without any process. Raises OSError, and then none is left."""
        made = self._groups[runtime_id] = Group(runtime_id, self._roots, self._settings)
        try:
            made.make()
        except OSError:
            self.remove(runtime_id)
            raise
        return made

    def remove(self, runtime_id: RuntimeId) -> None:
        """Kill what is in its groups and remove them, an earlier server's too. Idempotent. Blocks."""
        self._groups.pop(runtime_id, None)
        for root in self._roots:
            group.destroy(root.folder / runtime_id)

    def share_out(self, runtimes: Sequence[RuntimeId]) -> None:
        """Let these sandboxes, which are one tenant's, weigh together what one of another tenant weighs."""
        for runtime_id in runtimes:
            if (found := self._groups.get(runtime_id)) is not None:
                found.weigh(len(runtimes))

    def close(self) -> None:
        """Remove all that is empty, and let the server be where it was."""
        for root in self._roots:
            with contextlib.suppress(OSError):
                root.folder.rmdir()
        with contextlib.suppress(OSError):
            if self._leaf is not None:
                _leave(self._leaf)
        with contextlib.suppress(OSError):
            if self._cpu_leaf is not None:
                write(self._cpu_leaf.parent / "cgroup.procs", str(os.getpid()))
                self._cpu_leaf.rmdir()
        if "cpu" not in self.held:
            autogroup.restore_own()
        left = [str(root.folder) for root in self._roots if root.folder.exists()]
        self._roots, self._leaf, self._cpu_leaf, self.held = [], None, None, frozenset()
        with contextlib.suppress(OSError):
            self._write_record(left)

    def _claim(self, hierarchy: Hierarchy) -> None:
        """Make this launcher's group there, for those bounds that no other hierarchy holds yet."""
        wanted = hierarchy.controllers - self.held
        if hierarchy.is_v2 and wanted:
            wanted = self._hand_down(hierarchy.folder, wanted)
        if not wanted and not hierarchy.is_v2:
            return
        root = group.Root(hierarchy.folder / self._name, wanted, hierarchy.is_v2)
        self._write_record([*self._recorded(), str(root.folder)])
        root.folder.mkdir(exist_ok=True)
        try:
            root.prepare(_WEIGHT if root.is_v2 else min(_SHARES, _MOST_SHARES // _SERVERS_PART))
            if "cpu" in wanted and not root.is_v2:
                self._take_cpu_leaf(hierarchy.folder)
        except OSError:
            root.folder.rmdir()
            raise
        self._roots.append(root)
        self.held |= wanted | ({KILL} if root.can_kill else set())

    def _take_cpu_leaf(self, folder: Path) -> None:
        leaf = folder / SERVER_LEAF
        leaf.mkdir(exist_ok=True)
        write(leaf / "cpu.shares", str(min(_SHARES * _SERVERS_PART, _MOST_SHARES)))
        write(leaf / "cgroup.procs", str(os.getpid()))
        self._cpu_leaf = leaf

    def _hand_down(self, folder: Path, wanted: frozenset[str]) -> frozenset[str]:
        """Let groups below the server's own have controllers; those that they then have.

        Only the hierarchy's own root may have both processes and groups with controllers (cgroups(7), "no internal
        processes"), so the server, with whom it shares its group, first moves into one of its own.
        """
        if (folder / "cgroup.type").exists() and not wanted <= _handed_down(folder):
            strangers = set(read_pids(folder)) - _relatives()
            if strangers:
                self.refused[str(folder)] = f"{folder}: {len(strangers)} processes that are not the server's are in it"
                return frozenset()
            self._leaf = folder / SERVER_LEAF
            self._leaf.mkdir(exist_ok=True)
            for pid in read_pids(folder):
                write(self._leaf / "cgroup.procs", str(pid))
        try:
            write(folder / "cgroup.subtree_control", " ".join(f"+{name}" for name in sorted(wanted)))
            if self._leaf is not None and "cpu" in wanted:
                write(self._leaf / "cpu.weight", str(_WEIGHT * _SERVERS_PART))
        except OSError as error:
            self.refused[str(folder)] = f"{folder}: {error.strerror or error}"
            if self._leaf is not None:
                _leave(self._leaf)
                self._leaf = None
        return wanted & _handed_down(folder)

    def _remove_left(self, here: Sequence[Path], living: Collection[RuntimeId]) -> None:
        recorded = [Path(one) for one in self._recorded()]
        left = []
        for root in dict.fromkeys([*here, *recorded]):
            # A record is a file, and files can be wrong: nothing but a group of this name is ever ended.
            if root.name != self._name or not (root / "cgroup.procs").exists():
                continue
            for child in [one for one in root.iterdir() if one.is_dir()]:
                if child.name not in living:
                    group.destroy(child)
            try:
                root.rmdir()
            except OSError:
                left.append(str(root))
        if left or recorded:
            self._write_record(left)

    def _recorded(self) -> list[str]:
        try:
            read = json.loads(self._record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        return [one for one in read if isinstance(one, str)] if isinstance(read, list) else []

    def _write_record(self, roots: Sequence[str]) -> None:
        incoming = self._record.with_suffix(".new")
        incoming.write_text(json.dumps(sorted(set(roots))), encoding="utf-8")
        incoming.replace(self._record)


def _handed_down(folder: Path) -> frozenset[str]:
    try:
        return frozenset((folder / "cgroup.subtree_control").read_text(encoding="ascii").split())
    except OSError:
        return frozenset()


def _relatives() -> set[int]:
    """This process, those that it was started by, and those that it has started."""
    own = process.identify(os.getpid())
    found = {one.pid for one in process.descendants(own)} if own is not None else set()
    pid: int | None = os.getpid()
    while pid:
        found.add(pid)
        pid = process.parent(pid)
    return found


def _leave(leaf: Path) -> None:
    """Take the controllers back and move all processes to where they were. Raises OSError."""
    above = leaf.parent
    names = sorted(_handed_down(above) & hierarchies.CONTROLLERS)
    if names:
        write(above / "cgroup.subtree_control", " ".join(f"-{name}" for name in names))
    for pid in read_pids(leaf):
        write(above / "cgroup.procs", str(pid))
    leaf.rmdir()
