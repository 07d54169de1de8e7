"""Import once, fork many: the processes of a training without their import time.

A training consists of about ten Python processes (driver, Ray's workers and daemons, vLLM's engine), each
of which imports torch, transformers, Ray, verl and vLLM: about 15 s of CPU time apiece, two minutes on
two cores, and half a gigabyte each. Here one process imports them and forks the others, which start
in milliseconds and share those pages.

Ray and multiprocessing start Python through ``sys.executable``; in every process forked here that is
``fork_client``, which passes the request on. That is the whole mechanism: no library is changed.

The server must have one thread when it forks and must not have used a GPU, which a forked process then could
not use (``launch.unforkable``); torch asks NVML for GPUs, not CUDA (``PYTORCH_NVML_BASED_CUDA_CHECK``).
"""

import atexit
import contextlib
import fcntl
import gc
import json
import logging
import os
import runpy
import selectors
import signal
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from arpo_replica.base.environments import die_with_parent
from arpo_replica.training.process import fork_client

logger = logging.getLogger(__name__)

FLAGS_WITH_VALUE = ("-X", "-W")
"""Options of the interpreter that take a value; other single options take none."""


@dataclass(frozen=True, slots=True)
class Program:
    """What a command line of ``python`` runs."""

    kind: str
    """``code`` (-c), ``module`` (-m) or ``script``."""
    target: str
    argv: list[str]
    """``sys.argv`` of the program."""


def read_command(arguments: list[str]) -> Program:
    """The program in the arguments of ``python``. Raises ValueError if there is none."""
    rest = list(arguments)
    while rest:
        head = rest.pop(0)
        if head == "-c":
            return Program("code", rest[0], ["-c", *rest[1:]])
        if head == "-m":
            return Program("module", rest[0], [rest[0], *rest[1:]])
        if head in FLAGS_WITH_VALUE:
            rest.pop(0)
        elif not head.startswith("-"):
            return Program("script", head, [head, *rest])
    raise ValueError(f"no program in {arguments}")


def run_program(program: Program) -> None:
    """Run it as ``__main__``, as the interpreter would."""
    sys.argv = program.argv
    if program.kind == "code":
        sys.path[0] = ""
        exec(compile(program.target, "<string>", "exec"), sys.modules["__main__"].__dict__)  # noqa: S102
    elif program.kind == "module":
        runpy.run_module(program.target, run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(program.target).resolve().parent)
        runpy.run_path(program.target, run_name="__main__")


def run_child(work: Callable[[], None]) -> NoReturn:
    """Run ``work`` in a forked process and end it as the interpreter would."""
    status = 1
    try:
        work()
        status = 0
    except SystemExit as stop:
        if stop.code is None:
            status = 0
        elif isinstance(stop.code, int):
            status = stop.code
        else:
            print(stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(Exception):
        threading._shutdown()  # type: ignore[attr-defined]  # joins the threads that are no daemons
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)


@dataclass
class Child:
    """A forked process and who asked for it."""

    pid: int
    handle: int
    """pidfd."""
    client: socket.socket | None
    """None for the first child."""


