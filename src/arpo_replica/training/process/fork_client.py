#!/usr/bin/env python3
"""Stands for ``python``: asks the fork server (``fork_server``) for a process that runs our arguments.

Run by Ray, vLLM and multiprocessing as their interpreter. Starts in about 20 ms, passes its arguments,
environment, working directory and open files on, lives as long as the process it stands for, forwards
SIGTERM and SIGINT, and ends with its status. If this client dies, so does that process, and the other
way round. Without a server it becomes a plain interpreter.

Standard library only, nothing of this package: it is executed by path.
"""

import ctypes
import json
import os
import signal
import socket
import struct
import sys

LENGTH = struct.Struct("!I")
CHUNK = 200  # file descriptors per message; the kernel takes 253


def open_files() -> list[int]:
    """Every open file descriptor but that of the listing itself."""
    found = []
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - pathlib costs a third of our start
        descriptor = int(name)
        try:
            os.fstat(descriptor)
        except OSError:
            continue  # the listing's own, closed by now
        found.append(descriptor)
    return sorted(found)


def send_request(server: socket.socket, files: list[int]) -> None:
    """Arguments, environment, directory, then the files."""
    request = {
        "arguments": sys.argv[1:],
        "environment": dict(os.environ),
        "directory": os.getcwd(),  # noqa: PTH109
        "files": files,
    }
    payload = json.dumps(request).encode("utf-8", "surrogateescape")
    server.sendall(LENGTH.pack(len(payload)) + payload)
    for start in range(0, len(files), CHUNK):
        socket.send_fds(server, [b"f"], files[start : start + CHUNK])


def receive(server: socket.socket) -> int | None:
    """A signed number from the server; None if it is gone."""
    data = server.recv(8, socket.MSG_WAITALL)
    if len(data) < 8:
        return None
    (status,) = struct.unpack("!q", data)
    return int(status)


def main() -> None:
    """Ask, wait, end as the process ended."""
    path = os.environ.get("ARPO_FORK_SERVER", "")
    python = os.environ.get("ARPO_PYTHON", sys.executable)
    # 1 = PR_SET_PDEATHSIG: die with the parent, as a plain child of it would be made to
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    files = open_files()
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        server.connect(path)
    except OSError:
        os.execv(python, [python, *sys.argv[1:]])  # noqa: S606
    send_request(server, files)
    pid = receive(server)
    if pid is None:
        sys.exit(70)
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda number, frame: os.kill(pid, number))
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in files:  # whoever reads the other ends must see them close with the process
        if descriptor <= 2:
            os.dup2(null, descriptor)
        else:
            os.close(descriptor)
    status = receive(server)
    if status is None or status < 0:
        number = -(status or -signal.SIGKILL)
        signal.signal(number, signal.SIG_DFL) if number not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), number)
    os._exit(status or 0)


if __name__ == "__main__":
    main()
