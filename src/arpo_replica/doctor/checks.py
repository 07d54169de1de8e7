"""The checks: of the machine, of the study, of Docker and OSWorld, of the cluster."""

import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from arpo_replica.base.environments import heavy_environment
from arpo_replica.base.errors import UserError
from arpo_replica.cluster import costs, pools
from arpo_replica.cluster.profile import SITE_FILE, Profile, load_site, make_profile
from arpo_replica.cluster.resources import LEAST_MINUTES, Need, large_jobs, minutes, misfit
from arpo_replica.config.models import StudyConfig
from arpo_replica.config.policy import SERVED
from arpo_replica.desktop import sandbox
from arpo_replica.doctor.examine import Finding, check, fail, ok, warn
from arpo_replica.doctor.machine import Machine
from arpo_replica.policy.prompt import conversation_length
from arpo_replica.suites.planned import planned_tasks
from arpo_replica.tasks.model import Task

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
QUERY = (
    "nvidia-smi",
    "--query-gpu=name,driver_version,memory.total,memory.free",
    "--format=csv,noheader,nounits",
)
NODE = "lib/python3.*/site-packages/playwright/driver/node"


def has_models(config: StudyConfig) -> bool:
    """True if models are served or trained on this machine, not by a server elsewhere alone."""
    return any(config.of_arm(arm).policy.model != SERVED for arm in config.given_arms)


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
        fix = "run the study on Linux; a Mac or Windows machine can lend VMware desktops (docs/remote.md)"
        return fail(found, fix)
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
        fix = "clone the repository, so that results name their commit"
        return warn(f"no checkout ({answer.words})", fix)
    return ok(f"commit {answer.out.strip()}")


# --- memory and processors -------------------------------------------------------------------------------


def memory_gib(machine: Machine) -> tuple[float, float] | None:
    """Total and available memory."""
    found = re.findall(r"^(\w+):\s*(\d+)", machine.read("/proc/meminfo") or "", re.MULTILINE)
    fields = {name: int(kib) / 2**20 for name, kib in found}
    total = fields.get("MemTotal")
    return None if total is None else (total, fields.get("MemAvailable", total))


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
    desktops = local_desktops(config) * TYPICAL_MB[config.desktop.provider] / 1024
    need = desktops + (1.0 if config.served_elsewhere else STACK_GIB[config.accelerator])
    limit = cgroup_value(machine, "memory.max", "memory.limit_in_bytes")
    if limit is not None and limit.isdigit() and need > int(limit) / GIB:
        words = f"a control group allows {int(limit) / GIB:.1f} GiB; the config takes about {need:.1f}"
        fix = "ask for more memory (docker run --memory, sbatch --mem) or lower desktop.count"
        return fail(words, fix)
    if (found := memory_gib(machine)) is None:
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
        words = f"{have:g} for {desktops} desktops: actions will wait for each other"
        return warn(words, f"set desktop.count to {int(12 * have)} or less")
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
        *(costs.stage_estimate(config, arm, stage.name) for arm in config.online_arms for stage in stages),
        *(costs.estimate(config, "train_offline") for _ in config.offline_arms),
        *(costs.rollout_estimate(config, arm) for arm in config.arms if arm != "base"),
    ]
    once = costs.rollout_estimate(config, "base").disk_gb
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
        words = "Snakemake holds a lock here: it runs, or it was killed"
        return warn(words, "if none runs: snakemake --unlock")
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
    most = [machine.limits("NPROC")[0], int(pids) if pids.isdigit() else None]
    allowed = min((limit for limit in most if limit is not None), default=None)
    if allowed is not None and allowed < processes:
        fix = f"ulimit -u {processes} (docker run --pids-limit {processes})"
        return fail(f"{allowed} processes; {processes} wanted", fix)
    soft, hard = machine.limits("NOFILE")
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


@check(
    "a GPU, its driver, and enough of its memory",
    lambda config: config.accelerator == "cuda" and has_models(config),
)
def gpu(config: StudyConfig, machine: Machine) -> Finding:
    """No driver, too old a driver, a container that was not given the card, or a card that is too small or in
    use: weights, KV cache and, for training, the optimiser must fit."""
    needs = [found for arm in config.online_arms if (found := costs.memory_need(config, arm))]
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
    need = max([costs.serving_gib(config) or 2.0, *(need.most for need in needs)])
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


# --- the study -----------------------------------------------------------------------------------------

KINDS = {"qwen2_5_vl": "absolute", "qwen2_vl": "relative_1000"}
"""``model_type`` of a model of UI-TARS -> the coordinates it was trained with."""


