"""A stage of an arm as verl 0.9.1 overrides, whose keys stand in ``verl.yaml``. Imports nothing of verl."""

import json
import os
from pathlib import Path
from typing import Any, Literal, Self

from arpo_replica.base.errors import UserError
from arpo_replica.base.tables import filled, table_of
from arpo_replica.config.policy import PolicyConfig
from arpo_replica.config.training import SpeedConfig, TrainingConfig
from arpo_replica.policy.prompt import check_context
from arpo_replica.policy.vllm_server import graph_config, graphs, image_cache_gib, serving_dtype
from arpo_replica.training.job import Job

AGENT = "desktop"
PACKAGE = "arpo_replica.training"
ATTENTION = "arpo_packed"
"""Name of our attention in transformers' registry (``qwen_vl``)."""
ARITHMETIC = f"{PACKAGE}.arithmetic"
ADVANTAGES, CURRENT_POLICY = "episodes", "current_policy"
"""Names of our advantages and of our loss in verl's registries (``arithmetic``)."""
VERL: dict[str, dict[str, Any]] = table_of(__file__, "verl.yaml")
"""verl's keys by when they apply (``verl_overrides``), with what of the config decides them."""
AHEAD = 1
"""Batches in work beside the one that the trainer waits for (verl: num_warmup_batches)."""


HANDED_OVER = ("freeze_vision", "compact_pixels", "named_screenshots")
"""Keys of ``training.speed`` without which vLLM's features of a screenshot cannot reach the trainer."""


class Speed(SpeedConfig):
    """``training.speed`` with its defaults filled in."""

    pack: bool
    text_log_probs: bool
    checkpoint_share: float
    compact_pixels: bool
    skip_log_probs: bool
    vision_from_rollout: bool
    executor: Literal["uni", "mp"]

    @classmethod
    def of(cls, job: Job) -> Self:
        """What applies to a job: keys left open are on for a GPU and off for a CPU."""
        recipe, values = job.recipe, job.recipe.speed.model_dump()
        on_gpu = job.config.accelerator == "cuda"
        left_open = {
            **dict.fromkeys(("pack", "text_log_probs", "compact_pixels"), on_gpu),
            "checkpoint_share": 1.0 if on_gpu else 0.0,
            "skip_log_probs": on_gpu and one_update(job),
            "executor": "uni" if recipe.tensor_parallel == 1 else "mp",
        }
        filled_in = values | {key: value for key, value in left_open.items() if values[key] is None}
        if values["vision_from_rollout"] is None:
            # Features are files: of the machine on which they were made, and by one process of vLLM.
            handed = on_gpu and recipe.nodes == recipe.tensor_parallel == 1
            filled_in["vision_from_rollout"] = handed and all(filled_in[key] for key in HANDED_OVER)
        return cls(**filled_in)

    @property
    def changes_model(self) -> bool:
        """True if ``qwen_vl`` has anything to do."""
        layers = self.compile_layers or 0 < self.checkpoint_share < 1
        return self.pack or self.text_log_probs or self.freeze_vision or self.compact_pixels or layers


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
    if speed.vision_from_rollout:
        filled = Speed.of(job)
        if off := [key for key in HANDED_OVER if not getattr(filled, key)]:
            raise UserError(
                "training.speed.vision_from_rollout hands over what vLLM's vision tower made, which needs "
                f"training.speed.{off[0]}; set that to true, or drop the key."
            )
    if speed.executor == "uni" and recipe.tensor_parallel > 1:
        raise UserError(
            f"training.speed.executor is 'uni', one process for one GPU, but training.tensor_parallel is "
            f"{recipe.tensor_parallel}; drop one of the keys."
        )


LANGUAGE_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TOWER_LAYERS = {
    "qwen2_vl": ("qkv", "proj", "fc1", "fc2"),
    "qwen2_5_vl": ("qkv", "proj", "gate_proj", "up_proj", "down_proj"),
}
"""model_type -> linear layers in the blocks of its vision tower; those of its language model are the same."""


def lora_layers(job: Job, described: dict[str, Any]) -> tuple[str, ...]:
    """Layers that ``training.lora.targets`` may name. ``described``: the model's ``config.json``."""
    tower = () if job.recipe.speed.freeze_vision else TOWER_LAYERS.get(described["model_type"], ())
    return tuple(dict.fromkeys(LANGUAGE_LAYERS + tower))


def adapted_layers(job: Job) -> str:
    """What verl finds the layers with an adapter by: an expression for their whole names.

    A last part alone would take in the tower's convolution, which is a "proj" too.
    """
    lora = job.recipe.lora
    tower = "" if job.recipe.speed.freeze_vision else "|visual[.]blocks"
    every = {*LANGUAGE_LAYERS, *(name for names in TOWER_LAYERS.values() for name in names)}
    names = "|".join(sorted(every if lora is None or lora.targets == "all" else lora.targets))
    return f".*[.](language_model[.]layers{tower})[.][0-9]+[.].*[.]({names})"


