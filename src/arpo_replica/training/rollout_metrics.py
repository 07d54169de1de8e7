"""What a step's rollouts amount to, in numbers. No torch, no verl: plain facts in, metrics out."""

import json
import math
import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, Self

from arpo_replica.config.training import TrainingConfig
from arpo_replica.training.replay import ReplayPlan

LONGEST_REASON = 300
NUMBER = re.compile(r"\d+")
SHARE_STEPS = 4
"""Steps over which the share of lost rollouts is taken: one bad step of a small batch stops nothing."""


FIELD = "arpo"
"""Key of verl's ``extra_fields`` that holds our own facts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutFacts:
    """What the agent loop knows of a rollout and verl does not."""

    task: str
    score: float
    """Task score, without the format term."""
    format_errors: int
    attempts: int
    turns: int
    rollout: int
    """Number of the rollout of this task in this step; names its recorded episode."""
    step: int
    """Step in which it was begun."""
    version: int
    """Updates behind the oldest weights that wrote some of it."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Where its time went, by part (``agent_loop.make_outputs``)."""

    def staleness(self, step: int) -> int:
        """Updates that these weights lag behind those that ``step`` updates."""
        return step - 1 - self.version


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceFacts(RolloutFacts):
    """One token sequence of a rollout, as it crosses verl from the agent loop to the sampler, and as a stored
    trajectory keeps it."""

    images: tuple[int, int]
    """(first, number) of its screenshots."""

    def to_extra_fields(self) -> dict[str, Any]:
        """For ``AgentLoopOutput.extra_fields``: plain values alone."""
        return {FIELD: {**asdict(self), "images": list(self.images)}}

    @classmethod
    def of(cls, extra_fields: Mapping[str, Any]) -> Self:
        """What ``to_extra_fields`` put there."""
        found = extra_fields[FIELD]
        return cls(**{**found, "images": tuple(found["images"])})


class RowKey(NamedTuple):
    """A row's key in TransferQueue, in the form of verl 0.9.1, by which it finds groups and rollouts too."""

    group: str
    """verl's uid of the prompt."""
    session: int
    row: int

    @classmethod
    def of(cls, key: str) -> Self:
        group, session, row = key.rsplit("_", 2)
        return cls(group, int(session), int(row))

    @property
    def episode(self) -> str:
        """What the rows of a rollout have in common."""
        return f"{self.group}_{self.session}"

    def __str__(self) -> str:
        return f"{self.episode}_{self.row}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout(RolloutFacts):
    """One trajectory of the batch."""

    session: int
    """Its place in its group."""
    keys: tuple[str, ...]
    """Its rows in TransferQueue: one for each token sequence, in order."""
    images: tuple[tuple[int, int], ...]
    """(first, number) of the screenshots of each row."""
    reward: float
    """What verl trains on: score plus weighted format term."""

    @classmethod
    def joined(
        cls, sequences: Sequence[SequenceFacts], *, session: int, keys: Sequence[str], reward: float
    ) -> Self:
        """The rollout of these sequences, in order; their facts are alike but for the screenshots."""
        facts = {field.name: getattr(sequences[-1], field.name) for field in fields(RolloutFacts)}
        images = tuple(sequence.images for sequence in sequences)
        return cls(**facts, session=session, keys=tuple(keys), images=images, reward=reward)


Replaced = dict[tuple[int, int], tuple[float, float]]
"""(group, rollout) that gave way -> (score, reward) of the replayed trajectory in its place."""


