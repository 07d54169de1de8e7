"""A study in a folder, one stage of which is trained in a process of its own, to be killed and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from arpo_replica.base.environments import ROOT
from arpo_replica.base.files import read_rows
from arpo_replica.config.models import StudyConfig
from arpo_replica.policy.manifest import register_model
from arpo_replica.tasks.splits import load_split
from training.tiny_model import build_tiny_model

RUN = """
import json, sys
from pathlib import Path
from arpo_replica.config.models import StudyConfig
from arpo_replica.tasks.splits import resolve
from arpo_replica.training.run import train_stage
folder = Path(sys.argv[1])
config = StudyConfig.model_validate_json((folder / "config.json").read_bytes())
options = {"stage": "train_4", "parent": "base/manifest.json", "out": "stage", **json.loads(sys.argv[2])}
paths = {name: folder / options.pop(name) for name in ("parent", "out")}
episodes = [folder / path for path in options.pop("episodes", ())]
train_stage(config, arm="arpo", seed=5, split=resolve(config, config.stage(options["stage"]).split),
            episodes=episodes, **paths, **options)
"""


class StageProcess:
    """The study and its stage."""

    def __init__(self, folder: Path, config: StudyConfig, **options: Any) -> None:
        """``options``: further arguments of ``train_stage``; paths relative to ``folder``."""
        folder.mkdir(exist_ok=True)
        self.folder, self.out, self.config, self.options = folder, folder / "stage", config, options
        self.variables: dict[str, str] = {}
        self.tasks = load_split(config.tasks.splits["train_4"], config.tasks.root)
        (folder / "config.json").write_text(config.model_dump_json())
        build_tiny_model(folder / "model")
        (folder / "base").mkdir()
        self.parent = register_model(config, folder / "model", folder / "base" / "manifest.json")

    def start(self) -> subprocess.Popen[bytes]:
        """A process that trains the stage."""
        log = (self.folder / "output.txt").open("ab")
        return subprocess.Popen(
            [sys.executable, "-c", RUN, str(self.folder), json.dumps(self.options)],
            env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}", **self.variables},
            stdout=log,
            stderr=log,
        )

    def finish(self) -> None:
        """Train to the end."""
        process = self.start()
        self.wait(process, lambda: False)
        assert process.returncode == 0, self.words()

    def kill_when(self, moment: Callable[[], bool]) -> None:
        """Train until the moment has come, then SIGKILL; returns when everything below is gone."""
        process = self.start()
        self.wait(process, moment)
        assert process.poll() is None, self.words()
        process.send_signal(signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 20
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert self.processes() == [], "processes survived SIGKILL"

    def wait(self, process: subprocess.Popen[bytes], moment: Callable[[], bool]) -> None:
        """Until the moment has come or the process has ended."""
        deadline = time.monotonic() + 400
        while process.poll() is None and not moment():
            if time.monotonic() > deadline:
                process.kill()  # its guard ends the rest
                raise AssertionError(self.words())
            time.sleep(0.02)

    def rows(self) -> list[dict[str, Any]]:
        """``metrics.jsonl``."""
        path = self.out / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def logged(self, step: int) -> bool:
        """True if verl has logged the step (``metrics.jsonl`` follows half a second later)."""
        logs = (self.out / "checkpoints" / "logs").glob("verl_*.jsonl")
        return any(row["step"] == step for path in logs for row in read_rows(path))

    def words(self) -> str:
        """What went wrong, for a failed assertion."""
        logs = sorted((self.out / "checkpoints" / "logs").glob("train_*.log"))
        log = logs[-1].read_text(errors="replace")[-6000:] if logs else ""
        return (self.folder / "output.txt").read_text() + "\n" + log

    def living(self) -> list[psutil.Process]:
        """All processes that still belong to the training."""
        found = []
        for process in psutil.process_iter():
            try:
                ours = process.environ().get("ARPO_JOB", "").startswith(str(self.out))
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def processes(self) -> list[str]:
        """The same in words."""
        return [str(process) for process in self.living()]
