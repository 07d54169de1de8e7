"""Intervals against published examples, hand-worked values and simulated coverage."""

import math

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from arpo_replica.evaluation import statistics as st


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(166, 369, 0.400, 0.501), (1, 5, 0.036, 0.624), (2, 10, 0.057, 0.510), (0, 10, 0.0, 0.278)],
)
def test_wilson_matches_hand_worked_values(successes: int, trials: int, low: float, high: float) -> None:
    found = st.wilson(successes, trials)
    assert found.value == successes / trials
    assert found.low == pytest.approx(low, abs=6e-4)
    assert found.high == pytest.approx(high, abs=6e-4)


@pytest.mark.parametrize(("successes", "trials"), [(1, 0), (3, 2), (-1, 4)])
def test_wilson_refuses_impossible_counts(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="trials"):
        st.wilson(successes, trials)


def test_clustered_t_equals_a_cluster_robust_regression() -> None:
    runs = np.array([[1, 1, 0], [0, 0, 0], [1, 0, 1], [1, 1, 1], [0, 1, 0]])
    found = st.clustered_t(runs.mean(axis=1).tolist())
    flat, tasks = runs.ravel().astype(float), np.repeat(np.arange(5), 3)
    fit = sm.OLS(flat, np.ones_like(flat)).fit(
        cov_type="cluster", cov_kwds={"groups": tasks, "use_correction": False}
    )
    # Without small-sample correction the robust error divides by T instead of T - 1.
    error = fit.bse[0] * math.sqrt(5 / 4)
    assert found.value == pytest.approx(fit.params[0])
    assert (found.high - found.low) / 2 == pytest.approx(stats.t.ppf(0.975, 4) * error)


def test_one_run_per_task_is_wilson_and_repeats_are_clustered() -> None:
    single = st.success_rate({f"t{i}": [i < 3] for i in range(10)})
    assert (single.low, single.high) == (st.wilson(3, 10).low, st.wilson(3, 10).high)
    assert single.method == "Wilson"
    # The same answer in every repeat: 20 runs hold no more than the 10 tasks do, or a little less.
    repeated = st.success_rate({f"t{i}": [i < 3] * 2 for i in range(10)})
    assert repeated.value == pytest.approx(0.3)
    assert repeated.high - repeated.low >= single.high - single.low
    assert "clustered" in repeated.method


def test_effective_runs_by_hand() -> None:
    runs = {"a": [True, True], "b": [True, False], "c": [False, False], "d": [True, False]}
    # Task means 1, .5, 0, .5: p = .5, variance 1/6, SE^2 = 1/24, .25 * 24 = 6, times (1.960/3.182)^2.
    assert st.effective_runs(runs) == pytest.approx(6 * (1.959964 / 3.182446) ** 2, rel=1e-6)


def test_runs_never_count_for_more_than_there_are() -> None:
    runs = {f"t{i}": [True, False] if i else [True, True] for i in range(30)}
    assert st.effective_runs(runs) == 60


def test_no_variation_between_tasks_still_has_a_width() -> None:
    never = st.success_rate({f"t{i}": [False, False] for i in range(10)})
    assert never.low == 0
    assert never.high == pytest.approx(0.278, abs=6e-4)


def test_a_task_without_valid_episode_is_refused() -> None:
    with pytest.raises(ValueError, match="valid"):
        st.success_rate({"a": [True], "b": []})


def test_conditional_error_by_hand() -> None:
    runs = {"a": [True, True], "b": [True, False], "c": [False, False]}
    # Variances 0, 1/2, 0; halved by two runs: sqrt(1/4) / 3.
    assert st.conditional_se(runs) == pytest.approx(0.5 / 3)
    assert st.conditional_se({"a": [True]}) is None
    assert st.conditional_se({}) is None


def test_sign_flip_of_single_runs_is_mcnemars_exact_test() -> None:
    differences = [1, 1, 1, 1, 1, 1, -1, 0, 0, 0]
    expected = mcnemar([[2, 6], [1, 1]], exact=True).pvalue
    assert st.sign_flip(differences) == pytest.approx(expected)
    assert st.sign_flip([0, 0, 0]) == 1
    assert st.sign_flip([0.5]) == 1


def test_paired_difference_uses_shared_tasks_only_and_names_the_rest() -> None:
    found = st.paired_difference(
        {"a": [True], "b": [True], "c": [False], "x": [True]},
        {"a": [False], "b": [True], "c": [False], "y": [True]},
    )
    assert found is not None
    assert found.tasks == 3
    assert found.dropped == ["x", "y"]
    # Differences 1, 0, 0: mean 1/3, SE 1/3, t(2) = 4.303: clipped at both ends only where it leaves [-1, 1].
    assert found.difference.value == pytest.approx(1 / 3)
    assert found.difference.low == pytest.approx(1 / 3 - 4.302653 / 3, rel=1e-6) or found.difference.low == -1
    assert found.difference.high == 1
    assert st.paired_difference({"a": [True]}, {"b": [True]}) is None


def test_equal_differences_do_not_pretend_certainty() -> None:
    found = st.paired_difference({"a": [True], "b": [False]}, {"a": [True], "b": [False]})
    assert found is not None
    assert found.difference.value == 0
    assert found.difference.low < -0.5 < 0.5 < found.difference.high
    assert found.bootstrap is None


def test_seeds_are_fixed() -> None:
    values = np.random.default_rng(3).random(40).tolist()
    assert st.bootstrap_mean(values) == st.bootstrap_mean(values)
    differences = (np.array(values) - 0.4).tolist()
    assert st.sign_flip(differences) == st.sign_flip(differences)


@settings(deadline=None)
@given(
    some.dictionaries(
        some.text(max_size=3), some.lists(some.booleans(), min_size=1, max_size=4), min_size=1, max_size=12
    )
)
def test_intervals_hold_the_rate_and_stay_in_range(runs: dict[str, list[bool]]) -> None:
    found = st.success_rate(runs)
    assert 0 <= found.low <= found.value + 1e-9
    assert found.value - 1e-9 <= found.high <= 1
    assert found.high > found.low


@pytest.mark.parametrize("tasks", [4, 12, 30])
def test_coverage_of_rates_and_differences(tasks: int) -> None:
    """At least about 95 % of simulated studies (two runs per task, U-shaped difficulty) cover the truth."""
    dice = np.random.default_rng(7)
    truth, studies, rates, gaps = 0.4, 400, 0, 0
    for _ in range(studies):
        chance = dice.beta(0.6, 0.9, tasks)
        before = dice.random((tasks, 2)) < chance[:, None]
        after = dice.random((tasks, 2)) < (0.8 * chance + 0.2)[:, None]
        rate = st.success_rate({str(i): row.tolist() for i, row in enumerate(before)})
        rates += rate.low <= truth <= rate.high
        change = after.mean(axis=1) - before.mean(axis=1)
        if np.ptp(change) > 0:
            gap = st.clustered_t(change.tolist())
            gaps += gap.low <= 0.2 - 0.2 * truth <= gap.high
        else:
            gaps += 1
    assert rates / studies > 0.93
    assert gaps / studies > 0.93
