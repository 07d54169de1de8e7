"""Our result against a published one of which only the bare number is known.

The paper gives no per-task data, no seeds and no intervals: its run-to-run noise is unknown. What is certain
is how many tasks stand behind a rate, so its noise is bounded by that of independent tasks: Wilson's interval
of the rebuilt count. Both sides are joined by the method of variance estimates recovery (MOVER), of which
Newcombe's interval for two rates is the case of two Wilson intervals:

    low  = d - sqrt((a - a_low)^2 + (b_high - b)^2)      d = a - b
    high = d + sqrt((a_high - a)^2 + (b - b_low)^2)

R. Newcombe, Statistics in Medicine 17 (1998) 873-890; A. Donner and G. Zou,
Statistical Methods in Medical Research 21 (2012).
"Consistent" needs equivalence to be shown, never just a difference that is not significant: two one-sided
tests at 5 %, i.e. the 90 % interval lies inside the margin (D. Schuirmann 1987).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from scipy import stats
from statsmodels.stats import proportion as smp

from arpo_replica.evaluation.records import Interval, Verdict
from arpo_replica.evaluation.statistics import CONFIDENCE

ALPHA = 0.05
"""Of each one-sided test of equivalence."""


@dataclass(frozen=True, slots=True)
class Side:
    """A value and its interval at any confidence, as fractions."""

    value: float
    at: Callable[[float], tuple[float, float]]
    method: str


def rate_side(value: float, n: float) -> Side:
    """A rate over ``n`` (effective) runs: Wilson. Neither successes nor runs need be whole numbers."""
    if n <= 0 or not 0 <= value <= 1:
        raise ValueError(f"no rate: {value} of {n}")

    def at(confidence: float) -> tuple[float, float]:
        low, high = smp.proportion_confint(value * n, n, alpha=1 - confidence, method="wilson")
        return max(0.0, float(low)), min(1.0, float(high))

    return Side(value, at, "Wilson")


def published_side(percent: float, n: int) -> Side:
    """A published rate over ``n`` tasks: the count is rebuilt, because rates are printed rounded."""
    return rate_side(round(percent / 100 * n) / n, n)


def error_side(value: float, error: float, degrees: float, method: str) -> Side:
    """A value with a standard error: Student's t."""

    def at(confidence: float) -> tuple[float, float]:
        half = float(stats.t.ppf(0.5 + confidence / 2, degrees)) * error
        return value - half, value + half

    return Side(value, at, method)


def square_and_add(
    ours: tuple[float, float, float], theirs: tuple[float, float, float]
) -> tuple[float, float]:
    """Interval of ours - theirs for two independent sides."""
    (a, a_low, a_high), (b, b_low, b_high) = ours, theirs
    return a - b - math.hypot(a - a_low, b_high - b), a - b + math.hypot(a_high - a, b - b_low)


def mover(ours: Side, theirs: Side) -> Side:
    """ours - theirs, of two independent sides."""

    def at(confidence: float) -> tuple[float, float]:
        return square_and_add((ours.value, *ours.at(confidence)), (theirs.value, *theirs.at(confidence)))

    joined = "Newcombe" if ours.method == theirs.method == "Wilson" else "MOVER"
    method = f"{joined} ({ours.method} here, {theirs.method} of the bare published rate)"
    return Side(ours.value - theirs.value, at, method)


def interval(side: Side) -> Interval:
    """The 95 % interval of a comparison."""
    low, high = side.at(CONFIDENCE)
    return Interval(side.value, low, high, side.method, "both studies")


def equivalence_p(side: Side, margin: float) -> float:
    """p-value of the two one-sided tests: the smallest alpha whose 1 - 2 alpha interval is in the margin.

    1.0 if the value itself is outside.
    """
    if abs(side.value) >= margin:
        return 1.0
    low, high = 1e-9, 0.5
    for _ in range(60):
        alpha = (low + high) / 2
        left, right = side.at(1 - 2 * alpha)
        if -margin < left and right < margin:
            high = alpha
        else:
            low = alpha
    return high


def judge(side: Side, margin: float) -> tuple[Verdict, float]:
    """(verdict, p-value of equivalence) of ours - published, with a margin in the same unit.

    ``consistent`` comes first: a difference that is shown to be smaller than the margin does not matter,
    even where it is shown not to be zero.
    """
    p_value = equivalence_p(side, margin)
    low, high = side.at(CONFIDENCE)
    if p_value < ALPHA:
        return "consistent", p_value
    if low > 0:
        return "higher", p_value
    if high < 0:
        return "lower", p_value
    return "inconclusive", p_value
