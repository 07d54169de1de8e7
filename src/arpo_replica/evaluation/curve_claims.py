"""Claims about learning curves and throughput: numbers read off plots, without tasks behind them.

The paper shows one curve each, so its noise can be neither known nor bounded: a curve counts as contradicted
only where ours is shown to differ by more than the margin.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from arpo_replica.base.errors import UserError
from arpo_replica.config.models import StudyConfig
from arpo_replica.evaluation import statistics as st
from arpo_replica.evaluation.comparison import Estimate
from arpo_replica.evaluation.findings import NO_NOISE, Finding, not_run, too_few
from arpo_replica.evaluation.published import CurveRole, Measure, Published
from arpo_replica.evaluation.records import Curve, Interval, Summary

SPAN = 2.0
"""From the lowest reward of a trajectory (no success, unparsable, full format weight) to the highest."""


def find_curve(
    config: StudyConfig, summary: Summary, measure: Measure, published: list[Published]
) -> Finding:
    """The mean of a metric over the first or last updates, one value per training."""
    pair = measure.reference is not None or measure.reference_role is not None
    try:
        ours = _per_seed(config, summary, measure, measure.arm, measure.role)
        reference = str(measure.reference) if pair else None
        other = _per_seed(config, summary, measure, reference, measure.reference_role) if pair else {}
    except UserError as missing:
        return not_run(str(missing))
    seeds = sorted(set(ours) & set(other)) if pair else sorted(ours)
    values = [ours[seed][0] - (other[seed][0] if pair else 0.0) for seed in seeds]
    if not values:
        return not_run("There is no training curve of what the claim is about.")
    sources = sorted({path for side in (ours, other) for seed, (_, path) in side.items() if seed in seeds})
    mean, known = statistics.fmean(values), "The paper shows one curve; its noise is unknown."
    found = st.over_trainings(values)
    if found is None:
        shown = Interval(mean, mean, mean, "no interval", "training seeds")
        if len(values) < st.FEWEST_TRAININGS:
            return too_few(shown, len(values), sources, known)
        words = f"Each of {len(values)} trainings gave {mean:.3f}: {NO_NOISE}"
        return Finding(words, "inconclusive", shown, trainings=len(values), sources=sources)
    target = published[0].value - (published[1].value if pair else 0.0)
    roles = [measure.role, *([measure.reference_role] if pair else [])]
    shift = SPAN * sum(_left_out(config, summary, role) for role in roles)
    left = f" Tasks that are left out could move it by {shift:.3f}; the verdict counts that." if shift else ""
    estimate = Estimate(
        mean,
        found.error,
        found.degrees,
        found.interval.method,
        (mean - shift, mean + shift) if shift else None,
    )
    return Finding(
        known + left, None, found.interval, estimate, target, trainings=len(values), sources=sources
    )  # fmt: skip


def _left_out(config: StudyConfig, summary: Summary, role: CurveRole | None) -> float:
    """Share of the tasks of a curve's stage that its training did without."""
    named = None if role is None else getattr(config.targets, role)
    split = (config.training.stages[-1] if named is None else config.stage(named.stage)).split
    rows = [row for row in summary.left_out if row.split == split]
    return len(rows) / rows[0].tasks if rows else 0.0


def _per_seed(
    config: StudyConfig, summary: Summary, measure: Measure, arm: str | None, role: CurveRole | None
) -> dict[int, tuple[float, str]]:
    """Seed -> (mean of the metric, metrics file). Raises ``UserError`` if the config names no such curve."""
    stage = config.training.stages[-1].name
    if role is not None:
        named = getattr(config.targets, role)
        if named is None:
            raise UserError(f"The config has no targets.{role}.")
        arm, stage = named.arm, named.stage
    found = {}
    for curve in summary.curves:
        if (curve.arm, curve.stage) == (arm, stage):
            values = _values(curve, str(measure.metric))
            part = values[: measure.last] if measure.place == "start" else values[-measure.last :]
            if part:
                found[curve.seed] = (statistics.fmean(part), curve.source)
    return found


def _values(curve: Curve, metric: str) -> list[float]:
    known = [getattr(point, metric, None) if metric in type(point).model_fields else point.other.get(metric)
             for point in curve.points]  # fmt: skip
    return [float(value) for value in known if value is not None]


def find_throughput(measure: Measure, published: list[Published], throughput: Path | None) -> Finding:
    """Hours of rollouts per 1,024 trajectories with so many desktops; other hardware, so never judged."""
    if throughput is None or not throughput.is_file():
        return not_run("The throughput was not measured in this study (`snakemake fig7`).")
    points = {row["desktops"]: row for row in json.loads(throughput.read_bytes())["points"]}
    counts = [measure.environments, measure.reference] if measure.reference else [measure.environments]
    missing = [str(count) for count in counts if count not in points]
    if missing:
        return not_run(f"targets.environments of this study lacks {' and '.join(missing)}.")
    values = [float(points[count]["hours_per_epoch"]) for count in counts]
    value = values[0] - (values[1] if len(values) > 1 else 0.0)
    target = published[0].value - (published[1].value if len(published) > 1 else 0.0)
    measured = Interval(value, value, value, "one measurement, no interval")
    words = (
        f"Ours is {value:.2f} h, published {target:.2f} h, on other hardware and from one measurement each."
    )
    return Finding(words, "inconclusive", measured, sources=[throughput.as_posix()])
