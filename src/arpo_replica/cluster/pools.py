"""Pools of desktops as jobs of Slurm (``desktop.remote.slurm``).

A job that needs desktops prepares the study's folder of pools; whoever then asks for a desktop submits the
pools that are missing (``providers.pool_folder.keep_up``). They end when nobody uses them, or the study does.
"""

import contextlib
import getpass
import hashlib
import json
import math
import shlex
import sys
from pathlib import Path
from typing import Any

import yaml

from arpo_replica.base.errors import UserError
from arpo_replica.base.files import write_atomically
from arpo_replica.base.slurm import ask
from arpo_replica.cluster.profile import Profile, load_site, make_profile
from arpo_replica.config.load import read_yaml
from arpo_replica.config.models import StudyConfig
from arpo_replica.providers.pool_folder import SUBMIT, make_secret

BASE_MB = 1000
"""Memory of a pool without desktops."""
LENT = "config.yaml"
"""In the folder of pools: the study's config as its pools read it."""


def job_name(folder: Path) -> str:
    """What Slurm calls the pools of a folder; other checkouts have other ones."""
    return f"arpo-pools-{hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:12]}"


def size(config: StudyConfig) -> tuple[int, int]:
    """(processors, memory in MB) of one pool."""
    desktop, jobs = config.desktop, config.desktop.pool_jobs
    assert jobs is not None
    memory = BASE_MB + jobs.per_node * desktop.memory_mb // 2
    return max(1, math.ceil(jobs.per_node * jobs.cores_per_desktop)), memory


def sbatch(config: StudyConfig, cluster: Profile) -> list[str]:
    """``sbatch`` for pools of the study, without their number and the script."""
    jobs, site = config.desktop.pool_jobs, cluster.site
    assert jobs is not None and config.desktop.remote.folder is not None
    (cores, memory), limit = size(config), cluster.minutes(gpus=False)
    options = {
        "job-name": job_name(config.desktop.remote.folder),
        "partition": cluster.cpu.name,
        "account": site.account,
        "qos": site.qos,
        "nodes": 1,
        "cpus-per-task": cores,
        "mem": memory,
        "time": jobs.minutes if limit is None else min(jobs.minutes, limit),
        "signal": f"B:TERM@{cluster.warn_seconds}" if cluster.warn_seconds else None,
        "chdir": Path.cwd(),
        "output": config.desktop.remote.folder.absolute() / "slurm_%A_%a.log",
    }
    given = [f"--{name}={value}" for name, value in options.items() if value is not None]
    return ["sbatch", "--parsable", "--no-requeue", *given]


def misfit(config: StudyConfig, cluster: Profile) -> str | None:
    """Why no node can run a pool of the study, in one sentence; None if one can, or it has none."""
    if config.desktop.pool_jobs is None:
        return None
    (cores, memory), node = size(config), cluster.cpu
    for name, wanted, most in (("processors", cores, node.cpus), ("MB of memory", memory, node.memory_mb)):
        if most is not None and wanted > most:
            return (
                f"A pool of desktop.remote.slurm asks for {wanted} {name}, but a node of the partition "
                f"'{node.name}' has {most}; lower per_node or name another partition in slurm/site.yaml."
            )
    return None


def lent_before(config: StudyConfig) -> dict[str, Any]:
    """The config by which the folder's pools lend; empty if none do. Raises ``UserError`` if they are another
    study's."""
    folder = config.desktop.remote.folder
    if config.desktop.pool_jobs is None or folder is None or not (folder / LENT).is_file():
        return {}
    before: dict[str, Any] = read_yaml(folder / LENT, str(folder / LENT))
    if before["study"] != config.name:
        raise UserError(
            f"The folder {folder} has the pools of the study '{before['study']}'; give each study a folder "
            "of its own in desktop.remote.pools."
        )
    return before


def prepare(config: StudyConfig) -> None:
    """Lay down, in the folder of pools, how they are submitted and what they lend. Raises ``UserError``.

    Pools that lend by another version of the config are ended: they would be left out, and in the way.
    """
    jobs, folder = config.desktop.pool_jobs, config.desktop.remote.folder
    if jobs is None or folder is None:
        return
    before, there = lent_before(config), folder / LENT
    make_secret(folder)
    lent = config.model_dump(mode="json")
    desktop = {**lent["desktop"], "provider": config.desktop.remote.lends, "count": jobs.per_node}
    lent |= {"study": config.name, "variant": None, "desktop": {**desktop, "remote": {}}}
    cluster = make_profile(load_site())
    serve = [
        *(sys.executable, "-m", "arpo_replica", "serve-desktops", "--config", str(there.absolute())),
        *("--announce", str(folder.absolute()), "--idle-minutes", f"{jobs.idle_minutes:g}"),
        *("--drain-seconds", str(max(0, cluster.warn_seconds - 30))),
    ]
    script = folder / "pool.sh"
    write_atomically(script, f"#!/bin/sh\n{cluster.precommand()}\nexec {shlex.join(serve)}\n".encode())
    plan = {
        "name": job_name(folder),
        "nodes": jobs.nodes,
        "per_node": jobs.per_node,
        "sbatch": sbatch(config, cluster),
        "script": str(script.absolute()),
    }
    if before and before != lent:
        end(config)
    write_atomically(there, yaml.safe_dump(lent, sort_keys=False).encode())
    write_atomically(folder / SUBMIT, (json.dumps(plan, indent=1) + "\n").encode())


def end(config: StudyConfig) -> None:
    """End the study's pools, if Slurm has any. Those that cannot be told end when nobody uses them."""
    folder = config.desktop.remote.folder
    if config.desktop.pool_jobs is not None and folder is not None:
        with contextlib.suppress(UserError):
            ask("scancel", f"--user={getpass.getuser()}", f"--name={job_name(folder)}")