def is_large(config: StudyConfig) -> bool:
    """True for studies whose results stand beside the paper's."""
    return config.size != "nano"


def known_tasks(config: StudyConfig, splits: set[str]) -> list[Task]:
    """Tasks of the splits whose files are there; a split that cannot be read counts as empty."""
    found = {}
    for split in sorted(splits):
        try:
            for task in planned_tasks(config, split) or []:
                found[task.domain, task.id] = task
        except UserError:
            continue
    return list(found.values())


@check("nothing that a run would refuse")
def study(config: StudyConfig, machine: Machine) -> Finding:
    """What every study checks before it starts, all of it at once: tasks, recipe, context, model, desktops,
    server, and jobs of an earlier run."""
    refused = machine.refusals(config)
    if refused:
        return fail(" ".join(refused), "as the sentence says" if len(refused) == 1 else "as they say")
    return ok(f"study '{config.name}' would start")


@check("tasks that can be judged anywhere, any day")
def changing_tasks(config: StudyConfig, machine: Machine) -> Finding:
    """Live web sites drift; a policy that always says FAIL solves the infeasible tasks, about 8 % of OSWorld,
    for nothing."""
    tasks = known_tasks(config, {*config.training_splits, *config.evaluation.splits})
    infeasible = sum(task.infeasible for task in tasks)
    share = 100 * infeasible / max(1, len(tasks))
    words = f"{infeasible} of {len(tasks)} infeasible: always FAIL scores {share:.0f} %"
    if share > 30:
        return warn(words, "read hard and standard scores apart")
    live = [
        task.id
        for task in tasks
        if task.raw.get("proxy") is True or task.raw.get("possibility_of_env_change") in ("medium", "high")
    ]
    if live:
        words = f"{len(live)} tasks look at live web pages, e.g. {live[0]}"
        return warn(words, "report them apart, or drop them")
    return ok(words)


@check("a step limit that is comparable", is_large)
def step_limit(config: StudyConfig, machine: Machine) -> Finding:
    """A limit left at 3 by a runner's default gave 0 %; ARPO and the 15-step tables use 15."""
    steps = config.policy.max_steps
    if steps < 15:
        return warn(f"policy.max_steps is {steps}", "set 15 (ARPO) or 50: shorter limits lower every score")
    return ok(f"policy.max_steps is {steps}")


@check("enough episodes to tell a difference", is_large)
def precision(config: StudyConfig, machine: Machine) -> Finding:
    """ARPO's headline gain is 3.9 points: one run of 369 tasks cannot show it."""
    most = max(len(known_tasks(config, {split})) for split in config.evaluation.splits)
    episodes = most * config.evaluation.trials
    if not episodes:
        return warn("no task of the evaluated splits is there yet", "run doctor again when they are")
    half = 100 * 1.96 * math.sqrt(0.25 * 0.75 / episodes)
    words = f"{episodes} episodes per arm: 25 % comes out as 25 ± {half:.1f} points"
    if "base" not in config.arms:
        return warn(f"{words}; no base arm", "add base: {} to arms: compare with the base measured here")
    return ok(words) if half < 5 else warn(words, "raise evaluation.trials")


@check(
    "a browser that starts",
    lambda config: config.desktop.provider == "process" and config.desktop.process.image is None,
)
def chromium(config: StudyConfig, machine: Machine) -> Finding:
    """The real program: Ubuntu's package is a wrapper around a snap, which cannot run in a sandbox."""
    program = str(sandbox.CHROMIUM)
    if machine.which(program) is None:
        fix = "apt-get install chromium (Debian's; Ubuntu's is a snap), or desktop.process.image"
        return fail(f"{program} is missing", fix)
    answer = machine.run(program, "--version")
    if answer.status != 0 or "Chromium" not in answer.out:
        return fail(f"it does not start: {answer.words}", "apt-get install --reinstall chromium")
    return ok(answer.out.strip())


@check(
    "keys that travel unseen",
    lambda config: config.desktop.provider == "remote" or bool(config.policy.endpoint),
)
def connections(config: StudyConfig, machine: Machine) -> Finding:
    """Tokens in plain http can be read on the way; a server of several models may list another one first."""
    asked = []
    if config.policy.endpoint and machine.env.get(config.policy.api_key_variable):
        asked.append(("policy.endpoint", config.policy.endpoint))
    if config.desktop.provider == "remote":
        asked += [("desktop.remote.pools", url) for url in config.desktop.remote.urls]
    local = ("https://", "http://127.", "http://localhost", "http://[::1]")
    for key, url in asked:
        if not url.startswith(local):
            fix = "use https or an SSH tunnel, unless the network is yours"
            return warn(f"{key} is {url}: what is sent there travels unencrypted", fix)
    if config.policy.endpoint and config.policy.served_model is None:
        fix = "set policy.served_model to the model's name there (its /v1/models)"
        return warn("policy.served_model is not set: the first model that the server lists is used", fix)
    return ok("encrypted or on this machine")


