"""Programs for the kernel's filter of system calls (seccomp, classic BPF), for ``bwrap --seccomp``."""

import struct
from collections.abc import Iterable

# System calls by number on x86-64 (arch/x86/entry/syscalls/syscall_64.tbl of Linux).
REFUSED = {
    "ptrace": 101, "syslog": 103, "personality": 135, "pivot_root": 155, "acct": 163, "mount": 165,
    "umount2": 166, "swapon": 167, "swapoff": 168, "reboot": 169, "init_module": 175, "delete_module": 176,
    "kexec_load": 246, "add_key": 248, "request_key": 249, "keyctl": 250, "unshare": 272, "perf_event_open":
    298, "open_by_handle_at": 304, "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp":
    312, "finit_module": 313, "kexec_file_load": 320, "bpf": 321, "userfaultfd": 323, "io_uring_setup": 425,
    "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428, "move_mount": 429, "fsopen": 430,
    "fsconfig": 431, "fsmount": 432, "fspick": 433, "mount_setattr": 442,
}  # fmt: skip
ABSENT = {"memfd_create": 319, "clone3": 435}
"""Answered "no such call": programs then use /dev/shm, which has a size, and clone, whose flags can be
looked at."""
CLONE = 56
NEW_NAMESPACES = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET."""
OWNERS = {
    "chown": 92, "fchown": 93, "lchown": 94, "fchownat": 260, "mknod": 133, "mknodat": 259, "setgroups": 116,
    "setuid": 105, "setgid": 106, "setreuid": 113, "setregid": 114, "setresuid": 117, "setresgid": 119,
    "setfsuid": 122, "setfsgid": 123, "capset": 126,
}  # fmt: skip
"""What only a root with other users beside it can do."""
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
    program += [*_answers(REFUSED.values(), REFUSE), *_answers(ABSENT.values(), NO_SUCH_CALL)]
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
    program += [_line(_LOAD, _NUMBER), *_answers(OWNERS.values(), DONE)]
    return b"".join([*program, _line(_ANSWER, ALLOW)])


def _answers(numbers: Iterable[int], answer: int) -> list[bytes]:
    return [line for number in numbers for line in (_line(_EQUAL, number, 0, 1), _line(_ANSWER, answer))]


def _line(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One instruction: for a comparison, how many of the next ones are skipped in either case."""
    return struct.pack("<HBBI", code, if_true, if_false, value)
