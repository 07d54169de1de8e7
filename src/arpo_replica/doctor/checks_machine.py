"""The machine against what the config will use: system, memory, processors, disk, the kernel's limits, the
locked environments, the GPU."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from arpo_replica.base.environments import heavy_environment
from arpo_replica.cluster.costs import (
    costs_of,
    estimate,
    memory_need,
    rollout_estimate,
    stage_estimate,
)
from arpo_replica.config.models import StudyConfig
from arpo_replica.config.policy import SERVED
from arpo_replica.doctor.examine import Finding, check, fail, ok, warn
from arpo_replica.doctor.machine import Machine

GIB = 2**30
SOCKET_PATH = 107
"""Longest path of a Unix socket, in bytes (sun_path of Linux, less the final zero)."""
OUR_TAIL = 60
"""What the longest of our socket paths adds to the scratch folder."""
TYPICAL_MB = {"process": 330, "container": 600, "osworld": 4_600, "remote": 0}
"""What a desktop takes in practice (measured; a virtual machine of OSWorld has 4 GB of its own)."""
STACK_GIB = {"cpu": 4.0, "cuda": 10.0}
"""vLLM, verl and Ray beside the weights."""
DRIVER = 550
"""Oldest driver series that runs CUDA 12.4, which the locked torch and vLLM need at least."""
SAVED_GIB = {"fp8": {"2b": 1.5, "7b": 6.5}, "bitsandbytes": {"2b": 2.2, "7b": 9.8}}
"""What reduced weights save in serving, computed: those of the language model's layers alone are reduced."""
QUERY = (
    "nvidia-smi",
    "--query-gpu=name,driver_version,memory.total,memory.free",
    "--format=csv,noheader,nounits",
)
NODE = "lib/python3.*/site-packages/playwright/driver/node"


def has_models(config: StudyConfig) -> bool:
    """True if models are served or trained on this machine, not by a server elsewhere alone."""
    return any(config.of_arm(arm).policy.model != SERVED for arm in config.given_arms)


def is_cuda(config: StudyConfig) -> bool:
    """True if the study serves or trains on a GPU of this machine."""
    return config.accelerator == "cuda" and has_models(config)


def needs_evaluators(config: StudyConfig) -> bool:
    """True if this machine's desktops may have OSWorld's tasks."""
    return config.desktop.provider in ("container", "osworld")


def local_desktops(config: StudyConfig) -> int:
    """Desktops that run on this machine."""
    return 0 if config.desktop.provider == "remote" else config.desktop.count


# --- the system ------------------------------------------------------------------------------------------


@check("Linux on x86-64", when=None)
def system(config: StudyConfig | None, machine: Machine) -> Finding:
    """Desktops need Linux; the locked packages and images are for x86-64."""
    name, architecture, _ = machine.system()
    found = f"{name} {architecture}"
    if name != "Linux":
        return fail(
            found,
            "run the study on Linux; a Mac or Windows machine can lend VMware desktops (docs/remote.md)",
        )
    if architecture not in ("x86_64", "AMD64"):
        return warn(found, "no locked environment was tried on it; an x86-64 machine is the tried way")
    return ok(found)


@check("a usable scratch folder", when=None)
def temp_folder(config: StudyConfig | None, machine: Machine) -> Finding:
    """Ray and vLLM put Unix sockets there, whose paths have a limit."""
    folder = machine.temp_folder()
    if not machine.may(folder, os.W_OK | os.X_OK):
        return fail(f"{folder} cannot be written", "export TMPDIR=/tmp")
    if len(os.fsencode(folder)) + OUR_TAIL > SOCKET_PATH:
        return fail(f"{folder} is too long for Unix sockets", "export TMPDIR=/tmp (a short path)")
    free = machine.free(folder)
    if free is not None and free[0] < GIB:
        return warn(f"{folder}: {free[0] / GIB:.1f} GiB free", "make room, or name another disk by TMPDIR")
    return ok(folder if free is None else f"{folder}: {free[0] / GIB:.0f} GiB free")


@check("proxies leave localhost alone", when=None)
def proxies(config: StudyConfig | None, machine: Machine) -> Finding:
    """desktop-env and playwright follow the proxy variables: the browser's port then answers 400."""
    names = ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")
    used = next((name for name in names if machine.env.get(name)), None)
    if used is None:
        return ok("no proxy set")
    spared = machine.env.get("no_proxy") or machine.env.get("NO_PROXY") or ""
    parts = {part.strip() for part in spared.split(",")}
    if "*" in parts or {"127.0.0.1", "localhost"} <= parts:
        return ok(f"{used} is set, localhost is left out")
    return fail(f"{used} is set, also for localhost", "export no_proxy=localhost,127.0.0.1")


