"""What Slurm says about itself (its partitions, whether it keeps accounts), and where a job of its ran."""

import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arpo_replica.base.checkout import code_version, gpus_here
from arpo_replica.base.errors import UserError
from arpo_replica.base.files import read_rows
from arpo_replica.base.locks import lock

TIMEOUT_S = 30
JOBS_FILE = "cluster_jobs.jsonl"
"""One JSON line per job. A killed job leaves its line as well, so the file says how often work was submitted,
and where."""
Ask = Callable[..., str]
"""Function of a command line that returns what it prints or raises ``UserError``."""


@dataclass(frozen=True, slots=True)
class Partition:
    name: str
    default: bool
    gpus: dict[str, int]
    """Type of GPU (empty if untyped) -> most on one node."""
    minutes: int | None
    """Longest run time; None: unlimited."""
    nodes: int = 1
    cpus: int | None = None
    """Processors of its largest node; None: unknown."""
    memory_mb: int | None = None
    """Main memory of its largest node, MB; None: unknown."""
    up: bool = True
    """False while it takes or starts no jobs."""


def ask(*command: str) -> str:
    """Output of one of Slurm's commands. Raises ``UserError`` if it is missing or Slurm does not answer."""
    if shutil.which(command[0]) is None:
        raise UserError(
            f"Slurm's command '{command[0]}' was not found; run this on the cluster's login node, or leave "
            "--profile slurm out to run on this machine."
        )
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(
            f"Slurm did not answer '{' '.join(command)}' within {TIMEOUT_S} s; see whether 'scontrol ping' "
            "finds its controller, and try again."
        ) from None
    if done.returncode:
        words = " ".join(done.stderr.split()) or f"status {done.returncode}"
        raise UserError(
            f"Slurm does not answer ({' '.join(command)}: {words}); see whether 'scontrol ping' finds its "
            "controller, and try again."
        )
    return done.stdout


def partitions(ask: Ask = ask) -> list[Partition]:
    """All partitions, in Slurm's order. ``ask``: how Slurm is asked (the doctor has its own way)."""
    found: dict[str, Partition] = {}
    for line in ask("sinfo", "--noheader", "--format=%P|%l|%D|%G|%c|%m|%a").splitlines():
        name, limit, count, gres, cpus, memory, state = [part.strip() for part in f"{line}|||".split("|")[:7]]
        default, name = name.endswith("*"), name.removesuffix("*")
        before = found.get(name)
        gpus = {} if before is None else dict(before.gpus)
        for kind, number in read_gres(gres).items():
            gpus[kind] = max(number, gpus.get(kind, 0))
        nodes = (read_number(count) or 0) + (0 if before is None else before.nodes)
        most_cpus = larger(cpus, None if before is None else before.cpus)
        most_mb = larger(memory, None if before is None else before.memory_mb)
        up = state in {"", "up"}
        found[name] = Partition(name, default, gpus, read_minutes(limit), nodes, most_cpus, most_mb, up)
    return list(found.values())


def larger(text: str, known: int | None) -> int | None:
    """The larger of a number as ``sinfo`` prints it and a known one."""
    return max((value for value in (read_number(text), known) if value is not None), default=None)


