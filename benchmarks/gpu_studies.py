"""Many trainings of ``gpu_study.py`` at once on one machine, and what they left by a deadline.

    python benchmarks/gpu_studies.py --runs benchmarks/replay_pilots.yaml --bases bases --folder work \\
        --out results --gpus 2 --limit 545 --set desktop.process.image=/var/tmp/desktop

``--runs`` is a YAML file: ``config``, ``set`` (keys of all runs), ``arguments`` (of ``gpu_study.py``) and
``regimes``, each with ``base`` (folder below ``--bases`` with a ``manifest.json``), ``arms``, and what it has
over the config: ``overlay`` (a file), ``set``, ``seeds``. A seed's arms share a card, seeds take the cards
in turn. One that fails is begun again, from its last checkpoint if it has one, at most ``STARTS`` times in
all, with ``retry_set`` over its keys if the file has it. Each regime's folder holds what
``results/{study}`` holds.
``--out`` gets, for every run that was started, its steps as far as they came (``studies.json``) and the JSON
of ``gpu_study.py``, records of episodes and the end of its log (``studies.tar.xz``): lost runs are seen.
``--gather`` starts nothing and writes that again from ``--folder``.
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
STARTS, WORTH_A_START_S = 3, 150.0
LAST = 16
"""Steps at the end over which success is averaged, and collapse judged (docs/replay_study.md)."""
STEPS = ("success", "reward_before", "unparsable", "swapped_groups", "all_fail_groups", "buffer_size")


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
        for steps in self.metrics() if more else []:  # what is unfinished belongs to other keys
            if not (steps.parent / "manifest.json").is_file():
                shutil.rmtree(steps.parent)
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
    parser.add_argument("--only", nargs="+", metavar="REGIME", help="of the file's regimes")
    parser.add_argument("--seeds", nargs="+", type=int, help="of the regimes' seeds")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of all runs, on top")
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--limit", type=float, default=540.0, help="seconds after which all runs are ended")
    parser.add_argument("--gather", action="store_true", help="start nothing, write what --folder holds")
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
        if options.only and regime not in options.only:
            continue
        own = {} if "overlay" not in row else yaml.safe_load((HERE.parent / row["overlay"]).read_text())
        own |= {key: value for key, value in row.items() if key == "seeds"}
        known = own.pop("seeds", None) or yaml.safe_load((HERE.parent / asked["config"]).read_text())["seeds"]
        seeds = [seed for seed in known if seed in (options.seeds or known)]
        folder = options.folder.absolute() / regime
        folder.mkdir(parents=True, exist_ok=True)
        for place, seed in enumerate(seeds):
            for arm in row["arms"]:
                name = f"{regime}_{arm}_{seed}"
                base = options.bases.absolute() / str(row["base"]) / "manifest.json"
                command = ["--config", asked["config"], "--arm", arm, "--seed", str(seed)]
                command += ["--base", str(base), "--folder", str(folder)]
                command += ["--out", str(options.folder.absolute() / f"{name}.json")]
                command += [*asked.get("arguments", []), *keys(asked["set"], own, row.get("set"))]
                command += [word for pair in options.set for word in ("--set", pair)]
                retry = keys(asked.get("retry_set"))
                runs.append(Run(name, folder, arm, seed, command, retry, place % options.gpus))
    return runs


def wait(runs: list[Run], began: float, limit: float) -> None:
    """Until all have ended; the limit is theirs, a little later they are killed."""
    while time.time() - began < limit + 15:
        states = [run.process.poll() for run in runs if run.process]  # none: nothing was started
        for run in runs:
            failed = run.process is not None and run.process.poll() not in (None, 0)
            passed = time.time() - began
            if failed and run.starts < STARTS and passed + WORTH_A_START_S < limit:
                print(f"{passed:.0f} s: {run.name} failed and is begun again", flush=True)
                run.start(began, limit)
                states.append(None)
        if None not in states:
            return
        time.sleep(2)
    for run in runs:
        if run.process and run.process.poll() is None:
            run.process.kill()


def record(run: Run, folder: Path) -> dict[str, Any]:
    """What a run did, step by step, as far as it came."""
    rows = [json.loads(line) for path in run.metrics() for line in path.read_text().splitlines()]
    told = folder / f"{run.name}.json"
    result = json.loads(told.read_bytes()) if told.is_file() else {}
    success = [row["success"] for row in rows if row["success"] is not None]
    swapped, groups = sum(row["swapped_groups"] for row in rows), sum(row["groups"] for row in rows)
    asked = sum(stage["steps"] for stage in result.get("training", {}).get("stages", []))
    return {
        "name": run.name,
        "arm": run.arm,
        "seed": run.seed,
        "starts": run.starts,
        "steps": [len(rows), asked],
        "seconds": result.get("seconds"),
        "error": (result.get("error") or "").strip().split("\n")[-1][:300] or None,
        "episodes": result.get("episodes"),
        "success_last": mean(success[-LAST:]),
        "success_all": mean(success),
        "collapsed": len(rows) == asked and not any(success[-LAST:]) if rows else None,
        "swapped_share": round(swapped / groups, 4) if groups else None,
        **{key: [row[key] for row in rows] for key in STEPS},
    }


def mean(values: list[float]) -> float | None:
    """None where nothing was measured."""
    return round(sum(values) / len(values), 4) if values else None


def gather(runs: list[Run], options: argparse.Namespace) -> None:
    """One archive of all that is small, one JSON of every step, and a line per run."""
    options.out.mkdir(parents=True, exist_ok=True)
    folder = options.folder.absolute()
    records = [record(run, folder) for run in runs]
    lines = ",\n ".join(json.dumps(row) for row in records)
    command = json.dumps(" ".join(sys.argv))
    text = f'{{"command": {command}, "asked": {json.dumps(yaml.safe_load(options.runs.read_text()))},'
    (options.out / "studies.json").write_text(f'{text}\n"runs": [{lines}]}}\n')
    with tarfile.open(options.out / "studies.tar.xz", "w:xz", preset=1) as archive:
        for run in runs:
            files = [folder / f"{run.name}.json", *run.metrics()]
            files += run.folder.glob(f"episodes/{run.arm}/seed_{run.seed}/**/episodes.jsonl")
            files += run.folder.glob(f"models/{run.arm}/seed_{run.seed}/*/manifest.json")
            files += run.folder.glob(f"models/{run.arm}/seed_{run.seed}/*/stage_report.json")
            for log in run.folder.glob(f"{run.name}.*.log"):
                log.write_bytes(log.read_bytes()[-LOG_BYTES:])
                files.append(log)
            for file in files:
                if file.is_file():
                    archive.add(file, arcname=str(file.relative_to(folder)))
    for row in records:
        print({key: value for key, value in row.items() if key not in STEPS})


def main() -> None:
    """Start, wait, gather."""
    options = parse()
    began = time.time()
    runs = plan(options)
    for run in runs if not options.gather else []:
        run.start(began, options.limit)
        time.sleep(0.7)  # two that start in the same moment can want the same port
    try:
        wait(runs, began, options.limit)
    finally:
        gather(runs, options)


if __name__ == "__main__":
    main()
