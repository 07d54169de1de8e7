"""The configuration of a study: one typed model, the only source of schema, defaults and docs.

A study is one YAML file under ``configs/``. Unknown keys are refused. The docstring under a field is
its documentation, in ``arpo explain`` and on the docs site.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from arpo_replica.config.desktop import DesktopConfig
from arpo_replica.config.policy import PolicyConfig
from arpo_replica.config.section import COMMIT, PATH_NAME, Below1, Positive, Section, Share
from arpo_replica.config.tasks import TasksConfig
from arpo_replica.config.training import StageConfig, TrainingConfig


class NanoConfig(Section):
    """The small policy that is built here (rule `build_nano_model`)."""

    demonstrations: Positive = 1200
    """Episodes that the scripted expert records in the real desktop."""
    pages: dict[str, Annotated[int, Field(ge=0)] | None] = Field(default_factory=dict)
    """MiniWoB++ page type -> its demonstrations; null: an equal share of the others. None at all: the twelve
    page types of `miniwob_train_32`, equally (docs/tasks.md)."""
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

    @model_validator(mode="after")
    def _pages_share_all(self) -> Self:
        named = [count for count in self.pages.values() if count is not None]
        if self.pages and (
            sum(named) > self.demonstrations
            or (len(named) == len(self.pages) and sum(named) != self.demonstrations)
        ):
            raise ValueError(
                f"nano.pages names {sum(named)} demonstrations, but nano.demonstrations is "
                f"{self.demonstrations}; give both the same number, or null to a page type for the rest"
            )
        return self


class ModelConfig(Section):
    """A model of `data/models` (rule `fetch_model`); without effect on `nano` and on local folders."""

    revision: str | None = Field(default=None, pattern=COMMIT)
    """Commit of the hub's repository, 40 hex digits; none: the one in `data/models/{policy.model}.json`."""
    shape_only: bool = False
    """Random weights in the same architecture, to measure speed and memory where weights cannot be had. The
    study's size must then end in `_random`, so that no result can pass as the model's."""
    tokenizer: Path | None = None
    """Folder of the tokenizer for `shape_only`; none: a small one is built here."""


class ServingConfig(Section):
    """vLLM as started for rollouts (training configures its own through verl)."""

    gpu_memory_utilization: Share = 0.85
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
    quantization: Literal["fp8", "bitsandbytes"] | None = None
    """Serve the weights reduced, for GPUs that are too small for them: those of the 7B take 9.0 GiB by `fp8`,
    6.0 by `bitsandbytes` (4 bits; slower), 15.7 as they are. The study's size must then end in `_fp8` or
    `_4bit`: its results are another policy's, and no claim of the paper is judged by them."""
    tensor_parallel: Positive = 1
    """GPUs that hold one copy of the model together, and each a share of its screenshots' encoding."""
    data_parallel: Positive = 1
    """Copies of the model, each a vLLM on GPUs of its own; episodes are spread over them, and go on with the
    others when one dies."""


class RolloutConfig(Section):
    """How episodes are collected."""

    env_error_retries: Annotated[int, Field(ge=0)] = 2
    """Times an episode is tried again on a fresh desktop after an environment failure."""
    episode_timeout_s: Positive = 600
    """An episode that takes longer is an env_error."""


class EvaluationConfig(Section):
    """Which checkpoints are measured, where and how often."""

    splits: list[str] = Field(min_length=1)
    """Splits that every arm is evaluated on."""
    trials: Positive = 1
    """Episodes per task."""
    temperature: float = Field(default=0.6, ge=0)
    """Sampling temperature (paper §4.1: 0.6)."""
    top_p: Share = 1.0
    """Nucleus sampling."""
    success_above: Below1 = 0.5
    """Hard score above which an episode is a success."""
    reasks: int = Field(default=0, ge=0)
    """Times an unparsable reply is asked for again, at temperature 1, before it ends the episode (OSWorld's
    agent for UI-TARS-1.5: 2). Training never asks again, as ARPO's."""
    call_user_waits: int = Field(default=0, ge=0)
    """So many first `call_user` of an episode are a `wait` (OSWorld's agent for UI-TARS-1.5: 3, counted over
    all tasks of a worker). In training each is FAIL, as in ARPO's."""


class ElsewhereConfig(Section):
    """A result that somebody else reports. It stands beside this study's own and is never judged."""

    arm: str
    """Arm of this study that it is about."""
    split: str
    """Split of this study that it is about."""
    successes: Annotated[int, Field(ge=0)]
    """Tasks that were solved there ..."""
    episodes: Positive
    """... of so many that were tried."""
    minutes: float | None = Field(default=None, gt=0)
    """Minutes an episode."""
    source: str
    """Who reports it, and where."""


