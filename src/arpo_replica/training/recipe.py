"""A stage of an arm as verl 0.9.1 overrides. Knows verl's keys; imports nothing of verl.

Where ARPO's setting has a source, the line says so (paper.md: section of the paper or file of the
released code). Keys that only serve speed or size are grouped apart.
"""

import json
import os
from pathlib import Path
from typing import Any, Literal, Self

from arpo_replica.base.errors import UserError
from arpo_replica.base.tables import table_of
from arpo_replica.config.policy import PolicyConfig
from arpo_replica.config.training import SpeedConfig, TrainingConfig
from arpo_replica.policy.prompt import check_context
from arpo_replica.policy.vllm_server import graph_config, graphs, image_cache_gib, serving_dtype
from arpo_replica.training.job import Job

AGENT = "desktop"
PACKAGE = "arpo_replica.training"
VERL_VERSION = "0.9.1"
ATTENTION = "arpo_packed"
"""Name of our attention in transformers' registry (``qwen_vl``)."""
ARITHMETIC = f"{PACKAGE}.arithmetic"
ADVANTAGES, CURRENT_POLICY = "episodes", "current_policy"
"""Names of our advantages and of our loss in verl's registries (``arithmetic``)."""
FIXED: dict[str, dict[str, Any]] = table_of(__file__, "verl.yaml")
"""``all``, ``cpu``, ``cuda`` -> verl's keys that no config decides and no source of ARPO speaks of."""
AHEAD = 1
"""Batches in work beside the one that the trainer waits for (verl: num_warmup_batches)."""


