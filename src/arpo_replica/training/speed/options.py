"""``training.speed`` with its defaults filled in, and the verl keys it becomes. Imports nothing of verl."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from arpo_replica.base.errors import UserError
from arpo_replica.training.job import Job

ATTENTION = "arpo_packed"
"""Name of our attention in transformers' registry (``qwen_vl``)."""
MODULE = "arpo_replica.training.speed.qwen_vl"
ARITHMETIC = "arpo_replica.training.arithmetic"
ADVANTAGES, CURRENT_POLICY = "episodes", "current_policy"
"""Names of our advantages and of our loss in verl's registries (``arithmetic``)."""


@dataclass(frozen=True, slots=True)
class Speed:
    """See ``SpeedConfig``."""

    pack: bool
    attention: str
    text_log_probs: bool
    micro_batch_tokens: int | None
    checkpoint_share: float
    freeze_vision: bool
    vision_cache_mib: int
    compact_pixels: bool
    skip_log_probs: bool
    executor: str
    named_screenshots: bool
    preload: bool | None
    rollout_memory: float

    @classmethod
    def of(cls, job: Job) -> Speed:
        """What applies to a job: keys left open are on for a GPU and off for a CPU."""
        values = job.recipe.speed.model_dump()
        on_gpu = job.config.accelerator == "cuda"
        for key in ("pack", "text_log_probs", "compact_pixels"):
            values[key] = on_gpu if values[key] is None else values[key]
        if values["checkpoint_share"] is None:
            values["checkpoint_share"] = 1.0 if on_gpu else 0.0
        if values["skip_log_probs"] is None:
            values["skip_log_probs"] = on_gpu and one_update(job)
        if values["executor"] is None:
            values["executor"] = "uni" if job.recipe.tensor_parallel == 1 else "mp"
        return cls(**values)

    @property
    def changes_model(self) -> bool:
        """True if ``qwen_vl`` has anything to do."""
        partly = 0 < self.checkpoint_share < 1
        return self.pack or self.text_log_probs or self.freeze_vision or self.compact_pixels or partly


def one_update(job: Job) -> bool:
    """True if a step is one update: the policy that is updated is the old policy, too."""
    return job.recipe.minibatch_tasks == job.recipe.tasks_per_step


def check_speed(job: Job) -> None:
    """Refuse what would not compute the same. Raises ``UserError``."""
    recipe, speed = job.recipe, job.recipe.speed
    if speed.skip_log_probs and not one_update(job):
        raise UserError(
            f"training.speed.skip_log_probs takes the policy that is updated for the old one, but with "
            f"training.minibatch_tasks ({recipe.minibatch_tasks}) below tasks_per_step "
            f"({recipe.tasks_per_step}) a step has several updates, and from the second on they differ; drop "
            "the key."
        )
    if speed.executor == "uni" and recipe.tensor_parallel > 1:
        raise UserError(
            f"training.speed.executor is 'uni', one process for one GPU, but training.tensor_parallel is "
            f"{recipe.tensor_parallel}; drop one of the keys."
        )


def speed_overrides(job: Job) -> dict[str, Any]:
    """verl's keys."""
    speed = Speed.of(job)
    model, actor = "actor_rollout_ref.model", "actor_rollout_ref.actor"
    rollout = "actor_rollout_ref.rollout"
    overrides: dict[str, Any] = {
        f"{model}.use_remove_padding": speed.pack,
        f"+{model}.override_config.attn_implementation": ATTENTION if speed.pack else "sdpa",
        f"{model}.enable_gradient_checkpointing": speed.checkpoint_share > 0,
        f"{rollout}.gpu_memory_utilization": speed.rollout_memory,
        f"{model}.external_lib": ARITHMETIC,
        # verl says "mp" even for one GPU: vLLM 0.24 then pickles the screenshots of a conversation to another
        # process at every turn, 22 GB in a step of 8 x 10 at 1920x1080.
        f"+{rollout}.engine_kwargs.vllm.distributed_executor_backend": speed.executor,
    }
    if speed.executor == "mp":
        overrides[f"+{rollout}.engine_kwargs.vllm.mm_processor_cache_type"] = "shm"
    if speed.skip_log_probs:
        overrides |= {
            "algorithm.rollout_correction.bypass_mode": True,
            f"{actor}.policy_loss.loss_mode": CURRENT_POLICY,
            f"{actor}.calculate_entropy": True,  # which the pass would have reported
        }
    if speed.text_log_probs:
        overrides[f"{model}.use_fused_kernels"] = True
        overrides[f"{model}.fused_kernel_options.impl_backend"] = "torch"
        # Nothing is left to compile but the entropy of logits, which are no longer there.
        overrides[f"{actor}.use_torch_compile"] = False
        overrides[f"{actor}.fsdp_config.use_torch_compile"] = False
    if speed.micro_batch_tokens is not None:
        overrides |= {
            f"{actor}.use_dynamic_bsz": True,
            f"{actor}.ppo_max_token_len_per_gpu": speed.micro_batch_tokens,
            f"{rollout}.log_prob_use_dynamic_bsz": True,
            f"{rollout}.log_prob_max_token_len_per_gpu": speed.micro_batch_tokens,
        }
    return overrides
