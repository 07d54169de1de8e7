"""Rows of replay and of offline arms for the templates."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from arpo_replica.evaluation.records import Summary


def offline_rows(summary: Summary) -> list[dict[str, Any]]:
    """Training of each offline arm and seed, with its loss at both ends."""
    rows = []
    for training in summary.offline:
        known = [point.loss for point in training.points if point.loss is not None]
        ends = max(1, min(3, len(known) // 2))
        loss = [statistics.fmean(part) for part in (known[:ends], known[-ends:])] if known else [None, None]
        rows.append({"training": training, "loss": loss})
    return rows


def swap_rows(summary: Summary) -> list[dict[str, Any]]:
    """Every time that replay fired: curve, update, task, age of the replayed trajectory."""
    return [
        {"curve": curve, "step": point.step, "task": swap.task, "age": swap.age}
        for curve in summary.curves
        for point in curve.points
        for swap in point.swaps
    ]


def swaps_by_task(swaps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Arm and task -> how often replay fired there, when, and how old the injected success was (updates)."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in swaps:
        found.setdefault((row["curve"].arm, row["task"]), []).append(row)
    rows = [
        {
            "arm": arm,
            "task": task,
            "times": len(fired),
            "first": min(row["step"] for row in fired),
            "last": max(row["step"] for row in fired),
            "median_age": statistics.median(row["age"] for row in fired),
            "oldest": max(row["age"] for row in fired),
        }
        for (arm, task), fired in found.items()
    ]
    return sorted(rows, key=lambda row: (-row["times"], row["arm"], row["task"]))
