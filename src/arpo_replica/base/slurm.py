"""What Slurm says about itself: its partitions, and whether it keeps accounts."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

from arpo_replica.base.errors import UserError

TIMEOUT_S = 30
Ask = Callable[..., str]
"""Function of a command line that returns what it prints or raises ``UserError``."""


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition."""

    name: str
    default: bool
    gpus: dict[str, int]
    """Type of GPU (empty if untyped) -> most on one node."""
    minutes: int | None
    """Longest run time; None: unlimited."""
    nodes: int = 1
    """Number of its nodes."""
    cpus: int | None = None
    """Processors of its largest node; None: unknown."""
    memory_mb: int | None = None
    """Main memory of its largest node, MB; None: unknown."""
    up: bool = True
    """False while it takes or starts no jobs."""


def ask(*command: str) -> str:
    """Output of one of Slurm's commands. Raises ``UserError`` if it is missing or Slurm does not answer."""
    if shutil.which(command[0]) is None:
        raise UserError(
            f"Slurm's command '{command[0]}' was not found; run this on the cluster's login node, or leave "
            "--profile slurm out to run on this machine."
        )
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(
            f"Slurm did not answer '{' '.join(command)}' within {TIMEOUT_S} s; see whether 'scontrol ping' "
            "finds its controller, and try again."
        ) from None
    if done.returncode:
        words = " ".join(done.stderr.split()) or f"status {done.returncode}"
        raise UserError(
            f"Slurm does not answer ({' '.join(command)}: {words}); see whether 'scontrol ping' finds its "
            "controller, and try again."
        )
    return done.stdout


def partitions(ask: Ask = ask) -> list[Partition]:
    """All partitions, in Slurm's order. ``ask``: how Slurm is asked (the doctor has its own way)."""
    found: dict[str, Partition] = {}
    for line in ask("sinfo", "--noheader", "--format=%P|%l|%D|%G|%c|%m|%a").splitlines():
        name, limit, count, gres, cpus, memory, state = [part.strip() for part in f"{line}|||".split("|")[:7]]
        default, name = name.endswith("*"), name.removesuffix("*")
        before = found.get(name)
        gpus = {} if before is None else dict(before.gpus)
        for kind, number in read_gres(gres).items():
            gpus[kind] = max(number, gpus.get(kind, 0))
        nodes = (read_number(count) or 0) + (0 if before is None else before.nodes)
        most_cpus = larger(cpus, None if before is None else before.cpus)
        most_mb = larger(memory, None if before is None else before.memory_mb)
        up = state in {"", "up"}
        found[name] = Partition(name, default, gpus, read_minutes(limit), nodes, most_cpus, most_mb, up)
    return list(found.values())


def larger(text: str, known: int | None) -> int | None:
    """The larger of a number as ``sinfo`` prints it and a known one."""
    return max((value for value in (read_number(text), known) if value is not None), default=None)


def read_number(text: str) -> int | None:
    """``64``, ``64+`` (at least 64), ``1.5K`` (1,536); None for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG]?)\+?", text)
    return None if found is None else int(float(found[1]) * 1024 ** " KMG".index(found[2] or " "))


def read_gres(text: str) -> dict[str, int]:
    """``gpu:h200:8(S:0-1),gpu:2`` -> ``{"h200": 8, "": 2}``; so does ``gpu:h200:no_consume:8,gpu:2``."""
    gpus: dict[str, int] = {}
    for entry in re.sub(r"\([^)]*\)", "", text).split(","):
        parts = [part for part in entry.split(":") if part != "no_consume"]
        if parts[0] == "gpu" and parts[-1].isdigit():
            kind = parts[1] if len(parts) == 3 else ""
            gpus[kind] = gpus.get(kind, 0) + int(parts[-1])
    return gpus


def read_minutes(text: str) -> int | None:
    """A time as Slurm writes and takes it, in minutes: ``days-hours:minutes:seconds`` and its shorter forms
    (``90`` alone is minutes), also ``48h`` and ``2d``; ``infinite`` is None. Raises ValueError."""
    text = text.strip().lower()
    if text in {"", "infinite", "unlimited", "n/a", "none"}:
        return None
    if found := re.fullmatch(r"(\d+) ?([mhd])", text):
        return int(found[1]) * {"m": 1, "h": 60, "d": 1440}[found[2]]
    if re.fullmatch(r"(\d+-\d+(:\d+){0,2}|\d+(:\d+){0,2})", text) is None:
        raise ValueError("give minutes or a time as Slurm takes it: 90, 24:00:00, 2-00:00:00, 48h")
    days, _, clock = text.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if len(parts) < 3 and not days:
        parts = [0, *parts]  # Slurm's "90" and "90:00" begin with minutes
    hours, minutes, _ = [*parts, 0, 0][:3]
    return int(days or 0) * 1440 + hours * 60 + minutes


def settings(ask: Ask = ask) -> dict[str, str]:
    """Slurm's configuration (``scontrol show config``)."""
    pairs = (line.partition("=") for line in ask("scontrol", "show", "config").splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


def has_accounting(config: dict[str, str]) -> bool:
    """True if ``sacct`` learns of the ends of jobs. Without slurmdbd it never does."""
    return config.get("AccountingStorageType", "").endswith("slurmdbd") and shutil.which("sacct") is not None
