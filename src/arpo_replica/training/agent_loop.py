"""verl's agent loop over our desktops: the same ``run_episode`` as evaluation, inside a Ray actor.

verl makes one ``DesktopAgentLoop`` per rollout in the one process of its agent-loop worker; the pool of
desktops, tasks and parser are shared in that process (``Workplace``). The desktops themselves live in the
keeper's process, where they were started while verl was still being imported (``keeper``).

An attempt that ends in an environment error is repeated on a fresh desktop. If all attempts fail, the
rollout is begun again once the others of its step are through (``training.lost_rollout_refills``). If that
fails too, ``run`` returns no output: in verl 0.9.1 the rollout then does not exist. Its group is normalised
over the others, and the sampler fills the batch up with rows whose response mask is empty. It is recorded as
an ``env_error`` and counted, never scored.

A rollout gives one output for each of its token sequences (``conversation``): one, unless the history forgets
screenshots. verl hands the episode's reward to all of them and normalises over episodes.
"""

import asyncio
import logging
import os
import time
import traceback
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput

from arpo_replica.actions.parse import UITarsParser
from arpo_replica.base.errors import DesktopError, NoDesktopFree, PolicyError
from arpo_replica.config.models import StudyConfig
from arpo_replica.desktop.interface import DesktopProvider
from arpo_replica.providers.pool import DesktopPool, load_named
from arpo_replica.rollout.episode import (
    EpisodeLimits,
    EpisodeResult,
    Labels,
    ReplyParser,
    record_episode,
    run_episode,
)
from arpo_replica.rollout.records import watched
from arpo_replica.tasks.model import Task
from arpo_replica.training.conversation import TokenConversation
from arpo_replica.training.job import Job, current_job
from arpo_replica.training.metrics import SequenceFacts
from arpo_replica.training.pixels import FeatureFolder, Normalisation, carry_bytes
from arpo_replica.training.process.keeper import kept_desktops, socket_path
from arpo_replica.training.recipe import Speed, updates_within

logger = logging.getLogger(__name__)


class FirstRound:
    """The rollouts of a step that have not yet been through their attempts once; enter it for each."""

    def __init__(self) -> None:
        self.left = 0
        self.over = asyncio.Event()

    def __enter__(self) -> None:
        self.left += 1
        self.over.clear()

    def __exit__(self, *_: object) -> None:
        self.left -= 1
        if not self.left:
            self.over.set()


class Workplace:
    def __init__(self, job: Job) -> None:
        self.job = job
        config = job.config
        self.tasks = {f"{task.domain}/{task.id}": task for task in job.split.load()}
        self.parser: ReplyParser = load_named(job.parser, config)
        limits = EpisodeLimits.of(config)
        self.limits = replace(limits, timeout_s=limits.timeout_s * (updates_within(job.recipe) + 1))
        speed = Speed.of(job)
        self.bytes_only, self.named = speed.compact_pixels, speed.named_screenshots
        self.features = FeatureFolder.of(job) if speed.vision_from_rollout else None
        self.pool = DesktopPool(local_provider(job), config.desktop.count)
        self.drawn: Counter[tuple[int, str, int]] = Counter()
        """(step, task, session) -> times begun: dynamic sampling can draw a task twice in a step."""
        self.first_round: defaultdict[int, FirstRound] = defaultdict(FirstRound)
        """Step -> its rollouts that are not through yet."""


def local_provider(job: Job) -> DesktopProvider:
    """The keeper's desktops; their own where there is no keeper, on another node of the training's job."""
    if socket_path(job).exists() or job.recipe.nodes == 1:
        return kept_desktops(job)
    provider: DesktopProvider = load_named(job.provider, job.config.desktop)
    return provider


def make_parser(config: StudyConfig) -> ReplyParser:
    """The parser of UI-TARS's replies; ``Job.parser`` may name another one."""
    return UITarsParser.of(config.policy, config.desktop.screen)


@lru_cache(maxsize=1)
def workplace() -> Workplace:
    return Workplace(current_job())


@dataclass
class Attempts:
    """One rollout: what its attempts gave."""

    task: Task
    step: int
    rollout: int
    """Number of the rollout of this task in this step; from ``rollouts_per_task`` on it was drawn again."""
    started: float
    errors: list[str]
    result: EpisodeResult | None = None
    conversation: TokenConversation | None = None

    @property
    def count(self) -> int:
        return len(self.errors) + (self.result is not None)


