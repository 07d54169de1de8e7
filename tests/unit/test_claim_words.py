"""The table of verdicts: units, signs, digits, and no interval where there is none."""

from __future__ import annotations

import pytest

from arpo_replica.evaluation.power import ClaimPlan, reach
from arpo_replica.evaluation.published import load_claims
from arpo_replica.evaluation.records import ClaimResult, Interval, Verdict
from arpo_replica.report.words import (
    amount,
    bounds,
    chances,
    needed,
    p_shown,
    published_gap,
    signed,
)
from synthetic_study import PAPER

CLAIMS, NUMBERS = load_claims(PAPER / "claims.yaml", PAPER / "results.yaml")
MINUS = "\N{MINUS SIGN}"


def result(
    name: str,
    measured: tuple[float, float, float],
    found: tuple[float, float, float] | None = None,
    *,
    trials: int = 3,
    trainings: int = 5,
) -> ClaimResult:
    claim = next(claim for claim in CLAIMS if claim.id == name)
    numbers = [NUMBERS[published] for published in claim.published]
    verdict: Verdict = "inconclusive"
    tasks = numbers[0].n or 0
    rates = tuple(number.value / 100 for number in numbers)
    plan = ClaimPlan(rates, tuple(number.arm != "base" for number in numbers), tasks, claim.margin / 100)

    def record(ends: tuple[float, float, float]) -> Interval:
        return Interval(value=ends[0], low=ends[1], high=ends[2], method="m", about="both studies")

    return ClaimResult(
        id=claim.id,
        statement=claim.statement,
        published=[number.model_dump(mode="json") for number in numbers],
        margin=claim.margin,
        needs="",
        measured=record(measured),
        verdict=verdict,
        reason="",
        target=claim.target,
        how="",
        gap=None if found is None else record(found),
        contradictions=[],
        reach=reach(plan, trials, trainings) if tasks else None,
        sources=[],
    )


@pytest.mark.parametrize(
    ("name", "measured", "shown", "interval"),
    [
        ("table1_base_standard", (0.235, 0.2, 0.28), "23.5 %", "20.0 to 28.0"),
        ("table1_gain_over_grpo", (0.039, -0.01, 0.09), "+3.9 points", f"{MINUS}1.0 to +9.0"),
        ("figure3_replay_on", (0.7512, 0.70, 0.80), "0.75", "0.70 to 0.80"),
        ("figure3_replay", (-0.1, -0.12, 0.0), f"{MINUS}0.10", f"{MINUS}0.12 to 0.00"),
        ("figure7_8", (6.4, 6.4, 6.4), "6.40", "no interval"),
    ],
)
def test_measured_in_the_published_unit(
    name: str, measured: tuple[float, float, float], shown: str, interval: str
) -> None:
    claim = result(name, measured)
    about = "" if interval == "no interval" else " (both studies)"
    assert (amount(claim), bounds(claim)) == (shown, interval + about)


def test_the_published_gap_has_its_sign_and_unit() -> None:
    assert published_gap(result("table1_gain_over_grpo", (0.0, -0.1, 0.1))) == "+3.9 points"
    assert published_gap(result("figure3_replay", (0.0, -0.1, 0.1))) == "+0.10"
    assert [signed(value, 1) for value in (-0.04, 0.04, 0.05001)] == ["0.0", "0.0", "+0.1"]


def test_what_a_study_can_show_is_said() -> None:
    """5 points around 23.5 % of 369: the paper's one run alone has an error of 2.2, it takes 6.5 points."""
    hopeless = result("table1_base_standard", (0.2, 0.1, 0.3))
    assert chances(hopeless) == "power 36 % with 3 trials × 369 tasks"
    assert needed(hopeless) == "no number of trials up to 100"
    gain = result("table1_gain_over_grpo", (0.0, -0.1, 0.1))
    assert chances(gain).startswith("power with 5 trainings × 3 trials × 369 tasks: over 99 % at 0, ")
    assert needed(gain).startswith("5, ")
    one = result("table1_gain_over_grpo", (0.0, -0.1, 0.1), trainings=1)
    assert chances(one) == "nothing with 1 training × 3 trials × 369 tasks: it takes 5 trainings"


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("same direction", "p = 0.004 by Holm"),
        ("contradicted", "p < 0.001 by Holm"),
        ("equivalent", "p = 0.030 by Holm"),
        ("inconclusive", ""),
        ("within prediction interval", ""),
    ],
)
def test_a_verdict_names_the_p_value_that_it_rests_on(verdict: Verdict, words: str) -> None:
    claim = result("table1_gain_over_grpo", (0.04, 0.03, 0.05))
    claim.verdict = verdict
    claim.p_values = {"same": 0.004, "opposite": 1.0, "outside": 0.0004, "equal": 0.03}
    assert p_shown(claim) == words
