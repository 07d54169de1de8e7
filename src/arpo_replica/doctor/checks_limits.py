"""Memory, processors, disk and the kernel's limits, against what the config will use."""

from __future__ import annotations

from pathlib import Path

from arpo_replica.cluster.costs import offline_estimate, rollout_estimate, stage_estimate
from arpo_replica.config.models import StudyConfig
from arpo_replica.doctor.machine import Machine
from arpo_replica.doctor.registry import Finding, check, fail, has_models, ok, warn

GIB = 2**30
TYPICAL_MB = {"process": 330, "container": 600, "osworld": 4_600, "remote": 0}
"""What a desktop takes in practice (measured; a virtual machine of OSWorld has 4 GB of its own)."""
STACK_GIB = {"cpu": 4.0, "cuda": 10.0}
"""vLLM, verl and Ray beside the weights."""
FILES_PER_DESKTOP = 64
FILES_BASE = 1_024
PROCESSES_PER_DESKTOP = 120


def local_desktops(config: StudyConfig) -> int:
    """Desktops that run on this machine."""
    return 0 if config.desktop.provider == "remote" else config.desktop.count


def needed_gib(config: StudyConfig) -> float:
    """Memory that the study takes here, roughly."""
    desktops = local_desktops(config) * TYPICAL_MB[config.desktop.provider] / 1024
    served_elsewhere = config.policy.endpoint is not None and set(config.arms) == {"base"}
    return desktops + (1.0 if served_elsewhere else STACK_GIB[config.accelerator])


def needed_disk_gib(config: StudyConfig) -> float:
    """What ``plan`` says of a study from the start, its checkpoints included; and 1 GiB for all the rest."""
    stages = config.training.stages
    trained = [
        *(stage_estimate(config, arm, stage.name) for arm in config.online_arms for stage in stages),
        *(offline_estimate(config, collected=False) for _ in config.offline_arms),
        *(rollout_estimate(config, arm) for arm in config.arms if arm != "base"),
    ]
    once = rollout_estimate(config, "base").disk_gb
    return 1 + (once + len(config.seeds) * sum(job.disk_gb for job in trained)) * 1e9 / GIB


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
    """Desktops that run out of memory die one after another; a study that swaps stalls."""
    found = memory_gib(machine)
    if found is None:
        return warn("/proc/meminfo cannot be read", "mount /proc")
    total, available = found
    need = needed_gib(config)
    words = f"{total:.1f} GiB, {available:.1f} free; the config takes about {need:.1f}"
    if need > total:
        return fail(words, "lower desktop.count, or use a machine with more memory")
    if need > available:
        return warn(words, "end other programs, or lower desktop.count")
    return ok(words)


@check("no tighter memory limit by a control group")
def cgroup_memory(config: StudyConfig, machine: Machine) -> Finding:
    """In a container or a batch job the machine's memory is not ours; beyond the limit jobs are killed."""
    text = cgroup_value(machine, "memory.max", "memory.limit_in_bytes")
    if text is None or not text.isdigit() or int(text) >= 2**60:
        return ok("none")
    limit, need = int(text) / GIB, needed_gib(config)
    if need > limit:
        return fail(
            f"{limit:.1f} GiB; the config takes about {need:.1f}",
            "ask for more memory (docker run --memory, sbatch --mem) or lower desktop.count",
        )
    return ok(f"{limit:.1f} GiB; the config takes about {need:.1f}")


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


@check("room on disk")
def disk(config: StudyConfig, machine: Machine) -> Finding:
    """Results, checkpoints and logs."""
    free = machine.free(machine.root / "results")
    if free is None:
        return warn("the disk of results/ does not answer", "look at its mount")
    need = needed_disk_gib(config)
    words = f"{free[0] / GIB:.0f} GiB free for results; a study from the start takes up to {need:.0f}"
    if free[0] < need * GIB / 4:
        return fail(words, "make room, or make results/ a link to a larger disk")
    return ok(words) if free[0] >= need * GIB else warn(words, "make room before training saves checkpoints")


@check("a results folder that can be written")
def results_folder(config: StudyConfig, machine: Machine) -> Finding:
    """Where episodes, trajectories, checkpoints and the report will be."""
    folder = machine.root / "results"
    place = folder if machine.exists(folder) else machine.root
    if not machine.may(place, 2):
        return fail(f"{place.name}/ cannot be written", "correct its owner: chown -R $USER results")
    locks = machine.files(machine.root / ".snakemake" / "locks", "*.lock")
    if locks:
        return warn(
            "Snakemake holds a lock here: it runs, or it was killed", "if none runs: snakemake --unlock"
        )
    return ok(f"results/{config.study}: episodes, trajectories and report will be there")


@check("shared memory")
def shared_memory(config: StudyConfig, machine: Machine) -> Finding:
    """Ray and NCCL use /dev/shm; Docker's default of 64 MB is too small for them."""
    free = machine.free("/dev/shm") if machine.exists("/dev/shm") else None  # noqa: S108
    if free is None:
        return fail("there is none", "mount -t tmpfs tmpfs /dev/shm (docker run --shm-size 4g)")
    need = 0.25 if config.accelerator == "cpu" else 4.0
    words = f"{free[0] / GIB:.2g} of {free[1] / GIB:.2g} GiB free; Ray takes {need:g}"
    if free[0] < need * GIB / 2:
        return fail(words, "make it larger: mount -o remount,size=4g /dev/shm (docker run --shm-size 4g)")
    if free[0] < need * GIB:
        return warn(words, "make it larger: mount -o remount,size=4g /dev/shm (docker run --shm-size 4g)")
    return ok(words)


@check("open files")
def open_files(config: StudyConfig, machine: Machine) -> Finding:
    """Each desktop costs sockets and pipes; 'Too many open files' ends a pool in the middle."""
    need = FILES_BASE + FILES_PER_DESKTOP * config.desktop.count
    soft, hard = machine.soft_limit("NOFILE"), machine.hard_limit("NOFILE")
    if soft is None or soft >= need:
        return ok(f"limit {soft or 'none'}; {need} wanted")
    if hard is None or hard >= need:
        return warn(f"limit {soft}; {need} wanted", f"ulimit -n {need}")
    return fail(f"limit {soft}, at most {hard}; {need} wanted", "raise nofile in /etc/security/limits.conf")


@check("processes")
def processes(config: StudyConfig, machine: Machine) -> Finding:
    """A browser alone has dozens of threads, and the limit of a container counts them all."""
    need = 500 + PROCESSES_PER_DESKTOP * local_desktops(config)
    limits = [machine.soft_limit("NPROC")]
    text = cgroup_value(machine, "pids.max", "pids.max")
    limits.append(int(text) if text and text.isdigit() else None)
    known = [limit for limit in limits if limit is not None]
    if known and min(known) < need:
        return fail(
            f"limit {min(known)}; {need} wanted", f"ulimit -u {need} (docker run --pids-limit {need})"
        )
    return ok(f"limit {min(known) if known else 'none'}; {need} wanted")


@check("kernel limits for many desktops", lambda config: local_desktops(config) > 16)
def kernel_limits(config: StudyConfig, machine: Machine) -> Finding:
    """Every desktop watches files; the kernel's default of 128 watchers per user stops at some twenty."""
    place = "/proc/sys/fs/inotify/max_user_instances"
    text = (machine.read(place) or "").strip()
    need = 128 + 8 * local_desktops(config)
    if text.isdigit() and int(text) < need:
        return warn(f"{text} inotify instances; {need} wanted", "sysctl fs.inotify.max_user_instances=8192")
    return ok(f"{text or 'unknown'} inotify instances; {need} wanted")
