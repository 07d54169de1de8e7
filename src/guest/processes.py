"""The desktop's processes, read from /proc."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
_PROC = "/proc"
MOST_FILES = 1024
"""Of threads that stay open; a desktop with more (``GuestConfig.max_files``) is slower, not blind."""


@dataclass(frozen=True)
class Process:
    """One line of /proc."""

    pid: int
    parent: int
    name: str
    alive: bool
    """False for a zombie. One whose threads still end counts as alive: it may hold sockets open."""


def become_reaper() -> None:
    """Orphans among the descendants become children of this process instead of being lost to init."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def forbid_tracing() -> None:
    """No other process of this user may look into this one or change it: it says what the desktop shows."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE)")


def descendants(root: int) -> dict[int, Process]:
    """All processes below ``root``, zombies included."""
    everything: dict[int, Process] = {}
    for entry in os.listdir(_PROC):  # noqa: PTH208 - hot path
        if entry.isdigit():
            process = _read(int(entry))
            if process is not None:
                everything[process.pid] = process
    return below(root, everything)


def below(root: int, processes: dict[int, Process]) -> dict[int, Process]:
    """Those of the processes that descend from ``root``."""
    children: dict[int, list[Process]] = {}
    for process in processes.values():
        children.setdefault(process.parent, []).append(process)
    found: dict[int, Process] = {}
    queue = [root]
    while queue:
        for process in children.get(queue.pop(), []):
            found[process.pid] = process
            queue.append(process.pid)
    return found


def _start_of(path: str) -> bytes:
    """The first bytes of a file; empty if it is gone. Half the time of a file object: this is a hot path."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return b""
    try:
        return os.read(fd, 1024)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _read(pid: int) -> Process | None:
    head, _, tail = _start_of(f"{_PROC}/{pid}/stat").rpartition(b")")
    values = tail.split()
    if not values:
        return None  # it has ended since the listing
    name = head.partition(b"(")[2].decode(errors="replace")
    alive = values[0] not in (b"Z", b"X") or int(values[17]) > 1
    return Process(pid, int(values[1]), name, alive)


def is_asleep(pid: int) -> bool:
    """True if the process's first thread neither runs nor waits for a processor, the disk or memory."""
    return _start_of(f"{_PROC}/{pid}/stat").rpartition(b")")[2][1:2] == b"S"


def processor_clock(pid: int) -> int:
    """The clock, for ``time.clock_gettime``, of the processor time that a process has taken."""
    clock = ctypes.c_int()
    error = ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock))
    if error:
        raise OSError(error, "clock_getcpuclockid")
    return clock.value


def runs(pid: int, program: str) -> bool:
    """True if the process runs that program file, whatever it calls itself."""
    try:
        return os.readlink(f"{_PROC}/{pid}/exe") == program  # noqa: PTH115 - hot path
    except OSError:
        return False


def private_memory_mb(pids: list[int]) -> float:
    """Memory of the processes that no file backs, MiB."""
    return _sum_kb(pids, "status", b"RssAnon:") / 1024


def shared_memory_mb(pids: list[int]) -> float:
    """Memory that the processes can share, MiB: what they have mapped, each page once, or what they hold open
    without having mapped it (memfd), whichever is more. Takes 30 ms for a browser's processes."""
    open_bytes: dict[tuple[int, int], int] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            for fd in os.scandir(f"{_PROC}/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(fd.path).startswith("/memfd:"):  # noqa: PTH115
                        facts = fd.stat()
                        open_bytes[facts.st_dev, facts.st_ino] = facts.st_blocks * 512
    mapped_mb = _sum_kb(pids, "smaps_rollup", b"Pss_Shmem:") / 1024
    return max(mapped_mb, sum(open_bytes.values()) / 2**20)


def machine_shared_mb() -> float:
    """Shared memory of the whole machine, files in memory included, MiB: no desktop has more."""
    return _sum_kb(["."], "meminfo", b"Shmem:") / 1024


def _sum_kb(folders: Sequence[int | str], file: str, key: bytes) -> int:
    """The sum of the numbers of one line of a file in several folders of /proc; a missing one counts 0."""
    total = 0
    for folder in folders:
        # ``ProcessLookupError`` comes from reading a process that has just ended.
        with contextlib.suppress(OSError), open(f"{_PROC}/{folder}/{file}", "rb") as lines:  # noqa: PTH123
            total += next((int(line.split()[1]) for line in lines if line.startswith(key)), 0)
    return total


class Threads:
    """Looks at the threads of some processes. Their files stay open: a browser has a hundred threads, and to
    open a file for each look takes three times as long."""

    def __init__(self) -> None:
        self._files: dict[str, int] = {}

    def any_running(self, pids: list[int]) -> bool:
        """True if one of them runs, or waits for a processor, the disk or memory, right now.

        A program whose code is read from the disk again (the system took its pages back while it was idle)
        sleeps in the middle of its work: state D.
        """
        seen = set[str]()
        for pid in pids:
            tasks = f"{_PROC}/{pid}/task"
            try:
                threads = os.listdir(tasks)  # noqa: PTH208
            except OSError:
                continue
            for thread in threads:
                path = f"{tasks}/{thread}/stat"
                seen.add(path)
                if self._stat(path).rpartition(b")")[2][1:2] in (b"R", b"D"):
                    return True
        for path in self._files.keys() - seen:
            os.close(self._files.pop(path))
        return False

    def _stat(self, path: str) -> bytes:
        if path not in self._files and len(self._files) < MOST_FILES:
            with contextlib.suppress(OSError):
                self._files[path] = os.open(path, os.O_RDONLY)
        try:
            return os.pread(self._files[path], 1024, 0)
        except (KeyError, OSError):  # one too many; or that thread has ended, and another may have its number
            return _start_of(path)


def kill(pids: list[int]) -> None:
    """SIGKILL to each that still exists."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def zombies() -> set[int]:
    """Ended children that nobody has waited for: adopted orphans, and for a moment one's own programs."""
    own = os.getpid()
    return {p.pid for p in descendants(own).values() if p.parent == own and not p.alive}


def reap(pids: set[int]) -> None:
    """Collect ended children."""
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def folder_mb(path: Path) -> float:
    """Used space of the file system that holds ``path``, MiB."""
    facts = os.statvfs(path)
    return (facts.f_blocks - facts.f_bfree) * facts.f_frsize / 2**20