@check("git", when=None)
def git(config: StudyConfig | None, machine: Machine) -> Finding:
    """Provenance names the commit; task files come from a repository."""
    answer = machine.run("git", "-C", str(machine.root), "rev-parse", "--short", "HEAD")
    if machine.which("git") is None:
        return warn("no git: results will not name their commit", "apt-get install git")
    if answer.status != 0:
        return warn(
            f"no checkout ({answer.words})", "clone the repository, so that results name their commit"
        )
    return ok(f"commit {answer.out.strip()}")


# --- memory and processors -------------------------------------------------------------------------------


def needed_gib(config: StudyConfig) -> float:
    """Memory that the study takes here, roughly."""
    desktops = local_desktops(config) * TYPICAL_MB[config.desktop.provider] / 1024
    return desktops + (1.0 if config.served_elsewhere else STACK_GIB[config.accelerator])


def memory_gib(machine: Machine) -> tuple[float, float] | None:
    """Total and available memory."""
    fields = {}
    for line in (machine.read("/proc/meminfo") or "").splitlines():
        name, _, value = line.partition(":")
        number = value.split()[:1]
        if number and number[0].isdigit():
            fields[name] = int(number[0]) / 2**20
    if "MemTotal" not in fields:
        return None
    return fields["MemTotal"], fields.get("MemAvailable", fields["MemTotal"])


def cgroup_value(machine: Machine, new: str, old: str) -> str | None:
    """A limit of this process's control group, version 2 or 1, the innermost that is set."""
    for line in (machine.read("/proc/self/cgroup") or "").splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            place, name = Path("/sys/fs/cgroup"), new
        elif old.partition(".")[0] in controllers.split(","):
            place, name = Path("/sys/fs/cgroup", old.partition(".")[0]), old
        else:
            continue
        for folder in (place / path.lstrip("/"), place):
            text = machine.read(folder / name)
            if text and text.split()[0] not in ("max", "-1"):
                return text.strip()
    return None


@check("enough memory")
def memory(config: StudyConfig, machine: Machine) -> Finding:
    """Desktops that run out of memory die one after another; in a container or a batch job the limit of the
    control group counts, beyond which jobs are killed."""
    need, limit = needed_gib(config), cgroup_value(machine, "memory.max", "memory.limit_in_bytes")
    if limit is not None and limit.isdigit() and need > int(limit) / GIB:
        return fail(
            f"a control group allows {int(limit) / GIB:.1f} GiB; the config takes about {need:.1f}",
            "ask for more memory (docker run --memory, sbatch --mem) or lower desktop.count",
        )
    found = memory_gib(machine)
    if found is None:
        return warn("/proc/meminfo cannot be read", "mount /proc")
    total, available = found
    words = f"{total:.1f} GiB, {available:.1f} free; the config takes about {need:.1f}"
    if need > total:
        return fail(words, "lower desktop.count, or use a machine with more memory")
    return ok(words) if need <= available else warn(words, "end other programs, or lower desktop.count")


@check("as many processors as the config asks for")
def cores(config: StudyConfig, machine: Machine) -> Finding:
    """Fewer than ``threads`` makes jobs fight each other; a quota counts as well."""
    have: float = machine.cores()
    quota = (cgroup_value(machine, "cpu.max", "cpu.cfs_quota_us") or "").split()
    if len(quota) == 2 and all(part.isdigit() for part in quota) and int(quota[1]):
        have = min(have, int(quota[0]) / int(quota[1]))
    if config.threads > have:
        return warn(f"{have:g}, but threads: {config.threads}", f"set threads: {max(1, int(have))}")
    desktops = local_desktops(config)
    if desktops > 12 * have:
        return warn(
            f"{have:g} for {desktops} desktops: actions will wait for each other",
            f"set desktop.count to {int(12 * have)} or less",
        )
    return ok(f"{have:g} for {desktops} desktops and {config.threads} threads per job")


@check(
    "processor instructions that the CPU build of vLLM needs",
    lambda config: config.accelerator == "cpu" and has_models(config),
)
def cpu_instructions(config: StudyConfig, machine: Machine) -> Finding:
    """Without AVX2 it ends with 'illegal instruction'."""
    text = machine.read("/proc/cpuinfo") or ""
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    if not flags:
        return warn("/proc/cpuinfo names no instructions", "mount /proc")
    if "avx2" not in flags:
        return fail("no AVX2", "use another machine, or policy.endpoint for a server elsewhere")
    return ok("AVX-512" if "avx512f" in flags else "AVX2, no AVX-512: slower")


