"""OSWorld's task files (xlang-ai/OSWorld, Apache-2.0): fetched, compared byte for byte, put in one folder.

The repository holds none of them, only the sha256 of each (``data/osworld/manifest.json``). They come from
one commit of a git repository or from a local folder; a file that differs, lacks or is too much is refused.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from arpo_replica.base.errors import UserError
from arpo_replica.base.files import write_document
from arpo_replica.config.tasks import OsworldTasksConfig

ROOT = Path("results/osworld/tasks")
"""``tasks.root`` of studies on OSWorld's tasks, relative to the repository; shared by all studies."""
MANIFEST = Path("data/osworld/manifest.json")
"""Which files they are, relative to the repository."""
INSIDE = "evaluation_examples/examples"
"""Where they lie in OSWorld's repository: ``{domain}/{id}.json``."""
GIT_TIMEOUT_S = 300
GIT_PLACES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR")
"""Variables of a git hook, say, that would make git work on another repository than the scratch one."""


class TaskManifest(BaseModel):
    """Every task file of a folder, by its hash."""

    model_config = ConfigDict(extra="allow")

    source: str
    """Where the bytes came from when the manifest was made, and what was checked."""
    files: dict[str, str]
    """``{domain}/{id}.json`` -> sha256."""


def read_task_manifest(path: Path) -> TaskManifest:
    """Raises ``UserError`` if it cannot be read."""
    try:
        return TaskManifest.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        words = "restore it, or make the task files again"
        raise UserError(f"The manifest {path} cannot be read; {words}.") from error


def fetch_osworld_tasks(settings: OsworldTasksConfig, manifest: Path, out: Path) -> int:
    """Put OSWorld's task files into the folder ``out``, its ``manifest.json`` last; returns their number.

    Raises ``UserError`` that names the files which are not those of ``manifest``; ``out`` then has no
    manifest, and nobody uses it.
    """
    expected = read_task_manifest(manifest)
    with tempfile.TemporaryDirectory(prefix="arpo-osworld-") as scratch:
        folder = _examples(settings, Path(scratch))
        contents = read_files(folder)
        refuse_other_files(contents, expected, f"{settings.source}")
    out.mkdir(parents=True, exist_ok=True)
    (out / "manifest.json").unlink(missing_ok=True)
    for entry in out.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    for name, content in contents.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(content)
    write_document(expected, out / "manifest.json")
    return len(contents)


def read_files(folder: Path) -> dict[str, bytes]:
    """Path below ``folder`` -> content of every file; a symbolic link counts as a file of its own bytes."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[path.relative_to(folder).as_posix()] = os.fsencode(path.readlink())
        elif path.is_file():
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


def refuse_other_files(contents: dict[str, bytes], expected: TaskManifest, where: str) -> None:
    """Raises ``UserError`` unless the files are exactly those of the manifest."""
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    faults = {
        "other bytes": [name for name, value in expected.files.items() if hashes.get(name, value) != value],
        "missing": [name for name in expected.files if name not in hashes],
        "not expected": [name for name in hashes if name not in expected.files],
    }
    if any(faults.values()):
        listed = "; ".join(f"{fault}: {_some(names)}" for fault, names in faults.items() if names)
        raise UserError(
            f"The task files of {where} are not those of {MANIFEST} ({listed}); "
            "correct tasks.osworld.source or tasks.osworld.commit."
        )


def _some(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(sorted(names)[:most]) + more


def _examples(settings: OsworldTasksConfig, scratch: Path) -> Path:
    """The folder of task files: in the local folder that the config names, or fetched."""
    source = settings.source
    local = Path(source).expanduser()
    if "://" not in source and local.is_dir():
        for folder in (local / INSIDE, local / "examples"):
            if folder.is_dir():
                return folder
    elif "://" not in source and not source.startswith("git@"):
        raise UserError(f"tasks.osworld.source '{source}' is neither a folder nor the URL of a repository.")
    return _fetch_commit(settings, scratch)


def _fetch_commit(settings: OsworldTasksConfig, scratch: Path) -> Path:
    """One commit without history, and of it the task files alone."""
    source = settings.source if "://" in settings.source else str(Path(settings.source).absolute())
    for command in (
        ["init", "--quiet"],
        ["remote", "add", "origin", settings.source if settings.source.startswith("git@") else source],
        ["sparse-checkout", "set", "--no-cone", f"/{INSIDE}/"],
        ["fetch", "--quiet", "--depth=1", "--filter=blob:none", "origin", settings.commit],
        ["-c", "advice.detachedHead=false", "checkout", "--quiet", settings.commit],
    ):
        _git(scratch, command, settings)
    folder = scratch / INSIDE
    if not folder.is_dir():
        raise UserError(f"{settings.source} has no folder {INSIDE}; correct tasks.osworld.source.")
    return folder


def _git(folder: Path, command: list[str], settings: OsworldTasksConfig) -> None:
    # Nobody is there to answer a question for a password, and line ends are part of the bytes.
    environment = {
        "GIT_SSH_COMMAND": "ssh -o BatchMode=yes",
        **{name: value for name, value in os.environ.items() if name not in GIT_PLACES},
        "GIT_TERMINAL_PROMPT": "0",
        "LC_ALL": "C",
    }
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "-c", "core.autocrlf=false", "-c", "core.symlinks=true", *command],
            capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL,
            env=environment, timeout=GIT_TIMEOUT_S, check=False,
        )  # fmt: skip
        problem = _reason(done.stderr) if done.returncode else None
    except FileNotFoundError:
        problem = "the program git is not installed"
    except subprocess.TimeoutExpired:
        problem = f"no end after {GIT_TIMEOUT_S} s"
    if problem is not None:
        raise UserError(
            f"Commit {settings.commit[:12]} of {settings.source} cannot be fetched ({problem}); name another "
            f"repository or a local folder that holds {INSIDE} in tasks.osworld.source."
        )


def _reason(said: str) -> str:
    """What went wrong: git's last lines are advice ("... and the repository exists.")."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("warning:", "hint:"))]
    # What ssh or a helper said before it, e.g. "Permission denied", tells more than git's own sentence.
    end = next((at for at, line in enumerate(told) if line.startswith("fatal:")), 0)
    return " ".join(told[max(0, end - 1) : end + 1])[:300] or "git failed"
