"""The section `training` of a study's config: GRPO and replay, or an offline method (paper, figure 6)."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from arpo_replica.config.policy import WeightsConfig
from arpo_replica.config.section import Below1, Fraction, Positive, Section


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
    preload: bool = False
    """A stage that starts from the untrained policy begins with successes of that policy's own episodes on
    `offline.split` (rule `collect_offline_episodes`), as lines of the released code would that are commented
    out. Otherwise its store is empty before the first update."""
    carry: bool = False
    """A stage that goes on from another one begins with that one's store. Otherwise it begins with none."""


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
    compile_layers: bool = False
    """Let torch compile the layers of language model and vision tower, in the first step of every start. The
    same up to rounding."""
    freeze_vision: bool = False
    """Leave the vision tower as it is. Unlike ARPO, which trains it; then each screenshot passes the tower
    once per step, and backward passes end at the language model."""
    vision_cache_mib: Positive = 4096
    """With `freeze_vision`: memory for the features of screenshots between log-probabilities and update."""
    vision_from_rollout: bool | None = None
    """With `freeze_vision`: take what vLLM's vision tower made of a screenshot for the rollout instead of a
    pass of the trainer's own, by files in the scratch folder (8 MB for 1920x1080 and a 2B). Replayed
    trajectories still pass it. The same up to rounding; needs `compact_pixels` and `named_screenshots`.
    Without it: on a GPU, on one node with `tensor_parallel` 1."""
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
    in each: 100 s of a start. Without it: on one node. If a forked process cannot use the GPU, the processes
    import everything themselves."""
    rollout_memory: float = Field(default=0.4, gt=0, lt=1)
    """Share of a GPU's memory for vLLM during rollouts (verl: rollout.gpu_memory_utilization)."""


class LoraConfig(Section):
    """Train low-rank adapters on frozen weights. What is published, and what vLLM gets, are whole weights."""

    rank: Positive
    """Rank of the adapters (verl: model.lora_rank)."""
    alpha: Positive
    """The adapters' product counts alpha / rank (verl: model.lora_alpha)."""
    targets: Literal["all"] | Annotated[list[str], Field(min_length=1)] = "all"
    """Linear layers of the blocks that get an adapter, by the last part of their name, as `q_proj`, or `all`.
    The vision tower's blocks are among them unless `speed.freeze_vision` is set."""


class WandbConfig(Section):
    """How a training appears in W&B. Its group is the study, arm and seed, its name arm, seed and stage; a
    training that goes on is the same run."""

    entity: str | None = None
    """User or team. Without it: that of the environment, or W&B's default."""
    tags: list[Annotated[str, Field(pattern=r"^[^,]{1,64}$")]] = Field(default_factory=list)
    """Tags of every run."""
    notes: str = ""
    """Text of every run."""


class OfflineConfig(Section):
    """An arm that learns from recorded episodes through TRL. Set it in an arm, not in `training` itself.

    Learning rate, warm-up, weight decay, gradient clipping and how often checkpoints are saved are those of
    `training`, which the arm may override beside this section.
    """

    method: Literal["rejection", "dpo", "kto"]
    """`rejection`: supervised learning of the successes. `dpo`: pairs of a success and a failure of one task.
    `kto`: every reply, desirable if its episode was a success."""
    epochs: Positive = 1
    """Passes over the samples."""
    batch_size: Positive = 16
    """Samples (for `dpo`: pairs) per update."""
    micro_batch: Positive = 4
    """Samples per forward pass; divides `batch_size`. `kto` needs at least 2: it estimates its KL term from
    the replies of a micro batch, each under another one's prompt."""
    beta: float = Field(default=0.1, gt=0)
    """`dpo` and `kto`: how strongly the policy is kept at the base policy."""
    pairs_per_task: Positive = 1
    """`dpo`: most pairs of one task (paper §4.6: one positive and one negative)."""

    @model_validator(mode="after")
    def _batches_fit(self) -> Self:
        if self.batch_size % self.micro_batch:
            raise ValueError(
                f"batch_size ({self.batch_size}) is no multiple of micro_batch ({self.micro_batch})"
            )
        if self.method == "kto" and self.micro_batch < 2:
            raise ValueError("micro_batch must be at least 2 for the method 'kto'")
        return self


class TrainingConfig(Section):
    """GRPO through verl. Keys that verl has under another name say so."""

    stages: list[StageConfig] = Field(default_factory=list)
    """Stages in order; a study without trained arms needs none."""
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
    wandb: WandbConfig = WandbConfig()
    """With `wandb` among the loggers: names and tags."""
    asynchrony: AsynchronyConfig = AsynchronyConfig()
    """Rollouts beside updates."""
    gates: GatesConfig = GatesConfig()
    """What the next stage waits for."""
    replay: ReplayConfig = ReplayConfig()
    """Experience replay."""
    offline: OfflineConfig | None = None
    """In an arm: learn from recorded episodes instead, in one training, without stages and replay."""
    lora: LoraConfig | None = None
    """Low-rank adapters instead of all weights; memory for them alone is needed beside the model's."""
    weights: WeightsConfig | None = None
    """In an arm: no training at all, because its weights are given."""
    speed: SpeedConfig = SpeedConfig()
    """How the trainer computes."""
    verl: dict[str, Any] = Field(default_factory=dict)
    """Further verl overrides, `dotted.key: value`, applied last."""
