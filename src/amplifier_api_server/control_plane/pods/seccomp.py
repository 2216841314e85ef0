"""Which system calls a sandbox may make: a filter program for the kernel, assembled here, without a library.

Owns the list of what is refused. Refuses nothing that git, compilers, node, java, multiprocessing or terminals need
(all tried). Invariant: a call of another architecture kills; a call newer than the last one vetted does not exist
(ENOSYS), so that a kernel's update never opens a door by itself.

The filter is one layer of several: what it refuses needs, for the most part, capabilities that a sandbox does not have.
It is there for the kernel's bugs behind those checks.
"""

from __future__ import annotations

import errno
import platform
import struct
from collections.abc import Iterable
from dataclasses import dataclass

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # linux/audit.h
ARCHITECTURES = tuple(_AUDIT_ARCH)

ALLOW, KILL = 0x7FFF0000, 0x80000000  # linux/seccomp.h: SECCOMP_RET_ALLOW, SECCOMP_RET_KILL_PROCESS
X32_BIT = 0x40000000  # asm/unistd.h: the third, forgotten calling convention of amd64
LAST_VETTED_CALL = 462  # mseal, Linux 6.10

# Refused with EPERM whatever their arguments: name, number on amd64, number on arm64 (None: it has no such call).
REFUSED: tuple[tuple[str, int | None, int | None], ...] = (
    # Namespaces and mounts: what bubblewrap has built stays as it is.
    ("unshare", 272, 97),
    ("setns", 308, 268),
    ("mount", 165, 40),
    ("umount2", 166, 39),
    ("pivot_root", 155, 41),
    ("chroot", 161, 51),
    ("open_tree", 428, 428),
    ("move_mount", 429, 429),
    ("fsopen", 430, 430),
    ("fsconfig", 431, 431),
    ("fsmount", 432, 432),
    ("fspick", 433, 433),
    ("mount_setattr", 442, 442),
    ("statmount", 457, 457),
    ("listmount", 458, 458),
    # Other processes' memory and descriptors: a tool shares its user id with the runtime.
    ("ptrace", 101, 117),
    ("process_vm_readv", 310, 270),
    ("process_vm_writev", 311, 271),
    ("process_madvise", 440, 440),
    ("kcmp", 312, 272),
    ("pidfd_getfd", 438, 438),
    # Large parts of the kernel that no tool needs and that most of its escapes went through.
    ("bpf", 321, 280),
    ("perf_event_open", 298, 241),
    ("userfaultfd", 323, 282),
    ("io_uring_setup", 425, 425),
    ("io_uring_enter", 426, 426),
    ("io_uring_register", 427, 427),
    ("vmsplice", 278, 75),
    ("fanotify_init", 300, 262),
    ("fanotify_mark", 301, 263),
    # Keys belong to a user id, not to a namespace.
    ("keyctl", 250, 219),
    ("add_key", 248, 217),
    ("request_key", 249, 218),
    # Files by handle go round every mount.
    ("open_by_handle_at", 304, 265),
    ("name_to_handle_at", 303, 264),
    # Memory that no process shows as resident, so that the watcher could not see it.
    ("memfd_create", 319, 279),
    ("memfd_secret", 447, 447),
    ("shmget", 29, 194),
    ("msgget", 68, 186),
    # The machine's own affairs.
    ("kexec_load", 246, 104),
    ("kexec_file_load", 320, 294),
    ("init_module", 175, 105),
    ("finit_module", 313, 273),
    ("delete_module", 176, 106),
    ("reboot", 169, 142),
    ("swapon", 167, 224),
    ("swapoff", 168, 225),
    ("acct", 163, 89),
    ("quotactl", 179, 60),
    ("quotactl_fd", 443, 443),
    ("syslog", 103, 116),
    ("settimeofday", 164, 170),
    ("clock_settime", 227, 112),
    ("clock_adjtime", 305, 266),
    ("adjtimex", 159, 171),
    ("sethostname", 170, 161),
    ("setdomainname", 171, 162),
    ("vhangup", 153, 58),
    ("nfsservctl", 180, 42),
    ("lookup_dcookie", 212, 18),
    ("cachestat", 451, 451),
    ("iopl", 172, None),
    ("ioperm", 173, None),
    ("modify_ldt", 154, None),
    ("uselib", 134, None),
    ("_sysctl", 156, None),
    # Where pages lie says something of the neighbours.
    ("move_pages", 279, 239),
    ("migrate_pages", 256, 238),
    ("mbind", 237, 235),
    ("set_mempolicy", 238, 237),
)

# Calls that are judged by an argument.
CLONE, CLONE3 = (56, 220), (435, 435)
SOCKET, SOCKETPAIR = (41, 198), (53, 199)
IOCTL, PERSONALITY = (16, 29), (135, 92)
MMAP, SETSOCKOPT = (9, 222), (54, 208)

# linux/sched.h: NEWTIME, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
NAMESPACE_FLAGS = 0x80 | 0x20000 | 0x2000000 | 0x4000000 | 0x8000000 | 0x10000000 | 0x20000000 | 0x40000000
# AF_UNIX, AF_INET, AF_INET6. The last two reach the sandbox's own loopback alone, for tests that tools run. AF_VSOCK
# could be made in a new network namespace, and reaches the machine's host.
SOCKET_FAMILIES = (1, 2, 10)
SOCKETPAIR_FAMILIES = (1,)
# TIOCSTI, TIOCLINUX, TIOCSETD, compared by their low 32 bits alone, as the kernel does (CVE-2017-5226, CVE-2019-10063).
REFUSED_IOCTLS = (0x5412, 0x541C, 0x5423)
PERSONALITIES = (0, 0xFFFFFFFF)  # Linux's own, and the question which one it is
# MAP_SHARED or MAP_SHARED_VALIDATE, with MAP_ANONYMOUS: pages that are in no process's count once it has dropped them
# from its map. SOL_SOCKET and SO_SNDBUF: what a socket's buffer may hold besides what is counted for each.
SHARED_ANONYMOUS, SOL_SOCKET, SO_SNDBUF = 0x21, 1, 7

