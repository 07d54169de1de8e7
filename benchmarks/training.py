"""How fast a training starts and steps: ``envs/controller/.venv/bin/python benchmarks/training.py MANIFEST``.

Trains the first stage of a study's ``arpo`` arm in a temporary folder, on real desktops, from the model of
MANIFEST, and prints JSON: seconds to each milestone of the start, seconds by phase of the first and of a
later step, and CPU seconds of all processes together, which other load changes least. Peak memory is in
the lines before it.
``--plain`` starts every process for itself instead of forking it (as on a GPU). Run it under
``taskset -c 0,1`` for the figures of two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import tempfile
import time
from datetime import datetime
from pathlib import Path

from arpo_replica.base.environments import ROOT
from arpo_replica.config import load_config
from arpo_replica.tasks.splits import resolve
from arpo_replica.training.run import train_stage

# What verl, vLLM and Ray write, in the order of the start.
MILESTONES = {
    "ray_started": "Started a local Ray instance",
    "trainer_ready": "actor and ref model engine initialized",
    "vllm_ready": "HTTP server started on port",
    "ready_to_fit": "all initialize finished, ready to fit",
    "first_rollouts_done": "Task compute_log_prob .* is getting",
}
STAMP = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3})")


def milestones(log: Path, began: float) -> dict[str, float]:
    """Seconds from the start to the first line of each milestone."""
    found: dict[str, float] = {}
    for line in log.read_text(errors="replace").splitlines():
        stamp = STAMP.search(line)
        if preloaded := re.match(r"preloaded \d+ modules in ([\d.]+) s", line):
            found["preload_takes"] = float(preloaded[1])
        for name, pattern in MILESTONES.items():
            if stamp and name not in found and re.search(pattern, line):
                moment = datetime.strptime(stamp[1], "%Y-%m-%d %H:%M:%S").timestamp()
                found[name] = round(moment + int(stamp[2]) / 1000 - began, 1)
    return found


def main() -> None:
    """Measure once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "demo.yaml")
    parser.add_argument("--arm", default="arpo")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--plain", action="store_true")
    options = parser.parse_args()
    os.chdir(ROOT)
    config = load_config(options.config)
    stage = config.training.stages[0]
    stage.steps = options.steps
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "stage"
        began = time.time()
        train_stage(
            config,
            arm=options.arm,
            seed=config.seeds[0],
            stage=stage.name,
            parent=options.manifest,
            split=resolve(config, stage.split),
            out=out,
            preload=not options.plain,
        )
        seconds = time.time() - began
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = {
            "plain": options.plain,
            "cores": len(os.sched_getaffinity(0)),
            "load_average": os.getloadavg(),
            "seconds": round(seconds, 1),
            "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
            "start": milestones(out / "checkpoints" / "logs" / "train_001.log", began),
            "first_step": rows[0]["seconds"],
            "last_step": rows[-1]["seconds"],
            "rollouts_per_step": rows[-1]["rollouts"],
            "turns": rows[-1]["turns"],
            "tokens_per_rollout": rows[-1]["prompt_tokens"] + rows[-1]["response_tokens"],
        }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
