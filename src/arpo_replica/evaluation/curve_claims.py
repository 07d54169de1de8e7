"""Claims about learning curves and throughput: numbers read off plots, without tasks behind them.

The paper shows one curve each, so its noise can be neither known nor bounded. Ours is compared with the
plotted value itself, needs at least five training seeds for an interval of its own, and counts as higher or
lower only where that interval leaves the margin altogether.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from arpo_replica.base.errors import UserError
from arpo_replica.config.models import StudyConfig
from arpo_replica.evaluation.comparison import ALPHA, Side, equivalence_p, error_side
from arpo_replica.evaluation.published import Claim, CurveRole, Measure, Published
from arpo_replica.evaluation.records import Curve, Interval, Summary, Verdict
from arpo_replica.evaluation.statistics import CONFIDENCE, EQUAL

FEWEST_SEEDS = 5
"""With fewer each is shown by itself: no error over seeds."""
SPAN = 2.0
"""From the lowest reward of a trajectory (no success, unparsable, full format weight) to the highest."""


@dataclass(frozen=True)
class Finding:
    """What a study says about a claim."""

    verdict: Verdict
    reason: str
    measured: Interval | None = None
    gap: Interval | None = None
    equivalence_p: float | None = None
    sources: list[str] = field(default_factory=list)
    row: Any = None
    """The row of the summary that it rests on."""

    def given(self, verdict: Verdict, words: str, p_value: float) -> Finding:
        """The same with its verdict; ``words`` come first in the reason."""
        reason = f"{words} {self.reason}".strip()
        return replace(self, verdict=verdict, reason=reason, equivalence_p=p_value)


def compare_curve(
    config: StudyConfig, summary: Summary, claim: Claim, measure: Measure, published: list[Published]
) -> Finding:
    """The mean of a metric over the first or last updates, per seed, against the plotted value."""
    try:
        ours = _per_seed(config, summary, measure, measure.arm, measure.role)
        pair = measure.reference is not None or measure.reference_role is not None
        other = (
            _per_seed(config, summary, measure, str(measure.reference), measure.reference_role)
            if pair
            else {}
        )
    except UserError as missing:
        return Finding("not run", str(missing))
    seeds = sorted(set(ours) & set(other)) if pair else sorted(ours)
    values = [ours[seed][0] - (other[seed][0] if pair else 0.0) for seed in seeds]
    if not values:
        return Finding("not run", "There is no training curve of what the claim is about.")
    roles = [measure.role, *([measure.reference_role] if pair else [])]
    target = published[0].value - (published[1].value if pair else 0.0)
    sources = sorted({path for side in (ours, other) for seed, (_, path) in side.items() if seed in seeds})
    mean = statistics.fmean(values)
    if len(values) < FEWEST_SEEDS:
        measured = Interval(value=mean, low=mean, high=mean, method="no interval", about="training seeds")
        words = (
            f"Ours is {mean:.3f}, published {target:.3f}; {len(values)} training "
            f"{'seed gives' if len(values) == 1 else 'seeds give'} no interval, it takes {FEWEST_SEEDS}. "
            "The paper shows one curve without noise."
        )
        return Finding("inconclusive", words, measured, sources=sources)
    if max(values) - min(values) < EQUAL:
        measured = Interval(value=mean, low=mean, high=mean, method="no interval", about="training seeds")
        words = (
            f"Ours is {mean:.3f} with each of {len(values)} training seeds, published {target:.3f}: no noise "
            "was seen, which is not the same as no noise. The paper shows one curve without noise."
        )
        return Finding("inconclusive", words, measured, sources=sources)
    error = statistics.stdev(values) / len(values) ** 0.5
    side = error_side(mean - target, error, len(values) - 1, "Student's t over training seeds")
    low, high = side.at(CONFIDENCE)
    gap = Interval(value=side.value, low=low, high=high, method=side.method, about="training seeds")
    measured = Interval(
        value=mean, low=low + target, high=high + target, method=side.method, about="training seeds"
    )
    verdict, p_value = _judge(side, claim.margin)
    shift = SPAN * sum(_left_out(config, summary, role) for role in roles)
    if {_judge(_moved(side, by), claim.margin)[0] for by in (-shift, shift)} != {verdict}:
        verdict = "inconclusive"
    left = f" Tasks that are left out could move it by {shift:.3f}; the verdict counts that." if shift else ""
    words = (
        f"Ours minus plotted value: 95 % interval {low:+.3f} to {high:+.3f} over {len(values)} training "
        f"seeds, margin ±{claim.margin:g}. The paper shows one curve; its noise is unknown.{left}"
    )
    return Finding(verdict, words, measured, gap, p_value, sources)


def _judge(side: Side, margin: float) -> tuple[Verdict, float]:
    """(verdict, p-value of equivalence) against a plotted value, whose own noise is unknown."""
    p_value = equivalence_p(side, margin)
    low, high = side.at(CONFIDENCE)
    if p_value < ALPHA:
        return "consistent", p_value
    return "higher" if low > margin else "lower" if high < -margin else "inconclusive", p_value


def _moved(side: Side, by: float) -> Side:
    def at(confidence: float) -> tuple[float, float]:
        low, high = side.at(confidence)
        return low + by, high + by

    return Side(side.value + by, at, side.method)


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


def compare_throughput(
    claim: Claim, measure: Measure, published: list[Published], throughput: Path | None
) -> Finding:
    """Hours of rollouts per 1,024 trajectories with so many desktops; other hardware, so never a verdict
    of agreement from one measurement.
    """
    if throughput is None or not throughput.is_file():
        return Finding("not run", "The throughput was not measured in this study (`snakemake fig7`).")
    points = {row["desktops"]: row for row in json.loads(throughput.read_bytes())["points"]}
    counts = [measure.environments, measure.reference] if measure.reference else [measure.environments]
    missing = [str(count) for count in counts if count not in points]
    if missing:
        return Finding("not run", f"targets.environments of this study lacks {' and '.join(missing)}.")
    values = [float(points[count]["hours_per_epoch"]) for count in counts]
    value = values[0] - (values[1] if len(values) > 1 else 0.0)
    target = published[0].value - (published[1].value if len(published) > 1 else 0.0)
    measured = Interval(value=value, low=value, high=value, method="one measurement, no interval")
    words = (
        f"Ours is {value:.2f} h, published {target:.2f} h, on other hardware and from one measurement each."
    )
    return Finding("inconclusive", words, measured, sources=[throughput.as_posix()])
