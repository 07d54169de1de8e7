"""What a planned study can show about a claim: computed from the printed numbers, before any run.

For each claim: which answers the study as configured can give at all, with which power if the paper is right,
and how many trainings would give 80 %. Noise between runs of the same task needs the difficulty of tasks,
which the paper does not give. It is taken as Beta-distributed with ``CONCENTRATION`` a + b = 0.85: most
tasks are nearly always or nearly never solved. Then c / (c + 1) = 46 % of the variance of a run, p (1 - p),
lies within tasks. That reproduces the standard errors simulated for 369 tasks of three runs near 45 %: 1.0
points for a rate, 1.4 for a difference.

How much one training differs from the next is unknown, too: power is given for a standard deviation of 0, 4
and 8 points between trainings. (Six trainings of the nano study: 8.1 points, between 5 and 20.)
"""

import math
from dataclasses import dataclass
from functools import lru_cache

from scipy import special, stats

from arpo_replica.evaluation.comparison import ALPHA, MANY, WIDEST, published_noise
from arpo_replica.evaluation.records import Reach, Verdict
from arpo_replica.evaluation.statistics import FEWEST_TRAININGS

CONCENTRATION = 0.85
WITHIN = CONCENTRATION / (CONCENTRATION + 1)
"""Share of p (1 - p) that is noise between runs of one task."""
POWER = 0.80
ONE_SIDED = float(stats.norm.ppf(1 - ALPHA))
SPREADS = (0, 4, 8)
"""Standard deviation between trainings, in points, for which power is given."""
MOST = 100
"""More trainings, or trials, than that are not a plan."""


def run_noise(rate: float, tasks: int, trials: int) -> float:
    """Standard error of a rate over fixed tasks with so many runs each; fractions."""
    return float(math.sqrt(WITHIN / trials) * published_noise([rate], tasks))


@dataclass(frozen=True)
class ClaimPlan:
    """A claim and the study that shall speak about it; fractions."""

    rates: tuple[float, ...]
    """As published: one, or first and second."""
    trained: tuple[bool, ...]
    """For each whether it is of an arm that is trained anew with each seed."""
    tasks: int
    margin: float
    family: int = 1
    """Claims whose p-values are adjusted together."""
    left_out: float = 0.0
    """Share of the tasks that the study leaves out: each counts as lost and as gained."""


def error_of(plan: ClaimPlan, trials: int, trainings: int, spread: float) -> tuple[float, float]:
    """(standard error, degrees of freedom) of our rate, or of first - second; fractions.

    The runs of an arm that is not trained are shared by all trainings: more trainings do not make their noise
    smaller. ``spread``: standard deviation between trainings.
    """
    each = [
        (run_noise(rate, plan.tasks, trials) ** 2, anew)
        for rate, anew in zip(plan.rates, plan.trained, strict=True)
    ]
    shared = sum(noise for noise, anew in each if not anew)
    if not any(plan.trained):
        if trials == 1 and len(plan.rates) == 1:  # tasks run once show no noise: the bound, as in ``claims``
            return published_noise(list(plan.rates), plan.tasks), MANY
        return math.sqrt(shared), float(plan.tasks * (trials - 1)) if trials > 1 else MANY
    between = (sum(noise for noise, anew in each if anew) + spread**2) / trainings
    total = shared + between
    return math.sqrt(total), total**2 * (trainings - 1) / between**2


def direction_power(effect: float, error: float, degrees: float, family: int) -> float:
    """Chance that the t test shows the sign of a true difference, the smallest of ``family`` p-values by
    Holm: against ALPHA / family."""
    critical = float(special.stdtrit(degrees, 1 - ALPHA / family / 2))
    if degrees > 1e6:
        return float(special.ndtr(effect / error - critical))
    return float(stats.nct.sf(critical, degrees, effect / error))


def agreement_power(error: float, margin: float, family: int = 1) -> float:
    """Power of the two one-sided tests when both results are equal in truth (same unit for both); against
    ALPHA / family, as above."""
    return max(0.0, 2 * float(special.ndtr(margin / error + special.ndtri(ALPHA / family))) - 1)


@lru_cache(maxsize=4096)
def power_of(plan: ClaimPlan, trials: int, trainings: int, spread: float) -> float:
    """Of the claim's own question: the sign of a difference, agreement within the margin of a rate."""
    if any(plan.trained) and trainings < FEWEST_TRAININGS:
        return 0.0
    error, degrees = error_of(plan, trials, trainings, spread)
    if len(plan.rates) == 2:
        gain = abs(plan.rates[0] - plan.rates[1]) * (1 - plan.left_out) - plan.left_out
        return direction_power(gain, error, degrees, plan.family) if gain > 0 else 0.0
    both = math.hypot(error, published_noise(list(plan.rates), plan.tasks))
    return agreement_power(both, _margin(plan), plan.family)


def _margin(plan: ClaimPlan) -> float:
    """What is left of the margin when the tasks that are left out go the worse way."""
    rate = plan.rates[0]
    return plan.margin - plan.left_out * max(rate, 1 - rate)


def reach(plan: ClaimPlan, trials: int, trainings: int) -> Reach:
    """What a study of so many trials and trainings can say."""
    difference, anew = len(plan.rates) == 2, any(plan.trained)
    spreads = SPREADS if anew else (0,)
    noise = published_noise(list(plan.rates), plan.tasks)
    answers: list[Verdict] = []
    if not anew or trainings >= FEWEST_TRAININGS:
        # Ours can at best have no noise at all, and stand last in Holm's order; the paper's noise stays.
        left = plan.margin - plan.left_out if difference else _margin(plan)
        answers += ["equivalent"] if agreement_power(noise, left) > 0 else []
        gain = abs(plan.rates[0] - plan.rates[-1])
        answers += ["same direction"] if gain * (1 - plan.left_out) > plan.left_out else []
        narrow = float(stats.norm.ppf(1 - ALPHA / 2)) * noise <= WIDEST * plan.margin
        answers += ["within prediction interval"] if not difference and narrow else []
        answers += ["contradicted", "inconclusive"]
    counts = range(FEWEST_TRAININGS, MOST + 1) if anew else range(1, MOST + 1)
    needed = {
        str(points): next(
            (n for n in counts if power_of(plan, *((trials, n) if anew else (n, 1)), points / 100) >= POWER),
            None,
        )
        for points in spreads
    }
    gain = 100 * (plan.rates[0] - plan.rates[-1])
    return Reach(
        question=f"a {'gain' if gain >= 0 else 'loss'} of {abs(gain):.1f} points at all"
        if difference
        else f"agreement within ±{100 * plan.margin:g} points",
        tasks=plan.tasks,
        trials=trials,
        trainings=trainings if anew else 0,
        answers=answers,
        power={str(p): round(power_of(plan, trials, trainings, p / 100), 3) for p in spreads},
        needed=needed,
        smallest_margin=round(100 * (ONE_SIDED + float(stats.norm.ppf((1 + POWER) / 2))) * noise, 2),
        assumption=(
            "power at 5 %, the smallest p-value of its family counted; "
            f"{100 * WITHIN:.0f} % of the variance of a run lies within tasks (assumed); the paper's "
            "noise bounded by independent tasks"
        ),
    )
