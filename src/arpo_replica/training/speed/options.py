"""``training.speed`` with its defaults filled in, and the verl keys it becomes. Imports nothing of verl."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from arpo_replica.training.job import Job

ATTENTION = "arpo_packed"
"""Name of our attention in transformers' registry (``qwen_vl``)."""
MODULE = "arpo_replica.training.speed.qwen_vl"


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
        return cls(**values)

    @property
    def changes_model(self) -> bool:
        """True if ``qwen_vl`` has anything to do."""
        partly = 0 < self.checkpoint_share < 1
        return self.pack or self.text_log_probs or self.freeze_vision or self.compact_pixels or partly


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
    }
    if speed.changes_model:
        overrides[f"{model}.external_lib"] = MODULE
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
