"""Invented trainings for the studies of ``synthetic``: metrics, gates and manifests; nothing was measured."""

from __future__ import annotations

import hashlib
import json
import math
import random
from pathlib import Path

from arpo_replica.config.models import StudyConfig
from arpo_replica.manifest import Manifest, write_manifest
from arpo_replica.training.gates import Gate, StageReport


def write_metrics(results: Path, config: StudyConfig, arm: str, stage: str, updates: int) -> Path:
    """``metrics.jsonl`` of one training: rewards that rise, replay that fires in arm ``arpo``."""
    dice = random.Random(f"metrics {arm}")
    names = [
        f"{domain}/{task}"
        for domain, ids in json.loads(config.tasks.splits["synthetic_in"].read_text())["tasks"].items()
        for task in ids
    ]
    lines, stored = [], 0
    for step in range(1, updates + 1):
        mean = 0.45 + (0.22 if arm == "arpo" else 0.14) * (1 - math.exp(-step / 60)) + dice.gauss(0, 0.03)
        groups = [dice.choice(names) for _ in range(config.training.tasks_per_step)]
        failed = [g for g, _ in enumerate(groups) if dice.random() < 0.2]
        swapped = [g for g in failed if arm == "arpo" and dice.random() < min(0.6, step / 40)]
        stored += dice.randint(0, 3) if arm == "arpo" else 0
        row = {
            "step": step,
            "reward_before": mean - 0.02,
            "reward_after": mean - 0.02 + len(swapped) / 8 / len(groups),
            "success": mean,
            "groups": len(groups),
            "rollouts": 8 * len(groups),
            "all_fail_groups": len(failed),
            "swapped_groups": len(swapped),
            "buffer_size": stored,
            "entropy": 0.9 - 0.002 * step,
            "clip_fraction": 0.01,
            "unparsable": 0.02,
            "env_errors": int(dice.random() < 0.1),
            "lost_rollouts": 0,
            "probability_difference_mean": 0.003,
            "seconds": {
                "rollout": 800 + 60 * dice.random(),
                "update": 210.0,
                "weight_sync": 9.0,
                "total": 1050.0,
            },
            "tasks": [
                {"task": name, "scores": [0.0 if g in failed else 1.0] * 8} for g, name in enumerate(groups)
            ],
            "swaps": [
                {
                    "group": g,
                    "rollout": 0,
                    "name": f"synthetic-{step}-{g}",
                    "step": max(0, step - dice.randint(1, 30)),
                }
                for g in swapped
            ],
        }
        lines.append(json.dumps(row) + "\n")
    return write_text(results / f"models/{arm}/seed_0/stage_{stage}/metrics.jsonl", "".join(lines))


def write_gates(folder: Path, arm: str, seed: int, stage: str, steps: int) -> Path:
    """The report of a stage that passed, in the folder of the stage; ``metrics.jsonl`` lies there."""
    last = json.loads((folder / "metrics.jsonl").read_text().rstrip().split("\n")[-1])
    gates = [
        Gate(
            name="steps", key="training.stages", state="passed", says=f"{steps} of {steps} steps are logged"
        ),
        Gate(
            name="buffer",
            key="training.gates.buffer_min",
            state="passed" if arm == "arpo" else "off",
            says=f"the replay buffer holds {last['buffer_size']} successes"
            if arm == "arpo"
            else "replay is off",
        ),
    ]
    report = StageReport(arm=arm, seed=seed, stage=stage, passed=True, reason=None, gates=gates)
    return write_text(folder / "stage_report.json", report.model_dump_json(indent=1) + "\n")


def write_invented_manifest(results: Path, arm: str, stage: str, updates: int) -> Path:
    """``manifest.json`` of one stage, without weights behind it."""
    path = results / f"models/{arm}/seed_0/stage_{stage}/manifest.json"
    manifest = Manifest(
        arm=arm,
        seed=0,
        stage=stage,
        step=0 if arm == "base" else updates,
        size="nano",
        model="model",
        weights={"model.safetensors": digest(f"weights {arm}")},
        sha256=digest(f"{arm} {stage}"),
        parent=None if arm == "base" else digest("base base"),
        recipe={"synthetic": True},
        versions={},
    )
    write_manifest(manifest, path)
    return path


def digest(text: str) -> str:
    """A sha256 that belongs to no file."""
    return hashlib.sha256(f"synthetic {text}".encode()).hexdigest()


def write_text(path: Path, text: str) -> Path:
    """Without the flushes of a real result: thousands of them would take minutes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
