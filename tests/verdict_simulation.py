"""Thousands of invented studies through the lines that judge a claim, for tests and `benchmarks/verdicts.py`.

Tasks are Beta-distributed in difficulty (nearly always or nearly never solved), the same for both arms; a
training moves the chance of every task, most where it can go either way. Numpy alone: a study is a row of an
array.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import special, stats

from arpo_replica.evaluation.comparison import ALPHA, Estimate, Tests, answer, published_noise, tests
from arpo_replica.evaluation.power import CONCENTRATION

Array = np.ndarray


@dataclass(frozen=True)
class Setup:
    """A study of two arms; fractions. ``spread``: standard deviation between trainings of the difference."""

    first: float
    second: float
    against_base: bool
    tasks: int = 369
    trials: int = 3
    trainings: int = 5
    spread: float = 0.0


def chances(mean: float, tasks: int) -> Array:
    """Chance of success per task, the same order of difficulty for every mean."""
    rank = (np.random.default_rng(3).permutation(tasks) + 0.5) / tasks
    return stats.beta.ppf(rank, CONCENTRATION * mean, CONCENTRATION * (1 - mean))


def moved(chance: Array, shift: Array) -> Array:
    """Chance of each task after a training that moves their mean by ``shift`` (any shape)."""
    weight = chance * (1 - chance)
    return np.clip(chance + shift[..., None] * weight / weight.mean(), 0, 1)


def expected(chance: Array, spread: float) -> float:
    """Mean rate over all trainings: no chance goes below 0 or above 1, which moves it a little."""
    return float(moved(chance, np.random.default_rng(5).normal(0, spread, 4000)).mean())


def run(chance: Array, shift: Array, trials: int, dice: np.random.Generator) -> Array:
    """Successes per task; ``shift`` (studies, trainings) moves the mean of all tasks by so much."""
    return dice.binomial(trials, moved(chance, shift))


def simulate(setup: Setup, studies: int, seed: int) -> tuple[Estimate, float, Array]:
    """(ours as the summary makes it, the true difference, pooled t over tasks for contrast)."""
    dice = np.random.default_rng(seed)
    tasks, trials, trainings = setup.tasks, setup.trials, setup.trainings
    a, b = chances(setup.first, tasks), chances(setup.second, tasks)
    each = setup.spread if setup.against_base else setup.spread / np.sqrt(2)
    ours = run(a, dice.normal(0, each, (studies, trainings)), trials, dice)
    other = (studies, 1) if setup.against_base else (studies, trainings)
    theirs = run(b, np.zeros(other) if setup.against_base else dice.normal(0, each, other), trials, dice)
    gain = ours.mean(-1) / trials - theirs.mean(-1) / trials
    own = gain.std(axis=1, ddof=1) / np.sqrt(trainings)
    shared = np.zeros(studies)
    if setup.against_base:  # as ``summary`` does it
        rate = theirs[:, 0] / trials
        mean = rate.mean(-1)
        bound = np.sqrt(mean * (1 - mean) / tasks)
        shared = np.sqrt((rate * (1 - rate) / (trials - 1)).sum(-1)) / tasks if trials > 1 else bound
    error = np.hypot(own, shared)
    estimate = Estimate(gain.mean(1), error, (error / own) ** 4 * (trainings - 1))
    change = ours.mean(1) / trials - theirs.mean(1) / trials
    pooled = change.mean(1) / (change.std(axis=1, ddof=1) / np.sqrt(tasks))
    return estimate, expected(a, each) - (b.mean() if setup.against_base else expected(b, each)), pooled


def coverage(setup: Setup, studies: int, seed: int) -> dict[str, float]:
    """Share of studies whose interval over trainings holds the truth, and how often seeds pooled as further
    runs of a task would have shown an effect where there is none."""
    estimate, truth, pooled = simulate(setup, studies, seed)
    low, high = estimate.interval()
    critical = special.stdtrit(setup.tasks - 1, 1 - ALPHA / 2)
    return {
        "over_trainings": float(np.mean((low <= truth) & (truth <= high))),
        "pooled_false_alarms": float(np.mean(np.abs(pooled) > critical)),
    }


def verdicts(
    setup: Setup, published: tuple[float, float], margin: float, *, studies: int, seed: int, family: int = 1
) -> dict[str, float]:
    """Verdict -> share of studies, for printed rates of two arms. ``family``: the claim's p-values are the
    smallest of so many, the hardest case of Holm."""
    estimate, _, _ = simulate(setup, studies, seed)
    noise = published_noise(list(published), setup.tasks)
    found = tests(estimate, published[0] - published[1], noise, margin)
    rows = np.minimum(1.0, family * np.array([found.same, found.opposite, found.outside, found.equal])).T
    words = [answer(Tests(*row), direction=True, informative=False) for row in rows]
    return {word: round(words.count(word) / studies, 4) for word in dict.fromkeys(words)}


def truths(setup: Setup, published: tuple[float, float]) -> dict[str, Setup]:
    """The published effect is true, half of it is, none of it is."""
    first, second = published
    return {
        "published": replace(setup, first=first, second=second),
        "half": replace(setup, first=(first + second) / 2, second=second),
        "zero": replace(setup, first=second, second=second),
    }