# --- the model -------------------------------------------------------------------------------------------


def model_config(config: StudyConfig, machine: Machine) -> dict[str, Any]:
    """``config.json`` of the folder or of the model of ``data/models``, or nothing."""
    folder = "/" in config.policy.model
    described = machine.root / "data" / "models" / f"{config.policy.model}.json"
    path = Path(config.policy.model) / "config.json" if folder else described
    try:
        found = json.loads(machine.read(path) or "{}")
        found = found if folder else found.get("config", {})
    except (ValueError, AttributeError):
        return {}
    return found if isinstance(found, dict) else {}


@check("prompt and coordinates of that model")
def recipe(config: StudyConfig, machine: Machine) -> Finding:
    """With the wrong kind every click lands elsewhere, without any error. All that is used is printed."""
    policy = config.policy
    used = (
        f"prompt {policy.prompt}, {policy.coordinates} points, {policy.language}, {policy.max_images} images,"
        f" {policy.max_turns or 'all'} turns, {policy.max_steps} steps, "
        f"temperature {config.evaluation.temperature:g}"
    )
    kind = model_config(config, machine).get("model_type")
    fits = KINDS.get(str(kind))
    if fits is not None and fits != policy.coordinates:
        name = "uitars_15" if fits == "absolute" else "uitars_dpo"
        return fail(f"{used}; but {kind} models answer in {fits} points", f"set policy.recipe: {name}")
    if is_large(config) and policy.recipe is None and policy.prompt == "uitars":
        return warn(used, "set policy.recipe: uitars_15 or uitars_dpo, unless you mean these values")
    return ok(used)


@check("the conversation fits into the context")
def context(config: StudyConfig, machine: Machine) -> Finding:
    """A conversation that outgrows the context cuts its episode short."""
    length, longest = conversation_length(config), config.policy.max_model_len
    words = (
        f"{length.images} images of {length.image} tokens and {length.turns} replies: up to {length.most} of "
        f"{longest}"
    )
    if length.most > longest:
        return warn(words, "raise policy.max_model_len, or lower policy.max_images")
    return ok(words)


# --- Docker and OSWorld's own virtual machine ----------------------------------------------------------

READY_S = 300
SOCKET = "unix:///var/run/docker.sock"
LOCK = "/tmp/docker_port_allocation.lck"  # noqa: S108  # desktop-env's, fixed there


def needs_docker(config: StudyConfig) -> bool:
    """True for desktops that a Docker daemon runs."""
    desktop = config.desktop
    if desktop.provider == "container":
        return desktop.container.engine != "bwrap"
    return desktop.provider == "osworld" and desktop.osworld.hypervisor == "docker"


def is_docker_vm(config: StudyConfig) -> bool:
    """True for OSWorld's virtual machine in a container."""
    return config.desktop.provider == "osworld" and needs_docker(config)


def _without_daemon(config: StudyConfig, machine: Machine, problem: str) -> Finding:
    """What no answer means: not installed, not started and not permitted look alike in most messages."""
    place = machine.env.get("DOCKER_HOST") or SOCKET
    if config.desktop.provider == "container" and config.desktop.container.engine == "auto":
        return ok(f"none answers at {place}: bubblewrap runs the desktops")
    if "package 'docker'" in problem:
        return fail(problem, "python3 envs/prepare.py controller")
    if "Permission denied" in problem or "PermissionError" in problem:
        return fail(f"{place} refuses this user", "usermod -aG docker $USER and log in again (equals root)")
    if machine.which("dockerd") is None and not machine.env.get("DOCKER_HOST"):
        fix = "apt-get install docker.io, or desktop.container.engine: bwrap, which needs none"
        return fail(f"no Docker here ({problem})", fix)
    return fail(
        f"no daemon answers at {place} ({problem})",
        "systemctl start docker, or envs/desktop/dockerd.sh start FOLDER and export DOCKER_HOST as it says",
    )


