"""A stand-in for a machine that has all controllers on v2, with the kernel's rules for groups (cgroups(7)).

This is for the order and the names of what is written: a machine has either v1's or v2's controllers, and tests run on what is
there. Folders are real; `mkdir` fills a group with its files, and `write` refuses what the kernel refuses.
"""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from amplifier_api_server.control_plane.pods import control_groups, group

CORE = ("cgroup.procs", "cgroup.subtree_control", "cgroup.controllers", "cgroup.type", "cgroup.kill")
FILES = {
    "memory": ("memory.max", "memory.swap.max", "memory.events"),
    "cpu": ("cpu.weight",),
    "pids": ("pids.max",),
}


class UnifiedHierarchy:
    """`own` is the group that `pids` are in; it has no controllers handed down yet."""

    def __init__(self, top: Path, pids: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
        self.own = top / "own"
        self._mkdir, self._rmdir = Path.mkdir, Path.rmdir
        self._mkdir(self.own)
        self._fill(self.own, ["cpu", "memory", "pids"])
        (self.own / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
        hierarchy = self

        def mkdir(path: Path, *given: object, **more: bool) -> None:
            there = path.exists()
            hierarchy._mkdir(path, *given, **more)
            if hierarchy.own in path.parents and not there:
                hierarchy._fill(path, hierarchy._words(path.parent / "cgroup.subtree_control"))

        def rmdir(path: Path) -> None:
            if hierarchy.own in path.parents:
                if group.read_pids(path) or any(one.is_dir() for one in path.iterdir()):
                    raise OSError(errno.EBUSY, "busy", str(path))
                for file in path.iterdir():
                    file.unlink()
            hierarchy._rmdir(path)

        monkeypatch.setattr(Path, "mkdir", mkdir)
        monkeypatch.setattr(Path, "rmdir", rmdir)
        for module in (control_groups, group):
            monkeypatch.setattr(module, "write", self.write)

    def _fill(self, folder: Path, controllers: list[str]) -> None:
        for name in (*CORE, *(file for one in controllers for file in FILES[one])):
            (folder / name).write_text("")
        (folder / "cgroup.controllers").write_text(" ".join(controllers))

    def _words(self, path: Path) -> list[str]:
        return path.read_text().split()

    def write(self, path: Path, value: str) -> None:
        if not path.exists():
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        if path.name == "cgroup.subtree_control":
            self._hand_down(path, value)
        elif path.name == "cgroup.procs":
            self._move(path.parent, int(value))
        elif path.name == "cgroup.kill":
            for one in [path.parent, *(found for found in path.parent.rglob("*") if found.is_dir())]:
                (one / "cgroup.procs").write_text("")
        else:
            path.write_text(value)

    def _hand_down(self, path: Path, value: str) -> None:
        if group.read_pids(path.parent):
            raise OSError(errno.EBUSY, "a group with processes hands nothing down", str(path))
        handed = set(self._words(path))
        for word in value.split():
            if word[0] == "+" and word[1:] not in self._words(path.parent / "cgroup.controllers"):
                raise OSError(errno.ENOENT, "no such controller", str(path))
            handed = handed | {word[1:]} if word[0] == "+" else handed - {word[1:]}
        path.write_text(" ".join(sorted(handed)))
        for child in [one for one in path.parent.iterdir() if one.is_dir()]:
            (child / "cgroup.controllers").write_text(" ".join(sorted(handed)))
            for name in (file for one in handed for file in FILES[one]):
                (child / name).touch()

    def _move(self, folder: Path, pid: int) -> None:
        if self._words(folder / "cgroup.subtree_control"):
            raise OSError(errno.EBUSY, "a group that hands controllers down has no processes", str(folder))
        for procs in [self.own / "cgroup.procs", *self.own.rglob("cgroup.procs")]:
            procs.write_text("".join(f"{one}\n" for one in group.read_pids(procs.parent) if one != pid))
        (folder / "cgroup.procs").write_text("".join(f"{one}\n" for one in (*group.read_pids(folder), pid)))
