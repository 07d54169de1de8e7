"""Thousands of invented studies through the lines that judge claims, for tests and `benchmarks/verdicts.py`.

Tasks are Beta-distributed in difficulty (nearly always or nearly never solved), the same for all arms; a
training moves the chance of every task, most where it can go either way. What succeeds under the hard
protocol succeeds under the standard one. Numpy alone: a study is a row of an array.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from arpo_replica.evaluation.claims import QUESTIONS, family_of
from arpo_replica.evaluation.comparison import (
    ALPHA,
    MANY,
    WIDEST,
    Estimate,
    Tests,
    answer,
    published_noise,
    tests,
)
from arpo_replica.evaluation.power import CONCENTRATION
from arpo_replica.evaluation.published import Claim, Published
from arpo_replica.evaluation.statistics import holm, shared_noise

Array = np.ndarray
Arm = tuple[str, str]
"""(arm, split)"""
Rates = dict[Arm, dict[str, float]]
"""Arm -> protocol -> mean success; fractions."""


@dataclass(frozen=True)
class Design:
    """What each study runs; ``spread``: standard deviation between trainings of one arm, a fraction."""

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


def expected(mean: float, tasks: int, spread: float) -> float:
    """Mean rate over all trainings: no chance goes below 0 or above 1, which moves it a little."""
    return float(moved(chances(mean, tasks), np.random.default_rng(5).normal(0, spread, 4000)).mean())


def run(
    rates: Mapping[str, float], tasks: int, shift: Array, trials: int, dice: np.random.Generator
) -> dict[str, Array]:
    """Protocol -> successes (..., tasks) of the very same episodes; ``shift`` has a value per training."""
    order = [name for name in ("hard", "standard") if name in rates]
    each = [moved(chances(rates[name], tasks), shift) for name in order]
    found = {order[0]: dice.binomial(trials, each[0])}
    if len(order) == 2:
        more = np.clip((each[1] - each[0]) / np.maximum(1 - each[0], 1e-9), 0, 1)
        found[order[1]] = found[order[0]] + dice.binomial(trials - found[order[0]], more)
    return found


def simulate(
    rates: Rates, tasks: Mapping[Arm, int], design: Design, studies: int, seed: int
) -> dict[Arm, dict[str, Array]]:
    """Arm -> protocol -> successes (studies, trainings, tasks); the untrained one has one training."""
    dice = np.random.default_rng(seed)
    found = {}
    for arm, means in rates.items():
        anew = arm[0] != "base"
        shape = (studies, design.trainings if anew else 1)
        shift = dice.normal(0, design.spread, shape) if anew else np.zeros(shape)
        found[arm] = run(means, tasks[arm], shift, design.trials, dice)
    return found


def _untrained_error(runs: Array, trials: int) -> Array:
    """Of the untrained policy's rate, as ``summary`` has it: run-to-run noise, a bound with one trial."""
    rate = runs[:, 0] / trials
    mean, tasks = rate.mean(-1), rate.shape[-1]
    if trials == 1:
        return published_noise([mean], tasks)
    return np.sqrt((rate * (1 - rate) / (trials - 1)).sum(-1)) / tasks


def rate_estimate(runs: Array, trials: int, trained: bool) -> Estimate:
    """Ours as ``claims`` makes it."""
    each, tasks = runs.mean(-1) / trials, runs.shape[-1]
    if not trained:
        degrees = tasks * (trials - 1) if trials > 1 else MANY
        return Estimate(each[:, 0], _untrained_error(runs, trials), np.full(len(each), float(degrees)))
    count = each.shape[1]
    return Estimate(each.mean(1), each.std(axis=1, ddof=1) / np.sqrt(count), np.full(len(each), count - 1.0))


def difference_estimate(ours: Array, theirs: Array, trials: int) -> Estimate:
    """Paired by seed; the noise of an untrained reference is shared by all trainings."""
    gain = ours.mean(-1) / trials - theirs.mean(-1) / trials
    count = gain.shape[1]
    own = gain.std(axis=1, ddof=1) / np.sqrt(count)
    shared: Array | float = 0.0
    if theirs.shape[1] == 1:
        repeated = trials > 1
        shared = _untrained_error(theirs, trials) if repeated else shared_noise(theirs[:, 0], ours)
    return Estimate(gain.mean(1), *Estimate(gain.mean(1), own, count - 1.0).plus(shared))


