"""The locked Python environments."""

from __future__ import annotations

from arpo_replica.config.models import StudyConfig
from arpo_replica.doctor.machine import Machine
from arpo_replica.doctor.registry import Finding, check, fail, ok, warn
from arpo_replica.environments import heavy_environment


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


@check("packages that serve and train")
def heavy_packages(config: StudyConfig, machine: Machine) -> Finding:
    """torch, vLLM, verl, Ray, transformers: they fit together in the locked versions only."""
    return _state(machine, heavy_environment(config.accelerator), "serves and trains")


@check(
    "OSWorld's evaluators",
    lambda config: config.desktop.provider in ("container", "osworld"),
)
def evaluator_environment(config: StudyConfig, machine: Machine) -> Finding:
    """desktop-env, in an environment of its own."""
    return _state(machine, "evaluator", "OSWorld's set-up and evaluators")
