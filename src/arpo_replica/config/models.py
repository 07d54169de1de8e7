"""The configuration of a study: one typed model, the only source of schema, defaults and docs.

A study is one YAML file under ``configs/``. Unknown keys are refused. The docstring under a field is
its documentation (``configs/README.md`` is generated from here).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator


class Section(BaseModel):
    """A mapping whose keys are closed."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, validate_default=True)


Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]


class DesktopConfig(Section):
    """Where the policy acts."""

    provider: Literal["process"] = "process"
    """`process`: Xvfb, window manager, Chromium and guest server in a bubblewrap sandbox, no Docker."""
    screen: tuple[Positive, Positive] = (1920, 1080)
    """Width and height in pixels."""
    count: Positive = 4
    """Desktops that run at once."""
    isolation: Literal["namespace", "browser"] = "namespace"
    """`namespace`: own network, process and file-system namespaces (bubblewrap). `browser`: for machines
    that forbid user namespaces; only Chromium's own rules keep it off the network."""
    memory_mb: Positive = 1500
    """A desktop that takes more is stopped; its episode is an env_error."""
    disk_mb: Positive = 512
    """Size of a desktop's home and /tmp together, in memory."""
    start_timeout_s: Positive = 60
    """A desktop not ready by then counts as an env_error."""
    act_timeout_s: Positive = 15
    """Longest time that one action or screenshot may take."""
    settle_ms: Annotated[int, Field(ge=0)] = 400
    """Longest wait after an action for the screen to change and come to rest; usually it takes 30."""


class TasksConfig(Section):
    """Which tasks exist and which are used where."""

    root: Path = Path("data/tasks")
    """Folder of task files, `{domain}/{id}.json`, in OSWorld's schema."""
    splits: dict[str, Path] = Field(min_length=1)
    """Name of a split -> its list under `data/splits`."""


class NanoConfig(Section):
    """The small policy that is built here (rule `build_nano_model`)."""

    demonstrations: Positive = 1200
    """Episodes that the scripted expert records in the real desktop."""
    seed: int = 0
    """Seed of demonstrations, weights and training order."""
    epochs: Positive = 2
    """Passes of supervised learning over the demonstrations; three make a better base policy than two."""
    learning_rate: float = Field(default=4e-3, gt=0)
    """Peak learning rate of supervised learning (AdamW's; Muon's is 2.5 times this)."""
    batch_size: Positive = 32
    """Demonstrations per update."""
    hidden_size: Positive = 192
    """Width of the language model; a multiple of 64."""
    layers: Positive = 4
    """Depth of the language model."""
    vision_hidden_size: Positive = 128
    """Width of the vision tower; a multiple of 64."""
    vision_layers: Positive = 1
    """Depth of the vision tower."""
    vocabulary: Annotated[int, Field(ge=400)] = 1024
    """Largest vocabulary: special tokens, bytes, coordinates, phrases, words."""


class PolicyConfig(Section):
    """How the policy sees the screen and how it is asked."""

    model: Literal["nano"] | str = "nano"
    """`nano` (built here) or a local folder in Hugging Face format."""
    endpoint: str | None = None
    """URL of an OpenAI-compatible server that already serves the base model; none is started then."""
    prompt: Literal["uitars"] = "uitars"
    """`uitars`: COMPUTER_USE_DOUBAO of the package `ui-tars`."""
    language: str = "English"
    """Language of the policy's thoughts, as the prompt asks for it."""
    coordinates: Literal["absolute", "relative_1000"] = "absolute"
    """`absolute`: pixels of the resized image (UI-TARS-1.5); `relative_1000`: 0-1000 (UI-TARS)."""
    min_pixels: Positive = 100 * 28 * 28
    """Smallest image the policy sees; smaller screenshots are enlarged."""
    max_pixels: Positive = 2_116_800
    """Largest image the policy sees; larger screenshots are reduced (ARPO's scripts: 2,116,800)."""
    max_images: Positive = 15
    """Screenshots kept in the history, the newest ones."""
    max_steps: Positive = 15
    """Steps of an episode (ARPO §4.1: 15)."""
    max_new_tokens: Positive = 256
    """Longest reply, in tokens."""
    max_model_len: Positive = 65_536
    """Longest conversation, in tokens (ARPO: 64K)."""


class ServingConfig(Section):
    """vLLM as started for rollouts (training configures its own through verl)."""

    gpu_memory_utilization: Fraction = 0.85
    """Share of GPU memory for vLLM; without a GPU it has no effect."""
    cpu_kv_cache_gib: Positive = 1
    """Size of the KV cache of vLLM's CPU build, GiB."""
    start_timeout_s: Positive = 600
    """vLLM not ready by then fails the job."""
    max_num_seqs: Positive = 16
    """Requests that vLLM runs at once."""
    enforce_eager: bool = True
    """No CUDA graphs or compilation: faster start, slower tokens."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the weights; `auto`: float32 on a CPU, the model's own on a GPU."""


class RolloutConfig(Section):
    """How episodes are collected."""

    env_error_retries: Annotated[int, Field(ge=0)] = 2
    """Times an episode is tried again on a fresh desktop after an environment failure."""
    episode_timeout_s: Positive = 600
    """An episode that takes longer is an env_error."""


class ReplayConfig(Section):
    """Experience replay (ARPO §3.5; released code: verl/trainer/replay_buffer.py, ray_trainer.py)."""

    enabled: bool = False
    """The switch that the released code lacks."""
    capacity_per_task: Positive = 8
    """Successes kept per task, first in first out."""
    success_above: Fraction = 0.1
    """Task score above which a trajectory is stored (released code: 0.1)."""
    trigger_mean_below: Fraction = 0.2
    """A group is replaced in only if its mean task score is below this ..."""
    trigger_std_below: Fraction = 0.05
    """... and its population standard deviation below this (released code: 0.2 and 0.05)."""
    replaced_index: Literal["first", "random"] = "first"
    """Which rollout of a failed group gives way: `random` (paper §3.5) or `first` (released code)."""


