"""Where sessions' files are: at rest in the tenant's folder, or in a runtime's workspace while it has the session.

    DATA_DIR/workspaces/<tenant>/<session>            at rest
    DATA_DIR/runtimes/<runtime>/workspace/<session>   while attached; the sandbox sees workspace as /workspace
    DATA_DIR/runtimes/<runtime>/collections/<hash>    installed trees; the sandbox can't write there
    DATA_DIR/trash                                    to be deleted

Owns these folders. Refuses to know processes. Invariant: a session's folder is in exactly one of the two places, and
moves by one rename. Whose a runtime is (`tenant`, a link that points nowhere) and what was attached
(`attached/<session>`, empty files) is written as names, before the rename that it describes: names become durable in
order, without an fsync, so that after any crash `recover` knows where each folder belongs. All functions block; call
them in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from amplifier_api_server.control_plane.pods import copying, process, trees
from amplifier_api_server.control_plane.pods.process import ProcessId
from amplifier_api_server.tenants.ids import RuntimeId, SessionId, TenantId

log = structlog.get_logger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")  # what may be a folder's name here: ids and hashes
_INCOMING = ".incoming-"  # no id begins so
_TAKEN = ".taken-"  # what lay in a workspace by a session's name before the session came
_MOST_COPIED = 500_000  # files and folders of one session
# Steps of deleting, each a file, a folder or a move, of one round through the trash.
_STEPS_OF_A_TREE = 5_000
_STEPS_OF_A_TENANT = 20_000
_MOST_SQUATTERS = 100  # how often a hostile runtime may take a name before we do, until attaching gives up


@dataclass(frozen=True, slots=True)
class Home:
    """A runtime's folders on the host."""

    root: Path

    @property
    def workspace(self) -> Path:
        return self.root / "workspace"

    @property
    def collections(self) -> Path:
        return self.root / "collections"

    @property
    def attached(self) -> Path:
        return self.root / "attached"

    @property
    def tenant(self) -> Path:
        return self.root / "tenant"

    @property
    def processes(self) -> Path:
        return self.root / "processes.json"