@check("a Docker daemon that answers, copies on write and can limit", needs_docker)
def docker_daemon(config: StudyConfig, machine: Machine) -> Finding:
    """Without copy-on-write each desktop copies gigabytes; without limits one runaway browser takes the
    machine down; a full disk fails in odd places."""
    docker = machine.docker()
    info = docker.info
    if info is None:
        return _without_daemon(config, machine, docker.problem)
    driver, root = str(info.get("Driver", "?")), str(info.get("DockerRootDir", ""))
    if driver == "vfs":
        fix = "start it with --storage-driver overlay2"
        return fail("its driver vfs copies the whole image for each desktop", fix)
    names = {"MemoryLimit": "memory", "CpuCfsQuota": "CPU", "PidsLimit": "processes"}
    if missing := [word for key, word in names.items() if not info.get(key)]:
        fix = "enable the cgroup controllers of these"
        return warn(f"the kernel cannot limit {', '.join(missing)}", fix)
    free = machine.free(root) if root else None
    room = "" if free is None else f", {free[0] / GIB:.1f} GiB free at {root}"
    words = f"Docker {info.get('ServerVersion', '?')}, {driver}{room}"
    if free is not None and free[0] < 8 * GIB:
        return warn(words, "docker system prune, or a larger disk")
    return ok(words)


@check("hardware virtualisation", is_docker_vm)
def kvm(config: StudyConfig, machine: Machine) -> Finding:
    """Without KVM it boots for an hour: 'VM failed to become ready within timeout period'."""
    genuine = config.desktop.osworld.vm is not None
    if not machine.exists("/dev/kvm"):
        flags = machine.read("/proc/cpuinfo") or ""
        capable = " vmx" in flags or " svm" in flags
        fix, words = "modprobe kvm_intel or kvm_amd", "no /dev/kvm"
        if not capable:
            fix = "a machine with nested virtualisation switched on"
            words += ", and the processor shows no virtualisation"
        if genuine:
            return fail(words, f"{fix}; or desktop.provider: container, which needs none")
        return ok(f"{words}; not needed, as desktop.osworld.vm names no virtual machine")
    if not machine.may("/dev/kvm", os.R_OK | os.W_OK):
        return fail("/dev/kvm refuses this user", "usermod -aG kvm $USER and log in again")
    if "hypervisor" in (machine.read("/proc/cpuinfo") or "").split():
        fix = "try one desktop first; desktop.provider: container needs none"
        return warn("/dev/kvm is there, in a virtual machine: some cannot run a guest", fix)
    return ok("/dev/kvm")


@check(
    "OSWorld's image and machine, pinned, and time to boot",
    lambda config: config.desktop.provider == "osworld",
)
def osworld_pins(config: StudyConfig, machine: Machine) -> Finding:
    """The image has no tag and no recipe: which one it was decides results. A download of 10 GB that broke
    off makes a machine that never becomes ready, and desktop-env waits 300 s for a whole one."""
    osworld, vm = config.desktop.osworld, config.desktop.osworld.vm
    size = None if vm is None else machine.size(vm)
    if vm is not None and vm.suffix == ".qcow2" and size is not None and size < 5 * GIB:
        fix = "fetch it again; OSWorld's has more than 10"
        return fail(f"{vm} has {size / GIB:.1f} GiB: broken off", fix)
    if vm is not None and config.desktop.start_timeout_s < READY_S + 30:
        fix = f"set {READY_S + 30}: a virtual machine boots for minutes"
        return warn(f"desktop.start_timeout_s is {config.desktop.start_timeout_s}", fix)
    if osworld.hypervisor == "docker" and osworld.image_digest is None:
        fix = "set desktop.osworld.image_digest: docker image inspect happysixd/osworld-docker:latest"
        return warn("the image is not pinned", fix)
    if vm is not None and osworld.vm_sha256 is None:
        return warn(f"{vm} is not pinned", "set desktop.osworld.vm_sha256: sha256sum FILE")
    return ok("pinned" if vm is not None else "pinned; the image holds the desktop itself")


@check("desktop-env's lock on ports", is_docker_vm)
def port_lock(config: StudyConfig, machine: Machine) -> Finding:
    """It is one file for all users of a machine, and belongs to the first."""
    if machine.exists(LOCK) and not machine.may(LOCK, os.W_OK):
        return fail(f"{LOCK} belongs to another user", f"remove {LOCK} when no other study runs")
    return ok(f"{LOCK} is free")


# --- the cluster ---------------------------------------------------------------------------------------

NO_CLUSTER = "configuration source"
"""What Slurm's programs say where they are installed and no cluster is set up, e.g. for our tests."""


