"""How long it takes to plan the paper's study: 2 models x 3 arms x 3 seeds x 3 stages, 369 tasks x 3 trials.

    envs/controller/.venv/bin/python benchmarks/planning.py

Times ``arpo plan`` over both studies in a folder with no results; prints JSON: seconds by
the clock, seconds of processor, jobs. The two plans are made side by side.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LARGE = """
seeds: [0, 1, 2]
model: {revision: "0123456789abcdef0123456789abcdef01234567"}
evaluation: {splits: [osworld_369], trials: 3}
"""
"""Laid over configs/paper.yaml and its three stages. A revision must be named; planning fetches nothing."""
OTHER_MODEL = """
study: paper_2b
size: 2b
policy: {recipe: null, model: UI-TARS-2B-SFT}
"""
REPEATS = 3


def plan_once(folder: Path) -> tuple[float, float, str]:
    """(seconds by the clock, seconds of processor, what it said)."""
    study = ["--config", "configs/paper.yaml", "configs/shapes/staged.yaml", "large.yaml"]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "arpo_replica", "plan", *study, *study, "other.yaml"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, busy, done.stdout


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("rules", "scripts", "profiles", "configs", "data", "src"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "Snakefile", folder)
        (folder / "large.yaml").write_text(LARGE)
        (folder / "other.yaml").write_text(OTHER_MODEL)
        load = os.getloadavg()[0]
        runs = [plan_once(folder) for _ in range(REPEATS)]
    rows = re.findall(r"^(\w+) +(\d+) .* ([\d.]+) +([\d.]+)$", runs[-1][2], flags=re.MULTILINE)
    result: dict[str, Any] = {
        "conditions": "cores as given by taskset, a shared machine that was busy (see load_average)",
        "load_average": round(load, 1),
        "cores": len(os.sched_getaffinity(0)),
        "seconds": sorted(round(run[0], 2) for run in runs),
        "processor_seconds": sorted(round(run[1], 2) for run in runs),
        "target_seconds": 20,
        "studies": {
            row[0]: {"jobs": int(row[1]), "gpu_hours": float(row[2]), "disk_gb": float(row[3])}
            for row in rows[-3:]
        },
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
