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


def test_square_and_add_by_hand() -> None:
    """0.5 (0.4 to 0.7) minus 0.3 (0.2 to 0.35): d = 0.2.

    low = 0.2 - sqrt(0.1^2 + 0.05^2) = 0.2 - 0.111803; high = 0.2 + sqrt(0.2^2 + 0.1^2) = 0.2 + 0.223607.
    """
    found = co.square_and_add((0.5, 0.4, 0.7), (0.3, 0.2, 0.35))
    assert found == pytest.approx((0.2 - math.sqrt(0.0125), 0.2 + math.sqrt(0.05)))


def test_two_wilson_intervals_give_newcombes() -> None:
    """R. Newcombe 1998, table II: 56/70 - 48/80 = 0.2, interval 0.0524 to 0.3339."""
    sides = [(k / n, *smp.proportion_confint(k, n, method="wilson")) for k, n in ((56, 70), (48, 80))]
    assert co.square_and_add(*sides) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_the_noise_of_a_printed_rate_is_bounded_by_its_tasks() -> None:
    """29.9 % of 369: sqrt(.299 x .701 / 369) = 2.383 points; with 26.0 %, 2.283 points, 3.301 together."""
    assert co.published_noise([0.299], 369) == pytest.approx(0.02383, abs=1e-5)
    assert co.published_noise([0.299, 0.26], 369) == pytest.approx(0.03301, abs=1e-5)


def test_the_four_questions_by_hand() -> None:
    """Ours +5 points, error 1, many degrees; published +3.9 with noise 3; margin 3.

    same: z = 5; outside: 1.1 / sqrt(10) = 0.348, two-sided .728; equal: (1.1 - 3) / sqrt(10) = -0.601: .274.
    """
    found = co.tests(co.Estimate(5.0, 1.0, co.MANY), 3.9, 3.0, 3.0)
    assert found.same == pytest.approx(2 * stats.norm.sf(5), rel=1e-3)
    assert found.opposite == 1.0
    assert found.outside == pytest.approx(2 * stats.norm.sf(1.1 / math.sqrt(10)), abs=1e-6)
    assert found.equal == pytest.approx(stats.norm.cdf(-1.9 / math.sqrt(10)), abs=1e-6)
    gap, low, high = co.prediction(co.Estimate(5.0, 1.0, co.MANY), 3.9, 3.0)
    assert (gap, low, high) == pytest.approx((1.1, 1.1 - 6.198, 1.1 + 6.198), abs=1e-3)


def test_the_t_test_is_scipys() -> None:
    sample = [0.031, 0.052, 0.011, 0.044, 0.020]
    found = st.over_trainings(sample)
    assert found is not None
    expected = stats.ttest_1samp(sample, 0)
    ours = co.tests(co.Estimate(found.interval.value, found.error, found.degrees), 0.039, 0.033, 0.03)
    assert ours.same == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert (found.interval.low, found.interval.high) == pytest.approx((interval.low, interval.high))


def test_welchs_degrees_by_hand() -> None:
    """Error 1 with 4 degrees and a normal noise of 1: (1 + 1)^2 / (1 / 4) = 16."""
    error, degrees = co.Estimate(0.0, 1.0, 4).plus(1.0)
    assert (error, degrees) == pytest.approx((math.sqrt(2), 16))
    assert co.Estimate(0.0, 1.0, 4).plus(0.0)[1] == pytest.approx(4)


def test_noise_of_tasks_run_once_by_hand() -> None:
    """Reference minus mean of the trainings: 0, .5, 0, .5, 0, 0, with variance .0667. Their own part is
    2 * .5 / 6 / 2 = .0833: nothing is left, so the bound stands. Trainings that agree leave all of .1667."""
    reference = np.array([1.0, 1, 0, 1, 0, 0])
    trained = np.array([[1.0, 1, 0, 1, 0, 0], [1, 0, 0, 0, 0, 0]])
    bound = math.sqrt(0.25 / 6)
    assert st.shared_noise(reference, trained) == pytest.approx(bound)
    agreed = trained[[1, 1, 1]] + [0, 1, 0, 0, 0, 0]
    assert st.shared_noise(reference, agreed) == pytest.approx(math.sqrt(1 / 6 / 6))
    assert st.shared_noise(np.stack([reference] * 2), np.stack([agreed] * 2)).shape == (2,)


def test_equivalence_agrees_with_statsmodels() -> None:
    """166 of 369 twice, margin 5 points: p = .086, so agreement cannot be shown."""
    rate = 166 / 369
    ours = co.Estimate(rate, co.published_noise([rate], 369), co.MANY)
    expected = smp.tost_proportions_2indep(166, 369, 166, 369, -0.05, 0.05, method="wald").pvalue
    found = co.tests(ours, rate, co.published_noise([rate], 369), 0.05)
    assert found.equal == pytest.approx(expected, abs=1e-3)


def test_a_test_counts_with_its_worse_end() -> None:
    """+4 points, but left-out tasks could make it +0.5 to +7.5: error 1, so only the lower end counts."""
    whole = co.tests(co.Estimate(4.0, 1.0, co.MANY, ends=(0.5, 7.5)), 3.9, 3.0, 3.0)
    assert whole.same == pytest.approx(2 * stats.norm.sf(0.5), abs=1e-6)
    assert whole.outside == 1.0  # 3.9 lies between the ends
    assert whole.equal == pytest.approx(stats.norm.sf((3.0 - 3.6) / math.sqrt(10)), abs=1e-6)
    assert co.prediction(co.Estimate(4.0, 1.0, co.MANY, ends=(0.5, 7.5)), 3.9, 0.0)[1:] == pytest.approx(
        (0.5 - 3.9 - 1.96, 7.5 - 3.9 + 1.96), abs=1e-3
    )


