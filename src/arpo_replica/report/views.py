"""Words and rows for the templates: everything that is more than markup."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arpo_replica.config.models import StudyConfig
from arpo_replica.evaluation.schema import DifferenceRow, Summary
from arpo_replica.report.figures import TOTALS, phase_totals
from arpo_replica.report.gallery import EpisodeView, natural

MINUS = "\N{MINUS SIGN}"
OUTCOMES = {
    "success": ("✓", "success"),
    "failure": ("✕", "failure"),
    "truncated": ("⋯", "cut at the step limit"),
    "env_error": ("!", "environment failure"),
}
"""Outcome -> (sign, words): never colour alone."""


def percent(value: float | None, digits: int = 0) -> str:
    """``0.325`` -> ``33`` (no sign: the column says %)."""
    return "not run" if value is None or math.isnan(value) else f"{100 * value:.{digits}f}"


def points(value: float) -> str:
    """A difference of rates in points, with its sign."""
    rounded = round(100 * value)
    return "0" if rounded == 0 else f"{'+' if rounded > 0 else MINUS}{abs(rounded)}"


def duration(seconds: float | None) -> str:
    """Seconds in words of at most two units."""
    if seconds is None or (isinstance(seconds, float) and math.isnan(seconds)):
        return "not recorded"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def short_hash(sha256: str | None) -> str:
    """The first twelve digits."""
    return (sha256 or "none")[:12]


def megabytes(size: float) -> str:
    """Bytes as MB."""
    return f"{size / 1e6:.1f} MB"


def banner(config: StudyConfig) -> dict[str, str]:
    """The size mark in words that cannot be misread."""
    width, height = config.desktop.screen
    desktop = "small desktop" if width * height < 1280 * 720 else f"{width} × {height} desktop"
    if config.size == "nano":
        return {
            "mark": "nano",
            "title": f"Nano model, {desktop}",
            "text": "Shows that the pipeline works, says nothing about the paper's numbers.",
            "more": (
                "The policy has a few million weights and was made here from scripted demonstrations; the "
                "tasks are MiniWoB++ pages. No number below may be read beside a number of the paper."
            ),
        }
    return {
        "mark": config.size,
        "title": f"{config.size.upper()} model, {config.desktop.provider} desktops ({width} × {height})",
        "text": "Not the paper's set-up: see the deviations before comparing.",
        "more": "A claim of the paper is judged only where size, desktops, tasks and step limit are its own.",
    }


def facts(summary: Summary, provenance: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(label, value, note) for the strip at the top."""
    rows = [row for row in summary.rates if row.protocol == "hard" and row.seed is not None]
    episodes = sum(row.valid + row.env_errors for row in rows)
    expected = sum(row.expected for row in rows)
    errors = sum(row.env_errors for row in rows)
    updates = sum(len(curve.points) for curve in summary.curves)
    training = sum(stage["seconds"] for stage in stage_rows(summary))
    commit = provenance["git"]["commit"]
    dirty = {True: "with uncommitted changes", False: "clean checkout", None: "no git checkout"}
    trials = "1 trial" if summary.trials == 1 else f"{summary.trials} trials"
    seeds = f"seed {summary.seeds[0]}" if len(summary.seeds) == 1 else f"{len(summary.seeds)} training seeds"
    tasks = sum(split.tasks for name, split in summary.splits.items())
    return [
        ("Tasks evaluated", str(tasks), f"{trials} each, {seeds}"),
        (
            "Episodes",
            str(episodes),
            "all that were planned" if episodes == expected else f"of {expected} planned",
        ),
        ("Environment failures", str(errors), "counted apart, never as 0"),
        ("Training updates", str(updates), duration(training) if updates else "no metrics found"),
        ("Commit", short_hash(commit) if commit else "unknown", dirty[provenance["git"]["dirty"]]),
    ]


def findings(summary: Summary) -> list[dict[str, Any]]:
    """What this study shows by itself: one sentence per comparison (hard protocol)."""
    found = []
    for row in summary.differences:
        if row.protocol == "hard" and (row.seed is None or len(summary.seeds) == 1):
            found.append({"row": row, "verdict": _settled(row)})
    return found


def _settled(row: DifferenceRow) -> str:
    if row.difference.low > 0:
        return "higher"
    return "lower" if row.difference.high < 0 else "not settled"


