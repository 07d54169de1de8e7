"""The graphics processor, for configs with ``accelerator: cuda``."""

from __future__ import annotations

from pathlib import Path

from arpo_replica.config.models import StudyConfig
from arpo_replica.doctor.machine import Machine
from arpo_replica.doctor.registry import Finding, check, fail, has_models, ok, warn

DRIVER = 550
"""Oldest driver series that runs CUDA 12.4, which the locked torch and vLLM need at least."""
SERVE_GIB = {"2b": 8.0, "7b": 22.0}
TRAIN_GIB = {"2b": 40.0, "7b": 78.0}
"""Rough needs of one card: weights in bfloat16, KV cache of 64K tokens; AdamW's state when training."""
LOGIN_NODE = "none needed for --profile slurm: jobs get theirs on their node, see slurm_limits"
QUERY = (
    "nvidia-smi",
    "--query-gpu=name,driver_version,memory.total,memory.free",
    "--format=csv,noheader,nounits",
)


def is_cuda(config: StudyConfig) -> bool:
    """True if the study serves or trains on a GPU of this machine."""
    return config.accelerator == "cuda" and has_models(config)


def cards(machine: Machine) -> list[tuple[str, str, float, float]]:
    """Name, driver, total and free GiB of each card."""
    found = []
    for line in machine.run(*QUERY).out.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 4 and all(part.replace(".", "", 1).isdigit() for part in parts[2:]):
            found.append((parts[0], parts[1], float(parts[2]) / 1024, float(parts[3]) / 1024))
    return found


@check("a GPU and its driver", is_cuda)
def gpu(config: StudyConfig, machine: Machine) -> Finding:
    """No driver, too old a driver, or a container that was not given the card."""
    if machine.which("nvidia-smi") is None:
        if machine.which("sinfo") is not None:
            return warn("none on this machine", LOGIN_NODE)
        return fail(
            "no nvidia-smi",
            "install NVIDIA's driver (docker run --gpus all), or accelerator: cpu, or policy.endpoint",
        )
    found = cards(machine)
    if not found:
        answer = machine.run(*QUERY)
        return fail(f"nvidia-smi finds none: {answer.words}", "reload the driver, or ask the job for a GPU")
    name, driver, total, _ = found[0]
    words = f"{len(found)} x {name}, {total:.0f} GiB, driver {driver}"
    series = driver.split(".")[0]
    if series.isdigit() and int(series) < DRIVER:
        return fail(words, f"update the driver to {DRIVER} or newer: the locked torch needs it")
    return ok(words)


@check("enough GPU memory", is_cuda)
def gpu_memory(config: StudyConfig, machine: Machine) -> Finding:
    """Weights, KV cache and, for training, the optimiser; what others hold counts."""
    found = cards(machine)
    if not found:
        return warn("unknown, no GPU answers", "see gpu")
    size = config.size.removesuffix("_random")
    table = SERVE_GIB if set(config.arms) == {"base"} else TRAIN_GIB
    need = table.get(size, 2.0)
    _, _, total, free = max(found, key=lambda card: card[3])
    words = f"{free:.0f} of {total:.0f} GiB free; {size} takes about {need:.0f}"
    if total < need:
        return fail(words, "a larger card, a smaller policy.max_model_len, or policy.endpoint")
    if free < need or free < total * config.serving.gpu_memory_utilization:
        return warn(words, "end what holds it (nvidia-smi), or lower serving.gpu_memory_utilization")
    return ok(words)


@check("compute mode and driver files", is_cuda)
def gpu_access(config: StudyConfig, machine: Machine) -> Finding:
    """A driver newer than its library, or cards that this user may not open."""
    text = machine.read("/proc/driver/nvidia/version") or ""
    visible = machine.env.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1", "NoDevFiles"):
        return fail(
            f"CUDA_VISIBLE_DEVICES is '{visible}'", "unset CUDA_VISIBLE_DEVICES, or ask the job for a GPU"
        )
    devices = machine.files(Path("/dev"), "nvidia[0-9]*")
    closed = [path.name for path in devices if not machine.may(path, 6)]
    if closed:
        return fail(f"{', '.join(closed)} refuse this user", "add the user to the group that owns them")
    return ok(text.splitlines()[0].strip()[:80] if text else "no kernel module listed")
