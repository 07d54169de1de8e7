"""The online arms of a study, trained and evaluated without Snakemake, for a machine that has none.

    python benchmarks/gpu_study.py --config configs/nano.yaml --arm arpo --seed 0 \\
        --base model/manifest.json --folder work --out arpo_0.json --set accelerator=cuda --evaluate
    python benchmarks/gpu_study.py ... --arm base ...    the untrained policy's episodes

Calls what the rules ``train_stage``, ``check_stage`` and ``collect_rollouts`` call, stage by stage, with the
study's own config, tasks and desktops. ``--folder`` then holds what ``results/{study}`` holds, ``models`` and
``episodes``, so that the same summary can be made of it (``gpu_study_summary.py``). The result is one JSON
object with every step's metrics and seconds. ``--limit`` ends a run that takes too long and keeps its steps;
the same command again goes on from its last checkpoint.
``--set desktop.process.image=FOLDER`` is for a machine that cannot install Chromium (docs/gpu.md),
``--cache-gib`` for several servers on one card, which would else measure what the others leave.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "src")]

from arpo_replica.base.environments import ROOT  # noqa: E402
from arpo_replica.base.files import read_rows  # noqa: E402
from arpo_replica.config.models import StudyConfig, merge  # noqa: E402
from arpo_replica.policy.endpoint import Endpoint  # noqa: E402
from arpo_replica.policy.manifest import read_manifest, register_model  # noqa: E402
from arpo_replica.policy.vllm_server import SERVED_NAME, VllmServer  # noqa: E402
from arpo_replica.providers.pool import make_provider  # noqa: E402
from arpo_replica.rollout.run import (  # noqa: E402
    Copy,
    Serving,
    collect_served,
    make_labels,
    output_root,
)
from arpo_replica.tasks.splits import resolve  # noqa: E402
from arpo_replica.training.gates import check_stage  # noqa: E402
from arpo_replica.training.run import train_stage  # noqa: E402
from gpu_training import cards, versions  # noqa: E402

SELECTED = ("step", "success", "reward_before", "reward_after", "swapped_groups", "all_fail_groups")
FURTHER = ("buffer_size", "env_errors", "lost_rollouts", "grad_norm", "entropy", "turns", "seconds")
DIFFERENCE = ("probability_difference_mean", "probability_difference_max")
CACHE_KEY = "+actor_rollout_ref.rollout.engine_kwargs.vllm.kv_cache_memory_bytes"


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
    parser.add_argument("--folder", type=Path, required=True, help="stands for results/{study}")
    parser.add_argument("--out", type=Path, required=True, help="JSON file that is written")
    parser.add_argument("--evaluate", action="store_true", help="collect the last stage's episodes too")
    parser.add_argument("--cache-gib", type=float, help="size of every vLLM's KV cache")
    parser.add_argument("--limit", type=float, default=0.0, help="seconds after which it ends")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a key of the config")
    return parser.parse_args(arguments)


def study(options: argparse.Namespace) -> StudyConfig:
    """The study's config with what the command line says."""
    raw = merge(yaml.safe_load(options.config.read_text()), overlay(options.set))
    if options.cache_gib:
        raw = merge(raw, {"training": {"verl": {CACHE_KEY: int(options.cache_gib * 2**30)}}})
    return StudyConfig.model_validate(raw)


class SizedServer(VllmServer):
    """vLLM with a KV cache of a given size instead of a share of the card."""

    cache_gib: float | None = None

    def command(self, scratch: Path) -> tuple[list[str], dict[str, str]]:
        """See ``VllmServer``."""
        command, environment = super().command(scratch)
        if self.cache_gib:
            command += ["--kv-cache-memory-bytes", str(int(self.cache_gib * 2**30))]
        return command, environment


@asynccontextmanager
async def served(server: SizedServer, config: StudyConfig) -> AsyncIterator[Serving]:
    """The server and the way to it."""
    async with (
        server,
        Endpoint(
            server.url,
            model=SERVED_NAME,
            api_key=server.api_key,
            timeout_s=float(config.rollout.episode_timeout_s),
            connections=max(2, config.desktop.count),
        ) as endpoint,
    ):
        yield Serving([Copy(endpoint, server)])


