"""The study: what it would refuse itself, and values that users have met as silent traps."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from arpo_replica.base.errors import UserError
from arpo_replica.config.models import StudyConfig
from arpo_replica.config.policy import SERVED
from arpo_replica.desktop import sandbox
from arpo_replica.doctor.examine import Finding, check, fail, ok, warn
from arpo_replica.doctor.machine import Machine
from arpo_replica.policy.prompt import conversation_length
from arpo_replica.suites.planned import planned_tasks
from arpo_replica.tasks.model import Task

KINDS = {"qwen2_5_vl": "absolute", "qwen2_vl": "relative_1000"}
"""``model_type`` of a model of UI-TARS -> the coordinates it was trained with."""
GOOGLE_STEPS = {"googledrive", "login"}


def is_large(config: StudyConfig) -> bool:
    """True for studies whose results stand beside the paper's."""
    return config.size != "nano"


def has_folder(config: StudyConfig) -> bool:
    """True if the policy is a folder of the user's."""
    return config.policy.model not in ("nano", SERVED) and "/" in config.policy.model


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
    """Live web sites drift, Google accounts are private; a policy that always says FAIL solves the infeasible
    tasks, about 8 % of OSWorld, for nothing."""
    tasks = known_tasks(config, {*config.training_splits, *config.evaluation.splits})
    google = [
        task.id
        for task in tasks
        if GOOGLE_STEPS & {str(step.get("type")) for step in task.config if isinstance(step, dict)}
    ]
    if google:
        fix = "add data/osworld/left_out/google_account.yaml to tasks.leave_out"
        return warn(f"{len(google)} tasks need a Google account, e.g. {google[0]}", fix)
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
        return warn(
            f"{len(live)} tasks look at live web pages, e.g. {live[0]}", "report them apart, or drop them"
        )
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
    folder = has_folder(config)
    described = machine.root / "data" / "models" / f"{config.policy.model}.json"
    path = Path(config.policy.model) / "config.json" if folder else described
    try:
        found = json.loads(machine.read(path) or "{}")
        found = found if folder else found.get("config", {})
    except (ValueError, AttributeError):
        return {}
    return found if isinstance(found, dict) else {}


@check("the model's folder", has_folder)
def model_folder(config: StudyConfig, machine: Machine) -> Finding:
    """A download that broke off lacks shards, or has pointers of a few bytes in their place."""
    folder = Path(config.policy.model)
    if not model_config(config, machine):
        return fail(f"{folder} has no readable config.json", "correct policy.model or fetch the model again")
    wanted = {path.name for path in machine.files(folder, "*.safetensors")}
    try:
        index = json.loads(machine.read(folder / "model.safetensors.index.json") or "{}")
        wanted |= set((index.get("weight_map") or {}).values())
    except (ValueError, AttributeError, TypeError):
        return fail("model.safetensors.index.json is no JSON", "fetch the model again")
    if not wanted:
        return fail(f"{folder} has no *.safetensors", "fetch the model again, or convert it")
    sizes = {name: machine.size(folder / name) or 0 for name in wanted}
    broken = sorted(name for name, size in sizes.items() if size < 1_000)
    if broken:
        return fail(f"missing or broken off: {', '.join(broken[:3])}", "fetch the model again (git lfs pull)")
    others = ("tokenizer_config.json", "preprocessor_config.json")
    missing = [name for name in others if not machine.exists(folder / name)]
    if missing:
        return fail(f"{folder} lacks {', '.join(missing)}", "fetch the model again")
    return ok(f"{len(sizes)} files of weights, {sum(sizes.values()) / 2**30:.1f} GiB")


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
