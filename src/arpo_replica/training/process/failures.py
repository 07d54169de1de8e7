"""What the end of a training's log means to its user: one sentence with the key to change."""

import re

from arpo_replica.training.job import Job

ENV_ERROR = re.compile(r"env_error in [^\n]{1,200}?attempt \d+: ([^\n]{1,300})")
"""A line of the agent loop's."""
CACHE = (
    "vLLM has no room for the KV cache of one conversation of policy.max_model_len "
    "({config.policy.max_model_len}) tokens; lower it, or raise {cache}."
)
PORT_TAKEN = r"DistNetworkError: [^\n]*EADDRINUSE"
"""verl 0.9.1 asks for a free port, closes it and binds it again a moment later
(single_controller/base/worker.py, ``_get_free_port``): what happens in between is nobody's mistake."""
FAILURES: tuple[tuple[str, str], ...] = (
    # hydra/_internal/config_loader_impl.py
    (
        r"Could not override '\+*([^'\n]+)'",
        "training.verl names '{found[1]}', which verl does not have; correct it, or write '+{found[1]}' to "
        "add a key.",
    ),
    (
        r"No space left on device",
        "The disk is full; free space below {out} and run again (training.keep_checkpoints lowers use).",
    ),
    # verl/trainer/ppo/v1/replay_buffer.py
    (
        r"selected terminal groups with no materializable trajectories",
        "Every rollout of a step was lost to environment errors{last}; mend the desktops of desktop.provider "
        "'{config.desktop.provider}' and run again.",
    ),
    # vllm/v1/worker/utils.py
    (
        r"Free memory on device \S+ \(([\d./]+) GiB\) on startup is less than desired GPU memory",
        "Less of the GPU's memory is free ({found[1]} GiB) than vLLM shall have "
        "(training.speed.rollout_memory: {recipe.speed.rollout_memory}); end what else uses the GPU "
        "(nvidia-smi) or lower the key.",
    ),
    # verl/utils/seqlen_balancing.py
    (
        r"max_token_len must be greater than the sequence length\. Got max_token_len=(\d+) and "
        r"max_seq_len=(?:tensor\()?(\d+)",
        "A trajectory has {found[2]} tokens, but a forward pass may have only {found[1]}; raise "
        "training.speed.micro_batch_tokens ({recipe.speed.micro_batch_tokens}) or training.sequence_parallel "
        "({recipe.sequence_parallel}).",
    ),
    (
        r"torch\.(?:cuda\.)?OutOfMemoryError|CUDA out of memory|CUDA error: out of memory"
        r"|CUBLAS_STATUS_ALLOC_FAILED|Cuda failure \d* ?'out of memory'",
        "The GPU's memory is full; lower training.micro_batch ({recipe.micro_batch}) or "
        "training.speed.rollout_memory ({recipe.speed.rollout_memory}), raise training.sequence_parallel "
        "({recipe.sequence_parallel}) or set training.offload, and the stage goes on; or train it anew with "
        "more training.gpus ({recipe.gpus}) or fewer policy.max_images ({config.policy.max_images}).",
    ),
    (
        r"(?:Total available|available) GPUs? [\d.]+ is less than total desired",
        "The machines have fewer GPUs than training.gpus x training.nodes ({recipe.gpus} x {recipe.nodes}); "
        "lower them.",
    ),
    (
        r"No CUDA GPUs are available|Found no NVIDIA driver|no CUDA-capable device"
        r"|Torch not compiled with CUDA|Failed to infer device type",
        "No usable GPU was found, but accelerator is '{config.accelerator}'; run on a machine with an NVIDIA "
        "GPU and driver, or set accelerator to 'cpu' (nano only).",
    ),
    (r"No available memory for the cache blocks|larger than the available KV cache memory", CACHE),
    # vllm/v1/worker/gpu_worker.py: asserts in sleep and determine_available_memory
    (
        r"Memory usage increased after sleeping|Error in memory profiling\. Initial free memory",
        "Another program on the same GPU took or gave back memory while vLLM measured its own, which vLLM "
        "does not survive; give each training GPUs of its own (CUDA_VISIBLE_DEVICES, or Slurm's gres).",
    ),
    (
        PORT_TAKEN,
        "Another program of this machine took the port that the training had chosen, as happens when several "
        "trainings start at the same moment; start it again.",
    ),
    (r"maximum number of tokens that can be stored in KV cache", CACHE),
    (
        r"max_model_len \(\d+\) is greater than the derived max_model_len",
        "policy.max_model_len ({config.policy.max_model_len}) is beyond the model's window; lower it to what "
        "max_position_embeddings in the model's config.json says.",
    ),
    (
        r"DefaultCPUAllocator: can't allocate memory|Cannot allocate memory|MemoryError"
        r"|ray\.exceptions\.OutOfMemoryError|killed due to the node running low on memory",
        "The machine's memory is full; lower training.micro_batch, desktop.count or desktop.memory_mb, or "
        "run on a machine with more.",
    ),
)
"""What a log says (regular expression) -> what to do. The first that fits counts.

None may span lines: over a log of hundreds of thousands of characters such a search does not end.
"""


def explain(log: str, job: Job, killed: int = 0) -> str | None:
    """The sentence for a known failure, None for any other.

    ``killed``: processes that the kernel ended for lack of memory meanwhile; they leave no line in a log.
    """
    config, recipe = job.config, job.recipe
    for pattern, sentence in FAILURES:
        if found := re.search(pattern, log):
            reasons = ENV_ERROR.findall(log, 0, found.start())
            last = f" (the last one: {reasons[-1].strip().rstrip('.')})" if reasons else ""
            cache = f"training.speed.rollout_memory ({recipe.speed.rollout_memory})"
            if config.accelerator == "cpu":
                cache = f"serving.cpu_kv_cache_gib ({config.serving.cpu_kv_cache_gib})"
            return sentence.format(
                config=config, recipe=recipe, out=job.out, found=found, last=last, cache=cache
            )
    return kernel_killed(killed) if killed else None


def kernel_killed(number: int) -> str:
    """The kernel's way to say that memory is full."""
    return (
        f"The kernel ended {number} process{'es' if number > 1 else ''} of this machine for lack of memory; "
        "lower training.micro_batch, desktop.count or desktop.memory_mb, or run on a machine with more."
    )
