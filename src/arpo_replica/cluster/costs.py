"""What a job costs, from ``data/cluster/costs.yaml``: minutes, GPUs, disk.

Estimates: rollouts and updates follow one another, restarts and queues are not counted.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from arpo_replica.base.environments import ROOT
from arpo_replica.base.errors import UserError
from arpo_replica.base.tables import load_yaml
from arpo_replica.config.load import read_yaml
from arpo_replica.config.models import StudyConfig
from arpo_replica.config.section import Positive, Section
from arpo_replica.policy.prompt import conversation_length
from arpo_replica.tasks.splits import split_size
from arpo_replica.training.job import outline
from arpo_replica.training.recipe import Speed

COSTS_FILE = ROOT / "data" / "cluster" / "costs.yaml"
PRICES_FILE = ROOT / "data" / "cluster" / "prices.yaml"
CHECKPOINT_BYTES = 16
"""Per weight: float32 weights, AdamW's two moments, weights for vLLM. The nano policy's 31 MB agree."""
ADAPTED_BYTES = 2
"""Per weight of a checkpoint with adapters, a model in bfloat16; they themselves are small."""
MODEL_BYTES = 4
"""Per weight of a published model (float32; bfloat16 is half)."""
UPDATE_TOKENS = 43_400
"""Of a trajectory of 15 screenshots of 1920x1080 with 100 tokens a reply (``benchmarks/gpu_memory.py``)."""
SLACK = 1.2
"""What torch's allocator takes from a card over what it uses: 1.12 to 1.26 in the measured cases. Where there
is less, it takes less, so a card without this room may do, too."""
CARDS = {"16 GB": 15, "24 GB": 22.5, "48 GB": 44.5, "80 GB": 79, "141 GB": 139}
"""Card -> GiB that programs can use; of several of that size, the least (T4, L4, L40S, H100, H200)."""
CUDA_GIB = 2.0
"""CUDA itself, in the trainer and in a vLLM that sleeps."""
Basis = Literal["measured", "published", "computed"]


class Sourced(Section):
    """Numbers and where they come from."""

    basis: Basis
    """How far they can be trusted; of a step's costs all are fitted to measured steps."""
    source: str
    """Where they stand."""


class Number(Sourced):
    """One number."""

    value: float = Field(gt=0)
    """The number."""


class Rate(Sourced):
    """Finished episodes per hour, by the number of desktops at once."""

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


class Memory(Section):
    """GPU memory in GiB."""

    estimated: list[str]
    """Keys of ``update`` that are computed; the others come from measured updates."""
    source: str
    """Where they stand."""
    update: dict[str, float]
    """Peak of one update with trajectories of ``UPDATE_TOKENS``, by what is trained: ``lora`` or ``full``
    ``_frozen`` or ``_tower``."""
    no_recomputation: float
    """What such an update needs besides if no layer is computed again (``speed.checkpoint_share: 0``)."""
    serving: float
    """The least that vLLM can answer one conversation in: weights, cache, workspace."""
    saved: dict[str, float]
    """What ``serving.quantization`` saves of it, by its value."""


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
    memory_gib: Memory | None = None
    """GPU memory; none for a policy that every card holds."""


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
    hours: float
    gpus: int
    """GPUs of all its nodes."""
    disk_gb: float
    episodes: int = 0
    """Episodes that the policy plays in it."""


class Prices(Section):
    """What a GPU-hour costs: ``data/cluster/prices.yaml``, or a file of the user's."""

    source: str
    """Who asks these prices, and when."""
    card: str
    """GPU that the hours are of."""
    usd_per_gpu_hour: tuple[float, float]
    """Lowest and highest price."""
    watts: float | None = None
    """Mean power of that GPU in a training; None: unknown."""
    watts_source: str = "not stated"
    """Where it stands."""
    others: list["Prices"] = Field(default_factory=list)
    """Other cards, of which nobody measured how many hours a study takes."""


def read_prices(path: Path) -> Prices:
    """The prices of a file. Raises ``UserError``."""
    try:
        return Prices.model_validate(read_yaml(path, f"The file of prices {path}"))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{path}: '{key}': {first['msg']}; write it in the form of data/cluster/prices.yaml."
        ) from error


@lru_cache(maxsize=1)
def all_costs(path: Path = COSTS_FILE) -> dict[str, Costs]:
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


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """GPU memory of an arm's training on each of its GPUs, GiB."""

    update: float
    rollouts: float
    basis: Basis

    @property
    def most(self) -> float:
        return max(self.update, self.rollouts)

    def __str__(self) -> str:
        surely = [card for card, room in CARDS.items() if self.most * SLACK <= room]
        perhaps = [card for card, room in CARDS.items() if self.most <= room < self.most * SLACK]
        says = "an estimate" if self.basis == "computed" else "from measured runs"
        cards = f"cards of {', '.join(surely)} hold it" if surely else "no single card here surely holds it"
        cards += f", {' and '.join(perhaps)} perhaps" if perhaps else ""
        return f"{self.update:.0f} GiB in an update, {self.rollouts:.0f} in rollouts, {says}: {cards}"


