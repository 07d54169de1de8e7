"""Many trainings of ``gpu_study.py`` at once on one machine, and what they left by a deadline.

    python benchmarks/gpu_studies.py --runs benchmarks/replay_pilots.yaml --bases bases --folder work \\
        --out results --gpus 2 --limit 545

``--runs`` is a YAML file: ``config``, ``set`` (keys of all runs), ``arguments`` (of ``gpu_study.py``) and
``regimes``, each with ``base`` (folder below ``--bases`` with a ``manifest.json``), ``set``, ``arms`` and
``seeds``. The runs share the cards in turn. One that fails before its first step is begun once more, with
``retry_set`` over its keys if the file has it. Each regime's folder holds what ``results/{study}`` holds.
``--out`` gets, for every run that was started, the JSON of ``gpu_study.py``, ``metrics.jsonl`` as far as it
came, records of episodes and the end of its log: lost runs are seen.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
LOG_BYTES = 20_000


@dataclass
class Run:
    """One training: where it lies, how it is started, how it went."""

    name: str
    folder: Path
    arm: str
    seed: int
    command: list[str]
    retry: list[str]
    card: int
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0

    def start(self, began: float, limit: float) -> None:
        """Begin, or begin again, with what is left of the time."""
        more = self.retry if self.starts else []
        if self.starts:  # it has no step yet; what is there belongs to other keys
            shutil.rmtree(self.folder / "models" / self.arm / f"seed_{self.seed}", ignore_errors=True)
        self.starts += 1
        left = str(round(began + limit - time.time(), 1))
        place = self.folder / f"{self.name}.{self.starts}.log"
        with place.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "gpu_study.py"), *self.command, *more, "--limit", left],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": str(self.card), "OMP_NUM_THREADS": "2"},
                cwd=HERE.parent,
            )

    def metrics(self) -> list[Path]:
        """Steps of its stages, as far as they came."""
        return sorted((self.folder / "models" / self.arm / f"seed_{self.seed}").glob("*/metrics.jsonl"))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--bases", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--limit", type=float, default=540.0, help="seconds after which all runs are ended")
    return parser.parse_args()


def keys(*sets: dict[str, Any] | None) -> list[str]:
    """``--set`` arguments."""
    pairs = {key: value for each in sets for key, value in (each or {}).items()}
    return [word for key, value in pairs.items() for word in ("--set", f"{key}={json.dumps(value)}")]


def plan(options: argparse.Namespace) -> list[Run]:
    """The runs, in an order that begins every regime and arm early."""
    asked = yaml.safe_load(options.runs.read_text())
    runs: list[Run] = []
    for regime, row in asked["regimes"].items():
        folder = options.folder.absolute() / regime
        folder.mkdir(parents=True, exist_ok=True)
        for seed in row["seeds"]:
            for arm in row["arms"]:
                name = f"{regime}_{arm}_{seed}"
                base = options.bases.absolute() / str(row["base"]) / "manifest.json"
                command = ["--config", asked["config"], "--arm", arm, "--seed", str(seed)]
                command += ["--base", str(base), "--folder", str(folder)]
                command += ["--out", str(options.folder.absolute() / f"{name}.json")]
                command += [*asked.get("arguments", []), *keys(asked["set"], row.get("set"))]
                retry = keys(asked.get("retry_set"))
                runs.append(Run(name, folder, arm, seed, command, retry, len(runs) % options.gpus))
    return runs


def wait(runs: list[Run], began: float, limit: float) -> None:
    """Until all have ended; the limit is theirs, a little later they are killed."""
    while time.time() - began < limit + 15:
        states = [run.process.poll() for run in runs if run.process]
        for run in runs:
            failed = run.process is not None and run.process.poll() not in (None, 0)
            if failed and run.starts == 1 and not run.metrics() and time.time() - began < limit / 2:
                print(f"{time.time() - began:.0f} s: {run.name} failed and is begun again", flush=True)
                run.start(began, limit)
                states.append(None)
        if None not in states:
            return
        time.sleep(2)
    for run in runs:
        if run.process and run.process.poll() is None:
            run.process.kill()


def gather(runs: list[Run], options: argparse.Namespace) -> None:
    """One archive of all that is small, and a line per run."""
    options.out.mkdir(parents=True, exist_ok=True)
    with tarfile.open(options.out / "studies.tar.xz", "w:xz", preset=1) as archive:
        for run in runs:
            state = {"name": run.name, "starts": run.starts}
            state["status"] = None if run.process is None else run.process.poll()
            files = [options.folder.absolute() / f"{run.name}.json", *run.metrics()]
            files += run.folder.glob(f"episodes/{run.arm}/seed_{run.seed}/**/episodes.jsonl")
            files += run.folder.glob(f"models/{run.arm}/seed_{run.seed}/*/manifest.json")
            files += run.folder.glob(f"models/{run.arm}/seed_{run.seed}/*/stage_report.json")
            for log in run.folder.glob(f"{run.name}.*.log"):
                log.write_bytes(log.read_bytes()[-LOG_BYTES:])
                files.append(log)
            for file in files:
                if file.is_file():
                    archive.add(file, arcname=str(file.relative_to(options.folder.absolute())))
            rows = [json.loads(line) for path in run.metrics() for line in path.read_text().splitlines()]
            last = [row["success"] for row in rows[-16:] if row.get("success") is not None]
            swaps = sum(row.get("swapped_groups") or 0 for row in rows)
            mean = f"{sum(last) / len(last):.3f}" if last else "not run"
            print(f"{json.dumps(state)} steps {len(rows)} success of the last 16 {mean} swaps {swaps}")


def main() -> None:
    """Start, wait, gather."""
    options = parse()
    began = time.time()
    runs = plan(options)
    for run in runs:
        run.start(began, options.limit)
        time.sleep(0.7)  # two that start in the same moment can want the same port
    try:
        wait(runs, began, options.limit)
    finally:
        gather(runs, options)


if __name__ == "__main__":
    main()
