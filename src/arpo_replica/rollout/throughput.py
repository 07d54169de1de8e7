"""How the time of rollouts falls with the number of desktops (figure 7): measured, one count after the other.

As in the paper, a batch is one trajectory per desktop, with reset and scoring, and an epoch is 1,024
trajectories. The policy is the untrained one, sampled as in training; the tasks are those of the last
stage of training. The first batch of each count warms up and is not counted. Our desktops do not wait for
each other, so the time of a batch is the time of all counted batches divided by their number.
"""

import asyncio
import contextlib
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from arpo_replica.base.files import write_atomically
from arpo_replica.config.models import StudyConfig
from arpo_replica.policy.manifest import read_manifest
from arpo_replica.providers.pool import make_provider
from arpo_replica.rollout.collect import OutputRoot
from arpo_replica.rollout.episode import Labels
from arpo_replica.rollout.records import EpisodeRecord
from arpo_replica.rollout.run import Serving, collect_served, make_labels, sampled_as_in_training, serve
from arpo_replica.tasks.model import Task
from arpo_replica.tasks.splits import ResolvedSplit

logger = logging.getLogger(__name__)

EPOCH = 1024
"""Trajectories of an epoch: 128 tasks, 8 rollouts each (paper, §4.1)."""
BATCHES = 2
"""Counted batches of each number of desktops."""


def measure_throughput(
    config: StudyConfig, *, manifest: Path, split: ResolvedSplit, out: Path
) -> dict[str, Any]:
    """Write ``out``: one point for each of ``targets.environments``, on the tasks of ``split``.

    Episodes lie in a folder beside ``out`` while it is measured; none of them is a result. Raises
    ``UserError`` before any long work for what a user can correct.
    """
    model = read_manifest(manifest, verify=True)
    make_provider(config.desktop).check()
    labels = make_labels(config, model)
    work = out.with_name("throughput.episodes")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    most = max(config.targets.environments)
    sampled = _like_training(config, most)
    serving = serve(sampled, model.model_path(manifest), labels, out.with_name("throughput.vllm.log"))
    points = asyncio.run(_sweep(sampled, split, labels, work, serving=serving))
    document = {
        "schema_version": 1,
        "study": config.name,
        "size": config.size,
        "desktop": config.desktop.kind,
        "checkpoint_sha256": model.sha256,
        "epoch": EPOCH,
        "points": points,
    }
    write_atomically(out, (json.dumps(document, indent=1) + "\n").encode())
    shutil.rmtree(work)
    return document


def _like_training(config: StudyConfig, count: int) -> StudyConfig:
    desktop = config.desktop.model_copy(update={"count": count})
    return sampled_as_in_training(config).model_copy(update={"desktop": desktop})


async def _sweep(
    config: StudyConfig,
    split: ResolvedSplit,
    labels: Labels,
    work: Path,
    *,
    serving: contextlib.AbstractAsyncContextManager[Serving],
) -> list[dict[str, Any]]:
    tasks = split.load()
    points = []
    async with serving as served:
        await served.ready()
        for count in config.targets.environments:
            here = _like_training(config, count)
            for batch in ("warm_up", "counted"):
                number = count * (BATCHES if batch == "counted" else 1)
                root = work / f"desktops_{count}" / batch
                outputs = list(outputs_of(root, split.split, tasks, number))
                await collect_served(
                    here,
                    outputs,
                    labels,
                    provider=make_provider(here.desktop),
                    serving=contextlib.nullcontext(served),
                )
            point = point_of(count, read_records(root))
            logger.info(f"{count} desktops: {point['minutes_per_batch']:.2f} min per batch")
            points.append(point)
    return points


def outputs_of(root: Path, split: str, tasks: list[Task], number: int) -> Iterator[OutputRoot]:
    """Folders for ``number`` trajectories: the tasks in turn, a new trial whenever all had theirs."""
    for trial in range((number - 1) // len(tasks) + 1):
        part = tasks[: min(len(tasks), number - trial * len(tasks))]
        yield OutputRoot(root / split / f"trial_{trial}", split, trial, part)


def read_records(root: Path) -> list[EpisodeRecord]:
    return [
        EpisodeRecord.model_validate_json(path.read_bytes())
        for path in sorted(root.glob("*/trial_*/*/episode.json"))
    ]


def point_of(count: int, records: list[EpisodeRecord]) -> dict[str, Any]:
    """One point of figure 7. Seconds from the first start to the last end; failures count as time spent."""
    began = min(record.started_at for record in records)
    seconds = max(record.started_at + record.duration_s for record in records) - began
    per_hour = 3600 * len(records) / seconds
    return {
        "desktops": count,
        "trajectories": len(records),
        "env_errors": sum(record.outcome == "env_error" for record in records),
        "seconds": round(seconds, 3),
        "minutes_per_batch": seconds / 60 * count / len(records),
        "hours_per_epoch": EPOCH / per_hour,
        "trajectories_per_hour": per_hour,
        "per_desktop_hour": per_hour / count,
        "steps_per_trajectory": sum(record.n_steps for record in records) / len(records),
    }
