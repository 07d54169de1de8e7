"""Cost in time of machines, from what was recorded."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arpo_replica.evaluation.records import Summary


def job_rows(benchmarks: Path) -> list[dict[str, Any]]:
    """Wall-clock seconds and peak memory of each job, as Snakemake measured them (may be none)."""
    rows = []
    for path in sorted(benchmarks.rglob("*.tsv")):
        for run in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")), delimiter="\t"):
            rows.append(
                {
                    "job": path.relative_to(benchmarks).with_suffix("").as_posix(),
                    "seconds": _number(run.get("s")),
                    "peak_mb": _number(run.get("max_rss")),
                    "cpu_seconds": _number(run.get("cpu_time")),
                }
            )
    return rows


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def counted(number: int, thing: str) -> str:
    """``1 job``, ``2 jobs``."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def cost_rows(summary: Summary, jobs: Sequence[dict[str, Any]], gpus: int) -> list[tuple[str, str, str]]:
    """(label, value, how it was counted): what the study took. Only what some file says."""
    rows: list[tuple[str, str, str]] = []
    seconds = sum(job["seconds"] or 0 for job in jobs)
    cpu = sum(job["cpu_seconds"] or 0 for job in jobs)
    if jobs:
        rows.append(
            (
                "Job time",
                f"{seconds / 3600:.2f} h",
                f"{counted(len(jobs), 'job')}, added up as Snakemake timed them",
            )
        )
        rows.append(("Processor time", f"{cpu / 3600:.2f} core-hours", "of all processes of these jobs"))
        if gpus:
            rows.append(
                (
                    "Accelerator time",
                    f"{gpus * seconds / 3600:.2f} GPU-hours at most",
                    f"job time × {gpus} GPUs",
                )
            )
    episodes = sum(row.episodes for row in summary.effort)
    spent = sum(row.episode_seconds for row in summary.effort)
    if episodes and spent:
        steps = sum(row.steps for row in summary.effort)
        tokens = sum(row.completion_tokens for row in summary.effort)
        rows.append(
            (
                "Time in episodes",
                f"{spent / 3600:.2f} h",
                f"{counted(episodes, 'evaluation episode')}, added up; desktops that waited do not count",
            )
        )
        rows.append(
            ("Episode", f"{spent / episodes:.1f} s", f"mean with all attempts; {steps / episodes:.1f} steps")
        )
        rows.append(
            ("Tokens written", f"{tokens:,}".replace(",", "\u202f"), "by the policy in these episodes")
        )
    return rows
