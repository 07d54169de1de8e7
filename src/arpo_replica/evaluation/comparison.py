"""Our result against a published one of which only the printed number is known.

The paper gives no per-task data, no seeds and no intervals: its run-to-run noise is unknown. What is certain
is how many tasks stand behind a rate, so its noise is bounded by that of independent tasks,
sqrt(p (1 - p) / n), with the number as it is printed: no count of tasks is rebuilt, because many printed
numbers are no k / n at all (fractional scores, or another denominator). A published difference is of two such
rates, unpaired.

Ours is an ``Estimate``: for trained arms Student's t over trainings, for others run-to-run noise. Both noises
add as variances; the degrees of freedom of the sum are Welch's and Satterthwaite's. Four questions, each with
a p-value, everything fixed before any run:

- ``same``, ``opposite``: is our difference on the published side of zero, or on the other? (t test)
- ``outside``: is the printed value shown to lie outside the prediction interval, i.e. outside of where a
  repeat of ours with the paper's number of tasks would?
- ``equal``: is ours shown to be closer to the printed value than the margin? (two one-sided tests; D.
  Schuirmann 1987)

A difference that is not significant is never agreement. p-values of the claims of one table or figure are
adjusted by Holm before a word is given. All functions take numpy arrays as well as numbers:
``benchmarks/verdicts.py`` simulates thousands of studies through the very same lines.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

from arpo_replica.evaluation.records import Verdict

ALPHA = 0.05
MANY = 1e9
"""Degrees of freedom that make Student's t the normal distribution."""
WIDEST = 2.0
"""A prediction interval wider than this many margins on either side tells nothing about a rate."""

Triple = tuple[float, float, float]
"""A value with the lower and upper end of its interval."""
Number = Any
"""A float or a numpy array of floats."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Ours, in the unit of the margin.

    ``ends``: the lowest and the highest value that episodes without a score, or tasks that are left out,
    could still make of it. A test counts only with its largest p-value between them.
    """

    value: Number
    error: Number
    degrees: Number
    method: str = ""
    ends: tuple[Number, Number] | None = None

    def interval(self) -> tuple[Number, Number]:
        """95 %."""
        half = special.stdtrit(self.degrees, 1 - ALPHA / 2) * self.error
        return self.value - half, self.value + half

    def plus(self, noise: Number) -> tuple[Number, Number]:
        """(error, degrees) when an independent normal noise is added."""
        total = np.hypot(self.error, noise)
        with np.errstate(divide="ignore", invalid="ignore"):
            degrees = np.where(self.error > 0, total**4 * self.degrees / np.asarray(self.error) ** 4, MANY)
        return total, np.minimum(degrees, MANY)


@dataclass(frozen=True, slots=True)
class Tests:
    """p-values of the four questions; None where a question does not arise."""

    same: Number
    opposite: Number
    outside: Number
    equal: Number


def square_and_add(ours: Triple, theirs: Triple) -> tuple[float, float]:
    """Interval of ours - theirs for two independent sides (R. Newcombe 1998; A. Donner and G. Zou 2012)."""
    (a, a_low, a_high), (b, b_low, b_high) = ours, theirs
    return a - b - math.hypot(a - a_low, b_high - b), a - b + math.hypot(a_high - a, b - b_low)


def published_noise(rates: Sequence[Number], tasks: int) -> Number:
    """Bound of the noise of a printed rate, or of the difference of two; fractions.

    A rate of 0 or 1 is no proof that there is no noise: half a task at least.
    """
    kept = [np.clip(rate, 0.5 / tasks, 1 - 0.5 / tasks) for rate in rates]
    return np.sqrt(sum(rate * (1 - rate) for rate in kept) / tasks)


def prediction(ours: Estimate, published: float, noise: float) -> Triple:
    """Ours minus published with the 95 % interval of both noises, from the lowest of our ends to the
    highest."""
    error, degrees = ours.plus(noise)
    half = float(special.stdtrit(degrees, 1 - ALPHA / 2) * error)
    low, high = ours.ends or (ours.value, ours.value)
    return float(ours.value) - published, float(low) - published - half, float(high) - published + half


def tests(ours: Estimate, published: float, noise: float | None, margin: float) -> Tests:
    """p-values of ours against a published value; ``noise`` None: unknown and not even bounded (plots).

    Then "outside" asks for more: that ours is shown to differ by more than the margin.
    """
    sign = math.copysign(1.0, published)
    error, degrees = ours.plus(noise or 0.0)
    low, high = ours.ends or (ours.value, ours.value)
    # Of all values between the ends the one nearest to the published one, and the one furthest from it.
    nearest = np.maximum(0.0, np.maximum(low - published, published - high))
    furthest = np.maximum(np.abs(low - published), np.abs(high - published))
    least, most = (low, high) if sign > 0 else (high, low)
    return Tests(
        same=np.minimum(1.0, 2 * special.stdtr(ours.degrees, -sign * least / ours.error)),
        opposite=np.minimum(1.0, 2 * special.stdtr(ours.degrees, sign * most / ours.error)),
        outside=2 * special.stdtr(degrees, -nearest / error)
        if noise is not None
        else special.stdtr(degrees, (margin - nearest) / error),
        equal=special.stdtr(degrees, (furthest - margin) / error),
    )


def answer(found: Tests, direction: bool, informative: bool) -> Verdict:
    """The word for a claim from its adjusted p-values, the strongest that is shown.

    ``direction``: the claim is about a difference, whose first question is its sign. ``informative``: the
    prediction interval is narrow enough for "the published number lies inside" to mean something.
    """
    if found.equal < ALPHA:
        return "equivalent"
    if direction and found.same < ALPHA:
        return "same direction"
    if found.outside < ALPHA or (direction and found.opposite < ALPHA):
        return "contradicted"
    return "within prediction interval" if informative and not direction else "inconclusive"
