"""Where a study's numbers come from: ``provenance.json``.

Config, code, packages, models, tasks, hardware. No time of writing: the same state of the repository
and of the results gives the same bytes. No absolute path.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

import arpo_replica
from arpo_replica.base.checkout import answer_of, git_state, gpus_here
from arpo_replica.base.environments import ROOT
from arpo_replica.base.files import read_json, write_atomically
from arpo_replica.base.slurm import read_jobs
from arpo_replica.base.tables import table_of
from arpo_replica.config.desktop import desktop_mark
from arpo_replica.config.models import StudyConfig
from arpo_replica.evaluation.records import InputFile, SourceFile, input_file
from arpo_replica.tasks.splits import ResolvedSplit

KNOWN = table_of(__file__)


def write_provenance(
    config: StudyConfig,
    out: Path,
    *,
    manifests: Sequence[Path],
    splits: Sequence[ResolvedSplit],
    image: Path | None = None,
    repository: Path = ROOT,
) -> dict[str, Any]:
    """Write ``out`` and return it. ``manifests``: of the models; ``splits``: all that is trained or measured
    on; ``image``: record of the desktop image, if one was built; ``repository``: the checkout.

    The jobs of a cluster are no file of a rule: each enters its own in the study's folder.
    """
    resolved = config.model_dump(mode="json")
    provenance: dict[str, Any] = {
        "schema_version": 1,
        "study": config.name,
        "size": config.size,
        "desktop": {"kind": config.desktop.kind, "mark": desktop_mark(config.desktop.kind)},
        "seeds": config.seeds,
        "config": resolved,
        "config_sha256": hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest(),
        "git": git_state(repository),
        "python": platform.python_version(),
        "packages": packages(config, repository),
        "programs": programs(),
        "hardware": hardware(),
        "tasks": {split.split: split.hashes() for split in splits},
        "models": [input_file(path).model_dump() for path in sorted(manifests)],
        "cluster_jobs": read_jobs(out.parent),
        "desktop_image": None if image is None else read_json(image),
        "locks": [
            input_file(path).model_dump() for path in sorted((repository / "envs").glob("*/requirements.txt"))
        ],
    }
    write_atomically(out, (json.dumps(provenance, indent=1, sort_keys=True) + "\n").encode())
    return provenance


def source_files(
    table: pd.DataFrame, inputs: Sequence[InputFile], offline_arms: Sequence[str] = ()
) -> list[SourceFile]:
    """Every file that a number rests on: what was read here, and the indexes behind the table of episodes."""
    found: dict[str, SourceFile] = {}
    for entry in inputs:
        found[entry.path] = SourceFile(**entry.model_dump(), rule=rule_of(entry.path, offline_arms))
    indexes = table[["index", "index_sha256"]].drop_duplicates()
    for path, sha256 in zip(indexes["index"], indexes["index_sha256"], strict=True):
        if path and path not in found:
            found[path] = SourceFile(path=path, sha256=sha256, bytes=None, rule=rule_of(path))
    return [found[path] for path in sorted(found)]


def rule_of(path: str, offline_arms: Sequence[str] = ()) -> str:
    """Rule of the workflow that writes a file of a study; ``none`` for a file of the repository."""
    arm = re.search(r"/models/(\w+)/", path)
    if arm is not None and arm[1] in offline_arms:
        return "train_offline"
    return next((rule for pattern, rule in KNOWN["rules"].items() if re.search(pattern, path)), "none")


def packages(config: StudyConfig, repository: Path) -> dict[str, dict[str, str]]:
    """Environment -> package -> version, read from the installed metadata without starting anything."""
    heavy = repository / "envs" / ("gpu" if config.accelerator == "cuda" else "cpu") / ".venv"
    folders = [str(path) for path in sorted(heavy.glob("lib/python*/site-packages"))]
    found = {}
    for name in KNOWN["heavy"] if folders else ():
        for distribution in importlib.metadata.distributions(name=name, path=folders):
            found[name] = distribution.version
    # Made importable by a path alone, so no metadata says which version it is.
    ours = {"arpo-replica": arpo_replica.__version__}
    for name in KNOWN["controller"]:
        try:
            ours[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            ours[name] = "not installed"
    return {"controller": ours, heavy.parent.name: dict(sorted(found.items()))}


def programs() -> dict[str, str]:
    """Versions of the programs that a desktop is made of."""
    return {name: answer_of(command) or "not found" for name, command in KNOWN["programs"].items()}


def hardware() -> dict[str, Any]:
    """Processor, usable cores, memory, accelerators."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    cpu = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return {
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "cpu": cpu[1] if cpu else platform.processor() or "unknown",
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": gpus_here("name", "memory.total"),
    }
