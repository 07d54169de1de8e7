"""``plan``: what a study would run and cost, before anything is submitted.

The jobs are those of Snakemake's own dry-run, so what is finished is not counted; their costs are estimates
(``costs``).
"""

import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from arpo_replica.base.environments import ROOT
from arpo_replica.base.errors import UserError
from arpo_replica.cluster.costs import (
    Costs,
    JobEstimate,
    Prices,
    costs_of,
    estimate,
    memory_need,
    serving_gib,
)
from arpo_replica.cluster.pools import size
from arpo_replica.cluster.step_model import REPLY_TOKENS, describe_step
from arpo_replica.config import load_config
from arpo_replica.config.decides import ACTING
from arpo_replica.config.models import StudyConfig
from arpo_replica.policy.prompt import conversation_length
from arpo_replica.workflow.study import Study

SUBMITTED = {
    *("train_stage", "collect_rollouts", "measure_throughput", "collect_offline_episodes", "train_offline"),
    *("record_demonstrations", "build_nano_model", "build_desktop_image", "validate_tasks", "select_tasks"),
}
"""Rules whose jobs go to the cluster; all others are ``localrule``."""
COLUMNS = f"{'jobs':>6}{'hours each':>12}{'hours':>9}{'GPU-hours':>11}{'disk GB':>9}"
JOB = re.compile(r"^(?:local)?rule (\w+):\n((?:[ \t]+.*\n?)*)", re.MULTILINE)
WILDCARDS = re.compile(r"^ +wildcards: (.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class PlannedJob:
    rule: str
    local: bool
    wildcards: dict[str, str]
    estimate: JobEstimate


@dataclass(frozen=True, slots=True)
class Plan:
    """A study and the jobs that a run of it would start now."""

    config: StudyConfig
    jobs: list[PlannedJob]
    lacks: list[str]
    """Why a run on this machine would not start, a sentence each."""


def plan_studies(studies: Sequence[Sequence[Path]], targets: Sequence[str] = ()) -> list[Plan]:
    """Plan several studies at once, e.g. one per model. ``studies``: the config files of each.

    Raises ``UserError`` if one cannot be planned or two have the same name: they would share their results.
    """
    seen: dict[str, str] = {}
    for paths in studies:
        name, files = load_config(*paths).name, " ".join(map(str, paths))
        if name in seen:
            raise UserError(
                f"Study '{name}' is named by '{seen[name]}' and by '{files}'; give one of them another "
                "'study', they would share results/" + name + "."
            )
        seen[name] = files
    with ThreadPoolExecutor(max_workers=2) as pool:  # each is a Snakemake of its own
        return list(pool.map(lambda paths: plan(paths, targets), studies))


def plan(paths: Sequence[Path], targets: Sequence[str] = ()) -> Plan:
    """The jobs that a run would start now. Raises ``UserError`` with what Snakemake refuses."""
    study = Study(load_config(*paths))
    study.check()
    here = any(Path(name).is_file() for name in ("Snakefile", "workflow/Snakefile"))
    command = [
        *(sys.executable, "-m", "snakemake", "--dry-run", "--nolock", "--cores", "1"),
        *(() if here else ("--snakefile", str(ROOT / "Snakefile"))),
        *("--configfile", *map(str, paths), "--", *targets),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        refused = done.returncode == 2  # by a sentence of ours
        raise UserError(lines[-1] if refused else "Snakemake cannot plan this study: " + " ".join(lines[-3:]))
    return Plan(study.config, read_jobs(study.config, done.stdout + done.stderr), study.lacks())


def read_jobs(config: StudyConfig, text: str) -> list[PlannedJob]:
    jobs = []
    for rule, body in JOB.findall(text):
        found = WILDCARDS.search(body)
        pairs = (part.split("=", 1) for part in found[1].split(", ")) if found else ()
        wildcards = {part[0]: part[1] for part in pairs}
        cost = estimate(config, rule, wildcards.get("arm", ""), wildcards.get("stage", ""))
        jobs.append(PlannedJob(rule, rule not in SUBMITTED, wildcards, cost))
    return jobs


def render(plan: Plan, prices: Prices) -> str:
    config, jobs = plan.config, plan.jobs
    lacks = [f"A run here would refuse to start: {sentence}" for sentence in plan.lacks]
    if not jobs:
        return "\n".join([f"Study '{config.name}': nothing to do.", *lacks]) + "\n"
    groups: dict[str, list[PlannedJob]] = defaultdict(list)
    for job in jobs:
        groups["(on this machine)" if job.local else job.rule].append(job)
    lines = [
        f"Study '{config.name}', size {config.size}, {config.desktop.count} desktops at once",
        "",
        f"{'rule':24}{COLUMNS}",
    ]
    for name, group in sorted(groups.items(), key=lambda entry: -sum(job.estimate.hours for job in entry[1])):
        lines.append(_line(name, group, each=name[0] != "("))
    lines += [_line("total", jobs, each=False), *_pools(config, jobs), "", *_sources(costs_of(config))]
    step = "A training step, by the event model of data/cluster/step_costs.yaml:"
    lines += _by_arm(config, step, describe_step)
    lines += _by_arm(config, "Memory of each GPU that trains, data/cluster/costs.yaml:", memory_need)
    if config.accelerator == "cuda" and (served := serving_gib(config)):
        reduced = (
            f" (serving.quantization: {config.serving.quantization})" if config.serving.quantization else ""
        )
        lines += ["", f"Memory of each GPU that serves: computed, about {served:.0f} GiB at least{reduced}."]
    lines += _price(config, jobs, prices)
    lines += ["", *lacks] if lacks else []
    return "\n".join(lines) + "\n"


def render_studies(plans: Sequence[Plan], prices: Prices) -> str:
    """The plans as text; of several studies also their sum."""
    text = "\n".join(render(plan, prices) for plan in plans)
    if len(plans) < 2:
        return text
    jobs = list(chain.from_iterable(plan.jobs for plan in plans))
    sent = sum(not job.local for job in jobs)
    lines = [
        f"All {len(plans)} studies, {sent} jobs for the cluster",
        "",
        f"{'study':24}{COLUMNS}",
        *(_line(plan.config.name, plan.jobs, each=False) for plan in plans),
        _line("total", jobs, each=False),
    ]
    return text + "\n" + "\n".join(lines) + "\n"


def _pools(config: StudyConfig, jobs: Sequence[PlannedJob]) -> list[str]:
    """What the pools of desktops take, if the workflow starts them: one job after the other, at most."""
    pools, acting = config.desktop.pool_jobs, ACTING.split()
    hours = sum(job.estimate.hours for job in jobs if job.rule in acting)
    if pools is None or not hours:
        return []
    cores, memory = size(config)
    return [
        "",
        f"Pools of desktops: {pools.nodes} nodes x {pools.per_node} desktops ({cores} processors, "
        f"{memory / 1000:.0f} GB each) for {hours:.2f} hours: {pools.nodes * hours:.1f} node-hours, fewer "
        "where jobs run at once",
    ]


def _line(name: str, jobs: Sequence[PlannedJob], *, each: bool) -> str:
    hours = [job.estimate.hours for job in jobs]
    gpu_hours = sum(job.estimate.hours * job.estimate.gpus for job in jobs)
    spread = "-".join(dict.fromkeys((f"{min(hours):.2f}", f"{max(hours):.2f}"))) if each else ""
    disk = sum(job.estimate.disk_gb for job in jobs)
    return f"{name:24}{len(jobs):6d}{spread:>12}{sum(hours):9.2f}{gpu_hours:11.1f}{disk:9.1f}"


def _by_arm(config: StudyConfig, heading: str, say: Callable[[StudyConfig, str], object]) -> list[str]:
    """What is said of each training, once for arms of which the same is said; nothing if it is None."""
    arms: dict[str, list[str]] = defaultdict(list)
    for arm in config.online_arms:
        if (said := say(config, arm)) is not None:
            arms[str(said)].append(arm)
    lines = [f"  {', '.join(names)}: {words}" for words, names in arms.items()]
    return ["", heading, *lines] if lines else []


def _price(config: StudyConfig, jobs: Sequence[PlannedJob], prices: Prices) -> list[str]:
    """Money, energy and tokens; nothing for a study that plays no episode."""
    gpu_hours = sum(job.estimate.hours * job.estimate.gpus for job in jobs)
    episodes = sum(job.estimate.episodes for job in jobs)
    if not episodes:
        return []
    tokens = episodes * conversation_length(config).most / 1e6
    written = episodes * config.policy.max_steps * min(REPLY_TOKENS, config.policy.max_new_tokens) / 1e6
    lines = [
        "",
        f"Tokens of {episodes} episodes of {config.policy.max_steps} steps, at most: {written:.1f} million "
        f"written, {tokens:.0f} million read (each once: prefix cache).",
    ]
    if not gpu_hours:
        return lines
    low, high = (gpu_hours * price for price in prices.usd_per_gpu_hour)
    lines.append(
        f"Money: {gpu_hours:.1f} GPU-hours of an {prices.card} are {low:,.0f} to {high:,.0f} USD "
        f"({prices.source}); desktops and disks are not in it."
    )
    if prices.others:
        asked = [
            f"{other.card} {' to '.join(f'{usd:.2f}' for usd in dict.fromkeys(other.usd_per_gpu_hour))}"
            for other in prices.others
        ]
        lines.append(f"An hour of other cards, which may take more of them: {', '.join(asked)} USD.")
    if prices.watts:
        energy = gpu_hours * prices.watts / 1000
        lines.append(f"Energy of the GPUs: {energy:.1f} kWh ({prices.watts:.0f} W, {prices.watts_source}).")
    return lines


def _sources(costs: Costs) -> list[str]:
    """How far the numbers can be trusted."""
    lines = ["Estimates, without queues and restarts, from data/cluster/costs.yaml:"]
    for name in ("episodes_per_hour", "update_gpu_seconds", "start_seconds", "episode_mb"):
        number = getattr(costs, name)
        lines.append(f"  {name}: {number.basis} ({number.source})")
    return lines
