"""Where a job ran, and at which commit: Slurm's job, its nodes, its GPUs.

One JSON line per job in ``results/{study}/cluster_jobs.jsonl``. A killed job leaves its line as well, so the
file says how often work was submitted, and where.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arpo_replica.base.checkout import code_version, gpus_here
from arpo_replica.base.errors import UserError
from arpo_replica.base.files import read_rows
from arpo_replica.base.locks import lock
from arpo_replica.base.slurm import Ask, ask

JOBS_FILE = "cluster_jobs.jsonl"


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