def evaluate(config: StudyConfig, manifest: Path, folder: Path, options: argparse.Namespace) -> int:
    """Collect the episodes of a checkpoint below ``folder``; how many there are."""
    model = read_manifest(manifest, verify=True)
    place = folder / "episodes" / model.arm / f"seed_{model.seed}" / f"stage_{model.stage}"
    splits, trials = config.evaluation.splits, range(config.evaluation.trials)
    tasks = {split: resolve(config, split).load() for split in splits}
    outputs = [output_root(tasks, place / split / f"trial_{trial}") for split in splits for trial in trials]
    provider = make_provider(config.desktop)
    provider.check()
    server = SizedServer(config, model.model_path(manifest), place / "vllm.log")
    server.cache_gib = options.cache_gib
    progress = asyncio.run(
        collect_served(
            config, outputs, make_labels(config, model), provider=provider, serving=served(server, config)
        )
    )
    return progress.done


def train(config: StudyConfig, options: argparse.Namespace, models: Path, result: dict[str, Any]) -> Path:
    """All stages of the arm, one after the other; the last one's manifest. ``result`` is kept up to date."""
    parent: Path = options.base
    for stage in config.recipe(options.arm).stages:
        place, started = models / options.arm / f"seed_{options.seed}" / f"stage_{stage.name}", time.time()
        entry: dict[str, Any] = {"name": stage.name}
        result["stages"].append(entry)
        try:
            if not (place / "manifest.json").is_file():  # else its evaluation failed, or a later stage
                train_stage(
                    config,
                    arm=options.arm,
                    seed=options.seed,
                    stage=stage.name,
                    parent=parent,
                    split=resolve(config, stage.split),
                    out=place,
                )
            report = check_stage(
                config, options.arm, stage.name, place / "manifest.json", place / "stage_report.json"
            )
            entry["gates"] = report.reason or "passed"
        finally:  # what was measured before is kept
            steps = read_rows(place / "metrics.jsonl")
            kept = [{key: row.get(key) for key in (*SELECTED, *FURTHER, *DIFFERENCE)} for row in steps]
            entry |= {"seconds": round(time.time() - started, 1), "steps": kept}
            options.out.write_text(json.dumps(result, indent=1) + "\n")
        parent = place / "manifest.json"
    return parent


def main() -> None:
    """Train once, and evaluate if asked to."""
    options = parse()
    options.out, options.folder = options.out.absolute(), options.folder.absolute()
    options.base = options.base.absolute()
    os.chdir(ROOT)
    config = study(options)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(HERE), str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    if options.limit:
        # As a cluster's warning does: the training ends, its steps are kept.
        timer = threading.Timer(options.limit, os.kill, (os.getpid(), 15))
        timer.daemon = True  # it must not hold a process that fails
        timer.start()
    result: dict[str, Any] = {
        "command": " ".join(sys.argv),
        "arm": options.arm,
        "seed": options.seed,
        "cards": cards(),
        "gpus_seen": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "cores": len(os.sched_getaffinity(0)),
        "versions": versions(),
        "training": config.recipe(options.arm).model_dump(mode="json"),
        "stages": [],
    }
    began = time.time()
    models = options.folder / "models"
    try:
        if options.arm == "base":
            manifest = models / "base" / "seed_0" / "stage_base" / "manifest.json"
            manifest.parent.mkdir(parents=True, exist_ok=True)
            register_model(config, options.base.parent, manifest)
        else:
            manifest = train(config, options, models, result)
        result["trained_s"] = round(time.time() - began, 1)
        if options.evaluate:
            result["episodes"] = evaluate(config, manifest, options.folder, options)
    except (Exception, asyncio.CancelledError) as problem:
        traceback.print_exc()
        result["error"] = str(problem)[-4000:] or repr(problem)
    result["seconds"] = round(time.time() - began, 1)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({"seconds": result["seconds"], "error": result.get("error", "")[-1500:]}))
    sys.stdout.flush()
    os._exit(0 if "error" not in result else 1)


if __name__ == "__main__":
    main()
