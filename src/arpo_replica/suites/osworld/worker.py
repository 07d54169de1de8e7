"""A worker: one desktop's set-up steps and evaluators, run by desktop-env (in a fork of ``server``).

Messages are lines of JSON: ``{"op": ..., ...}`` is answered by ``{"result": ...}`` or
``{"error": one line}``. What the evaluators print goes to the log, never to the channel.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import shutil
import socket
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from arpo_replica.desktop.interface import WORDS, DesktopAddress
from arpo_replica.suites.osworld import desktop_env
from arpo_replica.suites.osworld.desktop_env import GUEST, GuestGone

PRELOADED = ("docx", "pptx", "openpyxl", "odf", "PIL.Image", "lxml.etree", "playwright.sync_api")


def preload() -> None:
    """Import what desktop-env imports only inside functions and many tasks use."""
    for name in PRELOADED:
        importlib.import_module(name)


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
        """Stop the own desktop."""
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
