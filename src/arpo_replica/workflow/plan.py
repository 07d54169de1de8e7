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
from arpo_replica.cluster.costs import JobEstimate, Prices, costs_of, estimate, memory_need, serving_gib
from arpo_replica.cluster.pools import size
from arpo_replica.cluster.step_model import REPLY_TOKENS, describe_step
from arpo_replica.config import load_config
from arpo_replica.config.decides import ACTING
from arpo_replica.config.docs import render_text
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
    """The plan as text, by ``plan.txt.j2``."""
    config, jobs = plan.config, plan.jobs
    groups: dict[str, list[PlannedJob]] = defaultdict(list)
    for job in jobs:
        groups["(on this machine)" if job.local else job.rule].append(job)
    episodes = sum(job.estimate.episodes for job in jobs)
    replies = episodes * config.policy.max_steps
    step = "A training step, by the event model of data/cluster/step_costs.yaml:"
    memory = "Memory of each GPU that trains, data/cluster/costs.yaml:"
    acting, pools = ACTING.split(), config.desktop.pool_jobs
    return render_text(
        Path(__file__).with_name("plan.txt.j2"),
        config=config,
        jobs=jobs,
        lacks=plan.lacks,
        prices=prices,
        head=_head,
        line=_line,
        groups=sorted(groups.items(), key=lambda entry: -_hours(entry[1])),
        pools=pools,
        place=size(config) if pools else None,
        # One job after the other, at most.
        acting=_hours([job for job in jobs if job.rule in acting]),
        costs=costs_of(config) if jobs else None,
        trainings=[(step, _by_arm(config, describe_step)), (memory, _by_arm(config, memory_need))],
        served=serving_gib(config) if config.accelerator == "cuda" else None,
        episodes=episodes,
        written=replies * min(REPLY_TOKENS, config.policy.max_new_tokens) / 1e6,
        tokens=episodes * conversation_length(config).most / 1e6 if episodes else 0,
        gpu_hours=_gpu_hours(jobs),
    )


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
        _head("study"),
        *(_line(plan.config.name, plan.jobs) for plan in plans),
        _line("total", jobs),
    ]
    return text + "\n" + "\n".join(lines) + "\n"


def _head(what: str) -> str:
    return f"{what:24}{COLUMNS}"


def _hours(jobs: Sequence[PlannedJob]) -> float:
    return sum(job.estimate.hours for job in jobs)


def _gpu_hours(jobs: Sequence[PlannedJob]) -> float:
    return sum(job.estimate.hours * job.estimate.gpus for job in jobs)


def _line(name: str, jobs: Sequence[PlannedJob], *, each: bool = False) -> str:
    hours = [job.estimate.hours for job in jobs]
    spread = "-".join(dict.fromkeys((f"{min(hours):.2f}", f"{max(hours):.2f}"))) if each else ""
    disk = sum(job.estimate.disk_gb for job in jobs)
    return f"{name:24}{len(jobs):6d}{spread:>12}{sum(hours):9.2f}{_gpu_hours(jobs):11.1f}{disk:9.1f}"


def _by_arm(config: StudyConfig, say: Callable[[StudyConfig, str], object]) -> dict[str, list[str]]:
    """What is said of each training, with the arms of which it is said; nothing where it is None."""
    arms: dict[str, list[str]] = defaultdict(list)
    for arm in config.online_arms:
        if (said := say(config, arm)) is not None:
            arms[str(said)].append(arm)
    return arms
