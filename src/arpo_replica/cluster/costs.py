"""What a job costs, from ``data/cluster/costs.yaml``: minutes, GPUs, disk.

Estimates: rollouts and updates follow one another, restarts and queues are not counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Literal

from pydantic import Field

from arpo_replica.base.environments import ROOT
from arpo_replica.config.load import load_yaml
from arpo_replica.config.models import StudyConfig
from arpo_replica.config.section import Positive, Section
from arpo_replica.tasks.splits import split_size

COSTS_FILE = ROOT / "data" / "cluster" / "costs.yaml"
CHECKPOINT_BYTES = 16
"""Per weight: float32 weights, AdamW's two moments, weights for vLLM. The nano policy's 31 MB agree."""
MODEL_BYTES = 4
"""Per weight of a published model (float32; bfloat16 is half)."""
Basis = Literal["measured", "published", "computed"]


class Number(Section):
    """A number and where it comes from."""

    basis: Basis
    """How far it can be trusted."""
    source: str
    """Where it stands."""
    value: float = Field(gt=0)
    """The number."""


class Rate(Section):
    """Finished episodes per hour, by the number of desktops at once."""

    basis: Basis
    """How far it can be trusted."""
    source: str
    """Where it stands."""
    by_desktops: dict[int, float] = Field(min_length=1)
    """Desktops -> episodes per hour."""

    def at(self, desktops: int) -> float:
        """Between the known points on a straight line of logarithms; beyond them in proportion, at most."""
        points = sorted(self.by_desktops.items())
        if desktops <= points[0][0]:
            return points[0][1] * desktops / points[0][0]
        for (few, slow), (many, fast) in pairwise(points):
            if desktops <= many:
                share = math.log(desktops / few) / math.log(many / few)
                return float(slow * (fast / slow) ** share)
        return points[-1][1]


class Costs(Section):
    """One size of policy."""

    weights: Positive
    """Number of weights."""
    episodes_per_hour: Rate
    """Rollouts."""
    update_gpu_seconds: Number
    """GPU time of one trajectory in an update, log-probabilities included."""
    start_seconds: Number
    """From a job's start to its first episode."""
    episode_mb: Number
    """Size of a recorded episode."""


class Arithmetic(Section):
    """What decides the arithmetic of a forward pass."""

    language: Positive
    """Weights of the language model without its embedding."""
    language_width: Positive
    """Hidden size x layers."""
    tower: Positive
    """Weights of the vision tower."""
    tower_width: Positive
    """Hidden size of the tower's layers, summed over those whose attention sees the whole screenshot."""
    tower_windowed: int = Field(ge=0)
    """The same over those whose attention sees windows of 64 patches."""

    def flops(self, tokens: float, images: float, patches: int) -> dict[str, float]:
        """Operations of a forward pass over one trajectory, by part; backward, about twice as many."""
        attention = 4.0 * patches * (patches * self.tower_width + 64 * self.tower_windowed)
        return {
            "language": 2.0 * self.language * tokens,
            "language_attention": 2.0 * self.language_width * tokens**2,
            "vision": 2.0 * self.tower * patches * images,
            "vision_attention": attention * images,
        }


@dataclass(frozen=True, slots=True)
class JobEstimate:
    """One job."""

    hours: float
    gpus: int
    """GPUs of all its nodes."""
    disk_gb: float


@lru_cache(maxsize=1)
def all_costs(path: Path = COSTS_FILE) -> dict[str, Costs]:
    """Size -> costs."""
    return {size: Costs.model_validate(raw) for size, raw in load_yaml(path.read_text()).items()}


def costs_of(config: StudyConfig) -> Costs:
    """The study's; random and reduced weights cost what others do."""
    return all_costs()[config.plain_size]


def train_gpus(config: StudyConfig, arm: str) -> tuple[int, int]:
    """(nodes, GPUs on each) of a training; no GPUs on a CPU."""
    recipe = config.recipe(arm)
    return recipe.nodes, recipe.gpus if config.accelerator == "cuda" else 0


def rollout_gpus(config: StudyConfig, arm: str) -> int:
    """GPUs of the job that serves a checkpoint; none if it is served elsewhere or on a CPU."""
    elsewhere = arm not in config.trained_arms and config.of_arm(arm).policy.endpoint is not None
    serving = config.serving
    gpus = serving.tensor_parallel * serving.data_parallel
    return gpus if config.accelerator == "cuda" and not elsewhere else 0


def stage_estimate(config: StudyConfig, arm: str, stage: str) -> JobEstimate:
    """One stage of training."""
    costs, recipe = costs_of(config), config.recipe(arm)
    nodes, gpus = train_gpus(config, arm)
    steps = config.stage(stage).steps
    episodes = steps * recipe.tasks_per_step * recipe.rollouts_per_task
    rollouts_h = episodes / costs.episodes_per_hour.at(config.desktop.count)
    update_h = episodes * costs.update_gpu_seconds.value / max(1, nodes * gpus) / 3600
    saved = min(recipe.keep_checkpoints, math.ceil(steps / recipe.save_every))
    weights_gb = costs.weights * (CHECKPOINT_BYTES * saved + MODEL_BYTES) / 1e9
    disk_gb = weights_gb + episodes * costs.episode_mb.value / 1e3
    return JobEstimate(costs.start_seconds.value / 3600 + rollouts_h + update_h, nodes * gpus, disk_gb)


def rollout_estimate(config: StudyConfig, arm: str) -> JobEstimate:
    """All evaluation episodes of one checkpoint."""
    costs = costs_of(config)
    episodes = sum(split_size(config, name) for name in config.evaluation.splits) * config.evaluation.trials
    hours = costs.start_seconds.value / 3600 + episodes / costs.episodes_per_hour.at(config.desktop.count)
    return JobEstimate(hours, rollout_gpus(config, arm), episodes * costs.episode_mb.value / 1e3)


def offline_estimate(config: StudyConfig, *, collected: bool) -> JobEstimate:
    """Collecting what offline arms learn from, or one arm's training: an update's cost for each episode."""
    costs = costs_of(config)
    episodes = split_size(config, config.offline_split) * config.offline.rollouts_per_task
    hours = costs.start_seconds.value / 3600
    if collected:
        hours += episodes / costs.episodes_per_hour.at(config.desktop.count)
        return JobEstimate(hours, rollout_gpus(config, "base"), episodes * costs.episode_mb.value / 1e3)
    hours += episodes * costs.update_gpu_seconds.value / 3600
    gpus = 1 if config.accelerator == "cuda" else 0
    return JobEstimate(hours, gpus, costs.weights * (CHECKPOINT_BYTES + MODEL_BYTES) / 1e9)


def other_estimate(config: StudyConfig, rule: str) -> JobEstimate:
    """Jobs that are neither training nor rollouts."""
    costs = costs_of(config)
    match rule:
        case "fetch_model":
            return JobEstimate(0.5, 0, costs.weights * MODEL_BYTES / 1e9)
        case "record_demonstrations":
            return JobEstimate(config.nano.demonstrations * 0.17 / 3600, 0, 0.05)
        case "build_nano_model":
            return JobEstimate(config.nano.demonstrations * 0.11 / 3600, 0, 0.05)
        case "collect_offline_episodes" | "train_offline":
            return offline_estimate(config, collected=rule == "collect_offline_episodes")
        case "measure_throughput" | "build_desktop_image":
            return JobEstimate(0.5, rollout_gpus(config, "") if rule == "measure_throughput" else 0, 0.0)
        case _:
            return JobEstimate(0.0, 0, 0.0)
