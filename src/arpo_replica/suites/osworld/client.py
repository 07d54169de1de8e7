"""The controller's side of a worker: OSWorld's set-up steps and evaluators for one desktop.

A worker that hangs is killed after its time, with everything it started; one that crashes or is killed is a
``DesktopError``. Either way the episode is an ``env_error``, never a score.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from arpo_replica.actions.types import Fail
from arpo_replica.base.environments import python_of
from arpo_replica.base.errors import DesktopError, UserError
from arpo_replica.base.files import cache_folder
from arpo_replica.desktop.interface import DesktopAddress, Score
from arpo_replica.suites.evaluate import verdict
from arpo_replica.suites.osworld.confine import can_confine, confined
from arpo_replica.tasks.model import Task

START_S = 120.0
"""Importing desktop-env on a cold, busy machine."""
SET_UP_S = 300.0
EVALUATE_S = 300.0
DOCKER_VARIABLES = ("DOCKER_HOST", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH")
FOLDER = "arpo-osworld-"
END_S = 10.0
MESSAGE_BYTES = 64 << 20
"""Longest message of a worker, a line of JSON; a task file or an answer is far shorter."""
PASSWORD = "password"  # noqa: S105  # of the user of OSWorld's public image, and of ours
KEPT_VARIABLES = (
    *("PATH", "LANG", "LC_ALL", "TZ"),
    *("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"),
)
"""What the workers' environment takes over. Keys and tokens are not for evaluators."""


class _Server:
    """The process that forks workers, started when first needed, one per client process."""

    def __init__(self, downloads: Path, confined: bool) -> None:
        self._downloads, self._confined = downloads, confined
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._path = Path()

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """(leash, channel) of a new worker; blocking. Raises ``UserError`` or ``DesktopError``."""
        with self._lock:
            for attempt in (1, 2):
                if self._process is None or self._process.poll() is not None:
                    self._start()
                try:
                    return self._request()
                except OSError as error:  # it ended, idle, at this very moment
                    self.stop()
                    if attempt == 2:
                        raise DesktopError(f"no worker for OSWorld's evaluators: {error}") from error
        raise AssertionError

    def _start(self) -> None:
        python = python_of("evaluator")
        _sweep()
        folder = Path(tempfile.mkdtemp(prefix=f"{FOLDER}{os.getpid()}-"))
        self._path = folder / "server.sock"
        kept = KEPT_VARIABLES if self._confined else KEPT_VARIABLES + DOCKER_VARIABLES
        variables = {name: os.environ[name] for name in kept if name in os.environ}
        variables |= dict.fromkeys(("TMPDIR", "HOME"), str(folder))
        variables |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PYTHONUNBUFFERED"), "1")
        log = (folder / "log").open("w+b")
        command = [str(python), "-m", "arpo_replica.suites.osworld.server", str(self._path)]
        self._process = subprocess.Popen(
            confined(command, folder, self._downloads) if self._confined else command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=variables,
            cwd=folder,
            start_new_session=True,  # a Ctrl-C is for us: we close the workers
        )
        assert self._process.stdout is not None
        watch = threading.Timer(START_S, self._process.kill)
        watch.start()
        try:
            ready = self._process.stdout.readline() == b"ready\n"
        finally:
            watch.cancel()
        if not ready:
            self._process.wait()
            log.seek(0)
            words = " ".join(log.read().decode(errors="replace").split())[-300:]
            self.stop()
            raise UserError(
                f"The evaluators of OSWorld do not start ({words}); run 'python3 envs/prepare.py evaluator'."
            )
        log.close()

    def _request(self) -> tuple[socket.socket, socket.socket]:
        ours, theirs = socket.socketpair()
        leash = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            leash.connect(str(self._path))
            socket.send_fds(leash, [b"w"], [theirs.fileno()])
        except OSError:
            leash.close()
            ours.close()
            raise
        finally:
            theirs.close()
        for end in (leash, ours):
            end.setblocking(False)
        return leash, ours

    def stop(self) -> None:
        """End it, and with it every worker. It ends by itself a minute after the last one, or with us."""
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(self._path.parent, ignore_errors=True)


