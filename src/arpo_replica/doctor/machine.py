"""All that checks ask of a machine, in one place, so that tests can put another one there.

No method raises for what it finds: a missing file is None, a missing program has status 127.
"""

import importlib.util
import os
import platform
import resource
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arpo_replica.base.environments import ROOT
from arpo_replica.base.errors import UserError, brief
from arpo_replica.config.models import StudyConfig

NOT_FOUND = 127
TOO_LONG = 124


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    out: str = ""
    err: str = ""

    @property
    def words(self) -> str:
        """The end of what it complained about, in one line."""
        return " ".join((self.err or self.out).split())[-200:]


@dataclass(frozen=True, slots=True)
class Docker:
    """A Docker daemon as far as checks need it; ``problem`` if it does not answer."""

    problem: str = ""
    info: Mapping[str, Any] | None = None


class Machine:
    root = ROOT

    @property
    def env(self) -> Mapping[str, str]:
        return os.environ

    def system(self) -> tuple[str, str, str]:
        """Operating system, processor architecture, Python version."""
        return platform.system(), platform.machine(), platform.python_version()

    def cores(self) -> int:
        """Processors that this process may use."""
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def limits(self, name: str) -> tuple[int | None, int | None]:
        """``NOFILE``, ``NPROC`` ...: soft, and what the user may raise it to; None: no limit."""
        soft, hard = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))
        none = resource.RLIM_INFINITY
        return None if soft == none else soft, None if hard == none else hard

    # --- files --------------------------------------------------------------------------------------

    def read(self, path: str | Path) -> str | None:
        """Text of a file (its first MiB), or None."""
        with suppress(OSError), Path(path).open(errors="replace") as file:
            return file.read(1 << 20)
        return None

    def exists(self, path: str | Path) -> bool:
        """True if it is there and may be looked at."""
        with suppress(OSError):
            return Path(path).exists()
        return False

    def may(self, path: str | Path, mode: int) -> bool:
        return os.access(path, mode)

    def size(self, path: str | Path) -> int | None:
        """Bytes of a file, or None."""
        with suppress(OSError):
            return Path(path).stat().st_size
        return None

    def files(self, folder: str | Path, pattern: str) -> list[Path]:
        """Files of a folder by pattern; none if there is no such folder."""
        with suppress(OSError):
            return sorted(Path(folder).glob(pattern))
        return []

    def free(self, path: str | Path) -> tuple[int, int] | None:
        """Free and total bytes of the disk that holds a path, which need not exist yet; None: no answer."""
        place = Path(path).absolute()
        while not place.exists() and place != place.parent:
            place = place.parent
        with suppress(OSError):
            usage = shutil.disk_usage(place)
            return usage.free, usage.total
        return None

    def temp_folder(self) -> str:
        return self.env.get("TMPDIR") or "/tmp"  # noqa: S108

    # --- programs -------------------------------------------------------------------------------------

    def which(self, program: str) -> str | None:
        return shutil.which(program)

    def run(self, *command: str, timeout_s: float = 30) -> Answer:
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False,
                stdin=subprocess.DEVNULL, cwd="/",
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return Answer(TOO_LONG, err=f"no end within {timeout_s:g} s")
        except (OSError, ValueError) as error:
            return Answer(NOT_FOUND, err=str(error))
        return Answer(done.returncode, done.stdout, done.stderr)

    # --- the project's own parts; -----------------------------------------------------------------

    def environment_state(self, name: str) -> str:
        """``ready``, ``stale`` (its lock changed since) or ``missing``."""
        folder = self.root / "envs" / name
        stamp = self.read(folder / ".venv" / "prepared")
        if not self.exists(folder / ".venv" / "bin" / "python"):
            return "missing"
        spec = importlib.util.spec_from_file_location("arpo_prepare", self.root / "envs" / "prepare.py")
        if spec is None or spec.loader is None:
            return "stale"
        prepare = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(prepare)
        return "ready" if stamp == prepare.fingerprint(folder) else "stale"

    def docker(self) -> Docker:
        """The daemon that ``DOCKER_HOST`` or the system names."""
        try:
            import docker
            import requests
        except ImportError:
            return Docker("the Python package 'docker' is missing")
        try:
            client = docker.from_env(timeout=10)
            try:
                return Docker(info=client.info())
            finally:
                client.close()
        except (docker.errors.DockerException, requests.RequestException, OSError, ValueError) as error:
            return Docker(brief(error))

    def refusals(self, config: StudyConfig) -> list[str]:
        """Every sentence with which a run of the study would refuse to start here."""
        from arpo_replica.workflow.study import Study

        study = Study(config)
        try:
            study.check()
        except UserError as error:
            return [str(error), *study.lacks()]
        return study.lacks()