class StageConfig(Section):
    """One stage of training, on one split, from the checkpoint of the stage before."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    """Name of the stage; appears in paths."""
    split: str
    """Split that is trained on."""
    steps: Positive
    """Updates (verl steps)."""


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
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature of training rollouts (ARPO: 1.0)."""
    format_weight: float = Field(default=1.0, ge=0)
    """Weight of the -1 for an unparsable reply (paper eq. 2: 1.0; released code: 0.5)."""
    save_every: Positive = 8
    """Steps between checkpoints (ARPO: 8); the last step is always saved."""
    keep_checkpoints: Positive = 2
    """Checkpoints kept per stage for resuming."""
    stall_timeout_s: Positive = 900
    """No progress for so long fails the job with a dump of its state."""
    replay: ReplayConfig = ReplayConfig()
    """Experience replay."""
    verl: dict[str, Any] = Field(default_factory=dict)
    """Further verl overrides, `dotted.key: value`, applied last."""


class EvaluationConfig(Section):
    """Which checkpoints are measured, where and how often."""

    splits: list[str] = Field(min_length=1)
    """Splits that every arm is evaluated on."""
    trials: Positive = 1
    """Episodes per task."""
    temperature: float = Field(default=0.6, ge=0)
    """Sampling temperature (paper §4.1: 0.6)."""
    top_p: Fraction = 1.0
    """Nucleus sampling."""
    success_above: Fraction = 0.5
    """Hard score above which an episode is a success."""


class ReportConfig(Section):
    """The page (`reports/{study}/index.html`)."""

    screenshots_mb: float = Field(default=12, ge=0)
    """Most that the page's screenshots may take, in MB; the page says which episodes have none."""
    screenshot_width: Positive = 960
    """Wider screenshots are reduced to this width, in pixels."""


class StudyConfig(Section):
    """A study: everything that decides its result."""

    study: str = Field(pattern=r"^[a-z0-9_]+$")
    """Name of the study; results go to `results/{study}`."""
    size: Literal["nano", "2b", "7b"]
    """Size mark that every result carries."""
    seeds: list[Annotated[int, Field(ge=0)]] = Field(default=[0], min_length=1)
    """Training seeds."""
    arms: dict[str, dict[str, Any]] = Field(default={"base": {}})
    """Arm -> overrides of `training`; `base` is the untrained policy."""
    accelerator: Literal["cpu", "cuda"] = "cpu"
    """Which locked environment (envs/cpu or envs/gpu) serves and trains."""
    threads: Positive = 2
    """CPU threads of each heavy job."""
    desktop: DesktopConfig = DesktopConfig()
    """Desktops."""
    tasks: TasksConfig
    """Tasks and splits."""
    nano: NanoConfig = NanoConfig()
    """The small policy built here."""
    policy: PolicyConfig = PolicyConfig()
    """The policy."""
    serving: ServingConfig = ServingConfig()
    """vLLM for rollouts."""
    rollout: RolloutConfig = RolloutConfig()
    """Episodes."""
    training: TrainingConfig
    """GRPO and replay."""
    evaluation: EvaluationConfig
    """Evaluation."""
    report: ReportConfig = ReportConfig()
    """The page."""

    @field_validator("seeds")
    @classmethod
    def _distinct_seeds(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) != len(seeds):
            raise ValueError("a seed is listed twice")
        return seeds

    @model_validator(mode="after")
    def _names_exist(self) -> StudyConfig:
        known = set(self.tasks.splits)
        for where, names in {
            "training.stages": [stage.split for stage in self.training.stages],
            "evaluation.splits": self.evaluation.splits,
        }.items():
            for name in names:
                if name not in known:
                    raise ValueError(f"{where} names the split '{name}'; tasks.splits has {sorted(known)}")
        if self.arms.get("base"):
            raise ValueError("arms.base must be empty: it is the untrained policy")
        for arm in self.arms:
            self.recipe(arm)
        return self

    def _arm_error(self, arm: str, error: ValidationError) -> ValueError:
        first = error.errors(include_url=False)[0]
        key = ".".join(["arms", arm, *(str(part) for part in first["loc"])])
        if first["type"] == "extra_forbidden":
            return ValueError(f"unknown key '{key}'; configs/README.md lists the keys of 'training'")
        return ValueError(f"'{key}' is {first['input']!r}: {first['msg']}")

    def recipe(self, arm: str) -> TrainingConfig:
        """The training config of one arm: `training` with the arm's overrides merged in."""
        merged = merge(self.training.model_dump(), self.arms[arm])
        try:
            recipe = TrainingConfig.model_validate(merged)
        except ValidationError as error:
            raise self._arm_error(arm, error) from None
        if recipe.tasks_per_step % recipe.minibatch_tasks:
            raise ValueError(
                f"training.tasks_per_step ({recipe.tasks_per_step}) must be a multiple of "
                f"training.minibatch_tasks ({recipe.minibatch_tasks})"
            )
        return recipe

    def stage(self, name: str) -> StageConfig:
        """The stage of that name."""
        return next(stage for stage in self.training.stages if stage.name == name)


def merge(base: dict[str, Any], overlay: dict[str, Any]) -> dict[str, Any]:
    """``overlay`` laid over ``base``, mapping by mapping; lists and scalars are replaced."""
    merged = dict(base)
    for key, value in overlay.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged
