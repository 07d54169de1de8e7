"""Intervals for success rates and their differences.

Each question has one method, fixed before any result was seen:

- one run per task: Wilson's interval;
- several runs per task: the tasks are the clusters. Wilson's interval with the effective number of
  runs, i.e. the number of independent runs that would have the clustered standard error (Korn and
  Graubard 1998, with their correction for few clusters; Dean and Pagano 2015);
- two arms on the same tasks: the difference per task, Student's t, and beside it the BCa bootstrap of
  whole tasks and a sign-flip permutation test;
- new trainings: the training is the unit. Student's t over the seeds' own rates or differences, from five
  seeds on (``over_trainings``); the tasks are the same ones. Pooling seeds as further runs of a task instead
  finds an effect where there is none in up to 77 % of simulated studies (benchmarks/results/verdicts.json);
- against a bare published number: ``comparison``.

Why not the bootstrap for all: with 8 to 24 tasks of two runs it covers the truth in 89 to 94 % of
simulated studies instead of 95 %, with 2 tasks in 64 to 77 %; the methods above in 94 % or more
(tests/unit/test_statistics.py simulates it).

The first three say how the result would vary with *new tasks* of the same kind. ``conditional_interval`` is
the other uncertainty: new runs of *this* task set. Each interval says which one it is (``about``). Where
task means do not vary at all, Wilson or Newcombe over the tasks stands in, which is conservative.

Further: E. Miller, "Adding Error Bars to Evals", arXiv 2411.00640; calls: scipy and statsmodels.
"""

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from scipy import stats
from statsmodels.stats import proportion as smp

from arpo_replica.evaluation.comparison import published_noise
from arpo_replica.evaluation.records import About, Interval

CONFIDENCE = 0.95
RESAMPLES = 9999
FEWEST_TRAININGS = 5
"""With fewer trainings each is shown by itself: no error over trainings, and no verdict."""
EQUAL = 1e-12
"""Rates closer than this are the same."""
SEED = 20250522
"""Of every bootstrap and permutation; printed in the report. (The day of the paper's v1.)"""


class PairedDifference(NamedTuple):
    """Mean over tasks of (this arm - reference), in fractions, as a row of differences has it."""

    difference: Interval
    bootstrap: Interval | None
    """BCa bootstrap of whole tasks, for comparison; None where it has no answer."""
    p_value: float
    """Sign-flip permutation test, two-sided."""
    tasks: int
    dropped: list[str]
    """Tasks that only one side has: they take no part."""
    standard_error: float | None = None
    """For new tasks; None where the differences do not vary."""
    conditional_se: float | None = None
    """For new runs of these very tasks; None with one run per task on either side."""


def wilson(successes: int, trials: int) -> Interval:
    """Wilson's interval of a rate. Raises ValueError for no trials or impossible counts."""
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} successes of {trials} trials")
    found = stats.binomtest(successes, trials).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(successes / trials, float(found.low), float(found.high), "Wilson")


def clustered_t(task_means: Sequence[float]) -> Interval:
    """Student's t interval of the mean of one value per task, not clipped. Needs at least two tasks."""
    means = np.asarray(task_means, dtype=float)
    if means.size < 2:
        raise ValueError("a clustered interval needs at least two tasks")
    error = means.std(ddof=1) / math.sqrt(means.size)
    return _student(float(means.mean()), error, means.size - 1, "Student's t over tasks")


def _student(mean: float, error: float, degrees: float, method: str, about: About = "new tasks") -> Interval:
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, degrees)) * float(error)
    return Interval(mean, mean - half, mean + half, method, about)


def clipped(found: Interval, lowest: float = 0.0) -> Interval:
    """The same within what a rate can be; ``lowest`` -1: a difference of two."""
    return replace(found, low=max(lowest, found.low), high=min(1.0, found.high))


def bootstrap_mean(values: Sequence[float]) -> Interval:
    """BCa bootstrap interval of the mean of independent values (tasks). They must not all be equal.

    Raises ValueError where BCa has no answer (a bias correction of 0 or 1).
    """
    sample = np.asarray(values, dtype=float)
    found = stats.bootstrap(
        (sample,), np.mean, confidence_level=CONFIDENCE, n_resamples=RESAMPLES, method="BCa", rng=SEED
    ).confidence_interval
    if not (math.isfinite(found.low) and math.isfinite(found.high)):
        raise ValueError("the BCa bootstrap has no interval for these values")
    return Interval(float(sample.mean()), float(found.low), float(found.high), "BCa bootstrap over tasks")