class ReportConfig(Section):
    """The page (`reports/{study}/index.html`)."""

    screenshots_mb: float = Field(default=12, ge=0)
    """Most that the page's screenshots may take, in MB; the page says which episodes have none."""
    page_mb: float = Field(default=14.5, ge=1)
    """Most that the whole page should take, in MB; screenshots give way to text and tables."""
    screenshot_width: Positive = 960
    """Wider screenshots are reduced to this width, in pixels."""
    titles: dict[str, str] = Field(default_factory=dict)
    """Split -> what its tasks are, in a reader's words; without it the page says the split's name."""
    notes: list[str] = Field(default_factory=list)
    """Sentences of the study's author that a reader should know before believing anything."""
    elsewhere: list[ElsewhereConfig] = Field(default_factory=list)
    """Results that others report, shown beside this study's own."""
    usd_per_gpu_hour: float | None = Field(default=None, gt=0)
    """What you pay for a GPU-hour: the page then says what the measured ones cost."""
    full_screenshots: bool = False
    """Also put every screenshot that the budget leaves out of the page into `screenshots/` beside it."""
    full_trajectories: bool = False
    """`publish_report` also packs every episode in full, screenshots included."""
    published: bool = False
    """Meant for readers elsewhere: a checkout with uncommitted changes is refused, before the study starts
    and by `publish_report`, and so are results that were made in one."""


class OfflineEpisodesConfig(Section):
    """Episodes of the base policy that all offline arms learn from, and that fill the replay store of arms
    with `training.replay.preload`; collected if there is such an arm."""

    split: str | None = None
    """Split whose tasks the base policy tries; none: the split of the last stage."""
    rollouts_per_task: Positive = 8
    """Episodes per task, at `training.temperature`. For a fair comparison (paper §4.6) give offline arms as
    many rollouts as the online ones make: steps of all stages x `tasks_per_step` x `rollouts_per_task`."""


class CurveConfig(Section):
    """One learning curve."""

    arm: str
    """Arm that was trained."""
    stage: str
    """Stage of its training."""


class TargetsConfig(Section):
    """What in this study plays the parts of the paper's tables and figures (`snakemake table1` and so on)."""

    benchmark: str | None = None
    """Split of Table 1 and figure 6 (the paper: OSWorld's 369 tasks)."""
    selected: str | None = None
    """Split of the README's table and figure 1b (the paper: the 128 tasks)."""
    in_domain: str | None = None
    """Split of figure 4 that is trained on (the paper: 32 of the 128)."""
    out_of_domain: str | None = None
    """Split of figure 4 that is not trained on (the paper: the other 96)."""
    selected_curve: CurveConfig | None = None
    """Training of figure 5 on selected tasks (the paper: GRPO on the 128)."""
    full_curve: CurveConfig | None = None
    """Training of figure 5 on all tasks (the paper: GRPO on the full set)."""
    environments: list[Positive] = Field(default_factory=list)
    """Numbers of desktops at once that figure 7 measures (the paper: 8, 32, 64, 128, 256)."""

    def splits(self) -> list[str]:
        """The splits named here, each once."""
        named = (self.benchmark, self.selected, self.in_domain, self.out_of_domain)
        return list(dict.fromkeys(split for split in named if split))


GIVEN_STAGES = BASE_STAGE, RELEASED_STAGE = "base", "released"
"""Stage names of the untrained policy and of arms whose weights are given: what no stage of a study made."""