def serving_gib(config: StudyConfig) -> float | None:
    """GPU memory in GiB that the study's rollouts need at least; None for a policy that every card holds."""
    memory, reduced = costs_of(config).memory_gib, config.serving.quantization
    if memory is None:
        return None
    return memory.serving - (memory.saved[reduced] if reduced else 0.0)


def memory_need(config: StudyConfig, arm: str) -> MemoryNeed | None:
    """What a training needs; None where it does not matter, on a CPU and for the nano policy.

    What is kept per weight is spread over the trainer's GPUs, the rest goes with the longest trajectory.
    """
    memory, recipe = costs_of(config).memory_gib, config.recipe(arm)
    if memory is None or config.accelerator == "cpu":
        return None
    trained = f"{'lora' if recipe.lora else 'full'}_{'frozen' if recipe.speed.freeze_vision else 'tower'}"
    share, gpus = Speed.of(outline(config, arm, "")).checkpoint_share, recipe.gpus * recipe.nodes
    # With all weights trained: float32 weight, gradient and AdamW's two moments.
    kept = costs_of(config).weights * (2 if recipe.lora else 16) / 2**30
    moving = memory.update[trained] - kept + memory.no_recomputation * (1 - share)
    tokens = min(conversation_length(config).most, config.policy.max_model_len) * recipe.micro_batch
    moving *= tokens / UPDATE_TOKENS / recipe.sequence_parallel
    kept /= gpus
    beside = 0.0 if recipe.offload else kept * (1.0 if recipe.lora else 0.75)
    serving = memory.serving / recipe.tensor_parallel
    basis: Basis = "computed" if trained in memory.estimated else "measured"
    return MemoryNeed(kept + moving + CUDA_GIB, serving + beside + CUDA_GIB / 2, basis)


def stage_estimate(config: StudyConfig, arm: str, stage: str) -> JobEstimate:
    costs, recipe = costs_of(config), config.recipe(arm)
    nodes, gpus = train_gpus(config, arm)
    steps = config.stage(stage).steps
    episodes = steps * recipe.tasks_per_step * recipe.rollouts_per_task
    rollouts_h = episodes / costs.episodes_per_hour.at(config.desktop.count)
    update_h = episodes * costs.update_gpu_seconds.value / max(1, nodes * gpus) / 3600
    saved = min(recipe.keep_checkpoints, math.ceil(steps / recipe.save_every))
    per_weight = ADAPTED_BYTES if recipe.lora else CHECKPOINT_BYTES
    weights_gb = costs.weights * (per_weight * saved + MODEL_BYTES) / 1e9
    disk_gb = weights_gb + episodes * costs.episode_mb.value / 1e3
    hours = costs.start_seconds.value / 3600 + rollouts_h + update_h
    return JobEstimate(hours, nodes * gpus, disk_gb, episodes)


def episodes_estimate(config: StudyConfig, arm: str, tasks: int, trials: int) -> JobEstimate:
    """Episodes of a checkpoint, ``trials`` of each of so many tasks."""
    costs, episodes = costs_of(config), tasks * trials
    hours = costs.start_seconds.value / 3600 + episodes / costs.episodes_per_hour.at(config.desktop.count)
    return JobEstimate(hours, rollout_gpus(config, arm), episodes * costs.episode_mb.value / 1e3, episodes)


def rollout_estimate(config: StudyConfig, arm: str) -> JobEstimate:
    tasks = sum(split_size(config, name) for name in config.evaluation.splits)
    return episodes_estimate(config, arm, tasks, config.evaluation.trials)


def estimate(config: StudyConfig, rule: str, arm: str = "", stage: str = "") -> JobEstimate:
    """One job of a rule."""
    if rule == "train_stage":
        return stage_estimate(config, arm, stage)
    if rule == "collect_rollouts":
        return rollout_estimate(config, arm)
    costs, demonstrations = costs_of(config), config.nano.demonstrations
    if rule in ("collect_offline_episodes", "train_offline"):
        tasks, trials = split_size(config, config.offline_split), config.offline.rollouts_per_task
        if rule == "collect_offline_episodes":
            return episodes_estimate(config, "base", tasks, trials)
        gpus = 1 if config.accelerator == "cuda" else 0
        # Training costs an update for each episode.
        seconds = costs.start_seconds.value + tasks * trials * costs.update_gpu_seconds.value
        return JobEstimate(seconds / 3600, gpus, costs.weights * (CHECKPOINT_BYTES + MODEL_BYTES) / 1e9)
    hours, gpus, disk_gb = {
        "fetch_model": (0.5, 0, costs.weights * MODEL_BYTES / 1e9),
        "record_demonstrations": (demonstrations * 0.17 / 3600, 0, 0.05),
        "build_nano_model": (demonstrations * 0.11 / 3600, 0, 0.05),
        "measure_throughput": (0.5, rollout_gpus(config, ""), 0.0),
        "build_desktop_image": (0.5, 0, 0.0),
    }.get(rule, (0.0, 0, 0.0))
    return JobEstimate(hours, gpus, disk_gb)
