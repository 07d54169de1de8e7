"""The locked Python environments."""

from __future__ import annotations

from arpo_replica.base.environments import heavy_environment
from arpo_replica.config.models import StudyConfig
from arpo_replica.doctor.machine import Machine
from arpo_replica.doctor.registry import Finding, check, fail, has_models, ok, warn


def _state(machine: Machine, name: str, why: str) -> Finding:
    state = machine.environment_state(name)
    command = f"python3 envs/prepare.py {name}"
    if state == "missing":
        return fail(f"envs/{name} ({why}) is not prepared", command)
    if state == "stale":
        return warn(f"envs/{name} was prepared from another lock or an interrupted run", command)
    return ok(f"envs/{name} is what its lock says")


@check("the controller's packages")
def controller_environment(config: StudyConfig, machine: Machine) -> Finding:
    """Snakemake, statistics, report."""
    return _state(machine, "controller", "workflow and report")


@check("packages that serve and train", has_models)
def heavy_packages(config: StudyConfig, machine: Machine) -> Finding:
    """torch, vLLM, verl, Ray, transformers: they fit together in the locked versions only."""
    return _state(machine, heavy_environment(config.accelerator), "serves and trains")


NODE = "lib/python3.*/site-packages/playwright/driver/node"


def needs_evaluators(config: StudyConfig) -> bool:
    """True if this machine's desktops may have OSWorld's tasks."""
    return config.desktop.provider in ("container", "osworld")


@check("OSWorld's evaluators", needs_evaluators)
def evaluator_environment(config: StudyConfig, machine: Machine) -> Finding:
    """desktop-env, in an environment of its own."""
    return _state(machine, "evaluator", "OSWorld's set-up and evaluators")


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
