"""Process trees on Linux: who is below whom, and what they hold."""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Process:
    """One line of the process table."""

    pid: int
    parent: int
    state: str
    cpu_s: float
    command: str


def process_table() -> dict[int, Process]:
    """All processes that can be read, by pid."""
    table = {}
    tick = os.sysconf("SC_CLK_TCK")
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError, IndexError, ValueError):
            # The command in brackets may hold blanks and brackets itself.
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            cpu_s = (int(fields[11]) + int(fields[12])) / tick
            pid = int(entry.name)
            table[pid] = Process(pid, int(fields[1]), fields[0], cpu_s, command)
    return table


def descendants(root: int) -> list[Process]:
    """Children of ``root``, their children and so on; zombies too. Orphans only below a sub-reaper."""
    table = process_table()
    children = defaultdict(list)
    for process in table.values():
        children[process.parent].append(process)
    found, queue = [], [root]
    while queue:
        for process in children[queue.pop()]:
            found.append(process)
            queue.append(process.pid)
    return found


def memory_mb(pids: list[int]) -> float:
    """Proportional set size of these processes together now, MiB: shared pages count once."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += int(next(line for line in lines if line.startswith("Pss:")).split()[1])
    return total / 1024


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
