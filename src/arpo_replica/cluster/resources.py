"""What the heavy rules ask a cluster for. Without one, only ``threads`` counts.

Times come from ``costs`` with a margin, grow with every attempt, and end at what the cluster allows: a job
that is cut there goes on where it was.
"""

import math
from collections.abc import Container
from dataclasses import dataclass
from types import SimpleNamespace

from arpo_replica.base.errors import UserError
from arpo_replica.cluster import pools, profile
from arpo_replica.cluster.costs import (
    CHECKPOINT_BYTES,
    JobEstimate,
    costs_of,
    rollout_estimate,
    rollout_gpus,
    stage_estimate,
    train_gpus,
)
from arpo_replica.config.models import StudyConfig

MARGIN = 1.5
LEAST_MINUTES = 60
BASE_MB = 8000
"""Interpreter, vLLM, Ray and torch of a job, without weights and desktops."""


def minutes(estimate: JobEstimate, attempt: int) -> int:
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


def resources_of(config: StudyConfig) -> SimpleNamespace:
    """What the heavy rules ask for: functions that Snakemake calls with a job's wildcards and its attempt.

    ``_minutes``: run time; ``_memory``: main memory of a node, MB; ``_gpus``: those of a node, as ``gres``.
    """
    on_gpus = config.accelerator == "cuda"
    return SimpleNamespace(
        train_minutes=lambda job, attempt: minutes(stage_estimate(config, job.arm, job.stage), attempt),
        train_memory=lambda job, attempt: train_memory(config, job.arm, attempt),
        train_nodes=lambda job: config.recipe(job.arm).nodes,
        # One task a node; 0 where GPUs are asked for, because Slurm would count tasks per GPU.
        train_tasks=lambda job: 0 if train_gpus(config, job.arm)[1] else train_gpus(config, job.arm)[0],
        train_gpus=lambda job: gres(train_gpus(config, job.arm)[1]),
        rollout_minutes=lambda job, attempt: minutes(rollout_estimate(config, job.arm), attempt),
        rollout_memory=lambda job, attempt: rollout_memory(config, attempt),
        rollout_gpus=lambda job: gres(rollout_gpus(config, job.get("arm", "base"))),
        offline_gpus=lambda job: gres(int(on_gpus)),
        longer_minutes=lambda job, attempt: capped(120 * attempt, gpus=on_gpus),  # of all other jobs
    )


def train_memory(config: StudyConfig, arm: str, attempt: int) -> int:
    """Main memory of each node of a training, MB: programs, desktops, and what is offloaded."""
    nodes, _ = train_gpus(config, arm)
    offloaded = costs_of(config).weights * CHECKPOINT_BYTES / nodes / 1e6
    least = BASE_MB + desktops_mb(config) + math.ceil(1.2 * offloaded)
    return grown(least, attempt, gpus=config.accelerator == "cuda")


@dataclass(frozen=True)
class Need:
    """What each node of one of the large jobs must have, at its first attempt."""

    rule: str
    arm: str
    gpus: int
    gpus_key: str
    """Key of the config that sets ``gpus``."""
    memory_mb: int


def large_jobs(config: StudyConfig) -> list[Need]:
    """The trainings and evaluations; all other jobs need less."""
    trainings = [
        Need("train_stage", arm, train_gpus(config, arm)[1], "training.gpus", train_memory(config, arm, 1))
        for arm in config.online_arms
    ]
    rollouts = [
        Need("collect_rollouts", arm, rollout_gpus(config, arm), key, memory)
        for key, memory in [("serving.tensor_parallel x data_parallel", rollout_memory(config, 1))]
        for arm in config.arms
    ]
    return [*trainings, *rollouts]


def misfit(config: StudyConfig, need: Need, cluster: profile.Profile) -> str | None:
    """Why no node of its partition can run a job, in one sentence; None if one can."""
    partition, most = cluster.partition(need.gpus > 0), cluster.most_gpus
    other = "or name another partition in slurm/site.yaml"
    if need.gpus and not most:
        return (
            f"{need.gpus_key} is {need.gpus} ({need.arm}), but no partition of this cluster has GPUs "
            "(sinfo -o '%P %G'); set accelerator to 'cpu' (nano only)."
        )
    if need.gpus > most:
        return (
            f"{need.gpus_key} is {need.gpus} ({need.arm}), but a node of the partition '{partition.name}' "
            f"has {most}; lower it, {other}."
        )
    if partition.memory_mb is not None and need.memory_mb > partition.memory_mb:
        return (
            f"{need.rule} ({need.arm}) asks for {need.memory_mb / 1000:.0f} GB of memory, but a node of the "
            f"partition '{partition.name}' has {partition.memory_mb / 1000:.0f}; lower desktop.count or "
            f"desktop.memory_mb, {other}."
        )
    if partition.cpus is not None and config.threads > partition.cpus:
        return (
            f"threads is {config.threads}, but a node of the partition '{partition.name}' has "
            f"{partition.cpus} processors; lower it, {other}."
        )
    return None


def check_jobs(config: StudyConfig, overwritten: Container[str] = ()) -> None:
    """Refuse jobs that no node can run: Slurm would refuse each attempt, or let it wait for ever.

    ``overwritten``: rules whose resources the user sets by hand. Raises ``UserError``.
    """
    if profile.active is None:
        return
    if (reason := pools.misfit(config, profile.active)) is not None:
        raise UserError(reason)
    needs = large_jobs(config)
    for need in needs:
        reason = None if need.rule in overwritten else misfit(config, need, profile.active)
        if reason is not None:
            raise UserError(reason)
    if "train_stage" not in overwritten:
        check_nodes(config)
    sizes = {need.gpus for need in needs if need.rule in profile.active.site.arrays}
    if len(sizes) > 1:
        raise UserError(
            "slurm/site.yaml: arrays names collect_rollouts, but with policy.endpoint the base policy needs "
            "no GPU and the others do, and the jobs of an array are all alike; remove it there."
        )


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


def rollout_memory(config: StudyConfig, attempt: int) -> int:
    """Main memory of the job that serves a checkpoint, MB."""
    weights = costs_of(config).weights * 4 / 1e6 * config.serving.data_parallel
    least = BASE_MB + desktops_mb(config) + math.ceil(weights)
    return grown(least, attempt, gpus=config.accelerator == "cuda")


def desktops_mb(config: StudyConfig) -> int:
    """Main memory of the desktops on the job's own node: half of what each may take."""
    if config.desktop.provider == "remote":
        return 0
    return config.desktop.count * config.desktop.memory_mb // 2


def grown(megabytes: int, attempt: int, *, gpus: bool = False) -> int:
    """A quarter more for each attempt after the first; at most twice, and no more than a node has."""
    wanted = int(megabytes * min(2.0, 1 + 0.25 * (attempt - 1)))
    most = None if profile.active is None else profile.active.partition(gpus).memory_mb
    return wanted if most is None else max(megabytes, min(wanted, most))