def site_profile(machine: Machine) -> Profile | None:
    """The cluster as ``snakemake --profile slurm`` would see it; None without one. Raises ``UserError``."""
    if machine.which("sinfo") is None:
        return None
    if NO_CLUSTER in machine.run("sinfo", "--version").err:
        return None

    def ask(*command: str) -> str:
        answer = machine.run(*command)
        if answer.status:
            raise UserError(f"Slurm does not answer ({command[0]}: {answer.words}).")
        return answer.out

    return make_profile(load_site(SITE_FILE), ask)


def longest(config: StudyConfig, gpus: bool) -> costs.JobEstimate | None:
    """The study's longest job with, or without, GPUs."""
    jobs = [costs.rollout_estimate(config, arm) for arm in config.arms]
    for arm in config.online_arms:
        jobs += [costs.stage_estimate(config, arm, stage.name) for stage in config.training.stages]
    return max((job for job in jobs if (job.gpus > 0) == gpus), key=lambda job: job.hours, default=None)


def asked_for(config: StudyConfig, need: Need, cluster: Profile) -> list[str]:
    """``sbatch`` for one of the large jobs as the executor would call it, but without submitting anything."""
    site, with_gpus = cluster.site, need.gpus > 0
    wanted, limit = longest(config, with_gpus), cluster.minutes(with_gpus)
    time = minutes(wanted, 1) if wanted is not None else LEAST_MINUTES
    nodes = config.recipe(need.arm).nodes if need.rule == "train_stage" else 1
    options = {
        "account": site.account,
        "qos": site.qos,
        "gres": f"gpu:{site.gpu_model + ':' if site.gpu_model else ''}{need.gpus}" if with_gpus else None,
        "partition": cluster.partition(with_gpus).name,
        "nodes": nodes,
        "cpus-per-task": config.threads,
        "mem": need.memory_mb,
        "time": time if limit is None else min(time, limit),
    }
    given = [f"--{name}={value}" for name, value in options.items() if value is not None]
    return ["sbatch", "--test-only", *given, "--wrap=true"]


def _submissions(config: StudyConfig, profile: Profile) -> Finding | None:
    """What to know of jobs that run longer than the cluster lets them; None if there are none."""
    for with_gpus in (False, True):
        job, limit = longest(config, with_gpus), profile.minutes(with_gpus)
        submissions = 1 if job is None or limit is None else math.ceil(60 * job.hours / limit)
        if job is None or submissions == 1:
            continue
        found = f"a job of about {job.hours:.0f} h needs {submissions} submissions of {limit} min each"
        if submissions > 1 + profile.site.retries:
            fix = f"raise retries in {SITE_FILE} to {submissions}, or take a partition with longer limits"
            return fail(found, fix)
        fix = "none needed: it saves before the limit and goes on, but waits in the queue each time"
        return warn(found, fix)
    return None


@check("Slurm, the site file, and jobs that the cluster takes")
def slurm(config: StudyConfig, machine: Machine) -> Finding:
    """A silent controller, a partition that does not exist, a job that asks for too much, which Slurm lets
    wait for ever. A site's rules (accounts, limits) are known to its Slurm alone: it is asked."""
    try:
        profile = site_profile(machine)
    except UserError as error:
        return fail(str(error), f"correct {SITE_FILE} or see whether 'scontrol ping' finds the controller")
    if profile is None:
        return ok("no Slurm on this machine")
    needs = large_jobs(config)
    for reason in (*(misfit(config, need, profile) for need in needs), pools.misfit(config, profile)):
        if reason is not None:
            found, _, fix = reason.rstrip(".").partition("; ")
            return fail(found, fix)
    commands = {tuple(asked_for(config, need, profile)): f"{need.rule} ({need.arm})" for need in needs}
    if config.desktop.pool_jobs is not None:
        program, *options = pools.sbatch(config, profile)
        commands[program, "--test-only", *options, "--wrap=true"] = "desktop.remote.slurm"
    for command, what in commands.items():
        answer = machine.run(*command)
        if answer.status:
            found = f"{what}: {answer.words}"
            return fail(found, f"correct {SITE_FILE} or the config; asked with: {' '.join(command)}")
    if (late := _submissions(config, profile)) is not None:
        return late
    gpu = "none" if profile.gpu is None else profile.gpu.name
    return ok(
        f"partitions: {profile.cpu.name} (no GPUs), {gpu} (GPUs); states by {profile.status_command}; "
        f"{len(commands)} kinds of jobs, by sbatch --test-only"
    )
