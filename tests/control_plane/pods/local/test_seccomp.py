"""The filter, run in a simulator of the kernel's, against what it should say of every call: written down apart from it."""

from __future__ import annotations

import errno
import itertools
import struct

import pytest

from amplifier_api_server.control_plane.pods import seccomp

AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
NUMBERS = [*range(1024), 0x3FFFFFFF, 0x40000000, 0x40000029, 0x7FFFFFFF, 0xFFFFFFFF]
# Namespaces, families, terminals' commands and personalities, and the same with bits that the kernel ignores or does not.
WORDS = [
    *(0, 1, 2, 3, 10, 16, 17, 38, 40, 0x80, 0x11, 0x5412, 0x541C, 0x5423, 0x5401, 0xFFFFFFFF, 0x1200011, 0x3D0F00),
    *(
        0x20000,
        0x2000000,
        0x4000000,
        0x8000000,
        0x10000000,
        0x20000000,
        0x40000000,
        0x40000001,
        0x100000001,
        0x100005412,
    ),
]


def simulate(program: bytes, audit: int, number: int, arguments: tuple[int, ...]) -> int:
    """What the kernel would answer, by Documentation/networking/filter.rst."""
    padded = [value & 0xFFFFFFFFFFFFFFFF for value in (*arguments, 0, 0, 0, 0, 0, 0)[:6]]
    data = struct.pack("<IIQ6Q", number, audit, 0, *padded)
    steps = list(struct.iter_unpack("<HBBI", program))
    accumulator, place = 0, 0
    for _ in range(len(steps)):
        code, if_true, if_false, value = steps[place]
        place += 1
        if code == 0x06:
            return value
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
            continue
        if code == 0x54:
            accumulator &= value
            continue
        holds = {
            0x15: accumulator == value,
            0x25: accumulator > value,
            0x35: accumulator >= value,
            0x45: bool(accumulator & value),
        }
        place += if_true if holds[code] else if_false
    raise AssertionError("the program does not end")


def expected(architecture: str, number: int, first: int, second: int) -> int:
    """The rules once more, as a person would say them."""
    column = list(AUDIT).index(architecture)
    first, second = first & 0xFFFFFFFF, second & 0xFFFFFFFF
    if architecture == "x86_64" and number >= 0x40000000:
        return seccomp.KILL
    if number > 462 or number == 435:
        return seccomp.refuse(errno.ENOSYS)
    if number in {row[1 + column] for row in seccomp.REFUSED}:
        return seccomp.refuse(errno.EPERM)
    namespaces = 0x7E020080
    refusals = {
        (56, 220)[column]: (first & namespaces, errno.EPERM),
        (41, 198)[column]: (first not in (1, 2, 10), errno.EAFNOSUPPORT),
        (53, 199)[column]: (first != 1, errno.EAFNOSUPPORT),
        (16, 29)[column]: (second in (0x5412, 0x541C, 0x5423), errno.EPERM),
        (135, 92)[column]: (first not in (0, 0xFFFFFFFF), errno.EPERM),
    }
    refused, why = refusals.get(number, (False, 0))
    return seccomp.refuse(why) if refused else seccomp.ALLOW


@pytest.mark.parametrize("architecture", list(AUDIT))
def test_every_call_is_answered_as_the_rules_say(architecture: str) -> None:
    program = seccomp.program(architecture)
    judged = {pair[list(AUDIT).index(architecture)] for pair in ((56, 220), (41, 198), (53, 199), (16, 29), (135, 92))}
    for number in NUMBERS:
        words = WORDS if number in judged else [0, 0x10000000]
        for first, second in itertools.product(words, words):
            answer = simulate(program, AUDIT[architecture], number, (first, second))
            assert answer == expected(architecture, number, first, second), (number, hex(first), hex(second))


@pytest.mark.parametrize("architecture", list(AUDIT))
def test_shared_anonymous_memory_and_larger_buffers_are_refused_where_nothing_counts_them(architecture: str) -> None:
    mmap, setsockopt = ((9, 54), (222, 208))[list(AUDIT).index(architecture)]
    counted, watched = (seccomp.program(architecture, counts_memory=one) for one in (True, False))
    for flags in range(0x100):
        for high in (0, 1 << 20, 1 << 40):
            is_shared_anonymous = flags & 0x20 and flags & 0xF in {1, 3, 5, 7, 9, 0xB, 0xD, 0xF}
            answer = simulate(watched, AUDIT[architecture], mmap, (0, 4096, 3, flags | high))
            assert answer == (seccomp.refuse(errno.EPERM) if is_shared_anonymous else seccomp.ALLOW), hex(flags)
            assert simulate(counted, AUDIT[architecture], mmap, (0, 4096, 3, flags | high)) == seccomp.ALLOW
    for level, option in itertools.product((0, 1, 6, 1 << 32 | 1), (0, 7, 8, 1 << 32 | 7)):
        is_buffer = level & 0xFFFFFFFF == 1 and option & 0xFFFFFFFF == 7
        answer = simulate(watched, AUDIT[architecture], setsockopt, (3, level, option))
        assert answer == (seccomp.refuse(0) if is_buffer else seccomp.ALLOW)
        assert simulate(counted, AUDIT[architecture], setsockopt, (3, level, option)) == seccomp.ALLOW


@pytest.mark.parametrize("architecture", list(AUDIT))
def test_a_call_of_another_architecture_kills(architecture: str) -> None:
    program = seccomp.program(architecture)
    for audit in (0x40000003, 0xC000003E, 0xC00000B7, 0x40000028, 0):  # i386 and arm among them
        if audit != AUDIT[architecture]:
            assert simulate(program, audit, 0, ()) == seccomp.KILL


def test_no_call_is_listed_twice() -> None:
    for column in (1, 2):
        numbers = [row[column] for row in seccomp.REFUSED if row[column] is not None]
        assert len(numbers) == len(set(numbers))


def test_an_unknown_architecture_is_an_error_that_says_so() -> None:
    with pytest.raises(ValueError, match="riscv64"):
        seccomp.program("riscv64")
