"""The cluster, where there is one: Slurm, the site file, and what the study's jobs may ask for."""

from __future__ import annotations

import math

from arpo_replica.base.errors import UserError
from arpo_replica.cluster import pools
from arpo_replica.cluster.costs import JobEstimate, rollout_estimate, stage_estimate
from arpo_replica.cluster.profile import SITE_FILE, Profile, load_site, make_profile
from arpo_replica.cluster.resources import LEAST_MINUTES, Need, large_jobs, minutes, misfit
from arpo_replica.config.models import StudyConfig
from arpo_replica.doctor.examine import Finding, check, fail, ok, warn
from arpo_replica.doctor.machine import Machine

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


def longest(config: StudyConfig, gpus: bool) -> JobEstimate | None:
    """The study's longest job with, or without, GPUs."""
    jobs = [rollout_estimate(config, arm) for arm in config.arms]
    for arm in config.online_arms:
        jobs += [stage_estimate(config, arm, stage.name) for stage in config.training.stages]
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
