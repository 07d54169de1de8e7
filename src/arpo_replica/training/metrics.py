"""What a step's rollouts amount to, in numbers, and ``metrics.jsonl`` of a stage: one object per step.

No torch, no verl: plain facts in, metrics out. ``measure`` serves the sampler, whose numbers verl logs;
``collect`` makes the file from verl's own log and the sampler's files. That is a pure function of what the
attempts left on disk, so that a resume neither loses nor repeats a step: an attempt that went on from step r
replaces every later row of the attempts before it.
"""

import json
import math
import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any, NamedTuple, Self

from arpo_replica.base.files import read_rows
from arpo_replica.base.tables import table_of
from arpo_replica.config.training import TrainingConfig
from arpo_replica.training.replay import ReplayPlan, is_recorded

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
    trained = [
        [replaced.get((i, j), (rollout.score, rollout.reward)) for j, rollout in enumerate(group)]
        for i, group in enumerate(groups)
    ]
    after = [pair for group in trained for pair in group]
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
        # Only groups whose rewards differ once replay has had its turn have advantages other than 0.
        "varying_groups": sum(len({reward for _, reward in group}) > 1 for group in trained),
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


def lost_share(lost: Sequence[int], recipe: TrainingConfig) -> float:
    """Share of lost rollouts over the newest steps; ``lost``: number in each step so far, oldest first."""
    newest = lost[-SHARE_STEPS:]
    expected = len(newest) * recipe.tasks_per_step * recipe.rollouts_per_task
    return sum(newest) / expected if expected else 0.0


def too_many_lost(lost: Sequence[int], recipe: TrainingConfig, episodes: Path) -> str | None:
    """One sentence if a stage must stop for its desktops, else None. ``episodes``: see ``common_reason``."""
    share = lost_share(lost, recipe)
    if share <= recipe.env_error_share_max:
        return None
    reason = common_reason(episodes)
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


# --- metrics.jsonl ----------------------------------------

_NAMES = table_of(__file__)
OURS: list[str] = _NAMES["ours"].split()
"""Metrics of the sampler, ``arpo/...`` in verl's log."""
COUNTS = {*OURS} - {*_NAMES["fractions"].split()}
KEYS: dict[str, str] = {name: f"arpo/{name}" for name in OURS} | _NAMES["verl"]
"""Our key -> verl's key (0.9.1)."""
DIFFERENCES = ("probability_difference_mean", "probability_difference_max", "probability_correlation")
SUMS = "actor/probs_"
"""How the keys of ``arithmetic.Differences`` begin."""
PARTS = "arpo/seconds/"
"""Before the parts of a rollout's time, means over rollouts (``measure``)."""
SECONDS: dict[str, str] = _NAMES["seconds"]


def collect(logs: Path, steps: Path) -> list[dict[str, Any]]:
    """All rows so far, by step. ``logs``: folder of ``verl_{attempt}.jsonl``; ``steps``: of step files."""
    rows: dict[int, dict[str, Any]] = {}
    for path in sorted(logs.glob("verl_*.jsonl")):
        entries = read_rows(path)
        if entries:
            first = entries[0]["step"]
            rows = {step: row for step, row in rows.items() if step < first}
        attempt = int(path.stem.rsplit("_", 1)[1])
        for entry in entries:
            rows[entry["step"]] = translate(entry["step"], attempt, entry["data"])
    for step, row in rows.items():
        details = steps / f"step_{step:06d}.json"
        if details.is_file():
            found = json.loads(details.read_bytes())
            row["tasks"], row["swaps"] = found["groups"], found["swaps"]
            if any(is_recorded(swap["name"]) for swap in found["swaps"]):
                row.update(dict.fromkeys(DIFFERENCES))  # of recorded replies nobody knows them
    return [rows[step] for step in sorted(rows)]


def translate(step: int, attempt: int, data: dict[str, Any]) -> dict[str, Any]:
    """verl's metrics of one step under our names; a metric that verl did not report is null."""
    row: dict[str, Any] = {"step": step, "attempt": attempt}
    for ours, theirs in KEYS.items():
        value = data.get(theirs)
        row[ours] = round(value) if ours in COUNTS and value is not None else value
    row |= probability_figures(data)
    row["seconds"] = {ours: data.get(theirs) for ours, theirs in SECONDS.items()}
    parts = {key.removeprefix(PARTS): value for key, value in data.items() if key.startswith(PARTS)}
    row["rollout_seconds"] = parts
    return row


def probability_figures(data: dict[str, Any]) -> dict[str, Any]:
    """What verl's pass for old probabilities would have reported, of a step without it; else nothing.

    verl averages the sums that ``arithmetic.Differences`` reports, so they are right up to a common factor.
    The entropy's mean takes in rows without effect, as 0.
    """
    sums = {key.removeprefix(SUMS): value for key, value in data.items() if key.startswith(SUMS)}
    if not sums:
        return {}
    of = SimpleNamespace(**sums)
    together = of.tokens * of.xy - of.x * of.y
    spread = (of.tokens * of.xx - of.x * of.x) * (of.tokens * of.yy - of.y * of.y)
    weighted, rows = of.weight > 0, data["arpo/rows"]
    return {
        "probability_difference_mean": of.apart / of.tokens if of.tokens else None,
        "probability_difference_max": of.difference_grew / of.first if of.first else None,
        "probability_correlation": together / math.sqrt(spread) if spread > 0 else None,
        "importance_mean": of.weight / of.tokens if weighted else None,
        "importance_max": of.weight_grew / of.first if weighted else None,
        "entropy": data["actor/entropy_loss"] * rows / max(1.0, rows - data["arpo/empty_rows"]),
    }


def unbroken(rows: list[dict[str, Any]]) -> int:
    """Number n such that the rows of steps 1 ... n are all there."""
    count = 0
    for row in rows:
        if row["step"] != count + 1:
            break
        count += 1
    return count


def to_jsonl(rows: list[dict[str, Any]]) -> bytes:
    """The rows as ``metrics.jsonl``."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
