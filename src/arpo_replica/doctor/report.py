"""Runs the checks and prints them; makes the table of docs/doctor.md."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from arpo_replica.base.errors import UserError
from arpo_replica.config import load_config
from arpo_replica.config.models import StudyConfig
from arpo_replica.doctor.machine import Machine
from arpo_replica.doctor.registry import Check, Finding, Level, all_checks, fail, ok

CONFIG_NAME, CONFIG_TITLE = "config", "the config itself"
START, END = "<!-- checks: begin -->", "<!-- checks: end -->"
Findings = list[tuple[str, str, Finding]]
"""(name, title, finding) in order."""


def run(
    paths: Sequence[Path],
    *,
    as_json: bool = False,
    only: str = "",
    only_list: bool = False,
    machine: Machine | None = None,
) -> int:
    """Print what is found; 1 if anything fails. Raises ``UserError`` for a name that is no check.

    ``paths``: the config's files, later ones over earlier ones.
    """
    checks = all_checks()
    if only_list:
        for check in checks.values():
            print(f"{check.name:24}{check.title}")
        return 0
    wanted = [name for name in only.replace(",", " ").split() if name]
    unknown = [name for name in wanted if name not in checks]
    if unknown:
        raise UserError(f"--only names '{unknown[0]}', which is no check; see doctor --list.")
    findings = examine(paths, machine or Machine(), [checks[name] for name in wanted] or checks.values())
    print(to_json(paths, findings) if as_json else to_text(findings))
    return int(any(finding.level is Level.FAIL for _, _, finding in findings))


def examine(paths: Sequence[Path], machine: Machine, checks: Iterable[Check]) -> Findings:
    """Run the checks that the config needs; with a broken config those that need none."""
    findings: Findings = []
    config: StudyConfig | None = None
    try:
        config = load_config(*paths)
        words = f"{', '.join(map(str, paths))}: study '{config.name}', size {config.size}"
        findings.append((CONFIG_NAME, CONFIG_TITLE, ok(words)))
    except UserError as error:
        findings.append((CONFIG_NAME, CONFIG_TITLE, fail(str(error), "correct it; configs/README.md")))
    for check in checks:
        finding = _one(check, config, machine)
        if finding is not None:
            findings.append((check.name, check.title, finding))
    return findings


def _one(check: Check, config: StudyConfig | None, machine: Machine) -> Finding | None:
    """The finding of one check, or None if it does not apply. Never raises."""
    try:
        if check.run_anyway is not None:
            return check.run_anyway(machine)
        if config is None or check.run is None or not check.when(config):
            return None
        return check.run(config, machine)
    except Exception as error:
        # A check that breaks on an odd machine must not hide the others; it says so and fails.
        words = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return fail(
            f"the check itself broke: {words}", f"look by hand, and report it: doctor --only {check.name}"
        )


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
        function = check.run or check.run_anyway
        why = " ".join((function.__doc__ or "").split()).replace("|", "\\|")
        lines.append(f"| `{check.name}` | {check.title} | {why} |")
    return "\n".join([*lines, END])


def fill(page: str) -> str:
    """A page with its generated part made anew."""
    before, _, rest = page.partition(START)
    return before + table() + rest.partition(END)[2]