def check_recipe(job: Job, tasks: int | None) -> None:
    """Refuse what verl would refuse late or accept wrongly. Raises ``UserError``.

    ``tasks``: size of the stage's split; None where it is not known yet.
    """
    recipe = job.recipe
    if tasks is not None and tasks < recipe.tasks_per_step:
        raise UserError(
            f"training.tasks_per_step is {recipe.tasks_per_step}, but the split '{job.stage.split}' has only "
            f"{tasks} tasks; lower it or train on a larger split."
        )
    rollouts = recipe.minibatch_tasks * recipe.rollouts_per_task
    if rollouts % recipe.micro_batch:
        raise UserError(
            f"training.micro_batch ({recipe.micro_batch}) must divide minibatch_tasks x rollouts_per_task "
            f"({rollouts}); change one of them."
        )
    if job.config.accelerator == "cpu" and recipe.gpus > 1:
        raise UserError(
            f"training.gpus is {recipe.gpus}, but accelerator is 'cpu', which trains in one process on each "
            "node; set it to 1 or set accelerator to 'cuda'."
        )
    gpus = recipe.gpus * recipe.nodes
    for key in ("sequence_parallel", "tensor_parallel"):
        if gpus % getattr(recipe, key):
            raise UserError(
                f"training.{key} ({getattr(recipe, key)}) must divide training.gpus x training.nodes "
                f"({gpus})."
            )
    parallel = data_parallel(job)
    if rollouts % (parallel * recipe.micro_batch):
        raise UserError(
            f"minibatch_tasks x rollouts_per_task ({rollouts}) must be a multiple of training.micro_batch x "
            f"data-parallel GPUs ({recipe.micro_batch} x {parallel}); change training.minibatch_tasks, "
            "training.rollouts_per_task, training.micro_batch or training.gpus."
        )
    if bypassed := [key for key in recipe.verl if "lora" in key or key.endswith("target_modules")]:
        raise UserError(
            f"training.verl sets {bypassed[0]}; adapters are set by training.lora (rank, alpha, targets), "
            "which also makes whole weights of them."
        )
    check_asynchrony(recipe)
    check_speed(job)
    check_context(job.config)


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


def check_window(job: Job, described: dict[str, Any] | None = None) -> None:
    """Refuse what the model itself does not allow: a longer window, heads that do not divide, other layers.

    ``described``: its ``config.json`` where the model is not here yet. Raises ``UserError``.
    """
    config = described or json.loads((job.parent_model / "config.json").read_bytes())
    targets = job.recipe.lora.targets if job.recipe.lora else "all"
    if targets != "all" and (strange := set(targets) - set(known := lora_layers(job, config))):
        raise UserError(
            f"training.lora.targets names '{min(strange)}', but the layers that can have an adapter here are "
            f"{', '.join(known)} (model_type {config['model_type']} in the model's config.json)."
        )
    config = config | (config.get("text_config") or {})
    width, rank = config.get("hidden_size"), job.recipe.lora.rank if job.recipe.lora else 0
    if width and rank > width:
        raise UserError(
            f"training.lora.rank is {rank}, but the model is only {width} wide (hidden_size); lower it."
        )
    window, heads = config.get("max_position_embeddings"), config.get("num_attention_heads")
    for key in ("sequence_parallel", "tensor_parallel"):
        parts = getattr(job.recipe, key)
        if heads and heads % parts:
            raise UserError(
                f"training.{key} ({parts}) must divide the model's {heads} attention heads "
                "(num_attention_heads in its config.json); change it."
            )
    if window and job.config.policy.max_model_len > window:
        raise UserError(
            f"policy.max_model_len is {job.config.policy.max_model_len}, but the model's window ends at "
            f"{window} tokens (max_position_embeddings in its config.json); lower the key."
        )


def data_parallel(job: Job) -> int:
    """Trainer processes that each get a part of every minibatch."""
    if job.config.accelerator == "cpu":
        return job.recipe.nodes
    return job.recipe.gpus * job.recipe.nodes // job.recipe.sequence_parallel


