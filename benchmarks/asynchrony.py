"""What rollouts beside updates gain when one desktop is slow, as a ratio of the time of a step.

    envs/controller/.venv/bin/python benchmarks/asynchrony.py MANIFEST --out RESULT.json

Trains the demo's first stage from the model of MANIFEST (``results/demo/models/base/.../manifest.json``) on
scripted desktops, one of which takes ``--slow`` seconds for an action: synchronously and with
``training.asynchrony.mode: partial_rollout``, by turns, ``--repeats`` times. The ratio of two modes in one
run depends less on the machine than seconds do.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "src")]

from arpo_replica.base.environments import ROOT  # noqa: E402  # noqa: E402
from arpo_replica.config import load_config  # noqa: E402
from arpo_replica.config.models import StudyConfig  # noqa: E402
from arpo_replica.tasks.splits import resolve  # noqa: E402
from arpo_replica.training.run import train_stage  # noqa: E402

SKIPPED = 2
"""Steps at the start that are left out: vLLM's first requests, and the window that fills."""


def measure(config: StudyConfig, manifest: Path, mode: str, staleness: int) -> list[dict[str, Any]]:
    """The rows of ``metrics.jsonl`` of one training."""
    config = config.model_copy(deep=True)
    config.training.asynchrony.mode = mode  # type: ignore[assignment]
    config.training.asynchrony.max_staleness = staleness
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "stage"
        train_stage(
            config,
            arm="grpo",
            seed=config.seeds[0],
            stage=config.training.stages[0].name,
            parent=manifest,
            split=resolve(config, config.training.stages[0].split),
            out=out,
            provider="slow_desktop:SlowProvider",
            parser="scripted_desktop:make_parser",
        )
        return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def main() -> None:
    """Measure both modes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--slow", type=float, default=2.0, help="seconds of an action on the slow desktop")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--staleness", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    manifest, out = options.manifest.absolute(), options.out and options.out.absolute()
    os.chdir(ROOT)
    os.environ |= {"SLOW_S": str(options.slow), "SLOW_DESKTOPS": "1"}
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(HERE), str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    config = load_config(ROOT / "configs" / "demo.yaml")
    config.training.stages[0].steps = options.steps
    config.training.save_every = options.steps
    found: dict[str, list[list[dict[str, Any]]]] = {"sync": [], "partial_rollout": []}
    for _ in range(options.repeats):
        for mode, runs in found.items():
            runs.append(measure(config, manifest, mode, options.staleness)[SKIPPED:])
    modes = {}
    for mode, runs in found.items():
        rows = [row for run in runs for row in run]
        modes[mode] = {
            # Means: a step that finds its rollouts ready is short, the next one waits again.
            "step_s": round(fmean(row["seconds"]["total"] for row in rows), 2),
            "waiting_for_rollouts_s": round(fmean(row["seconds"]["rollout"] for row in rows), 2),
            "update_s": round(fmean(row["seconds"]["update"] for row in rows), 2),
            "each_step_s": [[round(row["seconds"]["total"], 1) for row in run] for run in runs],
            "staleness_mean": round(fmean(row["staleness_mean"] for row in rows), 3),
            "staleness_max": max(row["staleness_max"] for row in rows),
            "rollouts_per_step": rows[-1]["rollouts"],
        }
    result = {
        "command": " ".join(["benchmarks/asynchrony.py", "MANIFEST", *sys.argv[2:]]).partition(" --out")[0],
        "conditions": {
            "cores": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
            "desktops": config.desktop.count,
            "slow_desktops": 1,
            "slow_action_s": options.slow,
            "turns": config.policy.max_steps,
            "steps": options.steps,
            "max_staleness": options.staleness,
            "load_average": [round(load, 1) for load in os.getloadavg()],
        },
        "modes": modes,
        "ratio": round(modes["partial_rollout"]["step_s"] / modes["sync"]["step_s"], 3),
    }
    text = json.dumps(result, indent=1) + "\n"
    print(text, end="")
    if out:
        out.write_text(text)


if __name__ == "__main__":
    main()
