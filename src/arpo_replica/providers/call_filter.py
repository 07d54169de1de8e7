"""Programs for the kernel's filter of system calls (seccomp, classic BPF), for ``bwrap --seccomp``."""

import struct
from collections.abc import Iterable

from arpo_replica.base.tables import table_of

CALLS: dict[str, dict[str, int]] = table_of(__file__)
"""What is refused, absent, or the owners' -> system calls with their numbers."""
CLONE = 56
NEW_NAMESPACES = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET."""
X86_64 = 0xC000003E
X32 = 0x40000000
"""The 32-bit twins of the calls have this bit in their numbers."""
ALLOW, DONE, REFUSE, NO_SUCH_CALL = 0x7FFF0000, 0x00050000, 0x00050001, 0x00050026
"""Answers: RET_ALLOW; RET_ERRNO with 0, which the caller takes for success, with EPERM, with ENOSYS."""
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _ANSWER = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _PROCESSOR, _FIRST_ARGUMENT = 0, 4, 16
"""Where struct seccomp_data has them."""


def desktop_filter() -> bytes:
    """Refuses what a desktop never needs and an attack on the kernel starts with."""
    program = [_line(_LOAD, _PROCESSOR), _line(_EQUAL, X86_64, 1, 0), _line(_ANSWER, REFUSE)]
    program += [_line(_LOAD, _NUMBER), _line(_AT_LEAST, X32, 0, 1), _line(_ANSWER, REFUSE)]
    program += [
        *_answers(CALLS["refused"].values(), REFUSE),
        *_answers(CALLS["absent"].values(), NO_SUCH_CALL),
    ]
    program += [
        _line(_EQUAL, CLONE, 0, 3),
        _line(_LOAD, _FIRST_ARGUMENT),
        _line(_ANY_BIT, NEW_NAMESPACES, 0, 1),
    ]
    return b"".join([*program, _line(_ANSWER, REFUSE), _line(_ANSWER, ALLOW)])


def owners_filter() -> bytes:
    """Answers that owners and users were changed, and nothing is: no protection, but Debian's packages
    install under a root that is alone in its user namespace."""
    program = [_line(_LOAD, _PROCESSOR), _line(_EQUAL, X86_64, 1, 0), _line(_ANSWER, ALLOW)]
    program += [_line(_LOAD, _NUMBER), *_answers(CALLS["owners"].values(), DONE)]
    return b"".join([*program, _line(_ANSWER, ALLOW)])


def _answers(numbers: Iterable[int], answer: int) -> list[bytes]:
    return [line for number in numbers for line in (_line(_EQUAL, number, 0, 1), _line(_ANSWER, answer))]


def _line(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One instruction: for a comparison, how many of the next ones are skipped in either case."""
    return struct.pack("<HBBI", code, if_true, if_false, value)
