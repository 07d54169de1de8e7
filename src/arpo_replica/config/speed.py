"""The section `training.speed`: how the trainer computes, never what."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from arpo_replica.config.section import Fraction, Positive, Section


class SpeedConfig(Section):
    """How the trainer computes. Apart from `freeze_vision`, these keys change speed and memory alone."""

    pack: bool | None = None
    """Trajectories of a micro batch in one row without padding (verl: use_remove_padding); without it: on a
    GPU. Needs no flash-attn: torch's own kernels are used."""
    attention: Literal["flash", "cudnn"] = "flash"
    """Kernel of torch that packed rows use on a GPU."""
    text_log_probs: bool | None = None
    """Compute logits only where a text token follows: nine of ten tokens stand for images. Without it: on a
    GPU."""
    micro_batch_tokens: Positive | None = None
    """Most tokens per forward pass, in the place of `micro_batch` (verl: use_dynamic_bsz)."""
    checkpoint_share: Fraction | None = None
    """Share of the language model's layers that compute activations twice instead of keeping them; 0: none,
    the vision tower included. Without it: 1 on a GPU, 0 on a CPU."""
    freeze_vision: bool = False
    """Leave the vision tower as it is. Unlike ARPO, which trains it; then each screenshot passes the tower
    once per step, and backward passes end at the language model."""
    vision_cache_mib: Positive = 4096
    """With `freeze_vision`: memory for the features of screenshots between log-probabilities and update."""
    compact_pixels: bool | None = None
    """Carry screenshots between processes as bytes instead of floats: an eighth of the size, and the same
    numbers on arrival. Without it: on a GPU."""
    skip_log_probs: bool | None = None
    """No pass of its own for the old policy's probabilities: with one update a step they are those of the
    update's forward pass. Without it: on a GPU, if `minibatch_tasks` is `tasks_per_step`; on a CPU it saves
    nothing, because the entropy is then computed with gradients."""
    executor: Literal["uni", "mp"] | None = None
    """How vLLM runs its model during training: `uni`, in the engine's process; `mp`, in one for each GPU,
    with processed screenshots in shared memory. Without it: `uni` where `tensor_parallel` is 1."""
    named_screenshots: bool = True
    """During training, send each screenshot to vLLM once, as a file with a name; later turns give the name
    alone. Without it the history's pictures travel and are hashed again at every turn, as in verl."""
    preload: bool | None = None
    """Import the heavy packages once and fork the training's processes from there, instead of importing them
    in each; on one node alone. Without it: on a CPU. On a GPU an import already starts a thread of CUDA's
    driver (vLLM 0.24); the processes then import everything themselves, as without this key, 27 s later."""
    rollout_memory: float = Field(default=0.4, gt=0, lt=1)
    """Share of a GPU's memory for vLLM during rollouts (verl: rollout.gpu_memory_utilization)."""