def measure(
    plan: ReplayPlan,
    groups: Sequence[Sequence[Rollout]],
    replaced: Replaced,
    *,
    step: int,
    lost: int,
    retries: int,
    refills: int,
    success_above: float,
) -> dict[str, float]:
    """The step's metrics, ``arpo/...``.

    ``*_before`` are the rollouts as they came (the curve that the released code logs as task score),
    ``*_after`` the batch that is trained on (its total reward). ``lost``: rollouts without any result;
    ``retries``: attempts after the first; ``refills``: how often a lost rollout had all of them again.
    """
    rollouts = [rollout for group in groups for rollout in group]
    after = [
        replaced.get((i, j), (rollout.score, rollout.reward))
        for i, group in enumerate(groups)
        for j, rollout in enumerate(group)
    ]
    stale = [rollout.staleness(step) for rollout in rollouts]
    ages = [step - swap.stored.step for swap in plan.swaps]
    success = [[rollout.score > success_above for rollout in group] for group in groups]
    numbers = {
        "reward_before": fmean(rollout.reward for rollout in rollouts),
        "reward_after": fmean(reward for _, reward in after),
        "score_before": fmean(rollout.score for rollout in rollouts),
        "score_after": fmean(score for score, _ in after),
        "success": fmean(float(one) for group in success for one in group),
        "unparsable": fmean(float(rollout.format_errors > 0) for rollout in rollouts),
        "turns": fmean(rollout.turns for rollout in rollouts),
        "groups": len(groups),
        "rollouts": len(rollouts),
        "sequences": sum(len(rollout.keys) for rollout in rollouts),
        "all_fail_groups": sum(not any(group) for group in success),
        "all_success_groups": sum(all(group) for group in success),
        "failed_groups": plan.failed_groups,
        "swapped_groups": len(plan.swaps),
        "varying_groups": varying(groups, replaced),
        "replay_age": fmean(ages) if ages else 0.0,
        "lost_rollouts": lost,
        "env_errors": sum(rollout.attempts - 1 for rollout in rollouts)
        + lost * (retries + 1) * (refills + 1),
        "refilled_rollouts": sum(rollout.attempts > retries + 1 for rollout in rollouts),
        "lone_groups": sum(len(group) == 1 for group in groups),
        "staleness_mean": fmean(stale),
        "staleness_max": max(stale),
        "stale_rollouts": sum(one > 0 for one in stale),
        **{
            f"seconds/{part}": fmean(rollout.seconds.get(part, 0.0) for rollout in rollouts)
            for part in sorted({part for rollout in rollouts for part in rollout.seconds})
        },
    }
    return {f"arpo/{name}": float(value) for name, value in numbers.items()}


def varying(groups: Sequence[Sequence[Rollout]], replaced: Replaced) -> int:
    """Groups whose rewards differ once replay has had its turn: only they have advantages other than 0."""
    rewards = [
        {replaced.get((i, j), (rollout.score, rollout.reward))[1] for j, rollout in enumerate(group)}
        for i, group in enumerate(groups)
    ]
    return sum(len(found) > 1 for found in rewards)


def lost_share(lost: Sequence[int], recipe: TrainingConfig) -> float:
    """Share of lost rollouts over the newest steps; ``lost``: number in each step so far, oldest first."""
    newest = lost[-SHARE_STEPS:]
    expected = len(newest) * recipe.tasks_per_step * recipe.rollouts_per_task
    return sum(newest) / expected if expected else 0.0


def too_many_lost(lost: Sequence[int], recipe: TrainingConfig, reason: str | None = None) -> str | None:
    """One sentence if the stage must stop for its desktops, else None. ``reason``: see ``common_reason``."""
    share = lost_share(lost, recipe)
    if share <= recipe.env_error_share_max:
        return None
    mostly = f" (most often: {reason})" if reason else ""
    return (
        f"{share:.0%} of the rollouts of the last {min(len(lost), SHARE_STEPS)} steps were lost to "
        f"environment errors{mostly}, more than training.env_error_share_max "
        f"({recipe.env_error_share_max:.0%}); mend what failed (the stage's episodes tell more) or raise the "
        "key, and run again: the stage goes on from its last checkpoint."
    )


def common_reason(episodes: Path) -> str | None:
    """Why most of a step's rollouts were lost, one line; reasons that differ in numbers alone are one.

    ``episodes``: the step's folder of recorded episodes.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(episodes.glob("rollout_*/*/episode.json")):
        record = json.loads(path.read_bytes())
        if record["outcome"] == "env_error" and record["errors"]:
            line = " ".join(record["errors"][-1].split())[:LONGEST_REASON].rstrip(".")
            found[NUMBER.sub("#", line)].append(line)
    return max(found.values(), key=len)[-1] if found else None


def in_updates(groups: Sequence[list[Rollout]], recipe: TrainingConfig, seed: str) -> list[list[Rollout]]:
    """The groups in the order in which the updates of a step take them, whole.

    They come sorted by task, so that the first of several updates would have the domains at the alphabetical
    beginning; then they are shuffled. A step of one update has them all: their order stays.
    """
    if recipe.minibatch_tasks == recipe.tasks_per_step:
        return list(groups)
    return random.Random(seed).sample(list(groups), len(groups))


def rows_per_update(recipe: TrainingConfig, data_parallel: int, rows: int) -> int:
    """Rows of each update of a step whose batch has ``rows``, filling included.

    As many updates as the recipe has, however many rows its episodes have. verl takes whole multiples of
    ``rollouts_per_task``, and every GPU the same number of whole micro batches.
    """
    updates = recipe.tasks_per_step // recipe.minibatch_tasks
    whole = 1 if recipe.speed.micro_batch_tokens else recipe.micro_batch
    multiple = math.lcm(recipe.rollouts_per_task, data_parallel * whole)
    return math.ceil(rows / (updates * multiple)) * multiple
