"""What the end of a training's log means to its user: one sentence with the key to change."""

from __future__ import annotations

import re
from collections.abc import Callable

from arpo_replica.training.job import Job

Sentence = Callable[[Job, re.Match[str]], str]


def _unknown_key(job: Job, found: re.Match[str]) -> str:
    return (
        f"training.verl names '{found[1]}', which verl does not have; correct it, or write '+{found[1]}' to "
        "add a key."
    )


def _gpu_memory(job: Job, found: re.Match[str]) -> str:
    recipe = job.recipe
    return (
        f"The GPU's memory is full; lower training.micro_batch ({recipe.micro_batch}), "
        f"policy.max_model_len ({job.config.policy.max_model_len}) or policy.max_images, raise "
        f"training.sequence_parallel ({recipe.sequence_parallel}) or training.gpus ({recipe.gpus}), or set "
        "training.offload."
    )


def _main_memory(job: Job, found: re.Match[str]) -> str:
    return (
        "The machine's memory is full; lower training.micro_batch, desktop.count or desktop.memory_mb, or "
        "run on a machine with more."
    )


def _no_gpu(job: Job, found: re.Match[str]) -> str:
    return (
        f"No usable GPU was found, but accelerator is '{job.config.accelerator}'; run on a machine with an "
        "NVIDIA GPU and driver, or set accelerator to 'cpu' (nano only)."
    )


def _few_gpus(job: Job, found: re.Match[str]) -> str:
    recipe = job.recipe
    return (
        f"The machines have fewer GPUs than training.gpus x training.nodes ({recipe.gpus} x {recipe.nodes}); "
        "lower them."
    )


def _cache(job: Job, found: re.Match[str]) -> str:
    return (
        f"vLLM has no room for the KV cache of one conversation of policy.max_model_len "
        f"({job.config.policy.max_model_len}) tokens; lower it, or give vLLM more memory "
        "(training.verl: {actor_rollout_ref.rollout.gpu_memory_utilization: ...}, on a CPU "
        "serving.cpu_kv_cache_gib)."
    )


def _window(job: Job, found: re.Match[str]) -> str:
    return (
        f"policy.max_model_len ({job.config.policy.max_model_len}) is beyond the model's window; lower it to "
        "what max_position_embeddings in the model's config.json says."
    )


def _disk(job: Job, found: re.Match[str]) -> str:
    return (
        f"The disk is full; free space below {job.out} and run again (training.keep_checkpoints lowers use)."
    )


def _desktops(job: Job, found: re.Match[str]) -> str:
    last = f" (the last one: {found[1].strip().rstrip('.')})" if found[1] else ""
    return (
        f"Every rollout of a step was lost to environment errors{last}; mend the desktops of "
        f"desktop.provider '{job.config.desktop.provider}' and run again."
    )


def _shared_gpu(job: Job, found: re.Match[str]) -> str:
    return (
        "Another program on the same GPU took or gave back memory while vLLM measured its own, which vLLM "
        "does not survive; give each training GPUs of its own (CUDA_VISIBLE_DEVICES, or Slurm's gres)."
    )


def _port(job: Job, found: re.Match[str]) -> str:
    return (
        "Another program of this machine took the port that the training had chosen, as happens when several "
        "trainings start at the same moment; start it again."
    )


FAILURES: tuple[tuple[str, Sentence], ...] = (
    # hydra/_internal/config_loader_impl.py
    (r"Could not override '\+*([^'\n]+)'", _unknown_key),
    (r"No space left on device", _disk),
    # verl/trainer/ppo/v1/replay_buffer.py; the greedy beginning finds the newest of our own lines
    (
        r"(?s)(?:.*env_error in [^\n]{1,200}attempt \d+: ([^\n]{1,300}))?.*selected terminal groups with no "
        "materializable trajectories",
        _desktops,
    ),
    (r"torch\.(?:cuda\.)?OutOfMemoryError|CUDA out of memory|CUDA error: out of memory", _gpu_memory),
    (r"(?:Total available|available) GPUs? [\d.]+ is less than total desired", _few_gpus),
    (r"No CUDA GPUs are available|Found no NVIDIA driver|no CUDA-capable device", _no_gpu),
    (r"Torch not compiled with CUDA|Failed to infer device type", _no_gpu),
    (r"No available memory for the cache blocks|larger than the available KV cache memory", _cache),
    # vllm/v1/worker/gpu_worker.py: asserts in sleep and determine_available_memory
    (r"Memory usage increased after sleeping|Error in memory profiling\. Initial free memory", _shared_gpu),
    (r"DistNetworkError: [^\n]*EADDRINUSE", _port),
    (r"maximum number of tokens that can be stored in KV cache", _cache),
    (r"max_model_len \(\d+\) is greater than the derived max_model_len", _window),
    (r"DefaultCPUAllocator: can't allocate memory|Cannot allocate memory|MemoryError", _main_memory),
    (r"ray\.exceptions\.OutOfMemoryError|killed due to the node running low on memory", _main_memory),
)
"""What a log says (regular expression) -> what to do. The first that fits counts."""


def explain(log: str, job: Job) -> str | None:
    """The sentence for a known failure, None for any other."""
    for pattern, sentence in FAILURES:
        found = re.search(pattern, log)
        if found:
            return sentence(job, found)
    return None