# --- disk and the kernel's limits ------------------------------------------------------------------------


def needed_disk_gib(config: StudyConfig) -> float:
    """What ``plan`` says of a study from the start, its checkpoints included; and 1 GiB for all the rest."""
    stages = config.training.stages
    trained = [
        *(stage_estimate(config, arm, stage.name) for arm in config.online_arms for stage in stages),
        *(estimate(config, "train_offline") for _ in config.offline_arms),
        *(rollout_estimate(config, arm) for arm in config.arms if arm != "base"),
    ]
    once = rollout_estimate(config, "base").disk_gb
    return 1 + (once + len(config.seeds) * sum(job.disk_gb for job in trained)) * 1e9 / GIB


@check("a results folder with room, and nobody in it")
def results_folder(config: StudyConfig, machine: Machine) -> Finding:
    """Episodes, checkpoints and logs go there; a full disk or Snakemake's lock ends a study."""
    folder = machine.root / "results"
    place = folder if machine.exists(folder) else machine.root
    if not machine.may(place, os.W_OK):
        return fail(f"{place.name}/ cannot be written", "correct its owner: chown -R $USER results")
    free, need = machine.free(folder), needed_disk_gib(config)
    if free is None:
        return warn("the disk of results/ does not answer", "look at its mount")
    words = f"{free[0] / GIB:.0f} GiB free in results/; a study from the start takes up to {need:.0f}"
    if free[0] < need * GIB / 4:
        return fail(words, "make room, or make results/ a link to a larger disk")
    if free[0] < need * GIB:
        return warn(words, "make room before training saves checkpoints")
    if machine.files(machine.root / ".snakemake" / "locks", "*.lock"):
        return warn(
            "Snakemake holds a lock here: it runs, or it was killed", "if none runs: snakemake --unlock"
        )
    return ok(words)


@check("shared memory")
def shared_memory(config: StudyConfig, machine: Machine) -> Finding:
    """Ray and NCCL use /dev/shm; Docker's default of 64 MB is too small for them."""
    free = machine.free("/dev/shm") if machine.exists("/dev/shm") else None  # noqa: S108
    if free is None:
        return fail("there is none", "mount -t tmpfs tmpfs /dev/shm (docker run --shm-size 4g)")
    need = 0.25 if config.accelerator == "cpu" else 4.0
    words = f"{free[0] / GIB:.2g} of {free[1] / GIB:.2g} GiB free; Ray takes {need:g}"
    fix = "make it larger: mount -o remount,size=4g /dev/shm (docker run --shm-size 4g)"
    if free[0] < need * GIB / 2:
        return fail(words, fix)
    return ok(words) if free[0] >= need * GIB else warn(words, fix)


@check("limits on open files, processes and watched folders")
def limits(config: StudyConfig, machine: Machine) -> Finding:
    """Each desktop costs sockets and pipes, its browser dozens of threads, and it watches files: the kernel's
    default of 128 watchers per user stops at some twenty desktops. A pool then ends in the middle."""
    desktops = local_desktops(config)
    files, processes, watchers = 1_024 + 64 * config.desktop.count, 500 + 120 * desktops, 128 + 8 * desktops
    pids = cgroup_value(machine, "pids.max", "pids.max") or ""
    most = [machine.soft_limit("NPROC"), int(pids) if pids.isdigit() else None]
    allowed = min((limit for limit in most if limit is not None), default=None)
    if allowed is not None and allowed < processes:
        fix = f"ulimit -u {processes} (docker run --pids-limit {processes})"
        return fail(f"{allowed} processes; {processes} wanted", fix)
    soft, hard = machine.soft_limit("NOFILE"), machine.hard_limit("NOFILE")
    if soft is not None and soft < files:
        if hard is not None and hard < files:
            fix = "raise nofile in /etc/security/limits.conf"
            return fail(f"{soft} open files, at most {hard}; {files} wanted", fix)
        return warn(f"{soft} open files; {files} wanted", f"ulimit -n {files}")
    inotify = (machine.read("/proc/sys/fs/inotify/max_user_instances") or "").strip()
    if desktops > 16 and inotify.isdigit() and int(inotify) < watchers:
        fix = "sysctl fs.inotify.max_user_instances=8192"
        return warn(f"{inotify} inotify instances; {watchers} wanted", fix)
    return ok(f"{soft or 'any'} open files, {allowed or 'any'} processes")