def success_rate(runs: Mapping[str, Sequence[bool]]) -> Interval:
    """Success rate with the interval for new tasks. ``runs`` maps a task to its valid episodes.

    Every task has the same weight. Tasks without a valid episode must be left out by the caller.
    """
    if not runs or not all(runs.values()):
        raise ValueError("every task needs at least one valid episode")
    means = [float(np.mean(outcomes)) for outcomes in runs.values()]
    if all(len(outcomes) == 1 for outcomes in runs.values()):
        return wilson(round(sum(means)), len(means))
    centre = float(np.mean(means))
    method = "Wilson with the effective number of runs, clustered by task"
    if max(means) - min(means) < EQUAL:
        method = "Wilson over tasks (task means do not vary)"
    return Interval(centre, *_wilson_of_rate(centre, effective_runs(runs)), method)


def effective_runs(runs: Mapping[str, Sequence[bool]]) -> float:
    """Independent runs that would give the clustered standard error; at most the runs there are.

    n = p (1 - p) / SE^2 x (z / t)^2, with t of T - 1 degrees of freedom. With one run per task, and where
    task means do not vary, as many as there are tasks.
    """
    means = np.array([np.mean(outcomes) for outcomes in runs.values()])
    if all(len(outcomes) == 1 for outcomes in runs.values()) or np.ptp(means) < EQUAL:
        return float(len(runs))
    rate = float(means.mean())
    variance = float(means.var(ddof=1)) / means.size
    few = stats.norm.ppf(0.5 + CONFIDENCE / 2) / stats.t.ppf(0.5 + CONFIDENCE / 2, means.size - 1)
    return min(rate * (1 - rate) / variance * float(few) ** 2, float(sum(map(len, runs.values()))))


def _wilson_of_rate(rate: float, n: float) -> tuple[float, float]:
    """Wilson's interval where neither successes nor trials need be whole numbers."""
    low, high = smp.proportion_confint(rate * n, n, alpha=1 - CONFIDENCE, method="wilson")
    return max(0.0, float(low)), min(1.0, float(high))


def conditional_se(runs: Mapping[str, Sequence[bool]]) -> float | None:
    """Standard error for new runs of this very task set: sqrt(sum_t s_t^2 / K_t) / T.

    None if a task has fewer than two runs, because run-to-run noise cannot be seen then.
    """
    if not runs or any(len(outcomes) < 2 for outcomes in runs.values()):
        return None
    noise = sum(float(np.var(outcomes, ddof=1)) / len(outcomes) for outcomes in runs.values())
    return math.sqrt(noise) / len(runs)


def conditional_interval(runs: Mapping[str, Sequence[bool]]) -> Interval | None:
    """The rate with the interval for new runs of this very task set: Student's t with sum(K_t - 1) degrees.

    None with one run per task, and where no task varies between its runs: no noise was seen then, which
    is not the same as no noise.
    """
    error = conditional_se(runs)
    if not error:
        return None
    degrees = sum(len(outcomes) - 1 for outcomes in runs.values())
    centre = float(np.mean([np.mean(outcomes) for outcomes in runs.values()]))
    return clipped(_student(centre, error, degrees, "Student's t over runs within tasks", "this task set"))


@dataclass(frozen=True, slots=True)
class Trainings:
    """A mean over trainings with its noise."""

    interval: Interval
    error: float
    degrees: float


def over_trainings(values: Sequence[float], shared: float = 0.0) -> Trainings | None:
    """Mean of one value per training, for new trainings on the same tasks.

    ``shared``: standard error of what all of them have in common, e.g. the measurement of the untrained
    policy that each is compared with; the degrees of freedom of the sum are Welch's. None for fewer than
    ``FEWEST_TRAININGS``, and where the trainings do not differ at all, which is not the same as no noise.
    """
    sample = np.asarray(values, dtype=float)
    if sample.size < FEWEST_TRAININGS or np.ptp(sample) < EQUAL:
        return None
    own = float(sample.std(ddof=1)) / math.sqrt(sample.size)
    error = math.hypot(own, shared)
    degrees = (error / own) ** 4 * (sample.size - 1)
    method = f"Student's t over {sample.size} trainings"
    interval = _student(float(sample.mean()), error, degrees, method, "training seeds")
    return Trainings(interval, error, degrees)


