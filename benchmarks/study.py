"""How long a study takes and how much memory: ``envs/controller/.venv/bin/python benchmarks/study.py``.

Runs the study of a config in a fresh copy of the workflow, pinned to a number of cores, and prints JSON:
seconds in all and per job (Snakemake's own benchmark files), peak memory of all its processes (PSS, so that
shared pages count once), and the seconds of a second run that finds nothing to do.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]


def memory_of(pid: int) -> int:
    """PSS in bytes of a process and all that descend from it."""
    total = 0
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in processes:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied, AttributeError):
            continue
    return total


def measure(command: list[str], folder: Path, cores: list[int]) -> tuple[float, float]:
    """(seconds, peak GB) of a command that must succeed."""
    peak = 0
    started = time.monotonic()
    os.sched_setaffinity(0, cores)  # inherited by the child and all that it starts
    child = subprocess.Popen(command, cwd=folder, stdout=sys.stderr)
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(2):
            peak = max(peak, memory_of(child.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    status = child.wait()
    ended.set()
    watcher.join()
    if status:
        sys.exit(f"the study failed with status {status}; its files are in {folder}")
    return time.monotonic() - started, peak / 1e9


def main() -> None:
    """Run, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--cores", type=int, default=2)
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[: options.cores]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in ("rules", "scripts", "profiles", "configs", "data", "src"):
            shutil.copytree(ROOT / name, folder / name)
        shutil.copy(ROOT / "Snakefile", folder)
        snakemake = str(Path(sys.executable).with_name("snakemake"))
        command = [snakemake, "--cores", str(options.cores), "--configfile", options.config]
        seconds, memory = measure(command, folder, cores)
        nothing, _ = measure(command, folder, cores)
        jobs = {}
        for path in sorted(folder.glob("results/*/benchmarks/**/*.tsv")):
            head, row = path.read_text().splitlines()[:2]
            values = dict(zip(head.split("\t"), row.split("\t"), strict=True))
            jobs[str(path.relative_to(folder)).split("benchmarks/")[1][:-4]] = round(float(values["s"]), 1)
    result = {
        "config": options.config,
        "cores": len(cores),
        "minutes": round(seconds / 60, 2),
        "peak_memory_gb": round(memory, 1),
        "seconds_with_nothing_to_do": round(nothing, 1),
        "seconds_per_job": jobs,
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