def deviation(entry: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """A line of the table of deviations with this study's value looked up in the resolved config."""
    keys = entry["ours"] if isinstance(entry["ours"], list) else [entry["ours"]]
    return {**entry, "keys": keys, "value": ", ".join(_words(_lookup(config, key)) for key in keys)}


def _lookup(config: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        config = config[part]
    return config


def _words(value: Any) -> str:
    if isinstance(value, list):
        if value and isinstance(value[0], dict):
            return " → ".join(f"{entry['name']} ({entry['steps']} updates)" for entry in value)
        return " × ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def stage_rows(summary: Summary) -> list[dict[str, Any]]:
    """Training of each arm, stage and seed in numbers."""
    rows = []
    for curve in summary.curves:
        phases = phase_totals(curve)
        totals = sum(value for p in curve.points for phase, value in p.seconds.items() if phase in TOTALS)
        seconds = totals or sum(phases.values())
        points_ = curve.points
        rows.append(
            {
                "curve": curve,
                "steps": len(points_),
                "seconds": seconds,
                "per_step": seconds / len(points_) if points_ else None,
                "reward": [_mean(points_[:3], "reward_before"), _mean(points_[-3:], "reward_before")],
                "success": [_mean(points_[:3], "success"), _mean(points_[-3:], "success")],
                "swapped": _sum(points_, "swapped_groups"),
                "all_fail": _sum(points_, "all_fail_groups"),
                "buffer": points_[-1].buffer_size if points_ else None,
                "entropy": points_[-1].entropy if points_ else None,
                "unparsable": _mean(points_, "unparsable"),
                "env_errors": _sum(points_, "env_errors"),
                "lost": _sum(points_, "lost_rollouts"),
            }
        )
    return rows


def swap_rows(summary: Summary) -> list[dict[str, Any]]:
    """Every time that replay fired: curve, update, task, age of the replayed trajectory."""
    return [
        {"curve": curve, "step": point.step, "task": swap.task, "age": swap.age}
        for curve in summary.curves
        for point in curve.points
        for swap in point.swaps
    ]


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


def phase_rows(summary: Summary) -> dict[str, Any]:
    """Seconds by phase, largest first: ``phases`` and one row of values per curve."""
    totals = [(curve, phase_totals(curve)) for curve in summary.curves]
    weight: dict[str, float] = {}
    for _, phases in totals:
        for phase, value in phases.items():
            weight[phase] = weight.get(phase, 0.0) + value
    names = sorted(weight, key=lambda phase: (-weight[phase], phase))
    rows = [(curve, [phases.get(name) for name in names]) for curve, phases in totals if phases]
    return {"phases": names, "rows": rows}


def _mean(points_: Sequence[Any], name: str) -> float | None:
    values = [value for p in points_ if (value := getattr(p, name)) is not None]
    return sum(values) / len(values) if values else None


def _sum(points_: Sequence[Any], name: str) -> float | None:
    values = [value for p in points_ if (value := getattr(p, name)) is not None]
    return sum(values) if values else None


def matrix(episodes: Sequence[EpisodeView], arms: Sequence[str]) -> list[dict[str, Any]]:
    """Split -> rows of tasks -> per arm (and stage) the outcome of each trial, linked to the episode."""
    splits = list(dict.fromkeys(episode.row["split"] for episode in episodes))
    found = []
    for split in splits:
        here = [episode for episode in episodes if episode.row["split"] == split]
        columns = sorted(
            {(e.row["arm"], e.row["stage"]) for e in here}, key=lambda c: (arms.index(c[0]), c[1])
        )
        tasks: dict[tuple[str, str], dict[tuple[str, str], list[EpisodeView]]] = {}
        for episode in here:
            cells = tasks.setdefault((episode.row["domain"], episode.row["task_id"]), {})
            cells.setdefault((episode.row["arm"], episode.row["stage"]), []).append(episode)
        rows = [
            {
                "task": task,
                "cells": [cells.get(column, []) for column in columns],
                "instruction": _first(cells),
            }
            for task, cells in sorted(tasks.items(), key=lambda item: natural(*item[0]))
        ]
        found.append({"split": split, "columns": columns, "rows": rows})
    return found


def _first(cells: dict[tuple[str, str], list[EpisodeView]]) -> str:
    return str(next(iter(cells.values()))[0].row["instruction"])


def groups(episodes: Sequence[EpisodeView], config: StudyConfig) -> list[dict[str, Any]]:
    """The gallery's groups: one per split, arm and stage, in the config's order."""
    arms = list(config.arms)
    splits = list(config.evaluation.splits)
    found: dict[tuple[str, str, str], list[EpisodeView]] = {}
    for episode in episodes:
        found.setdefault((episode.row["split"], episode.row["arm"], episode.row["stage"]), []).append(episode)

    def order(key: tuple[str, str, str]) -> tuple[int, str, int, str]:
        split, arm, stage = key
        return splits.index(split) if split in splits else len(splits), split, arms.index(arm), stage

    return [
        {"split": key[0], "arm": key[1], "stage": key[2], "episodes": found[key]}
        for key in sorted(found, key=order)
    ]