def coverage(
    rate: float, tasks: int, design: Design, *, against_base: bool, studies: int, seed: int
) -> dict[str, float]:
    """Without any effect: share of studies whose interval over trainings holds the truth, and how often seeds
    pooled as further runs of a task would have shown an effect where there is none."""
    names = (("arpo", ""), ("base" if against_base else "grpo", ""))
    found = simulate(
        {arm: {"hard": rate} for arm in names}, dict.fromkeys(names, tasks), design, studies, seed
    )
    ours, theirs = (found[arm]["hard"] for arm in names)
    truth = expected(rate, tasks, design.spread) - chances(rate, tasks).mean() if against_base else 0.0
    low, high = difference_estimate(ours, theirs, design.trials).interval()
    change = (ours.mean(1) - theirs.mean(1)) / design.trials
    pooled = change.mean(1) / (change.std(axis=1, ddof=1) / np.sqrt(tasks))
    return {
        "over_trainings": float(np.mean((low <= truth) & (truth <= high))),
        "pooled_false_alarms": float(np.mean(np.abs(pooled) > special.stdtrit(tasks - 1, 1 - ALPHA / 2))),
    }


# --- families of claims ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """The claims whose p-values are adjusted together, all of one kind."""

    claims: tuple[Claim, ...]
    published: Mapping[str, Published]

    @property
    def difference(self) -> bool:
        """Whether they are about differences."""
        return len(self.claims[0].published) == 2

    def sides(self, claim: Claim) -> list[tuple[Arm, str, Published]]:
        """(arm, protocol, number) of each side."""
        assert claim.measure is not None
        names = [claim.measure.arm, claim.measure.reference][: len(claim.published)]
        return [
            ((str(arm), claim.needs.split), str(claim.measure.protocol), self.published[number])
            for arm, number in zip(names, claim.published, strict=True)
        ]

    def truth(self, share: float) -> Rates:
        """Rates if ``share`` of what each arm of the paper gains over the untrained policy is true."""
        printed: Rates = {}
        for claim in self.claims:
            for arm, protocol, number in self.sides(claim):
                printed.setdefault(arm, {})[protocol] = number.value / 100
        return {
            (arm, split): {
                protocol: base + share * (value - base)
                for protocol, value in rates.items()
                for base in [printed["base", split][protocol]]
            }
            for (arm, split), rates in printed.items()
        }

    @property
    def tasks(self) -> dict[Arm, int]:
        """Tasks behind each arm's rate."""
        return {arm: int(n.n or 0) for claim in self.claims for arm, _, n in self.sides(claim)}


def families(claims: Sequence[Claim], published: Mapping[str, Published]) -> dict[str, Family]:
    """``target, kind, model`` -> family, of all claims about success on a known number of tasks."""
    found: dict[str, list[Claim]] = {}
    for claim in claims:
        if claim.measure is not None and claim.measure.kind in ("rate", "difference"):
            found.setdefault(", ".join(family_of(claim)), []).append(claim)
    return {name: Family(tuple(members), published) for name, members in found.items()}


def verdicts(
    family: Family, share: float, design: Design, *, studies: int, seed: int
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """(claim -> verdict -> share of studies, verdict -> share of studies in which any claim gets it).

    All claims are of the same simulated episodes, each question adjusted by Holm over all of them.
    """
    runs = simulate(family.truth(share), family.tasks, design, studies, seed)
    found, wide = [], []
    for claim in family.claims:
        sides = family.sides(claim)
        each = [runs[arm][protocol] for arm, protocol, _ in sides]
        printed = [number.value / 100 for _, _, number in sides]
        noise, margin = published_noise(printed, int(sides[0][2].n or 0)), claim.margin / 100
        if family.difference:
            ours = difference_estimate(each[0], each[1], design.trials)
        else:
            ours = rate_estimate(each[0], design.trials, trained=sides[0][0][0] != "base")
        result = tests(ours, printed[0] - sum(printed[1:]), noise, margin)
        found.append([getattr(result, name) for name in QUESTIONS])
        error, degrees = ours.plus(noise)
        wide.append(special.stdtrit(degrees, 1 - ALPHA / 2) * error > WIDEST * margin)
    each_claim: list[Counter[str]] = [Counter() for _ in family.claims]
    any_claim: Counter[str] = Counter()
    p_values = np.array(found)  # claims, questions, studies
    for study in range(studies):
        adjusted = [holm(row) for row in p_values[:, :, study].T]
        words = [
            answer(Tests(*row), family.difference, not family.difference and not wide[i][study])
            for i, row in enumerate(zip(*adjusted, strict=True))
        ]
        for counter, word in zip(each_claim, words, strict=True):
            counter[word] += 1
        any_claim.update(set(words))

    def shares(counter: Counter[str]) -> dict[str, float]:
        return {word: round(count / studies, 4) for word, count in counter.most_common()}

    rows = zip(family.claims, each_claim, strict=True)
    return {claim.id: shares(counter) for claim, counter in rows}, shares(any_claim)
