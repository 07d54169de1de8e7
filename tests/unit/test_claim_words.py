"""The table of verdicts: units, signs, digits, and no interval where there is none."""

from __future__ import annotations

import pytest

from arpo_replica.evaluation.power import power_of
from arpo_replica.evaluation.published import load_claims
from arpo_replica.evaluation.records import ClaimResult, Interval, Verdict
from arpo_replica.report.claim_words import amount, bounds, gap, published_gap, signed, trials
from synthetic_study import PAPER

CLAIMS, NUMBERS = load_claims(PAPER / "claims.yaml")
MINUS = "\N{MINUS SIGN}"


def result(
    name: str, measured: tuple[float, float, float], found: tuple[float, float, float] | None = None
) -> ClaimResult:
    claim = next(claim for claim in CLAIMS if claim.id == name)
    numbers = [NUMBERS[published] for published in claim.published]
    verdict: Verdict = "inconclusive"

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
        equivalence_p=None,
        contradictions=[],
        power=power_of([n.value for n in numbers], numbers[0].n, claim.margin) if numbers[0].n else None,
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


def test_a_gap_of_rewards_is_not_rounded_away() -> None:
    rates = result("table1_base_standard", (0.2, 0.1, 0.3), (-3.49, -8.02, 1.0))
    assert gap(rates) == f"{MINUS}3.5, {MINUS}8.0 to +1.0"
    assert published_gap(result("table1_gain_over_grpo", (0.0, -0.1, 0.1))) == "+3.9 points"
    assert published_gap(result("figure3_replay", (0.0, -0.1, 0.1))) == "+0.10"
    rewards = result("figure3_replay_on", (0.76, 0.75, 0.77), (0.012, -0.004, 0.028))
    assert gap(rewards) == f"+0.012, {MINUS}0.004 to +0.028"
    assert [signed(value, 1) for value in (-0.04, 0.04, 0.05001)] == ["0.0", "0.0", "+0.1"]


def test_what_no_number_of_trials_settles_is_said() -> None:
    """5 points around 23.5 % of 369: the paper's one run alone has an error of 2.2, it takes 6.5 points."""
    hopeless = result("table1_base_standard", (0.2, 0.1, 0.3))
    assert trials(hopeless) == "no number of trials × 369 tasks"
    assert trials(result("table1_gain_over_grpo", (0.0, -0.1, 0.1))) == "3 trials × 369 tasks, 2214 episodes"
    assert power_of([22.4, 23.5], 369, 3).question == "a loss of 1.1 points at all"
