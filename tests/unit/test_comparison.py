"""Ours against a bare published rate, and what would settle a claim: hand-worked values and libraries."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats import proportion as smp

from arpo_replica.evaluation import comparison as co
from arpo_replica.evaluation import power
from arpo_replica.evaluation import statistics as st


def test_two_wilson_sides_give_newcombes_interval() -> None:
    """R. Newcombe 1998, table II: 56/70 - 48/80 = 0.2, interval 0.0524 to 0.3339."""
    side = co.mover(co.rate_side(56 / 70, 70), co.rate_side(48 / 80, 80))
    found = co.interval(side)
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert found.method.startswith("Newcombe")
    assert found.about == "both studies"
    low, high = smp.confint_proportions_2indep(56, 70, 48, 80, method="newcomb", compare="diff", alpha=0.1)
    assert side.at(0.90) == pytest.approx((low, high))


def test_mover_by_hand() -> None:
    """0.5 (0.4 to 0.7) minus 0.3 (0.2 to 0.35): d = 0.2.

    low = 0.2 - sqrt(0.1^2 + 0.05^2) = 0.2 - 0.111803; high = 0.2 + sqrt(0.2^2 + 0.1^2) = 0.2 + 0.223607.
    """
    side = co.mover(co.Side(0.5, lambda _: (0.4, 0.7), "a"), co.Side(0.3, lambda _: (0.2, 0.35), "b"))
    assert side.at(0.95) == pytest.approx((0.2 - math.sqrt(0.0125), 0.2 + math.sqrt(0.05)))


def test_the_published_count_is_rebuilt() -> None:
    """23.5 % of 369 tasks is 86.7, i.e. 87 tasks."""
    assert co.published_side(23.5, 369).value == pytest.approx(87 / 369)


def test_equivalence_agrees_with_statsmodels() -> None:
    """166 of 369 twice, margin 5 points: p = .086, so agreement cannot be shown."""
    side = co.mover(co.rate_side(166 / 369, 369), co.rate_side(166 / 369, 369))
    expected = smp.tost_proportions_2indep(166, 369, 166, 369, -0.05, 0.05).pvalue
    assert co.equivalence_p(side, 0.05) == pytest.approx(expected, abs=1e-3)
    assert co.judge(side, 0.05)[0] == "inconclusive"
    assert co.judge(side, 0.07)[0] == "consistent"


def test_equivalence_of_a_normal_value_by_hand() -> None:
    """Value 1, standard error 1, many degrees, margin 3: the nearer bound is 2 errors away, p = .0228."""
    side = co.error_side(1.0, 1.0, 10**6, "t")
    assert co.equivalence_p(side, 3.0) == pytest.approx(stats.norm.sf(2), abs=1e-5)
    assert co.equivalence_p(side, 0.5) == 1.0


@pytest.mark.parametrize(
    ("value", "error", "verdict"),
    [(0.0, 0.01, "consistent"), (0.02, 0.005, "consistent"), (0.2, 0.02, "higher"), (-0.2, 0.02, "lower"),
     (0.02, 0.1, "inconclusive"), (0.06, 0.05, "inconclusive")],
)  # fmt: skip
def test_verdicts(value: float, error: float, verdict: str) -> None:
    assert co.judge(co.error_side(value, error, 500, "t"), 0.05)[0] == verdict


def test_episodes_of_the_papers_central_step() -> None:
    """26.0 -> 29.9: (1.96 + 0.8416)^2 (.1924 + .2096) / .039^2 = 7.849 x .4020 / .001521 = 2,075."""
    assert power.unpaired_episodes(0.299, 0.260) == 2075


def test_paired_trials_by_hand() -> None:
    """The same, paired: 7.849 x .4595 x .4020 / (369 x .001521) = 2.58, so three runs per task."""
    assert power.paired_trials(0.299, 0.260, 369) == 3
    assert power.paired_trials(0.261, 0.260, 369) is None


def test_the_assumed_noise_gives_the_simulated_errors() -> None:
    """369 tasks, three runs, 45 %: .4595 x .2475 / 3 / 369 is 1.01 points squared, twice that 1.43."""
    conditional = math.sqrt(power.WITHIN * 0.2475 / 3 / 369)
    assert 100 * conditional == pytest.approx(1.02, abs=0.02)
    assert 100 * math.sqrt(2) * conditional == pytest.approx(1.41, abs=0.03)


def test_agreement_needs_more_than_the_papers_noise_allows() -> None:
    """23.5 % of 369 tasks: error 2.208 points; 80 % power needs (1.645 + 1.282) x 2.208 = 6.46 points."""
    trials, largest, smallest = power.agreement((0.235,), 369, 0.05)
    assert trials is None
    assert smallest == pytest.approx(0.0646, abs=1e-4)
    # 2 Phi(5 / 2.208 - 1.645) - 1 = 2 Phi(0.6196) - 1 = .464
    assert largest == pytest.approx(0.465, abs=2e-3)
    # Margin 7: error 7 / 2.926 = 2.392; ours may have 2.392^2 - 2.208^2 = 0.848, and 2.240 / 0.848 = 2.6.
    assert power.agreement((0.235,), 369, 0.07)[0] == 3


def test_power_of_agreement_by_simulation() -> None:
    dice = np.random.default_rng(11)
    error, margin = 0.02, 0.07
    found = dice.normal(0, error, 20_000)
    shown = np.mean(np.abs(found) + stats.norm.ppf(0.95) * error < margin)
    assert power.agreement_power(error, margin) == pytest.approx(shown, abs=0.01)


def test_pass_at_k_by_hand() -> None:
    """Tasks with 2 of 4 and 0 of 4 successes, k = 2: 1 - C(2,2)/C(4,2) = 5/6 and 0; mean 5/12."""
    runs = {"a": [True, True, False, False], "b": [False] * 4}
    found = st.pass_at_k(runs, 2)
    assert found is not None
    assert found.value == pytest.approx(5 / 12)
    assert st.pass_at_k(runs, 1).value == pytest.approx(0.25)  # type: ignore[union-attr]
    assert st.pass_at_k(runs, 5) is None


def test_holm_by_hand() -> None:
    """0.01, 0.04, 0.03 -> 3 x 0.01, then 2 x 0.03 = 0.06, then max(0.06, 0.04) = 0.06."""
    assert st.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert st.holm([]) == []


def test_conditional_interval_by_hand() -> None:
    """Tasks 1/2 and 1/2: s^2 = 1/2 each, error sqrt(2 x 1/4) / 2 = .3536, t(2) = 4.303: wider than [0, 1]."""
    found = st.conditional_interval({"a": [True, False], "b": [False, True]})
    assert found is not None
    assert (found.low, found.value, found.high) == (0.0, 0.5, 1.0)
    assert found.about == "this task set"
    assert st.conditional_interval({"a": [True, True], "b": [False, False]}) is None
    assert st.conditional_interval({"a": [True], "b": [False]}) is None


def coverage(studies: int, tasks: int, runs: int, seed: int) -> dict[str, float]:
    """Share of simulated studies whose interval holds the truth, for each kind of interval."""
    dice = np.random.default_rng(seed)
    hits = {"new tasks": 0, "this task set": 0, "both studies": 0}
    a, b = 0.4, 0.6  # U-shaped difficulty, mean .4
    fixed = dice.beta(a, b, tasks)
    for _ in range(studies):
        chance = dice.beta(a, b, tasks)
        ours = {str(i): (dice.random(runs) < p).tolist() for i, p in enumerate(chance)}
        found = st.success_rate(ours)
        hits["new tasks"] += found.low <= 0.4 <= found.high
        again = {str(i): (dice.random(runs) < p).tolist() for i, p in enumerate(fixed)}
        inner = st.conditional_interval(again)
        hits["this task set"] += inner is not None and inner.low <= fixed.mean() <= inner.high
        # The paper's single run of the same tasks, of which only the rate is known: no true difference.
        published = (dice.random(tasks) < fixed).mean()
        mean = float(np.mean([np.mean(part) for part in again.values()]))
        error = st.conditional_se(again) or 1e-6
        side = co.mover(
            co.error_side(mean, error, tasks * (runs - 1), "t"), co.published_side(100 * published, tasks)
        )
        low, high = side.at(0.95)
        hits["both studies"] += low <= 0 <= high
    return {name: count / studies for name, count in hits.items()}


def test_coverage_short() -> None:
    found = coverage(studies=300, tasks=60, runs=3, seed=5)
    assert found["new tasks"] > 0.92
    assert 0.91 < found["this task set"] < 0.985
    assert found["both studies"] > 0.95  # conservative: the paper's noise is bounded, not known


@pytest.mark.slow
@pytest.mark.parametrize(("tasks", "runs"), [(32, 2), (128, 3), (369, 3)])
def test_coverage_long(tasks: int, runs: int) -> None:
    found = coverage(studies=2000, tasks=tasks, runs=runs, seed=tasks)
    assert found["new tasks"] > 0.935
    assert 0.93 < found["this task set"] < 0.975
    assert found["both studies"] > 0.96