class StudyConfig(Section):
    """A study: everything that decides its result."""

    study: str = Field(pattern=r"^[a-z0-9_]+$")
    """Name of the study; results go to `results/{study}`."""
    variant: str | None = Field(default=None, pattern=r"^[a-z0-9_]+$")
    """Set by an overlay: results then go to `results/{study}_{variant}`. Names of several overlays are joined
    in their order."""
    size: Literal["nano", "2b", "7b", "2b_random", "7b_random", "2b_fp8", "7b_fp8", "2b_4bit", "7b_4bit"]
    """Size mark that every result carries; `_random`: the shape alone (`model.shape_only`); `_fp8`, `_4bit`:
    reduced weights, by `serving.quantization` or by a server elsewhere (a GGUF file of llama.cpp)."""
    seeds: list[Annotated[int, Field(ge=0)]] = Field(default=[0], min_length=1)
    """Training seeds."""
    arms: dict[str, dict[str, Any]] = Field(default={"base": {}})
    """Arm -> overrides of `training`; `base` is the untrained policy, `{weights: X}` an arm that needs none
    (`training.weights`). An overlay drops an arm with `null`."""
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
    model: ModelConfig = ModelConfig()
    """Where the policy's weights come from."""
    serving: ServingConfig = ServingConfig()
    """vLLM for rollouts."""
    rollout: RolloutConfig = RolloutConfig()
    """Episodes."""
    training: TrainingConfig = TrainingConfig()
    """GRPO and replay; a study without trained arms needs none of it."""
    offline: OfflineEpisodesConfig = OfflineEpisodesConfig()
    """Episodes for offline arms."""
    evaluation: EvaluationConfig
    """Evaluation."""
    targets: TargetsConfig = TargetsConfig()
    """Tables and figures of the paper, with this study's own splits, arms and stages."""
    report: ReportConfig = ReportConfig()
    """The page."""

    @model_validator(mode="before")
    @classmethod
    def _drop_arms(cls, raw: Any) -> Any:
        """An arm that an overlay set to null is no arm."""
        if isinstance(raw, dict) and isinstance(raw.get("arms"), dict):
            kept = {arm: overrides for arm, overrides in raw["arms"].items() if overrides is not None}
            return {**raw, "arms": kept}
        return raw

    @field_validator("arms")
    @classmethod
    def _arms_fit_into_paths(cls, arms: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for arm in arms:
            if re.fullmatch(PATH_NAME, arm) is None:
                raise ValueError(f"the arm '{arm}' must be named by lower-case letters, digits and '_'")
        return arms

    @field_validator("seeds")
    @classmethod
    def _distinct_seeds(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) != len(seeds):
            raise ValueError("a seed is listed twice")
        return seeds

    @model_validator(mode="after")
    def _pools_announce_themselves(self) -> Self:
        remote = self.desktop.remote
        if remote.slurm is not None and remote.folder is None:
            if "pools" in remote.model_fields_set:
                raise ValueError(
                    "desktop.remote.slurm starts pools that announce themselves in a folder, but "
                    "desktop.remote.pools lists URLs; remove one of the two"
                )
            remote.pools = Path("results", self.name, "pools")
        return self

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        uses = {
            "training.stages": [stage.split for stage in self.training.stages],
            "evaluation.splits": self.evaluation.splits,
            "targets": self.targets.splits(),
            "offline.split": [self.offline_split],
            "report.titles": list(self.report.titles),
            "report.elsewhere": [entry.split for entry in self.report.elsewhere],
        }
        for where, names in (
            ("training.stages", [stage.name for stage in self.training.stages]),
            ("evaluation.splits", self.evaluation.splits),
        ):
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise ValueError(f"{where} names '{twice}' twice")
        for stage in self.training.stages:
            if stage.name in GIVEN_STAGES:
                raise ValueError(
                    f"training.stages: '{stage.name}' means weights that no stage made; rename it"
                )
        self.tasks.add_made(self.name, {name for names in uses.values() for name in names})
        known = set(self.tasks.splits)
        for where, names in uses.items():
            for name in names:
                if name not in known:
                    raise ValueError(f"{where} names the split '{name}'; tasks.splits has {sorted(known)}")
        if self.arms.get("base"):
            raise ValueError("arms.base must be empty: it is the untrained policy")
        if self.model.shape_only != self.size.endswith("_random"):
            raise ValueError(
                f"model.shape_only is {str(self.model.shape_only).lower()} and size is '{self.size}': random "
                "weights need a size that ends in '_random', and the other way round"
            )
        self._check_quantization()
        if self.accelerator == "cpu" and self.serving.tensor_parallel > 1:
            raise ValueError("serving.tensor_parallel is about GPUs: with accelerator: cpu it must be 1")
        if self.training.weights is not None:
            raise ValueError("training.weights is for single arms: write arms: {NAME: {weights: ...}}")
        for arm in self.arms:
            self._check_arm(arm)
        return self

    def _check_quantization(self) -> None:
        """Refuse reduced weights whose results would not say so. Raises ValueError."""
        wanted = {None: "", "fp8": "fp8", "bitsandbytes": "4bit"}[self.serving.quantization]
        if wanted and self.accelerator == "cpu":
            raise ValueError("serving.quantization is about GPUs: with accelerator: cpu leave it out")
        mark = self.size.partition("_")[2].removeprefix("random")
        if mark != wanted and (wanted or not self.served_elsewhere):
            raise ValueError(
                f"serving.quantization is {self.serving.quantization or 'null'} and size is '{self.size}': "
                "what is served here in fp8 needs a size that ends in '_fp8', in bitsandbytes '_4bit', and "
                "the other way round"
            )

    @property
    def served_elsewhere(self) -> bool:
        """True if servers elsewhere have all weights, so that none is started here."""
        return not self.trained_arms and all(self.of_arm(arm).policy.endpoint for arm in self.given_arms)

    @property
    def plain_size(self) -> str:
        """The size without what its mark says of the weights: `7b` for `7b_fp8`."""
        return self.size.partition("_")[0]

    def _check_arm(self, arm: str) -> None:
        """Refuse an arm that cannot be trained, or that has weights and is to be. Raises ValueError."""
        weights = self.recipe(arm).weights
        if weights is not None and len(self.arms[arm]) > 1:
            other = next(key for key in self.arms[arm] if key != "weights")
            raise ValueError(f"arms.{arm} has weights, so nothing trains it: drop '{other}' there")
        if arm in self.trained_arms and not self.training.stages:
            raise ValueError(f"training.stages is empty, but the arm '{arm}' is trained; give it a stage")

    @property
    def name(self) -> str:
        """Name of the folder of results: the study's, and the variant's if there is one."""
        return self.study if self.variant is None else f"{self.study}_{self.variant}"

    def recipe(self, arm: str) -> TrainingConfig:
        """The training config of one arm: `training` with the arm's overrides merged in."""
        merged = merge(self.training.model_dump(), self.arms[arm])
        try:
            recipe = TrainingConfig.model_validate(merged)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(["arms", arm, *(str(part) for part in first["loc"])])
            if first["type"] == "extra_forbidden":
                raise ValueError(f"unknown key '{key}'; 'arpo explain training' lists the keys") from None
            raise ValueError(f"'{key}' is {first['input']!r}: {first['msg']}") from None
        if recipe.tasks_per_step % recipe.minibatch_tasks:
            raise ValueError(
                f"training.tasks_per_step ({recipe.tasks_per_step}) must be a multiple of "
                f"training.minibatch_tasks ({recipe.minibatch_tasks})"
            )
        return recipe

    @property
    def released_arms(self) -> list[str]:
        """Arms whose weights are given."""
        return [arm for arm in self.arms if self.recipe(arm).weights is not None]

    @property
    def trained_arms(self) -> list[str]:
        """Arms that a training of this study makes."""
        return [arm for arm in self.arms if arm != "base" and self.recipe(arm).weights is None]

    @property
    def offline_arms(self) -> list[str]:
        """Arms that learn from recorded episodes of the base policy."""
        return [arm for arm in self.trained_arms if self.recipe(arm).offline is not None]

    @property
    def online_arms(self) -> list[str]:
        """Arms that verl trains, with rollouts of their own."""
        return [arm for arm in self.trained_arms if self.recipe(arm).offline is None]

    def measured(self, arm: str) -> tuple[list[int], str]:
        """(seeds, stage) at which an arm is evaluated. Weights that are given depend on no seed."""
        if arm in self.trained_arms:
            return self.seeds, self.training.stages[-1].name
        return [0], BASE_STAGE if arm == "base" else RELEASED_STAGE

    @property
    def given_arms(self) -> list[str]:
        """The untrained policy and the arms whose weights are given."""
        return ["base", *self.released_arms]

    def in_part(self, role: str) -> str:
        """The arm that stands for one of the paper: that of its name, else the one with released weights."""
        released = f"{role}_{RELEASED_STAGE}"
        return released if role not in self.arms and released in self.released_arms else role

    def of_arm(self, arm: str) -> Self:
        """The study with the given weights of an arm in the place of the base policy's; itself for others."""
        weights = self.recipe(arm).weights if arm in self.arms else None
        if weights is None:
            return self
        policy = {name: getattr(weights, name) for name in ("model", "endpoint", "served_model")}
        nano = {} if weights.epochs is None else {"epochs": weights.epochs}
        return self.model_copy(
            update={
                "policy": self.policy.model_copy(update=policy),
                "model": self.model.model_copy(update={"revision": weights.revision}),
                "nano": self.nano.model_copy(update=nano),
            }
        )

    @property
    def preloading_arms(self) -> list[str]:
        """Arms whose replay store begins with recorded successes of the base policy."""
        replays = {arm: self.recipe(arm).replay for arm in self.online_arms}
        return [arm for arm, replay in replays.items() if replay.enabled and replay.preload]

    @property
    def offline_split(self) -> str:
        """Split of the recorded episodes of the base policy that offline and preloading arms learn from."""
        return self.offline.split or self.last_split

    @property
    def last_split(self) -> str:
        """Split that training ends on; without training the first that is evaluated."""
        return self.training.stages[-1].split if self.training.stages else self.evaluation.splits[0]

    @property
    def training_splits(self) -> list[str]:
        """Splits that some arm learns from, each once."""
        splits = [stage.split for stage in self.training.stages]
        recorded = [self.offline_split] if self.offline_arms or self.preloading_arms else []
        return list(dict.fromkeys([*splits, *recorded]))

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
