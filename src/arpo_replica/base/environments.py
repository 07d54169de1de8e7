"""The locked Python environments and how one process calls into another one.

The controller must stay light and the heavy stacks cannot share one environment, so they are joined by
processes, not by imports.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NoReturn

from arpo_replica.base.errors import UserError, refuse

ROOT = Path(__file__).resolve().parents[3]
"""Where the workflow lives: `Snakefile`, `data/`, `configs/`, `envs/` and so on. A study may run elsewhere:
its `results/` and `reports/` are made in the working folder. Every process of a study imports this package
from the same place, on a compute node too, so all of them find the same files."""
SHIPPED = {"configs", "data", "envs", "slurm", "src"}
"""Folders of the workflow that a config or a command may name."""
Environment = Literal["controller", "cpu", "gpu", "evaluator"]
PR_SET_PDEATHSIG = 1
SHORT_PATH = 40
"""Longest path of a scratch folder."""


def find(name: Path | str) -> Path:
    """A file or folder that a config, a rule or a command names, in the working folder or, where it has none,
    in the workflow.

    Relative as long as the working folder has it: Snakemake compares the names of inputs, so a checkout that
    is moved together with its finished studies runs nothing again.
    """
    path = Path(name)
    if path.is_absolute() or path.exists() or not SHIPPED.intersection(path.parts[:1]):
        return path
    return ROOT / path if (ROOT / path).exists() else path


def as_written(path: Path) -> Path:
    """The name that `find` turned into this path: records do not say where somebody keeps the workflow."""
    name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    return name if find(name) == path else path


def heavy_environment(accelerator: Literal["cpu", "cuda"]) -> Environment:
    """The environment that serves and trains on an accelerator."""
    return "cpu" if accelerator == "cpu" else "gpu"


def python_of(environment: Environment) -> Path:
    """Its interpreter. Raises ``UserError`` if there is none that this user may start."""
    python = ROOT / "envs" / environment / ".venv" / "bin" / "python"
    if os.access(python, os.X_OK):
        return python
    prepare = find("envs/prepare.py")
    if python.is_symlink():
        raise UserError(
            f"envs/{environment} was made by {os.path.realpath(python)}, which this user cannot start; "
            f"delete envs/{environment}/.venv and run '/usr/bin/python3 {prepare} {environment}'."
        )
    raise UserError(f"envs/{environment} is not installed; run 'python3 {prepare} {environment}'.")


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies (for ``preexec_fn``)."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def run_module(environment: Environment, module: str, *arguments: object, threads: int = 2) -> None:
    """Run ``python -m module arguments`` in an environment, output passed through, until it ends.

    Exit status 2 means a user's mistake that the child has already explained: it becomes a ``UserError``
    with the child's last line. Raises ``RuntimeError`` for any other failure.
    """
    command = [str(python_of(environment)), "-m", module, *(str(part) for part in arguments)]
    set_here = {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    child = subprocess.Popen(
        command,
        env={**os.environ, **set_here},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        preexec_fn=die_with_parent,  # noqa: PLW1509  # one prctl call, no lock, no allocation
    )
    last = ""
    assert child.stdout is not None
    try:
        for line in child.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            last = line.strip() or last
    except BaseException:
        child.kill()
        raise
    finally:
        status = child.wait()
    if status == 2:
        raise UserError(last)
    if status:
        raise RuntimeError(f"{module} ended with status {status}: {last}")


def as_module(work: Callable[..., object]) -> NoReturn:
    """What a module that ``run_module`` runs ends with: ``work`` gets the arguments of the command line."""
    try:
        work(*sys.argv[1:])
    except UserError as error:
        refuse(error)
    sys.exit(0)


def short_root() -> Path:
    """Where folders with short paths go: ``ARPO_TMP`` (a cluster's scratch), or ``/tmp``.

    UNIX sockets lie some 45 characters below, and their paths end at 107 bytes. Raises ``UserError``.
    """
    root = Path(os.environ.get("ARPO_TMP") or "/tmp")  # noqa: S108
    if len(str(root)) > SHORT_PATH or not root.is_dir() or not os.access(root, os.W_OK):
        raise UserError(
            f"The scratch folder {root} (scratch in slurm/site.yaml, or ARPO_TMP) must exist, be writable, "
            f"and have a path of at most {SHORT_PATH} characters."
        )
    return root
