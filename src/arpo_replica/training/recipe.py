"""A stage of an arm as verl 0.9.1 overrides. Knows verl's keys; imports nothing of verl.

Where ARPO's setting has a source, the line says so (paper.md: section of the paper or file of the
released code). Keys that only serve speed or size are grouped apart.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from arpo_replica.config.models import PolicyConfig, StudyConfig
from arpo_replica.errors import UserError
from arpo_replica.training.job import Job

AGENT = "desktop"
PACKAGE = "arpo_replica.training"
VERL_VERSION = "0.9.1"


def check_recipe(job: Job, tasks: int) -> None:
    """Refuse what verl would refuse late or accept wrongly. Raises ``UserError``."""
    recipe, policy = job.recipe, job.config.policy
    if tasks < recipe.tasks_per_step:
        raise UserError(
            f"training.tasks_per_step is {recipe.tasks_per_step}, but the split '{job.stage.split}' has only "
            f"{tasks} tasks; lower it or train on a larger split."
        )
    if policy.max_images < policy.max_steps:
        raise UserError(
            f"policy.max_images ({policy.max_images}) is below policy.max_steps ({policy.max_steps}): an "
            "episode is trained on as one sequence and keeps all its screenshots; raise max_images."
        )
    rollouts = recipe.minibatch_tasks * recipe.rollouts_per_task
    if rollouts % recipe.micro_batch:
        raise UserError(
            f"training.micro_batch ({recipe.micro_batch}) must divide minibatch_tasks x rollouts_per_task "
            f"({rollouts}); change one of them."
        )


def verl_overrides(job: Job, *, tasks: int, data: Path, agents: Path) -> dict[str, Any]:
    """verl's keys for this attempt. Raises ``UserError`` for a config that cannot be trained.

    ``tasks``: size of the split; ``data``: its parquet file; ``agents``: verl's agent-loop list.
    """
    check_recipe(job, tasks)
    overrides = {
        **_data(job, data),
        **_algorithm(job),
        **_rollout(job, agents),
        **_trainer(job, tasks),
        **(_cpu(job) if job.config.accelerator == "cpu" else _cuda()),
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
        "data.max_prompt_length": policy.max_model_len,
        "data.max_response_length": policy.max_model_len,
        "data.dataloader_num_workers": 0,
        "data.shuffle": True,
        "data.seed": job.seed,
        "data.return_raw_chat": True,
        **{f"+data.mm_processor_kwargs.{key}": value for key, value in image_options(policy).items()},
    }


def image_options(policy: PolicyConfig) -> dict[str, int]:
    """What every image processor of a training is told, vLLM's too."""
    return {"min_pixels": policy.min_pixels, "max_pixels": policy.max_pixels}


def _algorithm(job: Job) -> dict[str, Any]:
    recipe = job.recipe
    actor = "actor_rollout_ref.actor"
    return {
        "algorithm.adv_estimator": "grpo",  # unbiased std, + 1e-6: as core_algos.py:138-175
        "algorithm.use_kl_in_reward": False,
        "algorithm.rollout_correction.bypass_mode": False,  # old log-probs recomputed after replacement
        f"{actor}.use_kl_loss": False,  # no reference model: paper §3, scripts
        f"{actor}.clip_ratio_low": recipe.clip_low,
        f"{actor}.clip_ratio_high": recipe.clip_high,
        f"{actor}.clip_ratio_c": recipe.dual_clip,
        f"{actor}.loss_agg_mode": "seq-mean-token-mean",  # tokens, then trajectories: paper eq. 1
        f"{actor}.entropy_coeff": 0,
        f"{actor}.grad_clip": recipe.max_grad_norm,
        f"{actor}.ppo_epochs": 1,
        f"{actor}.ppo_mini_batch_size": recipe.minibatch_tasks,
        f"{actor}.ppo_micro_batch_size_per_gpu": recipe.micro_batch,
        f"{actor}.data_loader_seed": job.seed,
        f"{actor}.fsdp_config.seed": job.seed,
        f"{actor}.optim.lr": recipe.learning_rate,
        f"{actor}.optim.weight_decay": recipe.weight_decay,
        f"{actor}.optim.lr_scheduler_type": "constant",
        f"{actor}.strategy": "fsdp2",
        f"{actor}.checkpoint.save_contents": ["model", "optimizer", "extra", "hf_model"],
        f"{actor}.checkpoint.load_contents": ["model", "optimizer", "extra"],
    }


