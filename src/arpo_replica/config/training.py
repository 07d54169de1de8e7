"""The section `training` of a study's config."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from arpo_replica.config.offline import OfflineConfig
from arpo_replica.config.section import Below1, Fraction, Positive, Section
from arpo_replica.config.speed import SpeedConfig


class ReplayConfig(Section):
    """Experience replay (ARPO §3.5; released code: verl/trainer/replay_buffer.py, ray_trainer.py)."""

    enabled: bool = False
    """The switch that the released code lacks."""
    capacity_per_task: Positive = 8
    """Successes kept per task, first in first out."""
    success_above: Below1 = 0.1
    """Task score above which a trajectory is stored (released code: 0.1)."""
    trigger_mean_below: Fraction = 0.2
    """A group is replaced in only if its mean task score is below this ..."""
    trigger_std_below: Fraction = 0.05
    """... and its population standard deviation below this (released code: 0.2 and 0.05)."""
    replaced_index: Literal["first", "random"] = "first"
    """Which rollout of a failed group gives way: `random` (paper §3.5) or `first` (released code)."""


class AsynchronyConfig(Section):
    """Whether rollouts wait for the update. On GPUs and CPU alike trainer and vLLM share the device."""

    mode: Literal["sync", "partial_rollout"] = "sync"
    """`sync`: all rollouts of a step begin and end with the same weights (ARPO). `partial_rollout`: the
    rollouts of the next step begin beside this one's, are paused in mid-reply by the update and go on with
    the new weights (verl: trainer.v1.trainer_mode colocate_async)."""
    max_staleness: Positive = 1
    """Updates that a rollout may lag behind: a step waits for rollouts that would fall further back."""


class GatesConfig(Section):
    """What a finished stage must show before the next one starts (`stage_report.json`)."""

    loss_finite: bool = True
    """Loss, gradient norm and rewards of every step are finite numbers."""
    checkpoint_loads: bool = True
    """The last checkpoint is whole: every file in its size and readable, replay buffer included."""
    buffer_min: Annotated[int, Field(ge=0)] = 1
    """Successes in the replay buffer at the end; asked for only if replay is on and a rollout succeeded."""
    varying_groups_min: Annotated[int, Field(ge=0)] = 1
    """Groups of the stage whose rewards differ: without any, nothing was learnt from."""


class StageConfig(Section):
    """One stage of training, on one split, from the checkpoint of the stage before."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    """Name of the stage; appears in paths."""
    split: str
    """Split that is trained on."""
    steps: Positive
    """Updates (verl steps)."""
    from_base: bool = False
    """Start from the untrained policy instead of the stage before (figure 5 compares two such trainings)."""


class TrainingConfig(Section):
    """GRPO through verl. Keys that verl has under another name say so."""

    stages: list[StageConfig] = Field(min_length=1)
    """Stages in order."""
    tasks_per_step: Positive = 4
    """Groups per step (verl: data.train_batch_size)."""
    rollouts_per_task: Annotated[int, Field(ge=2)] = 8
    """Rollouts per group (verl: rollout.n); GRPO needs at least 2."""
    minibatch_tasks: Positive = 4
    """Groups per optimiser update (verl: actor.ppo_mini_batch_size)."""
    micro_batch: Positive = 4
    """Trajectories per forward pass."""
    learning_rate: float = Field(default=1e-6, gt=0)
    """AdamW (ARPO: 1e-6)."""
    lr_warmup_ratio: Fraction = 0.0
    """Share of a stage's updates over which the learning rate rises; constant afterwards."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradient clipping."""
    clip_low: Fraction = 0.2
    """Lower clip range (ARPO §4.1: 0.2)."""
    clip_high: Fraction = 0.3
    """Upper clip range (ARPO §4.1: 0.3)."""
    dual_clip: float = Field(default=3.0, gt=1)
    """Dual clip for negative advantages (released code: 3.0)."""
    kl_weight: float = Field(default=0.0, ge=0)
    """Weight of the KL divergence from the stage's first policy; 0: no reference model (ARPO)."""
    importance_correction: Literal["none", "truncated"] = "none"
    """`truncated`: each token's loss is weighted by current over behaviour probability, at most
    `importance_max`; replayed tokens keep the probabilities of the policy that sampled them. `none`: replayed
    data count as if they were new (released code)."""
    importance_max: float = Field(default=2.0, ge=1)
    """Largest weight of `importance_correction`."""
    dynamic_sampling: bool = False
    """Draw other tasks in the place of groups whose rewards are all equal (the paper argues against it). A
    failed group that replay can repair stays."""
    dynamic_sampling_max: Positive = 4
    """Most groups that one step replaces so, in multiples of `tasks_per_step`; later ones are kept."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature of training rollouts (ARPO: 1.0)."""
    format_weight: float = Field(default=1.0, ge=0)
    """Weight of the -1 for an unparsable reply (paper eq. 2: 1.0; released code: 0.5)."""
    save_every: Positive = 8
    """Steps between checkpoints (ARPO: 8); the last step is always saved."""
    keep_checkpoints: Positive = 2
    """Checkpoints kept per stage for resuming."""
    lost_rollout_refills: Annotated[int, Field(ge=0)] = 0
    """A rollout lost to environment errors is begun again so often, once the others of its step are through;
    what is lost even then is masked."""
    env_error_share_max: Fraction = 0.5
    """A larger share of lost rollouts over the last four steps stops the stage: its desktops need care."""
    gpus: Positive = 1
    """GPUs per node that train (verl: trainer.n_gpus_per_node); without effect on a CPU."""
    nodes: Positive = 1
    """Nodes that train (verl: trainer.nnodes)."""
    tensor_parallel: Positive = 1
    """GPUs that one vLLM server spans."""
    sequence_parallel: Positive = 1
    """GPUs that share one long trajectory in the update (verl: ulysses)."""
    offload: bool = False
    """Keep parameters and optimiser state in main memory while they are not used (released code: on)."""
    stall_timeout_s: Positive = 900
    """No progress for so long fails the job with a dump of its state."""
    dead_after_s: Positive = 30
    """A trainer or vLLM process that is gone for so long, while the training goes on, does the same."""
    loggers: list[Literal["tensorboard", "wandb"]] = Field(default_factory=list)
    """Further loggers of verl, beside `metrics.jsonl`: files under the stage's `checkpoints/tensorboard` or
    `wandb`. W&B stays offline unless WANDB_MODE in the environment says otherwise."""
    asynchrony: AsynchronyConfig = AsynchronyConfig()
    """Rollouts beside updates."""
    gates: GatesConfig = GatesConfig()
    """What the next stage waits for."""
    replay: ReplayConfig = ReplayConfig()
    """Experience replay."""
    offline: OfflineConfig | None = None
    """In an arm: learn from recorded episodes instead, in one training, without stages and replay."""
    speed: SpeedConfig = SpeedConfig()
    """How the trainer computes."""
    verl: dict[str, Any] = Field(default_factory=dict)
    """Further verl overrides, `dotted.key: value`, applied last."""
