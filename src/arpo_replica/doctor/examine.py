"""What a check is, the list of them all, and what they find; the table of docs/doctor.md."""

import importlib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from arpo_replica.base.errors import UserError
from arpo_replica.config import load_config
from arpo_replica.config.models import StudyConfig
from arpo_replica.doctor.machine import Machine

START, END = "<!-- checks: begin -->", "<!-- checks: end -->"


class Level(StrEnum):
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


Run = Callable[[Any, Machine], Finding]
"""Of the config (None if it is broken and the check needs none) and the machine."""


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    title: str
    """What must be so, in a few words."""
    run: Run
    when: Callable[[StudyConfig], bool] | None
    """Which configs need it; None: it needs no config and runs even if that is broken."""

    def applies(self, config: StudyConfig | None) -> bool:
        return self.when is None or (config is not None and self.when(config))


_CHECKS: dict[str, Check] = {}


def always(config: StudyConfig) -> bool:
    """For checks that every config needs."""
    return True


def check(title: str, when: Callable[[StudyConfig], bool] | None = always) -> Callable[[Run], Run]:
    """Register a function as the check of its name; its docstring says why there is one."""

    def register(run: Run) -> Run:
        if run.__name__ in _CHECKS:
            raise ValueError(f"two checks are called {run.__name__}")
        _CHECKS[run.__name__] = Check(run.__name__, title, run, when)
        return run

    return register


def all_checks() -> dict[str, Check]:
    """Name -> check, in the order of their file."""
    importlib.import_module("arpo_replica.doctor.checks")
    return dict(_CHECKS)


Findings = list[tuple[str, str, Finding]]
"""(name, title, finding) in order."""


def run(
    paths: Sequence[Path],
    *,
    as_json: bool = False,
    only: str = "",
    only_list: bool = False,
    machine: Machine | None = None,
) -> tuple[str, int]:
    """What is found, as text, and 1 if anything fails, else 0. Raises ``UserError`` for an unknown name.

    ``paths``: the config's files, later ones over earlier ones.
    """
    checks = all_checks()
    if only_list:
        return "\n".join(f"{check.name:24}{check.title}" for check in checks.values()), 0
    wanted = only.replace(",", " ").split()
    if unknown := [name for name in wanted if name not in checks]:
        raise UserError(f"--only names '{unknown[0]}', which is no check; see doctor --list.")
    findings = examine(paths, machine or Machine(), [checks[name] for name in wanted] or checks.values())
    text = to_json(paths, findings) if as_json else to_text(findings)
    return text, int(any(finding.level is Level.FAIL for _, _, finding in findings))


def examine(paths: Sequence[Path], machine: Machine, checks: Iterable[Check]) -> Findings:
    """Run the checks that the config needs; with a broken config those that need none."""
    config: StudyConfig | None = None
    try:
        config = load_config(*paths)
        first = ok(f"{', '.join(map(str, paths))}: study '{config.name}', size {config.size}")
    except UserError as error:
        first = fail(str(error), "correct it; configs/README.md")
    findings = [("config", "the config itself", first)]
    for check in checks:
        try:
            if check.applies(config):
                findings.append((check.name, check.title, check.run(config, machine)))
        except Exception as error:
            # A check that breaks on an odd machine must not hide the others; it says so and fails.
            words = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            fix = f"look by hand, and report it: doctor --only {check.name}"
            findings.append((check.name, check.title, fail(f"the check itself broke: {words}", fix)))
    return findings


def to_text(findings: Findings) -> str:
    """One line per finding, and the sum."""
    lines = []
    for name, title, finding in findings:
        fix = f" -> {finding.fix}" if finding.fix else ""
        lines.append(" ".join(f"{finding.level:5}{name:22} {title}: {finding.found}{fix}".splitlines()))
    count = {level: sum(finding.level is level for _, _, finding in findings) for level in Level}
    lines.append(f"{count[Level.OK]} fine, {count[Level.WARN]} warnings, {count[Level.FAIL]} failures")
    text = "\n".join(lines)
    encoding = sys.stdout.encoding or "ascii"
    return text.encode(encoding, "replace").decode(encoding)


def to_json(paths: Sequence[Path], findings: Findings) -> str:
    """The same for machines; ASCII alone, whatever the locale."""
    content = {
        "schema_version": 1,
        "config": ", ".join(map(str, paths)),
        "failures": sum(finding.level is Level.FAIL for _, _, finding in findings),
        "checks": [
            {"name": name, "title": title, "level": finding.level, "found": finding.found, "fix": finding.fix}
            for name, title, finding in findings
        ],
    }
    return json.dumps(content, indent=1)


def table() -> str:
    """The generated part of docs/doctor.md."""
    lines = [START, "| check | what must be so | why |", "| --- | --- | --- |"]
    for check in all_checks().values():
        why = " ".join((check.run.__doc__ or "").split()).replace("|", "\\|")
        lines.append(f"| `{check.name}` | {check.title} | {why} |")
    return "\n".join([*lines, END])


def fill(page: str) -> str:
    """A page with its generated part made anew."""
    before, _, rest = page.partition(START)
    return before + table() + rest.partition(END)[2]