def _rollout(job: Job, agents: Path) -> dict[str, Any]:
    recipe, config = job.recipe, job.config
    rollout = "actor_rollout_ref.rollout"
    episodes = recipe.tasks_per_step * recipe.rollouts_per_task
    concurrent = min(episodes, config.desktop.count)
    return {
        "actor_rollout_ref.model.path": str(job.parent_model),
        "actor_rollout_ref.model.use_remove_padding": False,  # wants flash-attn
        "+actor_rollout_ref.model.override_config.attn_implementation": "sdpa",
        f"{rollout}.name": "vllm",
        f"{rollout}.n": recipe.rollouts_per_task,
        f"{rollout}.temperature": recipe.temperature,
        f"{rollout}.top_p": 1.0,
        f"{rollout}.top_k": -1,
        f"{rollout}.seed": job.seed,
        f"{rollout}.dtype": rollout_dtype(job.config),
        f"{rollout}.calculate_log_probs": True,
        f"{rollout}.load_format": "dummy",  # the weights come from the trainer before the first step
        f"{rollout}.tensor_model_parallel_size": 1,
        f"{rollout}.max_model_len": config.policy.max_model_len,
        f"{rollout}.max_num_seqs": concurrent,
        f"{rollout}.max_num_batched_tokens": max(config.policy.max_model_len, 2048),
        f"{rollout}.enforce_eager": config.serving.enforce_eager,
        f"+{rollout}.limit_images": config.policy.max_images,
        f"+{rollout}.engine_kwargs.vllm.skip_mm_profiling": True,
        f"+{rollout}.engine_kwargs.vllm.worker_extension_cls": (
            f"{PACKAGE}.weight_socket.PrivateWorkerExtension"
        ),
        f"{rollout}.log_prob_micro_batch_size_per_gpu": recipe.micro_batch,
        f"{rollout}.agent.num_workers": 1,  # one process holds all desktops
        f"{rollout}.agent.default_agent_loop": AGENT,
        f"{rollout}.agent.agent_loop_config_path": str(agents),
        "reward.num_workers": 0,  # the agent loop sets the reward
    }


def rollout_dtype(config: StudyConfig) -> str:
    """float32 on a CPU, where few have fast bfloat16; else what ``serving.dtype`` says, or bfloat16."""
    if config.serving.dtype != "auto":
        return config.serving.dtype
    return "float32" if config.accelerator == "cpu" else "bfloat16"


def _trainer(job: Job, tasks: int) -> dict[str, Any]:
    recipe, steps = job.recipe, job.stage.steps
    steps_per_epoch = tasks // recipe.tasks_per_step
    resume = {"trainer.resume_mode": "disable"}
    if job.resume_step:
        path = job.checkpoint(job.resume_step)
        resume = {"trainer.resume_mode": "resume_path", "trainer.resume_from_path": str(path)}
    return {
        "hydra.run.dir": str(job.work / "logs" / "hydra"),
        "hydra.output_subdir": None,
        "trainer.project_name": job.config.study,
        "trainer.experiment_name": f"{job.arm}-{job.seed}-{job.stage_name}",
        "trainer.logger": ["console", "file"],
        "trainer.default_local_dir": str(job.work),
        "trainer.save_freq": recipe.save_every,
        "trainer.checkpoint_callback_class": f"{PACKAGE}.sampler.SaveState",
        "trainer.total_training_steps": steps,
        "trainer.total_epochs": math.ceil(steps / steps_per_epoch) + 1,
        "trainer.val_before_train": False,
        "trainer.test_freq": -1,
        "trainer.nnodes": 1,
        "trainer.n_gpus_per_node": 1,
        "trainer.v1.sampler.custom_sampler.path": f"pkg://{PACKAGE}.sampler",
        "trainer.v1.sampler.custom_sampler.name": "ReplaySampler",
        "transfer_queue.backend.SimpleStorage.num_data_storage_units": 1,
        **resume,
    }


def _cpu(job: Job) -> dict[str, Any]:
    """What a CPU needs, and what makes a small model start fast. Ray's numbers are fictions."""
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    return {
        "trainer.device": "cpu",
        f"{actor}.use_torch_compile": False,
        f"{actor}.fsdp_config.use_torch_compile": False,
        f"{actor}.fsdp_config.dtype": "float32",
        "actor_rollout_ref.model.enable_gradient_checkpointing": False,
        # Engine and worker in one process: no shared-memory queue whose ends spin on few cores.
        f"+{rollout}.engine_kwargs.vllm.distributed_executor_backend": "uni",
        f"{rollout}.free_cache_engine": False,
        f"+{rollout}.enable_sleep_mode": False,
        f"{rollout}.gpu_memory_utilization": 0.3,
        f"{rollout}.checkpoint_engine.update_weights_bucket_megabytes": 64,
        "ray_kwargs.ray_init.num_cpus": 16,
        "+ray_kwargs.ray_init.num_gpus": 1,  # stands for the CPU, see platform_cpu
        "+ray_kwargs.ray_init.include_dashboard": False,
        "+ray_kwargs.ray_init.object_store_memory": 256 * 1024**2,
    }


def _cuda() -> dict[str, Any]:
    rollout = "actor_rollout_ref.rollout"
    return {
        "trainer.device": "cuda",
        "actor_rollout_ref.model.enable_gradient_checkpointing": True,
        f"{rollout}.free_cache_engine": True,
        f"{rollout}.gpu_memory_utilization": 0.4,  # trainer and server share the card
        "+ray_kwargs.ray_init.include_dashboard": False,
    }


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
