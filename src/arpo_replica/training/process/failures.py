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
        f"The GPU's memory is full; lower training.micro_batch ({recipe.micro_batch}) or "
        f"training.speed.rollout_memory ({recipe.speed.rollout_memory}), raise training.sequence_parallel "
        f"({recipe.sequence_parallel}) or set training.offload, and the stage goes on; or train it anew with "
        f"more training.gpus ({recipe.gpus}) or fewer policy.max_images ({job.config.policy.max_images})."
    )


def _taken_memory(job: Job, found: re.Match[str]) -> str:
    return (
        f"Less of the GPU's memory is free ({found[1]} GiB) than vLLM shall have "
        f"(training.speed.rollout_memory: {job.recipe.speed.rollout_memory}); end what else uses the GPU "
        "(nvidia-smi) or lower the key."
    )


def _row_too_long(job: Job, found: re.Match[str]) -> str:
    return (
        f"A trajectory has {found[2]} tokens, but a forward pass may have only {found[1]}; raise "
        f"training.speed.micro_batch_tokens ({job.recipe.speed.micro_batch_tokens}) or "
        f"training.sequence_parallel ({job.recipe.sequence_parallel})."
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
        f"({job.config.policy.max_model_len}) tokens; lower it, or raise "
        + (
            f"serving.cpu_kv_cache_gib ({job.config.serving.cpu_kv_cache_gib})."
            if job.config.accelerator == "cpu"
            else f"training.speed.rollout_memory ({job.recipe.speed.rollout_memory})."
        )
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
    reasons = ENV_ERROR.findall(found.string, 0, found.start())
    last = f" (the last one: {reasons[-1].strip().rstrip('.')})" if reasons else ""
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


ENV_ERROR = re.compile(r"env_error in [^\n]{1,200}?attempt \d+: ([^\n]{1,300})")
"""A line of the agent loop's."""
FAILURES: tuple[tuple[str, Sentence], ...] = (
    # hydra/_internal/config_loader_impl.py
    (r"Could not override '\+*([^'\n]+)'", _unknown_key),
    (r"No space left on device", _disk),
    # verl/trainer/ppo/v1/replay_buffer.py
    (r"selected terminal groups with no materializable trajectories", _desktops),
    # vllm/v1/worker/utils.py
    (
        r"Free memory on device \S+ \(([\d./]+) GiB\) on startup is less than desired GPU memory",
        _taken_memory,
    ),
    # verl/utils/seqlen_balancing.py
    (
        r"max_token_len must be greater than the sequence length\. Got max_token_len=(\d+) and "
        r"max_seq_len=(?:tensor\()?(\d+)",
        _row_too_long,
    ),
    (r"torch\.(?:cuda\.)?OutOfMemoryError|CUDA out of memory|CUDA error: out of memory", _gpu_memory),
    (r"CUBLAS_STATUS_ALLOC_FAILED|Cuda failure \d* ?'out of memory'", _gpu_memory),
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
"""What a log says (regular expression) -> what to do. The first that fits counts.

None may span lines: over a log of hundreds of thousands of characters such a search does not end.
"""


def explain(log: str, job: Job, killed: int = 0) -> str | None:
    """The sentence for a known failure, None for any other.

    ``killed``: processes that the kernel ended for lack of memory meanwhile; they leave no line in a log.
    """
    for pattern, sentence in FAILURES:
        found = re.search(pattern, log)
        if found:
            return sentence(job, found)
    return kernel_killed(killed) if killed else None


def kernel_killed(number: int) -> str:
    """The kernel's way to say that memory is full."""
    return (
        f"The kernel ended {number} process{'es' if number > 1 else ''} of this machine for lack of memory; "
        "lower training.micro_batch, desktop.count or desktop.memory_mb, or run on a machine with more."
    )
