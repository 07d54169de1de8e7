"""What a check is, and the list of them all."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from arpo_replica.config.models import StudyConfig
from arpo_replica.config.policy import SERVED
from arpo_replica.doctor.machine import Machine

GROUPS = ("machine", "limits", "python", "study", "desktops", "docker", "osworld", "model", "gpu", "slurm")
"""Modules ``doctor.checks_NAME``, in the order of the lines."""


class Level(StrEnum):
    """How a check ended."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found. ``fix`` is what the user should do; every level but OK has one."""

    level: Level
    found: str
    fix: str = ""


def ok(found: str) -> Finding:
    """All is well."""
    return Finding(Level.OK, found)


def warn(found: str, fix: str) -> Finding:
    """It will run, but slower, less surely, or with other results than expected."""
    return Finding(Level.WARN, found, fix)


def fail(found: str, fix: str) -> Finding:
    """It will not run."""
    return Finding(Level.FAIL, found, fix)


def has_models(config: StudyConfig) -> bool:
    """True if models are served or trained on this machine, not by a server elsewhere alone."""
    return config.policy.model != SERVED


def always(config: StudyConfig) -> bool:
    """For checks that every config needs."""
    return True


Run = Callable[[StudyConfig, Machine], Finding]
RunAnyway = Callable[[Machine], Finding]


@dataclass(frozen=True, slots=True)
class Check:
    """One check. ``run`` or, for those that need no config, ``run_anyway``."""

    name: str
    title: str
    """What must be so, in a few words."""
    when: Callable[[StudyConfig], bool]
    run: Run | None
    run_anyway: RunAnyway | None


_CHECKS: dict[str, Check] = {}


def check(title: str, when: Callable[[StudyConfig], bool] = always) -> Callable[[Run], Run]:
    """Register a function of config and machine as the check of its name; it runs if ``when`` says so."""

    def register(run: Run) -> Run:
        _add(Check(run.__name__, title, when, run, None))
        return run

    return register


def check_machine(title: str) -> Callable[[RunAnyway], RunAnyway]:
    """The same for a function of the machine alone: it runs even if the config is broken."""

    def register(run: RunAnyway) -> RunAnyway:
        _add(Check(run.__name__, title, always, None, run))
        return run

    return register


def _add(new: Check) -> None:
    if new.name in _CHECKS:
        raise ValueError(f"two checks are called {new.name}")
    _CHECKS[new.name] = new


def all_checks() -> dict[str, Check]:
    """Name -> check, in the order of ``GROUPS``."""
    for group in GROUPS:
        importlib.import_module(f"arpo_replica.doctor.checks_{group}")
    return dict(_CHECKS)