def _sweep() -> None:
    """Remove the folders of clients that were killed: their sandboxes could empty them, no more."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER}*-*"):
        number = folder.name.removeprefix(FOLDER).partition("-")[0]
        if number.isdigit() and not psutil.pid_exists(int(number)):
            shutil.rmtree(folder, ignore_errors=True)


_SERVERS: dict[tuple[Path, bool], _Server] = {}


class OSWorldWorker:
    """One worker process. Calls of one worker come one after the other."""

    def __init__(self, name: str, downloads: Path) -> None:
        """Use ``start``."""
        self.name = name
        self.downloads = downloads
        self.number: int | None = None
        """Its process id in its sandbox; no other process can use it."""
        self._leash: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._channel: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    @classmethod
    async def start(cls, name: str, downloads: Path | None = None, confine: bool = True) -> OSWorldWorker:
        """Start a worker; ``name`` is for messages. ``downloads``: folder that all workers share.

        ``confine``: in a sandbox, as what reads a desktop's files must be. False for one that commands a
        hypervisor. Raises ``UserError`` if the environment of the evaluators is not installed.
        """
        folder = (downloads or default_cache()).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(PermissionError):
            folder.chmod(0o755)  # as root we have workers that are another user
        worker = cls(name, folder)
        key = (folder, confine and can_confine())
        leash, channel = await asyncio.to_thread(_SERVERS.setdefault(key, _Server(*key)).connect)
        worker._leash = await asyncio.open_connection(sock=leash)
        worker._channel = await asyncio.open_connection(sock=channel, limit=MESSAGE_BYTES)
        worker.number = await worker._call(START_S, "ping")
        return worker

    async def set_up(
        self, task: Task, address: DesktopAddress, screen: tuple[int, int], password: str = PASSWORD
    ) -> list[str]:
        """Run the task's ``config`` steps by desktop-env's SetupController on the desktop at ``address``.

        Returns what steps said that may fail (activating and closing windows). Raises ``DesktopError`` if any
        other step failed, which upstream often only logs, or if the desktop does not answer.
        """
        episode = await self._episode(task, address, screen, password)
        warnings: list[str] = await self._call(SET_UP_S, "set_up", **episode)
        return warnings

    async def evaluate(
        self,
        task: Task,
        address: DesktopAddress,
        screen: tuple[int, int],
        last_action_failed: bool,
        password: str = PASSWORD,
    ) -> float:
        """Score in [0, 1] by ``DesktopEnv.evaluate``: postconfig, getters, metrics, ``and``/``or``.

        FAIL and infeasible tasks are decided without a look (``suites.evaluate.verdict``). The address may be
        another one than that of ``set_up``. Raises ``DesktopError`` for anything else than a score.
        """
        if (known := verdict(task, Fail() if last_action_failed else None)) is not None:
            return known
        episode = await self._episode(task, address, screen, password)
        answer = await self._call(EVALUATE_S, "evaluate", failed=last_action_failed, **episode)
        return Score.of(float(answer["score"]), answer["expected"], answer["found"])

    async def start_desktop(self, timeout_s: float, **options: Any) -> DesktopAddress:
        """Start a desktop by a provider of desktop-env: ``hypervisor``, ``vm``, ``snapshot``, ``mark``,
        ``screen``, ``password`` (``upstream.start``)."""
        return DesktopAddress(**await self._call(timeout_s, "start", **options))

    async def reset_desktop(self, fresh: bool, timeout_s: float) -> DesktopAddress:
        """Revert that desktop unless it is ``fresh``; where it listens now."""
        return DesktopAddress(**await self._call(timeout_s, "reset", fresh=fresh))

    async def stop_desktop(self, timeout_s: float) -> None:
        """Stop that desktop as its provider does."""
        await self._call(timeout_s, "stop")

    async def _episode(
        self, task: Task, address: DesktopAddress, screen: tuple[int, int], password: str
    ) -> dict[str, Any]:
        """The task, its files, which are here by then, and the desktop."""
        files = {url: path_of(self.downloads, url) for url in sorted(urls_of(task.raw))}
        for url, path in files.items():
            if not path.is_file():
                await _fetch(url, path)
        place = {"address": asdict(address), "screen": list(screen), "password": password}
        return {"task": task.raw, "files": {url: str(path) for url, path in files.items()}, **place}

    async def _call(self, timeout_s: float, operation: str, **values: Any) -> Any:
        """Ask and wait. Whatever goes wrong, also a cancellation, ends the worker: it could be anywhere."""
        if self._channel is None:
            raise DesktopError(f"the evaluator of {self.name} has ended")
        reader, writer = self._channel
        try:
            async with asyncio.timeout(timeout_s):
                writer.write(json.dumps({"op": operation, **values}).encode() + b"\n")
                await writer.drain()
                answer = dict(json.loads(await reader.readline()))
        except TimeoutError as error:
            await self.close()
            raise DesktopError(f"{operation}: the evaluator took longer than {timeout_s:g} s") from error
        except (OSError, ValueError, TypeError) as error:
            words = await self._last_words()
            await self.close()
            raise DesktopError(f"{operation}: the evaluator's process ended: {words}") from error
        except BaseException:
            await asyncio.shield(self.close())
            raise
        if "error" in answer:
            raise DesktopError(f"{operation}: {answer['error']}")
        return answer["result"]

    async def _last_words(self) -> str:
        """What the server says of a worker that ended by itself."""
        if self._leash is None:
            return "it was closed"
        try:
            async with asyncio.timeout(END_S):
                facts = json.loads(await self._leash[0].readline())
        except (OSError, ValueError, TimeoutError):
            return "without a trace"
        return f"status {facts['status']}. {facts['log']}"

    async def close(self) -> None:
        """Kill the worker process and all it started; return when they are gone. Never raises."""
        channel, self._channel = self._channel, None
        leash, self._leash = self._leash, None
        if channel is not None:
            channel[1].close()
        if leash is None:
            return
        reader, writer = leash
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(END_S):
                if writer.can_write_eof():
                    writer.write_eof()
                await reader.read()  # the server closes it when the worker is gone
        writer.close()


# --- files that tasks download (start files, gold files): fetched once, whole ---------------------------

# desktop-env keeps them beside an episode's results and takes whatever lies there, even half a file. Here the
# client fetches them, before the worker needs them: each URL has one file, named by the URL's sha256, that
# appears only when it is complete. Workers, which handle what a policy wrote, can only read them.

ATTEMPTS = 3
LIMITS = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60)


def default_cache() -> Path:
    """Where downloads are kept."""
    return (cache_folder() / "osworld").resolve()


def urls_of(task: dict[str, Any]) -> set[str]:
    """Every URL whose content is a file of the task: ``download`` steps and ``cloud_file`` getters.

    Only these are shared. What an evaluator asks a live site for is never kept.
    """
    evaluator = task.get("evaluator") or {}
    found: set[str] = set()
    for step in [*(task.get("config") or []), *(evaluator.get("postconfig") or [])]:
        if step.get("type") == "download":
            found.update(file["url"] for file in step["parameters"]["files"])
    for key in ("result", "expected"):
        states = evaluator.get(key) or []
        for state in states if isinstance(states, list) else [states]:
            if state and state.get("type") == "cloud_file":
                paths = state["path"]
                found.update(paths if isinstance(paths, list) else [paths])
    return found


def path_of(folder: Path, url: str) -> Path:
    """Where the content of a URL lies, or would lie; to fill it by hand put the file there."""
    return folder / hashlib.sha256(url.encode()).hexdigest()


async def _fetch(url: str, path: Path) -> None:
    """The complete file appears in one step; several processes may do it at once. Raises ``DesktopError``
    that names what cannot be had."""
    problem = ""
    for _ in range(ATTEMPTS):
        part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            async with (
                aiohttp.ClientSession(timeout=LIMITS, trust_env=True, auto_decompress=False) as session,
                session.get(url, headers={"Accept-Encoding": "identity"}) as response,
            ):
                response.raise_for_status()
                if response.headers.get("Content-Encoding", "identity") != "identity":
                    raise aiohttp.ClientPayloadError("it comes encoded, not as the file itself")
                with part.open("wb") as file:
                    async for data in response.content.iter_chunked(1 << 16):
                        file.write(data)
            part.chmod(0o444)
            part.replace(path)
            return
        except (aiohttp.ClientError, OSError, ValueError) as error:
            problem = f"{type(error).__name__}: {error}"
        finally:
            part.unlink(missing_ok=True)
    raise DesktopError(f"{url} could not be downloaded ({problem[:200]}); its place is {path}")
