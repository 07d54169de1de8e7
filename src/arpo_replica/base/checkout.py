"""Which code this is (its commit, and whether files differ from it), and what GPUs are here."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

from arpo_replica.base.environments import ROOT
from arpo_replica.base.errors import UserError


def git_state(repository: Path) -> dict[str, Any]:
    """Commit and whether files differ from it; ``commit`` is None outside a git checkout."""
    commit = answer_of(["git", "-C", str(repository), "rev-parse", "HEAD"])
    if commit is None:
        return {"commit": None, "dirty": None, "changed": []}
    status = answer_of(["git", "-C", str(repository), "status", "--porcelain"]) or ""
    changed = sorted(line[2:].strip() for line in status.splitlines() if line.strip())
    return {"commit": commit, "dirty": bool(changed), "changed": changed}


CHANGED = "+changes"
"""What stands behind the commit where files differ from it."""


def require_clean(repository: Path) -> None:
    """Refuse a checkout that no commit describes. Raises ``UserError``."""
    state = git_state(repository)
    if state["commit"] is None:
        raise UserError(
            "report.published is true, but this is no git checkout, so nobody could find the code; work in a "
            "clone, or set it to false."
        )
    if state["dirty"]:
        raise UserError(
            f"report.published is true, but the checkout has {len(state['changed'])} uncommitted changes "
            f"(first: {state['changed'][0]}); commit or remove them."
        )


def code_version(repository: Path = ROOT) -> str:
    """The commit, with ``+changes`` where files differ from it; ``unknown`` outside a git checkout.

    Stands in the manifest of each training and in each line about a job of Slurm's: results of one study may
    have been made at different commits.
    """
    state = git_state(repository)
    if state["commit"] is None:
        return "unknown"
    return f"{state['commit']}{CHANGED if state['dirty'] else ''}"


def answer_of(command: list[str]) -> str | None:
    """What a program prints, or None if it is not there or fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.rstrip()


def gpus_here(*facts: str) -> list[str]:
    """One line per NVIDIA GPU of this machine with these facts (``nvidia-smi --help-query-gpu``)."""
    listed = answer_of(["nvidia-smi", f"--query-gpu={','.join(facts)}", "--format=csv,noheader"])
    return (listed or "").splitlines()