class Speed(SpeedConfig):
    """``training.speed`` with its defaults filled in."""

    pack: bool
    text_log_probs: bool
    checkpoint_share: float
    compact_pixels: bool
    skip_log_probs: bool
    executor: Literal["uni", "mp"]

    @classmethod
    def of(cls, job: Job) -> Self:
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
        needed = ("freeze_vision", "compact_pixels", "named_screenshots")
        if off := [key for key in needed if not getattr(filled, key)]:
            raise UserError(
                "training.speed.vision_from_rollout hands over what vLLM's vision tower made, which needs "
                f"training.speed.{off[0]}; set that to true, or drop the key."
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
    if speed.vision_from_rollout:
        connector = {"ec_connector": "FeatureConnector", "ec_role": "ec_both"}
        connector |= {"ec_connector_module_path": f"{PACKAGE}.rollout_server"}
        overrides[f"+{rollout}.engine_kwargs.vllm.ec_transfer_config"] = json.dumps(connector)
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


def lora_overrides(job: Job) -> dict[str, Any]:
    """verl's keys for adapters; nothing without them."""
    lora = job.recipe.lora
    if lora is None:
        return {}
    model, actor = "actor_rollout_ref.model", "actor_rollout_ref.actor"
    tower = "" if job.recipe.speed.freeze_vision else "|visual[.]blocks"
    every = {*LANGUAGE_LAYERS, *(name for names in TOWER_LAYERS.values() for name in names)}
    names = "|".join(sorted(every if lora.targets == "all" else lora.targets))
    return {
        f"{model}.lora_rank": lora.rank,
        f"{model}.lora_alpha": lora.alpha,
        # By the whole path: a name alone would take in the tower's convolution, which is a "proj" too.
        f"{model}.target_modules": f".*[.](language_model[.]layers{tower})[.][0-9]+[.].*[.]({names})",
        f"{model}.lora.merge": True,  # vLLM gets whole weights; adapters of the tower it would not take
        f"+{actor}.checkpoint.save_lora_only": True,  # what is frozen comes from the parent's folder again
        # Frozen weights need no more bits than their file has. The adapters stay float32 (``lora``).
        **({f"{actor}.fsdp_config.model_dtype": "bfloat16"} if job.config.accelerator == "cuda" else {}),
    }


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


def asynchrony_overrides(recipe: TrainingConfig) -> dict[str, Any]:
    """Rollouts beside updates; nothing for the synchronous mode, which is verl's default.

    verl 0.9.1 has three trainers. ``separate_async`` wants GPUs of its own for vLLM and a network between
    them (NCCL); ``verl.experimental.one_step_off_policy`` and ``fully_async_policy`` likewise, and they have
    no custom sampler. ``colocate_async`` is the one for a device that trainer and vLLM share: an update
    pauses vLLM in mid-reply (the tokens so far are kept), the desktops finish what they are doing, and the
    replies go on with the new weights.
    """
    if not asynchronous(recipe):
        return {}
    sampler = "trainer.v1.sampler"
    return {
        "trainer.v1.trainer_mode": "colocate_async",
        "trainer.v1.colocate_async.num_warmup_batches": AHEAD,
        f"{sampler}.custom_sampler.path": f"pkg://{PACKAGE}.sampler",
        f"{sampler}.custom_sampler.name": "AsyncReplaySampler",
        # Versions of the weights that a rollout may span, its first and the newest included. None is thrown
        # away: the step waits for it.
        f"{sampler}.max_off_policy_threshold": recipe.asynchrony.max_staleness + 1,
        f"{sampler}.max_off_policy_strategy": "wait",
    }


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
    """verl's keys for this attempt. Raises ``UserError`` for a config that cannot be trained.

    ``tasks``: size of the split; ``data``: its parquet file; ``agents``: verl's agent-loop list.
    """
    check_recipe(job, tasks)
    overrides = {
        **FIXED["all"],
        **FIXED[job.config.accelerator],
        **_data(job, data),
        **_algorithm(job),
        **_rollout(job, agents),
        **_trainer(job),
        **_device(job),
        **speed_overrides(job),
        **lora_overrides(job),
        **asynchrony_overrides(job.recipe),
    }
    user = {key.lstrip("+"): (key, value) for key, value in job.recipe.verl.items()}
    kept = {key: value for key, value in overrides.items() if key.lstrip("+") not in user}
    return {**kept, **dict(user.values())}


def _data(job: Job, data: Path) -> dict[str, Any]:
    policy = job.config.policy
    return {
        "data.train_files": str(data),
        "data.val_files": str(data),
        "data.train_batch_size": job.recipe.tasks_per_step,
        **({"data.gen_batch_size": 1} if job.recipe.dynamic_sampling else {}),  # exact numbers of new tasks
        "data.max_prompt_length": policy.max_model_len,
        "data.max_response_length": policy.max_model_len,
        **{f"+data.mm_processor_kwargs.{key}": value for key, value in image_options(policy).items()},
    }


def draws_needed(job: Job) -> int:
    """Tasks that a stage can draw: those of its steps, of batches begun ahead, and of groups drawn again."""
    recipe = job.recipe
    again = recipe.dynamic_sampling_max if recipe.dynamic_sampling else 0
    ahead = AHEAD if asynchronous(recipe) else 0
    return recipe.tasks_per_step * (job.stage.steps + ahead) * (1 + again)


def image_options(policy: PolicyConfig) -> dict[str, int]:
    """What every image processor of a training is told, vLLM's too."""
    return {"min_pixels": policy.min_pixels, "max_pixels": policy.max_pixels}


def _algorithm(job: Job) -> dict[str, Any]:
    recipe = job.recipe
    actor = "actor_rollout_ref.actor"
    return {
        "algorithm.adv_estimator": ADVANTAGES,  # GRPO's: unbiased std, + 1e-6: as core_algos.py:138-175
        "algorithm.use_kl_in_reward": False,
        "algorithm.rollout_correction.bypass_mode": False,  # old log-probs recomputed after replacement
        **_correction(job),
        f"{actor}.use_kl_loss": recipe.kl_weight > 0,  # no reference model: paper §4.1, scripts
        f"{actor}.kl_loss_coef": recipe.kl_weight,
        **(_reference(job) if recipe.kl_weight else {}),
        f"{actor}.clip_ratio_low": recipe.clip_low,
        f"{actor}.clip_ratio_high": recipe.clip_high,
        f"{actor}.clip_ratio_c": recipe.dual_clip,
        f"{actor}.loss_agg_mode": "seq-mean-token-mean",  # tokens, then trajectories: paper §3.1
        f"{actor}.entropy_coeff": 0,
        f"{actor}.ppo_epochs": 1,
        f"{actor}.grad_clip": recipe.max_grad_norm,
        f"{actor}.ppo_mini_batch_size": recipe.minibatch_tasks,
        f"{actor}.ppo_micro_batch_size_per_gpu": recipe.micro_batch,
        f"{actor}.data_loader_seed": job.seed,
        f"{actor}.fsdp_config.seed": job.seed,
        f"{actor}.optim.lr": recipe.learning_rate,
        f"{actor}.optim.weight_decay": recipe.weight_decay,
        f"{actor}.optim.betas": [0.9, 0.999],  # examples/config.yaml
        f"{actor}.optim.lr_warmup_steps_ratio": recipe.lr_warmup_ratio,
        f"{actor}.optim.lr_scheduler_type": "constant",
    }


def _reference(job: Job) -> dict[str, Any]:
    """The KL term and the model that it pulls to, the one that the stage began from."""
    ref = "actor_rollout_ref.ref"
    on_cpu = job.config.accelerator == "cpu"
    return {
        "actor_rollout_ref.actor.kl_loss_type": "low_var_kl",
        f"{ref}.log_prob_micro_batch_size_per_gpu": job.recipe.micro_batch,
        f"{ref}.fsdp_config.use_torch_compile": False,
        **({f"{ref}.fsdp_config.dtype": "float32"} if on_cpu else {}),
        **({f"{ref}.fsdp_config.param_offload": True} if job.recipe.offload else {}),
    }


def _correction(job: Job) -> dict[str, Any]:
    """verl's rollout correction: each token weighted by current over behaviour probability, truncated.

    The current policy's are recomputed after replay (``old_log_probs``), the behaviour policy's are those
    that vLLM reported when it sampled (``rollout_log_probs``), for replayed trajectories too.
    """
    recipe, key = job.recipe, "algorithm.rollout_correction"
    if recipe.importance_correction == "none":
        return {f"{key}.rollout_is": None}
    return {f"{key}.rollout_is": "token", f"{key}.rollout_is_threshold": recipe.importance_max}


def _rollout(job: Job, agents: Path) -> dict[str, Any]:
    recipe, config = job.recipe, job.config
    rollout = "actor_rollout_ref.rollout"
    episodes = recipe.tasks_per_step * recipe.rollouts_per_task
    concurrent = min(episodes * (2 if asynchronous(recipe) else 1), config.desktop.count)
    return {
        "actor_rollout_ref.model.path": str(job.parent_model),
        f"{rollout}.n": recipe.rollouts_per_task,
        f"{rollout}.temperature": recipe.temperature,
        f"{rollout}.seed": job.seed,
        f"{rollout}.dtype": serving_dtype(job.config, "bfloat16"),
        f"{rollout}.tensor_model_parallel_size": recipe.tensor_parallel,
        f"{rollout}.max_model_len": config.policy.max_model_len,
        f"{rollout}.max_num_seqs": concurrent,
        f"{rollout}.max_num_batched_tokens": max(config.policy.max_model_len, 2048),
        f"{rollout}.enforce_eager": config.serving.enforce_eager,
        f"+{rollout}.limit_images": config.policy.max_images,
        f"+{rollout}.engine_kwargs.vllm.mm_processor_kwargs": json.dumps(image_options(config.policy)),
        f"+{rollout}.engine_kwargs.vllm.mm_processor_cache_gb": image_cache_gib(config, concurrent),
        **(
            {f"+{rollout}.engine_kwargs.vllm.compilation_config": graph_config(concurrent)}
            if graphs(config)
            else {}
        ),
        f"{rollout}.log_prob_micro_batch_size_per_gpu": recipe.micro_batch,
        f"{rollout}.agent.default_agent_loop": AGENT,
        f"{rollout}.agent.agent_loop_config_path": str(agents),
    }


def _trainer(job: Job) -> dict[str, Any]:
    recipe, steps = job.recipe, job.stage.steps
    resume = {"trainer.resume_mode": "disable"}
    if job.resume_step:
        path = job.checkpoint(job.resume_step)
        resume = {"trainer.resume_mode": "resume_path", "trainer.resume_from_path": str(path)}
    return {
        "hydra.run.dir": str(job.work / "logs" / "hydra"),
        "trainer.project_name": job.config.name,
        "trainer.experiment_name": f"{job.arm}-{job.seed}-{job.stage_name}",
        "trainer.logger": ["console", "file", *recipe.loggers],
        "trainer.default_local_dir": str(job.work),
        "trainer.save_freq": recipe.save_every,
        "trainer.total_training_steps": steps,
        "trainer.nnodes": recipe.nodes,
        "trainer.n_gpus_per_node": recipe.gpus,
        **resume,
    }


def _device(job: Job) -> dict[str, Any]:
    if job.config.accelerator == "cpu":  # Ray's numbers are fictions
        return _ray(job, {"num_gpus": 1, "object_store_memory": 256 * 1024**2})
    fsdp = "actor_rollout_ref.actor.fsdp_config"
    return {
        f"{fsdp}.param_offload": job.recipe.offload,
        f"{fsdp}.optimizer_offload": job.recipe.offload,
        "actor_rollout_ref.actor.ulysses_sequence_parallel_size": job.recipe.sequence_parallel,
        **_ray(job, {}),
    }


def ray_numbers(job: Job) -> tuple[int, int]:
    """(GPUs, CPUs) that Ray is told of on each node. On a CPU one GPU stands for it, see ``platform_cpu``.

    Ray's CPUs are slots for processes; with few cores verl would wait for ever for the last of them.
    """
    if job.config.accelerator == "cpu":
        return 1, 16
    return job.recipe.gpus, max(16, os.cpu_count() or 1)


def _ray(job: Job, own: dict[str, Any]) -> dict[str, Any]:
    """How verl starts Ray (``own``: further numbers), or, over several nodes, that it only joins it."""
    key = "ray_kwargs.ray_init"
    if job.recipe.nodes > 1:
        return {f"{key}.num_cpus": None}
    further = {"include_dashboard": False, **own}
    return {f"{key}.num_cpus": ray_numbers(job)[1], **{f"+{key}.{k}": v for k, v in further.items()}}


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
