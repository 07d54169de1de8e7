"""What the study took: throughput, machine time, environment failures, and when replay fired."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import pandas as pd

from arpo_replica.config.models import StudyConfig
from arpo_replica.evaluation.records import (
    Curve,
    CurvePoint,
    EffortRow,
    EnvErrorRow,
    ReplayRow,
    ThroughputRow,
)

KIND = re.compile(r"[:\d]")
"""Ends the kind of an error message; what follows differs from case to case."""


def effort_rows(table: pd.DataFrame) -> Iterator[EffortRow]:
    """Sums over the episodes of each arm, stage and split."""
    for (arm, stage, split), episodes in table.groupby(["arm", "stage", "split"], sort=True):
        yield EffortRow(
            arm=str(arm),
            stage=str(stage),
            split=str(split),
            episodes=len(episodes),
            steps=int(episodes["n_steps"].sum()),
            format_errors=int(episodes["format_errors"].sum()),
            retried=int((episodes["attempts"] > 1).sum()),
            failed_attempts=int(episodes["failed_attempts"].sum()),
            episode_seconds=round(float(episodes["duration_s"].sum()), 3),
            model_seconds=round(float(episodes["model_s"].sum()), 3),
            env_seconds=round(float(episodes["env_s"].sum()), 3),
            completion_tokens=int(episodes["completion_tokens"].sum()),
        )


def replay_rows(curves: Sequence[Curve]) -> Iterator[ReplayRow]:
    """When replay fired in each training, for which tasks, how old the trajectories were."""
    for curve in curves:
        swaps = [(point.step, swap) for point in curve.points for swap in point.swaps]
        ages = [swap.age for _, swap in swaps]
        yield ReplayRow(
            arm=curve.arm,
            seed=curve.seed,
            stage=curve.stage,
            steps=len(curve.points),
            groups=_total(curve.points, "groups"),
            all_fail_groups=_sum(point.all_fail_groups for point in curve.points),
            fired=len(swaps),
            first_step=swaps[0][0] if swaps else None,
            tasks=dict(sorted(Counter(swap.task for _, swap in swaps).items())),
            age_mean=statistics.fmean(ages) if ages else None,
            age_median=float(statistics.median(ages)) if ages else None,
            age_max=max(ages, default=None),
            buffer_size=_sum([curve.points[-1].buffer_size]) if curve.points else None,
            source=curve.source,
        )


def throughput_rows(
    config: StudyConfig, table: pd.DataFrame, curves: Sequence[Curve]
) -> Iterator[ThroughputRow]:
    """Trajectories per hour of training rollouts and of evaluations, and the desktop hours."""
    desktops = config.desktop.count
    for curve in curves:
        rollouts = _total(curve.points, "rollouts")
        hours = _hours(curve.points, "rollout")
        yield ThroughputRow(
            phase="training",
            arm=curve.arm,
            seed=curve.seed,
            stage=curve.stage,
            split=None,
            desktops=desktops,
            trajectories=rollouts or 0,
            rollout_hours=hours,
            total_hours=_hours(curve.points, "total"),
            **_rates(rollouts, hours, desktops),
            desktop_busy=None,
            steps=None,
            prompt_tokens=None,
            completion_tokens=None,
            minutes_per_trajectory=None,
        )
    for (arm, stage, split), episodes in table.groupby(["arm", "stage", "split"], sort=True):
        # Trials and seeds may run on different days: idle time between folders of episodes is no time of
        # theirs. They may also run side by side: that time counts once.
        spans = [
            (float(part["started_at"].min()), float((part["started_at"] + part["duration_s"]).max()))
            for _, part in episodes.groupby(["seed", "trial"])
        ]
        hours = covered(spans) / 3600
        busy = float(episodes["duration_s"].sum()) / 3600
        yield ThroughputRow(
            phase="evaluation",
            arm=str(arm),
            seed=None,
            stage=str(stage),
            split=str(split),
            desktops=desktops,
            trajectories=len(episodes),
            rollout_hours=hours,
            total_hours=hours,
            **_rates(len(episodes), hours, desktops),
            desktop_busy=min(1.0, busy / (hours * desktops)) if hours > 0 else None,
            steps=int(episodes["n_steps"].sum()),
            prompt_tokens=int(episodes["prompt_tokens"].sum()),
            completion_tokens=int(episodes["completion_tokens"].sum()),
            minutes_per_trajectory=float(episodes["duration_s"].mean()) / 60,
        )


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of what spans of time (begin, end) cover together; overlaps count once, gaps not at all."""
    total, reached = 0.0, -math.inf
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def env_error_rows(table: pd.DataFrame, curves: Sequence[Curve]) -> Iterator[EnvErrorRow]:
    """Environment failures by arm, stage, split and kind; those of training as one row each."""
    for (arm, stage, split), episodes in table.groupby(["arm", "stage", "split"], sort=True):
        kinds: dict[str, list[tuple[str, str, bool]]] = {}
        for row in episodes.itertuples():
            errors = json.loads(str(row.errors))
            for place, error in enumerate(errors):
                given_up = place == len(errors) - 1 and not row.valid
                task = f"{row.domain}/{row.task_id}"
                kinds.setdefault(kind_of(str(error)), []).append((task, str(error), given_up))
        for kind, met in sorted(kinds.items()):
            yield EnvErrorRow(
                phase="evaluation",
                arm=str(arm),
                stage=str(stage),
                split=str(split),
                kind=kind,
                attempts=len(met),
                lost=sum(given_up for _, _, given_up in met),
                tasks=len({task for task, _, _ in met}),
                example=met[0][1][:300],
            )
    for curve in curves:
        attempts = _sum(point.env_errors for point in curve.points) or 0
        lost = _sum(point.lost_rollouts for point in curve.points) or 0
        if attempts or lost:
            yield EnvErrorRow(
                phase="training",
                arm=curve.arm,
                stage=curve.stage,
                split=None,
                kind="any",
                attempts=attempts,
                lost=lost,
                tasks=0,
                example=f"training of {curve.arm}, seed {curve.seed}: its log names each",
            )


def kind_of(message: str) -> str:
    """``desktop: the guest ...`` -> ``desktop``; at most 60 characters."""
    return KIND.split(message, maxsplit=1)[0].strip()[:60] or "unnamed"


def _rates(trajectories: int | None, hours: float | None, desktops: int) -> dict[str, float | None]:
    if not trajectories or not hours:
        return {"trajectories_per_hour": None, "per_desktop_hour": None, "desktop_hours": None}
    return {
        "trajectories_per_hour": trajectories / hours,
        "per_desktop_hour": trajectories / hours / desktops,
        "desktop_hours": hours * desktops,
    }


def _hours(points: Sequence[CurvePoint], phase: str) -> float | None:
    found = [point.seconds[phase] for point in points if phase in point.seconds]
    return sum(found) / 3600 if found else None


def _total(points: Sequence[CurvePoint], name: str) -> int | None:
    return _sum(point.other.get(name) for point in points)


def _sum(values: Iterator[float | None] | Sequence[float | None]) -> int | None:
    known = [value for value in values if value is not None]
    return round(sum(known)) if known else None
