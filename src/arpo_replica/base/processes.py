"""Process trees, and what the kernel says about them."""

import contextlib
import socket
from collections.abc import Iterable
from pathlib import Path

import psutil


def free_port(address: str = "127.0.0.1") -> int:
    """A port of that address, of all if it is empty, that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def descendants(root: int) -> list[psutil.Process]:
    """Children of ``root``, their children and so on; zombies too. Orphans only below a sub-reaper."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(root).children(recursive=True)
    return []


def command_of(process: psutil.Process) -> str:
    """Its command line; empty for one that has ended."""
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline()).strip()
    return ""


def is_alive(process: psutil.Process) -> bool:
    """True until it has ended; a zombie has."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def memory_mb(processes: Iterable[psutil.Process]) -> float:
    """Proportional set size of these processes together now, MiB: shared pages count once."""
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.Error, OSError):
            total += process.memory_full_info().pss
    return total / 2**20


def oom_kills(path: Path = Path("/proc/vmstat")) -> int:
    """Processes that the kernel has ended for lack of memory since it started, in all control groups.

    0 where it does not say (before Linux 4.13).
    """
    with contextlib.suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return 0
