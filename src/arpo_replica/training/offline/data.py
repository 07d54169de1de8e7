"""What an offline arm learns from: replies of recorded episodes, each with what the policy saw before it.

The unit is a reply, because that is what TRL's trainers of vision models take: a prompt with its screenshots
and one completion. Prompts are built where they are built for serving (``policy.prompt.build_messages``).

An episode is good if it is a success and every reply could be parsed, bad if it is a failure or was cut at
the step limit. Environment errors are neither, and neither is a success that ends in an unparsable reply.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from arpo_replica.base.errors import UserError
from arpo_replica.config.models import StudyConfig
from arpo_replica.config.policy import PolicyConfig
from arpo_replica.policy.prompt import Message, build_messages, kept_images
from arpo_replica.rollout.records import RecordedEpisode, finished_episodes, read_rollout


@dataclass(frozen=True, slots=True)
class Turn:
    """A reply, and what the policy saw before it."""

    messages: list[Message]
    """The conversation before it; image parts in the order of ``images``."""
    images: list[Path]
    """Screenshot files."""
    reply: str
    prompt_tokens: int
    """Length of the prompt as the server counted it."""
    completion_tokens: int
    """Length of the reply as the server counted it, its end token included if it has one."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one row of a data set is made of. ``rejected`` for pairs only, ``label`` for KTO only."""

    turn: Turn
    rejected: Turn | None = None
    label: bool | None = None


def read_rollouts(indexes: Sequence[Path], checkpoint_sha256: str) -> list[RecordedEpisode]:
    """All episodes beside the indexes, by task and rollout. Raises ``UserError`` for another policy's."""
    found = []
    for index in indexes:
        for directory in finished_episodes(index.parent).values():
            rollout = read_rollout(directory)
            if rollout.record.checkpoint_sha256 != checkpoint_sha256:
                raise UserError(
                    f"{directory} was not recorded by the policy that training starts from; delete "
                    f"{index.parent} and run again."
                )
            found.append(rollout)
    return sorted(found, key=lambda rollout: (rollout.task, rollout.record.trial))


def digest(rollouts: Sequence[RecordedEpisode]) -> str:
    """Identity of all that can be learnt from: tasks, outcomes, texts, screenshots."""
    total = hashlib.sha256()
    for rollout in rollouts:
        parts = [rollout.task, rollout.record.instruction, rollout.record.outcome]
        parts += [step.text for step in rollout.steps]
        for index in range(len(rollout.steps)):
            parts.append(hashlib.sha256(rollout.screenshot(index).read_bytes()).hexdigest())
        total.update("\0".join(parts).encode() + b"\1")
    return total.hexdigest()


def make_samples(
    config: StudyConfig, arm: str, seed: int, rollouts: Sequence[RecordedEpisode]
) -> list[Sample]:
    """The data set of an offline arm, in the order of its first pass.

    Raises ``UserError`` if the episodes hold nothing to learn from by the arm's method.
    """
    recipe = config.recipe(arm).offline
    assert recipe is not None
    source = random.Random(f"{recipe.method}/{seed}")

    def turns(rollout: RecordedEpisode) -> list[Turn]:
        return [turn_of(rollout, index, config.policy) for index in range(len(rollout.steps))]

    match recipe.method:
        case "rejection":
            samples = [Sample(turn) for rollout in rollouts if rollout.good for turn in turns(rollout)]
        case "dpo":
            samples = _pairs(rollouts, config.policy, recipe.pairs_per_task, source)
        case "kto":
            told = [rollout for rollout in rollouts if rollout.good or rollout.bad]
            samples = [Sample(turn, label=rollout.good) for rollout in told for turn in turns(rollout)]
            if len({sample.label for sample in samples}) < 2:
                samples = []
    if not samples:
        raise UserError(_nothing(config, arm, rollouts))
    source.shuffle(samples)
    return samples


def turn_of(rollout: RecordedEpisode, index: int, policy: PolicyConfig) -> Turn:
    """The reply number ``index`` of an episode."""
    messages = build_messages(
        rollout.record.instruction, [step.text for step in rollout.steps[:index]], policy
    )
    kept = kept_images(index + 1, policy)
    step = rollout.steps[index]
    return Turn(
        messages,
        [rollout.screenshot(i) for i in kept],
        step.text,
        step.prompt_tokens,
        step.completion_tokens,
    )


def _pairs(
    rollouts: Sequence[RecordedEpisode], policy: PolicyConfig, most: int, source: random.Random
) -> list[Sample]:
    """At most ``most`` pairs of a good and a bad episode of each task, each episode in one pair at most."""
    found = []
    for task in sorted({rollout.task for rollout in rollouts}):
        good = [rollout for rollout in rollouts if rollout.task == task and rollout.good]
        bad = [rollout for rollout in rollouts if rollout.task == task and rollout.bad]
        source.shuffle(good)
        source.shuffle(bad)
        pairs = [_parting(one, other, policy) for one, other in zip(good, bad, strict=False)]
        found += [pair for pair in pairs if pair is not None][:most]
    return found


def _parting(good: RecordedEpisode, bad: RecordedEpisode, policy: PolicyConfig) -> Sample | None:
    """The first replies in which two episodes of a task differ: both answer the same conversation.

    None if one says all that the other says: then its outcome was not the replies' doing. The screenshots
    are those of the good episode; those of the bad one may differ in pixels that no reply caused (a clock).
    """
    for index, (one, other) in enumerate(zip(good.steps, bad.steps, strict=False)):
        if one.text != other.text:
            return Sample(turn_of(good, index, policy), rejected=turn_of(bad, index, policy))
    return None


def _nothing(config: StudyConfig, arm: str, rollouts: Sequence[RecordedEpisode]) -> str:
    """Why there is no sample, in one sentence with the key to change."""
    good, bad = sum(rollout.good for rollout in rollouts), sum(rollout.bad for rollout in rollouts)
    recipe = config.recipe(arm).offline
    assert recipe is not None
    wanted = {
        "rejection": "a success",
        "dpo": "a task with both a success and a failure",
        "kto": "both successes and failures",
    }[recipe.method]
    return (
        f"The arm '{arm}' (offline.method '{recipe.method}') needs {wanted}, but of the base policy's "
        f"{len(rollouts)} episodes on '{config.offline_split}' {good} are successes and {bad} failures; "
        "raise offline.rollouts_per_task or choose another offline.split."
    )