def shared_noise(reference: Any, trained: Any) -> Any:
    """Standard error of the reference's mean rate for new runs of its tasks, some of them run only once.

    ``reference`` (..., tasks) and ``trained`` (..., trainings, tasks) are rates of the same tasks. One run
    shows no noise, but the trainings show what else it could have been. Over tasks, the reference minus the
    mean of the trainings varies by the reference's noise, by the trainings' own (known from how they differ),
    and by how unequally training moved the tasks. The second is taken off. The third stays: the answer is
    right where training moves all tasks alike (benchmarks/results/verdicts.json) and too large elsewhere,
    though never beyond the bound of independent tasks.
    """
    trainings, tasks = trained.shape[-2:]
    bound = published_noise([reference.mean(-1)], tasks)
    if tasks < 2:
        return bound
    apart = (reference - trained.mean(-2)).var(-1, ddof=1)
    own = trained.var(-2, ddof=1).mean(-1) / trainings
    seen = np.sqrt(np.maximum(apart - own, 0) / tasks)
    return np.where(seen > 0, np.minimum(seen, bound), bound)


def pass_at_k(runs: Mapping[str, Sequence[bool]], k: int) -> Interval | None:
    """Chance that at least one of k runs succeeds, unbiased per task: 1 - C(n - c, k) / C(n, k).

    M. Chen et al. 2021, arXiv 2107.03374, eq. 1; the interval is clustered by task. Tasks with fewer than
    k runs would bias it, so the answer is None if there is one, or if there are fewer than two tasks.
    """
    if len(runs) < 2 or k < 1 or any(len(outcomes) < k for outcomes in runs.values()):
        return None
    values = [
        1 - math.comb(len(outcomes) - sum(outcomes), k) / math.comb(len(outcomes), k)
        for outcomes in runs.values()
    ]
    if max(values) - min(values) < EQUAL:
        low, high = _wilson_of_rate(values[0], len(values))
        return Interval(values[0], low, high, "Wilson over tasks (tasks do not vary)")
    return clipped(clustered_t(values))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted by Holm for all tests of a family, in the given order.

    statsmodels' ``multipletests`` gives the same and collects garbage on each call, 0.1 s.
    """
    raw = np.asarray(p_values, dtype=float)
    order = np.argsort(raw)
    rising = np.maximum.accumulate(raw[order] * np.arange(raw.size, 0, -1))
    adjusted = np.empty_like(raw)
    adjusted[order] = np.minimum(rising, 1.0)
    return [float(value) for value in adjusted]


def paired_difference(
    arm: Mapping[str, Sequence[bool]], reference: Mapping[str, Sequence[bool]]
) -> PairedDifference | None:
    """Difference of success rates on the tasks that both sides have; None if there is no such task."""
    shared = sorted(task for task in arm if task in reference and arm[task] and reference[task])
    dropped = sorted((set(arm) | set(reference)) - set(shared))
    if not shared:
        return None
    ours = np.array([np.mean(arm[task]) for task in shared])
    theirs = np.array([np.mean(reference[task]) for task in shared])
    change = ours - theirs
    n = len(shared)
    bootstrap = error = None
    if n < 2 or np.ptp(change) < EQUAL:
        solved = (float(ours.sum()), n, float(theirs.sum()), n)
        ends = smp.confint_proportions_2indep(*solved, method="newcomb", compare="diff", alpha=1 - CONFIDENCE)
        low, high = map(float, ends)
        method = "Newcombe over tasks, unpaired (differences do not vary)"
        interval = Interval(float(change.mean()), low, high, method)
    else:
        error = float(change.std(ddof=1)) / math.sqrt(n)
        interval = replace(clipped(clustered_t(change.tolist()), -1.0), method="paired by task, Student's t")
        with contextlib.suppress(ValueError):
            bootstrap = bootstrap_mean(change.tolist())
    noise = [conditional_se({task: side[task] for task in shared}) for side in (arm, reference)]
    conditional = math.hypot(noise[0], noise[1]) if noise[0] is not None and noise[1] is not None else None
    return PairedDifference(interval, bootstrap, sign_flip(change.tolist()), n, dropped, error, conditional)


def sign_flip(differences: Sequence[float]) -> float:
    """Two-sided p-value of a mean difference of zero, by flipping signs per task.

    Exact if 2^n is at most the number of resamples, else by random flips with a fixed seed. With one
    run per task this is McNemar's exact test.
    """
    # A difference of zero stays zero under a flip: leaving it out changes no p-value and keeps the
    # test exact for more tasks.
    moved = np.array([value for value in differences if abs(value) > EQUAL])
    if moved.size < 2:
        return 1.0  # one flip either way: nothing can be shown
    found = stats.permutation_test(
        (moved,), np.sum, permutation_type="samples", n_resamples=RESAMPLES, alternative="two-sided", rng=SEED
    )
    return float(min(1.0, found.pvalue))
