"""What it would take to settle a claim: computed from the published numbers, before any run.

Two questions, each at 80 % power and 5 %:

- *is there the published gain at all?* For two arms on the same tasks, paired by task, K runs per task;
  beside it the episodes per arm of an unpaired comparison.
- *does ours agree with theirs within the margin?* (equivalence, both results equal in truth). The paper's one
  run stays what it is, so more runs here help only so far; the largest power that any number of runs reaches
  is given, and the smallest margin that could be shown.

Noise between runs of the same task needs the difficulty of tasks, which the paper does not give. It is taken
as Beta-distributed with ``CONCENTRATION`` a + b = 0.85: most tasks are nearly always or nearly never solved.
Then c / (c + 1) = 46 % of the variance of a run, p (1 - p), lies within tasks. That reproduces the standard
errors simulated for 369 tasks of three runs near 45 %: 2.2 points clustered, 1.0 conditional, 1.4 paired.
"""

from __future__ import annotations

import math
from functools import lru_cache

from scipy import special, stats

from arpo_replica.evaluation.records import Power

CONCENTRATION = 0.85
WITHIN = CONCENTRATION / (CONCENTRATION + 1)
"""Share of p (1 - p) that is noise between runs of one task."""
POWER, ALPHA = 0.80, 0.05
ONE_SIDED = float(stats.norm.ppf(1 - ALPHA))
MOST_TRIALS = 100
"""More runs per task than that are not a plan."""


def _z(power: float, alpha: float, sides: int) -> float:
    return float(stats.norm.ppf(1 - alpha / sides) + stats.norm.ppf(power))


def spread(*rates: float) -> float:
    """Sum of p (1 - p) over rates given as fractions."""
    return sum(rate * (1 - rate) for rate in rates)


def unpaired_episodes(first: float, second: float) -> int:
    """Episodes per arm that show a difference of two rates (fractions), two-sided."""
    return math.ceil(_z(POWER, ALPHA, 2) ** 2 * spread(first, second) / (first - second) ** 2)


def paired_trials(first: float, second: float, tasks: int) -> int | None:
    """Runs per task and arm that show the same on one set of tasks, paired by task.

    The variance of the difference is WITHIN x (p (1 - p) + q (1 - q)) / (K x tasks).
    """
    needed = _z(POWER, ALPHA, 2) ** 2 * WITHIN * spread(first, second) / (tasks * (first - second) ** 2)
    trials = max(1, math.ceil(needed - 1e-9))
    return trials if trials <= MOST_TRIALS else None


def agreement_power(error: float, margin: float) -> float:
    """Power of the two one-sided tests when both results are equal in truth (same unit for both)."""
    if error <= 0:
        return 1.0
    reach = margin / error - ONE_SIDED
    return max(0.0, 2 * float(special.ndtr(reach)) - 1)


@lru_cache(maxsize=256)
def agreement(rates: tuple[float, ...], tasks: int, margin: float) -> tuple[int | None, float, float]:
    """(runs per task or None, largest power, smallest margin) to show agreement; all as fractions."""
    theirs = spread(*rates) / tasks
    trials = next(
        (
            k
            for k in range(1, MOST_TRIALS + 1)
            if agreement_power(math.sqrt(theirs + WITHIN * theirs / k), margin) >= POWER
        ),
        None,
    )
    largest = agreement_power(math.sqrt(theirs), margin)
    # 2 Phi(m / e - z) - 1 = power, solved for m.
    needed = ONE_SIDED + float(stats.norm.ppf((1 + POWER) / 2))
    return trials, largest, needed * math.sqrt(theirs)


def power_of(published: list[float], tasks: int, margin: float) -> Power:
    """Power of a claim about one rate or about first - second; rates and margin in percent."""
    rates = tuple(value / 100 for value in published)
    trials, largest, smallest = agreement(rates, tasks, margin / 100)
    single = len(rates) == 1
    gain = 0.0 if single else 100 * (rates[0] - rates[1])
    settled = trials if single else paired_trials(rates[0], rates[1], tasks)
    return Power(
        question=(
            f"agreement within ±{margin:g} points"
            if single
            else f"a {'gain' if gain >= 0 else 'loss'} of {abs(gain):.1f} points at all"
        ),
        tasks=tasks,
        trials=settled,
        episodes=None if settled is None else settled * tasks * len(rates),
        unpaired_episodes=None if single else unpaired_episodes(rates[0], rates[1]),
        agreement_trials=trials,
        largest_power=round(largest, 4),
        smallest_margin=round(100 * smallest, 2),
        assumption=(
            f"80 % power at 5 %; {100 * WITHIN:.0f} % of the variance of a run lies within tasks (assumed); "
            "the paper's noise bounded by independent tasks"
        ),
    )
