"""Imports desktop-env once and forks a worker per desktop: its set-up steps and evaluators.

Started as ``python -m arpo_replica.suites.osworld.server SOCKET`` in envs/evaluator. Importing takes
seconds and 240 MB; a fork takes milliseconds and shares them.

A client (``client``) connects and hands over one end of a socket pair: the worker's channel. The connection
itself is a leash, held by a keeper, a process between server and worker: closed by the client, it ends the
worker with everything the worker started; when the worker ends by itself, the keeper says so and closes it.
When stdin ends (the client's process is gone) or there has been no worker for a minute, everything ends.

Messages on a channel are lines of JSON: ``{"op": ..., ...}`` is answered by ``{"result": ...}`` or
``{"error": one line}``. What the evaluators print goes to the log, never to the channel.
"""

import contextlib
import gc
import importlib
import json
import logging
import math
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from arpo_replica.base.environments import die_with_parent
from arpo_replica.desktop.interface import WORDS, DesktopAddress
from arpo_replica.suites.osworld import desktop_env
from arpo_replica.suites.osworld.desktop_env import GUEST, GuestGone

logger = logging.getLogger(__name__)

IDLE_S = 60.0
"""Without a worker for so long, the server ends; the next client starts a new one."""
READY = b"ready\n"
"""What stdout says once workers can be forked."""
MEMORY_BYTES = 4 << 30
"""A worker that a document makes larger than this fails instead of the machine."""
FILE_BYTES = 2 << 30


def serve_workers(path: Path) -> None:
    """Fork a worker for each client of the socket ``path``; end as the module says."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(64)
    if psutil.Process().num_threads() != 1:
        raise RuntimeError("the server must have one thread when it forks: a lock could be held")
    gc.collect()
    gc.freeze()  # a worker's collector must not touch, and so copy, the shared pages
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    keepers, idle_since = set[int](), time.monotonic()
    os.write(sys.stdout.fileno(), READY)
    try:
        while keepers or time.monotonic() < idle_since + IDLE_S:
            readable, _, _ = select.select([0, listener.fileno()], [], [], IDLE_S / 10)
            if 0 in readable and not os.read(0, 4096):
                break
            if listener.fileno() in readable:
                keepers.add(_accept(listener))
            if ended := {keeper for keeper in keepers if os.waitpid(keeper, os.WNOHANG)[0]}:
                keepers, idle_since = keepers - ended, time.monotonic()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for keeper in keepers:
            os.kill(keeper, signal.SIGTERM)
        for keeper in keepers:
            os.waitpid(keeper, 0)


def _accept(listener: socket.socket) -> int:
    """Process id of the keeper of a new client's worker."""
    leash, _ = listener.accept()

    def begin() -> None:
        listener.close()
        keep(leash)

    with leash:
        return fork(begin)


def fork(work: Callable[[], None]) -> int:
    """Process id of a child that does ``work`` and then ends: with this process at the latest, on Linux."""
    parent = os.getpid()
    if child := os.fork():
        return child
    status = 1
    try:
        with contextlib.suppress(AttributeError):  # a Mac has no such call: there the leash must do
            die_with_parent()
        if os.getppid() == parent:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            work()
            status = 0
    except BaseException as error:
        with contextlib.suppress(BaseException):
            logger.error(f"worker: {error!r}")
    os._exit(status)


def keep(leash: socket.socket) -> None:
    """Run a worker; end it and all that it started when the leash closes; tell of an end of its own."""
    leash.settimeout(5)
    _, (channel,), _, _ = socket.recv_fds(leash, 1, 1)
    leash.settimeout(None)
    folder = Path(tempfile.mkdtemp(prefix="arpo-osworld-"))  # private: its files, log and home

    def begin() -> None:
        os.setpgid(0, 0)
        leash.close()
        enter(folder)
        serve(socket.socket(fileno=channel), folder)

    worker = fork(begin)
    with contextlib.suppress(OSError):
        os.setpgid(worker, worker)  # the child does it too: whoever comes first
    os.close(channel)

    def end(*_: object) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(worker, signal.SIGKILL)

    def watch() -> None:
        with contextlib.suppress(OSError):
            while leash.recv(4096):
                pass
        end()

    signal.signal(signal.SIGTERM, end)
    threading.Thread(target=watch, daemon=True).start()
    _, status = os.waitpid(worker, 0)
    end()  # what it has started
    words = last_words(folder / "log")
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        told = {"status": os.waitstatus_to_exitcode(status), "log": words}
        leash.sendall(json.dumps(told).encode() + b"\n")


