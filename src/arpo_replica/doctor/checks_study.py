"""What the config asks for: tasks, sizes, limits; values that users have met as silent traps."""

from __future__ import annotations

import math

from arpo_replica.base.errors import UserError
from arpo_replica.config.models import StudyConfig
from arpo_replica.doctor.machine import Machine
from arpo_replica.doctor.registry import Finding, check, fail, ok, warn
from arpo_replica.suites.planned import check_tasks, planned_tasks
from arpo_replica.tasks.left_out import check_left_out
from arpo_replica.tasks.model import Task

GOOGLE_STEPS = {"googledrive", "login"}


def is_large(config: StudyConfig) -> bool:
    """True for studies whose results stand beside the paper's."""
    return config.size != "nano"


def used_splits(config: StudyConfig) -> list[str]:
    """Splits that are trained or evaluated on."""
    return sorted({stage.split for stage in config.training.stages} | set(config.evaluation.splits))


def known_tasks(config: StudyConfig) -> list[Task]:
    """Tasks of the used splits whose files are there; a split that cannot be read counts as empty."""
    found = {}
    for split in used_splits(config):
        try:
            for task in planned_tasks(config, split) or []:
                found[task.domain, task.id] = task
        except UserError:
            continue
    return list(found.values())


@check("task lists and task files")
def task_files(config: StudyConfig, machine: Machine) -> Finding:
    """Lists name files that exist, with set-up steps and evaluators that exist."""
    count, later = 0, []
    try:
        check_left_out(config)
        for split in used_splits(config):
            tasks = planned_tasks(config, split)
            if tasks is None:
                later.append(split)
                continue
            check_tasks(tasks)
            count += len(tasks)
    except UserError as error:
        return fail(str(error), "correct the split or restore the file that it names")
    words = f"{count} tasks in {len(used_splits(config)) - len(later)} splits"
    return ok(words + (f"; made by the workflow: {', '.join(later)}" if later else ""))


@check("tasks that change with the world")
def live_tasks(config: StudyConfig, machine: Machine) -> Finding:
    """Live web sites drift, Google accounts are private: such scores differ from day to day and place."""
    live, google = [], []
    for task in known_tasks(config):
        steps = {str(step.get("type")) for step in task.config if isinstance(step, dict)}
        changing = task.raw.get("possibility_of_env_change") in ("medium", "high")
        if GOOGLE_STEPS & steps:
            google.append(task.id)
        elif task.raw.get("proxy") is True or changing:
            live.append(task.id)
    if google:
        return warn(
            f"{len(google)} tasks need a Google account, e.g. {google[0]}",
            "add data/osworld/left_out/google_account.yaml to tasks.leave_out",
        )
    if live:
        return warn(
            f"{len(live)} tasks look at live web pages, e.g. {live[0]}", "report them apart, or drop them"
        )
    return ok("none")


@check("infeasible tasks are known")
def infeasible_share(config: StudyConfig, machine: Machine) -> Finding:
    """A policy that always says FAIL solves them all: about 8 % of OSWorld for nothing."""
    tasks = known_tasks(config)
    share = sum(task.infeasible for task in tasks)
    if not tasks or not share:
        return ok(f"none of {len(tasks)}")
    if share / len(tasks) > 0.3:
        return warn(
            f"{share} of {len(tasks)}: always FAIL scores {100 * share / len(tasks):.0f} %",
            "read hard and standard scores apart",
        )
    return ok(f"{share} of {len(tasks)}: always FAIL scores {100 * share / len(tasks):.0f} %")


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
    sizes = {}
    for split in config.evaluation.splits:
        try:
            sizes[split] = len(planned_tasks(config, split) or []) * config.evaluation.trials
        except UserError:
            continue
    episodes = max(sizes.values(), default=0)
    if not episodes:
        return warn("no task of the evaluated splits is there yet", "run doctor again when they are")
    half = 100 * 1.96 * math.sqrt(0.25 * 0.75 / episodes)
    words = f"{episodes} episodes per arm: 25 % comes out as 25 ± {half:.1f} points"
    if "base" not in config.arms:
        return warn(f"{words}; no base arm", "add base: {} to arms: compare with the base measured here")
    return ok(words) if half < 5 else warn(words, "raise evaluation.trials")


@check("group and batch sizes that fit", lambda config: bool(config.online_arms))
def training_sizes(config: StudyConfig, machine: Machine) -> Finding:
    """Batches smaller than a minibatch, single rollouts, splits smaller than a step."""
    for arm in config.online_arms:
        recipe = config.recipe(arm)
        rollouts = recipe.minibatch_tasks * recipe.rollouts_per_task
        if rollouts % recipe.micro_batch:
            return fail(
                f"{arm}: micro_batch {recipe.micro_batch} does not divide {rollouts} rollouts",
                "set training.micro_batch to a divisor",
            )
        for stage in config.training.stages:
            try:
                tasks = planned_tasks(config, stage.split)
            except UserError:
                continue
            if tasks is not None and len(tasks) < recipe.tasks_per_step:
                return fail(
                    f"{arm}: split {stage.split} has {len(tasks)} tasks, a step {recipe.tasks_per_step}",
                    "lower training.tasks_per_step",
                )
    return ok("they fit")


@check("stalled work is noticed")
def watchdogs(config: StudyConfig, machine: Machine) -> Finding:
    """Silent hangs: every wait of ours has an end, and progress is written to heartbeat.json."""
    stall, episode = config.training.stall_timeout_s, config.rollout.episode_timeout_s
    words = f"an episode ends after {episode} s, a stalled training after {stall} s"
    if stall <= episode:
        return warn(words, "set training.stall_timeout_s above rollout.episode_timeout_s")
    if stall > 7_200:
        return warn(words, "lower training.stall_timeout_s: a hang costs that long")
    return ok(words)