def read_number(text: str) -> int | None:
    """``64``, ``64+`` (at least 64), ``1.5K`` (1,536); None for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG]?)\+?", text)
    return None if found is None else int(float(found[1]) * 1024 ** " KMG".index(found[2] or " "))


def read_gres(text: str) -> dict[str, int]:
    """``gpu:h200:8(S:0-1),gpu:2`` -> ``{"h200": 8, "": 2}``; so does ``gpu:h200:no_consume:8,gpu:2``."""
    gpus: dict[str, int] = {}
    for entry in re.sub(r"\([^)]*\)", "", text).split(","):
        parts = [part for part in entry.split(":") if part != "no_consume"]
        if parts[0] == "gpu" and parts[-1].isdigit():
            kind = parts[1] if len(parts) == 3 else ""
            gpus[kind] = gpus.get(kind, 0) + int(parts[-1])
    return gpus


def read_minutes(text: str) -> int | None:
    """A time as Slurm writes and takes it, in minutes: ``days-hours:minutes:seconds`` and its shorter forms
    (``90`` alone is minutes), also ``48h`` and ``2d``; ``infinite`` is None. Raises ValueError."""
    text = text.strip().lower()
    if text in {"", "infinite", "unlimited", "n/a", "none"}:
        return None
    if found := re.fullmatch(r"(\d+) ?([mhd])", text):
        return int(found[1]) * {"m": 1, "h": 60, "d": 1440}[found[2]]
    if re.fullmatch(r"(\d+-\d+(:\d+){0,2}|\d+(:\d+){0,2})", text) is None:
        raise ValueError("give minutes or a time as Slurm takes it: 90, 24:00:00, 2-00:00:00, 48h")
    days, _, clock = text.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if len(parts) < 3 and not days:
        parts = [0, *parts]  # Slurm's "90" and "90:00" begin with minutes
    hours, minutes, _ = [*parts, 0, 0][:3]
    return int(days or 0) * 1440 + hours * 60 + minutes


def settings(ask: Ask = ask) -> dict[str, str]:
    """Slurm's configuration (``scontrol show config``)."""
    pairs = (line.partition("=") for line in ask("scontrol", "show", "config").splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


def has_accounting(config: dict[str, str]) -> bool:
    """True if ``sacct`` learns of the ends of jobs. Without slurmdbd it never does."""
    return config.get("AccountingStorageType", "").endswith("slurmdbd") and shutil.which("sacct") is not None


# --- where a job ran -------------------------------------------------------------------------------------


def describe_allocation(environment: Mapping[str, str] = os.environ) -> dict[str, Any] | None:
    """The Slurm job that this process belongs to, or None outside of one."""
    job = environment.get("SLURM_JOB_ID")
    if job is None:
        return None
    task = environment.get("SLURM_ARRAY_TASK_ID")
    parent = environment.get("SLURM_ARRAY_JOB_ID", job)
    return {
        "job": f"{parent}_{task}" if task is not None else job,
        "nodes": environment.get("SLURM_JOB_NODELIST", environment.get("SLURMD_NODENAME", "")),
        "host": socket.gethostname(),
        "partition": environment.get("SLURM_JOB_PARTITION", ""),
        "account": environment.get("SLURM_JOB_ACCOUNT", ""),
        "gpus": environment.get("CUDA_VISIBLE_DEVICES", ""),
        "cpus": environment.get("SLURM_CPUS_PER_TASK", environment.get("SLURM_CPUS_ON_NODE", "")),
        "restarts": int(environment.get("SLURM_RESTART_COUNT", "0")),
    }


def nodes_of(job: str, ask: Ask = ask) -> str | None:
    """All nodes of a job, e.g. ``gpu[1-2]``, where its step knows one; None if Slurm does not say."""
    try:
        return next(iter(ask("squeue", "--noheader", "--jobs", job, "--format", "%N").split()), None)
    except UserError:
        return None


def record_allocation(results: Path, rule: str, output: str) -> None:
    """Append a line for this job, if it is one of Slurm's. ``output``: its first output file."""
    found = describe_allocation()
    if found is None:
        return
    found["gpu_names"] = gpus_here("name", "memory.total", "driver_version")
    found["nodes"] = nodes_of(os.environ["SLURM_JOB_ID"]) or found["nodes"]
    results.mkdir(parents=True, exist_ok=True)
    line = {"rule": rule, "output": output, "commit": code_version(), "began": round(time.time(), 3), **found}
    with (results / JOBS_FILE).open("a") as file:
        lock(file, wait=True)  # several jobs write to it
        file.write(json.dumps(line, sort_keys=True) + "\n")


def read_jobs(results: Path) -> list[dict[str, Any]]:
    """All recorded jobs of a study, oldest first."""
    return read_rows(results / JOBS_FILE)