def last_words(log: Path, size: int = 300) -> str:
    """The end of what the worker printed, in one line."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - size))
        return " ".join(file.read().decode(errors="replace").split())
    return ""


def enter(folder: Path) -> None:
    """Make the private folder this process's home, working directory and place for temporary files."""
    import resource

    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write past the limit is an error, not the end
    log = os.open(folder / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(null)
    os.close(log)
    sys.stdout = open(1, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115
    for name in ("home", "tmp"):
        (folder / name).mkdir()
    os.environ.update(HOME=str(folder / "home"), TMPDIR=str(folder / "tmp"))
    tempfile.tempdir = None
    os.chdir(folder)


# --- a worker ------------------------------------------------------------------------------------------

PRELOADED = ("docx", "pptx", "openpyxl", "odf", "PIL.Image", "lxml.etree", "playwright.sync_api")
"""What desktop-env imports only inside functions and many tasks use."""


class Worker:
    """Answers requests; keeps the ``DesktopEnv`` of the present episode."""

    def __init__(self, folder: Path) -> None:
        """``folder``: private; its ``cache`` is emptied at the start of each episode."""
        self.cache = folder / "cache"
        self.environment: Any = None
        self.owned = False
        """The environment's desktop was started here (op ``start``), not attached."""
        self.address: dict[str, Any] | None = None
        """Of the attached desktop; another one for the same desktop is no new episode."""
        self.task_id: str | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run one request. Nothing that it raises gets out."""
        GUEST.gone = GUEST.refused = None
        try:
            operation = {
                "ping": lambda _: os.getpid(),
                "set_up": self.set_up,
                "evaluate": self.evaluate,
                "start": self.start,
                "reset": self.reset,
                "stop": self.stop,
            }[request["op"]]
            return {"result": operation(request)}
        except GuestGone as error:
            return {"error": f"the desktop is gone: {error}"}
        except BaseException as error:
            traceback.print_exc()
            return {"error": describe(error)}

    # -- an episode on a desktop that somebody else runs ------------------------------------------

    def set_up(self, request: dict[str, Any]) -> list[str]:
        """Run the task's ``config`` on the desktop at ``address``. Returns what advisory steps said."""
        self._begin_episode(request)
        self.environment = self._attach(request)
        return self._reset(request["task"])

    def _attach(self, request: dict[str, Any]) -> Any:
        self.address = request["address"]
        address = DesktopAddress(**self.address)
        return desktop_env.attach(address, tuple(request["screen"]), request["password"], self.cache)

    def _begin_episode(self, request: dict[str, Any]) -> None:
        shutil.rmtree(self.cache, ignore_errors=True)
        self.cache.mkdir()
        GUEST.ports = frozenset()
        GUEST.files = request["files"]
        self.task_id = None

    def _reset(self, task: dict[str, Any] | None) -> list[str]:
        """``DesktopEnv.reset`` with the failures that it hides made visible."""
        desktop_env.WARNINGS.clear()
        GUEST.strict = True
        try:
            seen = self.environment.reset(task_config=task)
        finally:
            GUEST.strict = False
        self._still_there()
        if not seen["screenshot"]:
            raise GuestGone(f"no screenshot after the reset ({GUEST.refused})")
        self.task_id = None if task is None else task["id"]
        return list(desktop_env.WARNINGS)

    def evaluate(self, request: dict[str, Any]) -> dict[str, Any]:
        """The score of the desktop as it is, by ``DesktopEnv.evaluate`` with all its rules.

        With it what each metric was given, in words: ``expected`` and ``found``.
        """
        task = request["task"]
        if self.task_id != task["id"] or self.address != request["address"]:
            if self.task_id != task["id"]:
                self._begin_episode(request)
            self.environment = self._attach(request)
            self._reset({**task, "config": []})
        self.environment.action_history = ["FAIL" if request["failed"] else "DONE"]
        told: list[tuple[str, str]] = []
        metric = self.environment.metric
        many = isinstance(metric, list)
        noting = [self._noting(one, told) for one in (metric if many else [metric])]
        self.environment.metric = noting if many else noting[0]
        try:
            score = float(self.environment.evaluate())
        finally:
            self.environment.metric = metric
        self._still_there()
        if not self.environment.controller.get_screenshot():
            raise GuestGone(f"no screenshot after the evaluation ({GUEST.refused})")
        if not (math.isfinite(score) and 0 <= score <= 1):
            raise ValueError(f"the evaluator gave {score!r}, which is no score in [0, 1]")
        expected, found = ("; ".join(texts) for texts in zip(*told, strict=True)) if told else ("", "")
        return {"score": score, "expected": expected, "found": found}

    def _noting(self, metric: Any, told: list[tuple[str, str]]) -> Any:
        """The metric, which notes what it is given. Files have their names in the task's cache."""

        def noted(result: Any, *expected: Any, **options: Any) -> Any:
            seen, *wanted = (
                repr(value).replace(f"{self.cache}/", "")[:WORDS] for value in (result, *expected)
            )
            told.append((" ".join([metric.__name__, *wanted]), seen))
            return metric(result, *expected, **options)

        return noted

    def _still_there(self) -> None:
        """A request without an answer spoils the result even where upstream went on without it."""
        if GUEST.gone is not None:
            raise GuestGone(GUEST.gone)

    # -- a desktop of desktop-env's own providers -------------------------------------------------

    def start(self, request: dict[str, Any]) -> dict[str, Any]:
        """Start a desktop by desktop-env's provider ``hypervisor``."""
        GUEST.ports = frozenset()
        self.cache.mkdir(exist_ok=True)
        self.environment = desktop_env.start(
            request["hypervisor"],
            request["vm"],
            snapshot=request["snapshot"],
            mark=request["mark"],
            screen=tuple(request["screen"]),
            password=request["password"],
            cache=self.cache,
        )
        self.owned = True
        return asdict(desktop_env.address_of(self.environment))

    def reset(self, request: dict[str, Any]) -> dict[str, Any]:
        """Revert the own desktop by ``DesktopEnv.reset``; where it listens now.

        ``fresh``: it was just started and never used. Set-up steps and evaluators are another worker's: what
        may command the hypervisor must not read what a policy wrote.
        """
        if not self.owned:
            raise RuntimeError("there is no desktop: op 'start' comes first")
        GUEST.ports = frozenset()
        # Actions reach the desktop without ``DesktopEnv.step``, which would note that it was used.
        self.environment.is_environment_used = not request["fresh"]
        self._reset(None)
        return asdict(desktop_env.address_of(self.environment))

    def stop(self, _: dict[str, Any]) -> None:
        GUEST.ports = frozenset()
        if self.owned:
            self.owned = False
            self.environment.close()


def describe(error: BaseException) -> str:
    """One line: the error and where in desktop-env it came from."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/desktop_env/" in f.filename]
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return " ".join(f"{type(error).__name__}: {error}".split())[:500] + where


def serve(channel: socket.socket, folder: Path) -> None:
    """Answer requests until the client is gone."""
    worker = Worker(folder)
    log = folder / "log"
    with channel.makefile("rb") as requests:
        for request in requests:
            os.truncate(log, 0)
            answer = worker.answer(json.loads(request))
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            channel.sendall(json.dumps(answer).encode() + b"\n")


def main() -> None:
    path = Path(sys.argv[1])
    desktop_env.prepare()
    for name in PRELOADED:
        importlib.import_module(name)
    try:
        serve_workers(path)
    finally:
        shutil.rmtree(path.parent, ignore_errors=True)


if __name__ == "__main__":
    main()