# linux/bpf_common.h; offsets of struct seccomp_data, of each 64-bit argument the low half (both architectures: little
# end).
_LOAD, _EQUAL, _GREATER, _GREATER_OR_EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x45, 0x06
_AND = 0x54
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENT_0_AT, _ARGUMENT_1_AT, _ARGUMENT_2_AT, _ARGUMENT_3_AT = 0, 4, 16, 24, 32, 40


def refuse(number: int) -> int:
    """SECCOMP_RET_ERRNO with this errno."""
    return 0x00050000 | number


@dataclass(frozen=True, slots=True)
class _Instruction:
    code: int
    value: int
    skip_if_true: int = 0
    skip_if_false: int = 0

    def packed(self) -> bytes:
        return struct.pack("<HBBI", self.code, self.skip_if_true, self.skip_if_false, self.value)


def _return_if(code: int, value: int, answer: int) -> list[_Instruction]:
    """When the test holds, answer."""
    return [_Instruction(code, value, 0, 1), _Instruction(_RETURN, answer)]


def _by_argument(number: int, offset: int, values: Iterable[int], if_listed: int, otherwise: int) -> list[_Instruction]:
    """For this call alone: `if_listed` when the argument at `offset` is one of `values`, else `otherwise`."""
    listed = list(values)
    tests = [_Instruction(_EQUAL, value, len(listed) - place, 0) for place, value in enumerate(listed)]
    body = [_Instruction(_LOAD, offset), *tests, _Instruction(_RETURN, otherwise), _Instruction(_RETURN, if_listed)]
    return [_Instruction(_EQUAL, number, 0, len(body)), *body]


def _without_uncounted_memory(column: int) -> list[_Instruction]:
    """For where no control group counts memory: shared anonymous pages are refused, and sockets keep the size of their
    buffers, of which the question for another is answered as if it were granted.
    """
    mmap = [
        _Instruction(_LOAD, _ARGUMENT_3_AT),
        _Instruction(_AND, SHARED_ANONYMOUS),
        *_return_if(_EQUAL, SHARED_ANONYMOUS, refuse(errno.EPERM)),
        _Instruction(_RETURN, ALLOW),
    ]
    setsockopt = [
        _Instruction(_LOAD, _ARGUMENT_1_AT),
        _Instruction(_EQUAL, SOL_SOCKET, 0, 3),
        _Instruction(_LOAD, _ARGUMENT_2_AT),
        *_return_if(_EQUAL, SO_SNDBUF, refuse(0)),
        _Instruction(_RETURN, ALLOW),
    ]
    return [
        _Instruction(_EQUAL, MMAP[column], 0, len(mmap)),
        *mmap,
        _Instruction(_EQUAL, SETSOCKOPT[column], 0, len(setsockopt)),
        *setsockopt,
    ]


def program(architecture: str | None = None, *, counts_memory: bool = True) -> bytes:
    """The filter, as struct sock_filter[]; `counts_memory` where a control group does. Raises ValueError for an
    architecture whose numbers are not known here.
    """
    architecture = architecture or platform.machine()
    if architecture not in _AUDIT_ARCH:
        raise ValueError(f"no seccomp filter for {architecture}; there is one for {', '.join(ARCHITECTURES)}")
    column = ARCHITECTURES.index(architecture)
    steps = [
        _Instruction(_LOAD, _ARCHITECTURE_AT),
        _Instruction(_EQUAL, _AUDIT_ARCH[architecture], 1, 0),
        _Instruction(_RETURN, KILL),
        _Instruction(_LOAD, _NUMBER_AT),
    ]
    if architecture == "x86_64":
        steps += _return_if(_GREATER_OR_EQUAL, X32_BIT, KILL)
    steps += _return_if(_GREATER, LAST_VETTED_CALL, refuse(errno.ENOSYS))
    for row in REFUSED:
        number = (row[1], row[2])[column]
        if number is not None:
            steps += _return_if(_EQUAL, number, refuse(errno.EPERM))
    # The flags of clone3 lie in memory, out of a filter's sight; at ENOSYS the C library falls back to clone.
    steps += _return_if(_EQUAL, CLONE3[column], refuse(errno.ENOSYS))
    clone = [
        _Instruction(_LOAD, _ARGUMENT_0_AT),
        *_return_if(_ANY_BIT, NAMESPACE_FLAGS, refuse(errno.EPERM)),
        _Instruction(_RETURN, ALLOW),
    ]
    steps += [_Instruction(_EQUAL, CLONE[column], 0, len(clone)), *clone]
    if not counts_memory:
        steps += _without_uncounted_memory(column)
    no_family = refuse(errno.EAFNOSUPPORT)
    steps += _by_argument(SOCKET[column], _ARGUMENT_0_AT, SOCKET_FAMILIES, ALLOW, no_family)
    steps += _by_argument(SOCKETPAIR[column], _ARGUMENT_0_AT, SOCKETPAIR_FAMILIES, ALLOW, no_family)
    steps += _by_argument(IOCTL[column], _ARGUMENT_1_AT, REFUSED_IOCTLS, refuse(errno.EPERM), ALLOW)
    steps += _by_argument(PERSONALITY[column], _ARGUMENT_0_AT, PERSONALITIES, ALLOW, refuse(errno.EPERM))
    steps.append(_Instruction(_RETURN, ALLOW))
    return b"".join(step.packed() for step in steps)