class DesktopAgentLoop(AgentLoopBase):
    async def run(
        self, sampling_params: dict[str, Any], **row: Any
    ) -> AgentLoopOutput | list[AgentLoopOutput]:
        """The trajectory of one rollout; ``[]`` if the environment failed in every attempt."""
        place = workplace()
        if place.bytes_only:
            carry_bytes(self.processor.image_processor, Normalisation.of(place.job.parent_model))
        try:
            rollout = await self._attempt(place, sampling_params, row)
            written = time.monotonic()
            await asyncio.to_thread(record, place.job, rollout, sampling_params)
            if rollout.conversation is not None:
                rollout.conversation.seconds["record"] += time.monotonic() - written
            return make_outputs(place.job, rollout) if rollout.result is not None else []
        except Exception:
            # verl would log this and train on the rest of the group; the sampler stops on this file.
            path = place.job.scratch / f"crash_{os.getpid()}_{time.monotonic_ns()}.txt"
            path.write_text(traceback.format_exc())
            raise

    async def _attempt(self, place: Workplace, sampling: dict[str, Any], row: dict[str, Any]) -> Attempts:
        self._assert_mm_supported(True)
        job = place.job
        name, step, session = row["extra_info"]["task"], int(row["global_steps"]), int(row["session_id"])
        begun = place.drawn[step, name, session]  # so often before
        place.drawn[step, name, session] += 1
        rollout = Attempts(
            task=place.tasks[name],
            step=step,
            rollout=session + job.recipe.rollouts_per_task * begun,
            started=time.time(),
            errors=[],
        )
        attempts = job.config.rollout.env_error_retries + 1
        first = place.first_round[step]
        with first:
            await self._round(place, sampling, rollout, 0, attempts)
        for refill in range(1, job.recipe.lost_rollout_refills + 1):
            if rollout.result is None:
                await first.over.wait()
                await self._round(place, sampling, rollout, refill, attempts)
        return rollout

    async def _round(
        self, place: Workplace, sampling: dict[str, Any], rollout: Attempts, refill: int, attempts: int
    ) -> None:
        """At most so many attempts until one gives a result, which ``rollout`` then has.

        All of them draw the same numbers, as in an evaluation: a desktop that dies changes no training. A
        refill draws others, in case it was the replies that no desktop survives.
        """
        job, policy = place.job, place.job.config.policy
        name = f"{rollout.task.domain}/{rollout.task.id}"
        while attempts:
            conversation = TokenConversation(
                self,
                rollout.task,
                sampling=sampling,
                # The arm is left out on purpose: both arms draw the same numbers.
                seed_parts=(job.seed, job.stage_name, rollout.step, name, rollout.rollout, refill),
                attempt=rollout.count,
                policy=policy,
                named=place.named,
                features=place.features,
            )
            asked = time.monotonic()
            try:
                async with place.pool.desktop() as desktop:
                    conversation.seconds["wait"] += time.monotonic() - asked
                    root = job.episodes(rollout.step, rollout.rollout)
                    with watched(root, rollout.task, job.arm, rollout.rollout) as show:
                        rollout.result = await run_episode(
                            rollout.task,
                            desktop,
                            conversation,
                            place.parser,
                            place.limits,
                            show=show,
                        )
                rollout.conversation = conversation
                await asyncio.gather(*conversation.links)
                rollout.result.screenshots = {
                    name: await conversation.files[png] if png in conversation.files else png
                    for name, png in rollout.result.screenshots.items()
                }
                return
            except NoDesktopFree:
                continue  # its pool could not give it what it needs, and all others are taken: no attempt
            except (DesktopError, PolicyError) as error:
                attempts -= 1
                rollout.errors.append(f"{type(error).__name__}: {error}")
                logger.warning(
                    f"env_error in {name}, rollout {rollout.rollout}, attempt {rollout.count}: {error}"
                )


def make_outputs(job: Job, rollout: Attempts) -> list[AgentLoopOutput]:
    """The sequences of a rollout as verl takes them, in order; the last one decides the advantage."""
    result, conversation = rollout.result, rollout.conversation
    assert result is not None and conversation is not None
    reward = result.hard_score - job.recipe.format_weight * (result.format_errors > 0)
    versions = conversation.versions or [rollout.step - 1]  # with which it was begun
    facts = [
        SequenceFacts(
            task=f"{rollout.task.domain}/{rollout.task.id}",
            score=float(result.hard_score),
            format_errors=result.format_errors,
            attempts=rollout.count,
            turns=len(result.steps),
            rollout=rollout.rollout,
            step=rollout.step,
            version=min(versions),
            images=(sequence.first_image, sequence.images),
            seconds={
                **conversation.seconds,
                "reset": result.reset_s,
                "desktop": sum(step.env_s for step in result.steps),
                "evaluate": result.evaluate_s,
            },
        )
        for sequence in conversation.sequences
    ]
    return [
        AgentLoopOutput(
            prompt_ids=sequence.prompt,
            response_ids=sequence.response,
            response_mask=sequence.mask,
            response_logprobs=sequence.logprobs,
            multi_modal_data={
                "images": conversation.images[sequence.first_image : sequence.first_image + sequence.images]
            },
            reward_score=float(reward),  # set here, so verl calls no reward function
            num_turns=2 * len(result.steps),
            metrics=AgentLoopMetrics(
                generate_sequences=sum(step.model_s for step in result.steps),
                tool_calls=sum(step.env_s for step in result.steps),
            ),
            extra_fields={
                "min_global_steps": min(versions),
                "max_global_steps": max(versions),
                "turn_scores": [],
                "tool_rewards": [],
                "reward_extra_info": {"acc": float(result.hard_score)},
                **fact.to_extra_fields(),
            },
        )
        for sequence, fact in zip(conversation.sequences, facts, strict=True)
    ]


def first_version(rollout: Attempts) -> int:
    """Updates behind the weights that wrote the first reply; of a lost rollout those when it was begun."""
    versions = rollout.conversation.versions if rollout.conversation is not None else []
    return versions[0] if versions else rollout.step - 1


def record(job: Job, rollout: Attempts, sampling: dict[str, Any]) -> None:
    """Write the episode of a rollout, like those of evaluation, under the stage's directory."""
    labels = Labels(
        arm=job.arm,
        seed=job.seed,
        stage=job.stage_name,
        size=job.config.size,
        desktop=job.config.desktop.kind,
        checkpoint_sha256=f"{job.parent_sha256}+{first_version(rollout)}",
        sampling={key: sampling.get(key) for key in ("temperature", "top_p", "top_k")},
    )
    record_episode(
        job.episodes(rollout.step, rollout.rollout),
        rollout.task,
        rollout.result,
        labels,
        split=job.stage.split,
        trial=rollout.rollout,
        errors=rollout.errors,
        started_at=rollout.started,
    )