@pytest.mark.parametrize(
    ("value", "error", "direction", "verdict"),
    [
        (0.0, 0.005, False, "equivalent"),
        (0.2, 0.01, False, "contradicted"),
        (0.03, 0.02, False, "within prediction interval"),
        (0.06, 0.02, True, "same direction"),
        (-0.06, 0.02, True, "contradicted"),
        (0.03, 0.02, True, "inconclusive"),
    ],
)
def test_words(value: float, error: float, direction: bool, verdict: str) -> None:
    """Published 0 (a rate's gap) or +0.039 with noise 0.033 (a difference), margin 0.05."""
    published, noise = (0.039, 0.033) if direction else (0.0, 0.01)
    found = co.tests(co.Estimate(value, error, co.MANY), published, noise, 0.05)
    assert co.answer(found, direction, informative=True) == verdict
    if verdict == "within prediction interval":
        assert co.answer(found, direction, informative=False) == "inconclusive"


def test_the_assumed_noise_gives_the_simulated_errors() -> None:
    """369 tasks, three runs, 45 %: .4595 x .2475 / 3 / 369 is 1.01 points squared, twice that 1.43."""
    conditional = math.sqrt(power.WITHIN * 0.2475 / 3 / 369)
    assert 100 * conditional == pytest.approx(1.02, abs=0.02)
    assert 100 * math.sqrt(2) * conditional == pytest.approx(1.41, abs=0.03)


def test_power_of_a_direction_by_hand() -> None:
    """+3.9 points, 369 tasks, 3 trials, 5 trainings that differ by runs alone.

    One training: .4595 x (.2096 + .1924) / 1107 = 1.669e-4; five: 3.337e-5, error 0.578 points, 4 degrees;
    the effect is 6.75 errors, the critical value 2.776.
    """
    plan = power.ClaimPlan((0.299, 0.26), (True, True), 369, 0.03)
    error, degrees = power.error_of(plan, 3, 5, 0.0)
    assert error == pytest.approx(0.005777, abs=1e-5)
    assert degrees == pytest.approx(4)
    assert power.power_of(plan, 3, 5, 0.0) == pytest.approx(stats.nct.sf(2.776, 4, 6.751), abs=1e-3)
    assert power.power_of(plan, 3, 4, 0.0) == 0.0


def test_trainings_do_not_lessen_the_noise_of_the_untrained_policy() -> None:
    plan = power.ClaimPlan((0.299, 0.235), (True, False), 369, 0.03)
    base = power.run_noise(0.235, 369, 3)
    assert power.error_of(plan, 3, 10**6, 0.0)[0] == pytest.approx(base, rel=1e-3)


def test_reach_of_too_few_trainings_is_nothing() -> None:
    few = power.reach(power.ClaimPlan((0.299, 0.26), (True, True), 369, 0.03), 1, 1)
    assert (few.answers, few.power["0"]) == ([], 0.0)
    assert few.needed["0"] is not None
    many = power.reach(power.ClaimPlan((0.299, 0.26), (True, True), 369, 0.03), 3, 5)
    assert many.answers == ["same direction", "contradicted", "inconclusive"]  # never equivalent: noise 3.3
    assert power.reach(power.ClaimPlan((0.235,), (False,), 369, 0.05), 3, 5).answers[:2] == [
        "equivalent",
        "within prediction interval",
    ]


def test_a_rate_of_one_trial_has_no_noise_of_its_own() -> None:
    """sqrt(.235 x .765 / 369) = 2.21 points, as claims has it; two trials: sqrt(.459 / 2) of that, 1.06."""
    plan = power.ClaimPlan((0.235,), (False,), 369, 0.05)
    assert power.error_of(plan, 1, 5, 0.0)[0] == pytest.approx(0.0221, abs=1e-4)
    assert power.error_of(plan, 2, 5, 0.0)[0] == pytest.approx(0.0106, abs=1e-4)


def test_left_out_tasks_take_answers_away() -> None:
    """12 of 369 tasks: of +3.9 points +3.8 - 3.3 are left at the worse end, of +2.5 nothing."""
    whole = power.ClaimPlan((0.299, 0.26), (True, True), 369, 0.03)
    less = power.ClaimPlan((0.299, 0.26), (True, True), 369, 0.03, left_out=12 / 369)
    none = power.ClaimPlan((0.26, 0.235), (True, True), 369, 0.03, left_out=12 / 369)
    assert power.power_of(less, 3, 5, 0.0) < 0.2 < power.power_of(whole, 3, 5, 0.0)
    assert "same direction" in power.reach(less, 3, 5).answers
    assert "same direction" not in power.reach(none, 3, 5).answers


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
        published = float((dice.random(tasks) < fixed).mean())
        mean = float(np.mean([np.mean(part) for part in again.values()]))
        error = st.conditional_se(again) or 1e-6
        estimate = co.Estimate(mean, error, tasks * (runs - 1))
        _, low, high = co.prediction(estimate, published, co.published_noise([published], tasks))
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
