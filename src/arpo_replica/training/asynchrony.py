"""Rollouts beside updates: when they may, and verl's keys for it. Imports nothing of verl.

verl 0.9.1 has three trainers. ``separate_async`` wants GPUs of its own for vLLM and a network between them
(NCCL); ``verl.experimental.one_step_off_policy`` and ``fully_async_policy`` likewise, and they have no custom
sampler. ``colocate_async`` is the one for a device that trainer and vLLM share: an update pauses vLLM in
mid-reply (the tokens so far are kept), the desktops finish what they are doing, and the replies go on with
the new weights.
"""

from __future__ import annotations

from typing import Any

from arpo_replica.base.errors import UserError
from arpo_replica.config.training import TrainingConfig

AHEAD = 1
"""Batches in work beside the one that the trainer waits for (verl: num_warmup_batches)."""


def asynchronous(recipe: TrainingConfig) -> bool:
    """True if rollouts outlast an update."""
    return recipe.asynchrony.mode != "sync"


def updates_within(recipe: TrainingConfig) -> int:
    """Updates that can fall into one rollout."""
    return recipe.asynchrony.max_staleness if asynchronous(recipe) else 0


def check_asynchrony(recipe: TrainingConfig) -> None:
    """Refuse what does not go together. Raises ``UserError``."""
    if asynchronous(recipe) and recipe.dynamic_sampling:
        raise UserError(
            "training.dynamic_sampling counts the groups of one step, but with training.asynchrony.mode "
            "'partial_rollout' groups belong to no single step; switch one of them off."
        )


def asynchrony_overrides(recipe: TrainingConfig) -> dict[str, Any]:
    """verl's keys; none for the synchronous mode, which is verl's default."""
    if not asynchronous(recipe):
        return {}
    sampler = "trainer.v1.sampler"
    return {
        "trainer.v1.trainer_mode": "colocate_async",
        "trainer.v1.colocate_async.num_warmup_batches": AHEAD,
        f"{sampler}.custom_sampler.path": "pkg://arpo_replica.training.async_sampler",
        f"{sampler}.custom_sampler.name": "AsyncReplaySampler",
        # Versions of the weights that a rollout may span, its first and the newest included. None is thrown
        # away: the step waits for it.
        f"{sampler}.max_off_policy_threshold": recipe.asynchrony.max_staleness + 1,
        f"{sampler}.max_off_policy_strategy": "wait",
    }
