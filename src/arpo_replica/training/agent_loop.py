"""verl's agent loop over our desktops: the same ``run_episode`` as evaluation, inside a Ray actor.

verl makes one ``DesktopAgentLoop`` per rollout in the one process of its agent-loop worker; the pool of
desktops, tasks and parser are shared in that process (``Workplace``). The desktops themselves live in the
keeper's process, where they were started while verl was still being imported (``keeper``).

An attempt that ends in an environment error is repeated on a fresh desktop. If all attempts fail, ``run``
returns no output: in verl 0.9.1 the rollout then does not exist. Its group is normalised over the others,
and the sampler fills the batch up with rows whose response mask is empty. It is recorded as an
``env_error`` and counted, never scored.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
import traceback
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput

from arpo_replica.actions.parse import UITarsParser
from arpo_replica.errors import DesktopError, PolicyError
from arpo_replica.policy.interface import Conversation
from arpo_replica.rollout.episode import EpisodeLimits, EpisodeResult, run_episode
from arpo_replica.rollout.records import EpisodeRecord, Outcome, write_episode
from arpo_replica.tasks.model import Task
from arpo_replica.tasks.splits import load_split
from arpo_replica.training.conversation import TokenConversation
from arpo_replica.training.desktops import DesktopPool
from arpo_replica.training.job import Job, current_job
from arpo_replica.training.keeper import KeeperProvider, socket_path


class Workplace:
    """What all episodes of a process share."""

    def __init__(self, job: Job) -> None:
        self.job = job
        config = job.config
        split = load_split(config.tasks.splits[job.stage.split], config.tasks.root)
        self.tasks = {f"{task.domain}/{task.id}": task for task in split}
        self.parser = UITarsParser.of(config.policy, config.desktop.screen)
        self.limits = EpisodeLimits(
            max_steps=config.policy.max_steps,
            success_above=config.evaluation.success_above,
            timeout_s=config.rollout.episode_timeout_s,
        )
        self.pool = DesktopPool(KeeperProvider(socket_path(job), config.desktop.screen), config.desktop.count)


@lru_cache(maxsize=1)
def workplace() -> Workplace:
    """The workplace of this process."""
    return Workplace(current_job())


@dataclass(frozen=True, slots=True)
class OnePolicy:
    """A ``Policy`` that hands out one conversation, made beforehand."""

    conversation: TokenConversation

    def start(self, task: Task) -> Conversation:
        """The conversation."""
        return self.conversation


@dataclass
class Attempts:
    """One rollout: what its attempts gave."""

    task: Task
    step: int
    session: int
    started: float
    errors: list[str]
    result: EpisodeResult | None = None
    conversation: TokenConversation | None = None

    @property
    def count(self) -> int:
        """Attempts made."""
        return len(self.errors) + (self.result is not None)


class DesktopAgentLoop(AgentLoopBase):
    """One rollout."""

    async def run(
        self, sampling_params: dict[str, Any], **row: Any
    ) -> AgentLoopOutput | list[AgentLoopOutput]:
        """The trajectory of one rollout; ``[]`` if the environment failed in every attempt."""
        place = workplace()
        try:
            rollout = await self._attempt(place, sampling_params, row)
            await asyncio.to_thread(record, place.job, rollout, sampling_params)
            return self._output(place.job, rollout) if rollout.result is not None else []
        except Exception:
            # verl would log this and train on the rest of the group; the sampler stops on this file.
            path = place.job.scratch / f"crash_{os.getpid()}_{time.monotonic_ns()}.txt"
            path.write_text(traceback.format_exc())
            raise

    async def _attempt(self, place: Workplace, sampling: dict[str, Any], row: dict[str, Any]) -> Attempts:
        self._assert_mm_supported(True)
        job, policy = place.job, place.job.config.policy
        name = row["extra_info"]["task"]
        rollout = Attempts(
            task=place.tasks[name],
            step=int(row["global_steps"]),
            session=int(row["session_id"]),
            started=time.time(),
            errors=[],
        )
        for attempt in range(job.config.rollout.env_error_retries + 1):
            conversation = TokenConversation(
                self,
                rollout.task,
                sampling=sampling,
                # The arm is left out on purpose: both arms draw the same numbers.
                seed_parts=(job.seed, job.stage_name, rollout.step, name, rollout.session, attempt),
                max_new_tokens=policy.max_new_tokens,
                max_model_len=policy.max_model_len,
                language=policy.language,
            )
            try:
                async with place.pool.desktop() as desktop:
                    rollout.result = await run_episode(
                        rollout.task, desktop, OnePolicy(conversation), place.parser, place.limits
                    )
                rollout.conversation = conversation
                return rollout
            except (DesktopError, PolicyError) as error:
                rollout.errors.append(f"{type(error).__name__}: {error}")
                print(
                    f"env_error in {name}, rollout {rollout.session}, attempt {attempt + 1}: {error}",
                    file=sys.stderr,
                    flush=True,
                )
        return rollout

    def _output(self, job: Job, rollout: Attempts) -> AgentLoopOutput:
        result, conversation = rollout.result, rollout.conversation
        assert result is not None and conversation is not None
        reward = result.hard_score - job.recipe.format_weight * (result.format_errors > 0)
        split = len(conversation.ids) - len(conversation.mask)
        versions = conversation.versions or [rollout.step - 1]
        return AgentLoopOutput(
            prompt_ids=conversation.ids[:split],
            response_ids=conversation.ids[split:],
            response_mask=conversation.mask,
            response_logprobs=conversation.logprobs,
            multi_modal_data={"images": conversation.images},
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
                "arpo": {
                    "task": f"{rollout.task.domain}/{rollout.task.id}",
                    "score": float(result.hard_score),
                    "format_errors": result.format_errors,
                    "attempts": rollout.count,
                    "turns": len(result.steps),
                },
            },
        )


def record(job: Job, rollout: Attempts, sampling: dict[str, Any]) -> None:
    """Write the episode of a rollout, like those of evaluation, under the stage's directory."""
    result, task = rollout.result, rollout.task
    outcome: Outcome = "env_error" if result is None else result.outcome
    write_episode(
        job.episodes(rollout.step, rollout.session),
        EpisodeRecord(
            task_id=task.id,
            domain=task.domain,
            task_sha256=task.sha256,
            instruction=task.instruction,
            infeasible=task.infeasible,
            arm=job.arm,
            seed=job.seed,
            stage=job.stage_name,
            split=job.stage.split,
            trial=rollout.session,
            size=job.config.size,
            desktop=job.config.desktop.provider,
            checkpoint_sha256=f"{job.parent_sha256}+{rollout.step - 1}",
            sampling={key: sampling.get(key) for key in ("temperature", "top_p", "top_k")},
            outcome=outcome,
            hard_score=None if result is None else result.hard_score,
            standard_score=None if result is None else result.standard_score,
            format_errors=0 if result is None else result.format_errors,
            n_steps=0 if result is None else len(result.steps),
            attempts=rollout.count,
            errors=rollout.errors,
            final_screenshot=None if result is None else result.final_screenshot,
            started_at=rollout.started,
            duration_s=round(time.time() - rollout.started, 3),
        ),
        [] if result is None else result.steps,
        {} if result is None else result.screenshots,
    )