def checked(name: str) -> str:
    """The name, if it can be a folder's here. Raises ValueError."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no id")
    return name


class Workspaces:
    """All sessions' and runtimes' folders below one data folder."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir.resolve()
        self.runtimes = self.data_dir / "runtimes"
        self._at_rest = self.data_dir / "workspaces"
        self._trash = self.data_dir / "trash"

    def make(self) -> None:
        """Make the folders that everything lies in. Nobody but the server's user may enter the data folder."""
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.data_dir.chmod(0o700)
        for folder, mode in ((self.runtimes, 0o711), (self._at_rest, 0o700), (self._trash, 0o700)):
            folder.mkdir(exist_ok=True)
            folder.chmod(mode)  # mkdir's own mode is cut by the umask
        for left in self._at_rest.glob(f"*/{_INCOMING}*"):  # copies that a server died over
            self._throw_away(left, left.parent.name)

    def home(self, runtime_id: RuntimeId) -> Home:
        return Home(self.runtimes / checked(runtime_id))

    def make_home(self, runtime_id: RuntimeId, uid: int | None) -> Home:
        """Folders for a new runtime; `uid` is who will write in its workspace, None when that is the server's own."""
        home = self.home(runtime_id)
        home.root.mkdir(mode=0o711)
        for folder, mode in (
            (home.workspace, 0o700),
            (home.collections, 0o755),
            (home.attached, 0o700),
        ):
            folder.mkdir()
            folder.chmod(mode)
        home.root.chmod(0o711)
        if uid is not None:
            os.chown(home.workspace, uid, uid)
        return home

    def write_processes(self, runtime_id: RuntimeId, found: list[ProcessId]) -> None:
        """Remember who runs there, for a later server that finds them."""
        text = json.dumps({"boot": process.boot_id(), "processes": [[one.pid, one.started_ticks] for one in found]})
        path = self.home(runtime_id).processes
        incoming = path.with_suffix(".new")
        incoming.write_text(text, encoding="ascii")
        incoming.replace(path)

    def living_processes(self, runtime_id: RuntimeId) -> list[ProcessId]:
        """Those of the remembered processes that still run."""
        try:
            read = json.loads(self.home(runtime_id).processes.read_text(encoding="ascii"))
            if read["boot"] != process.boot_id():
                return []
            found = [ProcessId(int(pid), int(started)) for pid, started in read["processes"]]
        except (OSError, ValueError, KeyError, TypeError):
            return []
        return [one for one in found if process.is_alive(one)]

    def homes(self) -> list[RuntimeId]:
        """Every runtime that has folders here, whether it runs or not."""
        with contextlib.suppress(FileNotFoundError):
            return [RuntimeId(name) for name in os.listdir(self.runtimes) if _NAME.fullmatch(name)]
        return []

    def attach(self, runtime_id: RuntimeId, tenant_id: TenantId, session_id: SessionId, uid: int | None) -> None:
        """Move the session's folder into the runtime's workspace, given to `uid`. Nothing to do when it is there.

        Raises ValueError when the runtime is another tenant's, and OSError.
        """
        home = self.home(runtime_id)
        marker = home.attached / checked(session_id)
        if marker.exists():
            return
        self._set_tenant(home, checked(tenant_id))
        at_rest = self._at_rest / tenant_id / session_id
        at_rest.parent.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            at_rest.mkdir(mode=0o700)
        folder = trees.open_folder(at_rest)
        try:
            if uid is not None:
                trees.give(folder, uid)
            marker.touch()
            self._move_in(at_rest, home, session_id)
        except BaseException:
            marker.unlink(missing_ok=True)
            raise
        finally:
            os.close(folder)

    def _set_tenant(self, home: Home, tenant_id: str) -> None:
        try:
            os.symlink(tenant_id, home.tenant)
        except FileExistsError:
            if (other := os.readlink(home.tenant)) != tenant_id:
                raise ValueError(f"{home.root.name} is of {other}, and can't have a folder of {tenant_id}") from None

    def _move_in(self, at_rest: Path, home: Home, session_id: str) -> None:
        target = home.workspace / session_id
        os.chmod(home.workspace, 0o700)
        for _ in range(_MOST_SQUATTERS):
            try:
                os.rename(at_rest, target)
            except OSError:
                # Code in the sandbox has made something by this name. It stays in the workspace by another one, where it
                # counts like all that was written there, until it is deleted or the runtime goes.
                if not os.path.lexists(target):
                    raise
                with contextlib.suppress(FileNotFoundError):
                    os.rename(target, home.workspace / f"{_TAKEN}{secrets.token_hex(8)}")
            else:
                return
        raise OSError(f"{home.root.name} keeps taking the name {session_id} in its workspace")

    def detach(self, runtime_id: RuntimeId, tenant_id: TenantId, session_id: SessionId) -> None:
        """Move the session's folder back to rest. Nothing to do when it is not attached there. Raises OSError.

        Processes of the runtime may still hold descriptors below it; as root the folder itself is closed to them here.
        """
        home = self.home(runtime_id)
        marker = home.attached / checked(session_id)
        if not marker.exists():
            return
        at_rest = self._at_rest / checked(tenant_id) / session_id
        if not os.path.lexists(
            at_rest
        ):  # else a server died between the mark and the move, and this one is the real one
            at_rest.parent.mkdir(mode=0o700, exist_ok=True)
            try:
                self._move_out(home, session_id, at_rest)
            except (FileNotFoundError, NotADirectoryError, trees.TreeError) as error:
                # Code in the sandbox has renamed or replaced it: its own loss, and its tenant's alone.
                log.warning(
                    "a session's folder was gone", runtime_id=runtime_id, session_id=session_id, error=str(error)
                )
                if os.path.lexists(at_rest):
                    self._throw_away(at_rest, tenant_id)
                at_rest.mkdir(mode=0o700)
        marker.unlink(missing_ok=True)

    def _move_out(self, home: Home, session_id: str, at_rest: Path) -> None:
        os.chmod(home.workspace, 0o700)  # the sandbox may have taken the right to rename there away, from us too
        folder = _open_real(home.workspace / session_id)
        try:
            os.fchmod(folder, 0o700)
        finally:
            os.close(folder)
        os.rename(home.workspace / session_id, at_rest)
        folder = _open_real(at_rest)
        try:
            if os.geteuid() == 0:
                os.fchown(folder, 0, 0)
            os.fchmod(folder, 0o700)
        finally:
            os.close(folder)

    def take_back(self, tenant_id: TenantId, session_id: SessionId) -> None:
        """As root: make all that is in a folder at rest the server's own, so that who still has a folder of it open can
        open no file that others may not write. Raises OSError.
        """
        if os.geteuid() != 0:
            return  # it is the server's user's already, who runs the sandboxes too
        folder = trees.open_folder(self.at_rest(tenant_id, session_id))
        try:
            trees.give(folder, 0)
        except trees.TreeError as error:  # somebody in it is at work, in a call of another session
            log.warning("a session's folder changed while it was taken back", session_id=session_id, error=str(error))
        finally:
            os.close(folder)

    def attached(self, runtime_id: RuntimeId) -> tuple[TenantId, list[SessionId]] | None:
        """Whose the runtime is and what it has; None before it has anything."""
        home = self.home(runtime_id)
        try:
            return TenantId(os.readlink(home.tenant)), [SessionId(name) for name in os.listdir(home.attached)]
        except OSError:
            return None

    def at_rest(self, tenant_id: TenantId, session_id: SessionId) -> Path:
        """Where the session's folder is while it is not attached."""
        return self._at_rest / checked(tenant_id) / checked(session_id)

    def remove_home(self, runtime_id: RuntimeId) -> None:
        """Move back what is attached, and throw the rest away. Only when nothing runs there. Idempotent."""
        found = self.attached(runtime_id)
        if found is not None:
            tenant_id, sessions = found
            for session_id in sessions:
                self.detach(runtime_id, tenant_id, session_id)
        root = self.home(runtime_id).root
        if os.path.lexists(root):
            self._throw_away(root, found[0] if found is not None else "")

    def copy(self, tenant_id: TenantId, source: SessionId, target: SessionId) -> None:
        """Copy one folder at rest to another name at rest; whole or not at all. Raises OSError, TreeError.

        Nothing to do for a session that never had a folder.
        """
        at_rest = self.at_rest(tenant_id, source)
        if not os.path.lexists(at_rest):
            return
        incoming = at_rest.with_name(f"{_INCOMING}{secrets.token_hex(8)}")
        folder = trees.open_folder(at_rest)
        try:
            copying.copy_tree(folder, incoming)
            os.rename(incoming, self.at_rest(tenant_id, target))
        except BaseException:
            self._throw_away(incoming, tenant_id)
            raise
        finally:
            os.close(folder)

    def size(self, tenant_id: TenantId, session_id: SessionId) -> trees.Size:
        """What a folder at rest takes on the disk; nothing where it is not there.

        Raises TreeError for one with more files, or deeper folders, than are counted.
        """
        found = self.measured(tenant_id, session_id)
        if not found.is_whole:
            raise trees.TreeError(
                f"it has more than {_MOST_COPIED} files, or folders in folders more than {trees.DEEPEST} deep"
            )
        return found

    def measured(self, tenant_id: TenantId, session_id: SessionId) -> trees.Size:
        """The same, at least: not whole where there is more."""
        try:
            folder = trees.open_folder(self.at_rest(tenant_id, session_id))
        except FileNotFoundError:
            return trees.Size()
        try:
            return trees.measure(folder, most_entries=_MOST_COPIED)
        finally:
            os.close(folder)

    def forget(self, tenant_id: TenantId, session_id: SessionId) -> None:
        """Throw the folder at rest away."""
        path = self.at_rest(tenant_id, session_id)
        if os.path.lexists(path):
            self._throw_away(path, tenant_id)
        with contextlib.suppress(OSError):
            path.parent.rmdir()  # the tenant's last one

    def _throw_away(self, path: Path, tenant_id: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, self._trash / f"{tenant_id}.{secrets.token_hex(8)}")

    def empty_trash(self, is_stopped: Callable[[], bool] = lambda: False) -> bool:
        """Delete a share of what each tenant threw away, also by an earlier server; whether there is more to go on with.

        A tree that somebody still fills, or that is very large, takes a bounded number of steps and waits for the next
        time, so that nothing of another tenant's, and nothing else of its own, stays for its sake. What can't be deleted
        now is left as well, and is not said to be there. Slow: removing a folder takes 3 ms on some disks.
        """
        is_more = False
        folder = trees.open_folder(self._trash)
        try:
            by_tenant: dict[str, list[str]] = {}
            for name in os.listdir(folder):
                by_tenant.setdefault(name.partition(".")[0], []).append(name)
            for names in by_tenant.values():
                random.shuffle(names)  # so that it is not always the same one that takes the whole share
                share = _STEPS_OF_A_TENANT
                for name in names:
                    if is_stopped():
                        return False
                    effort = trees.Effort(min(share, _STEPS_OF_A_TREE), is_stopped)
                    given = effort.steps
                    is_more = not self._delete(name, folder, effort) or is_more
                    share -= given - effort.steps + 1
                    if share <= 0:
                        is_more = True
                        break
        finally:
            os.close(folder)
        return is_more

    def _delete(self, name: str, trash: int, effort: trees.Effort) -> bool:
        """Of one thing in the trash as much as `effort` allows; false where it should be gone on with."""
        try:
            trees.remove(name, dir_fd=trash, effort=effort)
        except FileNotFoundError:
            pass  # another thread deletes it
        except trees.SpentEffort:
            return False
        except OSError as error:
            if error.errno == errno.ENOTEMPTY:
                return False  # somebody put something there in the last moment
            log.warning("something thrown away can't be deleted yet", error=str(error))
        return True

    def install(self, runtime_id: RuntimeId, content_hash: str, source: Path, *, by_link: bool = False) -> None:
        """Put a tree where the runtime sees it. Nothing to do when it is there. Raises OSError, TreeError.

        `by_link` only where the sandbox sees it on a read-only mount: the files are then the tree's own.
        """
        target = self.home(runtime_id).collections / checked(content_hash)
        if not target.exists():
            trees.copy_read_only(source, target, by_link=by_link)


def _open_real(path: Path) -> int:
    """The folder's descriptor; TreeError when something else has its name."""
    try:
        return trees.open_folder(path)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENOTDIR}:
            raise trees.TreeError(f"{path.name} is no folder") from error
        raise