def verl_overrides(job: Job, *, tasks: int, data: Path, agents: Path) -> dict[str, Any]:
    """verl's keys for this attempt: the sections of ``verl.yaml`` that apply, filled in, and the user's own.

    ``tasks``: size of the split; ``data``: its parquet file; ``agents``: verl's agent-loop list. Raises
    ``UserError`` for a config that cannot be trained.
    """
    check_recipe(job, tasks)
    recipe, config, speed = job.recipe, job.config, Speed.of(job)
    cpu = config.accelerator == "cpu"
    episodes = recipe.tasks_per_step * recipe.rollouts_per_task
    concurrent = min(episodes * (2 if asynchronous(recipe) else 1), config.desktop.count)
    applies = {
        "all": True,
        "cpu": cpu,
        "cuda": not cpu,
        "dynamic_sampling": recipe.dynamic_sampling,
        "importance": recipe.importance_correction != "none",
        "kl": recipe.kl_weight > 0,
        "kl_cpu": recipe.kl_weight > 0 and cpu,
        "kl_offload": recipe.kl_weight > 0 and recipe.offload,
        "graphs": graphs(config),
        "resume": bool(job.resume_step),
        "one_node": recipe.nodes == 1,
        "one_node_cpu": recipe.nodes == 1 and cpu,
        "mp": speed.executor == "mp",
        "vision_from_rollout": speed.vision_from_rollout,
        "skip_log_probs": speed.skip_log_probs,
        "text_log_probs": speed.text_log_probs,
        "micro_batch_tokens": speed.micro_batch_tokens is not None,
        "lora": recipe.lora is not None,
        "lora_cuda": recipe.lora is not None and not cpu,
        "asynchronous": asynchronous(recipe),
    }
    connector = {"ec_connector": "FeatureConnector", "ec_role": "ec_both"}
    connector |= {"ec_connector_module_path": f"{PACKAGE}.rollout_server"}
    names = {
        "job": job,
        "recipe": recipe,
        "config": config,
        "policy": config.policy,
        "speed": speed,
        "data": data,
        "agents": agents,
        "agent": AGENT,
        "package": PACKAGE,
        "advantages": ADVANTAGES,
        "current_policy": CURRENT_POLICY,
        "attention": ATTENTION if speed.pack else "sdpa",
        "arithmetic": ARITHMETIC,
        "checkpointing": speed.checkpoint_share > 0,
        "kl": recipe.kl_weight > 0,
        "dtype": serving_dtype(config, "bfloat16"),
        "concurrent": concurrent,
        "batched_tokens": max(config.policy.max_model_len, 2048),
        "image_options": json.dumps(image_options(config.policy)),
        "image_cache_gib": image_cache_gib(config, concurrent),
        "graph_config": graph_config(concurrent),
        "loggers": ["console", "file", *recipe.loggers],
        "checkpoint": job.checkpoint(job.resume_step),
        "ray_cpus": ray_numbers(job)[1],
        "connector": json.dumps(connector),
        "layers": adapted_layers(job),
        "ahead": AHEAD,
        "versions": recipe.asynchrony.max_staleness + 1,
    }
    overrides: dict[str, Any] = {}
    for section, applied in applies.items():
        overrides |= filled(VERL[section], **names) if applied else {}
    user = {key.lstrip("+"): (key, value) for key, value in recipe.verl.items()}
    kept = {key: value for key, value in overrides.items() if key.lstrip("+") not in user}
    return {**kept, **dict(user.values())}


def draws_needed(job: Job) -> int:
    """Tasks that a stage can draw: those of its steps, of batches begun ahead, and of groups drawn again."""
    recipe = job.recipe
    again = recipe.dynamic_sampling_max if recipe.dynamic_sampling else 0
    ahead = AHEAD if asynchronous(recipe) else 0
    return recipe.tasks_per_step * (job.stage.steps + ahead) * (1 + again)


def image_options(policy: PolicyConfig) -> dict[str, int]:
    """What every image processor of a training is told, vLLM's too."""
    return {"min_pixels": policy.min_pixels, "max_pixels": policy.max_pixels}


def ray_numbers(job: Job) -> tuple[int, int]:
    """(GPUs, CPUs) that Ray is told of on each node. On a CPU one GPU stands for it, see ``platform_cpu``.

    Ray's CPUs are slots for processes; with few cores verl would wait for ever for the last of them.
    """
    if job.config.accelerator == "cpu":
        return 1, 16
    return job.recipe.gpus, max(16, os.cpu_count() or 1)


def to_arguments(overrides: dict[str, Any]) -> list[str]:
    """``key=value`` for Hydra's command line."""
    return [f"{key}={to_hydra(value)}" for key, value in overrides.items()]


def to_hydra(value: Any) -> str:
    """A value in Hydra's override grammar."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ",".join(to_hydra(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{to_hydra(item)}" for key, item in value.items()) + "}"
    text = str(value)
    # Hydra's quoted strings: backslashes count only before a quote, and a final one would hide it.
    escaped = text.replace("\\'", "\\\\'").replace("'", "\\'")
    if text.endswith("\\"):
        raise UserError(f"training.verl has the value {text!r}, which ends in a backslash; drop it.")
    return f"'{escaped}'"
