"""Run a command as an ordinary user that can reach the interpreter and the repository, wherever they lie.

    python as_ordinary_user.py UID FOLDER... -- COMMAND...

Root's home is closed to others, and an interpreter is often installed in it. In a mount namespace of its own this shows
each FOLDER where it is, with nothing else around it, and then gives root up for good.
"""

import os
import stat
import sys

from amplifier_api_server.control_plane.pods import syscalls


def closed_folder_above(path: str) -> str | None:
    """The topmost folder on the way that others can't enter."""
    here = ""
    for part in path.strip("/").split("/"):
        here += "/" + part
        if not os.stat(here).st_mode & stat.S_IXOTH:
            return here
    return None


def main() -> None:
    place = sys.argv.index("--")
    uid, folders, command = (
        int(sys.argv[1]),
        [os.path.realpath(one) for one in sys.argv[2:place]],
        sys.argv[place + 1 :],
    )
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_SLAVE)
    hidden = {one: (closed, os.open(one, os.O_PATH)) for one in folders if (closed := closed_folder_above(one))}
    for closed in {closed for closed, _ in hidden.values()}:
        syscalls.mount("tmpfs", closed, "tmpfs", 0, "mode=0755")
    for folder, (_, descriptor) in hidden.items():
        os.makedirs(folder, exist_ok=True)
        syscalls.mount(f"/proc/self/fd/{descriptor}", folder, None, syscalls.MS_BIND | syscalls.MS_REC)
        os.close(descriptor)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    os.execv(command[0], command)


main()
