"""The online arms of a study, trained through all stages without Snakemake, for a machine that has none.

    python benchmarks/gpu_study.py --config configs/nano.yaml --arm arpo --seed 0 \\
        --base model/manifest.json --folder work --out arpo_0.json --set accelerator=cuda

Calls what rule ``train_stage`` calls, stage by stage, with the study's own config, tasks and desktops; gates
are not judged and nothing is evaluated. The result is one JSON object with every step's metrics and seconds;
the trained weights are beside it (``.safetensors``). ``--limit`` ends a run that takes too long and keeps its
steps. ``--provider rooted_desktop:make_provider`` is for desktops in another root file system.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "src")]

from arpo_replica.config.models import StudyConfig, merge  # noqa: E402
from arpo_replica.environments import ROOT  # noqa: E402
from arpo_replica.errors import Stopped, UserError  # noqa: E402
from arpo_replica.training.metrics import read_lines  # noqa: E402
from arpo_replica.training.run import train_stage  # noqa: E402
from gpu_training import cards, versions  # noqa: E402

SELECTED = ("step", "success", "reward_before", "reward_after", "swapped_groups", "all_fail_groups")
FURTHER = ("buffer_size", "env_errors", "lost_rollouts", "grad_norm", "entropy", "turns", "seconds")
DIFFERENCE = ("probability_difference_mean", "probability_difference_max")


def overlay(entries: list[str]) -> dict[str, Any]:
    """``a.b=value`` entries as nested keys."""
    merged: dict[str, Any] = {}
    for entry in entries:
        key, _, value = entry.partition("=")
        nested: Any = yaml.safe_load(value)
        for part in reversed(key.split(".")):
            nested = {part: nested}
        merged = merge(merged, nested)
    return merged


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--arm", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--base", type=Path, required=True, help="manifest of the model to start from")
    parser.add_argument("--folder", type=Path, required=True, help="work folder")
    parser.add_argument("--out", type=Path, required=True, help="JSON file that is written")
    parser.add_argument("--provider", help="module:function of the desktops' provider")
    parser.add_argument("--limit", type=float, default=0.0, help="seconds after which it ends")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a key of the config")
    return parser.parse_args(arguments)


def main() -> None:
    """Train once."""
    options = parse()
    os.chdir(ROOT)
    out, folder = options.out.absolute(), options.folder.absolute()
    raw = merge(yaml.safe_load(options.config.read_text()), overlay(options.set))
    config = StudyConfig.model_validate(raw)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(HERE), str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    if options.limit:
        # As a cluster's warning does: the training ends, its steps are kept.
        threading.Timer(options.limit, os.kill, (os.getpid(), 15)).start()
    result: dict[str, Any] = {
        "command": " ".join(sys.argv),
        "arm": options.arm,
        "seed": options.seed,
        "cards": cards(),
        "cores": len(os.sched_getaffinity(0)),
        "versions": versions(),
        "training": config.recipe(options.arm).model_dump(mode="json"),
        "stages": [],
    }
    more = {"provider": options.provider} if options.provider else {}
    began, parent = time.time(), options.base
    for stage in config.recipe(options.arm).stages:
        place, started = folder / f"stage_{stage.name}", time.time()
        try:
            train_stage(
                config, arm=options.arm, seed=options.seed, stage=stage.name, parent=parent, out=place, **more
            )
        except (RuntimeError, UserError, Stopped) as problem:  # what was measured before is kept
            result["error"] = str(problem)[-4000:]
        steps = read_lines(place / "metrics.jsonl")
        kept = [{key: row.get(key) for key in (*SELECTED, *FURTHER, *DIFFERENCE)} for row in steps]
        result["stages"].append(
            {"name": stage.name, "seconds": round(time.time() - started, 1), "steps": kept}
        )
        result["seconds"] = round(time.time() - began, 1)
        out.write_text(json.dumps(result, indent=1) + "\n")
        if "error" in result:
            break
        parent = place / "manifest.json"
    else:
        shutil.copy2(parent.parent / "model" / "model.safetensors", out.with_suffix(".safetensors"))
    for log in sorted(folder.glob("stage_*/checkpoints/logs/train_*.log")):
        out.with_name(f"{out.stem}.{log.parts[-4]}.log").write_bytes(log.read_bytes()[-1_000_000:])
    print(json.dumps({"seconds": result["seconds"], "error": result.get("error", "")[-1500:]}))
    os._exit(0 if "error" not in result else 1)  # the timer must not hold the process


if __name__ == "__main__":
    main()