class ForkServer:
    """Serves fork requests until its first child ends."""

    def __init__(self, path: Path, client: Path, after_fork: Callable[[], None] | None = None) -> None:
        """``path``: socket to listen on; ``client``: executable that stands for ``python``; ``after_fork``:
        what each process does once it has its own environment."""
        self.path, self.client, self.after_fork = path, client, after_fork
        self.selector = selectors.DefaultSelector()
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(path))
        self.listener.listen(128)
        self.children: dict[int, Child] = {}

    def serve(self, first: Callable[[], None]) -> int:
        """Fork ``first``, serve requests until it ends; its exit status, negative for a signal."""
        gc.collect()
        gc.freeze()  # the collector of a child must not touch, and so copy, these pages
        self.selector.register(self.listener, selectors.EVENT_READ, self._accept)
        main = self._fork(first, None)
        result: int | None = None
        while result is None:
            for key, _ in self.selector.select():
                status = key.data(key.fileobj)
                if isinstance(status, tuple) and status[0] == main.pid:
                    result = status[1]
        for child in list(self.children.values()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)
        return result

    def _accept(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.settimeout(10)
        try:
            request, files = receive_request(connection)
        except (OSError, ValueError) as error:
            logger.warning(f"fork server: bad request: {error}")
            connection.close()
            return
        connection.settimeout(None)
        child = self._fork(lambda: self._become(request, files), connection)
        for descriptor in files:
            os.close(descriptor)
        with contextlib.suppress(OSError):  # a client that has gone meanwhile is met as such below
            connection.sendall(struct.pack("!q", child.pid))
        self.selector.register(connection, selectors.EVENT_READ, self._client_gone)

    def _fork(self, work: Callable[[], None], client: socket.socket | None) -> Child:
        sys.stdout.flush()
        sys.stderr.flush()
        server = os.getpid()
        pid = os.fork()
        if pid == 0:
            die_with_parent()
            if os.getppid() != server:
                os._exit(1)
            self._leave_server()
            run_child(work)
        child = Child(pid, os.pidfd_open(pid), client)
        self.children[pid] = child
        self.selector.register(child.handle, selectors.EVENT_READ, lambda _: self._reap(child))
        return child

    def _leave_server(self) -> None:
        """Drop what only the server uses, and make this process start others through the client."""
        self.selector.close()
        self.listener.close()
        for child in self.children.values():
            os.close(child.handle)
            if child.client is not None:
                child.client.close()
        import multiprocessing.spawn

        sys.executable = str(self.client)
        multiprocessing.spawn.set_executable(str(self.client))
        # Forked processes must not draw the same numbers (Python's ``random`` does this by itself).
        if (numpy := sys.modules.get("numpy")) is not None:
            numpy.random.seed(int.from_bytes(os.urandom(4), "big"))

    def _become(self, request: dict[str, Any], files: list[int]) -> None:
        """In the child: take over the client's files, environment and directory; run its program."""
        place_files(files, request["files"])
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["directory"])
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115
        if self.after_fork is not None:
            self.after_fork()
        run_program(read_command(request["arguments"]))

    def _reap(self, child: Child) -> tuple[int, int]:
        self.selector.unregister(child.handle)
        os.close(child.handle)
        _, raw = os.waitpid(child.pid, 0)
        status = os.waitstatus_to_exitcode(raw)
        del self.children[child.pid]
        if child.client is not None:
            with contextlib.suppress(OSError, KeyError):
                self.selector.unregister(child.client)
                child.client.sendall(struct.pack("!q", status))
            child.client.close()
        return child.pid, status

    def _client_gone(self, connection: socket.socket) -> None:
        """The client died (it never writes): its process dies with it."""
        if connection.fileno() < 0:
            return  # its process ended at the same moment and was reaped a line before
        self.selector.unregister(connection)
        for child in self.children.values():
            if child.client is connection:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGKILL)


def receive_request(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """A request of ``fork_client`` and its files, in order."""
    (length,) = fork_client.LENGTH.unpack(_read(connection, fork_client.LENGTH.size))
    request = json.loads(_read(connection, length).decode("utf-8", "surrogateescape"))
    files: list[int] = []
    while len(files) < len(request["files"]):
        data, received, _, _ = socket.recv_fds(connection, 1, fork_client.CHUNK)
        if not data:
            raise ValueError("the client left")
        files += received
    return request, files


def _read(connection: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        part = connection.recv(length - len(data))
        if not part:
            raise ValueError("the client left")
        data += part
    return data


def place_files(files: list[int], numbers: list[int]) -> None:
    """Give each received file the number that it has in the client."""
    # First out of the way of every target, then to the targets.
    above = max([*numbers, *files], default=2) + 1
    copies = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, above) for descriptor in files]
    for descriptor in files:
        os.close(descriptor)
    for copy, number in zip(copies, numbers, strict=True):
        os.dup2(copy, number, inheritable=True)
        os.close(copy)
