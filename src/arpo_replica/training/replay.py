"""ARPO's experience replay: which success is kept, and which failed group gets one back.

Semantics of the released code (dvlab-research/ARPO@7489ae3: verl/trainer/replay_buffer.py and
ray_trainer.py:722-761), with the paper's variant of the replaced slot (§3.5) as an option:

* per task a queue of at most ``capacity_per_task`` successes, first in first out;
* a group is *failed* if the population standard deviation of its task scores is below
  ``trigger_std_below`` **and** their mean below ``trigger_mean_below``; the format term plays no part;
* a failed group of a task with stored successes gets one of them, uniformly at random, in the place of
  its first rollout (or of a random one); all other groups stay as they are;
* after *all* replacements of a step, every on-policy trajectory with a task score above
  ``success_above`` is stored: a success of this step serves from the next step on, and a replayed
  trajectory is never stored again.

No torch here: what is stored is a name; ``sampler`` keeps the trajectories themselves.
"""

import math
import random
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from arpo_replica.config.training import ReplayConfig

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Stored:
    """A success in the buffer."""

    name: str
    """Names the trajectory; unique in a stage."""
    step: int
    """Step whose policy produced it; 0 and less: before this stage (``continued``)."""


@dataclass(frozen=True, slots=True)
class Group:
    """The on-policy rollouts of one prompt."""

    task: str
    """Task id; the buffer's key."""
    scores: tuple[float, ...]
    """Task score of each rollout, without the format term."""

    def __post_init__(self) -> None:
        if not all(math.isfinite(score) for score in self.scores):
            raise ValueError(f"a score of {self.task} is no number: {self.scores}")


@dataclass(frozen=True, slots=True)
class Swap:
    group: int
    """Index of the group in the step."""
    rollout: int
    """Index of the rollout that gives way."""
    stored: Stored


@dataclass(slots=True)
class ReplayPlan:
    """What a step does to its batch and to the buffer."""

    swaps: list[Swap] = field(default_factory=list)
    store: list[tuple[int, int]] = field(default_factory=list)
    """(group, rollout) of every trajectory to store, in order."""
    failed_groups: int = 0
    """Groups that meet the trigger, with or without a stored success."""


RECORDED = "base_"
"""How the name of a recorded success of the base policy begins."""


def is_recorded(name: str) -> bool:
    """True for a recorded success of the base policy, in a carried store too."""
    return name.rpartition(".")[2].startswith(RECORDED)


def continued(name: str, stored: Stored, steps: int) -> Stored:
    """A success of the stage ``name``, which had so many ``steps``, as the next stage counts and names it."""
    return Stored(f"{name}.{stored.name}", stored.step - steps)


class ReplayBuffer:
    """The buffer, its rule and its random generator."""

    def __init__(self, config: ReplayConfig, seed: int) -> None:
        self.config = config
        self.random = random.Random(seed)
        self.tasks: dict[str, deque[Stored]] = {}

    def __len__(self) -> int:
        return sum(len(queue) for queue in self.tasks.values())

    def failed(self, scores: Sequence[float]) -> bool:
        """True if a group with these task scores is one that replay repairs."""
        if not scores:
            return False
        return (
            statistics.pstdev(scores) < self.config.trigger_std_below
            and statistics.fmean(scores) < self.config.trigger_mean_below
        )

    def repairs(self, group: Group) -> bool:
        """True if this group would get a stored success back. A lone rollout (the others were lost) does not:
        nothing would be left that the success is better than."""
        stored = self.config.enabled and bool(self.tasks.get(group.task))
        return stored and len(group.scores) > 1 and self.failed(group.scores)

    def plan(self, groups: Sequence[Group]) -> ReplayPlan:
        """Decide one step. Draws from the random generator; the buffer itself stays unchanged.

        With ``enabled: false`` nothing is swapped, stored or drawn.
        """
        plan = ReplayPlan()
        for index, group in enumerate(groups):
            if not self.failed(group.scores):
                continue
            plan.failed_groups += 1
            if self.repairs(group):
                chosen = self.random.choice(self.tasks[group.task])
                first = self.config.replaced_index == "first"
                rollout = 0 if first else self.random.randrange(len(group.scores))
                plan.swaps.append(Swap(index, rollout, chosen))
        if self.config.enabled:
            plan.store = [
                (index, rollout)
                for index, group in enumerate(groups)
                for rollout, score in enumerate(group.scores)
                if score > self.config.success_above
            ]
        return plan

    def store(self, task: str, stored: Stored) -> Stored | None:
        """Append a success; returns the one that falls out, if any."""
        queue = self.tasks.setdefault(task, deque())
        queue.append(stored)
        return queue.popleft() if len(queue) > self.config.capacity_per_task else None

    def names(self) -> set[str]:
        return {stored.name for queue in self.tasks.values() for stored in queue}

    def state(self) -> dict[str, Any]:
        """Buffer and random generator as JSON."""
        version, numbers, gauss = self.random.getstate()
        return {
            "schema_version": SCHEMA_VERSION,
            "random": [version, list(numbers), gauss],
            "tasks": {task: [asdict(stored) for stored in queue] for task, queue in self.tasks.items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what ``state`` returned. Raises ValueError for any other schema."""
        if state.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"replay state of schema {state.get('schema_version')}, not {SCHEMA_VERSION}")
        version, numbers, gauss = state["random"]
        self.random.setstate((version, tuple(numbers), gauss))
        self.tasks = {
            task: deque(Stored(**entry) for entry in queue) for task, queue in state["tasks"].items()
        }
