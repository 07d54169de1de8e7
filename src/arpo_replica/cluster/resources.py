"""What the heavy rules ask a cluster for. Without one, only ``threads`` counts.

Times come from ``costs`` with a margin, grow with every attempt, and end at what the cluster allows: a job
that is cut there goes on where it was.
"""

from __future__ import annotations

import math

from arpo_replica.cluster import profile
from arpo_replica.cluster.costs import (
    CHECKPOINT_BYTES,
    Estimate,
    costs_of,
    rollout_estimate,
    rollout_gpus,
    stage_estimate,
    train_gpus,
)
from arpo_replica.config.models import StudyConfig
from arpo_replica.errors import UserError

MARGIN = 1.5
LEAST_MINUTES = 60
BASE_MB = 8000
"""Interpreter, vLLM, Ray and torch of a job, without weights and desktops."""


def minutes(estimate: Estimate, attempt: int) -> int:
    """Run time to ask for."""
    wanted = max(LEAST_MINUTES, math.ceil(60 * MARGIN * estimate.hours)) * attempt
    return capped(wanted, gpus=estimate.gpus > 0)


def capped(wanted: int, *, gpus: bool) -> int:
    """At most what the cluster allows; Slurm would let a longer job wait for ever."""
    most = None if profile.active is None else profile.active.minutes(gpus)
    return wanted if most is None else min(wanted, most)


def gres(gpus: int) -> str:
    """Generic resources of a node: ``gpu:4`` or, if the site names a model, ``gpu:h200:4``; empty: none."""
    if not gpus:
        return ""
    model = None if profile.active is None else profile.active.site.gpu_model
    return f"gpu:{model}:{gpus}" if model else f"gpu:{gpus}"


def train_minutes(config: StudyConfig, arm: str, stage: str, attempt: int) -> int:
    """Run time of a stage."""
    return minutes(stage_estimate(config, arm, stage), attempt)


def train_memory(config: StudyConfig, arm: str, attempt: int) -> int:
    """Main memory of each node of a training, MB: programs, desktops, and what is offloaded."""
    nodes, _ = train_gpus(config, arm)
    offloaded = costs_of(config).weights * CHECKPOINT_BYTES / nodes / 1e6
    return grown(BASE_MB + desktops_mb(config) + math.ceil(1.2 * offloaded), attempt)


def check_nodes(config: StudyConfig) -> None:
    """Refuse trainings on more nodes than there are: they would wait for ever. Raises ``UserError``."""
    for arm in config.online_arms:
        nodes, gpus = train_gpus(config, arm)
        partition = None if profile.active is None else profile.active.partition(gpus > 0)
        if partition is not None and nodes > partition.nodes:
            raise UserError(
                f"training.nodes is {nodes} ({arm}), but the partition '{partition.name}' has "
                f"{partition.nodes}; lower it or name another partition in slurm/site.yaml."
            )


def train_tasks(config: StudyConfig, arm: str) -> int:
    """Slurm's tasks: one a node; 0 where GPUs are asked for, because Slurm would count tasks per GPU."""
    nodes, gpus = train_gpus(config, arm)
    return 0 if gpus else nodes


def rollout_minutes(config: StudyConfig, arm: str, attempt: int) -> int:
    """Run time of a checkpoint's evaluation."""
    return minutes(rollout_estimate(config, arm), attempt)


def rollout_memory(config: StudyConfig, attempt: int) -> int:
    """Main memory of the job that serves a checkpoint, MB."""
    weights = costs_of(config).weights * 4 / 1e6
    return grown(BASE_MB + desktops_mb(config) + math.ceil(weights), attempt)


def rollout_gres(config: StudyConfig, arm: str) -> str:
    """GPUs of the job that serves a checkpoint."""
    return gres(rollout_gpus(config, arm))


def desktops_mb(config: StudyConfig) -> int:
    """Main memory of the desktops on the job's own node: half of what each may take."""
    if config.desktop.provider == "remote":
        return 0
    return config.desktop.count * config.desktop.memory_mb // 2


def grown(megabytes: int, attempt: int) -> int:
    """A quarter more for each attempt after the first, twice at most."""
    return int(megabytes * min(2.0, 1 + 0.25 * (attempt - 1)))