# --- the locked environments -----------------------------------------------------------------------------


@check("the locked Python environments")
def environments(config: StudyConfig, machine: Machine) -> Finding:
    """Packages fit together in the locked versions only, and each stack has an environment of its own."""
    needed = ["controller"]
    if has_models(config):
        needed.append(heavy_environment(config.accelerator))
    if needs_evaluators(config):
        needed.append("evaluator")
    states = {name: machine.environment_state(name) for name in needed}
    for state, level, words in (
        ("missing", fail, "is not prepared"),
        ("stale", warn, "was prepared from another lock or an interrupted run"),
    ):
        if found := [name for name in needed if states[name] == state]:
            commands = "; ".join(f"python3 envs/prepare.py {name}" for name in found)
            return level(f"envs/{', envs/'.join(found)} {words}", commands)
    return ok(f"envs/{', envs/'.join(needed)}: as their locks say")


@check("the library that Playwright needs", needs_evaluators)
def playwright_library(config: StudyConfig, machine: Machine) -> Finding:
    """Its own Node.js wants libatomic1, which a bare Debian lacks; evaluators drive Chrome through it."""
    node = next(iter(machine.files(machine.root / "envs" / "evaluator" / ".venv", NODE)), None)
    if node is None:
        return ok("no Playwright yet: it comes with envs/evaluator")
    answer = machine.run(str(node), "--version")
    if answer.status == 0:
        return ok(f"Node.js {answer.out.strip()} starts")
    if "libatomic" in answer.words:
        return fail("libatomic1 is not installed", "sh envs/debian.sh envs/desktop/apt-evaluator.txt")
    return fail(f"{node} does not start: {answer.words}", "python3 envs/prepare.py evaluator")


# --- the GPU ---------------------------------------------------------------------------------------------


def _without_gpu(machine: Machine) -> Finding | None:
    """Why no GPU can be asked, if so."""
    visible = machine.env.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1", "NoDevFiles"):
        fix = "unset CUDA_VISIBLE_DEVICES, or ask the job for a GPU"
        return fail(f"CUDA_VISIBLE_DEVICES is '{visible}'", fix)
    if machine.which("nvidia-smi") is not None:
        return None
    if machine.which("sinfo") is not None:
        fix = "none needed for --profile slurm: jobs get theirs on their node, see slurm"
        return warn("none on this machine", fix)
    fix = "install NVIDIA's driver (docker run --gpus all), or accelerator: cpu, or policy.endpoint"
    return fail("no nvidia-smi", fix)


@check("a GPU, its driver, and enough of its memory", is_cuda)
def gpu(config: StudyConfig, machine: Machine) -> Finding:
    """No driver, too old a driver, a container that was not given the card, or a card that is too small or in
    use: weights, KV cache and, for training, the optimiser must fit."""
    needs = [found for arm in config.online_arms if (found := memory_need(config, arm))]
    trained = "".join(f"; training takes {words}" for words in sorted({str(found) for found in needs}))
    if (without := _without_gpu(machine)) is not None:
        return replace(without, found=without.found + trained)
    answer = machine.run(*QUERY)
    lines = [[part.strip() for part in line.split(",")] for line in answer.out.splitlines()]
    cards = [line for line in lines if len(line) == 4 and all(number.isdecimal() for number in line[2:])]
    if not cards:
        return fail(f"nvidia-smi finds none: {answer.words}", "reload the driver, or ask the job for a GPU")
    name, driver, *mib = max(cards, key=lambda card: int(card[3]))
    total, free = (int(part) / 1024 for part in mib)
    served = costs_of(config).memory_gib
    need = max([served.serving if served else 2.0, *(need.most for need in needs)])
    if config.serving.quantization and not needs:
        need -= SAVED_GIB[config.serving.quantization].get(config.plain_size, 0.0)
    words = (
        f"{len(cards)} x {name}, driver {driver}, {free:.0f} of {total:.0f} GiB free; {config.size} takes "
        f"about {need:.0f}{trained}"
    )
    series = driver.partition(".")[0]
    if series.isdigit() and int(series) < DRIVER:
        return fail(words, f"update the driver to {DRIVER} or newer: the locked torch needs it")
    if total < need:
        fix = "a larger card, training.lora, speed.freeze_vision or offload, fewer policy.max_images"
        return fail(words, fix)
    if free < need or free < total * config.serving.gpu_memory_utilization:
        return warn(words, "end what holds it (nvidia-smi), or lower serving.gpu_memory_utilization")
    return ok(words)
